//! Who calls, as the server has proved it.
//!
//! Made by the server from the kernel's peer credentials or from a verified signature; believed by the pipeline.

use std::net::IpAddr;

use super::home::Home;

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
        }
    }

    /// The name of the user of `account` that the principal is, if it is one. Users of this daemon have no path, so
    /// an ARN with one, or of another account, is somebody else.
    pub fn user_name(&self, account: &str) -> Option<&str> {
        let (before, name) = self.principal_arn.rsplit_once('/')?;
        let own = self.account == account
            && before.strip_prefix("arn:aws:iam::").and_then(|rest| rest.strip_suffix(":user"))
                == Some(account);
        own.then_some(name).filter(|name| !name.is_empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_arn_of_an_own_user_names_it() {
        let own = "111122223333";
        let name = |arn: &str, account: &str| {
            let caller = Caller {
                principal_arn: arn.into(),
                account: account.into(),
                is_root: false,
                ..Caller::internal(Home::new(own, "local"))
            };
            caller.user_name(own).map(str::to_owned)
        };
        assert_eq!(name(&user_arn(own, "alice"), own).as_deref(), Some("alice"));
        for (arn, account) in [
            ("arn:aws:iam::999988887777:user/alice", "999988887777"),
            ("arn:aws:iam::999988887777:user/alice", own),
            ("arn:aws:iam::111122223333:user/team/alice", own),
            ("arn:aws:iam::111122223333:role/x:user/alice", own),
            ("arn:aws:iam::111122223333:role/alice", own),
            ("arn:aws-cn:iam::111122223333:user/alice", own),
            ("arn:aws:iam::111122223333:user/", own),
            ("arn:aws:iam::111122223333:root", own),
        ] {
            assert_eq!(name(arn, account), None, "{arn}");
        }
    }
}
