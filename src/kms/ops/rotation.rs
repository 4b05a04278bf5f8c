//! EnableKeyRotation, DisableKeyRotation, GetKeyRotationStatus, RotateKeyOnDemand, ListKeyRotations.

use std::borrow::Cow;

use crate::api::{
    DisableKeyRotationRequest, EnableKeyRotationRequest, GetKeyRotationStatusRequest,
    GetKeyRotationStatusResponse, IncludeKeyMaterial, KeyIdResponse, KeySpec, KeyState, KmsError,
    ListKeyRotationsRequest, ListKeyRotationsResponse, MaterialState, Origin, RotateKeyOnDemandRequest,
    RotationListEntry, RotationType,
};

use super::super::authorise::{Allowed, Demand};
use super::super::change::MaterialRotation;
use super::super::lifecycle::{self, Need};
use super::super::model::{Key, Rotation};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::{plain_demand, refuse_managed};
use super::page::{Size, page};
use super::{Perform, limit_exceeded, turn, unsupported};

/// Days between rotations where the request names none.
pub(in super::super) const DEFAULT_PERIOD_DAYS: i64 = 365;
/// Rotations on demand in a key's life.
const MAX_ON_DEMAND: u32 = 25;
const PAGE: Size = Size { default: 100, max: 1000 };

/// Only symmetric keys whose material was made here rotate.
fn check_rotates(key: &Key) -> Result<(), KmsError> {
    let record = &key.record;
    if record.spec != KeySpec::SymmetricDefault {
        return Err(unsupported(format!(
            "{} key spec is {} which is not valid for this operation.",
            record.arn, record.spec
        )));
    }
    if record.origin != Origin::AwsKms {
        return Err(unsupported(format!(
            "{} origin is {} which is not valid for this operation.",
            record.arn, record.origin
        )));
    }
    Ok(())
}

impl Perform for EnableKeyRotationRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:EnableKeyRotation", notes)?;
        let days = self.rotation_period_in_days.unwrap_or(DEFAULT_PERIOD_DAYS).to_string();
        let fact = ("kms:rotationperiodindays", Cow::Owned(days));
        for demand in &mut demands {
            demand.facts.push(fact.clone());
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_rotates(key)?;
        refuse_managed(key)?;
        lifecycle::check(Need::Rotation, key.record.state, &key.record.arn)?;
        let period_days = self.rotation_period_in_days.unwrap_or(DEFAULT_PERIOD_DAYS);
        let same = key.record.rotation.is_some_and(|rotation| rotation.period_days == period_days);
        if !same {
            let rotation = Rotation { period_days, next: call.now.plus_days(period_days) };
            call.kms.update_key(turn(call)?, key, |record| record.rotation = Some(rotation))?;
        }
        Ok(Answer::empty())
    }
}

impl Perform for DisableKeyRotationRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:DisableKeyRotation", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_rotates(key)?;
        refuse_managed(key)?;
        lifecycle::check(Need::Rotation, key.record.state, &key.record.arn)?;
        call.kms.update_key(turn(call)?, key, |record| record.rotation = None)?;
        Ok(Answer::empty())
    }
}

impl Perform for GetKeyRotationStatusRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:GetKeyRotationStatus", notes)
    }

    fn perform(self, _: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_rotates(key)?;
        let record = &key.record;
        // A key that waits for its end does not rotate.
        let on = record.rotation.filter(|_| record.state != KeyState::PendingDeletion);
        let answer = GetKeyRotationStatusResponse {
            key_rotation_enabled: on.is_some(),
            key_id: record.arn.clone(),
            rotation_period_in_days: on.map(|rotation| rotation.period_days),
            next_rotation_date: on.map(|rotation| rotation.next),
            on_demand_rotation_start_date: None,
        };
        Answer::of(&answer, 0)
    }
}

impl Perform for RotateKeyOnDemandRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:RotateKeyOnDemand", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_rotates(key)?;
        refuse_managed(key)?;
        lifecycle::check(Need::Rotation, key.record.state, &key.record.arn)?;
        if key.record.on_demand_rotations >= MAX_ON_DEMAND {
            return Err(limit_exceeded(format!(
                "{} has been rotated on demand {MAX_ON_DEMAND} times, which is the most a key can be.",
                key.record.arn
            )));
        }
        let mut record = key.record.clone();
        record.on_demand_rotations += 1;
        let rotation = MaterialRotation { since: call.now, rotation_type: RotationType::OnDemand };
        call.kms.add_material(turn(call)?, key, record, rotation)?;
        Answer::of(&KeyIdResponse { key_id: key.record.arn.clone() }, 0)
    }
}

impl Perform for ListKeyRotationsRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:ListKeyRotations", notes)
    }

    fn perform(self, _: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_rotates(key)?;
        let all = self.include_key_material == Some(IncludeKeyMaterial::AllKeyMaterial);
        let wanted =
            entries(key).into_iter().enumerate().filter(|(_, entry)| all || entry.rotation_type.is_some());
        let page = page(wanted, |(at, _)| format!("{at:08}"), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        let rotations = page.items.into_iter().map(|(_, entry)| entry).collect();
        Answer::of(&ListKeyRotationsResponse { rotations, next_marker: page.next_marker, truncated }, 0)
    }
}

fn entries(key: &Key) -> Vec<RotationListEntry> {
    let last = key.record.materials.len().saturating_sub(1);
    let entry = |(at, material): (usize, &super::super::model::MaterialRecord)| RotationListEntry {
        key_id: key.record.arn.clone(),
        key_material_id: Some(material.id.clone()),
        key_material_state: Some(if at == last { MaterialState::Current } else { MaterialState::NonCurrent }),
        rotation_date: material.rotation_type.map(|_| material.since),
        rotation_type: material.rotation_type,
    };
    key.record.materials.iter().enumerate().map(entry).collect()
}
