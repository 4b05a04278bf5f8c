//! The gate: the only maker of [`Allowed`], which every operation demands.
//!
//! Called by the pipeline once per call. The order of proof is AWS's: an explicit Deny anywhere wins; then the key
//! policy, by name or through the account and the caller's own policies; else refused.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{EncryptionContext, ErrorCode, KmsError, Tag, Timestamp};

use super::caller::{Caller, Source};
use super::model::{Key, User};
use super::policy::{AliasNames, Effect, Facts, KeyFacts, Reach};

/// What a right is asked on.
#[derive(Debug, Clone)]
pub enum Resource {
    /// A key; its policy decides with the caller's own.
    Key(Arc<Key>),
    /// An alias, by ARN; the caller's own policies decide.
    Alias(String),
    /// No key in particular; the caller's own policies decide.
    Account,
    /// The daemon itself; the account root over the Unix socket only.
    Daemon,
}

/// One right that a call needs.
#[derive(Debug)]
pub struct Demand<'a> {
    /// `kms:NAME`.
    pub action: &'static str,
    /// On what.
    pub resource: Resource,
    /// The encryption context of the request.
    pub context: Option<&'a EncryptionContext>,
    /// The alias by which the request named the key.
    pub request_alias: Option<&'a str>,
    /// Tags that the request brings.
    pub request_tags: &'a [Tag],
    /// Names of tags that the request removes.
    pub removed_tags: &'a [String],
    /// Further facts for conditions, by the lower-case name of their key.
    pub facts: Vec<(&'static str, Cow<'static, str>)>,
}

impl Demand<'_> {
    /// A right on `resource` and nothing more to say.
    pub fn new(action: &'static str, resource: Resource) -> Self {
        Self {
            action,
            resource,
            context: None,
            request_alias: None,
            request_tags: &[],
            removed_tags: &[],
            facts: Vec::new(),
        }
    }
}

/// Proof that the caller may do what it asked for. Made here only; holds the keys it is good for.
#[derive(Debug)]
pub struct Allowed {
    keys: Vec<Arc<Key>>,
}

impl Allowed {
    /// The key the call may use; of several, the one demanded first.
    pub fn key(&self) -> Result<&Arc<Key>, KmsError> {
        self.nth_key(0)
    }

    /// The key demanded in that place.
    pub fn nth_key(&self, place: usize) -> Result<&Arc<Key>, KmsError> {
        self.keys
            .get(place)
            .ok_or_else(|| KmsError::new(ErrorCode::KMSInternalException, "no key was demanded"))
    }
}

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A key policy denies it.
    DeniedByKeyPolicy,
    /// A policy of the caller denies it.
    DeniedByIdentity,
    /// The key policy neither names the caller nor trusts its account with this.
    NoKeyPolicy,
    /// The key policy leaves it to the account, whose policies do not allow it.
    NoIdentityPolicy,
}

/// Who asks, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// The caller's own record, if it is a user that has one.
    pub user: Option<&'a User>,
    /// When.
    pub now: Timestamp,
    /// Where the aliases of keys are found.
    pub aliases: &'a dyn AliasNames,
}

/// A demand that was not granted.
#[derive(Debug)]
pub struct Denied {
    /// Which one, in the order of the demands.
    pub place: usize,
    /// What is to be said.
    pub error: KmsError,
}

/// Holds all demands of a call against the policies.
pub fn authorise(asker: &Asker<'_>, demands: &[Demand<'_>]) -> Result<Allowed, Denied> {
    let mut keys = Vec::with_capacity(demands.len());
    for (place, demand) in demands.iter().enumerate() {
        decide(asker, demand)
            .map_err(|refusal| Denied { place, error: denied(asker.caller, demand, refusal) })?;
        if let Resource::Key(key) = &demand.resource {
            keys.push(Arc::clone(key));
        }
    }
    Ok(Allowed { keys })
}

/// Holds one demand against the policies.
pub fn decide(asker: &Asker<'_>, demand: &Demand<'_>) -> Result<(), Refusal> {
    match &demand.resource {
        Resource::Key(key) => decide_key(asker, demand, key, &key.policy),
        Resource::Alias(arn) => decide_identity(asker, demand, arn),
        Resource::Account => decide_identity(asker, demand, "*"),
        Resource::Daemon => {
            let trusted = asker.caller.is_root && !matches!(asker.caller.source, Source::Tcp(_));
            if trusted { Ok(()) } else { Err(Refusal::NoIdentityPolicy) }
        }
    }
}

/// As [`decide`] for a key, with a policy that may not be in force yet.
pub fn decide_key(
    asker: &Asker<'_>,
    demand: &Demand<'_>,
    key: &Key,
    policy: &super::policy::Policy,
) -> Result<(), Refusal> {
    let (arn, caller) = (&key.record.arn, asker.caller);
    let facts = facts(asker, demand, Some(key));
    if policy.reach(Effect::Deny, demand.action, arn, &facts) != Reach::None {
        return Err(Refusal::DeniedByKeyPolicy);
    }
    if identity_reaches(Effect::Deny, asker.user, demand.action, arn, &facts) {
        return Err(Refusal::DeniedByIdentity);
    }
    let own = || caller.is_root || identity_reaches(Effect::Allow, asker.user, demand.action, arn, &facts);
    match policy.reach(Effect::Allow, demand.action, arn, &facts) {
        Reach::Direct if caller.account == key.record.account => Ok(()),
        Reach::Direct | Reach::Account if own() => Ok(()),
        Reach::Direct | Reach::Account => Err(Refusal::NoIdentityPolicy),
        Reach::None => Err(Refusal::NoKeyPolicy),
    }
}

fn decide_identity(asker: &Asker<'_>, demand: &Demand<'_>, resource: &str) -> Result<(), Refusal> {
    let facts = facts(asker, demand, None);
    if identity_reaches(Effect::Deny, asker.user, demand.action, resource, &facts) {
        return Err(Refusal::DeniedByIdentity);
    }
    if asker.caller.is_root || identity_reaches(Effect::Allow, asker.user, demand.action, resource, &facts) {
        return Ok(());
    }
    Err(Refusal::NoIdentityPolicy)
}

fn identity_reaches(
    effect: Effect,
    user: Option<&User>,
    action: &str,
    resource: &str,
    facts: &Facts<'_>,
) -> bool {
    let policies = user.map_or(&[][..], |user| &user.policies);
    policies.iter().any(|policy| policy.reach(effect, action, resource, facts) != Reach::None)
}

fn facts<'a>(asker: &Asker<'a>, demand: &'a Demand<'a>, key: Option<&'a Key>) -> Facts<'a> {
    let caller = asker.caller;
    Facts {
        principal_arn: &caller.principal_arn,
        account: &caller.account,
        user_name: user_in(&caller.principal_arn),
        is_root: caller.is_root,
        via_service: caller.via_service.as_deref(),
        secure_transport: caller.secure_transport,
        source_ip: if let Source::Tcp(ip) = caller.source { Some(ip) } else { None },
        user_agent: &caller.user_agent,
        region: &caller.region,
        home_account: key.map_or(&caller.account, |key| &key.record.account),
        now: asker.now,
        context: demand.context,
        request_alias: demand.request_alias,
        key: key.map(|key| KeyFacts {
            id: key.record.id,
            home: key.record.home(),
            spec: key.record.spec.as_str(),
            usage: key.record.usage.as_str(),
            origin: key.record.origin.as_str(),
            tags: &key.record.tags,
            aliases: asker.aliases,
        }),
        request_tags: demand.request_tags,
        removed_tags: demand.removed_tags,
        request: &demand.facts,
    }
}

/// The name of a user of any account, without its path.
fn user_in(arn: &str) -> Option<&str> {
    let (service, path) = arn.split_once(":user/")?;
    path.rsplit('/').next().filter(|_| service.starts_with("arn:aws:iam:"))
}

fn denied(caller: &Caller, demand: &Demand<'_>, refusal: Refusal) -> KmsError {
    let resource = match &demand.resource {
        Resource::Key(key) => key.record.arn.as_str(),
        Resource::Alias(arn) => arn.as_str(),
        Resource::Account | Resource::Daemon => "*",
    };
    access_denied(caller, demand.action, resource, refusal)
}

/// The sentence of a refusal.
pub fn access_denied(caller: &Caller, action: &str, resource: &str, refusal: Refusal) -> KmsError {
    let reason = match refusal {
        Refusal::DeniedByKeyPolicy => "with an explicit deny in a resource-based policy".to_owned(),
        Refusal::DeniedByIdentity => "with an explicit deny in an identity-based policy".to_owned(),
        Refusal::NoKeyPolicy => format!("because no resource-based policy allows the {action} action"),
        Refusal::NoIdentityPolicy => format!("because no identity-based policy allows the {action} action"),
    };
    let who = &caller.principal_arn;
    let message =
        format!("User: {who} is not authorized to perform: {action} on resource: {resource} {reason}");
    KmsError::new(ErrorCode::AccessDeniedException, message)
}
