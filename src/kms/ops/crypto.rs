//! Encrypt, Decrypt, ReEncrypt.

use std::borrow::Cow;

use crate::api::{
    Blob, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, KmsError, Operation,
    ReEncryptRequest, ReEncryptResponse, SecretBlob,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::pipeline::{Answer, Call, Notes};
use super::sealing::{Seal, blob_demand, ignores_ciphertext, key_demand, named, refers_to_nothing, required};
use super::{Perform, dry_run, refuse_recipient};

impl Perform for EncryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let (context, algorithm) = (self.encryption_context.as_ref(), named(self.encryption_algorithm));
        Ok(vec![key_demand(call, &self.key_id, "kms:Encrypt", context, algorithm, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let algorithm = named(self.encryption_algorithm);
        let seal = Seal { key, algorithm, context: self.encryption_context.as_ref() };
        seal.check(Operation::Encrypt)?;
        seal.check_length(self.plaintext.0.len())?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let sealed = seal.seal(call, allowed, &self.plaintext.0, notes)?;
        let size = sealed.blob.len();
        let answer = EncryptResponse {
            ciphertext_blob: Blob(sealed.blob),
            key_id: key.record.arn.clone(),
            encryption_algorithm: algorithm,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for DecryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let (context, algorithm) = (self.encryption_context.as_ref(), named(self.encryption_algorithm));
        let ignores = ignores_ciphertext(self.dry_run_modifiers.as_deref(), self.dry_run)?;
        let ciphertext = required(self.ciphertext_blob.as_ref());
        let demand = if let Some(key_id) = &self.key_id {
            ciphertext.or_else(|absent| if ignores { Ok(&[][..]) } else { Err(absent) })?;
            key_demand(call, key_id, "kms:Decrypt", context, algorithm, notes)?
        } else {
            let ciphertext = ciphertext?;
            blob_demand(call, ciphertext, "kms:Decrypt", context, algorithm, notes)?
        };
        Ok(vec![demand])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        refuse_recipient(self.recipient.as_ref())?;
        let key = allowed.key()?;
        let algorithm = named(self.encryption_algorithm);
        let seal = Seal { key, algorithm, context: self.encryption_context.as_ref() };
        if ignores_ciphertext(self.dry_run_modifiers.as_deref(), self.dry_run)? {
            seal.check(Operation::Decrypt)?;
            return Err(dry_run());
        }
        let ciphertext = required(self.ciphertext_blob.as_ref())?;
        seal.check_is_of(ciphertext, notes)?;
        seal.check(Operation::Decrypt)?;
        let opened = seal.open(call, allowed, ciphertext, notes)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let size = opened.plaintext.len();
        let answer = DecryptResponse {
            key_id: key.record.arn.clone(),
            plaintext: SecretBlob(opened.plaintext),
            encryption_algorithm: algorithm,
            key_material_id: opened.material_id,
        };
        Answer::of(&answer, size)
    }

    fn refused(&self, _: usize, error: KmsError) -> KmsError {
        if self.key_id.is_none() { refers_to_nothing() } else { error }
    }
}

impl Perform for ReEncryptRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let (context, algorithm) =
            (self.source_encryption_context.as_ref(), named(self.source_encryption_algorithm));
        let ignores = ignores_ciphertext(self.dry_run_modifiers.as_deref(), self.dry_run)?;
        let ciphertext = required(self.ciphertext_blob.as_ref());
        let from = if let Some(key_id) = &self.source_key_id {
            ciphertext.or_else(|absent| if ignores { Ok(&[][..]) } else { Err(absent) })?;
            key_demand(call, key_id, "kms:ReEncryptFrom", context, algorithm, notes)?
        } else {
            let ciphertext = ciphertext?;
            blob_demand(call, ciphertext, "kms:ReEncryptFrom", context, algorithm, notes)?
        };
        let (context, algorithm) =
            (self.destination_encryption_context.as_ref(), named(self.destination_encryption_algorithm));
        let to = key_demand(call, &self.destination_key_id, "kms:ReEncryptTo", context, algorithm, notes)?;
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
        let from = Seal {
            key: allowed.nth_key(0)?,
            algorithm: named(self.source_encryption_algorithm),
            context: self.source_encryption_context.as_ref(),
        };
        let to = Seal {
            key: allowed.nth_key(1)?,
            algorithm: named(self.destination_encryption_algorithm),
            context: self.destination_encryption_context.as_ref(),
        };
        if ignores_ciphertext(self.dry_run_modifiers.as_deref(), self.dry_run)? {
            from.check(Operation::ReEncrypt)?;
            to.check(Operation::ReEncrypt)?;
            return Err(dry_run());
        }
        let ciphertext = required(self.ciphertext_blob.as_ref())?;
        from.check_is_of(ciphertext, notes)?;
        from.check(Operation::ReEncrypt)?;
        to.check(Operation::ReEncrypt)?;
        let opened = from.open(call, allowed, ciphertext, notes)?;
        to.check_length(opened.plaintext.len())?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let sealed = to.seal(call, allowed, &opened.plaintext, notes)?;
        let size = sealed.blob.len();
        let answer = ReEncryptResponse {
            ciphertext_blob: Blob(sealed.blob),
            source_key_id: from.key.record.arn.clone(),
            key_id: to.key.record.arn.clone(),
            source_encryption_algorithm: from.algorithm,
            destination_encryption_algorithm: to.algorithm,
            source_key_material_id: opened.material_id,
            destination_key_material_id: sealed.material_id,
        };
        Answer::of(&answer, size)
    }
}
