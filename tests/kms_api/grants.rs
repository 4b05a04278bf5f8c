//! Grants: who may use a key by them, who may make, list and end them.

use kmsfs::crypto::{RootKey, SealKey};
use kmsfs::kms::store::{MemoryStore, Store, Table};
use kmsfs::kms::{Caller, user_arn};
use serde_json::{Value, json};

use crate::harness::{ACCOUNT, START, Service, arn, b64, failure, over, root, service, user};

fn grant(s: &Service, key: &str, more: Value) -> (String, String) {
    grant_as(s, &root(), key, more).unwrap()
}

/// Makes a grant for alice to encrypt, changed by `more`: its id and token.
fn grant_as(
    s: &Service,
    caller: &Caller,
    key: &str,
    more: Value,
) -> Result<(String, String), (String, String)> {
    let mut body = json!({
        "KeyId": key, "GranteePrincipal": user_arn(ACCOUNT, "alice"), "Operations": ["Encrypt", "DescribeKey"],
    });
    for (member, value) in more.as_object().unwrap() {
        body[member] = value.clone();
    }
    let made = s.call(caller, "CreateGrant", &body.to_string()).map_err(|f| (f.code, f.message))?;
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    Ok((text("GrantId"), text("GrantToken")))
}

fn encrypts(s: &Service, caller: &Caller, key: &str, context: Value) -> bool {
    let body = json!({"KeyId": key, "Plaintext": b64(b"x"), "EncryptionContext": context});
    match s.call(caller, "Encrypt", &body.to_string()) {
        Ok(_) => true,
        Err(failure) => {
            assert_eq!(failure.code, "AccessDeniedException", "{failure:?}");
            false
        }
    }
}

fn ids(listed: &Value) -> Vec<&str> {
    listed["Grants"].as_array().unwrap().iter().map(|grant| grant["GrantId"].as_str().unwrap()).collect()
}

#[test]
fn a_grant_allows_its_operations_to_its_grantee_on_its_key_until_it_is_revoked() {
    let s = service();
    let (key, other) = (s.key(), s.key());
    let alice = user("alice");
    assert!(!encrypts(&s, &alice, &key, json!({})));
    let (id, token) = grant(&s, &key, json!({}));
    assert_eq!((id.len(), token.is_empty()), (64, false));
    assert!(encrypts(&s, &alice, &key, json!({})), "at once");
    s.ok_as(&alice, "DescribeKey", json!({"KeyId": key}));
    assert!(!encrypts(&s, &alice, &other, json!({})), "another key");
    assert!(!encrypts(&s, &user("bob"), &key, json!({})), "another principal");
    let denied = s.fails_as(&alice, "GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"}));
    assert_eq!(denied.0, "AccessDeniedException", "another operation");
    s.ok("RevokeGrant", json!({"KeyId": key, "GrantId": id}));
    assert!(!encrypts(&s, &alice, &key, json!({})), "revoked");
    let gone = failure("NotFoundException", &format!("Grant ID {id} not found"));
    assert_eq!(s.fails("RevokeGrant", json!({"KeyId": key, "GrantId": id})), gone);
    assert_eq!(s.fails("RetireGrant", json!({"GrantToken": token})), gone);
}

#[test]
fn a_constraint_without_pairs_is_none() {
    let s = service();
    let key = s.key();
    let constraints = json!({"EncryptionContextSubset": {}, "EncryptionContextEquals": {"a": "b"}});
    let body = json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::111122223333:user/a", "Operations": ["Decrypt"],
        "Constraints": constraints});
    s.ok("CreateGrant", body);
    let listed = s.ok("ListGrants", json!({"KeyId": key}));
    assert_eq!(listed["Grants"][0]["Constraints"], json!({"EncryptionContextEquals": {"a": "b"}}));
    // Alone it means that there is no context; and it is no subset that a policy could ask for.
    let alone = json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::111122223333:user/b",
        "Operations": ["Encrypt"], "Constraints": {"EncryptionContextEquals": {}}});
    s.ok("CreateGrant", alone);
    let bob = crate::harness::user("b");
    let encrypt =
        |context: Value| json!({"KeyId": arn(&key), "Plaintext": "eA==", "EncryptionContext": context});
    s.ok_as(&bob, "Encrypt", encrypt(json!({})));
    assert_eq!(s.fails_as(&bob, "Encrypt", encrypt(json!({"a": "b"}))).0, "AccessDeniedException");
    let only_subsets = json!({"Effect": "Allow", "Action": "kms:CreateGrant", "Resource": "*",
        "Condition": {"StringEquals": {"kms:GrantConstraintType": "EncryptionContextSubset"}}});
    let carol = s.user_with("carol", &only_subsets);
    let asked = |pairs: Value| {
        json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::111122223333:user/a",
        "Operations": ["Encrypt"], "Constraints": {"EncryptionContextSubset": pairs}})
    };
    s.ok_as(&carol, "CreateGrant", asked(json!({"a": "b"})));
    assert_eq!(s.fails_as(&carol, "CreateGrant", asked(json!({}))).0, "AccessDeniedException");
}

#[test]
fn constraints_are_held_against_the_context_and_a_deny_beats_a_grant() {
    let s = service();
    let key = s.key();
    let alice = user("alice");
    grant(&s, &key, json!({"Constraints": {"EncryptionContextSubset": {"a": "1"}}}));
    assert!(encrypts(&s, &alice, &key, json!({"a": "1", "b": "2"})));
    assert!(!encrypts(&s, &alice, &key, json!({"a": "2"})) && !encrypts(&s, &alice, &key, json!({"A": "1"})));
    s.ok_as(&alice, "DescribeKey", json!({"KeyId": key}));
    grant(&s, &key, json!({"Constraints": {"EncryptionContextEquals": {"c": "3", "d": "4"}}}));
    assert!(encrypts(&s, &alice, &key, json!({"d": "4", "c": "3"})));
    assert!(!encrypts(&s, &alice, &key, json!({"c": "3"})));
    assert!(!encrypts(&s, &alice, &key, json!({"c": "3", "d": "4", "e": "5"})));
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "kms:*", "Resource": "*"},
        {"Effect": "Deny", "Principal": {"AWS": user_arn(ACCOUNT, "alice")}, "Action": "kms:Encrypt", "Resource": "*"},
    ]});
    s.ok("PutKeyPolicy", json!({"KeyId": key, "Policy": policy.to_string()}));
    assert!(!encrypts(&s, &alice, &key, json!({"a": "1"})));
}

#[test]
fn a_named_grant_is_made_once_with_a_new_token_each_time() {
    let s = service();
    let key = s.key();
    let (first, token) = grant(&s, &key, json!({"Name": "n"}));
    let (again, other_token) = grant(&s, &key, json!({"Name": "n"}));
    assert_eq!(first, again);
    assert_ne!(token, other_token);
    assert_ne!(
        first,
        grant(&s, &key, json!({"Name": "n", "Operations": ["Encrypt"]})).0,
        "it says something else"
    );
    assert_ne!(grant(&s, &key, json!({})).0, grant(&s, &key, json!({})).0, "without a name");
}

#[test]
fn lists_are_filtered_paged_and_tell_no_token() {
    let s = service();
    let key = s.key();
    let (id, _) = grant(
        &s,
        &key,
        json!({"Name": "n", "RetiringPrincipal": user_arn(ACCOUNT, "rita"),
        "Constraints": {"EncryptionContextSubset": {"a": "1"}}}),
    );
    for number in 0..4 {
        grant(&s, &key, json!({"GranteePrincipal": user_arn(ACCOUNT, &format!("u{number}"))}));
    }
    let one = s.ok("ListGrants", json!({"KeyId": key, "GrantId": id}));
    let entry = &one["Grants"][0];
    let expected = json!({
        "KeyId": arn(&key), "GrantId": id, "Name": "n", "CreationDate": entry["CreationDate"],
        "GranteePrincipal": user_arn(ACCOUNT, "alice"), "RetiringPrincipal": user_arn(ACCOUNT, "rita"),
        "IssuingAccount": format!("arn:aws:iam::{ACCOUNT}:root"), "Operations": ["Encrypt", "DescribeKey"],
        "Constraints": {"EncryptionContextSubset": {"a": "1"}},
    });
    assert_eq!(*entry, expected);
    let of_u1 = s.ok("ListGrants", json!({"KeyId": key, "GranteePrincipal": user_arn(ACCOUNT, "u1")}));
    assert_eq!(ids(&of_u1).len(), 1);
    let (mut seen, mut marker) = (0, Value::Null);
    loop {
        let mut body = json!({"KeyId": key, "Limit": 2});
        if !marker.is_null() {
            body["Marker"] = marker;
        }
        let page = s.ok("ListGrants", body);
        seen += ids(&page).len();
        marker = page["NextMarker"].clone();
        if page["Truncated"] == false {
            break;
        }
    }
    assert_eq!(seen, 5);
    let retirable = s.ok("ListRetirableGrants", json!({"RetiringPrincipal": user_arn(ACCOUNT, "rita")}));
    assert_eq!(ids(&retirable), [id.as_str()]);
    assert_eq!(
        ids(&s.ok("ListRetirableGrants", json!({"RetiringPrincipal": user_arn(ACCOUNT, "x")}))).len(),
        0
    );
}

#[test]
fn those_a_grant_names_may_retire_it_and_nobody_else() {
    let s = service();
    let key = s.key();
    let retire = |caller: &Caller, id: &str| {
        let body = json!({"KeyId": arn(&key), "GrantId": id}).to_string();
        s.call(caller, "RetireGrant", &body).is_ok()
    };
    let named = json!({"RetiringPrincipal": user_arn(ACCOUNT, "rita")});
    let (id, token) = grant(&s, &key, named.clone());
    assert!(!retire(&user("alice"), &id) && !retire(&user("bob"), &id));
    s.ok_as(&user("rita"), "RetireGrant", json!({"GrantToken": token}));
    let (id, _) = grant(&s, &key, json!({"Operations": ["Encrypt", "RetireGrant"]}));
    assert!(!retire(&user("rita"), &id) && retire(&user("alice"), &id), "the grantee, where it may");
    let (id, _) = grant(&s, &key, named.clone());
    let allowed =
        s.user_with("carol", &json!({"Effect": "Allow", "Action": "kms:RetireGrant", "Resource": "*"}));
    assert!(retire(&allowed, &id), "whom the account that made it lets");
    let (id, _) = grant(&s, &key, named);
    let denied =
        s.user_with("rita", &json!({"Effect": "Deny", "Action": "kms:RetireGrant", "Resource": "*"}));
    assert!(!retire(&denied, &id), "a policy can deny it");
    assert!(retire(&root(), &id), "the account");
}

#[test]
fn a_grant_made_under_a_grant_only_narrows() {
    let s = service();
    let key = s.key();
    let (alice, bob) = (user("alice"), user_arn(ACCOUNT, "bob"));
    grant(
        &s,
        &key,
        json!({"Operations": ["Encrypt", "CreateGrant"], "Constraints": {"EncryptionContextSubset": {"a": "1"}}}),
    );
    let child = |more: Value| grant_as(&s, &alice, &key, more);
    let narrow = json!({"GranteePrincipal": bob, "Operations": ["Encrypt"], "Constraints": {"EncryptionContextSubset": {"a": "1", "b": "2"}}});
    child(narrow.clone()).unwrap();
    assert!(encrypts(&s, &user("bob"), &key, json!({"a": "1", "b": "2"})));
    assert!(!encrypts(&s, &user("bob"), &key, json!({"a": "1"})));
    for (member, wider) in [
        ("Operations", json!(["Encrypt", "Decrypt"])),
        ("Constraints", json!({})),
        ("Constraints", json!({"EncryptionContextSubset": {"a": "2"}})),
    ] {
        let mut body = narrow.clone();
        body[member] = wider;
        assert_eq!(child(body.clone()).unwrap_err().0, "AccessDeniedException", "{body}");
    }
}

#[test]
fn grants_that_make_no_sense_are_refused() {
    let s = service();
    let key = s.key();
    for (more, code) in [
        (json!({"GranteePrincipal": "alice"}), "InvalidArnException"),
        (json!({"GranteePrincipal": "arn:aws:iam::111122223333:group/g"}), "InvalidArnException"),
        (json!({"RetiringPrincipal": "arn:aws:s3:::b"}), "InvalidArnException"),
        (json!({"GranteePrincipal": null}), "ValidationException"),
        (json!({"Operations": []}), "ValidationException"),
        (json!({"Operations": ["Nonsense"]}), "ValidationException"),
        (json!({"Operations": ["Sign"]}), "ValidationException"),
        (json!({"GrantTokens": ["x"]}), "InvalidGrantTokenException"),
        (json!({"Constraints": {"EncryptionContextSubset": {"a": "x".repeat(385)}}}), "ValidationException"),
        (
            json!({"Constraints": {"EncryptionContextSubset": {"a": "b"}, "EncryptionContextEquals": {"a": "b"}}}),
            "ValidationException",
        ),
        (json!({"DryRun": true}), "DryRunOperationException"),
    ] {
        let found = grant_as(&s, &root(), &key, more.clone()).unwrap_err();
        assert_eq!(found.0, code, "{more}: {found:?}");
    }
    assert_eq!(ids(&s.ok("ListGrants", json!({"KeyId": key}))).len(), 0, "nothing was made");
    let (_, token) = grant(&s, &key, json!({}));
    let with = |token: &str| json!({"KeyId": key, "Plaintext": b64(b"x"), "GrantTokens": [token]});
    s.ok_as(&user("alice"), "Encrypt", with(&token));
    let changed = format!("{}{}", if token.starts_with('A') { "B" } else { "A" }, &token[1..]);
    assert_eq!(s.fails_as(&user("alice"), "Encrypt", with(&changed)).0, "InvalidGrantTokenException");
    assert_eq!(s.fails("ListGrants", json!({"KeyId": key, "GrantId": "x"})).0, "InvalidGrantIdException");
    assert_eq!(s.fails("RetireGrant", json!({"GrantId": "x"})).0, "ValidationException");
    s.ok("DisableKey", json!({"KeyId": key}));
    assert_eq!(grant_as(&s, &root(), &key, json!({})).unwrap_err().0, "DisabledException");
}

#[test]
fn grants_outlive_a_restart_and_go_with_their_key() {
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(MemoryStore::new());
    let start = || over(std::sync::Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let s = start();
    let key = s.key();
    let (id, _) = grant(&s, &key, json!({}));
    let again = start();
    assert!(encrypts(&again, &user("alice"), &key, json!({})));
    assert_eq!(ids(&again.ok("ListGrants", json!({"KeyId": key}))), [id.as_str()]);
    let days = json!({"KeyId": key, "PendingWindowInDays": 7});
    again.ok("ScheduleKeyDeletion", days);
    again.kms.run_due(START.plus_days(8));
    let rows = again.store.load(Table::Grant).unwrap();
    assert_eq!(rows.len(), 0);
}

#[test]
fn the_record_names_the_grant_or_the_statement_that_decided() {
    let s = service();
    let key = s.key();
    let (id, _) = grant(&s, &key, json!({}));
    let decision = || s.audit.records().last().unwrap()["additionalEventData"]["policyDecision"].clone();
    assert_eq!(decision(), "the account root");
    assert!(encrypts(&s, &user("alice"), &key, json!({})));
    assert_eq!(decision(), format!("grant {id}"));
    let statement = json!({"Sid": "all", "Effect": "Allow", "Action": "kms:*", "Resource": "*"});
    let carol = s.user_with("carol", &statement);
    assert!(encrypts(&s, &carol, &key, json!({})));
    assert_eq!(decision(), "statement \"all\" of policy \"p\" of user carol");
    let deny = json!({"Statement": {"Effect": "Deny", "Action": "kms:Encrypt", "Resource": "*"}}).to_string();
    s.ok("iam.PutUserPolicy", json!({"UserName": "carol", "PolicyName": "d", "PolicyDocument": deny}));
    assert!(!encrypts(&s, &carol, &key, json!({})));
    assert_eq!(decision(), "statement 1 of policy \"d\" of user carol");
}

#[test]
fn a_stored_policy_that_is_refused_today_closes_its_key_or_user_alone() {
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(MemoryStore::new());
    let start = || over(std::sync::Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let s = start();
    let (key, other) = (s.key(), s.key());
    s.user_with("alice", &json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"}));
    let spoil = |table: Table, id: &str, from: &str, to: &str| {
        let row = store.load(table).unwrap().into_iter().find(|row| row.id == id).unwrap();
        let body = String::from_utf8(row.body).unwrap().replace(from, to).into_bytes();
        store.commit(&[kmsfs::kms::store::Change::Put { table, id: row.id, body }]).unwrap();
    };
    spoil(Table::Key, &key, "kms:*", "kms:*\\\",\\\"Surprise\\\":\\\"x");
    let s = start();
    assert!(!encrypts(&s, &root(), &key, json!({})) && encrypts(&s, &user("alice"), &other, json!({})));
    s.ok("DescribeKey", json!({"KeyId": key}));
    assert_eq!(s.fails("DisableKey", json!({"KeyId": key})).0, "AccessDeniedException");
    let policy = s.ok("GetKeyPolicy", json!({"KeyId": other}))["Policy"].clone();
    s.ok("PutKeyPolicy", json!({"KeyId": key, "Policy": policy}));
    assert!(encrypts(&s, &root(), &key, json!({})), "a new policy opens it again");
    spoil(Table::User, "alice", "Allow", "Perhaps");
    let s = start();
    assert!(!encrypts(&s, &user("alice"), &other, json!({})) && encrypts(&s, &root(), &other, json!({})));
}
