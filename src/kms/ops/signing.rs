//! Sign, Verify.

use std::borrow::Cow;

use crate::api::{
    Blob, ErrorCode, KeyUsage, KmsError, MessageType, Operation, SignRequest, SignResponse, SigningAlgorithm,
    VerifyRequest, VerifyResponse,
};
use crate::crypto::{SignInput, SignScheme};

use super::super::authorise::{Allowed, Demand};
use super::super::kinds::{sign_scheme, signing_algorithms};
use super::super::model::Key;
use super::super::pipeline::{Answer, Call, Notes};
use super::public_key::pair_demand;
use super::{Perform, check_state, check_usage, dry_run, incompatible, internal, invalid};

/// Bytes of mu (FIPS 204, section 6.2).
const MU_LEN: usize = 64;

/// The algorithm and the kind of message, as policies want to know them.
fn facts(algorithm: SigningAlgorithm, kind: MessageType) -> Vec<(&'static str, Cow<'static, str>)> {
    vec![
        ("kms:signingalgorithm", Cow::Borrowed(algorithm.as_str())),
        ("kms:messagetype", Cow::Borrowed(kind.as_str())),
    ]
}

/// The scheme and its input, once both suit the key.
fn prepare<'a>(
    key: &Key,
    algorithm: SigningAlgorithm,
    kind: MessageType,
    message: &'a [u8],
    operation: Operation,
) -> Result<(SignScheme, SignInput<'a>), KmsError> {
    check_usage(key, KeyUsage::SignVerify, operation)?;
    check_state(key)?;
    let spec = key.record.spec;
    let scheme = sign_scheme(algorithm).filter(|_| signing_algorithms(spec).contains(&algorithm));
    let scheme = scheme.ok_or_else(|| incompatible(algorithm.as_str(), spec))?;
    Ok((scheme, input(key, algorithm, scheme, kind, message)?))
}

fn input<'a>(
    key: &Key,
    algorithm: SigningAlgorithm,
    scheme: SignScheme,
    kind: MessageType,
    message: &'a [u8],
) -> Result<SignInput<'a>, KmsError> {
    let of_spec = || {
        let spec = key.record.spec;
        invalid(format!("Message type {kind} is incompatible with key spec {spec}."))
    };
    let of_algorithm = || invalid(format!("Message type {kind} is incompatible with algorithm {algorithm}."));
    let digest_len = match scheme {
        SignScheme::RsaPss(hash) | SignScheme::RsaPkcs1(hash) | SignScheme::Ecdsa(hash) => hash.digest_len(),
        SignScheme::Ed25519Ph => 64,
        SignScheme::Ed25519 | SignScheme::MlDsa => 0,
    };
    match (scheme, kind) {
        (SignScheme::Ed25519Ph, MessageType::Raw) | (SignScheme::Ed25519, MessageType::Digest) => {
            Err(of_algorithm())
        }
        (_, MessageType::Raw) => Ok(SignInput::Raw(message)),
        (SignScheme::MlDsa, MessageType::ExternalMu) => match message.first_chunk::<MU_LEN>() {
            Some(mu) if message.len() == MU_LEN => Ok(SignInput::Mu(mu)),
            _ => Err(invalid(format!("External Mu is invalid length for algorithm {algorithm}."))),
        },
        (SignScheme::MlDsa, MessageType::Digest) | (_, MessageType::ExternalMu) => Err(of_spec()),
        (_, MessageType::Digest) if message.len() == digest_len => Ok(SignInput::Digest(message)),
        (_, MessageType::Digest) => {
            Err(invalid(format!("Digest is invalid length for algorithm {algorithm}.")))
        }
    }
}

impl Perform for SignRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let facts = facts(self.signing_algorithm, self.message_type.unwrap_or(MessageType::Raw));
        Ok(vec![pair_demand(call, &self.key_id, "kms:Sign", facts, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (key, algorithm) = (allowed.key()?, self.signing_algorithm);
        let kind = self.message_type.unwrap_or(MessageType::Raw);
        let (scheme, input) = prepare(key, algorithm, kind, &self.message.0, Operation::Sign)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let signature = material.sign(scheme, input).map_err(|_| internal())?;
        let size = signature.len();
        let answer = SignResponse {
            key_id: key.record.arn.clone(),
            signature: Blob(signature),
            signing_algorithm: algorithm,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for VerifyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let facts = facts(self.signing_algorithm, self.message_type.unwrap_or(MessageType::Raw));
        Ok(vec![pair_demand(call, &self.key_id, "kms:Verify", facts, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (key, algorithm) = (allowed.key()?, self.signing_algorithm);
        let kind = self.message_type.unwrap_or(MessageType::Raw);
        let (scheme, input) = prepare(key, algorithm, kind, &self.message.0, Operation::Verify)?;
        let material = call.kms.unseal_current(allowed, key, notes)?;
        if !material.verify(scheme, input, &self.signature.0) {
            return Err(KmsError::new(ErrorCode::KMSInvalidSignatureException, ""));
        }
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let answer = VerifyResponse {
            key_id: key.record.arn.clone(),
            signature_valid: true,
            signing_algorithm: algorithm,
        };
        Answer::of(&answer, 0)
    }
}
