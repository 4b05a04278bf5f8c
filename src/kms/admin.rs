//! `kmsd iam`: users, their policies and access keys, by calls over the daemon's socket.
//!
//! Called by the command line. Decides nothing: the daemon lets the account root do this over its Unix socket, and
//! nobody else. Prints the daemon's answer as JSON.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::api::{AccessKeyStatus, Operation};

use super::connection::{Connection, Target};
use super::failure::Failure;

/// Longest policy file read.
const MAX_POLICY: u64 = 256 * 1024;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum IamCommand {
    /// Make a user
    CreateUser {
        /// Its name
        name: String,
    },
    /// Remove a user that has no policies and no access keys left
    DeleteUser {
        /// Its name
        name: String,
    },
    /// List users
    ListUsers,
    /// Add or replace a policy of a user
    PutUserPolicy {
        /// The user
        user: String,
        /// Name of the policy
        policy: String,
        /// The document (JSON), or - for standard input
        file: PathBuf,
    },
    /// Show a policy of a user
    GetUserPolicy {
        /// The user
        user: String,
        /// Name of the policy
        policy: String,
    },
    /// Remove a policy of a user
    DeleteUserPolicy {
        /// The user
        user: String,
        /// Name of the policy
        policy: String,
    },
    /// List the policies of a user
    ListUserPolicies {
        /// The user
        user: String,
    },
    /// Make an access key; its secret is shown this once
    CreateAccessKey {
        /// The user
        user: String,
    },
    /// Let an access key sign, or stop it
    UpdateAccessKey {
        /// The access key's id
        id: String,
        /// What it shall be
        #[arg(value_enum)]
        status: StatusArgument,
    },
    /// Remove an access key
    DeleteAccessKey {
        /// The access key's id
        id: String,
    },
    /// List the access keys of a user
    ListAccessKeys {
        /// The user
        user: String,
    },
}

/// Status of an access key.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StatusArgument {
    /// It may sign.
    Active,
    /// It may not.
    Inactive,
}

/// Runs one of the commands against the daemon at `socket`.
pub fn run(socket: &Path, command: IamCommand) -> Result<(), Failure> {
    let (operation, request) = request_of(command)?;
    let mut answer = call(socket, operation, &request)?;
    show_secret(&mut answer);
    if answer.as_object().is_some_and(|members| !members.is_empty()) {
        println!("{answer:#}");
    }
    Ok(())
}

/// The secret of a new access key travels in base64, but signers want the text.
fn show_secret(answer: &mut Value) {
    let Some(secret) = answer.pointer_mut("/AccessKey/SecretAccessKey") else { return };
    let bytes = secret.as_str().and_then(|text| STANDARD.decode(text).ok());
    if let Some(text) = bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
        *secret = Value::String(text);
    }
}

/// Makes one call; an error of the daemon is a failure.
pub fn call(socket: &Path, operation: Operation, request: &Value) -> Result<Value, Failure> {
    call_at(&Target::Unix(socket.to_owned()), operation, request)
}

/// Makes one call to `target`.
pub fn call_at(target: &Target, operation: Operation, request: &Value) -> Result<Value, Failure> {
    let unreachable = |error: std::io::Error| {
        let place = match target {
            Target::Unix(path) => path.display().to_string(),
            Target::Tcp(address, _) => address.to_string(),
        };
        Failure::System(format!("no kmsd answers at {place}"), error)
    };
    let mut connection = Connection::to(target).map_err(unreachable)?;
    let mut out = Vec::new();
    let status =
        connection.call(operation.target(), request.to_string().as_bytes(), &mut out).map_err(unreachable)?;
    let answer: Value = if out.is_empty() {
        Value::Object(serde_json::Map::new())
    } else {
        serde_json::from_slice(&out)
            .map_err(|e| Failure::Refused(format!("the daemon's answer is not JSON: {e}")))?
    };
    if status == 200 {
        return Ok(answer);
    }
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = if text("message").is_empty() { text("Message") } else { text("message") };
    Err(Failure::Refused(format!("{}: {message}", text("__type"))))
}

fn request_of(command: IamCommand) -> Result<(Operation, Value), Failure> {
    Ok(match command {
        IamCommand::CreateUser { name } => (Operation::CreateUser, json!({ "UserName": name })),
        IamCommand::DeleteUser { name } => (Operation::DeleteUser, json!({ "UserName": name })),
        IamCommand::ListUsers => (Operation::ListUsers, json!({})),
        IamCommand::PutUserPolicy { user, policy, file } => {
            let document = read_policy(&file)?;
            let request = json!({ "UserName": user, "PolicyName": policy, "PolicyDocument": document });
            (Operation::PutUserPolicy, request)
        }
        IamCommand::GetUserPolicy { user, policy } => {
            (Operation::GetUserPolicy, json!({ "UserName": user, "PolicyName": policy }))
        }
        IamCommand::DeleteUserPolicy { user, policy } => {
            (Operation::DeleteUserPolicy, json!({ "UserName": user, "PolicyName": policy }))
        }
        IamCommand::ListUserPolicies { user } => (Operation::ListUserPolicies, json!({ "UserName": user })),
        IamCommand::CreateAccessKey { user } => (Operation::CreateAccessKey, json!({ "UserName": user })),
        IamCommand::UpdateAccessKey { id, status } => {
            let status = match status {
                StatusArgument::Active => AccessKeyStatus::Active,
                StatusArgument::Inactive => AccessKeyStatus::Inactive,
            };
            (Operation::UpdateAccessKey, json!({ "AccessKeyId": id, "Status": status }))
        }
        IamCommand::DeleteAccessKey { id } => (Operation::DeleteAccessKey, json!({ "AccessKeyId": id })),
        IamCommand::ListAccessKeys { user } => (Operation::ListAccessKeys, json!({ "UserName": user })),
    })
}

fn read_policy(path: &Path) -> Result<String, Failure> {
    let fail = |error: std::io::Error| Failure::System(path.display().to_string(), error);
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_POLICY).read_to_string(&mut text).map_err(fail)?;
    } else {
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(MAX_POLICY).read_to_string(&mut text).map_err(fail)?;
    }
    Ok(text)
}
