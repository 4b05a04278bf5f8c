//! The audit record of each call, and the seeding of keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kmsfs::api::KeyId;
use kmsfs::crypto::{MaterialBytes, RootKey};
use kmsfs::kms::audit::{Audit, AuditError, AuditRecord, EventId};
use kmsfs::kms::root::Root;
use kmsfs::kms::seeding::{SeedKey, Seeded};
use kmsfs::kms::store::{Change, MemoryStore, Row, Store, StoreError, Table};
use kmsfs::kms::{Caller, Clock, Kms, MANAGED_ALIAS, Parts, Settings, SystemClock};
use serde_json::{Value, json};

use crate::harness::{arn, b64, over, root, service, unb64, user};

#[test]
fn every_call_is_recorded_with_its_context_and_without_its_secrets() {
    let s = service();
    let key = s.key();
    let body =
        json!({"KeyId": key, "Plaintext": b64(b"a secret text"), "EncryptionContext": {"volume": "7"}});
    let sealed = s.ok("Encrypt", body);
    let record = s.audit.records().pop().unwrap();
    assert_eq!(record["eventName"], "Encrypt");
    assert_eq!(record["requestParameters"], json!({"keyId": key, "encryptionContext": {"volume": "7"}}));
    let material = &record["additionalEventData"]["keyMaterialId"];
    assert_eq!(*material, s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"]["CurrentKeyMaterialId"]);
    assert_eq!(record["resources"][0]["ARN"], arn(&key));
    assert_eq!((&record["userIdentity"]["type"], &record["peer"]["uid"]), (&json!("Root"), &json!(0)));
    assert_eq!(record["readOnly"], true);
    s.ok(
        "Decrypt",
        json!({"CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": {"volume": "7"}}),
    );
    let made = s.ok("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"}));
    let log = Value::Array(s.audit.records()).to_string();
    for secret in [&b64(b"a secret text"), made["Plaintext"].as_str().unwrap(), "a secret text"] {
        assert!(!log.contains(secret));
    }
    assert!(!log.contains(sealed["CiphertextBlob"].as_str().unwrap()));
}

#[test]
fn denials_failures_and_nonsense_are_recorded_too() {
    let s = service();
    let key = s.key();
    let blob = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone();
    let last = || s.audit.records().pop().unwrap();
    s.fails_as(&user("alice"), "Decrypt", json!({"CiphertextBlob": blob}));
    assert_eq!(
        (&last()["errorCode"], &last()["userIdentity"]["type"]),
        (&json!("AccessDeniedException"), &json!("IAMUser"))
    );
    assert_eq!(last()["resources"][0]["ARN"], arn(&key));
    s.fails("Decrypt", json!({"CiphertextBlob": blob, "EncryptionContext": {"a": "b"}}));
    assert_eq!(last()["errorCode"], "InvalidCiphertextException");
    let reason = "the ciphertext was changed, or the encryption context is another one";
    assert_eq!(last()["additionalEventData"]["reason"], reason, "the operator learns more than the caller");
    s.fails("Encrypt", json!({}));
    assert_eq!(
        (&last()["eventName"], &last()["errorCode"]),
        (&json!("Encrypt"), &json!("ValidationException"))
    );
    s.fails("Other.Nonsense", json!({}));
    assert_eq!(last()["errorCode"], "UnknownOperationException");
    s.ok("DisableKey", json!({"KeyId": key}));
    assert_eq!((&last()["eventName"], &last()["readOnly"]), (&json!("DisableKey"), &json!(false)));
}

/// A log that has no place for further records while `full`, and fails to write them while `broken`.
#[derive(Default)]
struct BadLog {
    full: AtomicBool,
    broken: AtomicBool,
}

impl BadLog {
    fn fails_if(switch: &AtomicBool) -> Result<(), AuditError> {
        if switch.load(Ordering::Relaxed) { Err(AuditError::Io("no space left".into())) } else { Ok(()) }
    }
}

impl Audit for BadLog {
    fn reserve(&self) -> Result<(), AuditError> {
        Self::fails_if(&self.full)
    }

    fn record(&self, _: &AuditRecord<'_>) -> Result<EventId, AuditError> {
        Self::fails_if(&self.broken).map(|()| EventId::random())
    }
}

fn over_bad_log() -> (Kms, Arc<BadLog>, Arc<MemoryStore>) {
    let (store, log) = (Arc::new(MemoryStore::new()), Arc::new(BadLog::default()));
    let parts = Parts {
        settings: Settings {
            account: "111122223333".into(),
            region: "local".into(),
            further_regions: Vec::new(),
            settle_millis: 0,
            takes_unknown_principals: false,
        },
        root: Root::open(RootKey::random(), &*store).unwrap(),
        store: store.clone(),
        audit: log.clone(),
        clock: Arc::new(SystemClock),
    };
    (Kms::open(parts).unwrap(), log, store)
}

fn refused(kms: &Kms, target: &str, body: &[u8]) {
    let reply = kms.handle(&root(), target, body);
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status, &body["__type"]), (500, &json!("KMSInternalException")));
    assert!(body.get("Plaintext").is_none());
}

#[test]
fn a_call_that_cannot_be_recorded_tells_nothing() {
    let (kms, log, _) = over_bad_log();
    log.broken.store(true, Ordering::Relaxed);
    refused(&kms, "TrentService.GenerateRandom", br#"{"NumberOfBytes":16}"#);
}

#[test]
fn nothing_changes_while_the_log_has_no_place_for_the_record() {
    let (kms, log, store) = over_bad_log();
    log.full.store(true, Ordering::Relaxed);
    refused(&kms, "TrentService.CreateKey", b"{}");
    assert!(store.load(Table::Key).unwrap().is_empty());
    let id = KeyId::parse("1234abcd-12ab-34cd-56ef-1234567890ab").unwrap();
    let seed = || SeedKey { id: Some(id), ..SeedKey::default() };
    assert!(kms.seed_key(seed()).is_err());
    assert!(store.load(Table::Key).unwrap().is_empty());
    log.full.store(false, Ordering::Relaxed);
    kms.seed_key(seed()).unwrap();
    let body = json!({"KeyId": id.to_string(), "PendingWindowInDays": 7}).to_string();
    assert_eq!(kms.handle(&root(), "TrentService.ScheduleKeyDeletion", body.as_bytes()).status, 200);
    log.full.store(true, Ordering::Relaxed);
    let late = SystemClock.now().plus_days(8);
    assert_eq!(kms.run_due(late).failed, 1);
    assert_eq!(store.load(Table::Material).unwrap().len(), 1, "nothing is destroyed unrecorded");
    log.full.store(false, Ordering::Relaxed);
    assert_eq!(kms.run_due(late).deleted, 1);
}

#[test]
fn a_seeded_key_has_the_id_and_the_material_that_were_chosen() {
    let id = KeyId::parse("1234abcd-12ab-34cd-56ef-1234567890ab").unwrap();
    let seed = || SeedKey {
        id: Some(id),
        aliases: vec!["alias/seeded".into()],
        material: Some(MaterialBytes::take(&mut [9; 32])),
        ..SeedKey::default()
    };
    let (one, other) = (service(), service());
    for s in [&one, &other] {
        assert_eq!(s.kms.seed_key(seed()).unwrap(), Seeded::Made(id));
        assert_eq!(s.kms.seed_key(seed()).unwrap(), Seeded::Present(id));
    }
    let sealed = one.ok("Encrypt", json!({"KeyId": "alias/seeded", "Plaintext": b64(b"x")}));
    let opened = other.ok("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(
        (unb64(&opened["Plaintext"]), opened["KeyId"].as_str()),
        (b"x".to_vec(), Some(arn(&id.to_string()).as_str()))
    );
    // Of another home it is another key.
    let elsewhere =
        SeedKey { region: Some("eu-west-1".into()), account: Some("444455556666".into()), ..seed() };
    assert_eq!(one.kms.seed_key(elsewhere).unwrap(), Seeded::Made(id));
    let caller = Caller { region: "eu-west-1".into(), ..root() };
    let foreign = "arn:aws:kms:eu-west-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_eq!(one.fails_as(&caller, "DescribeKey", json!({"KeyId": foreign})).0, "AccessDeniedException");
    assert_eq!(one.fails_as(&caller, "DescribeKey", json!({"KeyId": id.to_string()})).0, "NotFoundException");
    let reserved = SeedKey { aliases: vec!["alias/aws/kmsfs".into()], ..SeedKey::default() };
    assert!(one.kms.seed_key(reserved).is_err());
}

#[test]
fn what_the_daemon_does_by_itself_is_recorded_too() {
    let s = service();
    let of_itself =
        |event: &str, arn: &str| {
            let record =
                s.audit.records().into_iter().rev().find(|record| {
                    record["eventName"] == event && record["userIdentity"]["invokedBy"] == "kmsd"
                });
            let record = record.unwrap_or_else(|| panic!("no {event} of kmsd"));
            assert_eq!((&record["resources"][0]["ARN"], &record["readOnly"]), (&json!(arn), &json!(false)));
            assert_eq!(record["userIdentity"]["type"], "AWSService");
        };
    let through = Caller { via_service: Some("kmsfs.local.amazonaws.com".into()), ..user("alice") };
    let made = s.ok_as(&through, "DescribeKey", json!({"KeyId": MANAGED_ALIAS}))["KeyMetadata"].clone();
    of_itself("CreateKey", made["Arn"].as_str().unwrap());
    let id = KeyId::parse("1234abcd-12ab-34cd-56ef-1234567890ab").unwrap();
    s.kms.seed_key(SeedKey { id: Some(id), ..SeedKey::default() }).unwrap();
    of_itself("CreateKey", &arn(&id.to_string()));
    s.ok("EnableKeyRotation", json!({"KeyId": id.to_string(), "RotationPeriodInDays": 90}));
    s.clock.advance_days(90);
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 1);
    of_itself("RotateKey", &arn(&id.to_string()));
    s.ok("ScheduleKeyDeletion", json!({"KeyId": id.to_string(), "PendingWindowInDays": 7}));
    s.clock.advance_days(7);
    assert_eq!(s.kms.run_due(s.clock.now()).deleted, 1);
    of_itself("DeleteKey", &arn(&id.to_string()));
    // Its id is not given out again, not even by the seed that made it.
    let again = SeedKey { id: Some(id), ..SeedKey::default() };
    assert_eq!(s.kms.seed_key(again).unwrap(), Seeded::Destroyed(id));
}

/// A store that panics on the next commit.
#[derive(Default)]
struct Faulty {
    inner: MemoryStore,
    armed: AtomicBool,
}

impl Store for Faulty {
    fn load(&self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.inner.load(table)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        assert!(!self.armed.swap(false, Ordering::Relaxed), "a fault");
        self.inner.commit(changes)
    }
}

#[test]
fn a_fault_in_one_call_is_recorded_as_its_error_and_the_others_go_on() {
    let store = Arc::new(Faulty::default());
    let s = over(store.clone(), RootKey::random());
    store.armed.store(true, Ordering::Relaxed);
    assert_eq!(s.fails("CreateKey", json!({})).0, "KMSInternalException");
    assert_eq!(s.audit.records().pop().unwrap()["errorCode"], "KMSInternalException");
    let key = s.key();
    s.ok("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"}));
}

#[test]
fn calls_from_many_threads_do_not_lose_changes() {
    let s = service();
    let key = s.key();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (s, key) = (&s, &key);
            scope.spawn(move || {
                for number in 0..5 {
                    let tag = json!({"TagKey": format!("{thread}-{number}"), "TagValue": ""});
                    s.ok("TagResource", json!({"KeyId": key, "Tags": [tag]}));
                    let sealed = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
                    s.ok("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
                }
            });
        }
    });
    let tags = s.ok("ListResourceTags", json!({"KeyId": key}));
    assert_eq!(tags["Tags"].as_array().unwrap().len(), 40);
}
