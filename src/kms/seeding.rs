//! Keys with a chosen id and, if wanted, chosen material: for the seed file and for tests of clients.
//!
//! Called at start, before the daemon listens. What is there already is left as it is.

use crate::api::{ErrorCode, KeyId, KeyManager, KmsError, Origin, Tag};
use crate::crypto::{MaterialBytes, random_array};

use super::home::Home;
use super::model::AliasRecord;
use super::ops::{NewKey, check_tags, default_policy, parse_key_policy};
use super::pipeline::Kms;

/// A key as a seed file describes it.
#[derive(Debug, Default)]
pub struct SeedKey {
    /// Its id; made where absent.
    pub id: Option<KeyId>,
    /// The account it belongs to; the daemon's own where absent.
    pub account: Option<String>,
    /// The region it lives in; the daemon's own where absent.
    pub region: Option<String>,
    /// For people.
    pub description: String,
    /// Its policy; the default one where absent.
    pub policy: Option<String>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its aliases, with their prefix.
    pub aliases: Vec<String>,
    /// Its material; random where absent.
    pub material: Option<MaterialBytes>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeded {
    /// The key was made.
    Made(KeyId),
    /// A key of that id, or the first of its aliases, was there.
    Present(KeyId),
    /// A key of that id was there and was destroyed: it does not come back.
    Destroyed(KeyId),
}

impl Kms {
    /// Makes the key `seed` describes, unless it is there.
    pub fn seed_key(&self, seed: SeedKey) -> Result<Seeded, KmsError> {
        let (turn, own) = (self.turn(), self.settings.home());
        let home = Home::new(
            seed.account.as_deref().unwrap_or(own.account),
            seed.region.as_deref().unwrap_or(own.region),
        );
        if let Some(id) = seed.id
            && self.key(home, id).is_some()
        {
            return Ok(Seeded::Present(id));
        }
        if let Some(id) = seed.id
            && self.state.read().destroyed.contains(&home.key_arn(&id))
        {
            return Ok(Seeded::Destroyed(id));
        }
        let by_alias = seed.aliases.first().and_then(|name| self.state.alias_target(home, name));
        if let Some(key) = by_alias {
            return Ok(Seeded::Present(key.record.id));
        }
        check_tags(&seed.tags, &[])?;
        seed.aliases.iter().try_for_each(|name| check_alias(name))?;
        let text = seed.policy.unwrap_or_else(|| default_policy(home.account));
        let policy = parse_key_policy(&text)?;
        let id = seed.id.unwrap_or_else(|| KeyId::from_random(random_array(), false));
        let now = self.clock.now();
        let new = NewKey {
            id,
            manager: KeyManager::Customer,
            origin: Origin::AwsKms,
            description: seed.description,
            policy: text,
            tags: seed.tags,
        };
        let record = new.record(home, now);
        let alias = |name: String| AliasRecord::new(home, name, id, now);
        let aliases = seed.aliases.into_iter().map(alias).collect();
        let material = seed.material.unwrap_or_else(|| MaterialBytes::take(&mut random_array()));
        self.act_making(home, now, || self.insert_key(&turn, record, policy, Some(&material), aliases))?;
        Ok(Seeded::Made(id))
    }
}

fn check_alias(name: &str) -> Result<(), KmsError> {
    super::ops::check_alias_name(name).map_err(|error| {
        let why = if error.message.is_empty() { String::from("the name is reserved") } else { error.message };
        KmsError::new(ErrorCode::ValidationException, format!("alias {name}: {why}"))
    })
}
