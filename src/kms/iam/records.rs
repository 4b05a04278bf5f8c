//! The records of identities, as stored: users, roles, groups, managed policies, access keys.
//!
//! Built and kept by `directory`; changed by the operations of `entities`, `managed` and `access_keys`.

use serde::{Deserialize, Serialize};

use crate::api::{AccessKeyStatus, Tag, Timestamp};
use crate::crypto::{random_array, sha256};

use super::super::store::Table;

/// Letters of a made id, after its prefix.
const ID_LETTERS: usize = 17;
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// What an entity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Somebody with access keys.
    #[default]
    User,
    /// Something to be assumed.
    Role,
    /// Users that share policies.
    Group,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::User, Self::Role, Self::Group];

    /// As it stands in ARNs and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Role => "role",
            Self::Group => "group",
        }
    }

    /// As it stands in names of operations and members.
    pub const fn title(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Role => "Role",
            Self::Group => "Group",
        }
    }

    /// What its unique ids begin with.
    pub const fn id_prefix(self) -> &'static str {
        match self {
            Self::User => "AIDA",
            Self::Role => "AROA",
            Self::Group => "AGPA",
        }
    }
}

/// A policy by name, as it was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPolicy {
    /// Its name.
    pub name: String,
    /// The document.
    pub document: String,
}

/// A user, role or group (table User, row id: [`entity_row`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EntityRecord {
    /// What it is.
    #[serde(default)]
    pub kind: Kind,
    /// Its name, unique in its account among its kind, whatever the path.
    pub name: String,
    /// The account it belongs to; records of a store that had one account do not tell.
    #[serde(default)]
    pub account: String,
    /// Begins and ends with `/`.
    #[serde(default = "root_path")]
    pub path: String,
    /// Its unique id; made from the name for records that do not tell.
    #[serde(default)]
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its own policies.
    #[serde(default)]
    pub policies: Vec<NamedPolicy>,
    /// ARNs of the managed policies attached to it.
    #[serde(default)]
    pub attached: Vec<String>,
    /// ARN of the managed policy beyond which it may nothing.
    #[serde(default)]
    pub boundary: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// Of a role: who may assume it.
    #[serde(default)]
    pub trust: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// Of a role: longest session, in seconds.
    #[serde(default)]
    pub max_session: u32,
    /// Of a group: names of its users.
    #[serde(default)]
    pub members: Vec<String>,
}

fn root_path() -> String {
    String::from("/")
}

impl EntityRecord {
    /// A new one, without policies.
    pub fn new(kind: Kind, account: &str, name: &str, created: Timestamp) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            account: account.to_owned(),
            path: root_path(),
            id: made_id(kind.id_prefix()),
            created,
            policies: Vec::new(),
            attached: Vec::new(),
            boundary: None,
            tags: Vec::new(),
            trust: String::new(),
            description: None,
            max_session: 3600,
            members: Vec::new(),
        }
    }

    /// `arn:aws:iam::111122223333:user/path/name`.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:{}{}{}", self.account, self.kind.word(), self.path, self.name)
    }

    /// Fills in what records of older stores do not tell.
    pub fn complete(&mut self, own_account: &str) {
        if self.account.is_empty() {
            own_account.clone_into(&mut self.account);
        }
        if self.id.is_empty() {
            let digest = sha256(self.arn().as_bytes());
            self.id = id_of(self.kind.id_prefix(), &digest);
        }
    }
}

/// Row id of an entity. Users of the daemon's own account are stored by their name alone, as they always were.
pub fn entity_row(record: &EntityRecord, own_account: &str) -> String {
    let EntityRecord { kind, account, name, .. } = record;
    if *kind == Kind::User && account == own_account {
        return name.clone();
    }
    format!("{}/{account}/{name}", kind.word())
}

/// A version of a managed policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// `v` and a number.
    pub id: String,
    /// The document.
    pub document: String,
    /// When it was made.
    pub created: Timestamp,
}

/// A managed policy (table Policy, row id `ACCOUNT/NAME`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Its name, unique in its account whatever the path.
    pub name: String,
    /// The account it belongs to.
    pub account: String,
    /// Begins and ends with `/`.
    pub path: String,
    /// Its unique id.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// When its default version changed.
    pub updated: Timestamp,
    /// For people.
    pub description: Option<String>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its versions, oldest first.
    pub versions: Vec<PolicyVersion>,
    /// Id of the version that counts.
    pub default_version: String,
}

impl PolicyRecord {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:policy{}{}", self.account, self.path, self.name)
    }

    /// Its row.
    pub fn row(&self) -> String {
        format!("{}/{}", self.account, self.name)
    }

    /// The document that counts.
    pub fn document(&self) -> &str {
        let default = self.versions.iter().find(|version| version.id == self.default_version);
        default.map_or("", |version| version.document.as_str())
    }
}

/// An access key (table AccessKey, row id = its id). The secret is sealed under the root of trust.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccessKeyRecord {
    /// Its id.
    pub id: String,
    /// The account it belongs to; records of a store that had one account do not tell.
    #[serde(default)]
    pub account: String,
    /// Who owns it; the account root where absent.
    pub user: Option<String>,
    /// Whether it may sign.
    pub status: AccessKeyStatus,
    /// When it was made.
    pub created: Timestamp,
    /// The secret, sealed, in hex.
    pub sealed_secret: String,
}

/// Tables of these records, for the loader.
pub const TABLES: [Table; 3] = [Table::User, Table::Policy, Table::AccessKey];

/// A new unique id.
pub fn made_id(prefix: &str) -> String {
    id_of(prefix, &random_array::<32>())
}

fn id_of(prefix: &str, bytes: &[u8; 32]) -> String {
    let letters = bytes.iter().take(ID_LETTERS).map(|byte| char::from(ID_ALPHABET[usize::from(byte & 31)]));
    prefix.chars().chain(letters).collect()
}
