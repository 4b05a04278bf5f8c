//! Who a Unix peer is: from the kernel's user id to a principal ARN.
//!
//! Called by the server once per connection. The user id is frozen at connect and sound; the process id is only an
//! observation for the audit record. User 0 and the daemon's own user are the account root unless the map says else.
//!
//! The map file is TOML: names or numbers of users on the left, principals on the right.
//! ```toml
//! [users]
//! backup = "user/backup-agent"                        # a user of this account
//! 1001   = "root"                                     # the account root
//! 1002   = "arn:aws:iam::111122223333:role/other"     # any principal
//! nobody = "refuse"                                   # no unsigned calls
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::sys::user_name;

use super::toml_file::{self, TomlError};

/// Most user ids remembered; when full the memory starts anew.
const MAX_REMEMBERED: usize = 4096;

/// A principal of an unsigned call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its ARN.
    pub arn: String,
    /// Its account.
    pub account: String,
    /// Whether it is the root of this daemon's account.
    pub is_root: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    #[serde(default)]
    users: BTreeMap<String, String>,
}

/// Maps user ids to principals.
#[derive(Debug)]
pub struct PeerMap {
    account: String,
    own_uid: u32,
    users: BTreeMap<String, String>,
    remembered: Mutex<HashMap<u32, Option<Arc<Principal>>>>,
}

impl PeerMap {
    /// The default map of `account` for a daemon that runs as `own_uid`.
    pub fn new(account: &str, own_uid: u32) -> Self {
        Self { account: account.to_owned(), own_uid, users: BTreeMap::new(), remembered: Mutex::default() }
    }

    /// With the map file `path` on top.
    pub fn with_file(mut self, path: &Path) -> Result<Self, TomlError> {
        let file: MapFile = toml_file::read(path)?;
        for (user, target) in &file.users {
            check_target(target)
                .map_err(|what| TomlError::Contradiction(format!("user {user:?}: {what}")))?;
        }
        self.users = file.users;
        Ok(self)
    }

    /// The principal of user `uid`; `None` when the map refuses it.
    pub fn principal_of(&self, uid: u32) -> Option<Arc<Principal>> {
        let mut remembered = self.remembered.lock();
        if let Some(found) = remembered.get(&uid) {
            return found.clone();
        }
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        let found = self.look_up(uid).map(Arc::new);
        remembered.insert(uid, found.clone());
        found
    }

    fn look_up(&self, uid: u32) -> Option<Principal> {
        let number = uid.to_string();
        let name = user_name(uid);
        let by_name = name.as_ref().and_then(|name| self.users.get(name));
        match self.users.get(&number).or(by_name).map(String::as_str) {
            Some("refuse") => None,
            Some("root") => Some(self.root()),
            Some(target) if target.starts_with("arn:") => Some(self.foreign(target)),
            Some(target) => Some(self.local(target)),
            None if uid == 0 || uid == self.own_uid => Some(self.root()),
            None => Some(self.local(&format!("user/{}", name.unwrap_or(format!("uid-{number}"))))),
        }
    }

    fn root(&self) -> Principal {
        Principal { is_root: true, ..self.local("root") }
    }

    fn local(&self, resource: &str) -> Principal {
        let arn = format!("arn:aws:iam::{}:{resource}", self.account);
        Principal { arn, account: self.account.clone(), is_root: false }
    }

    fn foreign(&self, arn: &str) -> Principal {
        let account = arn.split(':').nth(4).unwrap_or_default().to_owned();
        let is_root = account == self.account && arn.ends_with(":root");
        Principal { arn: arn.to_owned(), account, is_root }
    }
}

fn check_target(target: &str) -> Result<(), String> {
    let plain = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c))
    };
    let known = match target.split_once('/') {
        _ if target == "root" || target == "refuse" => true,
        Some(("user" | "role", name)) => plain(name),
        _ => {
            let fields: Vec<&str> = target.splitn(6, ':').collect();
            matches!(fields[..], ["arn", _, "iam" | "sts", "", account, resource]
                if account.len() == 12 && account.bytes().all(|c| c.is_ascii_digit()) && plain(resource))
        }
    };
    if known {
        return Ok(());
    }
    Err(format!("{target:?} is not \"root\", \"refuse\", \"user/NAME\", \"role/NAME\" or a principal's ARN"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Result<PeerMap, TomlError> {
        let name = format!("kmsd-map-{}", crate::api::hex(&crate::crypto::random_array::<8>()));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let made = PeerMap::new("000000000000", 4_000_000_000).with_file(&path);
        std::fs::remove_file(path).unwrap();
        made
    }

    #[test]
    fn root_and_the_daemon_are_the_account_and_others_are_users() {
        let map = PeerMap::new("000000000000", 4_000_000_000);
        assert!(map.principal_of(0).unwrap().is_root);
        assert!(map.principal_of(4_000_000_000).unwrap().is_root);
        let other = map.principal_of(3_999_999_998).unwrap();
        assert_eq!(other.arn, "arn:aws:iam::000000000000:user/uid-3999999998");
        assert!(!other.is_root);
    }

    #[test]
    fn the_map_file_overrules() {
        let map = map("[users]\nroot = \"user/admin\"\n3999999998 = \"root\"\n3999999997 = \"refuse\"\n\
             3999999996 = \"arn:aws:iam::111122223333:role/other\"\n")
        .unwrap();
        assert_eq!(map.principal_of(0).unwrap().arn, "arn:aws:iam::000000000000:user/admin");
        assert!(!map.principal_of(0).unwrap().is_root);
        assert!(map.principal_of(3_999_999_998).unwrap().is_root);
        assert_eq!(map.principal_of(3_999_999_997), None);
        assert_eq!(map.principal_of(3_999_999_996).unwrap().account, "111122223333");
    }

    #[test]
    fn a_wrong_map_is_refused_with_its_line() {
        let text = map("[users]\na = \"user/a\"\n[groups]\nx = \"y\"\n").unwrap_err().to_string();
        assert!(text.contains("groups") && text.contains("line 3"), "{text}");
        for target in ["", "admin", "user/", "user/a b", "arn:aws:s3:::x", "arn:aws:iam::12:user/x"] {
            assert!(map(&format!("[users]\na = {target:?}\n")).is_err(), "{target}");
        }
    }
}
