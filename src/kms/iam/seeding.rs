//! The identities of a seed file, made at start where they are missing, by the same operations that clients have.
//!
//! Called by the daemon before it listens. What is there already stays as it is.

use std::collections::BTreeMap;

use crate::api::uuid_text;
use crate::crypto::random_array;

use super::super::caller::Caller;
use super::super::home::Home;
use super::super::pipeline::Kms;
use super::super::seed::{Document, Seed, SeedEntity};
use super::super::toml_file::TomlError;
use super::error::IamError;
use super::params::Params;
use super::records::Kind;

type Pairs<'a> = Vec<(&'a str, &'a str)>;

impl Kms {
    /// Whether the managed policies, groups, users, roles and access keys that `seed` names are there.
    pub fn holds_identities(&self, seed: &Seed, home: Home<'_>) -> bool {
        let state = self.state.read_early();
        let account = |own: &Option<String>| own.clone().unwrap_or_else(|| home.account.to_owned());
        let has = |kind: Kind, entity: &SeedEntity| {
            let account = account(&entity.account);
            let has_key = |id: &str| {
                let known = state.iam.access_key(id);
                known.is_some_and(|key| key.account == account && key.user.as_deref() == Some(&entity.name))
            };
            state.iam.entity(kind, &account, &entity.name).is_some()
                && entity.access_keys.iter().all(|key| has_key(&key.id))
        };
        seed.policies
            .iter()
            .all(|policy| state.iam.account(&account(&policy.account)).policies().contains_key(&policy.name))
            && seed.groups.iter().all(|group| has(Kind::Group, group))
            && seed.users.iter().all(|user| has(Kind::User, user))
            && seed.roles.iter().all(|role| has(Kind::Role, role))
    }

    /// Makes the managed policies, groups, users and roles of `seed` that are missing. `home` is for those that tell no
    /// account.
    pub fn seed_identities(&self, seed: &Seed, home: Home<'_>) -> Result<(), TomlError> {
        for policy in &seed.policies {
            let seeding =
                Seeding::of(self, policy.account.as_deref(), home, format!("policy {}", policy.name));
            let document = policy.document.text();
            let mut pairs = vec![("PolicyName", policy.name.as_str()), ("PolicyDocument", document.as_str())];
            pairs.extend(policy.path.as_deref().map(|path| ("Path", path)));
            seeding.make("CreatePolicy", &pairs)?;
        }
        let all = [(Kind::Group, &seed.groups), (Kind::User, &seed.users), (Kind::Role, &seed.roles)];
        for (kind, entities) in all {
            for entity in entities {
                let what = format!("{} {}", kind.word(), entity.name);
                Seeding::of(self, entity.account.as_deref(), home, what).entity(kind, entity)?;
            }
        }
        Ok(())
    }
}

/// The making of one entry of a seed.
struct Seeding<'a> {
    kms: &'a Kms,
    caller: Caller,
    what: String,
}

impl<'a> Seeding<'a> {
    fn of(kms: &'a Kms, account: Option<&str>, home: Home<'_>, what: String) -> Self {
        let caller = Caller::internal(Home::new(account.unwrap_or(home.account), home.region));
        Self { kms, caller, what }
    }

    /// Makes one call; `false` when what it makes is there already.
    fn make(&self, action: &str, pairs: &Pairs<'_>) -> Result<bool, TomlError> {
        let id = uuid_text(random_array());
        match self.kms.call_iam(&self.caller, action, &Params::of(pairs), &id) {
            Ok(_) => Ok(true),
            Err(IamError { code: "EntityAlreadyExists", .. }) => Ok(false),
            Err(IamError { code, message }) => {
                Err(TomlError::Contradiction(format!("{}: {code}: {message}", self.what)))
            }
        }
    }

    fn entity(&self, kind: Kind, entity: &SeedEntity) -> Result<(), TomlError> {
        let (title, name) = (kind.title(), (kind.name_member(), entity.name.as_str()));
        let trust = entity.trust.as_ref().map(Document::text);
        let mut pairs = vec![name];
        pairs.extend(entity.path.as_deref().map(|path| ("Path", path)));
        pairs.extend(entity.boundary.as_deref().map(|arn| ("PermissionsBoundary", arn)));
        pairs.extend(trust.as_deref().map(|text| ("AssumeRolePolicyDocument", text)));
        let seconds = entity.max_session_seconds.map(|seconds| seconds.to_string());
        pairs.extend(seconds.as_deref().map(|seconds| ("MaxSessionDuration", seconds)));
        let tags = tag_pairs(&entity.tags);
        pairs.extend(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        // What belongs to an entity is made with it: what was taken away since stays away.
        if self.make(&format!("Create{title}"), &pairs)? {
            for (policy, document) in &entity.policies {
                let document = document.text();
                let pairs = vec![name, ("PolicyName", policy), ("PolicyDocument", document.as_str())];
                self.make(&format!("Put{title}Policy"), &pairs)?;
            }
            for arn in &entity.attached {
                self.make(&format!("Attach{title}Policy"), &vec![name, ("PolicyArn", arn)])?;
            }
            for group in &entity.groups {
                self.make("AddUserToGroup", &vec![name, ("GroupName", group)])?;
            }
        }
        for key in &entity.access_keys {
            let pairs = vec![name, ("AccessKeyId", &key.id), ("SecretAccessKey", key.secret.expose())];
            self.make("CreateAccessKey", &pairs)?;
        }
        Ok(())
    }
}

fn tag_pairs(tags: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (at, (key, value)) in tags.iter().enumerate() {
        pairs.push((format!("Tags.member.{}.Key", at + 1), key.clone()));
        pairs.push((format!("Tags.member.{}.Value", at + 1), value.clone()));
    }
    pairs
}
