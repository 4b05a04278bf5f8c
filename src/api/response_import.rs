//! Answers about key material that customers bring, and about multi-Region keys.

use serde::{Deserialize, Serialize};

use super::{Blob, KeyMetadata, MultiRegionKeyType, Tag, Timestamp};

/// Answer of `GetParametersForImport`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetParametersForImportResponse {
    /// ARN of the key.
    pub key_id: String,
    /// To be sent with the material.
    pub import_token: Blob,
    /// The wrapping key: SubjectPublicKeyInfo in DER.
    pub public_key: Blob,
    /// Until when both can be used.
    pub parameters_valid_to: Timestamp,
}

/// Answer of `ImportKeyMaterial` and `DeleteImportedKeyMaterial`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyMaterialResponse {
    /// ARN of the key.
    pub key_id: String,
    /// Which material, in hex; for symmetric keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_material_id: Option<String>,
}

/// Answer of `ReplicateKey`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ReplicateKeyResponse {
    /// The replica.
    pub replica_key_metadata: KeyMetadata,
    /// Its policy.
    pub replica_policy: String,
    /// Its tags; absent where it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replica_tags: Vec<Tag>,
}

/// The keys of a multi-Region key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MultiRegionConfiguration {
    /// What the key is that was asked for.
    pub multi_region_key_type: MultiRegionKeyType,
    /// The primary key.
    pub primary_key: MultiRegionKey,
    /// The replicas.
    pub replica_keys: Vec<MultiRegionKey>,
}

/// One key of a multi-Region key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MultiRegionKey {
    /// Its ARN.
    pub arn: String,
    /// Where it lives.
    pub region: String,
}
