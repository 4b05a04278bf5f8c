//! Who may do what: key policies, users' policies, conditions.

use serde_json::{Value, json};

use crate::harness::{Service, arn, b64, failure, root, service, user};

fn denied(caller: &str, action: &str, resource: &str, why: &str) -> (String, String) {
    let message = format!(
        "User: arn:aws:iam::111122223333:{caller} is not authorized to perform: {action} on resource: {resource} {why}"
    );
    failure("AccessDeniedException", &message)
}

/// Adds `statements` to the default policy of `key`.
fn extend_policy(s: &Service, key: &str, statements: Vec<Value>) {
    let text = s.ok("GetKeyPolicy", json!({"KeyId": key}))["Policy"].clone();
    let mut policy: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    policy["Statement"].as_array_mut().unwrap().extend(statements);
    s.ok("PutKeyPolicy", json!({"KeyId": key, "Policy": policy.to_string()}));
}

fn sealing(key: &str) -> Value {
    json!({"KeyId": key, "Plaintext": b64(b"x")})
}

#[test]
fn a_user_without_any_policy_may_nothing() {
    let s = service();
    let key = s.key();
    let alice = user("alice");
    let why = "because no identity-based policy allows the kms:Encrypt action";
    assert_eq!(
        s.fails_as(&alice, "Encrypt", sealing(&key)),
        denied("user/alice", "kms:Encrypt", &arn(&key), why),
    );
    for operation in ["CreateKey", "ListKeys", "ListAliases"] {
        let why = format!("because no identity-based policy allows the kms:{operation} action");
        assert_eq!(
            s.fails_as(&alice, operation, json!({})),
            denied("user/alice", &format!("kms:{operation}"), "*", &why)
        );
    }
    assert_eq!(s.fails_as(&alice, "GenerateRandom", json!({"NumberOfBytes": 1})).0, "AccessDeniedException");
}

#[test]
fn a_key_policy_that_names_the_user_is_enough() {
    let s = service();
    let key = s.key();
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:user/alice"},
        "Action": ["kms:Encrypt", "kms:GenerateDataKey*"],
        "Resource": "*",
    });
    extend_policy(&s, &key, vec![statement]);
    s.ok_as(&user("alice"), "Encrypt", sealing(&key));
    s.ok_as(&user("alice"), "GenerateDataKeyWithoutPlaintext", json!({"KeyId": key, "KeySpec": "AES_256"}));
    assert_eq!(s.fails_as(&user("bob"), "Encrypt", sealing(&key)).0, "AccessDeniedException");
    let blob = s.ok("Encrypt", sealing(&key))["CiphertextBlob"].clone();
    let with_key = json!({"CiphertextBlob": blob, "KeyId": key});
    let why = "because no identity-based policy allows the kms:Decrypt action";
    assert_eq!(
        s.fails_as(&user("alice"), "Decrypt", with_key),
        denied("user/alice", "kms:Decrypt", &arn(&key), why)
    );
    let found = s.fails_as(&user("alice"), "Decrypt", json!({"CiphertextBlob": blob}));
    assert!(
        found.1.starts_with("The ciphertext refers to a customer master key that does not exist"),
        "{found:?}"
    );
}

#[test]
fn a_users_policy_counts_only_where_the_key_policy_trusts_the_account() {
    let s = service();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}));
    let trusting = s.key();
    s.ok_as(&alice, "Encrypt", sealing(&trusting));
    let only_bob = json!({"Statement": [{
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:user/bob"},
        "Action": "kms:*",
        "Resource": "*",
    }]});
    let closed = s.key_with(json!({"Policy": only_bob.to_string(), "BypassPolicyLockoutSafetyCheck": true}));
    let why = "because no resource-based policy allows the kms:Encrypt action";
    assert_eq!(
        s.fails_as(&alice, "Encrypt", sealing(&closed)),
        denied("user/alice", "kms:Encrypt", &arn(&closed), why)
    );
    let found = s.fails_as(&root(), "Encrypt", sealing(&closed));
    assert_eq!(found, denied("root", "kms:Encrypt", &arn(&closed), why), "the account root is bound too");
    s.ok_as(&user("bob"), "Encrypt", sealing(&closed));
}

#[test]
fn a_users_policy_is_held_against_action_and_resource() {
    let s = service();
    let (one, other) = (s.key(), s.key());
    let statement =
        json!({"Effect": "Allow", "Action": ["kms:Describe*", "kms:Encrypt"], "Resource": arn(&one)});
    let alice = s.user_with("alice", &statement);
    s.ok_as(&alice, "Encrypt", sealing(&one));
    s.ok_as(&alice, "DescribeKey", json!({"KeyId": one}));
    assert_eq!(s.fails_as(&alice, "Encrypt", sealing(&other)).0, "AccessDeniedException");
    assert_eq!(s.fails_as(&alice, "DisableKey", json!({"KeyId": one})).0, "AccessDeniedException");
    s.ok("iam.DeleteUserPolicy", json!({"UserName": "alice", "PolicyName": "p"}));
    assert_eq!(s.fails_as(&alice, "Encrypt", sealing(&one)).0, "AccessDeniedException", "withdrawn at once");
}

#[test]
fn an_explicit_deny_anywhere_wins() {
    let s = service();
    let key = s.key();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}));
    let deny = json!({
        "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"StringNotEquals": {"aws:PrincipalArn": "arn:aws:iam::111122223333:user/carol"}},
    });
    extend_policy(&s, &key, vec![deny]);
    let blob = s.ok_as(&alice, "Encrypt", sealing(&key))["CiphertextBlob"].clone();
    let body = json!({"CiphertextBlob": blob, "KeyId": key});
    let why = "with an explicit deny in a resource-based policy";
    assert_eq!(
        s.fails_as(&alice, "Decrypt", body.clone()),
        denied("user/alice", "kms:Decrypt", &arn(&key), why)
    );
    assert_eq!(s.fails("Decrypt", body).0, "AccessDeniedException", "the root too");

    let policy =
        json!({"Statement": [{"Effect": "Deny", "Action": "kms:Encrypt", "Resource": "*"}]}).to_string();
    s.ok("iam.PutUserPolicy", json!({"UserName": "alice", "PolicyName": "d", "PolicyDocument": policy}));
    let why = "with an explicit deny in an identity-based policy";
    assert_eq!(
        s.fails_as(&alice, "Encrypt", sealing(&key)),
        denied("user/alice", "kms:Encrypt", &arn(&key), why)
    );
}

#[test]
fn conditions_see_the_context_the_alias_and_the_service() {
    let s = service();
    let key = s.key();
    s.ok("CreateAlias", json!({"AliasName": "alias/k", "TargetKeyId": key}));
    let allow = |name: &str, condition: Value| {
        json!({
            "Effect": "Allow",
            "Principal": {"AWS": format!("arn:aws:iam::111122223333:user/{name}")},
            "Action": "kms:Encrypt",
            "Resource": "*",
            "Condition": condition,
        })
    };
    let statements = vec![
        allow("context", json!({"StringEquals": {"kms:EncryptionContext:App": "x"}})),
        allow("alias", json!({"StringEquals": {"kms:RequestAlias": "alias/k"}})),
        allow("service", json!({"StringEquals": {"kms:ViaService": "kmsfs.local.amazonaws.com"}})),
    ];
    extend_policy(&s, &key, statements);
    let mut body = sealing(&key);
    assert_eq!(s.fails_as(&user("context"), "Encrypt", body.clone()).0, "AccessDeniedException");
    body["EncryptionContext"] = json!({"App": "y"});
    assert_eq!(s.fails_as(&user("context"), "Encrypt", body.clone()).0, "AccessDeniedException");
    body["EncryptionContext"] = json!({"App": "x"});
    s.ok_as(&user("context"), "Encrypt", body);

    assert_eq!(s.fails_as(&user("alias"), "Encrypt", sealing(&key)).0, "AccessDeniedException");
    s.ok_as(&user("alias"), "Encrypt", sealing("alias/k"));

    assert_eq!(s.fails_as(&user("service"), "Encrypt", sealing(&key)).0, "AccessDeniedException");
    let mut through = user("service");
    through.via_service = Some("kmsfs.local.amazonaws.com".into());
    s.ok_as(&through, "Encrypt", sealing(&key));
}

#[test]
fn reencrypt_needs_a_right_on_each_of_its_two_keys() {
    let s = service();
    let (from, to) = (s.key(), s.key());
    let blob = s.ok("Encrypt", sealing(&from))["CiphertextBlob"].clone();
    let body = json!({"CiphertextBlob": blob, "SourceKeyId": from, "DestinationKeyId": to});
    let alice =
        s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:ReEncryptFrom", "Resource": "*"}));
    let why = "because no identity-based policy allows the kms:ReEncryptTo action";
    assert_eq!(
        s.fails_as(&alice, "ReEncrypt", body.clone()),
        denied("user/alice", "kms:ReEncryptTo", &arn(&to), why)
    );
    let bob = s.user_with("bob", &json!({"Effect": "Allow", "Action": "kms:ReEncryptTo", "Resource": "*"}));
    assert_eq!(s.fails_as(&bob, "ReEncrypt", body.clone()).0, "AccessDeniedException");
    let carol =
        s.user_with("carol", &json!({"Effect": "Allow", "Action": "kms:ReEncrypt*", "Resource": "*"}));
    s.ok_as(&carol, "ReEncrypt", body);
}

#[test]
fn an_alias_needs_a_right_on_itself_and_on_its_key() {
    let s = service();
    let key = s.key();
    let body = json!({"AliasName": "alias/k", "TargetKeyId": key});
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": arn(&key)}));
    let why = "because no identity-based policy allows the kms:CreateAlias action";
    assert_eq!(
        s.fails_as(&alice, "CreateAlias", body.clone()),
        denied("user/alice", "kms:CreateAlias", &crate::harness::alias_arn("alias/k"), why)
    );
    let resources = json!([arn(&key), crate::harness::alias_arn("alias/*")]);
    let bob = s.user_with("bob", &json!({"Effect": "Allow", "Action": "kms:*Alias", "Resource": resources}));
    s.ok_as(&bob, "CreateAlias", body);
    s.ok_as(&bob, "DeleteAlias", json!({"AliasName": "alias/k"}));
}

#[test]
fn the_check_comes_before_the_state_of_the_key_is_told() {
    let s = service();
    let key = s.key();
    s.ok("DisableKey", json!({"KeyId": key}));
    assert_eq!(s.fails_as(&user("alice"), "Encrypt", sealing(&key)).0, "AccessDeniedException");
    assert_eq!(s.fails("Encrypt", sealing(&key)).0, "DisabledException");
}

#[test]
fn a_deny_sees_the_caller_the_aliases_the_tags_and_whether_two_keys_are_one() {
    let s = service();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}));
    let denied_by = |action: &str, condition: Value| {
        let key = s.key();
        let deny = json!({"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*", "Condition": condition});
        extend_policy(&s, &key, vec![deny]);
        key
    };
    let fails =
        |operation: &str, body: Value| s.fails_as(&alice, operation, body).0 == "AccessDeniedException";

    let key = denied_by("kms:Encrypt", json!({"StringEquals": {"aws:username": "alice"}}));
    assert!(fails("Encrypt", sealing(&key)));
    s.ok("Encrypt", sealing(&key));

    let key = denied_by(
        "kms:Encrypt",
        json!({"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/secret"}}),
    );
    s.ok_as(&alice, "Encrypt", sealing(&key));
    s.ok("CreateAlias", json!({"AliasName": "alias/secret", "TargetKeyId": key}));
    assert!(fails("Encrypt", sealing(&key)));

    let key = denied_by("kms:UntagResource", json!({"ForAnyValue:StringEquals": {"aws:TagKeys": "Team"}}));
    assert!(fails("UntagResource", json!({"KeyId": key, "TagKeys": ["a", "Team"]})));
    s.ok_as(&alice, "UntagResource", json!({"KeyId": key, "TagKeys": ["a"]}));

    let key = denied_by("kms:ReEncrypt*", json!({"Bool": {"kms:ReEncryptOnSameKey": "false"}}));
    let blob = s.ok("Encrypt", sealing(&key))["CiphertextBlob"].clone();
    let to = |to: &str| json!({"CiphertextBlob": blob, "SourceKeyId": key, "DestinationKeyId": to});
    assert!(fails("ReEncrypt", to(&s.key())));
    s.ok_as(&alice, "ReEncrypt", to(&key));
}

#[test]
fn reencrypt_tells_no_more_of_an_unnamed_source_than_decrypt_does() {
    let s = service();
    let (from, to) = (s.key(), s.key());
    let blob = s.ok("Encrypt", sealing(&from))["CiphertextBlob"].clone();
    let statement = json!({"Effect": "Allow", "Action": "kms:*", "Resource": arn(&to)});
    let alice = s.user_with("alice", &statement);
    let found = s.fails_as(&alice, "ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": to}));
    assert_eq!(found, s.fails_as(&alice, "Decrypt", json!({"CiphertextBlob": blob})));
    assert!(!found.1.contains(&from), "{found:?}");
}

#[test]
fn to_create_a_key_with_the_default_policy_takes_no_other_right() {
    let s = service();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:CreateKey", "Resource": "*"}));
    s.ok_as(&alice, "CreateKey", json!({}));
    let text = s.ok("GetKeyPolicy", json!({"KeyId": s.key()}))["Policy"].clone();
    let found = s.fails_as(&alice, "CreateKey", json!({"Policy": text}));
    assert_eq!(found.0, "MalformedPolicyDocumentException", "a policy of her own locks her out");
}

#[test]
fn a_right_to_create_keys_can_hang_on_their_kind() {
    let s = service();
    let deny = json!({"Effect": "Deny", "Action": "kms:CreateKey", "Resource": "*",
                      "Condition": {"StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT"}}});
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}));
    let document = json!({"Statement": [deny]}).to_string();
    s.ok("iam.PutUserPolicy", json!({"UserName": "alice", "PolicyName": "d", "PolicyDocument": document}));
    assert_eq!(s.fails_as(&alice, "CreateKey", json!({})).0, "AccessDeniedException");
}

#[test]
fn a_context_that_is_too_long_is_refused_before_any_policy_is_asked() {
    let s = service();
    let key = s.key();
    let mut body = sealing(&key);
    body["EncryptionContext"] = json!({"a": "x".repeat(8192)});
    assert_eq!(s.fails_as(&user("nobody"), "Encrypt", body.clone()).0, "ValidationException");
    body["EncryptionContext"] = json!({"a": "x".repeat(8191)});
    assert_eq!(s.fails_as(&user("nobody"), "Encrypt", body).0, "AccessDeniedException");
}

#[test]
fn an_arn_of_another_partition_names_no_key() {
    let s = service();
    let key = arn(&s.key());
    s.ok("DescribeKey", json!({"KeyId": key}));
    let other = key.replacen("arn:aws:", "arn:zzz:", 1);
    assert_eq!(
        s.fails("DescribeKey", json!({"KeyId": other})),
        failure("NotFoundException", "Invalid arn zzz")
    );
}
