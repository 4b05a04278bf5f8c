//! Answers of the operations on key pairs and HMAC keys, as the daemon writes and a client reads them.

use serde::{Deserialize, Serialize};

use super::response::answers;
use super::{
    Blob, DataKeyPairSpec, EncapsulationAlgorithm, EncryptionAlgorithm, KeyAgreementAlgorithm, KeySpec,
    KeyUsage, MacAlgorithm, Origin, SecretBlob, SigningAlgorithm, Timestamp,
};

answers! {
    /// Answer of `Sign`.
    SignResponse {
        /// ARN of the key.
        key_id: String,
        /// The signature.
        signature: Blob,
        /// How it was made.
        signing_algorithm: SigningAlgorithm,
    }

    /// Answer of `Verify`.
    VerifyResponse {
        /// ARN of the key.
        key_id: String,
        /// True; a signature that is not valid is an error.
        signature_valid: bool,
        /// How it was made.
        signing_algorithm: SigningAlgorithm,
    }

    /// Answer of `GenerateMac`.
    GenerateMacResponse {
        /// The MAC.
        mac: Blob,
        /// How it was made.
        mac_algorithm: MacAlgorithm,
        /// ARN of the key.
        key_id: String,
    }

    /// Answer of `VerifyMac`.
    VerifyMacResponse {
        /// ARN of the key.
        key_id: String,
        /// True; a MAC that is not valid is an error.
        mac_valid: bool,
        /// How it was made.
        mac_algorithm: MacAlgorithm,
    }

    /// Answer of `GetPublicKey`.
    GetPublicKeyResponse {
        /// ARN of the key.
        key_id: String,
        /// SubjectPublicKeyInfo in DER.
        public_key: Blob,
        /// The old name of `key_spec`.
        customer_master_key_spec: KeySpec,
        /// What kind of material it has.
        key_spec: KeySpec,
        /// What it is for.
        key_usage: KeyUsage,
        /// What it can encrypt with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encryption_algorithms: Option<Vec<EncryptionAlgorithm>>,
        /// What it can sign with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signing_algorithms: Option<Vec<SigningAlgorithm>>,
        /// How it can agree on secrets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_agreement_algorithms: Option<Vec<KeyAgreementAlgorithm>>,
        /// How it can encapsulate secrets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encapsulation_algorithms: Option<Vec<EncapsulationAlgorithm>>,
    }

    /// Answer of `DeriveSharedSecret`.
    DeriveSharedSecretResponse {
        /// ARN of the key.
        key_id: String,
        /// The secret.
        shared_secret: SecretBlob,
        /// How.
        key_agreement_algorithm: KeyAgreementAlgorithm,
        /// Where the key's material comes from.
        key_origin: Origin,
    }

    /// Answer of `Encapsulate`.
    EncapsulateResponse {
        /// ARN of the key.
        key_id: String,
        /// The secret.
        shared_secret: SecretBlob,
        /// The secret, encapsulated.
        shared_secret_ciphertext_blob: Blob,
        /// How.
        encapsulation_algorithm: EncapsulationAlgorithm,
    }

    /// Answer of `Decapsulate`.
    DecapsulateResponse {
        /// ARN of the key.
        key_id: String,
        /// The secret.
        shared_secret: SecretBlob,
        /// How.
        encapsulation_algorithm: EncapsulationAlgorithm,
    }

    /// Answer of `GenerateDataKeyPair`.
    GenerateDataKeyPairResponse {
        /// The private key, encrypted.
        private_key_ciphertext_blob: Blob,
        /// The private key: PKCS#8 in DER.
        private_key_plaintext: SecretBlob,
        /// SubjectPublicKeyInfo in DER.
        public_key: Blob,
        /// ARN of the key that encrypted it.
        key_id: String,
        /// What kind of pair.
        key_pair_spec: DataKeyPairSpec,
        /// Which version of the key, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
    }

    /// Answer of `GenerateDataKeyPairWithoutPlaintext`.
    GenerateDataKeyPairWithoutPlaintextResponse {
        /// The private key, encrypted.
        private_key_ciphertext_blob: Blob,
        /// SubjectPublicKeyInfo in DER.
        public_key: Blob,
        /// ARN of the key that encrypted it.
        key_id: String,
        /// What kind of pair.
        key_pair_spec: DataKeyPairSpec,
        /// Which version of the key, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
    }

    /// When and for what a key was last used; empty if it never was.
    #[derive(Default)]
    KeyLastUsageData {
        /// The operation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operation: Option<String>,
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timestamp: Option<Timestamp>,
        /// Id of the audit record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cloud_trail_event_id: Option<String>,
        /// Id of the call.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kms_request_id: Option<String>,
    }

    /// Answer of `GetKeyLastUsage`.
    GetKeyLastUsageResponse {
        /// ARN of the key.
        key_id: String,
        /// The last use.
        key_last_usage: KeyLastUsageData,
        /// From when on uses are known.
        tracking_start_date: Timestamp,
        /// When the key was made.
        key_creation_date: Timestamp,
    }
}
