//! Who may do what, as AWS decides it, and what decided.
//!
//! Called by `authorise` for each right that a call needs, by `explain` for people who ask why, and by `iam` for its own
//! operations. The order of proof: an explicit Deny anywhere; the key policy, by name; the key policy through the account
//! and the caller's own policies, within its boundary and its session's policies; a grant. Another account's caller
//! needs its own policies too, except where a grant names it.

use std::fmt;
use std::sync::Arc;

use crate::api::{ErrorCode, KmsError, MultiRegionKeyType};

use super::authorise::{Asker, Demand, Resource};
use super::caller::{Caller, Source, root_arn};
use super::grants::{self, GrantRecord};
use super::iam::Rules;
use super::model::Key;
use super::policy::{Effect, Facts, KeyFacts, Match, Policy, PrincipalTags, Reach, SessionFacts};

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A key policy denies it.
    DeniedByKeyPolicy,
    /// A policy of the caller denies it.
    DeniedByIdentity,
    /// The boundary of the caller denies it.
    DeniedByBoundary,
    /// A policy of the session denies it.
    DeniedBySession,
    /// The key policy neither names the caller nor trusts its account with this, and no grant does.
    NoKeyPolicy,
    /// It is left to the account, whose policies do not allow it.
    NoIdentityPolicy,
    /// The boundary of the caller does not allow it.
    NoBoundary,
    /// No policy of the session allows it.
    NoSessionPolicy,
}

impl Refusal {
    /// What is missing, or what denies, in few words.
    pub fn missing(self) -> String {
        String::from(match self {
            Self::DeniedByKeyPolicy => "the key policy denies it",
            Self::DeniedByIdentity => "a policy of the caller denies it",
            Self::DeniedByBoundary => "the permissions boundary denies it",
            Self::DeniedBySession => "a session policy denies it",
            Self::NoKeyPolicy => "no statement of the key policy allows it, and no grant does",
            Self::NoIdentityPolicy => {
                "the key policy leaves it to the account, and no policy of the caller allows it"
            }
            Self::NoBoundary => "the permissions boundary does not allow it",
            Self::NoSessionPolicy => "no session policy allows it",
        })
    }
}

/// What decided.
#[derive(Debug, Clone)]
pub enum Basis {
    /// The account root needs no policy of its own.
    Root,
    /// A statement of the key policy.
    KeyPolicy(Arc<Key>, usize),
    /// A statement of a policy of the caller.
    Rules(Arc<Rules>, usize),
    /// A grant.
    Grant(Arc<GrantRecord>),
    /// The caller is the operator, on the daemon's own host.
    Operator,
    /// The grant that is to be retired names the caller.
    NamedByGrant(Arc<GrantRecord>),
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("the account root"),
            Self::KeyPolicy(key, place) => {
                write!(f, "statement {} of the key policy", key.policy.statement_name(*place))
            }
            Self::Rules(rules, place) => {
                write!(f, "statement {} of {}", rules.policy.statement_name(*place), rules.title)
            }
            Self::Grant(grant) => write!(f, "grant {}", grant.id),
            Self::Operator => f.write_str("the operator of the daemon"),
            Self::NamedByGrant(grant) => write!(f, "what grant {} says of its retirement", grant.id),
        }
    }
}

/// A refusal, and the statement that made it, if one did.
#[derive(Debug, Clone)]
pub struct Denial {
    /// Why.
    pub refusal: Refusal,
    /// The statement with the explicit deny.
    pub basis: Option<Basis>,
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, basis: None }
    }
}

/// What a key policy that may not be in force yet says, with the place of its statement, or what else decides.
enum Found {
    Statement(usize),
    Other(Basis),
}

impl Found {
    fn basis(self, of_key: impl FnOnce(usize) -> Basis) -> Basis {
        match self {
            Self::Statement(place) => of_key(place),
            Self::Other(basis) => basis,
        }
    }
}

type Denying = (Refusal, Option<Found>);

/// Holds one demand against the policies and grants.
pub fn decide(asker: &Asker<'_>, demand: &Demand<'_>) -> Result<Basis, Denial> {
    match &demand.resource {
        Resource::Key(key) => {
            let of_key = |place| Basis::KeyPolicy(Arc::clone(key), place);
            match on_key(asker, demand, key, &key.policy) {
                Ok(found) => Ok(found.basis(of_key)),
                Err((refusal, found)) => {
                    Err(Denial { refusal, basis: found.map(|found| found.basis(of_key)) })
                }
            }
        }
        Resource::Grant(key, grant) => decide_retirement(asker, demand, key, grant),
        Resource::Alias(arn) => decide_identity(asker, demand, arn),
        Resource::Account => decide_identity(asker, demand, "*"),
        Resource::Daemon => {
            let caller = asker.caller;
            let trusted = caller.is_root
                && caller.account == asker.operator
                && caller.via_service.is_none()
                && !matches!(caller.source, Source::Tcp(_));
            if trusted { Ok(Basis::Operator) } else { Err(Refusal::NoIdentityPolicy.into()) }
        }
    }
}

/// Holds a demand on a key against a policy that is not in force yet.
pub fn decide_under(
    asker: &Asker<'_>,
    demand: &Demand<'_>,
    key: &Key,
    policy: &Policy,
) -> Result<(), Refusal> {
    on_key(asker, demand, key, policy).map(|_| ()).map_err(|(refusal, _)| refusal)
}

fn on_key(asker: &Asker<'_>, demand: &Demand<'_>, key: &Key, policy: &Policy) -> Result<Found, Denying> {
    let (arn, caller) = (key.record.arn.as_str(), asker.caller);
    let facts = facts(asker, demand, Some(key));
    if let Some(found) = policy.find(Effect::Deny, demand.action, arn, &facts) {
        return Err((Refusal::DeniedByKeyPolicy, Some(Found::Statement(found.statement))));
    }
    own_deny(asker, demand.action, arn, &facts).map_err(denying)?;
    let found = policy.find(Effect::Allow, demand.action, arn, &facts);
    let is_home = caller.account == key.record.account;
    let refusal = match found {
        None => Denial::from(Refusal::NoKeyPolicy),
        Some(Match { reach: Reach::Direct, statement }) if is_home => return Ok(Found::Statement(statement)),
        Some(Match { reach: Reach::Role, statement }) if is_home => {
            match limits(asker, demand.action, arn, &facts) {
                Ok(()) => return Ok(Found::Statement(statement)),
                Err(refusal) => refusal.into(),
            }
        }
        Some(_) => match own_allow(asker, demand.action, arn, &facts) {
            Ok(basis) => return Ok(Found::Other(basis)),
            Err(refusal) => refusal.into(),
        },
    };
    by_grant(asker, demand, arn, &facts)
        .map(|grant| Found::Other(Basis::Grant(grant)))
        .ok_or_else(|| denying(refusal))
}

fn denying(denial: Denial) -> Denying {
    (denial.refusal, denial.basis.map(Found::Other))
}

/// A grant that allows the demand.
fn by_grant(
    asker: &Asker<'_>,
    demand: &Demand<'_>,
    arn: &str,
    facts: &Facts<'_>,
) -> Option<Arc<GrantRecord>> {
    let operation = grants::operation_of(demand.action)?;
    let session = facts.session.and_then(|session| session.arn);
    // The session itself or the user; then the role, within its limits.
    let own = session.unwrap_or(facts.principal_arn);
    if let Some((grant, place)) =
        asker.records.grant_for(arn, &[own, facts.principal_arn], operation, demand.context)
        && (place == 0 || limits(asker, demand.action, arn, facts).is_ok())
    {
        return Some(grant);
    }
    // The account, which lets its own policies decide. Its root was found above.
    if asker.caller.is_root || own_allow(asker, demand.action, arn, facts).is_err() {
        return None;
    }
    let root = root_arn(facts.account);
    asker.records.grant_for(arn, &[&root], operation, demand.context).map(|(grant, _)| grant)
}

/// Whether the caller may retire a grant: the one it names for that, the grantee if it may, the account that made it and
/// whoever that account lets. A policy alone allows nothing here, but it can deny.
fn decide_retirement(
    asker: &Asker<'_>,
    demand: &Demand<'_>,
    key: &Arc<Key>,
    grant: &Arc<GrantRecord>,
) -> Result<Basis, Denial> {
    let arn = key.record.arn.as_str();
    let facts = facts(asker, demand, Some(key));
    if let Some(found) = key.policy.find(Effect::Deny, demand.action, arn, &facts) {
        let basis = Some(Basis::KeyPolicy(Arc::clone(key), found.statement));
        return Err(Denial { refusal: Refusal::DeniedByKeyPolicy, basis });
    }
    own_deny(asker, demand.action, arn, &facts)?;
    let session = facts.session.and_then(|session| session.arn);
    let root = root_arn(facts.account);
    // Named itself, or as the role of a session within its limits, or as the account by what that allows.
    let is = |named: &str| {
        Some(named) == session
            || (named == facts.principal_arn
                && (session.is_none() || limits(asker, demand.action, arn, &facts).is_ok()))
            || (named == root && own_allow(asker, demand.action, arn, &facts).is_ok())
    };
    let as_grantee = !grant.grantee_is_service
        && grant.operations.contains(&crate::api::GrantOperation::RetireGrant)
        && is(&grant.grantee);
    let named = grant.retiring.as_deref().is_some_and(|named| !grant.retiring_is_service && is(named));
    if as_grantee || named || is(&grant.issuer) {
        return Ok(Basis::NamedByGrant(Arc::clone(grant)));
    }
    Err(Refusal::NoKeyPolicy.into())
}

/// Holds a demand on something without a policy of its own against those of the caller.
fn decide_identity(asker: &Asker<'_>, demand: &Demand<'_>, resource: &str) -> Result<Basis, Denial> {
    let facts = facts(asker, demand, None);
    own_deny(asker, demand.action, resource, &facts)?;
    own_allow(asker, demand.action, resource, &facts).map_err(Denial::from)
}

/// An explicit deny in a policy of the caller, its boundary or its session.
pub fn own_deny(asker: &Asker<'_>, action: &str, resource: &str, facts: &Facts<'_>) -> Result<(), Denial> {
    let check = |rules: &Arc<Rules>, refusal| match rules.policy.find(Effect::Deny, action, resource, facts) {
        Some(found) => Err(Denial { refusal, basis: Some(Basis::Rules(Arc::clone(rules), found.statement)) }),
        None => Ok(()),
    };
    if let Some(identity) = asker.identity {
        identity.policies.iter().try_for_each(|rules| check(rules, Refusal::DeniedByIdentity))?;
        identity.boundary.iter().try_for_each(|rules| check(rules, Refusal::DeniedByBoundary))?;
    }
    let session = asker.caller.session.as_ref().map_or(&[][..], |session| &session.policies);
    session.iter().try_for_each(|rules| check(rules, Refusal::DeniedBySession))
}

/// What of the caller's own allows it, within its boundary and its session.
pub fn own_allow(
    asker: &Asker<'_>,
    action: &str,
    resource: &str,
    facts: &Facts<'_>,
) -> Result<Basis, Refusal> {
    if asker.caller.is_root {
        return Ok(Basis::Root);
    }
    let policies = asker.identity.map_or(&[][..], |identity| &identity.policies);
    let found = policies.iter().find_map(|rules| {
        let found = rules.policy.find(Effect::Allow, action, resource, facts)?;
        Some(Basis::Rules(Arc::clone(rules), found.statement))
    });
    let basis = found.ok_or(Refusal::NoIdentityPolicy)?;
    limits(asker, action, resource, facts).map(|()| basis)
}

/// Whether the boundary and the session let it through; they allow nothing by themselves.
pub fn limits(asker: &Asker<'_>, action: &str, resource: &str, facts: &Facts<'_>) -> Result<(), Refusal> {
    let allows = |rules: &Arc<Rules>| rules.policy.find(Effect::Allow, action, resource, facts).is_some();
    if asker
        .identity
        .and_then(|identity| identity.boundary.as_ref())
        .is_some_and(|boundary| !allows(boundary))
    {
        return Err(Refusal::NoBoundary);
    }
    let session = asker.caller.session.as_ref().map_or(&[][..], |session| &session.policies);
    if !session.is_empty() && !session.iter().any(allows) {
        return Err(Refusal::NoSessionPolicy);
    }
    Ok(())
}

/// What conditions can ask about the demand.
pub fn facts<'a>(asker: &Asker<'a>, demand: &'a Demand<'a>, key: Option<&'a Key>) -> Facts<'a> {
    let caller = asker.caller;
    let session = caller.session.as_deref();
    let role_session = caller.is_role_session().then_some(caller.principal_arn.as_str());
    let identity = asker.identity;
    Facts {
        principal_arn: identity.map_or(&caller.principal_arn, |identity| &identity.arn),
        session: (session.is_some() || role_session.is_some()).then(|| SessionFacts {
            arn: role_session,
            issued: session.map_or(asker.now, |session| session.issued),
            source_identity: session.and_then(|session| session.source_identity.as_deref()),
        }),
        account: &caller.account,
        user_name: identity.and_then(|identity| identity.user_name.as_deref()),
        user_id: match (session, identity) {
            (Some(session), _) => &session.user_id,
            (None, Some(identity)) => &identity.id,
            (None, None) => &caller.account,
        },
        is_root: caller.is_root,
        principal_tags: PrincipalTags {
            session: session.map_or(&[], |session| &session.tags),
            identity: identity.map_or(&[], |identity| &identity.tags),
        },
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
            multi_region_type: key.record.multi_region_type().map(MultiRegionKeyType::as_str),
            tags: &key.record.tags,
            aliases: asker.records,
        }),
        request_tags: demand.request_tags,
        removed_tags: demand.removed_tags,
        request: &demand.facts,
    }
}

/// The sentence of a refusal. Of another account's key it never says whether it exists.
pub fn access_denied(caller: &Caller, action: &str, resource: &str, refusal: Refusal) -> KmsError {
    let who = &caller.principal_arn;
    let reason = reason(caller, action, resource, refusal);
    let message =
        format!("User: {who} is not authorized to perform: {action} on resource: {resource} {reason}");
    KmsError::new(ErrorCode::AccessDeniedException, message)
}

/// The end of that sentence.
pub fn reason(caller: &Caller, action: &str, resource: &str, refusal: Refusal) -> String {
    let denied = |by: &str| format!("with an explicit deny in {by}");
    let missing = |what: &str| format!("because no {what} allows the {action} action");
    let owner = resource.split(':').nth(4).unwrap_or(&caller.account);
    let is_foreign = owner != caller.account;
    match refusal {
        Refusal::DeniedByKeyPolicy | Refusal::NoKeyPolicy if is_foreign => String::from(
            "because the resource does not exist in this Region, no resource-based policies allow access, or a \
             resource-based policy explicitly denies access",
        ),
        Refusal::DeniedByKeyPolicy => denied("a resource-based policy"),
        Refusal::DeniedByIdentity => denied("an identity-based policy"),
        Refusal::DeniedByBoundary => denied("a permissions boundary"),
        Refusal::DeniedBySession => denied("a session policy"),
        Refusal::NoKeyPolicy => missing("resource-based policy"),
        Refusal::NoIdentityPolicy => missing("identity-based policy"),
        Refusal::NoBoundary => missing("permissions boundary"),
        Refusal::NoSessionPolicy => missing("session policy"),
    }
}
