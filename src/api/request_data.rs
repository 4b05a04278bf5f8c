//! Requests that use a key, or randomness alone.

use super::rule::KEY_NAME;
use super::rule::Rule::{All, Each, Form, Length, Range};
use super::shape::shape;
use super::{
    Blob, DataKeySpec, DryRunModifier, EncryptionAlgorithm, EncryptionContext, KeyEncryptionMechanism,
    SecretBlob,
};
use crate::api::Rule;

/// A reference to a key.
pub(super) const KEY_REF: Rule = All(&[Length(1, 2048), Form(&KEY_NAME)]);
pub(super) const PLAINTEXT: Rule = Length(1, 4096);
pub(super) const CIPHERTEXT: Rule = Length(1, 6144);
const BYTES: Rule = Range(1, 1024);
pub(super) const GRANT_TOKENS: [Rule; 2] = [Length(0, 10), Each(&[Length(1, 8192)])];

shape! {
    /// Evidence of an enclave, to which the answer would be encrypted.
    RecipientInfo {
        optional {
            /// How the enclave's key encrypts.
            key_encryption_algorithm: KeyEncryptionMechanism,
            /// The signed document.
            attestation_document: Blob [Length(1, 262_144)],
        }
    }

    /// Encrypts up to 4096 bytes under a key.
    EncryptRequest for Encrypt {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
            /// What to encrypt.
            plaintext: SecretBlob [PLAINTEXT],
        }
        optional {
            /// Pairs that the ciphertext is bound to.
            encryption_context: EncryptionContext,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Must suit the key.
            encryption_algorithm: EncryptionAlgorithm,
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Decrypts a ciphertext blob.
    DecryptRequest for Decrypt {
        optional {
            /// What to decrypt. Required, unless a dry run passes it over.
            ciphertext_blob: Blob [CIPHERTEXT],
            /// The pairs it was encrypted with.
            encryption_context: EncryptionContext,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// The key that must have been used.
            key_id: String [KEY_REF],
            /// Must suit the key.
            encryption_algorithm: EncryptionAlgorithm,
            /// To whom the answer would be encrypted.
            recipient: RecipientInfo,
            /// Check, and do nothing.
            dry_run: bool,
            /// What a dry run passes over.
            dry_run_modifiers: Vec<DryRunModifier>,
        }
    }

    /// Decrypts under one key and encrypts under another, without showing the plaintext.
    ReEncryptRequest for ReEncrypt {
        required {
            /// The key to encrypt under.
            destination_key_id: String [KEY_REF],
        }
        optional {
            /// What to decrypt. Required, unless a dry run passes it over.
            ciphertext_blob: Blob [CIPHERTEXT],
            /// The pairs it was encrypted with.
            source_encryption_context: EncryptionContext,
            /// The key that must have been used.
            source_key_id: String [KEY_REF],
            /// The pairs to bind the new ciphertext to.
            destination_encryption_context: EncryptionContext,
            /// Must suit the source key.
            source_encryption_algorithm: EncryptionAlgorithm,
            /// Must suit the destination key.
            destination_encryption_algorithm: EncryptionAlgorithm,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
            /// What a dry run passes over.
            dry_run_modifiers: Vec<DryRunModifier>,
        }
    }

    /// Makes a data key and returns it plain and encrypted.
    GenerateDataKeyRequest for GenerateDataKey {
        required {
            /// The key that encrypts it.
            key_id: String [KEY_REF],
        }
        optional {
            /// Pairs that the ciphertext is bound to.
            encryption_context: EncryptionContext,
            /// Its length in bytes, or
            number_of_bytes: i64 [BYTES],
            /// its kind.
            key_spec: DataKeySpec,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// To whom the answer would be encrypted.
            recipient: RecipientInfo,
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Makes a data key and returns it encrypted only.
    GenerateDataKeyWithoutPlaintextRequest for GenerateDataKeyWithoutPlaintext {
        required {
            /// The key that encrypts it.
            key_id: String [KEY_REF],
        }
        optional {
            /// Pairs that the ciphertext is bound to.
            encryption_context: EncryptionContext,
            /// Its kind, or
            key_spec: DataKeySpec,
            /// its length in bytes.
            number_of_bytes: i64 [BYTES],
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Returns random bytes.
    GenerateRandomRequest for GenerateRandom {
        optional {
            /// How many. Required.
            number_of_bytes: i64 [BYTES],
            /// Another source of randomness.
            custom_key_store_id: String [Length(1, 64)],
            /// To whom the answer would be encrypted.
            recipient: RecipientInfo,
        }
    }
}
