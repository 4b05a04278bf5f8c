//! Users and access keys: the daemon's own namespace.

use kmsfs::kms::{Caller, Source};
use serde_json::{Value, json};

use crate::harness::{root, service, unb64, user};

#[test]
fn users_are_made_listed_and_removed() {
    let s = service();
    let made = s.ok("KmsdAdmin.CreateUser", json!({"UserName": "alice"}));
    assert_eq!(made["User"]["Arn"], "arn:aws:iam::111122223333:user/alice");
    assert_eq!(s.fails("KmsdAdmin.CreateUser", json!({"UserName": "alice"})).0, "AlreadyExistsException");
    s.ok("KmsdAdmin.CreateUser", json!({"UserName": "bob"}));
    let page = s.ok("KmsdAdmin.ListUsers", json!({"Limit": 1}));
    assert_eq!((page["Users"][0]["UserName"].as_str(), &page["Truncated"]), (Some("alice"), &json!(true)));
    s.ok("KmsdAdmin.DeleteUser", json!({"UserName": "alice"}));
    assert_eq!(s.fails("KmsdAdmin.DeleteUser", json!({"UserName": "alice"})).0, "NotFoundException");
    assert_eq!(s.fails("KmsdAdmin.CreateUser", json!({"UserName": "a/b"})).0, "ValidationException");
}

#[test]
fn policies_of_users_come_back_as_they_were_put() {
    let s = service();
    s.ok("KmsdAdmin.CreateUser", json!({"UserName": "alice"}));
    let text = " {\"Statement\": [{\"Effect\": \"Allow\", \"Action\": \"kms:*\", \"Resource\": \"*\"}]}";
    let name = json!({"UserName": "alice", "PolicyName": "p"});
    let mut put = name.clone();
    put["PolicyDocument"] = json!(text);
    s.ok("KmsdAdmin.PutUserPolicy", put.clone());
    assert_eq!(s.ok("KmsdAdmin.GetUserPolicy", name.clone())["PolicyDocument"], text);
    assert_eq!(
        s.ok("KmsdAdmin.ListUserPolicies", json!({"UserName": "alice"})),
        json!({"PolicyNames": ["p"]})
    );
    assert_eq!(s.fails("KmsdAdmin.DeleteUser", json!({"UserName": "alice"})).0, "ConflictException");
    put["PolicyDocument"] = json!("{}");
    assert_eq!(s.fails("KmsdAdmin.PutUserPolicy", put).0, "MalformedPolicyDocumentException");
    s.ok("KmsdAdmin.DeleteUserPolicy", name.clone());
    assert_eq!(s.fails("KmsdAdmin.GetUserPolicy", name.clone()).0, "NotFoundException");
    assert_eq!(s.fails("KmsdAdmin.DeleteUserPolicy", name).0, "NotFoundException");
}

#[test]
fn an_access_key_signs_while_it_is_active() {
    let s = service();
    s.ok("KmsdAdmin.CreateUser", json!({"UserName": "alice"}));
    let made = s.ok("KmsdAdmin.CreateAccessKey", json!({"UserName": "alice"}))["AccessKey"].clone();
    let id = made["AccessKeyId"].as_str().unwrap();
    let secret = unb64(&made["SecretAccessKey"]);
    assert_eq!((id.len(), secret.len()), (20, 40));
    assert_eq!(s.kms.access_key_secret(id).unwrap().as_slice(), secret);
    assert_eq!(s.kms.access_key_owner(id).unwrap().principal_arn, "arn:aws:iam::111122223333:user/alice");
    s.ok("KmsdAdmin.UpdateAccessKey", json!({"AccessKeyId": id, "Status": "Inactive"}));
    assert!(s.kms.access_key_secret(id).is_none() && s.kms.access_key_owner(id).is_none());
    s.ok("KmsdAdmin.UpdateAccessKey", json!({"AccessKeyId": id, "Status": "Active"}));
    assert!(s.kms.access_key_secret(id).is_some());
    let listed = s.ok("KmsdAdmin.ListAccessKeys", json!({"UserName": "alice"}))["AccessKeyMetadata"].clone();
    assert_eq!((listed[0]["AccessKeyId"].as_str(), listed[0].get("SecretAccessKey")), (Some(id), None));
    assert_eq!(s.fails("KmsdAdmin.DeleteUser", json!({"UserName": "alice"})).0, "ConflictException");
    s.ok("KmsdAdmin.DeleteAccessKey", json!({"AccessKeyId": id}));
    assert!(s.kms.access_key_secret(id).is_none());
}

#[test]
fn a_chosen_access_key_is_kept_as_it_is_and_its_secret_never_in_clear() {
    use kmsfs::kms::store::Table;
    let s = service();
    s.ok("KmsdAdmin.CreateUser", json!({"UserName": "alice"}));
    let secret = crate::harness::b64(b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    let body = json!({"UserName": "alice", "AccessKeyId": "AKIAIOSFODNN7EXAMPLE", "SecretAccessKey": secret});
    s.ok("KmsdAdmin.CreateAccessKey", body.clone());
    assert_eq!(s.fails("KmsdAdmin.CreateAccessKey", body).0, "AlreadyExistsException");
    let kept = s.kms.access_key_secret("AKIAIOSFODNN7EXAMPLE").unwrap();
    assert_eq!(kept.as_slice(), b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    let rows = s.store.load(Table::AccessKey).unwrap();
    let holds = |bytes: &[u8]| bytes.windows(8).any(|window| window == b"wJalrXUt");
    assert!(!rows.iter().any(|row| holds(&row.body)));
    let logged = Value::Array(s.audit.records()).to_string();
    assert!(!holds(logged.as_bytes()) && !logged.contains(&secret));
}

#[test]
fn administration_is_for_the_root_on_the_unix_socket_only() {
    let s = service();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "*", "Resource": "*"}));
    let remote = Caller { source: Source::Tcp([127, 0, 0, 1].into()), ..root() };
    for caller in [alice, remote, user("bob")] {
        assert_eq!(s.fails_as(&caller, "KmsdAdmin.ListUsers", json!({})).0, "AccessDeniedException");
        assert_eq!(
            s.fails_as(&caller, "KmsdAdmin.CreateUser", json!({"UserName": "x"})).0,
            "AccessDeniedException"
        );
    }
}
