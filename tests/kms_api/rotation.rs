//! Rotation: by itself and on demand; older material still decrypts.

use kmsfs::kms::Clock;
use serde_json::{Value, json};

use crate::harness::{START, Service, arn, b64, failure, service, unb64};

fn seal(s: &Service, key: &str) -> Value {
    let sealed = s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}));
    let material = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"]["CurrentKeyMaterialId"];
    json!({"CiphertextBlob": sealed["CiphertextBlob"], "KeyMaterialId": material})
}

fn opens(s: &Service, sealed: &Value) {
    let opened = s.ok("Decrypt", json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
    assert_eq!(unb64(&opened["Plaintext"]), b"x");
    assert_eq!(opened["KeyMaterialId"], sealed["KeyMaterialId"]);
}

#[test]
fn rotation_on_demand_gives_new_material_and_keeps_the_old() {
    let s = service();
    let key = s.key();
    let old = seal(&s, &key);
    s.clock.advance_days(1);
    assert_eq!(s.ok("RotateKeyOnDemand", json!({"KeyId": key})), json!({"KeyId": arn(&key)}));
    let new = seal(&s, &key);
    assert_ne!(old["KeyMaterialId"], new["KeyMaterialId"]);
    assert_eq!(
        s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"]["CurrentKeyMaterialId"],
        new["KeyMaterialId"]
    );
    opens(&s, &old);
    opens(&s, &new);
    let rotations = s.ok("ListKeyRotations", json!({"KeyId": key}));
    let expected = json!([{
        "KeyId": arn(&key),
        "KeyMaterialId": new["KeyMaterialId"],
        "KeyMaterialState": "CURRENT",
        "RotationDate": START.plus_days(1),
        "RotationType": "ON_DEMAND",
    }]);
    assert_eq!((&rotations["Rotations"], &rotations["Truncated"]), (&expected, &json!(false)));
    let all = s.ok("ListKeyRotations", json!({"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"}));
    assert_eq!(all["Rotations"].as_array().unwrap().len(), 2);
    let first = &all["Rotations"][0];
    assert_eq!(
        (&first["KeyMaterialId"], &first["KeyMaterialState"]),
        (&old["KeyMaterialId"], &json!("NON_CURRENT"))
    );
    assert_eq!((first.get("RotationDate"), first.get("RotationType")), (None, None));
}

#[test]
fn a_key_rotates_on_demand_25_times() {
    let s = service();
    let key = s.key();
    let first = seal(&s, &key);
    for _ in 0..25 {
        s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    }
    assert_eq!(s.fails("RotateKeyOnDemand", json!({"KeyId": key})).0, "LimitExceededException");
    opens(&s, &first);
    let page = s.ok("ListKeyRotations", json!({"KeyId": key, "Limit": 20}));
    assert_eq!((page["Rotations"].as_array().unwrap().len(), &page["Truncated"]), (20, &json!(true)));
    let rest = s.ok("ListKeyRotations", json!({"KeyId": key, "Limit": 20, "Marker": page["NextMarker"]}));
    assert_eq!((rest["Rotations"].as_array().unwrap().len(), &rest["Truncated"]), (5, &json!(false)));
}

#[test]
fn automatic_rotation_is_off_until_it_is_turned_on() {
    let s = service();
    let key = s.key();
    let status = || s.ok("GetKeyRotationStatus", json!({"KeyId": key}));
    assert_eq!(status(), json!({"KeyRotationEnabled": false, "KeyId": arn(&key)}));
    s.ok("EnableKeyRotation", json!({"KeyId": key}));
    let expected = |days| {
        json!({
            "KeyRotationEnabled": true,
            "KeyId": arn(&key),
            "RotationPeriodInDays": days,
            "NextRotationDate": START.plus_days(days),
        })
    };
    assert_eq!(status(), expected(365));
    s.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90}));
    assert_eq!(status(), expected(90));
    s.ok("DisableKeyRotation", json!({"KeyId": key}));
    assert_eq!(status()["KeyRotationEnabled"], false);
}

#[test]
fn what_is_due_rotates_once_and_is_recorded() {
    let s = service();
    let key = s.key();
    s.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90}));
    let old = seal(&s, &key);
    s.clock.advance_days(89);
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 0);
    s.clock.advance_days(1);
    let due = s.kms.run_due(s.clock.now());
    assert_eq!((due.rotated, due.next), (1, Some(START.plus_days(180))));
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 0);
    let record = s.audit.records().pop().unwrap();
    assert_eq!(
        (&record["eventName"], &record["resources"][0]["ARN"]),
        (&json!("RotateKey"), &json!(arn(&key)))
    );
    let rotations = s.ok("ListKeyRotations", json!({"KeyId": key}));
    assert_eq!(rotations["Rotations"][0]["RotationType"], "AUTOMATIC");
    assert_ne!(seal(&s, &key)["KeyMaterialId"], old["KeyMaterialId"]);
    opens(&s, &old);
    // On demand does not move the schedule.
    s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    let next = s.ok("GetKeyRotationStatus", json!({"KeyId": key}))["NextRotationDate"].clone();
    assert_eq!(next, json!(START.plus_days(180)));
}

#[test]
fn a_disabled_key_rotates_only_when_it_is_enabled_again() {
    let s = service();
    let key = s.key();
    s.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90}));
    s.ok("DisableKey", json!({"KeyId": key}));
    s.clock.advance_days(100);
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 0);
    s.ok("EnableKey", json!({"KeyId": key}));
    assert_eq!(s.kms.run_due(s.clock.now()).rotated, 1);
}

#[test]
fn the_period_has_its_bounds() {
    let s = service();
    let key = s.key();
    for days in [90, 2560] {
        s.ok("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": days}));
    }
    let found = s.fails("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 2561}));
    let message = "1 validation error detected: Value '2561' at 'rotationPeriodInDays' failed to satisfy constraint: \
                   Member must have value less than or equal to 2560";
    assert_eq!(found, failure("ValidationException", message));
}
