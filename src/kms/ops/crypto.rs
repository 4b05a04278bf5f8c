//! Encrypt, Decrypt, ReEncrypt.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::api::{
    Blob, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, EncryptionAlgorithm,
    EncryptionContext, ErrorCode, KeyId, KeyUsage, KmsError, Operation, ReEncryptRequest, ReEncryptResponse,
    SecretBlob,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::blob::{self, BlobHeader};
use super::super::find::Aliases;
use super::super::model::Key;
use super::super::pipeline::{Answer, Call, Notes};
use super::{Perform, invalid, unsupported, usable};

/// Longest encryption context, all keys and values together.
const MAX_CONTEXT: usize = 8192;
/// The modifier of a dry run that passes the ciphertext over.
const IGNORE_CIPHERTEXT: &str = "IGNORE_CIPHERTEXT";
/// What is said of a ciphertext whose key is gone or not allowed: the same, so that nothing is told.
const REFERS_TO_NOTHING: &str = "The ciphertext refers to a customer master key that does not exist, does not exist \
                                 in this region, or you are not allowed to access.";

impl Perform for EncryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let demand = key_demand(call, &self.key_id, "kms:Encrypt", self.encryption_context.as_ref(), notes)?;
        Ok(vec![demand])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let context = canonical(self.encryption_context.as_ref());
        check_algorithm(key, self.encryption_algorithm)?;
        usable(key, KeyUsage::EncryptDecrypt, Operation::Encrypt)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let sealed = seal(call, allowed, key, &context, &self.plaintext.0, notes)?;
        let size = sealed.blob.len();
        let answer = EncryptResponse {
            ciphertext_blob: Blob(sealed.blob),
            key_id: key.record.arn.clone(),
            encryption_algorithm: EncryptionAlgorithm::SymmetricDefault,
            key_material_id: Some(sealed.material_id),
        };
        Answer::of(&answer, size)
    }
}

impl Perform for DecryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.encryption_context.as_ref();
        let demand = match &self.key_id {
            Some(key_id) => key_demand(call, key_id, "kms:Decrypt", context, notes)?,
            None => blob_demand(call, self.ciphertext()?, "kms:Decrypt", context, notes)?,
        };
        Ok(vec![demand])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        if self.recipient.is_some() {
            return Err(unsupported("Recipient is not supported."));
        }
        let key = allowed.key()?;
        let context = canonical(self.encryption_context.as_ref());
        if self.ignores_ciphertext()? {
            usable(key, KeyUsage::EncryptDecrypt, Operation::Decrypt)?;
            return Err(dry_run());
        }
        let ciphertext = self.ciphertext()?;
        check_is_of(key, ciphertext, notes)?;
        check_algorithm(key, self.encryption_algorithm)?;
        usable(key, KeyUsage::EncryptDecrypt, Operation::Decrypt)?;
        let opened = open(call, allowed, key, &context, ciphertext, notes)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let size = opened.plaintext.len();
        let answer = DecryptResponse {
            key_id: key.record.arn.clone(),
            plaintext: SecretBlob(opened.plaintext),
            encryption_algorithm: EncryptionAlgorithm::SymmetricDefault,
            key_material_id: Some(opened.material_id),
        };
        Answer::of(&answer, size)
    }

    fn refused(&self, _: usize, error: KmsError) -> KmsError {
        if self.key_id.is_none() { refers_to_nothing() } else { error }
    }
}

trait Ciphertext {
    /// The ciphertext, which only a dry run may leave out.
    fn ciphertext(&self) -> Result<&[u8], KmsError>;
    /// Whether the ciphertext is passed over.
    fn ignores_ciphertext(&self) -> Result<bool, KmsError>;
}

impl Ciphertext for DecryptRequest {
    fn ciphertext(&self) -> Result<&[u8], KmsError> {
        self.ciphertext_blob.as_ref().map(|blob| blob.0.as_slice()).ok_or_else(|| {
            invalid(
                "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: \
                 Member must not be null",
            )
        })
    }

    fn ignores_ciphertext(&self) -> Result<bool, KmsError> {
        let modifiers = self.dry_run_modifiers.as_deref().unwrap_or_default();
        if modifiers.iter().any(|modifier| modifier != IGNORE_CIPHERTEXT) {
            return Err(invalid("DryRunModifiers takes IGNORE_CIPHERTEXT only."));
        }
        if !modifiers.is_empty() && self.dry_run != Some(true) {
            return Err(invalid("DryRunModifiers can be used with DryRun only."));
        }
        Ok(!modifiers.is_empty())
    }
}

impl Perform for ReEncryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.source_encryption_context.as_ref();
        let from = match &self.source_key_id {
            Some(key_id) => key_demand(call, key_id, "kms:ReEncryptFrom", context, notes)?,
            None => blob_demand(call, &self.ciphertext_blob.0, "kms:ReEncryptFrom", context, notes)?,
        };
        let context = self.destination_encryption_context.as_ref();
        let to = key_demand(call, &self.destination_key_id, "kms:ReEncryptTo", context, notes)?;
        let same = matches!((&from.resource, &to.resource), (Resource::Key(a), Resource::Key(b)) if a.record.arn == b.record.arn);
        let mut demands = vec![from, to];
        for demand in &mut demands {
            let same = Cow::Borrowed(if same { "true" } else { "false" });
            demand.facts.push(("kms:reencryptonsamekey", same));
        }
        Ok(demands)
    }

    fn refused(&self, place: usize, error: KmsError) -> KmsError {
        if place == 0 && self.source_key_id.is_none() { refers_to_nothing() } else { error }
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (from, to) = (allowed.nth_key(0)?, allowed.nth_key(1)?);
        let old_context = canonical(self.source_encryption_context.as_ref());
        let new_context = canonical(self.destination_encryption_context.as_ref());
        check_is_of(from, &self.ciphertext_blob.0, notes)?;
        check_algorithm(from, self.source_encryption_algorithm)?;
        check_algorithm(to, self.destination_encryption_algorithm)?;
        usable(from, KeyUsage::EncryptDecrypt, Operation::ReEncrypt)?;
        usable(to, KeyUsage::EncryptDecrypt, Operation::ReEncrypt)?;
        let opened = open(call, allowed, from, &old_context, &self.ciphertext_blob.0, notes)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let sealed = seal(call, allowed, to, &new_context, &opened.plaintext, notes)?;
        let size = sealed.blob.len();
        let answer = ReEncryptResponse {
            ciphertext_blob: Blob(sealed.blob),
            source_key_id: from.record.arn.clone(),
            key_id: to.record.arn.clone(),
            source_encryption_algorithm: EncryptionAlgorithm::SymmetricDefault,
            destination_encryption_algorithm: EncryptionAlgorithm::SymmetricDefault,
            source_key_material_id: Some(opened.material_id),
            destination_key_material_id: Some(sealed.material_id),
        };
        Answer::of(&answer, size)
    }
}

/// A right on the key that the request names.
pub(super) fn key_demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    check_context(context)?;
    let found = call.find(key_id, Aliases::Taken, action)?;
    notes.touched(&found.key);
    Ok(crypto_demand(found.key, found.alias, action, context))
}

/// A right on the key that the blob names.
pub(super) fn blob_demand<'a>(
    call: &Call<'_>,
    ciphertext: &[u8],
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    check_context(context)?;
    let header = header_of(ciphertext, notes)?;
    let id = KeyId { bytes: header.key_id, multi_region: header.multi_region };
    let key = call.kms.state.read().key_in_region(call.home(), id).ok_or_else(refers_to_nothing)?;
    let key = call.caught_up(key)?;
    notes.touched(&key);
    Ok(crypto_demand(key, None, action, context))
}

fn crypto_demand<'a>(
    key: Arc<Key>,
    alias: Option<&'a str>,
    action: &'static str,
    context: Option<&'a EncryptionContext>,
) -> Demand<'a> {
    let algorithm = Cow::Borrowed(EncryptionAlgorithm::SymmetricDefault.as_str());
    Demand {
        context,
        request_alias: alias,
        facts: vec![("kms:encryptionalgorithm", algorithm)],
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

pub(super) fn check_algorithm(key: &Key, algorithm: Option<EncryptionAlgorithm>) -> Result<(), KmsError> {
    match algorithm {
        None | Some(EncryptionAlgorithm::SymmetricDefault) => Ok(()),
        Some(other) => Err(KmsError::new(
            ErrorCode::InvalidKeyUsageException,
            format!("Algorithm {other} is incompatible with key spec {}.", key.record.spec),
        )),
    }
}

/// The blob must name `key`: a caller that names a key wants that key and no other.
fn check_is_of(key: &Key, ciphertext: &[u8], notes: &mut Notes) -> Result<(), KmsError> {
    let header = header_of(ciphertext, notes)?;
    let id = key.record.id;
    if (header.key_id, header.multi_region) == (id.bytes, id.multi_region) {
        return Ok(());
    }
    let message = "The key ID in the request does not identify a CMK that can perform this operation.";
    Err(KmsError::new(ErrorCode::IncorrectKeyException, message))
}

fn header_of(ciphertext: &[u8], notes: &mut Notes) -> Result<BlobHeader, KmsError> {
    blob::parse(ciphertext).ok_or_else(|| {
        notes.reason = Some("not a ciphertext of this service");
        invalid_ciphertext()
    })
}

pub(super) struct Sealed {
    pub(super) blob: Vec<u8>,
    pub(super) material_id: String,
}

/// Encrypts under the current version of `key`.
pub(super) fn seal(
    call: &Call<'_>,
    allowed: &Allowed,
    key: &Key,
    context: &[u8],
    plaintext: &[u8],
    notes: &mut Notes,
) -> Result<Sealed, KmsError> {
    let version = key.current().ok_or_else(internal)?;
    let material = call.kms.unseal(allowed, key, version)?;
    let material = material.symmetric().ok_or_else(internal)?;
    let blob = blob::seal(material, &key.blob_header(version), context, plaintext);
    notes.material_id = Some(version.id_hex.clone());
    Ok(Sealed { blob, material_id: version.id_hex.clone() })
}

pub(super) struct Opened {
    plaintext: Zeroizing<Vec<u8>>,
    material_id: String,
}

/// Decrypts a blob of `key` under the version it names.
pub(super) fn open(
    call: &Call<'_>,
    allowed: &Allowed,
    key: &Key,
    context: &[u8],
    ciphertext: &[u8],
    notes: &mut Notes,
) -> Result<Opened, KmsError> {
    let header = header_of(ciphertext, notes)?;
    let Some(version) = key.version(&header.material) else {
        notes.reason = Some("the key has no such material");
        return Err(invalid_ciphertext());
    };
    let material = call.kms.unseal(allowed, key, version)?;
    let material = material.symmetric().ok_or_else(internal)?;
    let Ok(plaintext) = blob::open(material, ciphertext, context) else {
        notes.reason = Some("the ciphertext was changed, or the encryption context is another one");
        return Err(invalid_ciphertext());
    };
    notes.material_id = Some(version.id_hex.clone());
    Ok(Opened { plaintext, material_id: version.id_hex.clone() })
}

fn internal() -> KmsError {
    KmsError::new(ErrorCode::KMSInternalException, "")
}

fn invalid_ciphertext() -> KmsError {
    KmsError::new(ErrorCode::InvalidCiphertextException, "")
}

fn refers_to_nothing() -> KmsError {
    KmsError::new(ErrorCode::AccessDeniedException, REFERS_TO_NOTHING)
}

/// A dry run that got this far.
pub(super) fn dry_run() -> KmsError {
    let message = "The request would have succeeded, but the DryRun option is set.";
    KmsError::new(ErrorCode::DryRunOperationException, message)
}
