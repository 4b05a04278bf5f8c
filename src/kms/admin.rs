//! `kmsd iam`: users, roles, groups, policies and access keys, by calls over the daemon's socket.
//!
//! Called by the command line. Decides nothing: the daemon does, as for any client. Values come in the order of the
//! operation's required parameters, or by name: `kmsd iam put-user-policy alice allow policy.json`,
//! `kmsd iam create-role backup trust.json --max-session-duration 7200 --tags team=storage`.

use std::io::Read;
use std::path::Path;

use clap::Args;
use serde_json::Value;

use crate::api::Operation;

use super::connection::{Connection, Target};
use super::failure::Failure;
use super::iam::Kind;
use super::iam::actions::{ACTIONS, Action, On};
use super::iam::params::encode;

/// Longest policy file read.
const MAX_POLICY: u64 = 256 * 1024;

/// What to do.
#[derive(Debug, Args)]
pub struct IamCommand {
    /// Act in this account instead of the daemon's own
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// The operation as AWS names it, e.g. create-user; "help" lists them all with what they need
    operation: String,
    /// Its values: the required ones in their order, others as --NAME VALUE. A policy is a file, "-" for standard
    /// input, or JSON; tags are --tags KEY=VALUE, as often as there are tags
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "VALUE")]
    values: Vec<String>,
}

/// Runs one operation against the daemon at `socket`.
pub fn run(socket: &Path, command: &IamCommand) -> Result<(), Failure> {
    if command.operation == "help" {
        for action in ACTIONS {
            let values: Vec<String> = action.required.iter().map(|name| kebab(name).to_uppercase()).collect();
            println!("{} {}", kebab(action.name), values.join(" "));
        }
        return Ok(());
    }
    let action = ACTIONS.iter().find(|action| kebab(action.name) == command.operation).ok_or_else(|| {
        usage(format!("there is no operation {}; \"kmsd iam help\" lists them", command.operation))
    })?;
    let form = encode(&pairs_of(action, &command.values)?);
    let unreachable =
        |error: std::io::Error| Failure::System(format!("no kmsd answers at {}", socket.display()), error);
    let mut out = Vec::new();
    let mut connection = Connection::to(&Target::Unix(socket.to_owned())).map_err(unreachable)?;
    let status =
        connection.form(form.as_bytes(), command.account.as_deref(), &mut out).map_err(unreachable)?;
    let answer = read(&out)?;
    if status != 200 {
        let text = |name| answer.pointer(name).and_then(Value::as_str).unwrap_or_default();
        return Err(Failure::Refused(format!("{}: {}", text("/Error/Code"), text("/Error/Message"))));
    }
    let result = answer.pointer(&format!("/{0}Response/{0}Result", action.name));
    if let Some(result) = result.filter(|result| result.as_object().is_some_and(|m| !m.is_empty())) {
        println!("{result:#}");
    }
    Ok(())
}

/// Makes one call of the daemon's JSON protocol; an error of the daemon is a failure.
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
    let answer = if out.is_empty() { Value::Object(serde_json::Map::new()) } else { read(&out)? };
    if status == 200 {
        return Ok(answer);
    }
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = if text("message").is_empty() { text("Message") } else { text("message") };
    Err(Failure::Refused(format!("{}: {message}", text("__type"))))
}

fn read(answer: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(answer)
        .map_err(|e| Failure::Refused(format!("the daemon's answer is not JSON: {e}")))
}

fn usage(what: String) -> Failure {
    Failure::Usage(what)
}

/// `CreateUser` becomes `create-user`.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// `user-name` becomes `UserName`.
fn pascal(name: &str) -> String {
    let raised = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(raised).collect()
}

fn pairs_of(action: &Action, values: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = vec![
        ("Action".to_owned(), action.name.to_owned()),
        ("Version".to_owned(), String::from("2010-05-08")),
    ];
    let optional_name = match action.on {
        On::Entity(kind) => Some(kind.name_member()),
        On::AccessKeys => Some(Kind::User.name_member()),
        _ => None,
    };
    let optional_name = optional_name.filter(|name| !action.required.contains(name));
    let mut places = action.required.iter().copied().chain(optional_name);
    let (mut tags, mut lists) = (0, 0);
    let mut rest = values.iter();
    while let Some(value) = rest.next() {
        let Some(name) = value.strip_prefix("--") else {
            let place = places.next().ok_or_else(|| usage(format!("{value:?} is one value too many")))?;
            pairs.push((place.to_owned(), text_of(place, value)?));
            continue;
        };
        let (name, value) = match name.split_once('=').filter(|_| !name.starts_with("tags=")) {
            Some((name, value)) => (name, value),
            None => (
                name,
                rest.next().map(String::as_str).ok_or_else(|| usage(format!("--{name} wants a value")))?,
            ),
        };
        match name {
            "tags" => {
                tags += 1;
                let (key, text) =
                    value.split_once('=').ok_or_else(|| usage(format!("{value:?} is no tag: KEY=VALUE")))?;
                pairs.push((format!("Tags.member.{tags}.Key"), key.to_owned()));
                pairs.push((format!("Tags.member.{tags}.Value"), text.to_owned()));
            }
            "tag-keys" => {
                lists += 1;
                pairs.push((format!("TagKeys.member.{lists}"), value.to_owned()));
            }
            name => pairs.push((pascal(name), text_of(&pascal(name), value)?)),
        }
    }
    if let Some(missing) = action.required.iter().find(|name| !pairs.iter().any(|(known, _)| known == *name))
    {
        return Err(usage(format!("{} is missing", kebab(missing).to_uppercase())));
    }
    Ok(pairs)
}

/// What a value stands for: policies may be in files.
fn text_of(member: &str, value: &str) -> Result<String, Failure> {
    if member == "Status" {
        return Ok(pascal(&value.to_ascii_lowercase()));
    }
    if !member.ends_with("Document") || value.trim_start().starts_with('{') {
        return Ok(value.to_owned());
    }
    let path = Path::new(value.strip_prefix("file://").unwrap_or(value));
    let fail = |error: std::io::Error| Failure::System(path.display().to_string(), error);
    let mut text = String::new();
    if value == "-" {
        std::io::stdin().lock().take(MAX_POLICY).read_to_string(&mut text).map_err(fail)?;
    } else {
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(MAX_POLICY).read_to_string(&mut text).map_err(fail)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::iam::actions::find;
    use super::*;

    fn pairs(action: &str, values: &[&str]) -> Result<Vec<(String, String)>, String> {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        let pairs = pairs_of(find(action).unwrap(), &values).map_err(|failure| failure.to_string())?;
        Ok(pairs.into_iter().skip(2).collect())
    }

    fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_wrong_command_line_has_the_exit_code_of_wrong_usage() {
        let missing = pairs_of(find("CreateUser").unwrap(), &[]).unwrap_err();
        assert_eq!((missing.to_string().as_str(), missing.exit_code()), ("USER-NAME is missing", 2));
    }

    #[test]
    fn values_stand_in_order_or_by_name() {
        assert_eq!(pairs("CreateUser", &["alice"]).unwrap(), owned(&[("UserName", "alice")]));
        let found =
            pairs("CreateRole", &["r", "{}", "--max-session-duration", "7200", "--tags", "a=b=c"]).unwrap();
        let expected = [
            ("RoleName", "r"),
            ("AssumeRolePolicyDocument", "{}"),
            ("MaxSessionDuration", "7200"),
            ("Tags.member.1.Key", "a"),
            ("Tags.member.1.Value", "b=c"),
        ];
        assert_eq!(found, owned(&expected));
        assert_eq!(pairs("CreateAccessKey", &["alice"]).unwrap(), owned(&[("UserName", "alice")]));
        let found = pairs("UpdateAccessKey", &["AKIA", "inactive"]).unwrap();
        assert_eq!(found, owned(&[("AccessKeyId", "AKIA"), ("Status", "Inactive")]));
        assert!(pairs("PutUserPolicy", &["alice", "p"]).unwrap_err().contains("POLICY-DOCUMENT is missing"));
        assert!(pairs("CreateUser", &["a", "b"]).unwrap_err().contains("too many"));
        assert!(pairs("CreateUser", &["a", "--path"]).unwrap_err().contains("wants a value"));
    }

    #[test]
    fn names_go_there_and_back() {
        for action in ACTIONS {
            assert_eq!(pascal(&kebab(action.name)), action.name);
        }
    }
}
