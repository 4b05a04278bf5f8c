//! The policy document: parsed strictly, compiled to statements, evaluated in order.

use serde_json::{Map, Value};

use super::condition::{Condition, refuse_variables};
use super::facts::Facts;
use super::json::{self, JsonError};
use super::wildcard::Wildcard;

/// Longest document, in bytes.
pub const MAX_POLICY_BYTES: usize = 32_768;
/// Most statements in a document.
pub const MAX_STATEMENTS: usize = 512;

/// Why a document is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyError {
    /// Not JSON.
    NotJson,
    /// A member that an object has twice.
    Doubled(String),
    /// JSON, but not of the form of a policy.
    Syntax(&'static str),
    /// A condition operator that does not exist or is not known here.
    Operator(String),
    /// A condition key that is not known here.
    ConditionKey(String),
    /// A text with a policy variable.
    Variable(String),
    /// A principal that is none.
    Principal(String),
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotJson => f.write_str("Policy document is not valid JSON."),
            Self::Doubled(name) => write!(f, "Syntax errors in policy: {name} comes twice in one object."),
            Self::Syntax(what) => write!(f, "Syntax errors in policy: {what}."),
            Self::Operator(name) => write!(f, "Syntax errors in policy: unknown condition operator {name}."),
            Self::ConditionKey(name) => {
                write!(f, "Syntax errors in policy: the condition key {name} is not supported.")
            }
            Self::Variable(text) => {
                write!(f, "Syntax errors in policy: the policy variable in {text} is not supported.")
            }
            Self::Principal(_) => {
                f.write_str("Policy contains a statement with one or more invalid principals.")
            }
        }
    }
}

impl std::error::Error for PolicyError {}

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Lets through.
    Allow,
    /// Refuses, whatever else allows.
    Deny,
}

/// How a statement reaches the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all.
    None,
    /// Through the caller's account: what the account then allows by its own policies, counts.
    Account,
    /// By name.
    Direct,
}

/// A compiled policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq)]
struct Statement {
    effect: Effect,
    principal: Principals,
    actions: Vec<Wildcard>,
    actions_negated: bool,
    resources: Vec<Wildcard>,
    resources_negated: bool,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
enum Principals {
    /// An identity's own policy names none.
    Implied,
    Named(Vec<Principal>),
    /// `NotPrincipal`: everyone but these.
    AllBut(Vec<Principal>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Principal {
    Anyone,
    Account(String),
    Arn(String),
    /// A service or a federated identity: no caller here is one.
    Foreign,
}

impl Policy {
    /// Compiles a key policy, whose statements name principals.
    pub fn of_key(text: &str) -> Result<Self, PolicyError> {
        Self::compile(text, true)
    }

    /// Compiles a policy of a user, whose statements name none.
    pub fn of_identity(text: &str) -> Result<Self, PolicyError> {
        Self::compile(text, false)
    }

    fn compile(text: &str, of_key: bool) -> Result<Self, PolicyError> {
        let value = json::read(text).map_err(|error| match error {
            JsonError::Malformed => PolicyError::NotJson,
            JsonError::Doubled(name) => PolicyError::Doubled(name),
        })?;
        let document = value.as_object().ok_or(PolicyError::Syntax("the document must be an object"))?;
        known_members(document, &["Version", "Id", "Statement"])?;
        if let Some(version) = document.get("Version")
            && !matches!(version.as_str(), Some("2012-10-17" | "2008-10-17"))
        {
            return Err(PolicyError::Syntax("unknown Version"));
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err(PolicyError::Syntax("Statement is missing")),
        };
        if statements.len() > MAX_STATEMENTS {
            return Err(PolicyError::Syntax("too many statements"));
        }
        let compiled: Result<_, _> =
            statements.into_iter().map(|value| Statement::compile(value, of_key)).collect();
        Ok(Self { statements: compiled? })
    }

    /// How far the statements of `effect` reach the caller for this action on this resource.
    pub fn reach(&self, effect: Effect, action: &str, resource: &str, facts: &Facts<'_>) -> Reach {
        let statements = self.statements.iter().filter(|statement| statement.effect == effect);
        statements.map(|statement| statement.reach(action, resource, facts)).max().unwrap_or(Reach::None)
    }
}

impl Statement {
    fn compile(value: &Value, of_key: bool) -> Result<Self, PolicyError> {
        let object = value.as_object().ok_or(PolicyError::Syntax("a statement must be an object"))?;
        known_members(
            object,
            &[
                "Sid",
                "Effect",
                "Principal",
                "NotPrincipal",
                "Action",
                "NotAction",
                "Resource",
                "NotResource",
                "Condition",
            ],
        )?;
        let effect = match object.get("Effect").and_then(Value::as_str) {
            Some("Allow") => Effect::Allow,
            Some("Deny") => Effect::Deny,
            _ => return Err(PolicyError::Syntax("Effect must be Allow or Deny")),
        };
        let (actions, actions_negated) = patterns(object, "Action", "NotAction", true)?;
        let (resources, resources_negated) = patterns(object, "Resource", "NotResource", false)?;
        let conditions = object.get("Condition").map_or_else(|| Ok(Vec::new()), Condition::compile)?;
        let principal = Principals::compile(object, of_key)?;
        if effect == Effect::Allow && matches!(principal, Principals::AllBut(_)) {
            return Err(PolicyError::Syntax("NotPrincipal goes with Deny only"));
        }
        Ok(Self { effect, principal, actions, actions_negated, resources, resources_negated, conditions })
    }

    fn reach(&self, action: &str, resource: &str, facts: &Facts<'_>) -> Reach {
        let matches = |patterns: &[Wildcard], negated, text: &str| {
            !patterns.is_empty() && patterns.iter().any(|pattern| pattern.matches(text)) != negated
        };
        if !matches(&self.actions, self.actions_negated, action)
            || !matches(&self.resources, self.resources_negated, resource)
        {
            return Reach::None;
        }
        let reach = self.principal.reach(self.effect, facts);
        if reach != Reach::None && self.conditions.iter().all(|condition| condition.is_met(facts)) {
            reach
        } else {
            Reach::None
        }
    }
}

impl Principals {
    fn compile(statement: &Map<String, Value>, of_key: bool) -> Result<Self, PolicyError> {
        match (statement.get("Principal"), statement.get("NotPrincipal")) {
            (None, None) if of_key => Err(PolicyError::Syntax("Principal is missing")),
            (None, None) => Ok(Self::Implied),
            _ if !of_key => Err(PolicyError::Syntax("a policy of a user names no Principal")),
            (Some(value), None) => Ok(Self::Named(principals(value)?)),
            (None, Some(value)) => Ok(Self::AllBut(principals(value)?)),
            (Some(_), Some(_)) => Err(PolicyError::Syntax("Principal and NotPrincipal exclude each other")),
        }
    }

    fn reach(&self, effect: Effect, facts: &Facts<'_>) -> Reach {
        let of = |list: &[Principal]| list.iter().map(|one| one.reach(facts)).max().unwrap_or(Reach::None);
        let reach = match self {
            Self::Implied => Reach::Direct,
            Self::Named(list) => of(list),
            Self::AllBut(list) if of(list) == Reach::None => Reach::Direct,
            Self::AllBut(_) => Reach::None,
        };
        // A refusal of an account is a refusal of all who belong to it.
        if effect == Effect::Deny && reach == Reach::Account { Reach::Direct } else { reach }
    }
}

impl Principal {
    fn compile(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Principal(text.to_owned());
        if text == "*" {
            return Ok(Self::Anyone);
        }
        if is_account(text) {
            return Ok(Self::Account(text.to_owned()));
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
        match self {
            Self::Anyone => Reach::Direct,
            Self::Account(account) if account == facts.account => Reach::Account,
            Self::Arn(arn) if arn == facts.principal_arn => Reach::Direct,
            Self::Account(_) | Self::Arn(_) | Self::Foreign => Reach::None,
        }
    }
}

fn is_account(text: &str) -> bool {
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

/// A statement without the member is taken, and never matches.
fn patterns(
    statement: &Map<String, Value>,
    plain: &str,
    negated: &str,
    ignore_case: bool,
) -> Result<(Vec<Wildcard>, bool), PolicyError> {
    let (value, is_negated) = match (statement.get(plain), statement.get(negated)) {
        (Some(_), Some(_)) => {
            return Err(PolicyError::Syntax("a member and its negation exclude each other"));
        }
        (Some(value), None) => (value, false),
        (None, Some(value)) => (value, true),
        (None, None) => return Ok((Vec::new(), false)),
    };
    let compile = |text: &String| {
        refuse_variables(text)?;
        Wildcard::new(text, ignore_case)
    };
    Ok((strings(value)?.iter().map(compile).collect::<Result<_, _>>()?, is_negated))
}

fn strings(value: &Value) -> Result<Vec<String>, PolicyError> {
    let one =
        |value: &Value| value.as_str().map(str::to_owned).ok_or(PolicyError::Syntax("a string is expected"));
    match value {
        Value::Array(list) if list.is_empty() => Err(PolicyError::Syntax("a list is empty")),
        Value::Array(list) => list.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    }
}

fn known_members(object: &Map<String, Value>, known: &[&str]) -> Result<(), PolicyError> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(_) => Err(PolicyError::Syntax("unknown member")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ALICE: &str = "arn:aws:iam::111122223333:user/alice";
    const KEY: &str = "arn:aws:kms:local:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn facts(principal_arn: &'static str) -> Facts<'static> {
        Facts { principal_arn, ..Facts::sample() }
    }

    fn reach(statement: &Value, effect: Effect, action: &str) -> Reach {
        let policy = Policy::of_key(&json!({"Version": "2012-10-17", "Statement": [statement]}).to_string());
        policy.unwrap().reach(effect, action, KEY, &facts(ALICE))
    }

    #[test]
    fn principals_reach_by_name_by_account_or_not_at_all() {
        let allow = |principal: Value| {
            let statement =
                json!({"Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*"});
            reach(&statement, Effect::Allow, "kms:Decrypt")
        };
        assert_eq!(allow(json!("*")), Reach::Direct);
        assert_eq!(allow(json!({"AWS": "*"})), Reach::Direct);
        assert_eq!(allow(json!({"AWS": ALICE})), Reach::Direct);
        assert_eq!(allow(json!({"AWS": "111122223333"})), Reach::Account);
        assert_eq!(allow(json!({"AWS": ["arn:aws:iam::111122223333:root"]})), Reach::Account);
        assert_eq!(allow(json!({"AWS": "arn:aws:iam::111122223333:user/bob"})), Reach::None);
        assert_eq!(allow(json!({"AWS": "999999999999"})), Reach::None);
        assert_eq!(allow(json!({"Service": "logs.amazonaws.com"})), Reach::None);
    }

    #[test]
    fn a_denied_account_means_everyone_in_it_and_not_principal_everyone_else() {
        let deny = |member: &str, principal: Value| {
            let mut statement = json!({"Effect": "Deny", "Action": "kms:Decrypt", "Resource": "*"});
            statement[member] = principal;
            reach(&statement, Effect::Deny, "kms:Decrypt")
        };
        assert_eq!(deny("Principal", json!({"AWS": "arn:aws:iam::111122223333:root"})), Reach::Direct);
        assert_eq!(deny("NotPrincipal", json!({"AWS": ALICE})), Reach::None);
        assert_eq!(deny("NotPrincipal", json!({"AWS": "arn:aws:iam::111122223333:user/bob"})), Reach::Direct);
    }

    #[test]
    fn actions_and_resources_match_by_pattern_and_by_negation() {
        let allow = |more: Value, action| {
            let mut statement = json!({"Effect": "Allow", "Principal": "*"});
            for (name, value) in more.as_object().unwrap() {
                statement[name] = value.clone();
            }
            reach(&statement, Effect::Allow, action) == Reach::Direct
        };
        assert!(allow(json!({"Action": ["kms:Gen*", "kms:En?rypt"], "Resource": KEY}), "kms:Encrypt"));
        assert!(allow(json!({"Action": "KMS:decrypt", "Resource": "arn:aws:kms:*:*:key/*"}), "kms:Decrypt"));
        assert!(!allow(json!({"Action": "kms:Encrypt", "Resource": "*"}), "kms:Decrypt"));
        assert!(allow(json!({"NotAction": "kms:Encrypt", "Resource": "*"}), "kms:Decrypt"));
        assert!(!allow(json!({"NotAction": "kms:De*", "Resource": "*"}), "kms:Decrypt"));
        assert!(!allow(json!({"Action": "kms:*", "NotResource": KEY}), "kms:Decrypt"));
        assert!(!allow(json!({"Action": "kms:*"}), "kms:Decrypt"), "no Resource: ineffective");
        assert!(!allow(json!({"Resource": "*"}), "kms:Decrypt"), "no Action: ineffective");
    }

    #[test]
    fn a_member_that_comes_twice_is_refused() {
        let whole = |statement: &str| format!(r#"{{"Statement":[{{{statement}}}]}}"#);
        let plain = r#""Principal":"*","Action":"kms:*","Resource":"*""#;
        assert!(Policy::of_key(&whole(&format!(r#""Effect":"Deny",{plain}"#))).is_ok());
        for text in [
            whole(&format!(r#""Effect":"Deny","Effect":"Allow",{plain}"#)),
            whole(&format!(r#""Effect":"Deny",{plain},"Condition":{{}},"Condition":{{}}"#)),
            r#"{"Statement":[],"Statement":[]}"#.to_owned(),
        ] {
            let found = Policy::of_key(&text);
            assert!(matches!(found, Err(PolicyError::Doubled(_))), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_not_taken() {
        let ok = json!({"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"});
        let with = |member: &str, value: Value| {
            let mut statement = ok.clone();
            statement[member] = value;
            json!({"Statement": [statement]}).to_string()
        };
        assert!(Policy::of_key(&json!({"Statement": ok}).to_string()).is_ok());
        for text in [
            String::new(),
            "not json".to_owned(),
            "[]".to_owned(),
            "{}".to_owned(),
            json!({"Version": "2020-01-01", "Statement": []}).to_string(),
            json!({"Statement": [], "More": 1}).to_string(),
            with("Effect", json!("Maybe")),
            with("Surprise", json!(1)),
            with("NotAction", json!("kms:*")),
            with("NotPrincipal", json!("*")),
            with("Principal", json!({"AWS": "alice"})),
            with("Principal", json!({"AWS": "arn:aws:iam::111122223333:user/*"})),
            with("Principal", json!({"AWS": "arn:aws:iam::111122223333:group/g"})),
            with("Principal", json!({"CanonicalUser": "x"})),
            with("Principal", json!("alice")),
            with("Condition", json!({"Nonsense": {"a": "b"}})),
            with("Condition", json!({"StringEquals": {"kms:Nonsense": "b"}})),
            with("Resource", json!("arn:aws:kms:*:*:key/${aws:username}")),
            with("Resource", json!([])),
            with("Action", json!([])),
            with("Principal", json!({"AWS": []})),
            with("Principal", json!({"AWS": "arn:zzz:iam::111122223333:user/alice"})),
        ] {
            assert!(Policy::of_key(&text).is_err(), "{text}");
        }
        let identity = json!({"Statement": [ok]}).to_string();
        assert!(Policy::of_identity(&identity).is_err(), "a user's policy names no principal");
    }
}
