//! Conditions of a statement: operators and keys, compiled, and held against the facts of a call.
//!
//! Called by `document`. An operator, a key or a value that would not be held as it is meant is refused.

use serde_json::Value;

use super::document::PolicyError;
use super::facts::{Facts, Name};
use super::wildcard::Wildcard;

/// Most conditions in a statement, and most values in one of them.
pub const MAX_CONDITIONS: usize = 256;

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
            if keys.is_empty() {
                return Err(PolicyError::Syntax("a condition operator must hold a condition key"));
            }
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
        let name = Name::compile(key).ok_or_else(|| PolicyError::ConditionKey(key.to_owned()))?;
        let values = texts(values)?;
        if values.is_empty() {
            return Err(PolicyError::Syntax("a condition must have a value"));
        }
        std::iter::once(key).chain(values.iter().map(String::as_str)).try_for_each(refuse_variables)?;
        let (test, negated) = Self::test(operator, &values)?;
        Ok(Self { name, test, negated, if_exists, quantifier })
    }

    fn test(operator: &str, values: &[String]) -> Result<(Test, bool), PolicyError> {
        let exact = |fold: bool| {
            // Without wildcards of its own: `StringEquals` takes `*` literally.
            let escape = |v: &String| Wildcard::literal(v, fold);
            Test::Text(values.iter().map(escape).collect())
        };
        let like =
            || values.iter().map(|v| Wildcard::new(v, false)).collect::<Result<_, _>>().map(Test::Text);
        let arn = || values.iter().map(|v| ArnPattern::compile(v)).collect::<Result<_, _>>().map(Test::Arn);
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
            "StringLike" => (like()?, false),
            "StringNotLike" => (like()?, true),
            "ArnEquals" | "ArnLike" => (arn()?, false),
            "ArnNotEquals" | "ArnNotLike" => (arn()?, true),
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
    fn compile(text: &str) -> Result<Self, PolicyError> {
        let parts = text.splitn(6, ':').map(|part| Wildcard::new(part, false));
        Ok(Self(parts.collect::<Result<_, _>>()?))
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

/// Variables are not expanded here; taken as they stand, they would never match what they mean.
pub(super) fn refuse_variables(text: &str) -> Result<(), PolicyError> {
    if text.contains("${") { Err(PolicyError::Variable(text.to_owned())) } else { Ok(()) }
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
    use crate::api::EncryptionContext;
    use serde_json::json;

    fn met(block: &Value, change: impl FnOnce(&mut Facts<'_>)) -> bool {
        let mut facts = Facts::sample();
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
                source_ip: Some([10, 1, 2, 3].into()),
                context: Some(&context),
                request: &[("kms:rotationperiodindays", "90".into())],
                ..Facts::sample()
            };
            compiled.iter().all(|condition| condition.is_met(&facts))
        };
        assert!(check(json!({"StringEquals": {"kms:EncryptionContext:App": "x"}})));
        assert!(check(json!({"StringEquals": {"KMS:EncryptionContext:app": "x"}})), "names fold");
        assert!(!check(json!({"StringEquals": {"kms:EncryptionContext:App": "X"}})), "values do not");
        assert!(!check(json!({"StringEquals": {"kms:EncryptionContext:Ap": "x"}})));
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
            json!({"StringEqual": {"kms:KeySpec": "b"}}),
            json!({"ForSomeValues:StringEquals": {"kms:KeySpec": "b"}}),
            json!({"Bool": {"aws:SecureTransport": "maybe"}}),
            json!({"NumericEquals": {"aws:EpochTime": "x"}}),
            json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}),
            json!({"StringEquals": {"kms:KeySpec": {"b": 1}}}),
            json!({"StringEquals": {"kms:KeySpec": []}}),
            json!({"StringEquals": {}}),
            json!({"StringLike": {"kms:KeySpec": "*".repeat(3000)}}),
            json!({"StringEquals": "a"}),
            json!("x"),
        ] {
            assert!(Condition::compile(&block).is_err(), "{block}");
        }
    }

    #[test]
    fn keys_and_variables_that_are_not_held_are_refused_by_name() {
        for key in
            ["kms:Nonsense", "aws:PrincipalOrgID", "kms:ViaServce", "ViaService", "kms:EncryptionContext:"]
        {
            let found = Condition::compile(&json!({"StringNotEquals": {key: "x"}}));
            assert_eq!(found, Err(PolicyError::ConditionKey(key.to_owned())));
        }
        for block in [
            json!({"StringEquals": {"kms:EncryptionContext:Owner": "${aws:username}"}}),
            json!({"StringLike": {"kms:EncryptionContext:Owner": ["x", "a${*}"]}}),
            json!({"StringEquals": {"aws:ResourceTag/${aws:username}": "x"}}),
        ] {
            let found = Condition::compile(&block);
            assert!(matches!(found, Err(PolicyError::Variable(_))), "{block}: {found:?}");
        }
        assert!(Condition::compile(&json!({"Bool": {"kms:GrantIsForAWSResource": "true"}})).is_ok());
    }

    #[test]
    fn facts_of_the_caller_and_of_the_call_are_known() {
        let alice = |operator: &str, key: &str, value: &str| met(&json!({operator: {key: value}}), |_| {});
        for (key, value) in [
            ("aws:username", "alice"),
            ("aws:userid", "alice"),
            ("aws:PrincipalType", "User"),
            ("aws:PrincipalIsAWSService", "false"),
            ("aws:ViaAWSService", "false"),
            ("aws:RequestedRegion", "local"),
            ("aws:ResourceAccount", "111122223333"),
            ("aws:UserAgent", "test/1"),
        ] {
            assert!(alice("StringEquals", key, value), "{key}");
            assert!(!alice("StringNotEquals", key, value), "{key}");
        }
        assert!(alice("NumericGreaterThanEquals", "aws:EpochTime", "1700000000"));
        assert!(!alice("NumericGreaterThan", "aws:EpochTime", "1700000000"));
        let as_root = |facts: &mut Facts<'_>| (facts.is_root, facts.user_name) = (true, None);
        assert!(met(&json!({"StringEquals": {"aws:PrincipalType": "Account"}}), as_root));
        assert!(met(&json!({"StringEquals": {"aws:userid": "111122223333"}}), as_root));
        assert!(met(&json!({"Null": {"aws:username": "true"}}), as_root));
        let removed = [String::from("Team")];
        let removes = |facts: &mut Facts<'_>| facts.removed_tags = Box::leak(Box::new(removed.clone()));
        assert!(met(&json!({"ForAnyValue:StringEquals": {"aws:TagKeys": "Team"}}), removes));
    }
}
