//! Who a Unix peer is: from the kernel's user id to a principal ARN.
//!
//! Called by the server once per connection. The user id is frozen at connect and sound; the process id is only an
//! observation for the audit record.
//!
//! Without a rule, user 0 and the daemon's own user are the account root, and any other user is
//! `arn:aws:iam::ACCOUNT:user/unix/uid-NUMBER`: a principal that key policies and grants can name, and that is never one
//! of IAM's users, whatever its login name. Who shall act as an IAM user or role needs a rule in the map file, TOML with
//! names or numbers of users on the left and principals on the right:
//! ```toml
//! [users]
//! backup = "user/backup-agent"                        # an IAM user of this account, with its policies
//! deploy = "role/deployer"                            # a session of a role, named after the user's number
//! 1001   = "root"                                     # the account root
//! 1002   = "arn:aws:iam::111122223333:role/other"     # any principal
//! nobody = "refuse"                                   # no unsigned calls
//!
//! [services]
//! kmsfs = ["root", "mounter"]                         # users whose processes are that service
//! ```
//! A service is believed for whom it calls. Without a table of services, user 0 and the daemon's own user are any: they
//! are the operator, and can be anybody by themselves.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::sys::user_name;

use super::caller::root_arn;
use super::iam::Signer;
use super::toml_file::{self, TomlError};

/// Begins the resource of the principal that a Unix user is without a rule; its number follows.
pub(super) const UNIX_USER: &str = "user/unix/uid-";
/// Most user ids remembered; when full the memory starts anew.
const MAX_REMEMBERED: usize = 4096;

/// How long a user's name is believed, as it may come to mean another user.
const REMEMBERED_FOR: Duration = Duration::from_mins(1);

/// A principal of an unsigned call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its ARN.
    pub arn: String,
    /// Its account.
    pub account: String,
    /// Whether it is the root of its account.
    pub is_root: bool,
    /// Whether it is the root of the daemon's own account, who may call in the name of any other.
    pub is_operator: bool,
}

impl Principal {
    /// Who calls, where the header asks for another account.
    pub fn in_account(&self, asked: Option<&str>) -> Signer {
        let fits = |account: &&str| account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let (principal_arn, account) = match asked.filter(fits).filter(|_| self.is_operator) {
            Some(account) => (root_arn(account), account.to_owned()),
            None => (self.arn.clone(), self.account.clone()),
        };
        Signer { principal_arn, account, is_root: self.is_root, session: None }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    #[serde(default)]
    users: BTreeMap<String, String>,
    services: Option<BTreeMap<String, Vec<String>>>,
}

/// Until when it is believed, and who it is.
type Remembered = (Instant, Option<Arc<Principal>>);

/// Maps user ids to principals.
#[derive(Debug)]
pub struct PeerMap {
    account: String,
    own_uid: u32,
    users: BTreeMap<String, String>,
    /// Which users may be which service; `None` without a word on it.
    services: Option<BTreeMap<String, Vec<String>>>,
    remembered: Mutex<HashMap<u32, Remembered>>,
}

impl PeerMap {
    /// The default map of `account` for a daemon that runs as `own_uid`.
    pub fn new(account: &str, own_uid: u32) -> Self {
        Self {
            account: account.to_owned(),
            own_uid,
            users: BTreeMap::new(),
            services: None,
            remembered: Mutex::default(),
        }
    }

    /// With the map file `path` on top.
    pub fn with_file(mut self, path: &Path) -> Result<Self, TomlError> {
        let file: MapFile = toml_file::read(path)?;
        for (user, target) in &file.users {
            check_target(target)
                .map_err(|what| TomlError::Contradiction(format!("user {user:?}: {what}")))?;
        }
        for service in file.services.iter().flat_map(BTreeMap::keys) {
            check_service(service)
                .map_err(|what| TomlError::Contradiction(format!("service {service:?}: {what}")))?;
        }
        self.users = file.users;
        self.services = file.services;
        Ok(self)
    }

    /// Whether processes of user `uid` may say that they are `service`, and for whom they call.
    pub fn is_service(&self, uid: u32, service: &str) -> bool {
        let Some(services) = &self.services else { return uid == 0 || uid == self.own_uid };
        let Some(members) = services.get(service) else { return false };
        let (number, name) = (uid.to_string(), std::cell::OnceCell::new());
        let named = |member: &String| {
            *member == number
                || name.get_or_init(|| user_name(uid)).as_ref().is_some_and(|name| name == member)
        };
        members.iter().any(named)
    }

    /// The principal of user `uid`; `None` when the map refuses it.
    pub fn principal_of(&self, uid: u32) -> Option<Arc<Principal>> {
        let mut remembered = self.remembered.lock();
        let now = Instant::now();
        if let Some((until, found)) = remembered.get(&uid)
            && now < *until
        {
            return found.clone();
        }
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        let found = self.look_up(uid).map(Arc::new);
        remembered.insert(uid, (now + REMEMBERED_FOR, found.clone()));
        found
    }

    fn look_up(&self, uid: u32) -> Option<Principal> {
        let number = uid.to_string();
        let by_name = || if self.users.is_empty() { None } else { self.users.get(&user_name(uid)?) };
        match self.users.get(&number).or_else(by_name).map(String::as_str) {
            Some("refuse") => None,
            Some("root") => Some(self.root()),
            Some(target) if target.starts_with("arn:") => Some(self.named(target, uid)),
            Some(target) => Some(self.named(&format!("arn:aws:iam::{}:{target}", self.account), uid)),
            None if uid == 0 || uid == self.own_uid => Some(self.root()),
            None => Some(self.named(&format!("arn:aws:iam::{}:{UNIX_USER}{uid}", self.account), uid)),
        }
    }

    fn root(&self) -> Principal {
        let account = self.account.clone();
        Principal { arn: root_arn(&account), account, is_root: true, is_operator: true }
    }

    /// The principal of that ARN; a role is never a principal itself, but in a session.
    fn named(&self, arn: &str, uid: u32) -> Principal {
        let account = arn.split(':').nth(4).unwrap_or_default().to_owned();
        let is_root = arn == root_arn(&account);
        let arn = match arn.split_once(":role/") {
            Some((_, role)) => {
                let name = role.rsplit('/').next().unwrap_or(role);
                format!("arn:aws:sts::{account}:assumed-role/{name}/uid-{uid}")
            }
            None => arn.to_owned(),
        };
        let is_operator = is_root && account == self.account;
        Principal { arn, account, is_root, is_operator }
    }
}

/// The principal of a mount of `service`, which has no rights but by the grants that were made for it. Nobody is it
/// otherwise: no role of IAM has a colon in its name.
pub fn mount_of(service: &str, arn: &str) -> Option<Signer> {
    let (account, role) = arn.strip_prefix("arn:aws:sts::")?.split_once(":assumed-role/")?;
    let name = role.strip_prefix("aws:")?.strip_prefix(service)?.strip_prefix("-mount/")?;
    let plain =
        (2..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let (principal_arn, account) = (arn.to_owned(), account.to_owned());
    (plain && is_account).then_some(Signer { principal_arn, account, is_root: false, session: None })
}

/// A service stands in `kms:ViaService` as the first part of a host name.
fn check_service(name: &str) -> Result<(), &'static str> {
    let plain =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain {
        Ok(())
    } else {
        Err("a service is named by lower-case letters, digits and hyphens, such as kmsfs")
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
        assert_eq!(other.arn, "arn:aws:iam::000000000000:user/unix/uid-3999999998");
        assert!(!other.is_root);
    }

    #[test]
    fn the_map_file_overrules() {
        let map = map("[users]\nroot = \"user/admin\"\n3999999998 = \"root\"\n3999999997 = \"refuse\"\n\
             3999999996 = \"arn:aws:iam::111122223333:role/team/other\"\n3999999995 = \"role/backup\"\n")
        .unwrap();
        let arn = |uid| map.principal_of(uid).unwrap().arn.clone();
        assert_eq!(arn(3_999_999_996), "arn:aws:sts::111122223333:assumed-role/other/uid-3999999996");
        assert_eq!(arn(3_999_999_995), "arn:aws:sts::000000000000:assumed-role/backup/uid-3999999995");
        assert_eq!(map.principal_of(0).unwrap().arn, "arn:aws:iam::000000000000:user/admin");
        assert!(!map.principal_of(0).unwrap().is_root);
        assert!(map.principal_of(3_999_999_998).unwrap().is_root);
        assert_eq!(map.principal_of(3_999_999_997), None);
        assert_eq!(map.principal_of(3_999_999_996).unwrap().account, "111122223333");
    }

    #[test]
    fn only_the_operator_calls_in_the_name_of_other_accounts() {
        let map = map("[users]\n7 = \"arn:aws:iam::111122223333:root\"\n").unwrap();
        let account = |uid, asked| map.principal_of(uid).unwrap().in_account(asked).account;
        assert_eq!(account(0, Some("222233334444")), "222233334444");
        assert_eq!(account(0, Some("x")), "000000000000");
        assert_eq!(account(7, Some("222233334444")), "111122223333", "the root of another account");
        assert_eq!(account(8, Some("222233334444")), "000000000000");
        assert!(map.principal_of(7).unwrap().is_root && !map.principal_of(8).unwrap().is_root);
    }

    #[test]
    fn services_are_those_of_the_table_or_else_the_operator() {
        let plain = PeerMap::new("000000000000", 4_000_000_000);
        assert!(plain.is_service(0, "kmsfs") && plain.is_service(4_000_000_000, "kmsfs"));
        assert!(!plain.is_service(3_999_999_998, "kmsfs"));
        let map = map("[services]\nkmsfs = [\"3999999998\"]\n").unwrap();
        assert!(map.is_service(3_999_999_998, "kmsfs"));
        assert!(!map.is_service(0, "kmsfs") && !map.is_service(3_999_999_998, "s3"));
        assert!(super::tests::map("[services]\n\"kmsfs.local\" = []\n").is_err());
    }

    #[test]
    fn a_mount_is_a_principal_of_its_service_alone() {
        let arn = "arn:aws:sts::111122223333:assumed-role/aws:kmsfs-mount/00ff.12";
        let mount = mount_of("kmsfs", arn).unwrap();
        assert_eq!((mount.principal_arn.as_str(), mount.account.as_str()), (arn, "111122223333"));
        assert!(!mount.is_root && mount_of("s3", arn).is_none());
        for wrong in [
            "0",
            "arn:aws:sts::1:assumed-role/aws:kmsfs-mount/00ff.12",
            "arn:aws:sts::111122223333:assumed-role/kmsfs-mount/00ff.12",
            "arn:aws:sts::111122223333:assumed-role/aws:kmsfs-mount/0/1",
            "arn:aws:iam::111122223333:root",
        ] {
            assert!(mount_of("kmsfs", wrong).is_none(), "{wrong}");
        }
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
