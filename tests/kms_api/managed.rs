//! The key that the filesystem manages.

use kmsfs::kms::{Caller, Clock, MANAGED_ALIAS};
use serde_json::json;

use crate::harness::{START, b64, root, service, user};

fn through_kmsfs(caller: Caller) -> Caller {
    Caller { via_service: Some("kmsfs.local.amazonaws.com".into()), ..caller }
}

#[test]
fn the_managed_key_is_made_when_the_service_first_names_it() {
    let s = service();
    let describe = json!({"KeyId": MANAGED_ALIAS});
    assert_eq!(s.fails("DescribeKey", describe.clone()).0, "NotFoundException", "nobody else makes it");
    let other = Caller { via_service: Some("s3.local.amazonaws.com".into()), ..root() };
    assert_eq!(s.fails_as(&other, "DescribeKey", describe.clone()).0, "NotFoundException");
    let alice = through_kmsfs(user("alice"));
    let made = s.ok_as(&alice, "GenerateDataKey", json!({"KeyId": MANAGED_ALIAS, "KeySpec": "AES_256"}));
    let metadata = s.ok_as(&alice, "DescribeKey", describe)["KeyMetadata"].clone();
    assert_eq!((&metadata["Arn"], &metadata["KeyManager"]), (&made["KeyId"], &json!("AWS")));
    assert_eq!(s.ok("ListKeys", json!({}))["Keys"].as_array().unwrap().len(), 1);
    let aliases = s.ok("ListAliases", json!({}));
    assert_eq!(aliases["Aliases"][0]["AliasName"], MANAGED_ALIAS);
}

#[test]
fn it_is_used_through_the_service_only_and_changed_by_nobody() {
    let s = service();
    let alice = through_kmsfs(user("alice"));
    let sealed = s.ok_as(&alice, "Encrypt", json!({"KeyId": MANAGED_ALIAS, "Plaintext": b64(b"x")}));
    let key = sealed["KeyId"].clone();
    let open = json!({"CiphertextBlob": sealed["CiphertextBlob"]});
    s.ok_as(&alice, "Decrypt", open.clone());
    for caller in [root(), user("alice")] {
        assert_eq!(s.fails_as(&caller, "Decrypt", open.clone()).0, "AccessDeniedException");
        let sealing = json!({"KeyId": key, "Plaintext": b64(b"x")});
        assert_eq!(s.fails_as(&caller, "Encrypt", sealing).0, "AccessDeniedException");
    }
    let policy = s.ok("GetKeyPolicy", json!({"KeyId": key}))["Policy"].clone();
    for (operation, body) in [
        ("PutKeyPolicy", json!({"KeyId": key, "Policy": policy})),
        ("DisableKey", json!({"KeyId": key})),
        ("EnableKey", json!({"KeyId": key})),
        ("ScheduleKeyDeletion", json!({"KeyId": key})),
        ("UpdateKeyDescription", json!({"KeyId": key, "Description": ""})),
        ("TagResource", json!({"KeyId": key, "Tags": []})),
        ("DisableKeyRotation", json!({"KeyId": key})),
        ("RotateKeyOnDemand", json!({"KeyId": key})),
        ("CreateAlias", json!({"AliasName": "alias/mine", "TargetKeyId": key})),
    ] {
        for caller in [root(), through_kmsfs(root())] {
            assert_eq!(
                s.fails_as(&caller, operation, body.clone()).0,
                "AccessDeniedException",
                "{operation}"
            );
        }
    }
}

#[test]
fn it_rotates_every_year() {
    let s = service();
    let service_root = through_kmsfs(root());
    let key = s.ok_as(&service_root, "DescribeKey", json!({"KeyId": MANAGED_ALIAS}))["KeyMetadata"]["KeyId"]
        .clone();
    let status = s.ok("GetKeyRotationStatus", json!({"KeyId": key}));
    assert_eq!(
        (&status["KeyRotationEnabled"], &status["NextRotationDate"]),
        (&json!(true), &json!(START.plus_days(365)))
    );
    s.clock.advance_days(365);
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 1);
}

#[test]
fn the_keys_of_services_of_aws_are_made_when_they_are_described() {
    let s = service();
    let describe = json!({"KeyId": "alias/aws/ebs"});
    for operation in ["Encrypt", "GenerateDataKeyWithoutPlaintext"] {
        let body = json!({"KeyId": "alias/aws/ebs", "Plaintext": b64(b"x"), "KeySpec": "AES_256"});
        assert_eq!(s.fails(operation, body).0, "NotFoundException", "{operation}");
    }
    assert_eq!(s.fails("DescribeKey", json!({"KeyId": "alias/aws/none"})).0, "NotFoundException");
    assert_eq!(s.fails_as(&user("alice"), "DescribeKey", describe.clone()).0, "NotFoundException");
    let metadata = s.ok("DescribeKey", describe.clone())["KeyMetadata"].clone();
    assert_eq!(metadata["KeyManager"], "AWS");
    let described = "Default key that protects my EBS volumes when no other key is defined";
    assert_eq!(metadata["Description"], described);
    assert_eq!(s.ok("DescribeKey", describe)["KeyMetadata"], metadata);
    let aliases = s.ok("ListAliases", json!({}))["Aliases"].clone();
    assert_eq!(
        (&aliases[0]["AliasName"], &aliases[0]["TargetKeyId"]),
        (&json!("alias/aws/ebs"), &metadata["KeyId"])
    );
    // It is the service's, and nobody else's to use or to change.
    let seal = json!({"KeyId": metadata["KeyId"], "Plaintext": b64(b"x")});
    assert_eq!(s.fails("Encrypt", seal.clone()).0, "AccessDeniedException");
    let through = |name: &str| Caller { via_service: Some(format!("{name}.local.amazonaws.com")), ..root() };
    s.ok_as(&through("ec2"), "Encrypt", seal.clone());
    assert_eq!(s.fails_as(&through("s3"), "Encrypt", seal).0, "AccessDeniedException");
    assert_eq!(s.fails("DisableKey", json!({"KeyId": metadata["KeyId"]})).0, "AccessDeniedException");
}
