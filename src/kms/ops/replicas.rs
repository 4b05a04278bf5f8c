//! ReplicateKey, UpdatePrimaryRegion.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{
    ErrorCode, KeyState, KmsError, MultiRegionKeyType, Origin, ReplicateKeyRequest, ReplicateKeyResponse,
    UpdatePrimaryRegionRequest,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::find::Aliases;
use super::super::home::Home;
use super::super::imports::{first_state, materials_of_replica};
use super::super::lifecycle::{self, Need};
use super::super::model::{Key, KeyRecord, Settles, Version};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::default_policy;
use super::policies::{check_lockout, compile_key_policy};
use super::tags::check_tags;
use super::{Perform, internal, invalid, turn, unsupported};

/// Only the primary key of a multi-Region key has replicas and rotates.
pub(super) fn check_primary(key: &Key) -> Result<(), KmsError> {
    if key.record.is_primary() {
        return Ok(());
    }
    Err(unsupported(format!("{} is not a multi-Region primary key.", key.record.arn)))
}

impl Perform for ReplicateKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let found = call.find(&self.key_id, Aliases::Refused, "kms:ReplicateKey")?;
        notes.touched(&found.key);
        let mut replicate = Demand::new("kms:ReplicateKey", Resource::Key(found.key));
        replicate.facts.push(("kms:replicaregion", Cow::Owned(self.replica_region.clone())));
        let tags = self.tags.as_deref().unwrap_or_default();
        let facts = vec![
            ("kms:multiregion", Cow::Borrowed("true")),
            ("kms:multiregionkeytype", Cow::Borrowed(MultiRegionKeyType::Replica.as_str())),
        ];
        let create = Demand { request_tags: tags, facts, ..Demand::new("kms:CreateKey", Resource::Account) };
        let mut demands = vec![replicate, create];
        if !tags.is_empty() {
            demands.push(Demand { request_tags: tags, ..Demand::new("kms:TagResource", Resource::Account) });
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (kms, primary) = (call.kms, allowed.key()?);
        check_primary(primary)?;
        lifecycle::check(Need::Replicate, primary.record.state, &primary.record.arn)?;
        let home = Home::new(&primary.record.account, &self.replica_region);
        if !kms.settings.serves(home.region) {
            return Err(invalid(format!("Region '{}' is not served here.", home.region)));
        }
        if kms.key(home, primary.record.id).is_some() {
            let message = format!("Key '{}' already exists", home.key_arn(&primary.record.id));
            return Err(KmsError::new(ErrorCode::AlreadyExistsException, message));
        }
        let tags = self.tags.unwrap_or_default();
        check_tags(&tags, &[])?;
        let is_provided = self.policy.is_some();
        let text = self.policy.unwrap_or_else(|| default_policy(home.account));
        let policy = compile_key_policy(call, &text, notes)?;
        let record = KeyRecord {
            description: self.description.unwrap_or_default(),
            policy: text,
            tags,
            ..replica_record(call, &primary.record, home)
        };
        let draft = Key { record, policy: policy.clone(), versions: Vec::new() };
        if is_provided && self.bypass_policy_lockout_safety_check != Some(true) {
            check_lockout(call, &draft, &policy)?;
        }
        let replica = place_replica(call, primary, draft)?;
        notes.touched(&replica);
        let answer = ReplicateKeyResponse {
            replica_key_metadata: kms.metadata(&replica),
            replica_policy: replica.record.policy.clone(),
            replica_tags: replica.record.tags.clone(),
        };
        Answer::of(&answer, 0)
    }
}

/// What a replica shares with its primary key, and what it begins with.
fn replica_record(call: &Call<'_>, primary: &KeyRecord, home: Home<'_>) -> KeyRecord {
    let at = call.now.plus_millis(call.kms.settings.settle_millis);
    KeyRecord {
        arn: home.key_arn(&primary.id),
        region: home.region.to_owned(),
        created: call.now,
        state: KeyState::Creating,
        settles: Some(Settles { at, to: first_state(primary.origin) }),
        deletion_date: None,
        pending_window_days: None,
        retired: Vec::new(),
        rotation: None,
        on_demand_rotations: 0,
        materials: materials_of_replica(primary),
        ..primary.clone()
    }
}

/// Seals the material of `primary` for the replica, and puts that in place.
fn place_replica(call: &Call<'_>, primary: &Key, mut replica: Key) -> Result<Arc<Key>, KmsError> {
    let kms = call.kms;
    let away = primary.versions.iter().map(|version| Version { token: None, ..version.clone() });
    replica.versions = away.collect();
    let mut changes = Vec::new();
    if primary.record.origin == Origin::AwsKms {
        for (at, version) in primary.versions.iter().enumerate() {
            let material = kms.open_bytes(primary, version)?;
            changes.push(kms.store_version(&mut replica, at, &material)?);
        }
    }
    let (id, region) = (replica.record.id, replica.record.region.clone());
    let (turn, home) = (turn(call)?, Home::new(&primary.record.account, &region));
    // Its region gets a record of its own, as on AWS.
    kms.act_making(home, call.now, || {
        kms.replace_all(turn, vec![replica], changes)?;
        kms.key(home, id).ok_or_else(internal)
    })
}

impl Perform for UpdatePrimaryRegionRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let found = call.find(&self.key_id, Aliases::Refused, "kms:UpdatePrimaryRegion")?;
        let home = Home::new(&found.key.record.account, &self.primary_region);
        let replica = call.kms.key(home, found.key.record.id).map(|key| call.caught_up(key)).transpose()?;
        notes.touched(&found.key);
        let mut demands = vec![Demand::new("kms:UpdatePrimaryRegion", Resource::Key(found.key))];
        if let Some(replica) = replica {
            notes.touched(&replica);
            demands.push(Demand::new("kms:UpdatePrimaryRegion", Resource::Key(replica)));
        }
        for demand in &mut demands {
            demand.facts.push(("kms:primaryregion", Cow::Owned(self.primary_region.clone())));
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let primary = allowed.key()?;
        check_primary(primary)?;
        lifecycle::check(Need::Replicate, primary.record.state, &primary.record.arn)?;
        let Ok(replica) = allowed.nth_key(1) else {
            let home = Home::new(&primary.record.account, &self.primary_region);
            let message = format!("Key '{}' does not exist", home.key_arn(&primary.record.id));
            return Err(KmsError::new(ErrorCode::NotFoundException, message));
        };
        if replica.record.region == primary.record.region {
            let message = format!("{} is the multi-Region primary key already.", primary.record.arn);
            return Err(unsupported(message));
        }
        lifecycle::check(Need::Replicate, replica.record.state, &replica.record.arn)?;
        call.kms.replace_all(turn(call)?, moved(call, primary, replica), Vec::new())?;
        Ok(Answer::empty())
    }
}

/// Every key of the multi-Region key, after `to` has become the primary one.
fn moved(call: &Call<'_>, from: &Key, to: &Key) -> Vec<Key> {
    let at = call.now.plus_millis(call.kms.settings.settle_millis);
    let next = |key: &Arc<Key>| {
        let mut record = KeyRecord { primary_region: Some(to.record.region.clone()), ..key.record.clone() };
        if record.region == to.record.region {
            record.rotation = from.record.rotation;
            record.on_demand_rotations = from.record.on_demand_rotations;
        } else if record.region == from.record.region {
            record.rotation = None;
            record.on_demand_rotations = 0;
        }
        if record.region == to.record.region || record.region == from.record.region {
            record.settles = Some(Settles { at, to: record.state });
            record.state = KeyState::Updating;
        }
        key.with_record(record)
    };
    call.kms.related(&from.record).iter().map(next).collect()
}
