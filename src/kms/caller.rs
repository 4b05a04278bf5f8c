//! Who calls, as the server has proved it.
//!
//! Made by the server from the kernel's peer credentials or from a verified signature; believed by the pipeline.

use std::net::IpAddr;

/// Where a call came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A process on this host.
    Unix {
        /// User id, frozen at connect.
        uid: u32,
        /// Group id, frozen at connect.
        gid: u32,
        /// Process id: an observation, not an identity.
        pid: i32,
    },
    /// A TCP peer.
    Tcp(IpAddr),
    /// The daemon itself: seed file, background work.
    Internal,
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// ARN of the principal.
    pub principal_arn: String,
    /// Its account.
    pub account: String,
    /// Whether it is the account root, which every identity-based policy allows everything.
    pub is_root: bool,
    /// The access key that signed, if one did.
    pub access_key_id: Option<String>,
    /// Where the call came from.
    pub source: Source,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// The service that asks on the principal's behalf, e.g. `kmsfs.local.amazonaws.com`.
    pub via_service: Option<String>,
    /// Whether nobody can listen in: a Unix socket, or TLS.
    pub secure_transport: bool,
}

impl Caller {
    /// The account root, as the daemon itself uses it.
    pub fn internal(account: &str) -> Self {
        Self {
            principal_arn: root_arn(account),
            account: account.to_owned(),
            is_root: true,
            access_key_id: None,
            source: Source::Internal,
            user_agent: String::from("kmsd"),
            via_service: None,
            secure_transport: true,
        }
    }

    /// The user name in the principal's ARN, if it is a user.
    pub fn user_name(&self) -> Option<&str> {
        let (_, path) = self.principal_arn.split_once(":user/")?;
        path.rsplit('/').next()
    }
}

/// ARN of the root of `account`.
pub fn root_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:root")
}

/// ARN of the user `name`.
pub fn user_arn(account: &str, name: &str) -> String {
    format!("arn:aws:iam::{account}:user/{name}")
}
