//! Which of several things that are wrong is told: as the service was seen to tell it.

use serde_json::{Value, json};

use crate::harness::{Service, arn, b64, failure, service};
use crate::imports::Import;

/// A request of each operation that uses keys, with an algorithm that suits or not.
fn request(operation: &str, key: &str, algorithm: &str) -> Value {
    let blob = b64(&[0; 64]);
    match operation {
        "Sign" => json!({"KeyId": key, "Message": b64(b"m"), "SigningAlgorithm": algorithm}),
        "Verify" => {
            json!({"KeyId": key, "Message": b64(b"m"), "SigningAlgorithm": algorithm, "Signature": blob})
        }
        "GenerateMac" => json!({"KeyId": key, "Message": b64(b"m"), "MacAlgorithm": algorithm}),
        "VerifyMac" => json!({"KeyId": key, "Message": b64(b"m"), "MacAlgorithm": algorithm, "Mac": blob}),
        "Encrypt" => json!({"KeyId": key, "Plaintext": b64(b"m"), "EncryptionAlgorithm": algorithm}),
        "Decrypt" => json!({"KeyId": key, "CiphertextBlob": blob, "EncryptionAlgorithm": algorithm}),
        "GenerateDataKey" | "GenerateDataKeyWithoutPlaintext" => json!({"KeyId": key, "KeySpec": "AES_256"}),
        "GenerateDataKeyPair" => json!({"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}),
        _ => json!({"KeyId": key}),
    }
}

fn key(s: &Service, spec: &str, usage: &str) -> String {
    s.key_with(json!({"KeySpec": spec, "KeyUsage": usage}))
}

const RSA_CRYPT: (&str, &str) = ("RSA_2048", "ENCRYPT_DECRYPT");
const CURVE: (&str, &str) = ("ECC_NIST_P256", "SIGN_VERIFY");
const MAC: (&str, &str) = ("HMAC_256", "GENERATE_VERIFY_MAC");
const SYMMETRIC: (&str, &str) = ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT");

#[test]
fn the_state_is_told_before_the_algorithm_and_after_the_usage() {
    let s = service();
    for ((spec, usage), operation, algorithm) in [
        (CURVE, "Sign", "ECDSA_SHA_256"),
        (CURVE, "Sign", "ECDSA_SHA_384"),
        (CURVE, "Verify", "RSASSA_PSS_SHA_256"),
        (MAC, "GenerateMac", "HMAC_SHA_512"),
        (MAC, "VerifyMac", "HMAC_SHA_256"),
        (SYMMETRIC, "Encrypt", "RSAES_OAEP_SHA_256"),
        (RSA_CRYPT, "Decrypt", "RSAES_OAEP_SHA_256"),
        (RSA_CRYPT, "GenerateDataKey", ""),
        (RSA_CRYPT, "GenerateDataKeyPair", ""),
        (MAC, "EnableKeyRotation", ""),
        (MAC, "DisableKeyRotation", ""),
        (MAC, "RotateKeyOnDemand", ""),
        (SYMMETRIC, "GetPublicKey", ""),
    ] {
        let key = key(&s, spec, usage);
        s.ok("DisableKey", json!({"KeyId": key}));
        let disabled = failure("DisabledException", &format!("{} is disabled.", arn(&key)));
        assert_eq!(
            s.fails(operation, request(operation, &key, algorithm)),
            disabled,
            "{operation} {algorithm}"
        );
        s.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
        let pending = failure("KMSInvalidStateException", &format!("{} is pending deletion.", arn(&key)));
        assert_eq!(
            s.fails(operation, request(operation, &key, algorithm)),
            pending,
            "{operation} {algorithm}"
        );
    }
    for ((spec, usage), operation, algorithm) in [
        (MAC, "Sign", "RSASSA_PSS_SHA_256"),
        (CURVE, "Encrypt", "SYMMETRIC_DEFAULT"),
        (CURVE, "GenerateDataKey", ""),
    ] {
        let key = key(&s, spec, usage);
        s.ok("DisableKey", json!({"KeyId": key}));
        let message = format!("{} key usage is {usage} which is not valid for {operation}.", arn(&key));
        let found = s.fails(operation, request(operation, &key, algorithm));
        assert_eq!(found, failure("InvalidKeyUsageException", &message));
    }
}

#[test]
fn the_kind_of_key_is_told_before_the_digest_is_measured() {
    let s = service();
    let key = key(&s, CURVE.0, CURVE.1);
    let body = |algorithm: &str| json!({"KeyId": key, "Message": b64(&[0; 20]), "MessageType": "DIGEST", "SigningAlgorithm": algorithm});
    let message = "Algorithm ECDSA_SHA_384 is incompatible with key spec ECC_NIST_P256.";
    assert_eq!(s.fails("Sign", body("ECDSA_SHA_384")), failure("InvalidKeyUsageException", message));
    let message = "Digest is invalid length for algorithm ECDSA_SHA_256.";
    assert_eq!(s.fails("Sign", body("ECDSA_SHA_256")), failure("ValidationException", message));
}

#[test]
fn how_long_a_data_key_shall_be_is_asked_before_anything_of_the_key() {
    let s = service();
    let key = key(&s, MAC.0, MAC.1);
    s.ok("DisableKey", json!({"KeyId": key}));
    for body in [json!({"KeyId": key}), json!({"KeyId": key, "KeySpec": "AES_256", "NumberOfBytes": 32})] {
        let message = "Please specify either number of bytes or key spec.";
        assert_eq!(s.fails("GenerateDataKey", body), failure("ValidationException", message));
    }
}

#[test]
fn a_ciphertext_that_is_none_is_told_before_the_kind_of_key() {
    let s = service();
    let key = key(&s, RSA_CRYPT.0, RSA_CRYPT.1);
    let body = json!({"KeyId": key, "Plaintext": b64(b"m"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"});
    let sealed = s.ok("Encrypt", body)["CiphertextBlob"].clone();
    let found = s.fails("Decrypt", json!({"KeyId": key, "CiphertextBlob": sealed}));
    assert_eq!(found, failure("InvalidCiphertextException", ""));
    let found = s.fails("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"m")}));
    let message = "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.";
    assert_eq!(found, failure("InvalidKeyUsageException", message));
    // One of another key is of another key, whatever this one is for.
    let other = s.ok("Encrypt", json!({"KeyId": s.key(), "Plaintext": b64(b"m")}))["CiphertextBlob"].clone();
    let message = "The key ID in the request does not identify a CMK that can perform this operation.";
    let found = s.fails("Decrypt", json!({"KeyId": key, "CiphertextBlob": other}));
    assert_eq!(found, failure("IncorrectKeyException", message));
}

#[test]
fn a_key_that_has_no_material_says_so_whatever_is_asked_of_it() {
    let s = service();
    let key = s.key_with(json!({"Origin": "EXTERNAL"}));
    let pending = failure("KMSInvalidStateException", &format!("{} is pending import.", arn(&key)));
    for operation in
        ["Encrypt", "GenerateDataKey", "EnableKey", "DisableKey", "RotateKeyOnDemand", "GetPublicKey"]
    {
        let found = s.fails(operation, request(operation, &key, "SYMMETRIC_DEFAULT"));
        assert_eq!(found, pending, "{operation}");
    }
    let blob = s.ok("Encrypt", json!({"KeyId": s.key(), "Plaintext": b64(b"m")}))["CiphertextBlob"].clone();
    let found = s.fails("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": key}));
    assert_eq!(found, pending);
}

#[test]
fn the_kind_of_key_is_told_before_the_material_that_waits() {
    let s = service();
    let key = s.key_with(json!({"Origin": "EXTERNAL", "KeySpec": MAC.0, "KeyUsage": MAC.1}));
    let import = Import::begin(&s, &key, "RSAES_OAEP_SHA_256", "RSA_2048").request(&key, &[7; 32]);
    s.ok("ImportKeyMaterial", import);
    assert_eq!(
        s.fails("RotateKeyOnDemand", json!({"KeyId": key})),
        failure("UnsupportedOperationException", "")
    );
}

#[test]
fn a_key_that_is_not_there_is_named_as_it_was_asked_for() {
    let s = service();
    for (asked, message) in [
        ("foo".to_owned(), "Invalid keyId 'foo'".to_owned()),
        (arn("foo"), "Invalid keyId foo".to_owned()),
        (
            "786CA7CD-B74B-42B3-B887-902AD7AB6429".to_owned(),
            format!("Key '{}' does not exist", arn("786CA7CD-B74B-42B3-B887-902AD7AB6429")),
        ),
        ("mrk-1234".to_owned(), "Invalid keyId 'mrk-1234'".to_owned()),
        (
            "alias/aws/none".to_owned(),
            "Alias arn:aws:kms:local:111122223333:alias/aws/none is not found.".to_owned(),
        ),
    ] {
        let found = s.fails("DescribeKey", json!({"KeyId": asked}));
        assert_eq!(found, failure("NotFoundException", &message));
    }
}
