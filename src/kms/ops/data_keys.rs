//! GenerateDataKey, with and without plaintext, and GenerateRandom.

use zeroize::Zeroizing;

use crate::api::{
    Blob, DataKeySpec, EncryptionAlgorithm, GenerateDataKeyRequest, GenerateDataKeyResponse,
    GenerateDataKeyWithoutPlaintextRequest, GenerateDataKeyWithoutPlaintextResponse, GenerateRandomRequest,
    GenerateRandomResponse, KmsError, Operation, SecretBlob,
};
use crate::crypto::fill_random;

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::pipeline::{Answer, Call, Notes};
use super::sealing::{Seal, key_demand};
use super::{Perform, dry_run, invalid, refuse_recipient, unsupported};

/// Data keys are made under symmetric keys only.
pub(super) const SYMMETRIC: EncryptionAlgorithm = EncryptionAlgorithm::SymmetricDefault;

impl Perform for GenerateDataKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.encryption_context.as_ref();
        Ok(vec![key_demand(call, &self.key_id, "kms:GenerateDataKey", context, SYMMETRIC, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        refuse_recipient(self.recipient.as_ref())?;
        let key = allowed.key()?;
        let length = length_of(self.number_of_bytes, self.key_spec)?;
        let seal = Seal { key, algorithm: SYMMETRIC, context: self.encryption_context.as_ref() };
        seal.check_makes_data_keys(Operation::GenerateDataKey)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let plaintext = random(length);
        let sealed = seal.seal(call, allowed, &plaintext, notes)?;
        let size = sealed.blob.len() + length + 3;
        let answer = GenerateDataKeyResponse {
            ciphertext_blob: Blob(sealed.blob),
            plaintext: SecretBlob(plaintext),
            key_id: key.record.arn.clone(),
            key_material_id: sealed.material_id,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for GenerateDataKeyWithoutPlaintextRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.encryption_context.as_ref();
        Ok(vec![key_demand(
            call,
            &self.key_id,
            "kms:GenerateDataKeyWithoutPlaintext",
            context,
            SYMMETRIC,
            notes,
        )?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let length = length_of(self.number_of_bytes, self.key_spec)?;
        let seal = Seal { key, algorithm: SYMMETRIC, context: self.encryption_context.as_ref() };
        seal.check_makes_data_keys(Operation::GenerateDataKeyWithoutPlaintext)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let sealed = seal.seal(call, allowed, &random(length), notes)?;
        let size = sealed.blob.len();
        let answer = GenerateDataKeyWithoutPlaintextResponse {
            ciphertext_blob: Blob(sealed.blob),
            key_id: key.record.arn.clone(),
            key_material_id: sealed.material_id,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for GenerateRandomRequest {
    fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![Demand::new("kms:GenerateRandom", Resource::Account)])
    }

    fn perform(self, _: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        refuse_recipient(self.recipient.as_ref())?;
        if self.custom_key_store_id.is_some() {
            return Err(unsupported("Custom key stores are not supported."));
        }
        let length = self.number_of_bytes.ok_or_else(|| invalid("NumberOfBytes is required."))?;
        let plaintext = random(usize::try_from(length).map_err(|_| invalid("NumberOfBytes is required."))?);
        let size = plaintext.len();
        Answer::of(&GenerateRandomResponse { plaintext: SecretBlob(plaintext) }, size)
    }
}

/// Exactly one of the two ways to say how long.
fn length_of(number_of_bytes: Option<i64>, spec: Option<DataKeySpec>) -> Result<usize, KmsError> {
    let choose = || invalid("Please specify either number of bytes or key spec.");
    match (number_of_bytes, spec) {
        (Some(bytes), None) => usize::try_from(bytes).map_err(|_| choose()),
        (None, Some(DataKeySpec::Aes256)) => Ok(32),
        (None, Some(DataKeySpec::Aes128)) => Ok(16),
        (None, None) | (Some(_), Some(_)) => Err(choose()),
    }
}

fn random(length: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    fill_random(&mut bytes);
    bytes
}
