//! Encrypting and decrypting under a key: which algorithm suits it, which blob is its own, and the work itself.
//!
//! Called by the operations that encrypt or decrypt: a plaintext, a data key, the private half of a data key pair.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::api::{
    DryRunModifier, EncryptionAlgorithm, EncryptionContext, ErrorCode, KeyId, KeySpec, KeyUsage, KmsError,
    Operation,
};
use crate::crypto::{Material, OaepHash};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::blob::{self, BlobHeader};
use super::super::find::Aliases;
use super::super::kinds::encryption_algorithms;
use super::super::model::Key;
use super::super::pipeline::{Call, Notes};
use super::{check_state, check_usage, incompatible, internal, invalid};

/// Longest encryption context, all keys and values together.
const MAX_CONTEXT: usize = 8192;
/// What is said of a ciphertext whose key is gone or not allowed: the same, so that nothing is told.
const REFERS_TO_NOTHING: &str = "The ciphertext refers to a customer master key that does not exist, does not exist \
                                 in this region, or you are not allowed to access.";

/// A right on the key that the request names.
pub(super) fn key_demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    algorithm: EncryptionAlgorithm,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    check_context(context)?;
    let found = call.find(key_id, Aliases::Taken, action)?;
    notes.touched(&found.key);
    Ok(crypto_demand(found.key, found.alias, action, context, algorithm))
}

/// A right on the key that the blob names.
pub(super) fn blob_demand<'a>(
    call: &Call<'_>,
    ciphertext: &[u8],
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    algorithm: EncryptionAlgorithm,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    check_context(context)?;
    if algorithm != EncryptionAlgorithm::SymmetricDefault {
        return Err(invalid("KeyId must not be null"));
    }
    let header = header_of(ciphertext, notes)?;
    let id = KeyId { bytes: header.key_id, multi_region: header.multi_region };
    let key = call.kms.key_in_region(call.home(), id).ok_or_else(refers_to_nothing)?;
    let key = call.caught_up(key)?;
    notes.touched(&key);
    Ok(crypto_demand(key, None, action, context, algorithm))
}

fn crypto_demand<'a>(
    key: Arc<Key>,
    alias: Option<&'a str>,
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    algorithm: EncryptionAlgorithm,
) -> Demand<'a> {
    Demand {
        context,
        request_alias: alias,
        facts: vec![("kms:encryptionalgorithm", Cow::Borrowed(algorithm.as_str()))],
        ..Demand::new(action, Resource::Key(key))
    }
}

/// The context must not be too long: held against it, policies take the longer the longer it is.
fn check_context(context: Option<&EncryptionContext>) -> Result<(), KmsError> {
    if context.is_some_and(|context| context.text_len() > MAX_CONTEXT) {
        return Err(invalid(format!("EncryptionContext must not be longer than {MAX_CONTEXT} bytes.")));
    }
    Ok(())
}

/// The canonical context; its length was checked when the right was demanded.
pub(super) fn canonical(context: Option<&EncryptionContext>) -> Vec<u8> {
    context.map(EncryptionContext::canonical).unwrap_or_default()
}

/// The algorithm of a request that may name none.
pub(super) fn named(algorithm: Option<EncryptionAlgorithm>) -> EncryptionAlgorithm {
    algorithm.unwrap_or(EncryptionAlgorithm::SymmetricDefault)
}

/// How a key encrypts and decrypts: with which algorithm, bound to which context.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal<'a> {
    pub(super) key: &'a Key,
    pub(super) algorithm: EncryptionAlgorithm,
    pub(super) context: Option<&'a EncryptionContext>,
}

impl Seal<'_> {
    /// The key must be one that encrypts this way, and be usable.
    pub(super) fn check(&self, operation: Operation) -> Result<(), KmsError> {
        let record = &self.key.record;
        check_usage(self.key, KeyUsage::EncryptDecrypt, operation)?;
        check_state(self.key)?;
        if !encryption_algorithms(record.spec).contains(&self.algorithm) {
            return Err(incompatible(self.algorithm.as_str(), record.spec));
        }
        let has_context = self.context.is_some_and(|context| context.text_len() > 0);
        if has_context && self.algorithm != EncryptionAlgorithm::SymmetricDefault {
            let message =
                "EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.";
            return Err(invalid(message));
        }
        Ok(())
    }

    /// Data keys are made under symmetric keys only.
    pub(super) fn check_makes_data_keys(&self, operation: Operation) -> Result<(), KmsError> {
        check_usage(self.key, KeyUsage::EncryptDecrypt, operation)?;
        check_state(self.key)?;
        if self.key.record.spec == KeySpec::SymmetricDefault {
            return Ok(());
        }
        let message = "You cannot generate a data key with an asymmetric CMK";
        Err(KmsError::new(ErrorCode::InvalidKeyUsageException, message))
    }

    /// The plaintext must not be longer than the algorithm takes.
    pub(super) fn check_length(&self, len: usize) -> Result<(), KmsError> {
        let Some(most) = longest_plaintext(self.key, self.algorithm) else { return Ok(()) };
        if len <= most {
            return Ok(());
        }
        let (algorithm, spec) = (self.algorithm, self.key.record.spec);
        let message = format!(
            "Algorithm {algorithm} and key spec {spec} cannot encrypt data larger than {most} bytes."
        );
        Err(invalid(message))
    }

    /// A symmetric blob must name the key: a caller that names a key wants that key and no other. The ciphertext of a
    /// key pair names nothing.
    pub(super) fn check_is_of(&self, ciphertext: &[u8], notes: &mut Notes) -> Result<(), KmsError> {
        if self.algorithm != EncryptionAlgorithm::SymmetricDefault {
            return Ok(());
        }
        let header = header_of(ciphertext, notes)?;
        let id = self.key.record.id;
        if (header.key_id, header.multi_region) == (id.bytes, id.multi_region) {
            return Ok(());
        }
        let message = "The key ID in the request does not identify a CMK that can perform this operation.";
        Err(KmsError::new(ErrorCode::IncorrectKeyException, message))
    }

    /// Encrypts under the current version of the key.
    pub(super) fn seal(
        &self,
        call: &Call<'_>,
        allowed: &Allowed,
        plaintext: &[u8],
        notes: &mut Notes,
    ) -> Result<Sealed, KmsError> {
        let version = self.key.current().ok_or_else(internal)?;
        let material = call.kms.unseal(allowed, self.key, version)?;
        notes.material_id = Some(version.id_hex.clone());
        match &*material {
            Material::Symmetric(material) => {
                let header = self.key.blob_header(version);
                let blob = blob::seal(material, &header, &canonical(self.context), plaintext);
                Ok(Sealed { blob, material_id: Some(version.id_hex.clone()) })
            }
            Material::RsaEncrypt(material) => {
                let hash = oaep(self.algorithm).ok_or_else(internal)?;
                let blob = material.encrypt(hash, plaintext).map_err(|_| internal())?;
                Ok(Sealed { blob, material_id: None })
            }
            _ => Err(internal()),
        }
    }

    /// Decrypts a ciphertext of the key, a blob under the version it names.
    pub(super) fn open(
        &self,
        call: &Call<'_>,
        allowed: &Allowed,
        ciphertext: &[u8],
        notes: &mut Notes,
    ) -> Result<Opened, KmsError> {
        let version = if self.algorithm == EncryptionAlgorithm::SymmetricDefault {
            let header = header_of(ciphertext, notes)?;
            self.key.version(&header.material).ok_or_else(|| {
                let prefix = crate::api::hex(&header.material);
                if self.key.record.retired.iter().any(|id| id.starts_with(&prefix)) {
                    notes.reason = Some("the version was retired".into());
                    let message = format!("Version {prefix} of {} was retired.", self.key.record.arn);
                    return KmsError::new(ErrorCode::InvalidCiphertextException, message);
                }
                notes.reason = Some("the key has no such material".into());
                invalid_ciphertext()
            })?
        } else {
            self.key.current().ok_or_else(internal)?
        };
        let material = call.kms.unseal(allowed, self.key, version)?;
        let opened = match &*material {
            Material::Symmetric(material) => {
                blob::open(material, ciphertext, &canonical(self.context)).map_err(|_| ())
            }
            Material::RsaEncrypt(material) => {
                let hash = oaep(self.algorithm).ok_or_else(internal)?;
                material.decrypt(hash, ciphertext).map_err(|_| ())
            }
            _ => return Err(internal()),
        };
        let Ok(plaintext) = opened else {
            notes.reason =
                Some("the ciphertext was changed, or the encryption context is another one".into());
            return Err(invalid_ciphertext());
        };
        notes.material_id = Some(version.id_hex.clone());
        let is_blob = self.algorithm == EncryptionAlgorithm::SymmetricDefault;
        Ok(Opened { plaintext, material_id: is_blob.then(|| version.id_hex.clone()) })
    }
}

/// A ciphertext, and for symmetric keys the version that made it.
pub(super) struct Sealed {
    pub(super) blob: Vec<u8>,
    pub(super) material_id: Option<String>,
}

/// A plaintext, and for symmetric keys the version that made its ciphertext.
pub(super) struct Opened {
    pub(super) plaintext: Zeroizing<Vec<u8>>,
    pub(super) material_id: Option<String>,
}

const fn oaep(algorithm: EncryptionAlgorithm) -> Option<OaepHash> {
    match algorithm {
        EncryptionAlgorithm::RsaesOaepSha1 => Some(OaepHash::Sha1),
        EncryptionAlgorithm::RsaesOaepSha256 => Some(OaepHash::Sha256),
        EncryptionAlgorithm::SymmetricDefault | EncryptionAlgorithm::Sm2pke => None,
    }
}

/// Modulus less two digests and two bytes (RFC 8017, 7.1.1).
fn longest_plaintext(key: &Key, algorithm: EncryptionAlgorithm) -> Option<usize> {
    use crate::api::KeySpec as S;
    let digest = match oaep(algorithm)? {
        OaepHash::Sha1 => 20,
        OaepHash::Sha256 => 32,
    };
    let modulus = match key.record.spec {
        S::Rsa2048 => 256,
        S::Rsa3072 => 384,
        S::Rsa4096 => 512,
        _ => return None,
    };
    Some(modulus - 2 * digest - 2)
}

fn header_of(ciphertext: &[u8], notes: &mut Notes) -> Result<BlobHeader, KmsError> {
    blob::parse(ciphertext).ok_or_else(|| {
        notes.reason = Some("not a ciphertext of this service".into());
        invalid_ciphertext()
    })
}

/// The ciphertext of a request, which only a dry run may leave out.
pub(super) fn required(ciphertext: Option<&crate::api::Blob>) -> Result<&[u8], KmsError> {
    ciphertext.map(|blob| blob.0.as_slice()).ok_or_else(|| {
        invalid(
            "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: \
             Member must not be null",
        )
    })
}

/// Whether a dry run passes the ciphertext over.
pub(super) fn ignores_ciphertext(
    modifiers: Option<&[DryRunModifier]>,
    dry_run: Option<bool>,
) -> Result<bool, KmsError> {
    let ignores = modifiers.is_some_and(|modifiers| !modifiers.is_empty());
    if ignores && dry_run != Some(true) {
        return Err(invalid("DryRunModifiers can only be specified when DryRun is true"));
    }
    Ok(ignores)
}

pub(super) fn invalid_ciphertext() -> KmsError {
    KmsError::new(ErrorCode::InvalidCiphertextException, "")
}

pub(super) fn refers_to_nothing() -> KmsError {
    KmsError::new(ErrorCode::AccessDeniedException, REFERS_TO_NOTHING)
}
