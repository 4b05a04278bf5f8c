//! Whom key policies and grants may name.

use serde_json::{Value, json};

use crate::harness::{ACCOUNT, Service, failure, root, root_policy_and, service, strict};

const NOBODY: &str = "Policy contains a statement with one or more invalid principals.";

fn naming(principal: &str) -> String {
    root_policy_and(
        &json!({"Effect": "Deny", "Principal": {"AWS": principal}, "Action": "kms:Sign", "Resource": "*"}),
    )
}

fn arn(resource: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:{resource}")
}

/// What each way to put a policy says to one that names `principal`.
fn refusals(s: &Service, key: &str, principal: &str) -> Vec<Option<(String, String)>> {
    let policy = naming(principal);
    let calls = [
        ("CreateKey", json!({"Policy": policy})),
        ("PutKeyPolicy", json!({"KeyId": key, "Policy": policy})),
        ("PutKeyPolicy", json!({"KeyId": key, "Policy": policy, "BypassPolicyLockoutSafetyCheck": true})),
    ];
    let refusal = |(operation, body): (&str, Value)| {
        let failed = s.call(&root(), operation, &body.to_string()).err()?;
        Some((failed.code, failed.message))
    };
    calls.into_iter().map(refusal).collect()
}

#[test]
fn a_key_policy_names_users_and_roles_that_are_there() {
    let s = strict();
    let key = s.key();
    let trust = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "sts:AssumeRole"}]});
    let role = json!({"RoleName": "worker", "Path": "/team/", "AssumeRolePolicyDocument": trust.to_string()});
    let session = format!("arn:aws:sts::{ACCOUNT}:assumed-role/worker/s1");
    let named = [arn("user/alice"), arn("role/team/worker"), session.clone()];
    for principal in &named {
        let refused = Some(failure("MalformedPolicyDocumentException", NOBODY));
        assert_eq!(refusals(&s, &key, principal), vec![refused; 3], "{principal}");
    }
    let reason = s.audit.records().pop().unwrap()["additionalEventData"]["reason"].clone();
    assert_eq!(reason, format!("the policy names {session}, which is not there"));
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    let made = s.ok("iam.CreateRole", role);
    let id = made["Role"]["RoleId"].as_str().unwrap();
    for principal in named.iter().map(String::as_str).chain([id]) {
        assert_eq!(refusals(&s, &key, principal), vec![None; 3], "{principal}");
    }
    for gone in [arn("role/worker"), arn("user/Alice"), arn("role/alice"), format!("AIDA{}", &id[4..])] {
        assert!(refusals(&s, &key, &gone).iter().all(Option::is_some), "{gone}");
    }
}

#[test]
fn accounts_unix_users_and_those_of_accounts_not_kept_here_may_be_named() {
    let s = strict();
    let key = s.key();
    for principal in [
        "*",
        ACCOUNT,
        &arn("root"),
        &arn("user/unix/uid-1000"),
        "444455556666",
        "arn:aws:iam::444455556666:role/deploy",
        &format!("arn:aws:sts::{ACCOUNT}:federated-user/guest"),
    ] {
        assert_eq!(refusals(&s, &key, principal), vec![None; 3], "{principal}");
    }
}

#[test]
fn a_grant_names_principals_that_are_there() {
    let s = strict();
    let key = s.key();
    let grant = |member: &str, principal: &str| {
        let mut body = json!({"KeyId": key, "GranteePrincipal": arn("root"), "Operations": ["Decrypt"]});
        body[member] = json!(principal);
        s.call(&root(), "CreateGrant", &body.to_string()).err().map(|failed| (failed.code, failed.message))
    };
    let alice = arn("user/alice");
    let refused =
        failure("InvalidArnException", &format!("ARN does not refer to a valid principal: {alice}"));
    for member in ["GranteePrincipal", "RetiringPrincipal"] {
        assert_eq!(grant(member, &alice), Some(refused.clone()), "{member}");
    }
    s.ok("iam.CreateUser", json!({"UserName": "alice"}));
    for member in ["GranteePrincipal", "RetiringPrincipal"] {
        assert_eq!(grant(member, &alice), None, "{member}");
    }
    assert_eq!(grant("GranteePrincipal", &arn("user/unix/uid-7")), None);
}

#[test]
fn a_condition_asks_which_kind_of_multi_region_key_it_is() {
    let s = service();
    let only = |kind: &str| {
        root_policy_and(&json!({"Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*",
            "Condition": {"StringEquals": {"kms:MultiRegionKeyType": kind}}}))
    };
    let key = s.key_with(json!({"MultiRegion": true, "Policy": only("PRIMARY")}));
    let encrypt = |key: &str| {
        let body = json!({"KeyId": key, "Plaintext": "eA=="}).to_string();
        s.call(&root(), "Encrypt", &body).map(|_| ()).map_err(|failed| failed.code)
    };
    let denied = Err("AccessDeniedException".to_owned());
    assert_eq!(encrypt(&key), denied);
    s.ok("PutKeyPolicy", json!({"KeyId": key, "Policy": only("REPLICA")}));
    assert_eq!(encrypt(&key), Ok(()));
    // A key of one region is of neither kind.
    let plain = s.key_with(json!({"Policy": only("PRIMARY")}));
    assert_eq!(encrypt(&plain), Ok(()));
}
