//! The seed file: identities, access keys and keys that a daemon makes at start where they are missing.
//!
//! Read by the daemon, applied through the pipeline as the daemon itself. What is there already stays as it is, so a
//! seed can be given at each start.
//!
//! ```toml
//! account = "000000000000"        # both must be the store's own, where given
//! region  = "local"
//!
//! [[policies]]                    # managed policies
//! name = "describe"
//! document = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Describe*","Resource":"*"}]}'
//!
//! [[groups]]
//! name = "staff"
//! attached = ["arn:aws:iam::000000000000:policy/describe"]
//!
//! [[roles]]
//! name = "backup"
//! account = "111122223333"        # the store's own where absent; so for users, groups and policies
//! trust = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"000000000000"},"Action":"sts:AssumeRole"}]}'
//! max_session_seconds = 7200
//!
//! [[users]]
//! name = "alice"
//! groups = ["staff"]
//! tags = { team = "storage" }
//! access_keys = [{ id = "AKIDALICE0000000", secret = "..." }]
//! [users.policies]                # JSON text, or the same as a table
//! use-keys = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}'
//!
//! [[keys]]
//! id = "1234abcd-12ab-34cd-56ef-1234567890ab"
//! aliases = ["alias/app"]
//! description = "..."
//! policy = '{...}'                # the default policy where absent
//! tags = { team = "storage" }
//! material = "base64 of 32 bytes" # random where absent
//! rotation_days = 365             # no automatic rotation where absent
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::toml_file::{self, TomlError};

/// Most users and most keys in a seed.
const MAX_ENTRIES: usize = 100_000;

/// A parsed seed file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// The account it is meant for.
    pub account: Option<String>,
    /// The region it is meant for.
    pub region: Option<String>,
    /// Managed policies.
    #[serde(default)]
    pub policies: Vec<SeedPolicy>,
    /// Groups.
    #[serde(default)]
    pub groups: Vec<SeedEntity>,
    /// Users.
    #[serde(default)]
    pub users: Vec<SeedEntity>,
    /// Roles.
    #[serde(default)]
    pub roles: Vec<SeedEntity>,
    /// Keys.
    #[serde(default)]
    pub keys: Vec<SeedKey>,
}

/// A managed policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedPolicy {
    /// Its name.
    pub name: String,
    /// The account it belongs to; the store's own where absent.
    pub account: Option<String>,
    /// Begins and ends with `/`.
    pub path: Option<String>,
    /// What it says.
    pub document: Document,
}

/// A user, role or group; what does not suit the kind is refused when it is read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedEntity {
    /// Its name.
    pub name: String,
    /// The account it belongs to; the store's own where absent.
    pub account: Option<String>,
    /// Begins and ends with `/`.
    pub path: Option<String>,
    /// Its access keys; users only.
    #[serde(default)]
    pub access_keys: Vec<SeedAccessKey>,
    /// Its policies by name.
    #[serde(default)]
    pub policies: BTreeMap<String, Document>,
    /// ARNs of managed policies attached to it.
    #[serde(default)]
    pub attached: Vec<String>,
    /// ARN of its permissions boundary; not for groups.
    pub boundary: Option<String>,
    /// Names of the groups it is in; users only.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Its tags; not for groups.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Who may assume it; roles only, and there it must be.
    pub trust: Option<Document>,
    /// Longest session; roles only.
    pub max_session_seconds: Option<u32>,
}

/// An access key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedAccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: SecretText,
}

/// A key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedKey {
    /// Its id, a UUID, or `mrk-` and 32 hexadecimal digits. Without one its first alias tells it.
    pub id: Option<String>,
    /// The account it belongs to; the store's own where absent.
    pub account: Option<String>,
    /// The region it lives in, one that is served; the store's own where absent.
    pub region: Option<String>,
    /// Its aliases, each with the prefix `alias/`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Its key policy.
    pub policy: Option<Document>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its material in base64.
    pub material: Option<SecretText>,
    /// Days between automatic rotations.
    pub rotation_days: Option<u32>,
}

/// A policy: JSON text, or a table that becomes JSON.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Document {
    /// As it stands.
    Text(String),
    /// To be written as JSON.
    Table(toml::Table),
}

impl Document {
    /// The JSON text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Table(table) => serde_json::to_string(table).unwrap_or_default(),
        }
    }
}

/// Text that is a secret: not shown, wiped.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl SeedKey {
    /// Account and region, where they are told.
    fn home(&self) -> (Option<&str>, Option<&str>) {
        (self.account.as_deref(), self.region.as_deref())
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        self.id.as_ref().or(self.aliases.first()).map_or("without a name", String::as_str)
    }

    /// The material, if the seed gives it.
    pub fn material_bytes(&self) -> Result<Option<Zeroizing<[u8; 32]>>, TomlError> {
        let Some(text) = &self.material else { return Ok(None) };
        let bytes = STANDARD.decode(text.expose()).map(Zeroizing::new);
        let wrong = || {
            TomlError::Contradiction(format!("key {}: material is not the base64 of 32 bytes", self.name()))
        };
        let bytes: &[u8; 32] = &bytes.map_err(|_| wrong())?.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Some(Zeroizing::new(*bytes)))
    }
}

impl Seed {
    /// Reads and checks a seed file.
    pub fn read(path: &Path) -> Result<Self, TomlError> {
        let seed: Self = toml_file::read(path)?;
        seed.check()?;
        Ok(seed)
    }

    fn check(&self) -> Result<(), TomlError> {
        let entities = [("group", &self.groups), ("user", &self.users), ("role", &self.roles)];
        let many = |count: usize| count > MAX_ENTRIES;
        if many(self.keys.len())
            || many(self.policies.len())
            || entities.iter().any(|(_, all)| many(all.len()))
        {
            return Err(TomlError::Contradiction(format!("more than {MAX_ENTRIES} entries of a kind")));
        }
        for (kind, all) in entities {
            no_twins(kind, all.iter().map(|entity| (entity.account.as_deref(), entity.name.as_str())))?;
            all.iter().try_for_each(|entity| entity.check(kind))?;
        }
        no_twins(
            "policy",
            self.policies.iter().map(|policy| (policy.account.as_deref(), policy.name.as_str())),
        )?;
        let access_keys = self.users.iter().flat_map(|user| &user.access_keys);
        no_twins("access key", access_keys.map(|key| ((), key.id.as_str())))?;
        no_twins("key", self.keys.iter().filter_map(|key| Some((key.home(), key.id.as_deref()?))))?;
        if self.keys.iter().any(|key| key.id.is_none() && key.aliases.is_empty()) {
            return Err(TomlError::Contradiction("a key has neither an id nor an alias".into()));
        }
        let aliases = self.keys.iter().flat_map(|key| key.aliases.iter().map(|alias| (key.home(), &**alias)));
        no_twins("alias", aliases)?;
        self.keys.iter().try_for_each(|key| key.material_bytes().map(|_| ()))
    }
}

impl SeedEntity {
    /// Refuses what the kind has not.
    fn check(&self, kind: &str) -> Result<(), TomlError> {
        let foreign = match kind {
            "user" if self.trust.is_some() || self.max_session_seconds.is_some() => Some("trust"),
            "role" | "group" if !self.access_keys.is_empty() => Some("access_keys"),
            "role" if !self.groups.is_empty() => Some("groups"),
            "role" if self.trust.is_none() => {
                return Err(TomlError::Contradiction(format!(
                    "role {} needs trust: who may assume it",
                    self.name
                )));
            }
            "group" if self.trust.is_some() => Some("trust"),
            "group" if self.boundary.is_some() || !self.tags.is_empty() => Some("boundary or tags"),
            _ => None,
        };
        let message = |what| TomlError::Contradiction(format!("{kind} {} cannot have {what}", self.name));
        foreign.map_or(Ok(()), |what| Err(message(what)))
    }
}

/// Names in a home; where none is told, they share one.
fn no_twins<'a, H: std::hash::Hash + Eq>(
    what: &str,
    names: impl Iterator<Item = (H, &'a str)>,
) -> Result<(), TomlError> {
    let mut seen = std::collections::HashSet::new();
    for (account, name) in names {
        if !seen.insert((account, name)) {
            return Err(TomlError::Contradiction(format!("{what} {name} stands twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(text: &str) -> Result<Seed, TomlError> {
        let seed: Seed = toml_file::parse(text)?;
        seed.check().map(|()| seed)
    }

    #[test]
    fn the_example_of_the_documentation_is_a_seed() {
        let doc = include_str!("seed.rs").split("```").nth(1).unwrap();
        let lines: Vec<&str> = doc.lines().skip(1).filter_map(|line| line.strip_prefix("//!")).collect();
        let text = lines.join("\n");
        let text = text.replace("base64 of 32 bytes", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        let seed = seed(&text).unwrap();
        assert_eq!((seed.users.len(), seed.keys.len(), seed.roles.len()), (1, 1, 1));
        assert_eq!(seed.keys[0].material_bytes().unwrap().unwrap().as_slice(), [0; 32]);
        assert!(!format!("{seed:?}").contains("AAAA"));
    }

    #[test]
    fn a_policy_may_be_a_table() {
        let seed =
            seed("[[users]]\nname='a'\n[users.policies.p]\nVersion='2012-10-17'\nStatement=[]\n").unwrap();
        let text = seed.users[0].policies["p"].text();
        let expected = serde_json::json!({"Version": "2012-10-17", "Statement": []});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
    }

    #[test]
    fn wrong_seeds_are_refused_and_say_where() {
        for (text, needle) in [
            ("acount = '0'\n", "line 1"),
            ("[[users]]\nname='a'\npasword='x'\n", "line 3"),
            ("[[users]]\nname='a'\n[[users]]\nname='a'\n", "user a stands twice"),
            ("[[keys]]\nid='k'\nmaterial='AAAA'\n", "key k: material"),
            ("[[keys]]\nid='k'\naliases=['alias/a','alias/a']\n", "alias alias/a stands twice"),
            ("[[keys]]\n", "neither"),
            ("[[roles]]\nname='r'\n", "role r needs trust"),
            ("[[groups]]\nname='g'\ntrust='{}'\n", "group g cannot have trust"),
        ] {
            let error = seed(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
