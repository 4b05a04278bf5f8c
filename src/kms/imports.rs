//! Imported key material coming and going: what a key and its relations look like afterwards.
//!
//! Called by the operations that import and delete material, and by the background work when it expires. The list of
//! materials is the same in every key of a multi-Region key; which of them are there is each key's own affair.

use crate::api::{ImportType, KeySpec, KeyState, KmsError, Origin, Timestamp};
use crate::crypto::MaterialBytes;

use super::model::{Imported, Key, KeyRecord, MaterialRecord, Version};
use super::pipeline::{Kms, Turn};
use super::store::Change;

/// Material that arrives.
#[derive(Debug)]
pub struct Arrival {
    /// Its id under the key, in hex.
    pub id: String,
    /// The material.
    pub material: MaterialBytes,
    /// Whether the key shall have had it before.
    pub kind: Option<ImportType>,
    /// When it expires, if it does.
    pub valid_to: Option<Timestamp>,
    /// For people; what it was before where absent.
    pub description: Option<String>,
    /// Now.
    pub at: Timestamp,
}

/// Why material was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// It is none that the key had before.
    Unknown,
    /// It is said to be new, and the key had it before.
    Known,
    /// Other new material waits already.
    Pending(String),
}

impl Kms {
    /// Puts material into `key`.
    pub(super) fn take_imported(
        &self,
        turn: &Turn<'_>,
        key: &Key,
        arrival: Arrival,
    ) -> Result<Result<(), NotTaken>, KmsError> {
        let place = match place(&key.record, &arrival) {
            Ok(place) => place,
            Err(why) => return Ok(Err(why)),
        };
        let mut next = key.with_record(key.record.clone());
        let mut all = Vec::new();
        let place = if let Some(place) = place {
            place
        } else {
            let is_pending = !next.record.materials.is_empty();
            for other in self.others(key) {
                let mut other = other.with_record(other.record.clone());
                announce(&mut other, &arrival, is_pending)?;
                all.push(other);
            }
            announce(&mut next, &arrival, is_pending)?;
            next.record.materials.len() - 1
        };
        let stored = self.store_version(&mut next, place, &arrival.material)?;
        let imported = next.record.materials[place].imported.get_or_insert_default();
        imported.present = true;
        imported.valid_to = arrival.valid_to;
        imported.description = arrival.description.or(imported.description.take());
        if next.record.is_complete() && next.record.lasting_state() == KeyState::PendingImport {
            next.record.set_state(KeyState::Enabled);
        }
        all.push(next);
        self.replace_all(turn, all, vec![stored]).map(Ok)
    }

    /// Takes the materials at `places` from `key`.
    pub(super) fn drop_imported(&self, turn: &Turn<'_>, key: &Key, places: &[usize]) -> Result<(), KmsError> {
        let mut next = key.with_record(key.record.clone());
        let mut changes = Vec::new();
        let mut all = Vec::new();
        // From the end, as one that waits is taken out of the list.
        for place in places.iter().rev().copied() {
            if next.record.materials[place].is_present() {
                changes.push(self.drop_version(&mut next, place)?);
            }
            if next.record.materials[place].is_pending() && !next.record.is_replica() {
                for other in self.others(key) {
                    let mut other = other.with_record(other.record.clone());
                    changes.extend(self.forget_pending(&mut other)?);
                    all.push(other);
                }
                next.record.materials.remove(place);
                next.versions.remove(place);
                continue;
            }
            if let Some(imported) = &mut next.record.materials[place].imported {
                imported.present = false;
                imported.valid_to = None;
            }
        }
        let is_ending =
            matches!(next.record.state, KeyState::PendingDeletion | KeyState::PendingReplicaDeletion);
        if !next.record.is_complete() && !is_ending {
            next.record.set_state(KeyState::PendingImport);
        }
        all.push(next);
        self.replace_all(turn, all, changes)
    }

    /// Takes what is over at `now` from `key`.
    pub(super) fn expire_material(&self, turn: &Turn<'_>, key: &Key, now: Timestamp) -> Result<(), KmsError> {
        let is_over = |material: &MaterialRecord| {
            let valid_to = material.imported.as_ref().and_then(|imported| imported.valid_to);
            valid_to.is_some_and(|at| at <= now)
        };
        let materials = key.record.materials.iter().enumerate();
        let places: Vec<usize> =
            materials.filter(|(_, material)| is_over(material)).map(|(at, _)| at).collect();
        self.drop_imported(turn, key, &places)
    }

    fn forget_pending(&self, key: &mut Key) -> Result<Option<Change>, KmsError> {
        let Some(last) = key.record.materials.last().filter(|material| material.is_pending()) else {
            return Ok(None);
        };
        let change =
            if last.is_present() { Some(self.drop_version(key, key.versions.len() - 1)?) } else { None };
        key.record.materials.pop();
        key.versions.pop();
        Ok(change)
    }

    /// Whether the material that waits in the primary key `record` is there in every replica too.
    pub(super) fn pending_is_everywhere(&self, record: &KeyRecord) -> bool {
        let waits = |record: &KeyRecord| record.materials.last().is_some_and(MaterialRecord::is_pending);
        let is_there = |record: &KeyRecord| record.materials.last().is_some_and(MaterialRecord::is_present);
        waits(record) && self.related(record).iter().all(|key| is_there(&key.record))
    }
}

/// The place of the version that arrives; nothing for a new one.
fn place(record: &KeyRecord, arrival: &Arrival) -> Result<Option<usize>, NotTaken> {
    let known = record.materials.iter().position(|material| material.id == arrival.id);
    let is_first = record.materials.is_empty();
    let is_new = match arrival.kind {
        // A replica takes what its primary key has, and nothing else.
        _ if record.is_replica() => false,
        Some(kind) => kind == ImportType::NewKeyMaterial,
        None => is_first,
    };
    match (is_new, known) {
        (false, None) => Err(NotTaken::Unknown),
        (false, known) => Ok(known),
        (true, Some(_)) => Err(NotTaken::Known),
        (true, None) => match record.materials.last().filter(|material| material.is_pending()) {
            Some(other) => Err(NotTaken::Pending(other.id.clone())),
            None => Ok(None),
        },
    }
}

/// Adds material to the list of `key`, where it is not yet.
fn announce(key: &mut Key, arrival: &Arrival, pending: bool) -> Result<(), KmsError> {
    let record = MaterialRecord {
        id: arrival.id.clone(),
        since: arrival.at,
        rotation_type: None,
        imported: Some(Imported { pending, ..Imported::default() }),
    };
    let version = Version::load(&record, None).ok_or_else(super::change::internal)?;
    key.record.materials.push(record);
    key.versions.push(version);
    Ok(())
}

/// The list of materials with which a replica of `record` begins: imported material does not travel.
pub(super) fn materials_of_replica(record: &KeyRecord) -> Vec<MaterialRecord> {
    let away = |material: &MaterialRecord| {
        let imported = material.imported.as_ref();
        MaterialRecord {
            imported: imported.map(|imported| Imported {
                present: false,
                valid_to: None,
                description: None,
                pending: imported.pending,
            }),
            ..material.clone()
        }
    };
    record.materials.iter().map(away).collect()
}

/// The state in which a key begins.
pub(super) fn first_state(origin: Origin) -> KeyState {
    if origin == Origin::External { KeyState::PendingImport } else { KeyState::Enabled }
}

/// Whether a key rotates: only symmetric ones do.
pub(super) fn rotates(record: &KeyRecord) -> bool {
    record.spec == KeySpec::SymmetricDefault
}
