//! The policy document: parsed strictly, compiled to statements, evaluated in order.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::condition::Condition;
use super::facts::Facts;
use super::json::{self, JsonError};
use super::principal::{NamedPrincipal, Principals, Reach};
use super::template::{Style, Text};
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

/// What a document is attached to, which decides what its statements must and must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A key: statements name principals.
    Key,
    /// A user, role or group, or a session: statements name none.
    Identity,
    /// A role: who may assume it. Statements name principals and no resource.
    Trust,
}

/// A compiled policy. A copy shares it.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    statements: Arc<[Statement]>,
}

#[derive(Debug, Clone, PartialEq)]
struct Statement {
    sid: String,
    effect: Effect,
    principal: Principals,
    actions: Vec<Wildcard>,
    actions_negated: bool,
    resources: Vec<Text>,
    resources_negated: bool,
    conditions: Vec<Condition>,
}

/// The statement that reaches a caller the furthest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// How far.
    pub reach: Reach,
    /// Its place in the document, counted from 0.
    pub statement: usize,
}

impl Policy {
    /// Compiles a key policy, whose statements name principals.
    pub fn of_key(text: &str) -> Result<Self, PolicyError> {
        Self::compile(text, Kind::Key)
    }

    /// Compiles a policy of a user, role, group or session, whose statements name none.
    pub fn of_identity(text: &str) -> Result<Self, PolicyError> {
        Self::compile(text, Kind::Identity)
    }

    /// Compiles the policy of a role that says who may assume it.
    pub fn of_trust(text: &str) -> Result<Self, PolicyError> {
        Self::compile(text, Kind::Trust)
    }

    /// A key policy under which the account can look at the key and put another policy, and nobody can do anything
    /// else: stands for one that is stored and cannot be read.
    pub fn closed(account: &str) -> Self {
        let left = r#"["kms:PutKeyPolicy","kms:GetKeyPolicy","kms:ListKeyPolicies","kms:DescribeKey"]"#;
        let text = format!(
            r#"{{"Statement":[
                {{"Sid":"unreadable key policy","Effect":"Deny","Principal":"*","NotAction":{left},"Resource":"*"}},
                {{"Effect":"Allow","Principal":{{"AWS":"{account}"}},"Action":{left},"Resource":"*"}}]}}"#
        );
        Self::of_key(&text).unwrap_or_else(|_| Self::refusing())
    }

    /// A policy that refuses everybody everything: stands for one that is stored and cannot be read.
    pub fn refusing() -> Self {
        let any = || Wildcard::new("*", false).into_iter().collect();
        Self {
            statements: Arc::new([Statement {
                sid: String::from("unreadable policy"),
                effect: Effect::Deny,
                principal: Principals::Implied,
                actions: any(),
                actions_negated: false,
                resources: any().into_iter().map(Text::Fixed).collect(),
                resources_negated: false,
                conditions: Vec::new(),
            }]),
        }
    }

    fn compile(text: &str, kind: Kind) -> Result<Self, PolicyError> {
        let value = json::read(text).map_err(|error| match error {
            JsonError::Malformed => PolicyError::NotJson,
            JsonError::Doubled(name) => PolicyError::Doubled(name),
        })?;
        let document = value.as_object().ok_or(PolicyError::Syntax("the document must be an object"))?;
        known_members(document, &["Version", "Id", "Statement"])?;
        let variables = match document.get("Version").map(Value::as_str) {
            Some(Some("2012-10-17")) => true,
            None | Some(Some("2008-10-17")) => false,
            Some(_) => return Err(PolicyError::Syntax("unknown Version")),
        };
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err(PolicyError::Syntax("Statement is missing")),
        };
        if statements.len() > MAX_STATEMENTS {
            return Err(PolicyError::Syntax("too many statements"));
        }
        let compile = |value| Statement::compile(value, kind, variables);
        let compiled: Vec<Statement> = statements.into_iter().map(compile).collect::<Result<_, _>>()?;
        for (place, statement) in compiled.iter().enumerate() {
            let sid = &statement.sid;
            if kind != Kind::Key && !sid.is_empty() && compiled[..place].iter().any(|other| other.sid == *sid)
            {
                return Err(PolicyError::Syntax("Statement IDs (SID) in a single policy must be unique"));
            }
        }
        Ok(Self { statements: compiled.into() })
    }

    /// How far the statements of `effect` reach the caller for this action on this resource.
    pub fn reach(&self, effect: Effect, action: &str, resource: &str, facts: &Facts<'_>) -> Reach {
        self.find(effect, action, resource, facts).map_or(Reach::None, |found| found.reach)
    }

    /// The statement of `effect` that reaches the caller the furthest; the first of several.
    pub fn find(&self, effect: Effect, action: &str, resource: &str, facts: &Facts<'_>) -> Option<Match> {
        let mut best: Option<Match> = None;
        for (place, statement) in self.statements.iter().enumerate() {
            if statement.effect != effect {
                continue;
            }
            let reach = statement.reach(action, resource, facts);
            if reach > best.map_or(Reach::None, |best| best.reach) {
                best = Some(Match { reach, statement: place });
                if reach == Reach::Direct {
                    break;
                }
            }
        }
        best
    }

    /// The users, roles and sessions that its statements name.
    pub fn named_principals(&self) -> impl Iterator<Item = NamedPrincipal<'_>> {
        self.statements.iter().flat_map(|statement| statement.principal.named())
    }

    /// What people call a statement: its Sid, or its number.
    pub fn statement_name(&self, place: usize) -> String {
        match self.statements.get(place) {
            Some(statement) if !statement.sid.is_empty() => format!("\"{}\"", statement.sid),
            _ => format!("{}", place + 1),
        }
    }
}

impl Statement {
    fn compile(value: &Value, kind: Kind, variables: bool) -> Result<Self, PolicyError> {
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
        let sid = match object.get("Sid") {
            None => String::new(),
            Some(Value::String(sid)) => sid.clone(),
            Some(_) => return Err(PolicyError::Syntax("Sid must be a string")),
        };
        let (actions, actions_negated) = texts(object, "Action", "NotAction")?;
        let (resources, resources_negated) = texts(object, "Resource", "NotResource")?;
        check_kind(kind, object, &actions, &resources)?;
        let conditions =
            object.get("Condition").map_or_else(|| Ok(Vec::new()), |c| Condition::compile(c, variables))?;
        let principal = Principals::compile(object, kind != Kind::Identity)?;
        if effect == Effect::Allow && principal.is_negated() {
            return Err(PolicyError::Syntax("NotPrincipal goes with Deny only"));
        }
        let actions = actions.iter().map(|text| Wildcard::new(text, true)).collect::<Result<_, _>>()?;
        let style = Style { wild: true, ignore_case: false, variables };
        let resources = match kind {
            // Its one resource is the role itself.
            Kind::Trust => vec![Text::compile("*", style)?],
            _ => resources.iter().map(|text| Text::compile(text, style)).collect::<Result<_, _>>()?,
        };
        Ok(Self {
            sid,
            effect,
            principal,
            actions,
            actions_negated,
            resources,
            resources_negated,
            conditions,
        })
    }

    fn reach(&self, action: &str, resource: &str, facts: &Facts<'_>) -> Reach {
        let acts = self.actions.iter().any(|pattern| pattern.matches(action)) != self.actions_negated;
        let lies =
            || self.resources.iter().any(|text| text.matches(resource, facts)) != self.resources_negated;
        if self.actions.is_empty() || self.resources.is_empty() || !acts || !lies() {
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

/// What kinds of documents demand of a statement.
fn check_kind(
    kind: Kind,
    statement: &Map<String, Value>,
    actions: &[String],
    resources: &[String],
) -> Result<(), PolicyError> {
    if kind == Kind::Key {
        // Without them it is taken, and never matches.
        return Ok(());
    }
    if actions.is_empty() {
        return Err(PolicyError::Syntax("Policy statement must contain actions"));
    }
    let vendored =
        |action: &String| action == "*" || action.split_once(':').is_some_and(|(v, _)| !v.is_empty());
    if !actions.iter().all(vendored) {
        let what = "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc";
        return Err(PolicyError::Syntax(what));
    }
    if kind == Kind::Trust {
        let prohibited = ["Resource", "NotResource"].iter().any(|member| statement.contains_key(*member));
        return if prohibited { Err(PolicyError::Syntax("Has prohibited field Resource")) } else { Ok(()) };
    }
    if resources.is_empty() {
        return Err(PolicyError::Syntax("Policy statement must contain resources"));
    }
    let is_arn = |text: &String| text == "*" || text.starts_with("arn:") || text.starts_with("${");
    if resources.iter().all(is_arn) {
        return Ok(());
    }
    Err(PolicyError::Syntax("a resource must be in ARN format or \"*\""))
}

/// The texts of a member or of its negation; none where both are absent.
fn texts(
    statement: &Map<String, Value>,
    plain: &str,
    negated: &str,
) -> Result<(Vec<String>, bool), PolicyError> {
    match (statement.get(plain), statement.get(negated)) {
        (Some(_), Some(_)) => Err(PolicyError::Syntax("a member and its negation exclude each other")),
        (Some(value), None) => Ok((strings(value)?, false)),
        (None, Some(value)) => Ok((strings(value)?, true)),
        (None, None) => Ok((Vec::new(), false)),
    }
}

pub(super) fn strings(value: &Value) -> Result<Vec<String>, PolicyError> {
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
    use super::super::facts::SessionFacts;
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
        // The account beside the one who is spared does not spare everybody in it.
        let bob = json!({"AWS": ["arn:aws:iam::111122223333:user/bob", "arn:aws:iam::111122223333:root"]});
        assert_eq!(deny("NotPrincipal", bob), Reach::Direct);
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
            with("Resource", json!([])),
            with("Action", json!([])),
            with("Principal", json!({"AWS": []})),
            with("Principal", json!({"AWS": "arn:zzz:iam::111122223333:user/alice"})),
        ] {
            assert!(Policy::of_key(&text).is_err(), "{text}");
        }
        let identity = json!({"Statement": [ok]}).to_string();
        assert!(Policy::of_identity(&identity).is_err(), "a user's policy names no principal");
        let plain = json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"});
        let of_identity = |change: Value| {
            let mut statement = plain.clone();
            for (member, value) in change.as_object().unwrap() {
                statement[member] = value.clone();
            }
            Policy::of_identity(&json!({"Statement": [statement, {"Sid": "x", "Effect": "Deny", "Action": "*", "Resource": "*"}]}).to_string())
        };
        assert!(of_identity(json!({})).is_ok());
        for wrong in
            [json!({"Action": "Decrypt"}), json!({"Resource": "key"}), json!({"Sid": "x"}), json!({"Sid": 1})]
        {
            assert!(of_identity(wrong.clone()).is_err(), "{wrong}");
        }
        let trust = |statement: Value| Policy::of_trust(&json!({"Statement": statement}).to_string());
        let assume = json!({"Effect": "Allow", "Principal": {"AWS": ALICE}, "Action": "sts:AssumeRole"});
        assert!(trust(assume).is_ok());
        assert!(trust(ok).is_err(), "a trust policy names no resource");
    }

    #[test]
    fn a_session_is_reached_through_its_role_its_own_name_and_its_account() {
        let session = "arn:aws:sts::111122223333:assumed-role/reader/s1";
        let role = "arn:aws:iam::111122223333:role/team/reader";
        let facts = Facts {
            principal_arn: role,
            user_id: "AROAREADERREADER:s1",
            session: Some(SessionFacts {
                arn: Some(session),
                issued: crate::api::Timestamp::default(),
                source_identity: None,
            }),
            ..Facts::sample()
        };
        let reach = |principal: &str, effect: &str| {
            let text = json!({"Statement": {"Effect": effect, "Principal": {"AWS": principal}, "Action": "kms:*", "Resource": "*"}});
            let policy = Policy::of_key(&text.to_string()).unwrap();
            let effect = if effect == "Deny" { Effect::Deny } else { Effect::Allow };
            policy.reach(effect, "kms:Decrypt", KEY, &facts)
        };
        assert_eq!(reach(session, "Allow"), Reach::Direct);
        assert_eq!(reach(role, "Allow"), Reach::Role);
        assert_eq!(reach("AROAREADERREADER", "Allow"), Reach::Role);
        assert_eq!(reach("111122223333", "Allow"), Reach::Account);
        assert_eq!(reach("arn:aws:sts::111122223333:assumed-role/reader/s2", "Allow"), Reach::None);
        assert_eq!(reach("arn:aws:iam::111122223333:role/reader", "Allow"), Reach::None, "the path counts");
        assert_eq!(reach(role, "Deny"), Reach::Direct);
    }

    #[test]
    fn a_policy_that_cannot_be_read_refuses_everybody() {
        let policy = Policy::refusing();
        assert_eq!(policy.reach(Effect::Deny, "kms:Decrypt", KEY, &facts(ALICE)), Reach::Direct);
        assert_eq!(policy.reach(Effect::Allow, "kms:Decrypt", KEY, &facts(ALICE)), Reach::None);
        let closed = Policy::closed("111122223333");
        assert_eq!(closed.reach(Effect::Deny, "kms:Decrypt", KEY, &facts(ALICE)), Reach::Direct);
        assert_eq!(closed.reach(Effect::Deny, "kms:PutKeyPolicy", KEY, &facts(ALICE)), Reach::None);
        assert_eq!(closed.reach(Effect::Allow, "kms:PutKeyPolicy", KEY, &facts(ALICE)), Reach::Account);
    }

    #[test]
    fn variables_stand_in_resources_of_2012_only() {
        let own = |version: Value| {
            let statement = json!({"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "arn:aws:kms:*:*:alias/${aws:username}"});
            let mut document = json!({"Statement": statement});
            document["Version"] = version;
            Policy::of_key(&document.to_string()).unwrap()
        };
        let alias = "arn:aws:kms:local:111122223333:alias/alice";
        let reach = |policy: &Policy| policy.reach(Effect::Allow, "kms:DeleteAlias", alias, &facts(ALICE));
        assert_eq!(reach(&own(json!("2012-10-17"))), Reach::Direct);
        assert_eq!(reach(&own(json!("2008-10-17"))), Reach::None);
    }

    #[test]
    fn the_statement_that_decides_is_named() {
        let statement = |sid: &str, principal: &str| json!({"Sid": sid, "Effect": "Allow", "Principal": {"AWS": principal}, "Action": "kms:*", "Resource": "*"});
        let text =
            json!({"Statement": [statement("", "111122223333"), statement("by name", ALICE)]}).to_string();
        let policy = Policy::of_key(&text).unwrap();
        let found = policy.find(Effect::Allow, "kms:Decrypt", KEY, &facts(ALICE)).unwrap();
        assert_eq!(found, Match { reach: Reach::Direct, statement: 1 });
        assert_eq!(
            (policy.statement_name(0), policy.statement_name(1)),
            ("1".to_owned(), "\"by name\"".to_owned())
        );
    }
}
