//! Keys by the command line, against the real daemon.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;

use programs::{Desk, run};

#[test]
fn a_key_goes_through_its_life() {
    let desk = Desk::new("key-life");
    let arn = desk.key("life");
    assert!(arn.starts_with("arn:aws:kms:"), "{arn}");
    let state = |expected: &str| {
        let described = desk.kmsfs("key describe alias/life --json").json();
        assert_eq!(described["KeyMetadata"]["KeyState"], expected);
        described["KeyMetadata"]["CurrentKeyMaterialId"].as_str().unwrap_or_default().to_owned()
    };
    let first = state("Enabled");
    desk.kmsfs("key rotate alias/life").ok();
    assert_ne!(state("Enabled"), first);
    desk.kmsfs("key disable alias/life").ok();
    state("Disabled");
    desk.kmsfs("key enable alias/life").ok();
    desk.kmsfs("key delete alias/life --days 7").ok();
    state("PendingDeletion");
    desk.kmsfs("key cancel-deletion alias/life").ok();
    state("Disabled");
    let listed = desk.kmsfs("key list").ok();
    assert!(listed.contains("alias/life") && listed.contains("Disabled"), "{listed}");
    assert!(desk.kmsfs("key rotation list alias/life").ok().contains("ON_DEMAND"));
}

#[test]
fn why_names_the_statement_that_decides() {
    let desk = Desk::new("key-why");
    desk.key("a");
    let root = "arn:aws:iam::000000000000:root";
    let told = desk.kmsfs(&format!("key why --principal {root} --action kms:Decrypt --key alias/a")).ok();
    assert!(told.contains("allowed") && told.contains("the account root"), "{told}");
    let alice = "arn:aws:iam::000000000000:user/alice";
    let line = format!("key why --principal {alice} --action Decrypt --key alias/a --context a=b --json");
    let told = desk.kmsfs(&line).json();
    assert_eq!(told["Allowed"], false, "{told}");
    assert!(told["Message"].as_str().unwrap().contains("because no identity-based policy allows"), "{told}");
    desk.kmsfs("key why --principal x --action Decrypt --key alias/a").fails(1, "no ARN");
}

#[test]
fn what_is_encrypted_is_decrypted_under_its_context_only() {
    let desk = Desk::new("key-bytes");
    desk.key("a");
    desk.key("b");
    fs::write(desk.path("plain"), b"some \0 bytes").unwrap();
    desk.kmsfs("key encrypt alias/a --in {plain} --out {blob} --context app=test").ok();
    desk.kmsfs("key decrypt --in {blob} --out {again} --context app=test").ok();
    assert_eq!(fs::read(desk.path("again")).unwrap(), b"some \0 bytes");
    desk.kmsfs("key decrypt --in {blob} --context app=other").fails(1, "InvalidCiphertext");
    desk.kmsfs("key re-encrypt alias/b --in {blob} --out {moved} --context app=test").ok();
    desk.kmsfs("key decrypt --key alias/a --in {moved} --context app=test").fails(1, "IncorrectKey");
    assert_eq!(
        desk.kmsfs("key decrypt --key alias/b --in {moved} --context app=test").ok().as_bytes(),
        b"some \0 bytes"
    );
    assert!(!desk.kmsfs("key data-key alias/a").ok().contains("plain"));
    assert!(desk.kmsfs("key random 16").ok().trim().len() == 24);
}

#[test]
fn aliases_tags_policies_and_descriptions_change() {
    let desk = Desk::new("key-more");
    desk.key("one");
    let two = desk.key("two");
    desk.kmsfs("key alias create alias/more alias/one").ok();
    desk.kmsfs("key alias update alias/more alias/two").ok();
    assert!(desk.kmsfs("key describe alias/more").ok().contains(&two));
    assert!(desk.kmsfs("key alias list alias/two").ok().contains("alias/more"));
    desk.kmsfs("key alias delete alias/more").ok();
    desk.kmsfs("key describe alias/more").fails(1, "NotFoundException");
    desk.kmsfs("key tags add alias/one team=ops tier=1").ok();
    desk.kmsfs("key tags remove alias/one tier").ok();
    let tags = desk.kmsfs("key tags list alias/one --json").json();
    assert_eq!(tags["Tags"], serde_json::json!([{ "TagKey": "team", "TagValue": "ops" }]));
    run(&mut desk.command(&["key", "description", "alias/one", "for tests"])).ok();
    assert!(desk.kmsfs("key describe alias/one").ok().contains("for tests"));
    let policy = desk.kmsfs("key policy get alias/one").ok();
    assert!(policy.contains("kms:*"));
    fs::write(desk.path("policy"), &policy).unwrap();
    desk.kmsfs("key policy put alias/one {policy}").ok();
    fs::write(desk.path("policy"), "{").unwrap();
    desk.kmsfs("key policy put alias/one {policy}").fails(1, "MalformedPolicyDocument");
    desk.kmsfs("key rotation enable alias/one --days 90").ok();
    assert!(desk.kmsfs("key rotation status alias/one").ok().contains("90"));
    desk.kmsfs("key rotation disable alias/one").ok();
}

#[test]
fn a_key_whose_alias_is_taken_is_not_made() {
    let desk = Desk::new("key-alias-taken");
    let first = desk.key("one");
    let keys = || desk.kmsfs("key list --json").json()["Keys"].as_array().unwrap().len();
    let before = keys();
    let said = desk.kmsfs("key create --alias alias/one");
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains(&first) && said.err.contains("no key was made"), "{said:?}");
    assert_eq!(keys(), before);
    // What only the making of the alias tells leaves a key that goes by itself.
    let said = desk.kmsfs("key create --alias alias/aws/mine");
    assert!(said.code == 1 && said.err.contains("is destroyed in 7 days"), "{said:?}");
    assert_eq!(keys(), before + 1);
    let listed = desk.kmsfs("key list").ok();
    assert_eq!(listed.matches("PendingDeletion").count(), 1, "{listed}");
}

#[test]
fn refusals_of_the_service_come_through_in_one_line() {
    let desk = Desk::new("key-refused");
    for line in ["key describe alias/none", "key rotate alias/none", "key create --alias nonsense"] {
        let said = desk.kmsfs(line);
        assert_eq!((said.code, said.err.lines().count()), (1, 1), "{line}: {said:?}");
    }
    desk.stop_kmsd();
    desk.kmsfs("key list").fails(5, "is kmsd running?");
}
