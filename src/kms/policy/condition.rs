//! Conditions of a statement: operators and keys, compiled; facts of a call, looked up.

use std::borrow::Cow;

use serde_json::Value;

use crate::api::{EncryptionContext, Tag};

use super::document::PolicyError;
use super::wildcard::Wildcard;

/// Most conditions in a statement, and most values in one of them.
pub const MAX_CONDITIONS: usize = 256;

/// What is known of a call when a policy is evaluated.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The principal.
    pub principal_arn: &'a str,
    /// Its account.
    pub account: &'a str,
    /// The service that asks for it.
    pub via_service: Option<&'a str>,
    /// Whether nobody can listen in.
    pub secure_transport: bool,
    /// The address of a TCP peer.
    pub source_ip: Option<std::net::IpAddr>,
    /// The encryption context of the request.
    pub context: Option<&'a EncryptionContext>,
    /// The alias by which the request named the key.
    pub request_alias: Option<&'a str>,
    /// Facts of the key: spec, usage, origin.
    pub key: Option<KeyFacts<'a>>,
    /// Tags that the request brings.
    pub request_tags: &'a [Tag],
    /// Further facts of the request, by the lower-case name of their condition key.
    pub request: &'a [(&'static str, Cow<'static, str>)],
}

/// What conditions can ask of a key.
#[derive(Debug, Clone, Copy)]
pub struct KeyFacts<'a> {
    /// `KeySpec`.
    pub spec: &'a str,
    /// `KeyUsage`.
    pub usage: &'a str,
    /// `Origin`.
    pub origin: &'a str,
    /// Tags.
    pub tags: &'a [Tag],
}

/// A condition key, told apart when the policy is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    PrincipalArn,
    CallerAccount,
    ViaService,
    SecureTransport,
    Context(String),
    ContextKeys,
    RequestAlias,
    KeySpec,
    KeyUsage,
    KeyOrigin,
    SourceIp,
    ResourceTag(String),
    RequestTag(String),
    TagKeys,
    /// Found among the further facts, or absent.
    Request(String),
}

impl Name {
    fn compile(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let tail = |prefix: &str| text[prefix.len()..].to_owned();
        match lower.as_str() {
            "aws:principalarn" => Self::PrincipalArn,
            "kms:calleraccount" | "aws:principalaccount" => Self::CallerAccount,
            "kms:viaservice" => Self::ViaService,
            "aws:securetransport" => Self::SecureTransport,
            "kms:encryptioncontextkeys" => Self::ContextKeys,
            "kms:requestalias" => Self::RequestAlias,
            "kms:keyspec" => Self::KeySpec,
            "kms:keyusage" => Self::KeyUsage,
            "kms:keyorigin" => Self::KeyOrigin,
            "aws:sourceip" => Self::SourceIp,
            "aws:tagkeys" => Self::TagKeys,
            _ if lower.starts_with("kms:encryptioncontext:") => Self::Context(tail("kms:encryptioncontext:")),
            _ if lower.starts_with("aws:resourcetag/") => Self::ResourceTag(tail("aws:resourcetag/")),
            _ if lower.starts_with("aws:requesttag/") => Self::RequestTag(tail("aws:requesttag/")),
            _ => Self::Request(lower),
        }
    }

    /// The values of this key in a call; none where the call has no such fact.
    fn values(&self, facts: &Facts<'_>) -> Vec<String> {
        let one = |value: Option<&str>| value.map(str::to_owned).into_iter().collect::<Vec<_>>();
        let tag = |tags: &[Tag], key: &str| {
            one(tags.iter().find(|tag| tag.tag_key == key).map(|tag| tag.tag_value.as_str()))
        };
        match self {
            Self::PrincipalArn => one(Some(facts.principal_arn)),
            Self::CallerAccount => one(Some(facts.account)),
            Self::ViaService => one(facts.via_service),
            Self::SecureTransport => one(Some(if facts.secure_transport { "true" } else { "false" })),
            Self::Context(key) => one(facts.context.and_then(|context| context.get(key))),
            Self::ContextKeys => facts.context.into_iter().flatten().map(|(key, _)| key.clone()).collect(),
            Self::RequestAlias => one(facts.request_alias),
            Self::KeySpec => one(facts.key.map(|key| key.spec)),
            Self::KeyUsage => one(facts.key.map(|key| key.usage)),
            Self::KeyOrigin => one(facts.key.map(|key| key.origin)),
            Self::SourceIp => facts.source_ip.iter().map(ToString::to_string).collect(),
            Self::ResourceTag(key) => facts.key.map_or_else(Vec::new, |facts| tag(facts.tags, key)),
            Self::RequestTag(key) => tag(facts.request_tags, key),
            Self::TagKeys => facts.request_tags.iter().map(|tag| tag.tag_key.clone()).collect(),
            Self::Request(name) => {
                one(facts.request.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_ref()))
            }
        }
    }
}

/// How a value is compared.
#[derive(Debug, Clone, PartialEq)]
enum Test {
    Text(Vec<Wildcard>),
    Arn(Vec<ArnPattern>),
    Number(Vec<f64>, Order),
    Bool(bool),
    Network(Vec<Network>),
    /// The key must be absent (true) or present (false).
    Null(bool),
}

/// Of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Over several values of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// None given: the key has one value.
    Plain,
    /// `ForAnyValue:`: at least one value.
    Any,
    /// `ForAllValues:`: all values, or none there.
    All,
}

/// One operator applied to one key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    name: Name,
    test: Test,
    negated: bool,
    if_exists: bool,
    quantifier: Quantifier,
}

impl Condition {
    /// Compiles the `Condition` block of a statement.
    pub(super) fn compile(block: &Value) -> Result<Vec<Self>, PolicyError> {
        let operators = block.as_object().ok_or(PolicyError::Syntax("Condition must be an object"))?;
        let mut compiled = Vec::new();
        for (operator, keys) in operators {
            let keys =
                keys.as_object().ok_or(PolicyError::Syntax("a condition operator must hold an object"))?;
            for (key, values) in keys {
                compiled.push(Self::one(operator, key, values)?);
            }
        }
        if compiled.len() > MAX_CONDITIONS {
            return Err(PolicyError::Syntax("too many conditions"));
        }
        Ok(compiled)
    }

    fn one(operator: &str, key: &str, values: &Value) -> Result<Self, PolicyError> {
        let (quantifier, operator) = match operator.split_once(':') {
            Some(("ForAllValues", rest)) => (Quantifier::All, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::Any, rest),
            Some(_) => return Err(PolicyError::Operator(operator.to_owned())),
            None => (Quantifier::Plain, operator),
        };
        let (operator, if_exists) =
            operator.strip_suffix("IfExists").map_or((operator, false), |o| (o, true));
        let values = texts(values)?;
        let (test, negated) = Self::test(operator, &values)?;
        Ok(Self { name: Name::compile(key), test, negated, if_exists, quantifier })
    }

    fn test(operator: &str, values: &[String]) -> Result<(Test, bool), PolicyError> {
        let exact = |fold: bool| {
            // Without wildcards of its own: `StringEquals` takes `*` literally.
            let escape = |v: &String| Wildcard::literal(v, fold);
            Test::Text(values.iter().map(escape).collect())
        };
        let like = || Test::Text(values.iter().map(|v| Wildcard::new(v, false)).collect());
        let arn = || Test::Arn(values.iter().map(|v| ArnPattern::compile(v)).collect());
        let first_bool = || match values {
            [value] if value.eq_ignore_ascii_case("true") => Ok(true),
            [value] if value.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(PolicyError::Syntax("a condition wants true or false")),
        };
        let number = |order| {
            let parsed: Result<Vec<f64>, _> = values.iter().map(|v| v.parse::<f64>()).collect();
            parsed
                .map(|list| Test::Number(list, order))
                .map_err(|_| PolicyError::Syntax("a condition wants a number"))
        };
        let networks =
            || values.iter().map(|v| Network::parse(v)).collect::<Result<Vec<_>, _>>().map(Test::Network);
        Ok(match operator {
            "StringEquals" => (exact(false), false),
            "StringNotEquals" => (exact(false), true),
            "StringEqualsIgnoreCase" => (exact(true), false),
            "StringNotEqualsIgnoreCase" => (exact(true), true),
            "StringLike" => (like(), false),
            "StringNotLike" => (like(), true),
            "ArnEquals" | "ArnLike" => (arn(), false),
            "ArnNotEquals" | "ArnNotLike" => (arn(), true),
            "NumericEquals" => (number(Order::Equal)?, false),
            "NumericNotEquals" => (number(Order::Equal)?, true),
            "NumericLessThan" => (number(Order::Less)?, false),
            "NumericLessThanEquals" => (number(Order::LessOrEqual)?, false),
            "NumericGreaterThan" => (number(Order::Greater)?, false),
            "NumericGreaterThanEquals" => (number(Order::GreaterOrEqual)?, false),
            "Bool" => (Test::Bool(first_bool()?), false),
            "IpAddress" => (networks()?, false),
            "NotIpAddress" => (networks()?, true),
            "Null" => (Test::Null(first_bool()?), false),
            other => return Err(PolicyError::Operator(other.to_owned())),
        })
    }

    /// Whether the call meets it. A negated operator is met where the key is absent, as IAM has it.
    pub(super) fn is_met(&self, facts: &Facts<'_>) -> bool {
        let values = self.name.values(facts);
        if let Test::Null(absent) = self.test {
            return values.is_empty() == absent;
        }
        let holds = |value: &String| self.test.holds(value) != self.negated;
        match self.quantifier {
            Quantifier::Plain if values.is_empty() => self.if_exists || self.negated,
            Quantifier::Plain if self.negated => values.iter().all(holds),
            Quantifier::Any if values.is_empty() => self.if_exists,
            Quantifier::Plain | Quantifier::Any => values.iter().any(holds),
            Quantifier::All => values.iter().all(holds),
        }
    }
}

impl Test {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Text(patterns) => patterns.iter().any(|pattern| pattern.matches(value)),
            Self::Arn(patterns) => patterns.iter().any(|pattern| pattern.matches(value)),
            Self::Number(numbers, order) => {
                let holds = |given: f64| numbers.iter().any(|number| order.holds(given, *number));
                value.parse::<f64>().is_ok_and(holds)
            }
            Self::Bool(wanted) => value.eq_ignore_ascii_case(if *wanted { "true" } else { "false" }),
            Self::Network(networks) => {
                value.parse().is_ok_and(|ip| networks.iter().any(|network| network.contains(ip)))
            }
            Self::Null(_) => false,
        }
    }
}

impl Order {
    fn holds(self, given: f64, number: f64) -> bool {
        match self {
            Self::Equal => (given - number).abs() < f64::EPSILON,
            Self::Less => given < number,
            Self::LessOrEqual => given <= number,
            Self::Greater => given > number,
            Self::GreaterOrEqual => given >= number,
        }
    }
}

/// An ARN whose six parts are matched one by one, so that `*` does not run over a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ArnPattern(Vec<Wildcard>);

impl ArnPattern {
    fn compile(text: &str) -> Self {
        Self(text.splitn(6, ':').map(|part| Wildcard::new(part, false)).collect())
    }

    fn matches(&self, text: &str) -> bool {
        if let [any] = self.0.as_slice() {
            return any.matches(text);
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        parts.len() == self.0.len() && self.0.iter().zip(parts).all(|(pattern, part)| pattern.matches(part))
    }
}

/// An address range in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    base: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    fn parse(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Syntax("a condition wants an address range");
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: std::net::IpAddr = address.parse().map_err(|_| bad())?;
        let width: u32 = if address.is_ipv4() { 32 } else { 128 };
        let length: u32 = length.map_or(Ok(width), |l| l.parse().map_err(|_| bad()))?;
        if length > width {
            return Err(bad());
        }
        let mask = u128::MAX.checked_shl(width - length).unwrap_or(0);
        Ok(Self { base: bits(address) & mask, mask, is_v4: address.is_ipv4() })
    }

    fn contains(&self, address: std::net::IpAddr) -> bool {
        address.is_ipv4() == self.is_v4 && bits(address) & self.mask == self.base
    }
}

fn bits(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(v4) => u128::from(u32::from(v4)),
        std::net::IpAddr::V6(v6) => u128::from(v6),
    }
}

/// One text or a list of them; numbers and booleans may stand without quotes.
fn texts(value: &Value) -> Result<Vec<String>, PolicyError> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(PolicyError::Syntax("a condition value must be a string")),
    };
    match value {
        Value::Array(list) if list.len() > MAX_CONDITIONS => {
            Err(PolicyError::Syntax("too many condition values"))
        }
        Value::Array(list) => list.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn met(block: &Value, change: impl FnOnce(&mut Facts<'_>)) -> bool {
        let mut facts = Facts {
            principal_arn: "arn:aws:iam::111122223333:user/alice",
            account: "111122223333",
            via_service: None,
            secure_transport: true,
            source_ip: None,
            context: None,
            request_alias: None,
            key: None,
            request_tags: &[],
            request: &[],
        };
        change(&mut facts);
        Condition::compile(block).unwrap().iter().all(|condition| condition.is_met(&facts))
    }

    #[test]
    fn operators_decide_as_iam_does() {
        let alice = |block| met(&block, |_| {});
        assert!(alice(json!({"StringEquals": {"kms:CallerAccount": "111122223333"}})));
        assert!(alice(json!({"StringEquals": {"KMS:calleraccount": ["x", "111122223333"]}})));
        assert!(
            !alice(json!({"StringEquals": {"kms:CallerAccount": "1111*"}})),
            "no wildcard in StringEquals"
        );
        assert!(alice(json!({"StringLike": {"kms:CallerAccount": "1111*"}})));
        assert!(!alice(json!({"StringNotLike": {"kms:CallerAccount": "1111*"}})));
        assert!(alice(json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/*"}})));
        assert!(
            !alice(json!({"ArnLike": {"aws:PrincipalArn": "arn:*:user/alice"}})),
            "* stays within a part"
        );
        assert!(alice(json!({"Bool": {"aws:SecureTransport": "true"}})));
        assert!(!alice(json!({"Bool": {"aws:SecureTransport": false}})));
        assert!(alice(
            json!({"StringEqualsIgnoreCase": {"aws:PrincipalArn": "ARN:aws:iam::111122223333:user/Alice"}})
        ));
    }

    #[test]
    fn an_absent_key_fails_unless_the_operator_says_otherwise() {
        let alice = |block| met(&block, |_| {});
        assert!(!alice(json!({"StringEquals": {"kms:ViaService": "s"}})));
        assert!(alice(json!({"StringEqualsIfExists": {"kms:ViaService": "s"}})));
        assert!(alice(json!({"StringNotEquals": {"kms:ViaService": "s"}})));
        assert!(alice(json!({"Null": {"kms:ViaService": "true"}})));
        assert!(!alice(json!({"Null": {"kms:ViaService": "false"}})));
        assert!(alice(json!({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "a"}})));
        assert!(!alice(json!({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "a"}})));
    }

    #[test]
    fn the_encryption_context_is_asked_by_key_and_by_its_set_of_keys() {
        let context: EncryptionContext = [("App", "x"), ("b", "y")].into_iter().collect();
        assert!(!met(&json!({"StringEquals": {"kms:EncryptionContext:App": "x"}}), |f| f.context = None));
        let check = |block: Value| {
            let compiled = Condition::compile(&block).unwrap();
            let facts = Facts {
                principal_arn: "",
                account: "",
                via_service: None,
                secure_transport: false,
                source_ip: Some([10, 1, 2, 3].into()),
                context: Some(&context),
                request_alias: None,
                key: None,
                request_tags: &[],
                request: &[("kms:rotationperiodindays", "90".into())],
            };
            compiled.iter().all(|condition| condition.is_met(&facts))
        };
        assert!(check(json!({"StringEquals": {"kms:EncryptionContext:App": "x"}})));
        assert!(
            !check(json!({"StringEquals": {"kms:EncryptionContext:app": "x"}})),
            "context keys keep their case"
        );
        assert!(check(json!({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["App", "b"]}})));
        assert!(!check(json!({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["App"]}})));
        assert!(check(json!({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": ["App"]}})));
        assert!(check(json!({"ForAnyValue:StringNotEquals": {"kms:EncryptionContextKeys": ["App"]}})));
        assert!(!check(json!({"ForAnyValue:StringNotEquals": {"kms:EncryptionContextKeys": ["App", "b"]}})));
        assert!(!check(json!({"ForAllValues:StringNotEquals": {"kms:EncryptionContextKeys": ["App"]}})));
        assert!(check(json!({"NumericLessThanEquals": {"kms:RotationPeriodInDays": "90"}})));
        assert!(!check(json!({"NumericGreaterThan": {"kms:RotationPeriodInDays": 90}})));
        assert!(check(json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})));
        assert!(!check(json!({"IpAddress": {"aws:SourceIp": ["11.0.0.0/8", "::/0"]}})));
        assert!(check(json!({"NotIpAddress": {"aws:SourceIp": "10.1.2.4"}})));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for block in [
            json!({"StringEqual": {"a": "b"}}),
            json!({"ForSomeValues:StringEquals": {"a": "b"}}),
            json!({"Bool": {"a": "maybe"}}),
            json!({"NumericEquals": {"a": "x"}}),
            json!({"IpAddress": {"a": "10.0.0.0/33"}}),
            json!({"StringEquals": {"a": {"b": 1}}}),
            json!({"StringEquals": "a"}),
            json!("x"),
        ] {
            assert!(Condition::compile(&block).is_err(), "{block}");
        }
    }
}
