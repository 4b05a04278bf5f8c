//! GenerateDataKeyPair, with and without plaintext.

use std::borrow::Cow;

use crate::api::{
    Blob, DataKeyPairSpec, EncryptionContext, GenerateDataKeyPairRequest, GenerateDataKeyPairResponse,
    GenerateDataKeyPairWithoutPlaintextRequest, GenerateDataKeyPairWithoutPlaintextResponse, KmsError,
    Operation, SecretBlob,
};
use crate::crypto::DataKeyPair;

use super::super::authorise::{Allowed, Demand};
use super::super::kinds::data_key_pair_kind;
use super::super::pipeline::{Answer, Call, Notes};
use super::data_keys::SYMMETRIC;
use super::sealing::{Seal, Sealed, key_demand};
use super::{Perform, dry_run, refuse_recipient, unsupported};

fn demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    context: Option<&'a EncryptionContext>,
    spec: DataKeyPairSpec,
    notes: &mut Notes,
) -> Result<Vec<Demand<'a>>, KmsError> {
    let mut demand = key_demand(call, key_id, action, context, SYMMETRIC, notes)?;
    demand.facts.push(("kms:datakeypairspec", Cow::Borrowed(spec.as_str())));
    Ok(vec![demand])
}

/// A pair, its private half sealed as well.
fn generate(
    call: &Call<'_>,
    allowed: &Allowed,
    seal: Seal<'_>,
    spec: DataKeyPairSpec,
    is_dry: Option<bool>,
    operation: Operation,
    notes: &mut Notes,
) -> Result<(DataKeyPair, Sealed), KmsError> {
    let kind = data_key_pair_kind(spec)
        .ok_or_else(|| unsupported(format!("KeyPairSpec {spec} is not supported in this Region")))?;
    seal.check_makes_data_keys(operation)?;
    if is_dry == Some(true) {
        return Err(dry_run());
    }
    let pair = call.kms.makers.data_key_pair(kind)?;
    let sealed = seal.seal(call, allowed, &pair.private, notes)?;
    Ok((pair, sealed))
}

impl Perform for GenerateDataKeyPairRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.encryption_context.as_ref();
        demand(call, &self.key_id, "kms:GenerateDataKeyPair", context, self.key_pair_spec, notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        refuse_recipient(self.recipient.as_ref())?;
        let (key, spec) = (allowed.key()?, self.key_pair_spec);
        let seal = Seal { key, algorithm: SYMMETRIC, context: self.encryption_context.as_ref() };
        let operation = Operation::GenerateDataKeyPair;
        let (pair, sealed) = generate(call, allowed, seal, spec, self.dry_run, operation, notes)?;
        let size = sealed.blob.len() + pair.private.len() + pair.public.len() + 6;
        let answer = GenerateDataKeyPairResponse {
            private_key_ciphertext_blob: Blob(sealed.blob),
            private_key_plaintext: SecretBlob(pair.private),
            public_key: Blob(pair.public),
            key_id: key.record.arn.clone(),
            key_pair_spec: spec,
            key_material_id: sealed.material_id,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for GenerateDataKeyPairWithoutPlaintextRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let (context, action) = (self.encryption_context.as_ref(), "kms:GenerateDataKeyPairWithoutPlaintext");
        demand(call, &self.key_id, action, context, self.key_pair_spec, notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (key, spec) = (allowed.key()?, self.key_pair_spec);
        let seal = Seal { key, algorithm: SYMMETRIC, context: self.encryption_context.as_ref() };
        let operation = Operation::GenerateDataKeyPairWithoutPlaintext;
        let (pair, sealed) = generate(call, allowed, seal, spec, self.dry_run, operation, notes)?;
        let size = sealed.blob.len() + pair.public.len() + 3;
        let answer = GenerateDataKeyPairWithoutPlaintextResponse {
            private_key_ciphertext_blob: Blob(sealed.blob),
            public_key: Blob(pair.public),
            key_id: key.record.arn.clone(),
            key_pair_spec: spec,
            key_material_id: sealed.material_id,
        };
        Answer::of(&answer, size)
    }
}
