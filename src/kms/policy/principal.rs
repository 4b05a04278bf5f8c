//! Who a statement speaks of: `Principal` and `NotPrincipal`.
//!
//! Compiled and asked by `document`.

use serde_json::{Map, Value};

use super::document::{Effect, PolicyError, strings};
use super::facts::Facts;

/// How a statement reaches the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all.
    None,
    /// Through the caller's account: what the account then allows by its own policies, counts.
    Account,
    /// Through the role of the caller's session: the session's policies and the role's boundary still limit it.
    Role,
    /// By name, as everyone, or the session itself.
    Direct,
}

/// A user, role or session that a policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedPrincipal<'a> {
    /// By its ARN.
    Arn(&'a str),
    /// By its unique id.
    Id(&'a str),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Principals {
    /// An identity's own policy names none.
    Implied,
    Named(Vec<Principal>),
    /// `NotPrincipal`: everyone but these.
    AllBut(Vec<Principal>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Principal {
    Anyone,
    Account(String),
    Arn(String),
    /// A user or role by its unique id.
    Id(String),
    /// A service or a federated identity: no caller here is one.
    Foreign,
}

impl Principals {
    pub(super) fn compile(statement: &Map<String, Value>, names: bool) -> Result<Self, PolicyError> {
        match (statement.get("Principal"), statement.get("NotPrincipal")) {
            (None, None) if names => Err(PolicyError::Syntax("Principal is missing")),
            (None, None) => Ok(Self::Implied),
            _ if !names => Err(PolicyError::Syntax("a policy of a user names no Principal")),
            (Some(value), None) => Ok(Self::Named(principals(value)?)),
            (None, Some(value)) => Ok(Self::AllBut(principals(value)?)),
            (Some(_), Some(_)) => Err(PolicyError::Syntax("Principal and NotPrincipal exclude each other")),
        }
    }

    /// Those that are named, beside everybody and whole accounts.
    pub(super) fn named(&self) -> impl Iterator<Item = NamedPrincipal<'_>> {
        let list = match self {
            Self::Implied => &[][..],
            Self::Named(list) | Self::AllBut(list) => list,
        };
        list.iter().filter_map(|principal| match principal {
            Principal::Arn(arn) => Some(NamedPrincipal::Arn(arn)),
            Principal::Id(id) => Some(NamedPrincipal::Id(id)),
            Principal::Anyone | Principal::Account(_) | Principal::Foreign => None,
        })
    }

    pub(super) fn is_negated(&self) -> bool {
        matches!(self, Self::AllBut(_))
    }

    pub(super) fn reach(&self, effect: Effect, facts: &Facts<'_>) -> Reach {
        let of = |list: &[Principal]| list.iter().map(|one| one.reach(facts)).max().unwrap_or(Reach::None);
        let reach = match self {
            Self::Named(list) => of(list),
            Self::AllBut(list) if list.iter().any(|one| one.spares(facts)) => Reach::None,
            Self::Implied | Self::AllBut(_) => Reach::Direct,
        };
        // A refusal of an account or a role is a refusal of all who belong to it.
        if effect == Effect::Deny && reach != Reach::None { Reach::Direct } else { reach }
    }
}

impl Principal {
    /// Whether `NotPrincipal` excepts the caller by this. An account stands for its root, not for all who belong to it:
    /// it is listed beside the one principal that is meant. Source: "`NotPrincipal`" in the IAM user guide.
    fn spares(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Account(account) => facts.is_root && account == facts.account,
            other => other.reach(facts) != Reach::None,
        }
    }

    fn compile(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Principal(text.to_owned());
        if text == "*" {
            return Ok(Self::Anyone);
        }
        if is_account(text) {
            return Ok(Self::Account(text.to_owned()));
        }
        let is_id = |prefix| text.strip_prefix(prefix).is_some_and(|rest: &str| rest.len() >= 12);
        if (is_id("AIDA") || is_id("AROA")) && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Ok(Self::Id(text.to_owned()));
        }
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (arn, partition, service, region, account, resource) =
            (next(), next(), next(), next(), next(), next());
        if (arn, partition) != ("arn", "aws")
            || !region.is_empty()
            || !is_account(account)
            || text.contains(['*', '?'])
        {
            return Err(bad());
        }
        match (service, resource.split_once('/')) {
            ("iam", None) if resource == "root" => Ok(Self::Account(account.to_owned())),
            ("iam", Some(("user" | "role", name)))
            | ("sts", Some(("assumed-role" | "federated-user", name)))
                if !name.is_empty() =>
            {
                Ok(Self::Arn(text.to_owned()))
            }
            _ => Err(bad()),
        }
    }

    fn reach(&self, facts: &Facts<'_>) -> Reach {
        let session = facts.session.and_then(|session| session.arn);
        let named = if session.is_some() { Reach::Role } else { Reach::Direct };
        match self {
            Self::Anyone => Reach::Direct,
            Self::Account(account) if account == facts.account => Reach::Account,
            Self::Arn(arn) if Some(arn.as_str()) == session => Reach::Direct,
            Self::Arn(arn) if arn == facts.principal_arn => named,
            Self::Id(id) if facts.user_id.split(':').next() == Some(id) => named,
            Self::Account(_) | Self::Arn(_) | Self::Id(_) | Self::Foreign => Reach::None,
        }
    }
}

pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

fn principals(value: &Value) -> Result<Vec<Principal>, PolicyError> {
    let kinds = match value {
        Value::String(text) if text == "*" => return Ok(vec![Principal::Anyone]),
        Value::Object(kinds) if !kinds.is_empty() => kinds,
        _ => return Err(PolicyError::Syntax("Principal must be \"*\" or an object")),
    };
    let mut out = Vec::new();
    for (kind, list) in kinds {
        for text in strings(list)? {
            out.push(match kind.as_str() {
                "AWS" => Principal::compile(&text)?,
                "Service" | "Federated" => Principal::Foreign,
                _ => return Err(PolicyError::Principal(text)),
            });
        }
    }
    Ok(out)
}
