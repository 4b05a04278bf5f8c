//! The records of the daemon: as stored (serde), and as held in memory with their policies compiled.
//!
//! Built by `state` at start and by `ops` on each change. A record in memory is never edited: a change makes a new
//! one, commits it and puts it in the old one's place.

use serde::{Deserialize, Serialize};

use crate::api::{
    ExpirationModel, KeyId, KeyListEntry, KeyManager, KeyMetadata, KeySpec, KeyState, KeyUsage,
    MultiRegionKeyType, Origin, RotationType, Tag, Timestamp, hex, unhex,
};

use super::blob::BlobHeader;
use super::home::Home;
use super::kinds::Algorithms;
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
    /// Versions of the material, oldest first; the last one that is not pending encrypts.
    pub materials: Vec<MaterialRecord>,
    /// Ids of versions that were retired, so that it can be said of what is still under them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<String>,
    /// For a multi-Region key: the region of the primary key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_region: Option<String>,
    /// For a primary key that waits for its replicas to be destroyed: days it lives on after the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_window_days: Option<i64>,
    /// What a passing state ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settles: Option<Settles>,
}

/// The end of a passing state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settles {
    /// When.
    pub at: Timestamp,
    /// In which state.
    pub to: KeyState,
}

impl KeyRecord {
    /// The place of the version that encrypts.
    pub fn current_material(&self) -> Option<usize> {
        self.materials.iter().rposition(|material| !material.is_pending())
    }

    /// Whether it has material, and none that was ever in use is away.
    pub fn is_complete(&self) -> bool {
        let mut used = self.materials.iter().filter(|material| !material.is_pending()).peekable();
        used.peek().is_some() && used.all(MaterialRecord::is_present)
    }

    /// Its state from now on, or from the end of the passing state on in which it is.
    pub fn set_state(&mut self, state: KeyState) {
        match &mut self.settles {
            Some(settles) => settles.to = state,
            None => self.state = state,
        }
    }

    /// The state that it has, or will have when the passing one ends.
    pub fn lasting_state(&self) -> KeyState {
        self.settles.map_or(self.state, |settles| settles.to)
    }

    /// Whether it is the primary key of a multi-Region key.
    pub fn is_primary(&self) -> bool {
        self.primary_region.as_ref() == Some(&self.region)
    }

    /// Which kind of multi-Region key it is, if it is one.
    pub fn multi_region_type(&self) -> Option<MultiRegionKeyType> {
        let type_ = if self.is_primary() { MultiRegionKeyType::Primary } else { MultiRegionKeyType::Replica };
        self.primary_region.as_ref().map(|_| type_)
    }

    /// Whether it is a replica of a multi-Region key.
    pub fn is_replica(&self) -> bool {
        self.primary_region.is_some() && !self.is_primary()
    }

    /// When the first of the material in use expires.
    fn valid_to(&self) -> Option<Timestamp> {
        let used = self.materials.iter().filter(|material| !material.is_pending());
        used.filter_map(|material| material.imported.as_ref()?.valid_to).min()
    }

    fn expiration_model(&self) -> Option<ExpirationModel> {
        let known = self.origin == Origin::External && self.is_complete();
        let expires = self.valid_to().is_some();
        known.then_some(if expires { ExpirationModel::Expires } else { ExpirationModel::DoesNotExpire })
    }

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
    /// What is known of material that a customer brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// Material that a customer brought. It may be away: deleted or expired, and to be brought again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Whether it is here; if not, there is no row in table Material.
    pub present: bool,
    /// Whether it waits for a rotation to take over; it is the last version then.
    #[serde(default)]
    pub pending: bool,
    /// When it expires, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_to: Option<Timestamp>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl MaterialRecord {
    /// Whether it waits for a rotation to take over.
    pub fn is_pending(&self) -> bool {
        self.imported.as_ref().is_some_and(|imported| imported.pending)
    }

    /// Whether it is here.
    pub fn is_present(&self) -> bool {
        self.imported.as_ref().is_none_or(|imported| imported.present)
    }
}

/// One version in memory.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its id.
    pub id: [u8; 32],
    /// Its id, in hex.
    pub id_hex: String,
    /// The material, sealed; nothing while it is away.
    pub token: Option<std::sync::Arc<[u8]>>,
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
        self.record.current_material().and_then(|at| self.versions.get(at))
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

    /// The same key with another record; `record` must have the same versions.
    #[must_use]
    pub fn with_record(&self, record: KeyRecord) -> Self {
        Self { record, policy: self.policy.clone(), versions: self.versions.clone() }
    }

    /// As `DescribeKey` shows it, but for its relations.
    pub fn metadata(&self) -> KeyMetadata {
        let record = &self.record;
        let algorithms = Algorithms::of(record.spec, record.usage);
        let symmetric = record.spec == KeySpec::SymmetricDefault;
        KeyMetadata {
            account: record.account.clone(),
            key_id: record.id.to_string(),
            arn: record.arn.clone(),
            creation_date: record.created,
            enabled: matches!(record.state, KeyState::Enabled | KeyState::Updating),
            description: record.description.clone(),
            key_usage: record.usage,
            key_state: record.state,
            deletion_date: record.deletion_date,
            valid_to: record.expiration_model().and_then(|_| record.valid_to()),
            origin: record.origin,
            expiration_model: record.expiration_model(),
            key_manager: record.manager,
            customer_master_key_spec: Some(record.spec),
            key_spec: record.spec,
            encryption_algorithms: algorithms.encryption,
            signing_algorithms: algorithms.signing,
            key_agreement_algorithms: algorithms.agreement,
            mac_algorithms: algorithms.mac,
            encapsulation_algorithms: algorithms.encapsulation,
            multi_region: record.id.multi_region,
            multi_region_configuration: None,
            pending_deletion_window_in_days: record.pending_window_days,
            current_key_material_id: self
                .current()
                .filter(|_| symmetric)
                .map(|version| version.id_hex.clone()),
        }
    }

    /// As `ListKeys` shows it.
    pub fn entry(&self) -> KeyListEntry {
        KeyListEntry { key_id: self.record.id.to_string(), key_arn: self.record.arn.clone() }
    }
}

impl Version {
    /// From a record and its sealed material; `None` if the id is no id.
    pub fn load(record: &MaterialRecord, token: Option<Vec<u8>>) -> Option<Self> {
        let id: [u8; 32] = unhex(&record.id)?.try_into().ok()?;
        Some(Self { id, id_hex: hex(&id), token: token.map(Into::into) })
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

/// What is left of a destroyed key (table Tombstone, row id = that of the key): a seed does not make it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tombstone {
    /// ARN of the key.
    pub arn: String,
    /// When it was destroyed.
    pub destroyed: Timestamp,
}
