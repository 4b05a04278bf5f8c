//! Key material in use: unsealed on first need, kept in locked memory, bounded, dropped when its key stops.
//!
//! Called by the operations that use a key, which must show their [`Allowed`].

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::api::{ErrorCode, KeyId, KeyState, KmsError};
use crate::crypto::{Material, MaterialBytes, MaterialError};

use super::authorise::Allowed;
use super::kinds::material_kind;
use super::model::{Key, Version};
use super::pipeline::{Kms, Notes};
use super::root::MaterialAad;

/// Most versions kept unsealed; unsealing another costs microseconds.
const MAX_UNSEALED: usize = 4096;

/// A key and the id of one of its versions.
type Name = (KeyId, [u8; 32]);

/// The cache of unsealed material.
#[derive(Debug, Default)]
pub struct Materials {
    unsealed: RwLock<HashMap<Name, Arc<Material>>>,
}

impl Kms {
    /// The material of `version` of `key`. `allowed` is the proof that somebody may use it.
    pub(super) fn unseal(
        &self,
        _allowed: &Allowed,
        key: &Key,
        version: &Version,
    ) -> Result<Arc<Material>, KmsError> {
        let id = key.record.id;
        if let Some(material) = self.materials.known(id, version) {
            return Ok(material);
        }
        let opened = self.open_version(key, version)?;
        let material = self.materials.keep(id, version, opened);
        // The key may have been stopped between the check of its state and now; then nothing may stay behind.
        if self.key(key.record.home(), id).is_none_or(|now| now.record.state != KeyState::Enabled) {
            self.materials.forget(id);
        }
        Ok(material)
    }

    /// The bytes of `version` of `key`, to be sealed again.
    pub(super) fn open_bytes(&self, key: &Key, version: &Version) -> Result<MaterialBytes, KmsError> {
        let internal = |error: &dyn std::fmt::Display| {
            log::error!("material {} of {} does not open: {error}", version.id_hex, key.record.arn);
            KmsError::new(ErrorCode::KMSInternalException, "")
        };
        let token = version.token.as_ref().ok_or_else(|| internal(&MaterialError))?;
        self.root.open_material(aad(key, &version.id), token).map_err(|error| internal(&error))
    }

    /// The material that a key of one version has; notes which.
    pub(super) fn unseal_current(
        &self,
        allowed: &Allowed,
        key: &Key,
        notes: &mut Notes,
    ) -> Result<Arc<Material>, KmsError> {
        let version = key.current().ok_or_else(|| KmsError::new(ErrorCode::KMSInternalException, ""))?;
        notes.material_id = Some(version.id_hex.clone());
        self.unseal(allowed, key, version)
    }

    fn open_version(&self, key: &Key, version: &Version) -> Result<Material, KmsError> {
        let internal = |error: &dyn std::fmt::Display| {
            log::error!("material {} of {} does not open: {error}", version.id_hex, key.record.arn);
            KmsError::new(ErrorCode::KMSInternalException, "")
        };
        let bytes = self.open_bytes(key, version)?;
        let kind =
            material_kind(key.record.spec, key.record.usage).ok_or_else(|| internal(&MaterialError))?;
        Material::open(kind, &bytes).map_err(|error| internal(&error))
    }
}

impl Materials {
    fn known(&self, id: KeyId, version: &Version) -> Option<Arc<Material>> {
        self.unsealed.read().get(&(id, version.id)).cloned()
    }

    fn keep(&self, id: KeyId, version: &Version, material: Material) -> Arc<Material> {
        let material = Arc::new(material);
        let mut unsealed = self.unsealed.write();
        if unsealed.len() >= MAX_UNSEALED
            && let Some(any) = unsealed.keys().next().copied()
        {
            unsealed.remove(&any);
        }
        unsealed.insert((id, version.id), Arc::clone(&material));
        material
    }

    /// Drops every version of `key`. Memory is wiped when the calls that hold it end.
    pub fn forget(&self, key: KeyId) {
        self.unsealed.write().retain(|(id, _), _| *id != key);
    }

    /// How many versions are unsealed.
    pub fn len(&self) -> usize {
        self.unsealed.read().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a version's sealed material is bound to.
pub fn aad<'a>(key: &'a Key, material_id: &'a [u8; 32]) -> MaterialAad<'a> {
    MaterialAad { key_arn: &key.record.arn, spec: key.record.spec.as_str(), material_id }
}
