//! Who calls, as the server has proved it.
//!
//! Made by the server from the kernel's peer credentials or from a verified signature; believed by the pipeline.

use std::net::IpAddr;
use std::sync::Arc;

use crate::api::{ErrorCode, KmsError, Tag, Timestamp};

use super::home::Home;
use super::iam::Rules;

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
#[derive(Debug, Clone)]
pub struct Caller {
    /// ARN of the principal.
    pub principal_arn: String,
    /// Its account.
    pub account: String,
    /// The region it asks in.
    pub region: String,
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
    /// The session, where the credentials are temporary.
    pub session: Option<Arc<Session>>,
    /// Why nothing is done for it, whatever it asks: it spoke for another without being trusted to.
    pub barred: Option<String>,
}

/// What temporary credentials bring beside the principal.
#[derive(Debug)]
pub struct Session {
    /// The principal's unique id; for a role's session with its name after a colon.
    pub user_id: String,
    /// When it began.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Policies beyond which it may nothing, if there are any.
    pub policies: Vec<Arc<Rules>>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Names of those tags that sessions made from this one inherit.
    pub transitive: Vec<String>,
    /// Who stands behind it.
    pub source_identity: Option<String>,
}

impl Caller {
    /// Where names without an ARN are looked for.
    pub fn home(&self) -> Home<'_> {
        Home::new(&self.account, &self.region)
    }

    /// The account root, as the daemon itself uses it.
    pub fn internal(home: Home<'_>) -> Self {
        Self {
            principal_arn: root_arn(home.account),
            account: home.account.to_owned(),
            region: home.region.to_owned(),
            is_root: true,
            access_key_id: None,
            source: Source::Internal,
            user_agent: String::from("kmsd"),
            via_service: None,
            secure_transport: true,
            session: None,
            barred: None,
        }
    }

    /// Refuses a caller for whom nothing is done.
    pub fn check_not_barred(&self) -> Result<(), KmsError> {
        match &self.barred {
            Some(why) => Err(KmsError::new(ErrorCode::AccessDeniedException, why.clone())),
            None => Ok(()),
        }
    }

    /// Whether the principal is a session of a role.
    pub fn is_role_session(&self) -> bool {
        self.principal_arn.starts_with("arn:aws:sts:")
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
