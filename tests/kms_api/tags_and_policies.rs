//! Tags and key policies as documents.

use serde_json::{Value, json};

use crate::harness::{failure, service};

#[test]
fn tags_are_added_replaced_and_removed() {
    let s = service();
    let key = s.key();
    let tag = |name: &str, value: &str| json!({"TagKey": name, "TagValue": value});
    s.ok("TagResource", json!({"KeyId": key, "Tags": [tag("b", "1"), tag("a", "1")]}));
    s.ok("TagResource", json!({"KeyId": key, "Tags": [tag("b", "2")]}));
    let tags = || s.ok("ListResourceTags", json!({"KeyId": key}))["Tags"].clone();
    assert_eq!(tags(), json!([tag("a", "1"), tag("b", "2")]));
    s.ok("UntagResource", json!({"KeyId": key, "TagKeys": ["a", "none"]}));
    assert_eq!(tags(), json!([tag("b", "2")]));
}

#[test]
fn tags_that_are_reserved_doubled_or_too_many_are_refused() {
    let s = service();
    let key = s.key();
    let tags = |names: Vec<String>| -> Value {
        names.into_iter().map(|name| json!({"TagKey": name, "TagValue": "v"})).collect()
    };
    let put = |names: Vec<String>| s.fails("TagResource", json!({"KeyId": key, "Tags": tags(names)}));
    assert_eq!(put(vec!["a".into(), "a".into()]), failure("TagException", "Duplicate tag keys"));
    assert_eq!(put(vec!["AWS:x".into()]).0, "TagException");
    let numbered =
        |range: std::ops::Range<u32>| range.map(|number| format!("{number:03}")).collect::<Vec<_>>();
    assert_eq!(put(numbered(0..51)), failure("TagException", "Too many tags"));
    s.ok("TagResource", json!({"KeyId": key, "Tags": tags(numbered(0..50))}));
    assert_eq!(put(numbered(50..51)), failure("TagException", "Too many tags"));
    s.ok("TagResource", json!({"KeyId": key, "Tags": tags(numbered(0..50))}));
    let page = s.ok("ListResourceTags", json!({"KeyId": key, "Limit": 49}));
    assert_eq!((page["Tags"].as_array().unwrap().len(), &page["Truncated"]), (49, &json!(true)));
    let rest = s.ok("ListResourceTags", json!({"KeyId": key, "Limit": 49, "Marker": page["NextMarker"]}));
    assert_eq!(rest, json!({"Tags": [{"TagKey": "049", "TagValue": "v"}], "Truncated": false}));
    assert_eq!(s.fails("CreateKey", json!({"Tags": tags(vec!["a".into(), "a".into()])})).0, "TagException");
}

#[test]
fn the_default_policy_leaves_it_to_the_account() {
    let s = service();
    let key = s.key();
    let answer = s.ok("GetKeyPolicy", json!({"KeyId": key, "PolicyName": "default"}));
    assert_eq!(answer["PolicyName"], "default");
    let policy: Value = serde_json::from_str(answer["Policy"].as_str().unwrap()).unwrap();
    let expected = json!({
        "Version": "2012-10-17",
        "Id": "key-default-1",
        "Statement": [{
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
            "Action": "kms:*",
            "Resource": "*",
        }],
    });
    assert_eq!(policy, expected);
    let names = s.ok("ListKeyPolicies", json!({"KeyId": key}));
    assert_eq!(names, json!({"PolicyNames": ["default"], "Truncated": false}));
}

#[test]
fn a_policy_comes_back_as_it_was_put() {
    let s = service();
    let key = s.key();
    let text = "  {\"Statement\":{\"Effect\":\"Allow\",\n\t\"Principal\":\"*\",\"Action\":\"kms:*\",\"Resource\":\"*\"}}";
    s.ok("PutKeyPolicy", json!({"KeyId": key, "PolicyName": "default", "Policy": text}));
    assert_eq!(s.ok("GetKeyPolicy", json!({"KeyId": key}))["Policy"], text);
    for operation in ["GetKeyPolicy", "PutKeyPolicy"] {
        let found = s.fails(operation, json!({"KeyId": key, "PolicyName": "other", "Policy": text}));
        assert_eq!(found, failure("NotFoundException", "No such policy exists"));
    }
}

#[test]
fn a_policy_that_cannot_be_understood_is_not_taken() {
    let s = service();
    let key = s.key();
    for text in [
        "not json",
        "{}",
        r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"nobody"},"Action":"kms:*","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"X":{"a":"b"}}}]}"#,
        r#"{"Statement":[{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:Nonsense":"b"}}}]}"#,
        r#"{"Statement":[{"Effect":"Deny","Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}"#,
    ] {
        let found = s.fails("PutKeyPolicy", json!({"KeyId": key, "Policy": text}));
        assert_eq!(found.0, "MalformedPolicyDocumentException", "{text}");
        assert_eq!(s.fails("CreateKey", json!({"Policy": text})).0, "MalformedPolicyDocumentException");
    }
    let padded = format!(
        "{}{}",
        s.ok("GetKeyPolicy", json!({"KeyId": key}))["Policy"].as_str().unwrap(),
        " ".repeat(32_768)
    );
    assert_eq!(s.fails("PutKeyPolicy", json!({"KeyId": key, "Policy": padded})).0, "LimitExceededException");
}

#[test]
fn a_policy_beyond_every_limit_is_refused_in_words_of_bounded_length() {
    let s = service();
    let key = s.key();
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    for length in [32_769, 131_072, 131_073, 400_000] {
        let text = "\"".repeat(length);
        let code = if length > 131_072 { "ValidationException" } else { "LimitExceededException" };
        let by_user = json!({"UserName": "alice", "PolicyName": "p", "PolicyDocument": text});
        for (operation, body) in [
            ("PutKeyPolicy", json!({"KeyId": key, "Policy": text})),
            ("CreateKey", json!({"Policy": text})),
            ("iam.PutUserPolicy", by_user),
        ] {
            let found = s.fails(operation, body);
            let code = if operation.starts_with("iam.") { "LimitExceeded" } else { code };
            assert_eq!(found.0, code, "{operation} {length}");
            assert!(found.1.len() < 40_000, "{operation} {length}");
        }
    }
}

#[test]
fn a_policy_that_locks_its_author_out_is_taken_only_on_purpose() {
    let s = service();
    let key = s.key();
    let text = r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/bob"},
                   "Action":"kms:*","Resource":"*"}]}"#;
    let message = "The new key policy will not allow you to update the key policy in the future.";
    let locked = failure("MalformedPolicyDocumentException", message);
    assert_eq!(s.fails("PutKeyPolicy", json!({"KeyId": key, "Policy": text})), locked);
    assert_eq!(s.fails("CreateKey", json!({"Policy": text})), locked);
    s.ok("PutKeyPolicy", json!({"KeyId": key, "Policy": text, "BypassPolicyLockoutSafetyCheck": true}));
    assert_eq!(s.fails("DescribeKey", json!({"KeyId": key})).0, "AccessDeniedException");
}
