//! Requests that use key pairs and HMAC keys, or make key pairs.

use super::request_data::{CIPHERTEXT, GRANT_TOKENS, KEY_REF, PLAINTEXT};
use super::rule::Rule::Length;
use super::shape::shape;
use super::{
    Blob, DataKeyPairSpec, EncapsulationAlgorithm, EncryptionContext, KeyAgreementAlgorithm, MacAlgorithm,
    MessageType, RecipientInfo, SecretBlob, SigningAlgorithm,
};
use crate::api::Rule;

const PUBLIC_KEY: Rule = Length(1, 8192);

shape! {
    /// Signs a message or its digest.
    SignRequest for Sign {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// What to sign.
            message: SecretBlob [PLAINTEXT],
            /// Must suit the key.
            signing_algorithm: SigningAlgorithm,
        }
        optional {
            /// What the message is; `RAW` where absent.
            message_type: MessageType,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Verifies a signature.
    VerifyRequest for Verify {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// What was signed.
            message: SecretBlob [PLAINTEXT],
            /// The signature.
            signature: Blob [CIPHERTEXT],
            /// Must suit the key.
            signing_algorithm: SigningAlgorithm,
        }
        optional {
            /// What the message is; `RAW` where absent.
            message_type: MessageType,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Makes a MAC.
    GenerateMacRequest for GenerateMac {
        required {
            /// What it is of.
            message: SecretBlob [PLAINTEXT],
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// Must suit the key.
            mac_algorithm: MacAlgorithm,
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Verifies a MAC.
    VerifyMacRequest for VerifyMac {
        required {
            /// What it is of.
            message: SecretBlob [PLAINTEXT],
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// Must suit the key.
            mac_algorithm: MacAlgorithm,
            /// The MAC.
            mac: Blob [CIPHERTEXT],
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Shows the public key of a key pair.
    GetPublicKeyRequest for GetPublicKey {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
        }
    }

    /// Agrees on a secret with the owner of another key pair.
    DeriveSharedSecretRequest for DeriveSharedSecret {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// How.
            key_agreement_algorithm: KeyAgreementAlgorithm,
            /// The other's public key.
            public_key: Blob [PUBLIC_KEY],
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
            /// To whom the answer would be encrypted.
            recipient: RecipientInfo,
        }
    }

    /// Makes a secret, and its ciphertext for a key pair.
    EncapsulateRequest for Encapsulate {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// How.
            encapsulation_algorithm: EncapsulationAlgorithm,
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Recovers an encapsulated secret.
    DecapsulateRequest for Decapsulate {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// The encapsulated secret.
            shared_secret_ciphertext_blob: Blob [CIPHERTEXT],
            /// How.
            encapsulation_algorithm: EncapsulationAlgorithm,
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Makes a key pair and returns the private key plain and encrypted.
    GenerateDataKeyPairRequest for GenerateDataKeyPair {
        required {
            /// The key that encrypts the private key.
            key_id: String [KEY_REF],
            /// What kind of pair.
            key_pair_spec: DataKeyPairSpec,
        }
        optional {
            /// Pairs that the ciphertext is bound to.
            encryption_context: EncryptionContext,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// To whom the answer would be encrypted.
            recipient: RecipientInfo,
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Makes a key pair and returns the private key encrypted only.
    GenerateDataKeyPairWithoutPlaintextRequest for GenerateDataKeyPairWithoutPlaintext {
        required {
            /// The key that encrypts the private key.
            key_id: String [KEY_REF],
            /// What kind of pair.
            key_pair_spec: DataKeyPairSpec,
        }
        optional {
            /// Pairs that the ciphertext is bound to.
            encryption_context: EncryptionContext,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Tells when a key was last used.
    GetKeyLastUsageRequest for GetKeyLastUsage {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }
}
