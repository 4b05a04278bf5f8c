//! Conditions of a statement: operators and keys, compiled, and held against the facts of a call.
//!
//! Called by `document`. An operator, a key or a value that would not be held as it is meant is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::compare::{ArnText, Network, Order};
use super::date;
use super::document::PolicyError;
use super::facts::{Facts, Name};
use super::template::{Style, Text};

/// Most conditions in a statement, and most values in one of them.
pub const MAX_CONDITIONS: usize = 256;

/// How a value is compared.
#[derive(Debug, Clone, PartialEq)]
enum Test {
    Text(Vec<Text>),
    Arn(Vec<ArnText>),
    Number(Vec<f64>, Order),
    /// Milliseconds since 1970.
    Date(Vec<i64>, Order),
    Bool(Vec<bool>),
    Binary(Vec<Vec<u8>>),
    Network(Vec<Network>),
    /// The key must be absent (true) or present (false).
    Null(bool),
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
    pub(super) fn compile(block: &Value, variables: bool) -> Result<Vec<Self>, PolicyError> {
        let operators = block.as_object().ok_or(PolicyError::Syntax("Condition must be an object"))?;
        let mut compiled = Vec::new();
        for (operator, keys) in operators {
            let keys =
                keys.as_object().ok_or(PolicyError::Syntax("a condition operator must hold an object"))?;
            if keys.is_empty() {
                return Err(PolicyError::Syntax("a condition operator must hold a condition key"));
            }
            for (key, values) in keys {
                compiled.push(Self::one(operator, key, values, variables)?);
            }
        }
        if compiled.len() > MAX_CONDITIONS {
            return Err(PolicyError::Syntax("too many conditions"));
        }
        Ok(compiled)
    }

    fn one(operator: &str, key: &str, values: &Value, variables: bool) -> Result<Self, PolicyError> {
        let unknown = || PolicyError::Operator(operator.to_owned());
        let (quantifier, bare) = match operator.split_once(':') {
            Some((word, rest)) if word.eq_ignore_ascii_case("ForAllValues") => (Quantifier::All, rest),
            Some((word, rest)) if word.eq_ignore_ascii_case("ForAnyValue") => (Quantifier::Any, rest),
            Some(_) => return Err(unknown()),
            None => (Quantifier::Plain, operator),
        };
        let bare = bare.to_ascii_lowercase();
        let (bare, if_exists) = bare.strip_suffix("ifexists").map_or((bare.as_str(), false), |o| (o, true));
        if bare == "null" && (if_exists || quantifier != Quantifier::Plain) {
            return Err(unknown());
        }
        let name = Name::compile(key).ok_or_else(|| PolicyError::ConditionKey(key.to_owned()))?;
        let values = texts(values)?;
        if values.is_empty() {
            return Err(PolicyError::Syntax("a condition must have a value"));
        }
        let (test, negated) = Test::compile(bare, &values, variables)?.ok_or_else(unknown)?;
        Ok(Self { name, test, negated, if_exists, quantifier })
    }

    /// Whether the call meets it. A negated operator is met where the key is absent, as IAM has it.
    pub(super) fn is_met(&self, facts: &Facts<'_>) -> bool {
        let values = self.name.values(facts);
        let values = values.as_slice();
        if let Test::Null(absent) = self.test {
            return values.is_empty() == absent;
        }
        let holds = |value: &std::borrow::Cow<'_, str>| self.test.holds(value, facts) != self.negated;
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
    /// The test of an operator (lower case, without prefix and suffix), and whether it is negated; `None` for an
    /// operator that does not exist.
    fn compile(
        operator: &str,
        values: &[String],
        variables: bool,
    ) -> Result<Option<(Self, bool)>, PolicyError> {
        let is_not = operator.contains("not");
        let text = |wild, ignore_case| {
            let style = Style { wild, ignore_case, variables };
            values.iter().map(|value| Text::compile(value, style)).collect::<Result<_, _>>().map(Self::Text)
        };
        let test = match operator {
            "stringequals" | "stringnotequals" => text(false, false)?,
            "stringequalsignorecase" | "stringnotequalsignorecase" => text(false, true)?,
            "stringlike" | "stringnotlike" => text(true, false)?,
            "arnequals" | "arnlike" | "arnnotequals" | "arnnotlike" => {
                let arn = |value: &String| ArnText::compile(value, variables);
                Self::Arn(values.iter().map(arn).collect::<Result<_, _>>()?)
            }
            "bool" => Self::Bool(values.iter().map(|value| flag(value)).collect::<Result<_, _>>()?),
            "binaryequals" => {
                let wrong = |_| PolicyError::Syntax("a condition wants base64");
                let decode = |value: &String| STANDARD.decode(value).map_err(wrong);
                Self::Binary(values.iter().map(decode).collect::<Result<_, _>>()?)
            }
            "ipaddress" | "notipaddress" => {
                Self::Network(values.iter().map(|value| Network::parse(value)).collect::<Result<_, _>>()?)
            }
            "null" => match values {
                [value] => Self::Null(flag(value)?),
                _ => return Err(PolicyError::Syntax("Null wants one value")),
            },
            ordered => return Ok(Self::ordered(ordered, values)?.map(|test| (test, is_not))),
        };
        Ok(Some((test, is_not)))
    }

    fn ordered(operator: &str, values: &[String]) -> Result<Option<Self>, PolicyError> {
        if let Some(order) = operator.strip_prefix("numeric").and_then(Order::compile) {
            let wrong = |_| PolicyError::Syntax("a condition wants a number");
            let numbers =
                values.iter().map(|value| value.parse().map_err(wrong)).collect::<Result<_, _>>()?;
            return Ok(Some(Self::Number(numbers, order)));
        }
        if let Some(order) = operator.strip_prefix("date").and_then(Order::compile) {
            let wrong = || PolicyError::Syntax("a condition wants a date");
            let parse = |value: &String| date::parse(value).ok_or_else(wrong);
            return Ok(Some(Self::Date(values.iter().map(parse).collect::<Result<_, _>>()?, order)));
        }
        Ok(None)
    }

    fn holds(&self, value: &str, facts: &Facts<'_>) -> bool {
        match self {
            Self::Text(texts) => texts.iter().any(|text| text.matches(value, facts)),
            Self::Arn(arns) => arns.iter().any(|arn| arn.matches(value, facts)),
            Self::Number(numbers, order) => {
                let holds = |given: f64| numbers.iter().any(|number| order.holds(given, *number));
                value.parse::<f64>().is_ok_and(holds)
            }
            Self::Date(dates, order) => {
                let holds = |given: i64| dates.iter().any(|date| order.holds(given, *date));
                date::parse(value).is_some_and(holds)
            }
            Self::Bool(wanted) => flag(value).is_ok_and(|given| wanted.contains(&given)),
            Self::Binary(wanted) => STANDARD.decode(value).is_ok_and(|given| wanted.contains(&given)),
            Self::Network(networks) => {
                value.parse().is_ok_and(|ip| networks.iter().any(|network| network.contains(ip)))
            }
            Self::Null(_) => false,
        }
    }
}

fn flag(text: &str) -> Result<bool, PolicyError> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(PolicyError::Syntax("a condition wants true or false")),
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
    use crate::api::EncryptionContext;
    use serde_json::json;

    fn met(block: &Value, change: impl FnOnce(&mut Facts<'_>)) -> bool {
        let mut facts = Facts::sample();
        change(&mut facts);
        Condition::compile(block, true).unwrap().iter().all(|condition| condition.is_met(&facts))
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
            let compiled = Condition::compile(&block, true).unwrap();
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
            json!({"DateEquals": {"aws:CurrentTime": "tomorrow"}}),
            json!({"BinaryEquals": {"aws:username": "?"}}),
            json!({"NullIfExists": {"kms:KeySpec": "true"}}),
            json!({"ForAnyValue:Null": {"kms:KeySpec": "true"}}),
            json!({"StringEquals": {"kms:KeySpec": "${aws:nonsense}"}}),
            json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/33"}}),
            json!({"StringEquals": {"kms:KeySpec": {"b": 1}}}),
            json!({"StringEquals": {"kms:KeySpec": []}}),
            json!({"StringEquals": {}}),
            json!({"StringLike": {"kms:KeySpec": "*".repeat(3000)}}),
            json!({"StringEquals": "a"}),
            json!("x"),
        ] {
            assert!(Condition::compile(&block, true).is_err(), "{block}");
        }
    }

    #[test]
    fn keys_that_do_not_exist_are_refused_by_name_and_those_of_other_services_are_absent() {
        for key in ["kms:Nonsense", "aws:Nonsense", "kms:ViaServce", "ViaService", "kms:EncryptionContext:"] {
            let found = Condition::compile(&json!({"StringNotEquals": {key: "x"}}), true);
            assert_eq!(found, Err(PolicyError::ConditionKey(key.to_owned())));
        }
        for key in ["aws:PrincipalOrgID", "s3:prefix", "kms:GrantIsForAWSResource", "sts:ExternalId"] {
            assert!(!met(&json!({"StringLike": {key: "*"}}), |_| {}), "{key}");
            assert!(met(&json!({"Null": {key: "true"}}), |_| {}), "{key}");
        }
        let found =
            Condition::compile(&json!({"StringEquals": {"aws:ResourceTag/${aws:username}": "x"}}), true);
        assert!(found.is_ok_and(|compiled| !compiled[0].is_met(&Facts::sample())), "no variables in names");
    }

    #[test]
    fn values_may_hold_variables() {
        let alice = |block| met(&block, |_| {});
        assert!(alice(
            json!({"StringEquals": {"aws:PrincipalArn": "arn:aws:iam::${kms:CallerAccount}:user/${aws:username}"}})
        ));
        assert!(alice(json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/${aws:username}"}})));
        assert!(!alice(json!({"StringEquals": {"kms:CallerAccount": "${aws:username}"}})));
        assert!(alice(json!({"StringNotEquals": {"kms:CallerAccount": "${aws:PrincipalTag/x}"}})));
    }

    #[test]
    fn dates_binaries_and_several_booleans_compare() {
        let alice = |operator: &str, key: &str, value: Value| met(&json!({operator: {key: value}}), |_| {});
        assert!(alice("DateGreaterThan", "aws:CurrentTime", json!("2023-11-14T22:13:19Z")));
        assert!(!alice("DateGreaterThan", "aws:CurrentTime", json!("2023-11-14T22:13:20Z")));
        assert!(alice("DateEquals", "aws:CurrentTime", json!("1700000000")));
        assert!(alice("DateLessThanEquals", "aws:EpochTime", json!(["2023-11-15", "1999-01-01"])));
        assert!(alice("DateNotEquals", "aws:TokenIssueTime", json!("2023-11-15")), "absent");
        assert!(alice("Bool", "aws:SecureTransport", json!(["true", "false"])));
        assert!(!alice("BinaryEquals", "aws:username", json!("YWxpY2U=")));
        assert!(alice("stringequals", "aws:username", json!("alice")), "operators fold");
    }

    #[test]
    fn facts_of_the_caller_and_of_the_call_are_known() {
        let alice = |operator: &str, key: &str, value: &str| met(&json!({operator: {key: value}}), |_| {});
        for (key, value) in [
            ("aws:username", "alice"),
            ("aws:userid", "AIDAALICE"),
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
        let as_root = |facts: &mut Facts<'_>| {
            (facts.is_root, facts.user_name, facts.user_id) = (true, None, "111122223333");
        };
        assert!(met(&json!({"StringEquals": {"aws:PrincipalType": "Account"}}), as_root));
        assert!(met(&json!({"StringEquals": {"aws:userid": "111122223333"}}), as_root));
        assert!(met(&json!({"Null": {"aws:username": "true"}}), as_root));
        let removed = [String::from("Team")];
        let removes = |facts: &mut Facts<'_>| facts.removed_tags = Box::leak(Box::new(removed.clone()));
        assert!(met(&json!({"ForAnyValue:StringEquals": {"aws:TagKeys": "Team"}}), removes));
    }
}
