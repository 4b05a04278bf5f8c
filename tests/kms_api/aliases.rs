//! Names of keys.

use serde_json::json;

use crate::harness::{alias_arn, arn, failure, service};

#[test]
fn an_alias_points_to_a_key_and_then_to_another() {
    let s = service();
    let (one, other) = (s.key(), s.key());
    s.ok("CreateAlias", json!({"AliasName": "alias/a/b_C-1", "TargetKeyId": arn(&one)}));
    let target = || s.ok("DescribeKey", json!({"KeyId": "alias/a/b_C-1"}))["KeyMetadata"]["KeyId"].clone();
    assert_eq!(target(), json!(one));
    s.clock.advance_days(1);
    s.ok("UpdateAlias", json!({"AliasName": "alias/a/b_C-1", "TargetKeyId": other}));
    assert_eq!(target(), json!(other));
    let listed = s.ok("ListAliases", json!({"KeyId": other}));
    let entry = &listed["Aliases"][0];
    assert_eq!(entry["AliasArn"], alias_arn("alias/a/b_C-1"));
    assert_eq!(entry["TargetKeyId"], other);
    let (made, updated) =
        (entry["CreationDate"].as_f64().unwrap(), entry["LastUpdatedDate"].as_f64().unwrap());
    assert!((updated - made - 86_400.0).abs() < 0.001);
    assert_eq!(s.ok("ListAliases", json!({"KeyId": one}))["Aliases"], json!([]));
    s.ok("DeleteAlias", json!({"AliasName": "alias/a/b_C-1"}));
    let found = s.fails("DescribeKey", json!({"KeyId": "alias/a/b_C-1"}));
    let message = format!("Alias {} is not found.", alias_arn("alias/a/b_C-1"));
    assert_eq!(found, failure("NotFoundException", &message));
}

#[test]
fn names_that_are_no_alias_names_are_refused() {
    let s = service();
    let key = s.key();
    let prefix = "Alias must start with the prefix \"alias/\". Please see \
                  https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html";
    for (name, code, message) in [
        ("k", "ValidationException", prefix),
        ("aliask", "ValidationException", prefix),
        ("alias/aws/kmsfs", "NotAuthorizedException", ""),
        ("alias/aws", "NotAuthorizedException", ""),
        ("alias/", "InvalidAliasNameException", "Invalid alias name"),
        ("alias/a:b", "ValidationException", "alias/a:b contains invalid characters for an alias"),
    ] {
        let found = s.fails("CreateAlias", json!({"AliasName": name, "TargetKeyId": key}));
        assert_eq!(found, failure(code, message), "{name}");
    }
    assert_eq!(s.fails("DeleteAlias", json!({"AliasName": "alias/aws/kmsfs"})).0, "NotAuthorizedException");
}

#[test]
fn an_alias_refers_to_a_key_that_is_there_and_exists_once() {
    let s = service();
    let key = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key}));
    let found = s.fails("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key}));
    let message = format!("An alias with the name {} already exists", alias_arn("alias/a"));
    assert_eq!(found, failure("AlreadyExistsException", &message));
    for target in ["alias/a".to_owned(), alias_arn("alias/a")] {
        let found = s.fails("CreateAlias", json!({"AliasName": "alias/b", "TargetKeyId": target}));
        assert_eq!(found, failure("ValidationException", "Aliases must refer to keys. Not aliases"));
    }
    let absent = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let found = s.fails("CreateAlias", json!({"AliasName": "alias/b", "TargetKeyId": absent}));
    assert_eq!(found, failure("NotFoundException", &format!("Key '{}' does not exist", arn(absent))));
    for operation in ["UpdateAlias", "DeleteAlias"] {
        let found = s.fails(operation, json!({"AliasName": "alias/none", "TargetKeyId": key}));
        assert_eq!(found.0, "NotFoundException");
    }
}

#[test]
fn an_alias_moves_between_keys_of_one_type_and_usage() {
    let s = service();
    let key = |spec: &str, usage: &str| s.key_with(json!({"KeySpec": spec, "KeyUsage": usage}));
    let moves = |from: &str, to: &str| {
        s.ok("CreateAlias", json!({"AliasName": "alias/m", "TargetKeyId": from}));
        let request = json!({"AliasName": "alias/m", "TargetKeyId": to}).to_string();
        let moved = s.call(&crate::harness::root(), "UpdateAlias", &request).map_err(|failure| failure.code);
        s.ok("DeleteAlias", json!({"AliasName": "alias/m"}));
        moved.map(|_| ())
    };
    let (curve, edwards) = (key("ECC_NIST_P256", "SIGN_VERIFY"), key("ECC_NIST_EDWARDS25519", "SIGN_VERIFY"));
    let (short, long) = (key("HMAC_224", "GENERATE_VERIFY_MAC"), key("HMAC_512", "GENERATE_VERIFY_MAC"));
    assert_eq!(moves(&curve, &edwards), Ok(()), "both are key pairs that sign");
    assert_eq!(moves(&short, &long), Ok(()), "both are HMAC keys");
    let refused = Err("ValidationException".to_owned());
    assert_eq!(moves(&curve, &key("ECC_NIST_P256", "KEY_AGREEMENT")), refused);
    assert_eq!(moves(&s.key(), &short), refused);
    assert_eq!(moves(&s.key(), &curve), refused);
}

#[test]
fn a_key_has_50_aliases_at_most_and_they_are_listed_in_pages() {
    let s = service();
    let key = s.key();
    for number in 0..50 {
        s.ok("CreateAlias", json!({"AliasName": format!("alias/{number:02}"), "TargetKeyId": key}));
    }
    let found = s.fails("CreateAlias", json!({"AliasName": "alias/more", "TargetKeyId": key}));
    assert_eq!(found.0, "LimitExceededException");
    let other = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/zz", "TargetKeyId": other}));
    assert_eq!(
        s.fails("UpdateAlias", json!({"AliasName": "alias/zz", "TargetKeyId": key})).0,
        "LimitExceededException"
    );
    let first = s.ok("ListAliases", json!({}));
    assert_eq!((first["Aliases"].as_array().unwrap().len(), &first["Truncated"]), (50, &json!(true)));
    let second = s.ok("ListAliases", json!({"Marker": first["NextMarker"]}));
    assert_eq!(
        (second["Aliases"][0]["AliasName"].as_str(), &second["Truncated"]),
        (Some("alias/zz"), &json!(false))
    );
    assert_eq!(s.ok("ListAliases", json!({"Limit": 100}))["Aliases"].as_array().unwrap().len(), 51);
    let message = "1 validation error detected: Value '101' at 'limit' failed to satisfy constraint: Member must have \
                   value less than or equal to 100";
    assert_eq!(s.fails("ListAliases", json!({"Limit": 101})), failure("ValidationException", message));
}
