//! GetPublicKey, and what the operations on key pairs and HMAC keys have in common.

use std::borrow::Cow;

use crate::api::{Blob, GetPublicKeyRequest, GetPublicKeyResponse, KmsError};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::find::Aliases;
use super::super::kinds::Algorithms;
use super::super::pipeline::{Answer, Call, Notes};
use super::{Perform, check_state, internal, unsupported};

/// A right on a key that may be named by an alias.
pub(super) fn pair_demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    facts: Vec<(&'static str, Cow<'static, str>)>,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    let found = call.find(key_id, Aliases::Taken, action)?;
    notes.touched(&found.key);
    Ok(Demand { request_alias: found.alias, facts, ..Demand::new(action, Resource::Key(found.key)) })
}

impl Perform for GetPublicKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![pair_demand(call, &self.key_id, "kms:GetPublicKey", Vec::new(), notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let record = &key.record;
        check_state(key)?;
        if !super::super::kinds::is_pair(record.spec) {
            return Err(unsupported(""));
        }
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let public_key = material.public_key().ok_or_else(internal)?.to_vec();
        let size = public_key.len();
        let algorithms = Algorithms::of(record.spec, record.usage);
        let answer = GetPublicKeyResponse {
            key_id: record.arn.clone(),
            public_key: Blob(public_key),
            customer_master_key_spec: record.spec,
            key_spec: record.spec,
            key_usage: record.usage,
            encryption_algorithms: algorithms.encryption,
            signing_algorithms: algorithms.signing,
            key_agreement_algorithms: algorithms.agreement,
            encapsulation_algorithms: algorithms.encapsulation,
        };
        Answer::of(&answer, size)
    }
}
