//! DeriveSharedSecret, Encapsulate, Decapsulate: secrets that two parties come to share.

use std::borrow::Cow;

use crate::api::{
    Blob, DecapsulateRequest, DecapsulateResponse, DeriveSharedSecretRequest, DeriveSharedSecretResponse,
    EncapsulateRequest, EncapsulateResponse, KeyUsage, KmsError, Operation, SecretBlob,
};
use crate::crypto::Material;

use super::super::authorise::{Allowed, Demand};
use super::super::pipeline::{Answer, Call, Notes};
use super::public_key::pair_demand;
use super::sealing::invalid_ciphertext;
use super::{Perform, check_state, check_usage, dry_run, internal, invalid, refuse_recipient};

impl Perform for DeriveSharedSecretRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let algorithm = Cow::Borrowed(self.key_agreement_algorithm.as_str());
        let facts = vec![("kms:keyagreementalgorithm", algorithm)];
        Ok(vec![pair_demand(call, &self.key_id, "kms:DeriveSharedSecret", facts, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        refuse_recipient(self.recipient.as_ref())?;
        let key = allowed.key()?;
        check_usage(key, KeyUsage::KeyAgreement, Operation::DeriveSharedSecret)?;
        check_state(key)?;
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let Material::EcAgree(pair) = &*material else { return Err(internal()) };
        // The service says no more of a public key that is none, or of another curve.
        let secret = pair.agree(&self.public_key.0).map_err(|_| invalid(""))?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let size = secret.len();
        let answer = DeriveSharedSecretResponse {
            key_id: key.record.arn.clone(),
            shared_secret: SecretBlob(secret),
            key_agreement_algorithm: self.key_agreement_algorithm,
            key_origin: key.record.origin,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for EncapsulateRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let algorithm = Cow::Borrowed(self.encapsulation_algorithm.as_str());
        let facts = vec![("kms:encapsulationalgorithm", algorithm)];
        Ok(vec![pair_demand(call, &self.key_id, "kms:Encapsulate", facts, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_usage(key, KeyUsage::EncapsulateDecapsulate, Operation::Encapsulate)?;
        check_state(key)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let Material::MlKem(pair) = &*material else { return Err(internal()) };
        let (ciphertext, secret) = pair.encapsulate().map_err(|_| internal())?;
        let size = ciphertext.len() + secret.len() + 3;
        let answer = EncapsulateResponse {
            key_id: key.record.arn.clone(),
            shared_secret: SecretBlob(secret),
            shared_secret_ciphertext_blob: Blob(ciphertext),
            encapsulation_algorithm: self.encapsulation_algorithm,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for DecapsulateRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let algorithm = Cow::Borrowed(self.encapsulation_algorithm.as_str());
        let facts = vec![("kms:encapsulationalgorithm", algorithm)];
        Ok(vec![pair_demand(call, &self.key_id, "kms:Decapsulate", facts, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_usage(key, KeyUsage::EncapsulateDecapsulate, Operation::Decapsulate)?;
        check_state(key)?;
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let Material::MlKem(pair) = &*material else { return Err(internal()) };
        let secret = pair.decapsulate(&self.shared_secret_ciphertext_blob.0);
        let secret = secret.map_err(|_| {
            notes.reason = Some("the ciphertext is not as long as those of the key".into());
            invalid_ciphertext()
        })?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let size = secret.len();
        let answer = DecapsulateResponse {
            key_id: key.record.arn.clone(),
            shared_secret: SecretBlob(secret),
            encapsulation_algorithm: self.encapsulation_algorithm,
        };
        Answer::of(&answer, size)
    }
}
