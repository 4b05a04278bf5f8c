//! HMAC keys: what they make, verify and refuse.

use serde_json::{Value, json};

use crate::harness::{Service, arn, b64, failure, service};

const KINDS: [(&str, &str); 4] = [
    ("HMAC_224", "HMAC_SHA_224"),
    ("HMAC_256", "HMAC_SHA_256"),
    ("HMAC_384", "HMAC_SHA_384"),
    ("HMAC_512", "HMAC_SHA_512"),
];

fn mac_key(s: &Service, spec: &str) -> String {
    s.key_with(json!({"KeySpec": spec, "KeyUsage": "GENERATE_VERIFY_MAC"}))
}

fn request(key: &str, algorithm: &str, message: &[u8]) -> Value {
    json!({"KeyId": key, "MacAlgorithm": algorithm, "Message": b64(message)})
}

#[test]
fn a_mac_verifies_under_its_key_algorithm_and_message_only() {
    let s = service();
    for (spec, algorithm) in KINDS {
        let key = mac_key(&s, spec);
        let described = &s.ok("DescribeKey", json!({"KeyId": key}))["KeyMetadata"];
        assert_eq!(described["MacAlgorithms"], json!([algorithm]));
        for absent in ["EncryptionAlgorithms", "SigningAlgorithms", "CurrentKeyMaterialId"] {
            assert_eq!(described[absent], Value::Null, "{spec} {absent}");
        }
        let made = s.ok("GenerateMac", request(&key, algorithm, b"message"));
        assert_eq!((&made["KeyId"], &made["MacAlgorithm"]), (&json!(arn(&key)), &json!(algorithm)));
        assert_eq!(s.ok("GenerateMac", request(&key, algorithm, b"message")), made, "a MAC is no signature");
        let mut verify = request(&key, algorithm, b"message");
        verify["Mac"] = made["Mac"].clone();
        let expected = json!({"KeyId": arn(&key), "MacValid": true, "MacAlgorithm": algorithm});
        assert_eq!(s.ok("VerifyMac", verify.clone()), expected);
        for (member, wrong) in
            [("Message", b64(b"massage")), ("Mac", b64(b"short")), ("KeyId", mac_key(&s, spec))]
        {
            let mut bad = verify.clone();
            bad[member] = wrong.into();
            assert_eq!(s.fails("VerifyMac", bad), failure("KMSInvalidMacException", ""), "{member}");
        }
    }
}

#[test]
fn wrong_keys_algorithms_and_states_are_refused_in_the_words_of_the_service() {
    let s = service();
    let key = mac_key(&s, "HMAC_224");
    let wrong =
        failure("InvalidKeyUsageException", "Algorithm HMAC_SHA_256 is incompatible with key spec HMAC_224.");
    assert_eq!(s.fails("GenerateMac", request(&key, "HMAC_SHA_256", b"m")), wrong);
    let symmetric = s.key();
    let message =
        format!("{} key usage is ENCRYPT_DECRYPT which is not valid for GenerateMac.", arn(&symmetric));
    let found = s.fails("GenerateMac", request(&symmetric, "HMAC_SHA_224", b"m"));
    assert_eq!(found, failure("InvalidKeyUsageException", &message));
    let found = s.fails("GenerateMac", request(&key, "INVALID", b"m"));
    let message = "1 validation error detected: Value 'INVALID' at 'macAlgorithm' failed to satisfy constraint: \
                   Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]";
    assert_eq!(found, failure("ValidationException", message));
    let found = s.fails("GenerateMac", request(&key, "HMAC_SHA_224", &[0; 4097]));
    let message = "1 validation error detected: Value at 'message' failed to satisfy constraint: \
                   Member must have length less than or equal to 4096";
    assert_eq!(found, failure("ValidationException", message));
    s.ok("DisableKey", json!({"KeyId": key}));
    let disabled = failure("DisabledException", &format!("{} is disabled.", arn(&key)));
    assert_eq!(s.fails("GenerateMac", request(&key, "HMAC_SHA_224", b"m")), disabled);
}

#[test]
fn a_dry_run_makes_nothing_and_checks_everything() {
    let s = service();
    let key = mac_key(&s, "HMAC_512");
    let dry = failure(
        "DryRunOperationException",
        "The request would have succeeded, but the DryRun option is set.",
    );
    let mut make = request(&key, "HMAC_SHA_512", b"m");
    let mac = s.ok("GenerateMac", make.clone())["Mac"].clone();
    make["DryRun"] = true.into();
    assert_eq!(s.fails("GenerateMac", make.clone()), dry);
    make["Mac"] = mac;
    assert_eq!(s.fails("VerifyMac", make.clone()), dry);
    make["Message"] = b64(b"other").into();
    assert_eq!(s.fails("VerifyMac", make), failure("KMSInvalidMacException", ""));
}
