//! Requests that are not what their shape says.

use serde_json::{Value, json};

use crate::harness::{failure, root, service};

#[test]
fn an_absent_member_is_named_in_lower_camel_case() {
    let s = service();
    let one = |at: &str| {
        format!(
            "1 validation error detected: Value null at '{at}' failed to satisfy constraint: Member must not be null"
        )
    };
    for (operation, at) in [("DescribeKey", "keyId"), ("EnableKey", "keyId"), ("DeleteAlias", "aliasName")] {
        assert_eq!(s.fails(operation, json!({})), failure("ValidationException", &one(at)));
        assert_eq!(
            s.call(&root(), operation, "").unwrap_err().message,
            one(at),
            "an empty body is an empty object"
        );
    }
    assert_eq!(s.fails("DescribeKey", json!({"KeyId": null})).1, one("keyId"));
}

#[test]
fn several_violations_are_joined_by_semicolons() {
    let s = service();
    let found = s.fails("Encrypt", json!({"Plaintext": ""}));
    let message = "2 validation errors detected: \
                   Value null at 'keyId' failed to satisfy constraint: Member must not be null; \
                   Value at 'plaintext' failed to satisfy constraint: \
                   Member must have length greater than or equal to 1";
    assert_eq!(found, failure("ValidationException", message));
    let found = s.fails("DescribeKey", json!({"KeyId": ""}));
    let message = "2 validation errors detected: \
                   Value '' at 'keyId' failed to satisfy constraint: \
                   Member must have length greater than or equal to 1; \
                   Value '' at 'keyId' failed to satisfy constraint: \
                   Member must satisfy regular expression pattern: ^\\p{ASCII}+$";
    assert_eq!(found, failure("ValidationException", message));
}

#[test]
fn enumerations_list_their_values() {
    let s = service();
    let found = s.fails("GenerateDataKey", json!({"KeyId": "x", "KeySpec": "AES_512"}));
    let message = "1 validation error detected: Value 'AES_512' at 'keySpec' failed to satisfy constraint: \
                   Member must satisfy enum value set: [RSA_2048, RSA_3072, RSA_4096, ECC_NIST_P256, ECC_NIST_P384, \
                   ECC_NIST_P521, ECC_SECG_P256K1, ECC_NIST_EDWARDS25519, SYMMETRIC_DEFAULT, HMAC_224, HMAC_256, \
                   HMAC_384, HMAC_512, SM2, ML_DSA_44, ML_DSA_65, ML_DSA_87]";
    assert_eq!(found, failure("ValidationException", message));
}

#[test]
fn patterns_bounds_and_lists_are_worded_as_the_service_words_them() {
    let s = service();
    let long = "x".repeat(8193);
    for (operation, body, message) in [
        (
            "CreateAlias",
            json!({"AliasName": "alias/a b", "TargetKeyId": "x"}),
            "Value 'alias/a b' at 'aliasName' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"
                .to_owned(),
        ),
        (
            "CreateKey",
            json!({"Description": long}),
            format!(
                "Value '{long}' at 'description' failed to satisfy constraint: \
                 Member must have length less than or equal to 8192"
            ),
        ),
        (
            "TagResource",
            json!({"KeyId": "x", "Tags": [{"TagKey": "a", "TagValue": "b"}, {"TagKey": "", "TagValue": "b"}]}),
            "Value '' at 'tags.2.member.tagKey' failed to satisfy constraint: \
             Member must have length greater than or equal to 1"
                .to_owned(),
        ),
        (
            "TagResource",
            json!({"KeyId": "x", "Tags": [{"TagKey": "a"}]}),
            "Value null at 'tags.1.member.tagValue' failed to satisfy constraint: Member must not be null".to_owned(),
        ),
        (
            "DescribeKey",
            json!({"KeyId": "x", "GrantTokens": ["a", ""]}),
            "Value '[a, ]' at 'grantTokens' failed to satisfy constraint: Member must satisfy constraint: \
             [Member must have length less than or equal to 8192, Member must have length greater than or equal to 1]"
                .to_owned(),
        ),
        (
            "Decrypt",
            json!({"CiphertextBlob": ""}),
            "Value at 'ciphertextBlob' failed to satisfy constraint: \
             Member must have length greater than or equal to 1"
                .to_owned(),
        ),
        (
            "Encrypt",
            json!({"KeyId": "x"}),
            "Value at 'plaintext' failed to satisfy constraint: Member must not be null".to_owned(),
        ),
        (
            "VerifyMac",
            json!({"KeyId": "x", "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}),
            "Value null at 'mac' failed to satisfy constraint: Member must not be null".to_owned(),
        ),
        (
            "ReEncrypt",
            json!({"DestinationKeyId": "alias/none", "SourceKeyId": "alias/none"}),
            "Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null".to_owned(),
        ),
        (
            "CreateGrant",
            json!({"KeyId": "x", "Operations": ["Encrypt"], "Constraints": {"SourceArn": "x"}}),
            "2: Value 'x' at 'constraints.sourceArn' failed to satisfy constraint: \
             Member must have length greater than or equal to 20; \
             Value 'x' at 'constraints.sourceArn' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: \
             ^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$"
                .to_owned(),
        ),
        (
            "EnableKeyRotation",
            json!({"KeyId": "x", "RotationPeriodInDays": 89}),
            "Value '89' at 'rotationPeriodInDays' failed to satisfy constraint: \
             Member must have value greater than or equal to 90"
                .to_owned(),
        ),
    ] {
        let message = match message.strip_prefix("2: ") {
            Some(both) => format!("2 validation errors detected: {both}"),
            None => format!("1 validation error detected: {message}"),
        };
        assert_eq!(s.fails(operation, body), failure("ValidationException", &message), "{operation}");
    }
}

#[test]
fn a_body_that_is_not_the_json_of_the_shape_is_a_serialization_error() {
    let s = service();
    for (body, message) in [
        ("{", ""),
        ("nonsense", ""),
        (r#"{"KeyId":"a","KeyId":"b"}"#, ""),
        (r#"{"KeyId":5}"#, "NUMBER_VALUE cannot be converted to String"),
        (r#"{"KeyId":["a"]}"#, "START_ARRAY cannot be converted to String"),
        (r#"{"KeyId":true}"#, "TRUE_VALUE cannot be converted to String"),
        (r#"{"KeyId":"a","GrantTokens":{}}"#, "START_OBJECT cannot be converted to List"),
    ] {
        let found = s.call(&root(), "DescribeKey", body).unwrap_err();
        assert_eq!(
            (found.code.as_str(), found.message.as_str()),
            ("SerializationException", message),
            "{body}"
        );
        assert_eq!(found.status, 400);
    }
    let found = s.call(&root(), "Encrypt", r#"{"KeyId":"a","Plaintext":"not base64!"}"#).unwrap_err();
    assert_eq!(
        (found.code.as_str(), found.message.as_str()),
        ("SerializationException", "Invalid base64 data")
    );
    let deep = "[".repeat(100_000);
    assert_eq!(s.call(&root(), "DescribeKey", &deep).unwrap_err().code, "SerializationException");
}

#[test]
fn an_array_is_no_structure() {
    let s = service();
    for (operation, body) in [
        ("ListKeys", "[]"),
        ("DescribeKey", r#"["alias/x"]"#),
        ("TagResource", r#"{"KeyId":"x","Tags":[["a","b"]]}"#),
        ("Decrypt", r#"{"CiphertextBlob":"AAAA","Recipient":[]}"#),
    ] {
        let found = s.call(&root(), operation, body).unwrap_err();
        assert_eq!(
            (found.code.as_str(), found.message.as_str()),
            ("SerializationException", "START_ARRAY cannot be converted to Structure"),
            "{operation} {body}"
        );
    }
}

#[test]
fn members_that_are_not_known_are_passed_over() {
    let s = service();
    let key = s.key_with(json!({"Surprise": {"a": [1, 2]}}));
    s.ok("DescribeKey", json!({"KeyId": key, "More": null}));
}

#[test]
fn unknown_operations_and_those_not_served_yet_are_told_apart() {
    let s = service();
    for target in ["TrentService.Nonsense", "Other.Encrypt", "KmsdAdmin.Encrypt", "."] {
        let found = s.call(&root(), target, "{}").unwrap_err();
        assert_eq!((found.code.as_str(), found.status), ("UnknownOperationException", 400), "{target}");
    }
    for operation in
        ["ConnectCustomKeyStore", "CreateCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore"]
    {
        let found = s.fails(operation, json!({}));
        assert_eq!(
            found,
            failure("UnsupportedOperationException", &format!("{operation} is not supported."))
        );
    }
}

#[test]
fn a_body_beyond_every_limit_is_refused_before_it_is_read() {
    let s = service();
    let body = format!(r#"{{"KeyId":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    let found = s.call(&root(), "DescribeKey", &body).unwrap_err();
    assert_eq!((found.code.as_str(), found.status), ("RequestEntityTooLargeException", 413));
}

#[test]
fn operations_that_have_nothing_to_say_answer_without_a_body() {
    let s = service();
    let key = s.key();
    for (operation, body) in [
        ("DisableKey", json!({"KeyId": key})),
        ("EnableKey", json!({"KeyId": key})),
        ("UpdateKeyDescription", json!({"KeyId": key, "Description": "x"})),
        ("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key})),
        ("DeleteAlias", json!({"AliasName": "alias/a"})),
    ] {
        assert_eq!(s.ok(operation, body), Value::Null, "{operation}");
    }
}
