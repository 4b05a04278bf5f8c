//! The records of the daemon: as stored (serde), and as held in memory with their policies compiled.
//!
//! Built by `state` at start and by `ops` on each change. A record in memory is never edited: a change makes a new
//! one, commits it and puts it in the old one's place.

use serde::{Deserialize, Serialize};

use crate::api::{
    EncryptionAlgorithm, KeyId, KeyListEntry, KeyManager, KeyMetadata, KeySpec, KeyState, KeyUsage, Origin,
    RotationType, Tag, Timestamp, hex, unhex,
};

use super::blob::BlobHeader;
use super::home::Home;
use super::policy::Policy;

/// A key, as stored (table Key, row id: [`Home::row`] of its id).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its id.
    pub id: KeyId,
    /// Its ARN.
    pub arn: String,
    /// The account it belongs to.
    pub account: String,
    /// The region it lives in; records of a store that had one region do not tell.
    #[serde(default)]
    pub region: String,
    /// When it was made.
    pub created: Timestamp,
    /// For people.
    pub description: String,
    /// What kind of material it has.
    pub spec: KeySpec,
    /// What it is for.
    pub usage: KeyUsage,
    /// Where the material comes from.
    pub origin: Origin,
    /// Who manages it.
    pub manager: KeyManager,
    /// Where it stands in its life.
    pub state: KeyState,
    /// When it will be destroyed.
    pub deletion_date: Option<Timestamp>,
    /// The key policy, as it was put.
    pub policy: String,
    /// Tags, in the order in which they came.
    pub tags: Vec<Tag>,
    /// Automatic rotation, where it is on.
    pub rotation: Option<Rotation>,
    /// Rotations on demand so far.
    pub on_demand_rotations: u32,
    /// Versions of the material, oldest first; the last one encrypts.
    pub materials: Vec<MaterialRecord>,
}

impl KeyRecord {
    /// Where it lives.
    pub fn home(&self) -> Home<'_> {
        Home::new(&self.account, &self.region)
    }
}

/// Automatic rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Days between rotations.
    pub period_days: i64,
    /// When the next one is due.
    pub next: Timestamp,
}

/// One version of a key's material. The material itself, sealed, is a row of table Material.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MaterialRecord {
    /// Its id, in hex.
    pub id: String,
    /// When it took over.
    pub since: Timestamp,
    /// What set the rotation off; nothing for the first version.
    pub rotation_type: Option<RotationType>,
}

/// One version in memory.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its id.
    pub id: [u8; 32],
    /// Its id, in hex.
    pub id_hex: String,
    /// The material, sealed.
    pub token: std::sync::Arc<[u8]>,
}

/// A key in memory.
#[derive(Debug)]
pub struct Key {
    /// As stored.
    pub record: KeyRecord,
    /// The key policy, compiled.
    pub policy: Policy,
    /// Versions of the material, oldest first.
    pub versions: Vec<Version>,
}

impl Key {
    /// The version that encrypts.
    pub fn current(&self) -> Option<&Version> {
        self.versions.last()
    }

    /// The version that a blob names by the first bytes of its id.
    pub fn version(&self, prefix: &[u8; 8]) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.id.starts_with(prefix))
    }

    /// What a blob made by `version` says of itself.
    pub fn blob_header(&self, version: &Version) -> BlobHeader {
        let mut material = [0; 8];
        material.copy_from_slice(&version.id[..8]);
        BlobHeader { multi_region: self.record.id.multi_region, key_id: self.record.id.bytes, material }
    }

    /// As `DescribeKey` shows it.
    pub fn metadata(&self) -> KeyMetadata {
        let record = &self.record;
        let symmetric = record.spec == KeySpec::SymmetricDefault;
        KeyMetadata {
            account: record.account.clone(),
            key_id: record.id.to_string(),
            arn: record.arn.clone(),
            creation_date: record.created,
            enabled: record.state == KeyState::Enabled,
            description: record.description.clone(),
            key_usage: record.usage,
            key_state: record.state,
            deletion_date: record.deletion_date,
            valid_to: None,
            origin: record.origin,
            expiration_model: None,
            key_manager: record.manager,
            customer_master_key_spec: Some(record.spec),
            key_spec: record.spec,
            encryption_algorithms: symmetric.then(|| vec![EncryptionAlgorithm::SymmetricDefault]),
            multi_region: record.id.multi_region,
            current_key_material_id: self.current().map(|version| version.id_hex.clone()),
        }
    }

    /// As `ListKeys` shows it.
    pub fn entry(&self) -> KeyListEntry {
        KeyListEntry { key_id: self.record.id.to_string(), key_arn: self.record.arn.clone() }
    }
}

impl Version {
    /// From a record and its sealed material; `None` if the id is no id.
    pub fn load(record: &MaterialRecord, token: Vec<u8>) -> Option<Self> {
        let id: [u8; 32] = unhex(&record.id)?.try_into().ok()?;
        Some(Self { id, id_hex: hex(&id), token: token.into() })
    }
}

/// Row id of a version's sealed material; `key_row` is the row id of its key.
pub fn material_row(key_row: &str, material_id_hex: &str) -> String {
    format!("{key_row}/{material_id_hex}")
}

/// An alias (table Alias, row id: [`Home::row`] of its name with prefix).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AliasRecord {
    /// With its prefix.
    pub name: String,
    /// The account it belongs to; records of a store that had one account do not tell.
    #[serde(default)]
    pub account: String,
    /// The region it lives in; the same.
    #[serde(default)]
    pub region: String,
    /// The key it points to.
    pub target: KeyId,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last pointed elsewhere.
    pub updated: Timestamp,
}

impl AliasRecord {
    /// A new one.
    pub fn new(home: Home<'_>, name: String, target: KeyId, now: Timestamp) -> Self {
        let (account, region) = (home.account.to_owned(), home.region.to_owned());
        Self { name, account, region, target, created: now, updated: now }
    }

    /// Where it lives.
    pub fn home(&self) -> Home<'_> {
        Home::new(&self.account, &self.region)
    }
}
