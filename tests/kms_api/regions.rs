//! One daemon serves many accounts and regions, which know nothing of each other.

use std::sync::Arc;

use kmsfs::crypto::{RootKey, SealKey};
use kmsfs::kms::store::{Change, MemoryStore, Store, Table};
use kmsfs::kms::{Caller, root_arn};
use serde_json::{Value, json};

use super::harness::{ACCOUNT, alias_arn, arn, b64, failure, over, root, service};

const OTHER_ACCOUNT: &str = "444455556666";
const OTHER_REGION: &str = "eu-west-1";

fn root_in(region: &str) -> Caller {
    Caller { region: region.into(), ..root() }
}

fn root_of(account: &str) -> Caller {
    Caller { principal_arn: root_arn(account), account: account.into(), ..root() }
}

fn sealed_root() -> (SealKey, [u8; 48]) {
    let sealing = SealKey::from_key_file(&[7; 32], &[0; 16]);
    let sealed = sealing.seal(&[0; 12], b"", &RootKey::random());
    (sealing, sealed)
}

fn arn_in(region: &str, account: &str, id: &str) -> String {
    format!("arn:aws:kms:{region}:{account}:key/{id}")
}

#[test]
fn a_key_lives_in_the_region_in_which_it_was_made() {
    let service = service();
    let there = root_in(OTHER_REGION);
    let made = service.ok_as(&there, "CreateKey", json!({}));
    let id = made["KeyMetadata"]["KeyId"].as_str().unwrap();
    assert_eq!(made["KeyMetadata"]["Arn"], arn_in(OTHER_REGION, ACCOUNT, id));
    let not_here = failure("NotFoundException", &format!("Key '{}' does not exist", arn(id)));
    assert_eq!(service.fails("DescribeKey", json!({"KeyId": id})), not_here);
    let foreign = json!({"KeyId": arn_in(OTHER_REGION, ACCOUNT, id)});
    assert_eq!(service.fails("DescribeKey", foreign), failure("NotFoundException", "Invalid arn eu-west-1"));
    assert_eq!(service.ok("ListKeys", json!({}))["Keys"], json!([]));
    assert_eq!(service.ok_as(&there, "ListKeys", json!({}))["Keys"][0]["KeyId"], id);
    let sealed = service.ok_as(&there, "Encrypt", json!({"KeyId": id, "Plaintext": b64(b"x")}));
    let (code, _) = service.fails("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(code, "AccessDeniedException");
    service.ok_as(&there, "Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
}

#[test]
fn an_alias_names_another_key_in_each_region() {
    let service = service();
    for caller in [root(), root_in(OTHER_REGION)] {
        let made = service.ok_as(&caller, "CreateKey", json!({}));
        let id = made["KeyMetadata"]["KeyId"].as_str().unwrap();
        service.ok_as(&caller, "CreateAlias", json!({"AliasName": "alias/app", "TargetKeyId": id}));
        let found = service.ok_as(&caller, "DescribeKey", json!({"KeyId": "alias/app"}));
        assert_eq!(found["KeyMetadata"]["KeyId"], id);
        let aliases = service.ok_as(&caller, "ListAliases", json!({}));
        assert_eq!(aliases["Aliases"].as_array().unwrap().len(), 1);
        assert_eq!(
            aliases["Aliases"][0]["AliasArn"],
            format!("arn:aws:kms:{}:{ACCOUNT}:alias/app", caller.region)
        );
    }
    service.ok_as(&root_in(OTHER_REGION), "DeleteAlias", json!({"AliasName": "alias/app"}));
    service.ok("DescribeKey", json!({"KeyId": alias_arn("alias/app")}));
    let (code, _) = service.fails_as(&root_in(OTHER_REGION), "DescribeKey", json!({"KeyId": "alias/app"}));
    assert_eq!(code, "NotFoundException");
}

#[test]
fn a_key_of_another_account_is_used_where_its_policy_says_so_and_managed_never() {
    let service = service();
    let other = root_of(OTHER_ACCOUNT);
    let statement = |principal: &str| json!({"Effect": "Allow", "Principal": {"AWS": root_arn(principal)}, "Action": "kms:*", "Resource": "*"});
    let policy =
        json!({"Version": "2012-10-17", "Statement": [statement(ACCOUNT), statement(OTHER_ACCOUNT)]});
    let shared = arn(&service.key_with(json!({"Policy": policy.to_string()})));
    let private = arn(&service.key());
    let sealed = service.ok_as(&other, "Encrypt", json!({"KeyId": shared, "Plaintext": b64(b"x")}));
    let opened = service.ok_as(&other, "Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(opened["KeyId"], shared);
    assert_eq!(service.ok_as(&other, "ListKeys", json!({}))["Keys"], json!([]));
    // What only the account itself may do, and what is not there, are refused in the same words.
    let absent = arn("00000000-0000-4000-8000-000000000000");
    for (operation, key) in [
        ("DisableKey", &shared),
        ("DescribeKey", &private),
        ("DescribeKey", &absent),
        ("PutKeyPolicy", &shared),
    ] {
        let mut request = json!({"KeyId": key});
        if operation == "PutKeyPolicy" {
            request["Policy"] = policy.to_string().into();
        }
        let expected = format!(
            "User: {} is not authorized to perform: kms:{operation} on resource: {key} because the resource does \
             not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly \
             denies access",
            root_arn(OTHER_ACCOUNT)
        );
        let found = service.fails_as(&other, operation, request);
        assert_eq!(found, failure("AccessDeniedException", &expected), "{operation}");
    }
}

#[test]
fn keys_and_aliases_of_every_home_are_there_after_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (sealing, sealed) = sealed_root();
    let key = || sealing.open(&[0; 12], b"", &sealed).unwrap();
    let homes = [root(), root_in(OTHER_REGION), root_of(OTHER_ACCOUNT)];
    let before = over(Arc::clone(&store), key());
    for caller in &homes {
        let made = before.ok_as(caller, "CreateKey", json!({}));
        let alias = json!({"AliasName": "alias/a", "TargetKeyId": made["KeyMetadata"]["KeyId"]});
        before.ok_as(caller, "CreateAlias", alias);
    }
    let show = |service: &super::harness::Service, caller: &Caller| {
        service.ok_as(caller, "DescribeKey", json!({"KeyId": "alias/a"}))
    };
    let after = over(store, key());
    for caller in &homes {
        assert_eq!(show(&before, caller), show(&after, caller));
        let sealed = before.ok_as(caller, "Encrypt", json!({"KeyId": "alias/a", "Plaintext": b64(b"x")}));
        after.ok_as(caller, "Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    }
    assert_ne!(show(&after, &homes[0]), show(&after, &homes[1]));
}

#[test]
fn a_store_from_before_there_were_regions_is_read() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (sealing, sealed) = sealed_root();
    let start = || over(Arc::clone(&store), sealing.open(&[0; 12], b"", &sealed).unwrap());
    let before = start();
    let id = before.key();
    before.ok("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": id}));
    let blob = before.ok("Encrypt", json!({"KeyId": id, "Plaintext": b64(b"x")}));
    for (table, fields) in [(Table::Key, &["region"][..]), (Table::Alias, &["account", "region"])] {
        for row in store.load(table).unwrap() {
            let mut record: Value = serde_json::from_slice(&row.body).unwrap();
            for field in fields {
                assert!(record.as_object_mut().unwrap().remove(*field).is_some());
            }
            let body = record.to_string().into_bytes();
            store.commit(&[Change::Put { table, id: row.id, body }]).unwrap();
        }
    }
    let after = start();
    let of_alias = |service: &super::harness::Service| service.ok("DescribeKey", json!({"KeyId": "alias/a"}));
    assert_eq!(of_alias(&after), of_alias(&before));
    after.ok("Decrypt", json!({"CiphertextBlob": blob["CiphertextBlob"]}));
    after.ok("DisableKey", json!({"KeyId": id}));
    after.ok("DeleteAlias", json!({"AliasName": "alias/a"}));
    assert_eq!(store.load(Table::Key).unwrap().len(), 1);
    assert_eq!(store.load(Table::Alias).unwrap().len(), 0);
}
