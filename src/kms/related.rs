//! The keys of a multi-Region key: same id, same account, same material, one in each region.
//!
//! Called by the operations that show, rotate, replicate and delete keys. A change that concerns several of them is
//! one commit.

use std::sync::Arc;

use crate::api::{
    KeyMetadata, KeyState, KmsError, MultiRegionConfiguration, MultiRegionKey, MultiRegionKeyType,
};

use super::change::{MaterialRotation, fresh_material};
use super::home::Home;
use super::model::{Key, KeyRecord};
use super::pipeline::{Kms, Turn};

impl Kms {
    /// Every key of the multi-Region key that `record` belongs to, itself included, by region; `record`'s own key
    /// alone if it is none.
    pub(super) fn related(&self, record: &KeyRecord) -> Vec<Arc<Key>> {
        if record.primary_region.is_none() {
            return self.key(record.home(), record.id).into_iter().collect();
        }
        self.state.read().in_every_region(&record.account, record.id)
    }

    /// The replicas of the multi-Region key that `record` belongs to.
    pub(super) fn replicas(&self, record: &KeyRecord) -> Vec<Arc<Key>> {
        let mut related = self.related(record);
        related.retain(|key| key.record.is_replica());
        related
    }

    /// The primary key of the multi-Region key that `record` belongs to; nothing if it is none.
    pub(super) fn primary(&self, record: &KeyRecord) -> Option<Arc<Key>> {
        let region = record.primary_region.as_ref()?;
        self.key(Home::new(&record.account, region), record.id)
    }

    /// As `DescribeKey` shows `key`.
    pub(super) fn metadata(&self, key: &Key) -> KeyMetadata {
        let record = &key.record;
        let configuration = record.primary_region.as_ref().map(|primary| {
            let entry = |region: &str| {
                let arn = Home::new(&record.account, region).key_arn(&record.id);
                MultiRegionKey { arn, region: region.to_owned() }
            };
            let kind =
                if record.is_primary() { MultiRegionKeyType::Primary } else { MultiRegionKeyType::Replica };
            let replica_keys = self.replicas(record).iter().map(|key| entry(&key.record.region)).collect();
            MultiRegionConfiguration {
                multi_region_key_type: kind,
                primary_key: entry(primary),
                replica_keys,
            }
        });
        KeyMetadata { multi_region_configuration: configuration, ..key.metadata() }
    }

    /// Gives `key`, and what is related to it, new material: it encrypts from now on. `record` is the next record of
    /// `key`.
    pub(super) fn add_material(
        &self,
        turn: &Turn<'_>,
        key: &Key,
        record: KeyRecord,
        rotation: MaterialRotation,
    ) -> Result<(), KmsError> {
        let fresh = fresh_material(&record)?;
        let mut next = self.next_of_all(key, record);
        let mut changes = Vec::with_capacity(next.len());
        for key in &mut next {
            changes.push(self.add_version(key, &fresh, Some(rotation))?);
        }
        self.replace_all(turn, next, changes)
    }

    /// Lets the material that waits in `key`, and in what is related to it, take over. `record` is the next record of
    /// `key`.
    pub(super) fn take_pending(
        &self,
        turn: &Turn<'_>,
        key: &Key,
        record: KeyRecord,
        rotation: MaterialRotation,
    ) -> Result<(), KmsError> {
        let mut next = self.next_of_all(key, record);
        for material in next.iter_mut().filter_map(|key| key.record.materials.last_mut()) {
            if let Some(imported) = material.imported.as_mut().filter(|imported| imported.pending) {
                imported.pending = false;
                material.since = rotation.since;
                material.rotation_type = Some(rotation.rotation_type);
            }
        }
        self.replace_all(turn, next, Vec::new())
    }

    /// `key` with its next record, and what is related to it as it is, to be changed together.
    fn next_of_all(&self, key: &Key, record: KeyRecord) -> Vec<Key> {
        let mut next = vec![key.with_record(record)];
        next.extend(self.others(key).iter().map(|other| other.with_record(other.record.clone())));
        next
    }

    /// The keys related to `key` but for itself.
    pub(super) fn others(&self, key: &Key) -> Vec<Arc<Key>> {
        let mut related = self.related(&key.record);
        related.retain(|other| other.record.region != key.record.region);
        related
    }

    /// What becomes of the primary key when `gone` is destroyed: one that waited for its last replica starts to wait
    /// for its own end.
    pub(super) fn primary_without(&self, gone: &Key, now: crate::api::Timestamp) -> Option<Key> {
        if !gone.record.is_replica() || self.replicas(&gone.record).len() > 1 {
            return None;
        }
        let primary = self.primary(&gone.record)?;
        let days = primary.record.pending_window_days?;
        let record = KeyRecord {
            state: KeyState::PendingDeletion,
            deletion_date: Some(now.plus_days(days)),
            pending_window_days: None,
            retired: Vec::new(),
            ..primary.record.clone()
        };
        Some(primary.with_record(record))
    }
}
