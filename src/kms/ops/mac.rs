//! GenerateMac, VerifyMac.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{
    Blob, ErrorCode, GenerateMacRequest, GenerateMacResponse, KeyUsage, KmsError, MacAlgorithm, Operation,
    VerifyMacRequest, VerifyMacResponse,
};
use crate::crypto::{MacKey, Material};

use super::super::authorise::{Allowed, Demand};
use super::super::kinds::mac_algorithms;
use super::super::model::Key;
use super::super::pipeline::{Answer, Call, Notes};
use super::public_key::pair_demand;
use super::{Perform, check_state, check_usage, dry_run, incompatible, internal};

fn demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    algorithm: MacAlgorithm,
    notes: &mut Notes,
) -> Result<Vec<Demand<'a>>, KmsError> {
    let facts = vec![("kms:macalgorithm", Cow::Borrowed(algorithm.as_str()))];
    Ok(vec![pair_demand(call, key_id, action, facts, notes)?])
}

/// The key must be one that makes MACs this way, and be usable.
fn check(key: &Key, algorithm: MacAlgorithm, operation: Operation) -> Result<(), KmsError> {
    check_usage(key, KeyUsage::GenerateVerifyMac, operation)?;
    check_state(key)?;
    if !mac_algorithms(key.record.spec).contains(&algorithm) {
        return Err(incompatible(algorithm.as_str(), key.record.spec));
    }
    Ok(())
}

fn mac_key(material: &Arc<Material>) -> Result<&MacKey, KmsError> {
    if let Material::Mac(key) = &**material { Ok(key) } else { Err(internal()) }
}

impl Perform for GenerateMacRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        demand(call, &self.key_id, "kms:GenerateMac", self.mac_algorithm, notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (key, mac_algorithm) = (allowed.key()?, self.mac_algorithm);
        check(key, mac_algorithm, Operation::GenerateMac)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let material = call.kms.unseal_current(allowed, key, notes)?;
        let mac = Blob(mac_key(&material)?.sign(&self.message.0));
        let size = mac.0.len();
        Answer::of(&GenerateMacResponse { mac, mac_algorithm, key_id: key.record.arn.clone() }, size)
    }
}

impl Perform for VerifyMacRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        demand(call, &self.key_id, "kms:VerifyMac", self.mac_algorithm, notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (key, mac_algorithm) = (allowed.key()?, self.mac_algorithm);
        check(key, mac_algorithm, Operation::VerifyMac)?;
        let material = call.kms.unseal_current(allowed, key, notes)?;
        if !mac_key(&material)?.verify(&self.message.0, &self.mac.0) {
            return Err(KmsError::new(ErrorCode::KMSInvalidMacException, ""));
        }
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let key_id = key.record.arn.clone();
        Answer::of(&VerifyMacResponse { key_id, mac_valid: true, mac_algorithm }, 0)
    }
}
