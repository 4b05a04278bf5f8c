//! EnableKeyRotation, DisableKeyRotation, GetKeyRotationStatus, RotateKeyOnDemand, ListKeyRotations.

use std::borrow::Cow;

use crate::api::{
    DisableKeyRotationRequest, EnableKeyRotationRequest, ErrorCode, ExpirationModel,
    GetKeyRotationStatusRequest, GetKeyRotationStatusResponse, ImportState, IncludeKeyMaterial,
    KeyIdResponse, KeyState, KmsError, ListKeyRotationsRequest, ListKeyRotationsResponse, MaterialState,
    Origin, RotateKeyOnDemandRequest, RotationListEntry, RotationType,
};

use super::super::authorise::{Allowed, Demand};
use super::super::change::MaterialRotation;
use super::super::imports::rotates;
use super::super::lifecycle::{self, Need};
use super::super::model::{Key, KeyRecord, MaterialRecord, Rotation};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::{plain_demand, refuse_managed};
use super::page::{Size, page};
use super::replicas::check_primary;
use super::{Perform, limit_exceeded, turn, unsupported};

/// Days between rotations where the request names none.
pub(in super::super) const DEFAULT_PERIOD_DAYS: i64 = 365;
/// Rotations on demand in a key's life.
const MAX_ON_DEMAND: u32 = 25;
/// How long before an automatic rotation none on demand can begin: 20 minutes.
const CONFLICT_MILLIS: i64 = 20 * 60 * 1000;
const PAGE: Size = Size { default: 100, max: 1000 };

/// Only symmetric keys rotate. The service says no more of it.
fn check_spec(key: &Key) -> Result<(), KmsError> {
    if rotates(&key.record) { Ok(()) } else { Err(unsupported("")) }
}

/// Only symmetric keys whose material was made here rotate by themselves; of a multi-Region key the primary one.
/// The state is told before the kind of key.
fn check_rotates(key: &Key) -> Result<(), KmsError> {
    let record = &key.record;
    if record.origin != Origin::AwsKms {
        return Err(unsupported(format!(
            "{} origin is {} which is not valid for this operation.",
            record.arn, record.origin
        )));
    }
    lifecycle::check(Need::Rotation, record.state, &record.arn)?;
    if record.is_replica() {
        check_primary(key)?;
    }
    check_spec(key)?;
    refuse_managed(key)
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
        call.kms.update_key(turn(call)?, key, |record| record.rotation = None)?;
        Ok(Answer::empty())
    }
}

impl Perform for GetKeyRotationStatusRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:GetKeyRotationStatus", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let record = &allowed.key()?.record;
        // Of keys that never rotate it is told that they do not. Replicas rotate with their primary key. A key that waits for its end does not rotate.
        let rotation = call.kms.primary(record).map_or(record.rotation, |primary| primary.record.rotation);
        let is_ending = matches!(record.state, KeyState::PendingDeletion | KeyState::PendingReplicaDeletion);
        let on = rotation.filter(|_| !is_ending);
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
        lifecycle::check(Need::RotateNow, key.record.state, &key.record.arn)?;
        if key.record.is_replica() {
            check_primary(key)?;
        }
        check_spec(key)?;
        refuse_managed(key)?;
        check_pending(call, key)?;
        check_schedule(call, key)?;
        if key.record.on_demand_rotations >= MAX_ON_DEMAND {
            return Err(limit_exceeded(format!(
                "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can \
                 be performed for this key: {}",
                key.record.arn
            )));
        }
        let record =
            KeyRecord { on_demand_rotations: key.record.on_demand_rotations + 1, ..key.record.clone() };
        let rotation = MaterialRotation { since: call.now, rotation_type: RotationType::OnDemand };
        if key.record.origin == Origin::External {
            call.kms.take_pending(turn(call)?, key, record, rotation)?;
        } else {
            call.kms.add_material(turn(call)?, key, record, rotation)?;
        }
        Answer::of(&KeyIdResponse { key_id: key.record.arn.clone() }, 0)
    }
}

/// A key with imported material rotates to material that was imported for it, in every region.
fn check_pending(call: &Call<'_>, key: &Key) -> Result<(), KmsError> {
    if key.record.origin == Origin::External && !call.kms.pending_is_everywhere(&key.record) {
        let message = format!("No available key material pending rotation for the key: {}.", key.record.arn);
        return Err(KmsError::new(ErrorCode::KMSInvalidStateException, message));
    }
    Ok(())
}

/// A rotation on demand must not run into an automatic one.
fn check_schedule(call: &Call<'_>, key: &Key) -> Result<(), KmsError> {
    let soon = call.now.plus_millis(CONFLICT_MILLIS);
    if key.record.rotation.is_some_and(|rotation| rotation.next <= soon) {
        let message = format!("An automatic rotation of {} is under way or about to begin.", key.record.arn);
        return Err(KmsError::new(ErrorCode::ConflictException, message));
    }
    Ok(())
}

impl Perform for ListKeyRotationsRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:ListKeyRotations", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_spec(key)?;
        let all = self.include_key_material == Some(IncludeKeyMaterial::AllKeyMaterial);
        let wanted = entries(call, key)
            .into_iter()
            .enumerate()
            .filter(|(_, entry)| all || entry.rotation_type.is_some());
        let page = page(wanted, |(at, _)| format!("{at:08}"), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        let rotations = page.items.into_iter().map(|(_, entry)| entry).collect();
        Answer::of(&ListKeyRotationsResponse { rotations, next_marker: page.next_marker, truncated }, 0)
    }
}

fn entries(call: &Call<'_>, key: &Key) -> Vec<RotationListEntry> {
    let current = key.record.current_material();
    let state = |at: usize, material: &MaterialRecord| match material.is_pending() {
        true if call.kms.pending_is_everywhere(&key.record) => MaterialState::PendingRotation,
        true => MaterialState::PendingMultiRegionImport,
        false if Some(at) == current => MaterialState::Current,
        false => MaterialState::NonCurrent,
    };
    let entry = |(at, material): (usize, &MaterialRecord)| RotationListEntry {
        key_id: key.record.arn.clone(),
        key_material_id: Some(material.id.clone()),
        key_material_description: material.imported.as_ref().and_then(|known| known.description.clone()),
        import_state: material
            .imported
            .as_ref()
            .map(|known| if known.present { ImportState::Imported } else { ImportState::PendingImport }),
        expiration_model: material.imported.as_ref().filter(|known| known.present).map(|known| {
            if known.valid_to.is_some() { ExpirationModel::Expires } else { ExpirationModel::DoesNotExpire }
        }),
        valid_to: material.imported.as_ref().and_then(|known| known.valid_to),
        key_material_state: Some(state(at, material)),
        rotation_date: material.rotation_type.map(|_| material.since),
        rotation_type: material.rotation_type,
    };
    key.record.materials.iter().enumerate().map(entry).collect()
}
