//! IAM and STS: who there is, and what sessions they get.

use kmsfs::kms::{Caller, Source, root_arn};
use serde_json::{Value, json};

use crate::harness::{ACCOUNT, Service, arn, b64, failure, over, root, service, user};

fn allow(action: &str) -> String {
    json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": action, "Resource": "*"}})
        .to_string()
}

fn trust(principal: &str) -> String {
    json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"AWS": principal},
        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]}})
    .to_string()
}

/// Who signs with credentials that STS made.
fn session_of(s: &Service, answer: &Value) -> Caller {
    let text = |name: &str| answer["Credentials"][name].as_str().unwrap();
    let signer = s.kms.signer(text("AccessKeyId"), Some(text("SessionToken"))).unwrap();
    let secret = s.kms.signing_secret(text("AccessKeyId"), Some(text("SessionToken"))).unwrap();
    assert_eq!(secret.as_slice(), text("SecretAccessKey").as_bytes());
    Caller {
        principal_arn: signer.principal_arn,
        account: signer.account,
        is_root: signer.is_root,
        session: signer.session,
        ..user("x")
    }
}

#[test]
fn users_come_and_go() {
    let s = service();
    let made = s.ok(
        "iam.CreateUser",
        json!({"UserName": "alice", "Path": "/team/", "Tags.member.1.Key": "k", "Tags.member.1.Value": "v"}),
    );
    assert_eq!(made["User"]["Arn"], "arn:aws:iam::111122223333:user/team/alice");
    assert_eq!(made["User"]["Tags"], json!([{"Key": "k", "Value": "v"}]));
    let found = s.fails("iam.CreateUser", json!({"UserName": "alice"}));
    assert_eq!(found, failure("EntityAlreadyExists", "User with name alice already exists."));
    s.ok("iam.CreateUser", json!({"UserName": "bob"}));
    let page = s.ok("iam.ListUsers", json!({"MaxItems": 1}));
    assert_eq!((&page["Users"][0]["UserName"], &page["IsTruncated"]), (&json!("alice"), &json!(true)));
    let rest = s.ok("iam.ListUsers", json!({"Marker": page["Marker"]}));
    assert_eq!(rest["Users"][0]["UserName"], "bob");
    s.ok("iam.UntagUser", json!({"UserName": "alice", "TagKeys.member.1": "K"}));
    assert_eq!(s.ok("iam.GetUser", json!({"UserName": "alice"}))["User"]["Tags"], Value::Null);
    s.ok("iam.DeleteUser", json!({"UserName": "alice"}));
    let gone = failure("NoSuchEntity", "The user with name alice cannot be found.");
    assert_eq!(s.fails("iam.DeleteUser", json!({"UserName": "alice"})), gone);
    for wrong in [
        json!({"UserName": "a/b"}),
        json!({}),
        json!({"UserName": "a", "Path": "/unix/"}),
        json!({"UserName": "a", "Path": "x"}),
    ] {
        assert_eq!(s.fails("iam.CreateUser", wrong.clone()).0, "ValidationError", "{wrong}");
    }
    assert_eq!(s.fails("iam.Nonsense", json!({})).0, "InvalidAction");
}

#[test]
fn policies_of_users_are_kept_as_they_were_put() {
    let s = service();
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    let name = json!({"UserName": "alice", "PolicyName": "p"});
    let text = "{ \"Statement\" : [] ,\n \"Version\":\"2012-10-17\"}";
    let mut put = name.clone();
    put["PolicyDocument"] = text.into();
    s.ok("iam.PutUserPolicy", put.clone());
    assert_eq!(s.ok("iam.GetUserPolicy", name.clone())["PolicyDocument"], text);
    assert_eq!(s.ok("iam.ListUserPolicies", json!({"UserName": "alice"}))["PolicyNames"], json!(["p"]));
    let found = s.fails("iam.DeleteUser", json!({"UserName": "alice"}));
    assert_eq!(found, failure("DeleteConflict", "Cannot delete entity, must delete policies first."));
    put["PolicyDocument"] = "{}".into();
    assert_eq!(s.fails("iam.PutUserPolicy", put).0, "MalformedPolicyDocument");
    s.ok("iam.DeleteUserPolicy", name.clone());
    let gone = failure("NoSuchEntity", "The user policy with name p cannot be found.");
    assert_eq!(s.fails("iam.GetUserPolicy", name.clone()), gone);
    assert_eq!(s.fails("iam.DeleteUserPolicy", name), gone);
}

#[test]
fn access_keys_sign_while_they_are_active() {
    let s = service();
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    let made = s.ok("iam.CreateAccessKey", json!({"UserName": "alice"}))["AccessKey"].clone();
    let (id, secret) = (made["AccessKeyId"].as_str().unwrap(), made["SecretAccessKey"].as_str().unwrap());
    assert!(id.starts_with("AKIA") && id.len() == 20 && secret.len() == 40, "{id} {secret}");
    assert_eq!(s.kms.signing_secret(id, None).unwrap().as_slice(), secret.as_bytes());
    assert_eq!(s.kms.signer(id, None).unwrap().principal_arn, "arn:aws:iam::111122223333:user/alice");
    s.ok("iam.UpdateAccessKey", json!({"UserName": "alice", "AccessKeyId": id, "Status": "Inactive"}));
    assert!(s.kms.signing_secret(id, None).is_err());
    s.ok("iam.UpdateAccessKey", json!({"UserName": "alice", "AccessKeyId": id, "Status": "Active"}));
    s.ok("iam.CreateAccessKey", json!({"UserName": "alice"}));
    let found = s.fails("iam.CreateAccessKey", json!({"UserName": "alice"}));
    assert_eq!(found, failure("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2"));
    let listed = s.ok("iam.ListAccessKeys", json!({"UserName": "alice"}))["AccessKeyMetadata"].clone();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["SecretAccessKey"]), (2, &Value::Null));
    assert_eq!(s.fails("iam.DeleteUser", json!({"UserName": "alice"})).0, "DeleteConflict");
    s.ok("iam.DeleteAccessKey", json!({"UserName": "alice", "AccessKeyId": id}));
    assert!(s.kms.signer(id, None).is_err());
    let records = s.audit.records();
    let shown = records.iter().map(ToString::to_string).collect::<String>();
    assert!(!shown.contains(secret), "no secret is recorded");
    let created = records.iter().find(|record| record["eventName"] == "CreateAccessKey").unwrap();
    let told = &created["responseElements"]["accessKey"];
    assert_eq!((&told["accessKeyId"], &told["userName"]), (&json!(id), &json!("alice")));
}

#[test]
fn only_the_operator_on_the_host_chooses_keys() {
    let s = service();
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    let chosen =
        json!({"UserName": "alice", "AccessKeyId": "AKIDCHOSEN0000000", "SecretAccessKey": "chosen"});
    let remote = Caller { source: Source::Tcp([127, 0, 0, 1].into()), ..root() };
    assert_eq!(s.fails_as(&remote, "iam.CreateAccessKey", chosen.clone()).0, "ValidationError");
    s.ok("iam.CreateAccessKey", chosen.clone());
    assert_eq!(s.fails("iam.CreateAccessKey", chosen).0, "EntityAlreadyExists");
}

#[test]
fn identities_are_managed_by_whom_policies_let() {
    let s = service();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": ["iam:Get*", "iam:ListAccessKeys"], "Resource": "arn:aws:iam::*:user/${aws:username}"}));
    s.ok("iam.CreateUser", json!({"UserName": "bob"}));
    assert_eq!(s.ok_as(&alice, "iam.GetUser", json!({}))["User"]["UserName"], "alice");
    s.ok_as(&alice, "iam.ListAccessKeys", json!({}));
    let found = s.fails_as(&alice, "iam.GetUser", json!({"UserName": "bob"}));
    let message = "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: iam:GetUser on resource: \
                   arn:aws:iam::111122223333:user/bob because no identity-based policy allows the iam:GetUser action";
    assert_eq!(found, failure("AccessDenied", message));
    assert_eq!(s.fails_as(&user("bob"), "iam.CreateUser", json!({"UserName": "x"})).0, "AccessDenied");
}

#[test]
fn groups_and_managed_policies_hand_their_rights_on() {
    let s = service();
    let key = s.key();
    let uses = |caller: &Caller| {
        s.call(caller, "Encrypt", &json!({"KeyId": key, "Plaintext": b64(b"x")}).to_string()).is_ok()
    };
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    s.ok("iam.CreateGroup", json!({"GroupName": "staff"}));
    s.ok("iam.AddUserToGroup", json!({"GroupName": "staff", "UserName": "alice"}));
    assert!(!uses(&user("alice")));
    let made = s.ok("iam.CreatePolicy", json!({"PolicyName": "enc", "PolicyDocument": allow("kms:Encrypt")}));
    let policy = made["Policy"]["Arn"].clone();
    assert_eq!(policy, "arn:aws:iam::111122223333:policy/enc");
    s.ok("iam.AttachGroupPolicy", json!({"GroupName": "staff", "PolicyArn": policy}));
    assert!(uses(&user("alice")));
    assert_eq!(s.ok("iam.GetPolicy", json!({"PolicyArn": policy}))["Policy"]["AttachmentCount"], "1");
    assert_eq!(s.fails("iam.DeletePolicy", json!({"PolicyArn": policy})).0, "DeleteConflict");
    s.ok(
        "iam.CreatePolicyVersion",
        json!({"PolicyArn": policy, "PolicyDocument": allow("kms:Decrypt"), "SetAsDefault": "true"}),
    );
    assert!(!uses(&user("alice")), "the default version counts");
    s.ok("iam.SetDefaultPolicyVersion", json!({"PolicyArn": policy, "VersionId": "v1"}));
    assert!(uses(&user("alice")));
    assert_eq!(s.ok("iam.GetGroup", json!({"GroupName": "staff"}))["Users"][0]["UserName"], "alice");
    assert_eq!(
        s.ok("iam.ListGroupsForUser", json!({"UserName": "alice"}))["Groups"][0]["GroupName"],
        "staff"
    );
    assert_eq!(s.fails("iam.DeleteUser", json!({"UserName": "alice"})).0, "DeleteConflict");
    s.ok("iam.RemoveUserFromGroup", json!({"GroupName": "staff", "UserName": "alice"}));
    assert!(!uses(&user("alice")));
    s.ok("iam.AttachUserPolicy", json!({"UserName": "alice", "PolicyArn": policy}));
    let listed = s.ok("iam.ListAttachedUserPolicies", json!({"UserName": "alice"}));
    assert_eq!(listed["AttachedPolicies"], json!([{"PolicyName": "enc", "PolicyArn": policy}]));
    assert!(uses(&user("alice")));
    let bound = s.ok("iam.CreatePolicy", json!({"PolicyName": "bound", "PolicyDocument": allow("kms:Decrypt")}))["Policy"]["Arn"].clone();
    s.ok("iam.PutUserPermissionsBoundary", json!({"UserName": "alice", "PermissionsBoundary": bound}));
    let found = s.fails_as(&user("alice"), "Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    assert!(found.1.ends_with("because no permissions boundary allows the kms:Encrypt action"), "{found:?}");
    assert_eq!(
        s.fails(
            "iam.AttachUserPolicy",
            json!({"UserName": "alice", "PolicyArn": "arn:aws:iam::111122223333:policy/x"})
        )
        .0,
        "NoSuchEntity"
    );
}

#[test]
fn a_role_is_assumed_by_whom_it_trusts_and_its_session_is_limited() {
    let s = service();
    let key = s.key();
    let sealing = json!({"KeyId": key, "Plaintext": b64(b"x")});
    s.ok(
        "iam.CreateRole",
        json!({"RoleName": "r", "AssumeRolePolicyDocument": trust("arn:aws:iam::111122223333:user/alice")}),
    );
    s.ok("iam.PutRolePolicy", json!({"RoleName": "r", "PolicyName": "p", "PolicyDocument": allow("kms:*")}));
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    let role = "arn:aws:iam::111122223333:role/r";
    let body = json!({"RoleArn": role, "RoleSessionName": "s1"});
    let answer = s.ok_as(&user("alice"), "sts.AssumeRole", body.clone());
    let record = s.audit.records().pop().unwrap();
    let told = &record["responseElements"]["credentials"];
    assert_eq!(told["accessKeyId"], answer["Credentials"]["AccessKeyId"]);
    assert_eq!(told["expiration"], answer["Credentials"]["Expiration"]);
    for secret in ["SecretAccessKey", "SessionToken"] {
        assert!(!record.to_string().contains(answer["Credentials"][secret].as_str().unwrap()), "{secret}");
    }
    assert_eq!(answer["AssumedRoleUser"]["Arn"], "arn:aws:sts::111122223333:assumed-role/r/s1");
    let session = session_of(&s, &answer);
    s.ok_as(&session, "Encrypt", sealing.clone());
    let who = s.ok_as(&session, "sts.GetCallerIdentity", json!({}));
    assert_eq!((&who["Arn"], &who["Account"]), (&answer["AssumedRoleUser"]["Arn"], &json!(ACCOUNT)));
    assert_eq!(who["UserId"], answer["AssumedRoleUser"]["AssumedRoleId"]);
    let denied = "User: arn:aws:iam::111122223333:user/bob is not authorized to perform: sts:AssumeRole on resource: \
                  arn:aws:iam::111122223333:role/r";
    assert_eq!(s.fails_as(&user("bob"), "sts.AssumeRole", body.clone()), failure("AccessDenied", denied));
    assert_eq!(
        s.fails("sts.AssumeRole", body.clone()),
        failure("AccessDenied", "Roles may not be assumed by root accounts.")
    );
    let mut limited = body.clone();
    limited["Policy"] = allow("kms:Decrypt").into();
    let limited = session_of(&s, &s.ok_as(&user("alice"), "sts.AssumeRole", limited));
    let found = s.fails_as(&limited, "Encrypt", sealing.clone());
    assert!(found.1.ends_with("because no session policy allows the kms:Encrypt action"), "{found:?}");
    s.clock.advance_millis(3_600_000);
    let (id, token) = (
        answer["Credentials"]["AccessKeyId"].as_str().unwrap(),
        answer["Credentials"]["SessionToken"].as_str().unwrap(),
    );
    let ended = s.kms.signer(id, Some(token)).unwrap_err();
    assert_eq!(ended.to_string(), "The security token included in the request is expired");
}

#[test]
fn a_session_ends_with_its_role_and_its_token_is_bound_and_sealed() {
    use kmsfs::crypto::{RootKey, SealKey};
    use kmsfs::kms::store::{MemoryStore, Store};
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(MemoryStore::new());
    let start = || over(std::sync::Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let s = start();
    let make = json!({"RoleName": "r", "AssumeRolePolicyDocument": trust("*")});
    s.ok("iam.CreateRole", make.clone());
    let body = json!({"RoleArn": "arn:aws:iam::111122223333:role/r", "RoleSessionName": "s1"});
    let answer = s.ok_as(&user("alice"), "sts.AssumeRole", body.clone())["Credentials"].clone();
    let (id, token) = (answer["AccessKeyId"].as_str().unwrap(), answer["SessionToken"].as_str().unwrap());
    let s = start();
    assert!(s.kms.signer(id, Some(token)).is_ok(), "it outlives a restart");
    assert!(s.kms.signer("ASIAOTHEROTHEROTHERX", Some(token)).is_err(), "another id");
    assert!(s.kms.signer(id, None).is_err(), "no token");
    for at in (0..token.len()).step_by(7) {
        let mut bytes = token.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert!(s.kms.signer(id, Some(&String::from_utf8(bytes).unwrap())).is_err(), "byte {at}");
    }
    s.ok("iam.DeleteRole", json!({"RoleName": "r"}));
    assert!(s.kms.signer(id, Some(token)).is_err());
    s.ok("iam.CreateRole", make);
    assert!(s.kms.signer(id, Some(token)).is_err(), "another role of the same name");
}

#[test]
fn sessions_carry_tags_a_source_identity_and_an_external_id() {
    let s = service();
    let condition = json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"AWS": ACCOUNT},
        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
        "Condition": {"StringEquals": {"sts:ExternalId": "ext"}}}});
    for role in ["a", "b"] {
        s.ok("iam.CreateRole", json!({"RoleName": role, "AssumeRolePolicyDocument": condition.to_string()}));
    }
    s.ok("iam.PutRolePolicy", json!({"RoleName": "a", "PolicyName": "p", "PolicyDocument": allow("sts:*")}));
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "sts:*", "Resource": "*"}));
    let body = |role: &str| json!({"RoleArn": format!("arn:aws:iam::{ACCOUNT}:role/{role}"), "RoleSessionName": "s1", "ExternalId": "ext"});
    let mut tagged = body("a");
    for (name, value) in [
        ("Tags.member.1.Key", "team"),
        ("Tags.member.1.Value", "x"),
        ("TransitiveTagKeys.member.1", "team"),
        ("SourceIdentity", "carol"),
    ] {
        tagged[name] = value.into();
    }
    let mut without = tagged.clone();
    without["ExternalId"] = "other".into();
    assert_eq!(s.fails_as(&alice, "sts.AssumeRole", without).0, "AccessDenied");
    assert_eq!(
        s.fails_as(&user("bob"), "sts.AssumeRole", tagged.clone()).0,
        "AccessDenied",
        "the account trusts, bob's policies do not"
    );
    let answer = s.ok_as(&alice, "sts.AssumeRole", tagged);
    assert_eq!(answer["SourceIdentity"], "carol");
    let first = session_of(&s, &answer);
    let chained = session_of(&s, &s.ok_as(&first, "sts.AssumeRole", body("b")));
    let session = chained.session.unwrap();
    assert_eq!(
        (session.tags[0].tag_value.as_str(), session.source_identity.as_deref()),
        ("x", Some("carol"))
    );
    let mut longer = body("b");
    longer["DurationSeconds"] = "7200".into();
    assert_eq!(
        s.fails_as(&first, "sts.AssumeRole", longer).0,
        "ValidationError",
        "chained sessions last an hour"
    );
    let mut other = body("b");
    other["SourceIdentity"] = "dave".into();
    assert_eq!(s.fails_as(&first, "sts.AssumeRole", other).0, "AccessDenied");
}

#[test]
fn a_users_session_is_the_user_without_iam() {
    let s = service();
    let key = s.key();
    let alice = s.user_with("alice", &json!({"Effect": "Allow", "Action": "*", "Resource": "*"}));
    let answer = s.ok_as(&alice, "sts.GetSessionToken", json!({"DurationSeconds": "900"}));
    let session = session_of(&s, &answer);
    assert_eq!(session.principal_arn, alice.principal_arn);
    s.ok_as(&session, "Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    assert_eq!(s.fails_as(&session, "iam.ListUsers", json!({})).0, "InvalidClientTokenId");
    assert_eq!(s.fails_as(&session, "sts.GetSessionToken", json!({})).0, "AccessDenied");
    let root = session_of(&s, &s.ok("sts.GetSessionToken", json!({})));
    assert_eq!((root.principal_arn, root.is_root), (root_arn(ACCOUNT), true));
}

#[test]
fn accounts_are_apart() {
    let s = service();
    let other = Caller { principal_arn: root_arn("444455556666"), account: "444455556666".into(), ..root() };
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    s.ok_as(&other, "iam.CreateUser", json!({"UserName": "alice"}));
    s.ok_as(
        &other,
        "iam.PutUserPolicy",
        json!({"UserName": "alice", "PolicyName": "p", "PolicyDocument": allow("kms:*")}),
    );
    let key = s.key();
    assert_eq!(s.fails_as(&user("alice"), "DescribeKey", json!({"KeyId": key})).0, "AccessDeniedException");
    let foreign = Caller {
        principal_arn: "arn:aws:iam::444455556666:user/alice".into(),
        account: "444455556666".into(),
        ..user("alice")
    };
    s.ok_as(&foreign, "CreateKey", json!({}));
    assert_eq!(s.fails_as(&foreign, "DescribeKey", json!({"KeyId": arn(&key)})).0, "AccessDeniedException");
    s.ok_as(&other, "iam.DeleteUserPolicy", json!({"UserName": "alice", "PolicyName": "p"}));
    s.ok_as(&other, "iam.DeleteUser", json!({"UserName": "alice"}));
    s.ok("iam.GetUser", json!({"UserName": "alice"}));
}

#[test]
fn explain_names_what_decides() {
    let s = service();
    let key = s.key();
    s.user_with(
        "alice",
        &json!({"Sid": "enc", "Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*",
        "Condition": {"StringEquals": {"kms:EncryptionContext:a": "1"}}}),
    );
    let ask = |principal: &str, action: &str, context: Value| {
        s.ok(
            "KmsdAdmin.Explain",
            json!({"PrincipalArn": principal, "Action": action, "KeyId": key, "EncryptionContext": context}),
        )
    };
    let alice = "arn:aws:iam::111122223333:user/alice";
    let found = ask(alice, "kms:Encrypt", json!({"a": "1"}));
    assert_eq!(
        (&found["Allowed"], &found["DecidedBy"]),
        (&json!(true), &json!("statement \"enc\" of policy \"p\" of user alice"))
    );
    let found = ask(alice, "encrypt", json!({}));
    assert_eq!(found["Allowed"], false);
    assert!(
        found["Message"]
            .as_str()
            .unwrap()
            .ends_with("because no identity-based policy allows the kms:Encrypt action")
    );
    let id = s.ok("CreateGrant", json!({"KeyId": key, "GranteePrincipal": alice, "Operations": ["Decrypt"]}))
        ["GrantId"]
        .clone();
    assert_eq!(ask(alice, "kms:Decrypt", json!({}))["DecidedBy"], format!("grant {}", id.as_str().unwrap()));
    assert_eq!(ask(&root_arn(ACCOUNT), "kms:Sign", json!({}))["DecidedBy"], "the account root");
    assert_eq!(
        s.fails_as(
            &user("alice"),
            "KmsdAdmin.Explain",
            json!({"PrincipalArn": alice, "Action": "Encrypt", "KeyId": key})
        )
        .0,
        "AccessDeniedException"
    );
    assert_eq!(
        s.fails("KmsdAdmin.Explain", json!({"PrincipalArn": "x", "Action": "Encrypt", "KeyId": key})).0,
        "ValidationException"
    );
    assert_eq!(
        s.fails("KmsdAdmin.Explain", json!({"PrincipalArn": alice, "Action": "Nonsense", "KeyId": key})).0,
        "ValidationException"
    );
}
