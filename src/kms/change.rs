//! Changes of records: committed to the store first, then put in place in memory.
//!
//! Called by the operations that change something, by the seed file and by the background work. Each change demands
//! the [`Turn`], so that what was read before it is still so.

use std::sync::Arc;

use serde::Serialize;

use crate::api::{ErrorCode, KeyId, KeyState, KmsError, Timestamp};
use crate::crypto::MaterialBytes;

use super::grants::GrantRecord;
use super::home::Home;
use super::kinds::material_kind;
use super::materials;
use super::model::{AliasRecord, Key, KeyRecord, MaterialRecord, Tombstone, Version, material_row};
use super::pipeline::{Kms, Turn};
use super::policy::Policy;
use super::state::MARK_PREFIX;
use super::store::{Change, Table};

impl Kms {
    /// Puts a key with its first versions in place.
    pub(super) fn insert_key(
        &self,
        _turn: &Turn<'_>,
        record: KeyRecord,
        policy: Policy,
        material: Option<&MaterialBytes>,
        aliases: Vec<AliasRecord>,
    ) -> Result<Arc<Key>, KmsError> {
        let mut key = Key { record, policy, versions: Vec::new() };
        let mut changes = Vec::new();
        if let Some(material) = material {
            changes.push(self.add_version(&mut key, material, None)?);
        }
        changes.push(put(Table::Key, self.key_row(&key.record), &key.record)?);
        for alias in &aliases {
            changes.push(put(Table::Alias, self.alias_row(alias), alias)?);
        }
        self.commit(&changes)?;
        let key = Arc::new(key);
        let mut state = self.state.write();
        state.put_key(&key);
        for alias in aliases {
            state.put_alias(&Arc::new(alias));
        }
        Ok(key)
    }

    /// Changes a key's record.
    pub(super) fn update_key(
        &self,
        turn: &Turn<'_>,
        key: &Key,
        change: impl FnOnce(&mut KeyRecord),
    ) -> Result<(), KmsError> {
        let mut record = key.record.clone();
        change(&mut record);
        self.replace_all(turn, vec![key.with_record(record)], Vec::new())
    }

    /// Changes a key's policy.
    pub(super) fn update_policy(
        &self,
        turn: &Turn<'_>,
        key: &Key,
        text: String,
        policy: Policy,
    ) -> Result<(), KmsError> {
        let record = KeyRecord { policy: text, ..key.record.clone() };
        let next = Key { record, policy, versions: key.versions.clone() };
        self.replace_all(turn, vec![next], Vec::new())
    }

    /// Puts new forms of keys in place, together with other changes of the store.
    pub(super) fn replace_all(
        &self,
        _turn: &Turn<'_>,
        next: Vec<Key>,
        mut changes: Vec<Change>,
    ) -> Result<(), KmsError> {
        for key in &next {
            changes.push(put(Table::Key, self.key_row(&key.record), &key.record)?);
        }
        self.commit(&changes)?;
        let stopped: Vec<KeyId> = next
            .iter()
            .filter(|key| key.record.state != KeyState::Enabled)
            .map(|key| key.record.id)
            .collect();
        let mut state = self.state.write();
        for key in next {
            state.put_key(&Arc::new(key));
        }
        drop(state);
        for id in stopped {
            self.materials.forget(id);
        }
        Ok(())
    }

    /// Adds a version to `key`, which is not in place yet: the change that stores its material.
    pub(super) fn add_version(
        &self,
        key: &mut Key,
        material: &MaterialBytes,
        rotation: Option<MaterialRotation>,
    ) -> Result<Change, KmsError> {
        let id = material.id(&key.record.id.bytes);
        let record = MaterialRecord {
            id: crate::api::hex(&id),
            since: rotation.map_or(key.record.created, |rotation| rotation.since),
            rotation_type: rotation.map(|rotation| rotation.rotation_type),
            imported: None,
        };
        let version = Version { id, id_hex: record.id.clone(), token: None };
        key.record.materials.push(record);
        key.versions.push(version);
        self.store_version(key, key.versions.len() - 1, material)
    }

    /// Puts material to the version at `at` of `key`, which is not in place yet.
    pub(super) fn store_version(
        &self,
        key: &mut Key,
        at: usize,
        material: &MaterialBytes,
    ) -> Result<Change, KmsError> {
        let version = key.versions.get(at).ok_or_else(internal)?;
        let token = self.root.seal_material(materials::aad(key, &version.id), material);
        let row = material_row(&self.key_row(&key.record), &version.id_hex);
        key.versions[at].token = Some(token.as_slice().into());
        Ok(Change::Put { table: Table::Material, id: row, body: token })
    }

    /// Takes the material from the version at `at` of `key`, which is not in place yet.
    pub(super) fn drop_version(&self, key: &mut Key, at: usize) -> Result<Change, KmsError> {
        let version = key.versions.get_mut(at).ok_or_else(internal)?;
        version.token = None;
        let row = material_row(&self.key_row(&key.record), &key.versions[at].id_hex);
        Ok(Change::Delete { table: Table::Material, id: row })
    }

    /// Destroys a key: its material, its record and its aliases.
    pub(super) fn destroy_key(&self, _turn: &Turn<'_>, key: &Key, now: Timestamp) -> Result<(), KmsError> {
        let (id, home, row) = (key.record.id, key.record.home(), self.key_row(&key.record));
        let aliases = self.aliases_of(home, id);
        let mut changes: Vec<Change> = key
            .record
            .materials
            .iter()
            .map(|material| Change::Delete { table: Table::Material, id: material_row(&row, &material.id) })
            .collect();
        changes.extend(
            aliases.iter().map(|alias| Change::Delete { table: Table::Alias, id: self.alias_row(alias) }),
        );
        let grants: Vec<String> =
            self.state.read().grants.of_key(&key.record.arn).map(|grant| grant.id.clone()).collect();
        changes.extend(grants.into_iter().map(|id| Change::Delete { table: Table::Grant, id }));
        let tombstone = Tombstone { arn: key.record.arn.clone(), destroyed: now };
        changes.push(put(Table::Tombstone, row.clone(), &tombstone)?);
        changes.push(Change::Delete { table: Table::Key, id: row });
        changes.push(Change::Delete { table: Table::LastUse, id: key.record.arn.clone() });
        let primary = self.primary_without(key, now);
        if let Some(primary) = &primary {
            changes.push(put(Table::Key, self.key_row(&primary.record), &primary.record)?);
        }
        self.commit(&changes)?;
        let mut state = self.state.write();
        if let Some(primary) = primary {
            state.put_key(&Arc::new(primary));
        }
        let realm = state.realm_mut(home);
        realm.keys.remove(&id);
        for alias in &aliases {
            realm.aliases.remove(&alias.name);
        }
        state.grants.remove_key(&key.record.arn);
        state.destroyed.insert(tombstone.arn);
        drop(state);
        self.materials.forget(id);
        self.last_usage.forget(&key.record.arn);
        Ok(())
    }

    /// The aliases of a key.
    pub(super) fn aliases_of(&self, home: Home<'_>, id: KeyId) -> Vec<Arc<AliasRecord>> {
        self.state.read().realm(home).aliases.values().filter(|alias| alias.target == id).cloned().collect()
    }

    /// Puts an alias in place.
    pub(super) fn put_alias(&self, _turn: &Turn<'_>, alias: AliasRecord) -> Result<(), KmsError> {
        self.commit(&[put(Table::Alias, self.alias_row(&alias), &alias)?])?;
        self.state.write().put_alias(&Arc::new(alias));
        Ok(())
    }

    /// Removes an alias.
    pub(super) fn remove_alias(&self, _turn: &Turn<'_>, alias: &AliasRecord) -> Result<(), KmsError> {
        self.commit(&[Change::Delete { table: Table::Alias, id: self.alias_row(alias) }])?;
        self.state.write().realm_mut(alias.home()).aliases.remove(&alias.name);
        Ok(())
    }

    /// Puts a grant in place.
    pub(super) fn put_grant(&self, _turn: &Turn<'_>, record: GrantRecord) -> Result<(), KmsError> {
        self.commit(&[put(Table::Grant, record.id.clone(), &record)?])?;
        self.state.write().grants.insert(record);
        Ok(())
    }

    /// Removes a grant.
    pub(super) fn remove_grant(&self, _turn: &Turn<'_>, id: &str) -> Result<(), KmsError> {
        self.commit(&[Change::Delete { table: Table::Grant, id: id.to_owned() }])?;
        self.state.write().grants.remove(id);
        Ok(())
    }

    /// Row id of a key.
    fn key_row(&self, record: &KeyRecord) -> String {
        record.home().row(self.settings.home(), &record.id)
    }

    /// Row id of an alias.
    fn alias_row(&self, record: &AliasRecord) -> String {
        record.home().row(self.settings.home(), &record.name)
    }

    /// Raises a mark.
    pub(super) fn put_mark(&self, _turn: &Turn<'_>, owner: String, value: i64) -> Result<(), KmsError> {
        self.commit(&[put(Table::Setting, format!("{MARK_PREFIX}{owner}"), &value)?])?;
        self.state.write().marks.insert(owner, value);
        Ok(())
    }

    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), KmsError> {
        self.store.commit(changes).map_err(|error| {
            log::error!("a change was refused because it could not be stored: {error}");
            internal()
        })?;
        self.changes.stored(changes);
        Ok(())
    }
}

impl super::policy::AliasNames for Kms {
    fn alias_names(&self, home: Home<'_>, id: KeyId) -> Vec<String> {
        self.aliases_of(home, id).iter().map(|alias| alias.name.clone()).collect()
    }
}

/// Fresh material for a key.
pub(super) fn fresh_material(record: &KeyRecord) -> Result<MaterialBytes, KmsError> {
    let kind = material_kind(record.spec, record.usage).ok_or_else(internal)?;
    MaterialBytes::generate(kind).map_err(|_| internal())
}

/// What made a version.
#[derive(Debug, Clone, Copy)]
pub struct MaterialRotation {
    /// When.
    pub since: crate::api::Timestamp,
    /// On whose demand.
    pub rotation_type: crate::api::RotationType,
}

/// The change that stores a record.
pub(super) fn put(table: Table, id: String, record: &impl Serialize) -> Result<Change, KmsError> {
    let body = serde_json::to_vec(record).map_err(|_| internal())?;
    Ok(Change::Put { table, id, body })
}

pub(super) fn internal() -> KmsError {
    KmsError::new(ErrorCode::KMSInternalException, "The record could not be stored.")
}
