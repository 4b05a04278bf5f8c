//! The seed file: users, access keys and keys that a daemon makes at start where they are missing.
//!
//! Read by the daemon, applied through the pipeline as the daemon itself. What is there already stays as it is, so a
//! seed can be given at each start.
//!
//! ```toml
//! account = "000000000000"        # both must be the store's own, where given
//! region  = "local"
//!
//! [[users]]
//! name = "alice"
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
    /// Users.
    #[serde(default)]
    pub users: Vec<SeedUser>,
    /// Keys.
    #[serde(default)]
    pub keys: Vec<SeedKey>,
}

/// A user.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedUser {
    /// Its name.
    pub name: String,
    /// Its access keys.
    #[serde(default)]
    pub access_keys: Vec<SeedAccessKey>,
    /// Its policies by name.
    #[serde(default)]
    pub policies: BTreeMap<String, Document>,
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
        if self.users.len() > MAX_ENTRIES || self.keys.len() > MAX_ENTRIES {
            return Err(TomlError::Contradiction(format!("more than {MAX_ENTRIES} users or keys")));
        }
        no_twins("user", self.users.iter().map(|user| user.name.as_str()))?;
        let access_keys = self.users.iter().flat_map(|user| &user.access_keys);
        no_twins("access key", access_keys.map(|key| key.id.as_str()))?;
        no_twins("key", self.keys.iter().filter_map(|key| key.id.as_deref()))?;
        if self.keys.iter().any(|key| key.id.is_none() && key.aliases.is_empty()) {
            return Err(TomlError::Contradiction("a key has neither an id nor an alias".into()));
        }
        no_twins("alias", self.keys.iter().flat_map(|key| &key.aliases).map(String::as_str))?;
        self.keys.iter().try_for_each(|key| key.material_bytes().map(|_| ()))
    }
}

fn no_twins<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), TomlError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
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
        assert_eq!((seed.users.len(), seed.keys.len()), (1, 1));
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
        ] {
            let error = seed(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
