//! Key material that customers bring: wrapped, taken, expired, deleted, brought again, rotated to.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use kmsfs::kms::{Caller, Clock};
use serde_json::{Value, json};

use crate::harness::{START, Service, arn, b64, failure, root, service, unb64};

/// The wrapping key and the token of a new import.
pub struct Import {
    token: Value,
    key: OaepPublicEncryptingKey,
    algorithm: String,
}

impl Import {
    pub fn begin(s: &Service, key: &str, algorithm: &str, spec: &str) -> Self {
        Self::begin_as(s, &root(), key, algorithm, spec)
    }

    pub fn begin_as(s: &Service, caller: &Caller, key: &str, algorithm: &str, spec: &str) -> Self {
        let request = json!({"KeyId": key, "WrappingAlgorithm": algorithm, "WrappingKeySpec": spec});
        let answer = s.ok_as(caller, "GetParametersForImport", request);
        assert_eq!(answer["ParametersValidTo"], json!(s.clock.now().plus_days(1)));
        let public = PublicEncryptingKey::from_der(&unb64(&answer["PublicKey"])).unwrap();
        let key = OaepPublicEncryptingKey::new(public).unwrap();
        Self { token: answer["ImportToken"].clone(), key, algorithm: algorithm.to_owned() }
    }

    fn oaep(&self) -> &'static OaepAlgorithm {
        if self.algorithm.ends_with("SHA_1") { &OAEP_SHA1_MGF1SHA1 } else { &OAEP_SHA256_MGF1SHA256 }
    }

    fn direct(&self, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.key.ciphertext_size()];
        self.key.encrypt(self.oaep(), plain, &mut out, None).unwrap().to_vec()
    }

    pub fn wrap(&self, material: &[u8]) -> Vec<u8> {
        if !self.algorithm.starts_with("RSA_AES") {
            return self.direct(material);
        }
        self.wrap_under(&[0x5a; 32], material)
    }

    /// By way of an AES key.
    fn wrap_under(&self, kek: &[u8; 32], material: &[u8]) -> Vec<u8> {
        let mut body = vec![0; material.len().next_multiple_of(8) + 8];
        let wrapped = AesKek::new(&AES_256, kek).unwrap();
        let wrapped = wrapped.wrap_with_padding(material, &mut body).unwrap();
        self.behind(kek, wrapped)
    }

    /// Something that was wrapped under an AES key, behind that key.
    pub fn behind(&self, kek: &[u8], wrapped: &[u8]) -> Vec<u8> {
        [&self.direct(kek)[..], wrapped].concat()
    }

    pub fn request(&self, key: &str, material: &[u8]) -> Value {
        json!({
            "KeyId": key,
            "ImportToken": self.token,
            "EncryptedKeyMaterial": b64(&self.wrap(material)),
            "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
        })
    }
}

fn begin(s: &Service, key: &str) -> Import {
    Import::begin(s, key, "RSAES_OAEP_SHA_256", "RSA_2048")
}

fn external(s: &Service) -> String {
    s.key_with(json!({"Origin": "EXTERNAL"}))
}

fn with(mut request: Value, name: &str, value: Value) -> Value {
    request[name] = value;
    request
}

fn described(s: &Service, key: &str) -> Value {
    s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"].clone()
}

fn imported(s: &Service, material: u8) -> (String, String) {
    let key = external(s);
    let answer = s.ok("ImportKeyMaterial", begin(s, &key).request(&key, &[material; 32]));
    (key, answer["KeyMaterialId"].as_str().unwrap().to_owned())
}

fn seal(s: &Service, key: &str) -> Value {
    s.ok("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone()
}

fn opens(s: &Service, blob: &Value) {
    assert_eq!(unb64(&s.ok("Decrypt", json!({"CiphertextBlob": blob}))["Plaintext"]), b"x");
}

#[test]
fn a_key_for_imported_material_waits_for_it() {
    let s = service();
    let key = external(&s);
    let found = described(&s, &key);
    assert_eq!(
        (&found["KeyState"], &found["Enabled"], &found["Origin"]),
        (&json!("PendingImport"), &json!(false), &json!("EXTERNAL"))
    );
    assert_eq!((found.get("CurrentKeyMaterialId"), found.get("ExpirationModel")), (None, None));
    let pending = failure("KMSInvalidStateException", &format!("{} is pending import.", arn(&key)));
    assert_eq!(s.fails("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")})), pending);
    let import = begin(&s, &key);
    let answer = s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
    assert_eq!(answer["KeyId"], arn(&key));
    let found = described(&s, &key);
    assert_eq!(
        (&found["KeyState"], &found["ExpirationModel"], &found["CurrentKeyMaterialId"]),
        (&json!("Enabled"), &json!("KEY_MATERIAL_DOES_NOT_EXPIRE"), &answer["KeyMaterialId"])
    );
    let blob = seal(&s, &key);
    let gone = s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key}));
    assert_eq!(gone, answer);
    assert_eq!(s.fails("Decrypt", json!({"CiphertextBlob": blob})), pending);
    assert_eq!(described(&s, &key).get("ExpirationModel"), None);
    // Twice is once.
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key}));
    s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
    opens(&s, &blob);
}

#[test]
fn every_wrapping_key_and_algorithm_works() {
    let s = service();
    for (algorithm, spec) in [
        ("RSAES_OAEP_SHA_1", "RSA_2048"),
        ("RSAES_OAEP_SHA_256", "RSA_3072"),
        ("RSAES_OAEP_SHA_256", "RSA_2048"),
    ] {
        let key = external(&s);
        let import = Import::begin(&s, &key, algorithm, spec);
        s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
        opens(&s, &seal(&s, &key));
    }
    let key = external(&s);
    for (algorithm, spec) in
        [("RSAES_PKCS1_V1_5", "RSA_2048"), ("SM2PKE", "SM2"), ("RSA_AES_KEY_WRAP_SHA_256", "RSA_2048")]
    {
        let request = json!({"KeyId": key, "WrappingAlgorithm": algorithm, "WrappingKeySpec": spec});
        assert_eq!(s.fails("GetParametersForImport", request).0, "UnsupportedOperationException");
    }
    let request = json!({
        "KeyId": s.key(), "WrappingAlgorithm": "RSAES_OAEP_SHA_1", "WrappingKeySpec": "RSA_2048",
    });
    let (code, message) = s.fails("GetParametersForImport", request);
    assert_eq!(code, "UnsupportedOperationException");
    assert!(message.ends_with("origin is AWS_KMS which is not valid for this operation."), "{message}");
}

#[test]
fn only_the_same_material_comes_back() {
    let s = service();
    let (key, _) = imported(&s, 7);
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key}));
    let import = begin(&s, &key);
    let incorrect = "IncorrectKeyMaterialException";
    assert_eq!(s.fails("ImportKeyMaterial", import.request(&key, &[8; 32])).0, incorrect);
    assert_eq!(s.fails("ImportKeyMaterial", import.request(&key, &[7; 31])).0, incorrect);
    assert_eq!(described(&s, &key)["KeyState"], "PendingImport");
    let wrong = with(import.request(&key, &[7; 32]), "KeyMaterialId", json!("0".repeat(64)));
    assert_eq!(s.fails("ImportKeyMaterial", wrong).0, incorrect);
    s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
}

#[test]
fn a_token_is_for_one_key_and_one_day() {
    let s = service();
    let (key, other) = (external(&s), external(&s));
    let import = begin(&s, &key);
    let token = failure("InvalidImportTokenException", "");
    assert_eq!(s.fails("ImportKeyMaterial", import.request(&other, &[7; 32])), token);
    let forged = with(import.request(&key, &[7; 32]), "ImportToken", json!(b64(b"token")));
    assert_eq!(s.fails("ImportKeyMaterial", forged), token);
    // Of another import, though for the same key.
    let elsewhere = with(import.request(&key, &[7; 32]), "ImportToken", begin(&s, &key).token);
    assert_eq!(s.fails("ImportKeyMaterial", elsewhere), failure("InvalidCiphertextException", ""));
    let short = with(import.request(&key, &[7; 32]), "EncryptedKeyMaterial", json!(b64(&[1; 255])));
    assert_eq!(
        s.fails("ImportKeyMaterial", short),
        failure("ValidationException", "Invalid encrypted key size.")
    );
    s.clock.advance_days(1);
    let expired = failure("ExpiredImportTokenException", "");
    assert_eq!(s.fails("ImportKeyMaterial", import.request(&key, &[7; 32])), expired);
}

#[test]
fn an_expiry_is_given_or_refused_in_the_words_of_the_service() {
    let s = service();
    let key = external(&s);
    let import = begin(&s, &key);
    let mut bare = import.request(&key, &[7; 32]);
    bare.as_object_mut().unwrap().remove("ExpirationModel");
    let message = "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES";
    assert_eq!(s.fails("ImportKeyMaterial", bare.clone()), failure("ValidationException", message));
    for (request, days) in [(&bare, 366), (&bare, 0), (&import.request(&key, &[7; 32]), 5)] {
        let request = with(request.clone(), "ValidTo", json!(START.plus_days(days)));
        assert_eq!(s.fails("ImportKeyMaterial", request).0, "ValidationException", "{days}");
    }
    assert_eq!(described(&s, &key)["KeyState"], "PendingImport");
    s.ok("ImportKeyMaterial", with(bare, "ValidTo", json!(START.plus_days(365))));
    let found = described(&s, &key);
    assert_eq!(
        (&found["ExpirationModel"], &found["ValidTo"]),
        (&json!("KEY_MATERIAL_EXPIRES"), &json!(START.plus_days(365)))
    );
}

#[test]
fn expired_material_is_gone_at_once_and_from_the_store() {
    let s = service();
    let key = external(&s);
    let mut request = begin(&s, &key).request(&key, &[7; 32]);
    request["ExpirationModel"] = json!("KEY_MATERIAL_EXPIRES");
    s.ok("ImportKeyMaterial", with(request.clone(), "ValidTo", json!(START.plus_days(2))));
    let blob = seal(&s, &key);
    s.clock.advance_days(1);
    opens(&s, &blob);
    s.clock.advance_days(1);
    // No worker ran; the caller finds it gone nevertheless.
    let pending = failure("KMSInvalidStateException", &format!("{} is pending import.", arn(&key)));
    assert_eq!(s.fails("Decrypt", json!({"CiphertextBlob": blob})), pending);
    let names: Vec<Value> = s.audit.records().iter().map(|record| record["eventName"].clone()).collect();
    assert!(names.contains(&json!("DeleteExpiredKeyMaterial")), "{names:?}");
    assert_eq!(s.store.load(kmsfs::kms::store::Table::Material).unwrap().len(), 0);
    // What nobody asks for is the worker's.
    let other = external(&s);
    let mut request = begin(&s, &other).request(&other, &[7; 32]);
    request["ExpirationModel"] = json!("KEY_MATERIAL_EXPIRES");
    s.ok("ImportKeyMaterial", with(request, "ValidTo", json!(START.plus_days(3))));
    s.clock.advance_days(1);
    assert_eq!(s.kms.run_due(s.clock.now()).expired, 1);
    assert_eq!(s.store.load(kmsfs::kms::store::Table::Material).unwrap().len(), 0);
}

#[test]
fn new_material_waits_until_the_key_is_rotated_to_it() {
    let s = service();
    let (key, first) = imported(&s, 1);
    let old = seal(&s, &key);
    let nothing = failure(
        "KMSInvalidStateException",
        &format!("No available key material pending rotation for the key: {}.", arn(&key)),
    );
    assert_eq!(s.fails("RotateKeyOnDemand", json!({"KeyId": key})), nothing);
    let import = begin(&s, &key);
    let new = with(import.request(&key, &[2; 32]), "ImportType", json!("NEW_KEY_MATERIAL"));
    let new = with(new, "KeyMaterialDescription", json!("of March"));
    let second = s.ok("ImportKeyMaterial", new.clone())["KeyMaterialId"].as_str().unwrap().to_owned();
    assert_eq!(described(&s, &key)["CurrentKeyMaterialId"], first);
    assert_eq!(s.fails("ImportKeyMaterial", new.clone()).0, "IncorrectKeyMaterialException");
    let third = with(import.request(&key, &[3; 32]), "ImportType", json!("NEW_KEY_MATERIAL"));
    let (code, message) = s.fails("ImportKeyMaterial", third.clone());
    assert_eq!(code, "KMSInvalidStateException");
    assert!(
        message.ends_with(&format!("because another key material (id: {second}) is pending rotation.")),
        "{message}"
    );
    let listed = |include: &str| {
        s.ok("ListKeyRotations", json!({"KeyId": key, "IncludeKeyMaterial": include}))["Rotations"].clone()
    };
    assert_eq!(listed("ROTATIONS_ONLY"), json!([]));
    let entry = |id: &str, state: &str| {
        json!({
            "KeyId": arn(&key), "KeyMaterialId": id, "ImportState": "IMPORTED", "KeyMaterialState": state,
            "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
        })
    };
    let waiting = with(entry(&second, "PENDING_ROTATION"), "KeyMaterialDescription", json!("of March"));
    assert_eq!(listed("ALL_KEY_MATERIAL"), json!([entry(&first, "CURRENT"), waiting]));
    assert_eq!(s.ok("RotateKeyOnDemand", json!({"KeyId": key})), json!({"KeyId": arn(&key)}));
    assert_eq!(described(&s, &key)["CurrentKeyMaterialId"], second);
    assert_eq!(listed("ROTATIONS_ONLY")[0]["RotationType"], "ON_DEMAND");
    let newer = seal(&s, &key);
    opens(&s, &old);
    opens(&s, &newer);
    // Old material that is away stops the key whole.
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key, "KeyMaterialId": first}));
    assert_eq!(s.fails("Decrypt", json!({"CiphertextBlob": newer})).0, "KMSInvalidStateException");
    assert_eq!(listed("ALL_KEY_MATERIAL")[0]["ImportState"], "PENDING_IMPORT");
    s.ok("ImportKeyMaterial", import.request(&key, &[1; 32]));
    opens(&s, &old);
    assert_eq!(s.fails("RotateKeyOnDemand", json!({"KeyId": key})), nothing);
}

#[test]
fn material_that_waits_can_be_taken_back_without_harm() {
    let s = service();
    let (key, _) = imported(&s, 1);
    let import = begin(&s, &key);
    let new = |byte: u8| with(import.request(&key, &[byte; 32]), "ImportType", json!("NEW_KEY_MATERIAL"));
    let waiting = s.ok("ImportKeyMaterial", new(2))["KeyMaterialId"].clone();
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key, "KeyMaterialId": waiting}));
    assert_eq!(described(&s, &key)["KeyState"], "Enabled");
    s.ok("ImportKeyMaterial", new(3));
    s.ok("RotateKeyOnDemand", json!({"KeyId": key}));
    let unknown = json!({"KeyId": key, "KeyMaterialId": waiting});
    assert_eq!(s.fails("DeleteImportedKeyMaterial", unknown).0, "NotFoundException");
    let both = with(new(4), "KeyMaterialId", waiting);
    assert_eq!(s.fails("ImportKeyMaterial", both).0, "ValidationException");
}

#[test]
fn a_key_whose_deletion_is_cancelled_wants_its_material_back() {
    let s = service();
    let (key, _) = imported(&s, 7);
    let import = begin(&s, &key);
    s.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
    let pending = failure("KMSInvalidStateException", &format!("{} is pending deletion.", arn(&key)));
    assert_eq!(s.fails("ImportKeyMaterial", import.request(&key, &[7; 32])), pending);
    s.ok("DeleteImportedKeyMaterial", json!({"KeyId": key}));
    assert_eq!(described(&s, &key)["KeyState"], "PendingDeletion");
    s.ok("CancelKeyDeletion", json!({"KeyId": key}));
    assert_eq!(described(&s, &key)["KeyState"], "PendingImport");
    s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
    s.ok("DisableKey", json!({"KeyId": key}));
    s.ok("ImportKeyMaterial", import.request(&key, &[7; 32]));
    assert_eq!(described(&s, &key)["KeyState"], "Disabled");
}

#[test]
fn imported_material_does_not_rotate_by_itself() {
    let s = service();
    let (key, _) = imported(&s, 7);
    for operation in ["EnableKeyRotation", "DisableKeyRotation"] {
        let (code, message) = s.fails(operation, json!({"KeyId": key}));
        assert_eq!(code, "UnsupportedOperationException");
        assert!(message.contains("origin is EXTERNAL"), "{message}");
    }
    let status = s.ok("GetKeyRotationStatus", json!({"KeyId": key}));
    assert_eq!(status, json!({"KeyId": arn(&key), "KeyRotationEnabled": false}));
}
