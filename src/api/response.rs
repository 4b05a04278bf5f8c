//! Answers, as the daemon writes and a client reads them. Members that a client may miss are optional or default.

use serde::{Deserialize, Serialize};

use super::{
    Blob, EncapsulationAlgorithm, EncryptionAlgorithm, ExpirationModel, ImportState, KeyAgreementAlgorithm,
    KeyManager, KeySpec, KeyState, KeyUsage, MacAlgorithm, MaterialState, MultiRegionConfiguration, Origin,
    RotationType, SecretBlob, SigningAlgorithm, Tag, Timestamp,
};

macro_rules! answers {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name { $($(#[$fmeta])* pub $field: $type,)* }
    )+};
}
pub(super) use answers;

answers! {
    /// Answer of `Encrypt`.
    EncryptResponse {
        /// The ciphertext.
        ciphertext_blob: Blob,
        /// ARN of the key.
        key_id: String,
        /// How it was encrypted.
        encryption_algorithm: EncryptionAlgorithm,
    }

    /// Answer of `Decrypt`.
    DecryptResponse {
        /// ARN of the key.
        key_id: String,
        /// The plaintext.
        plaintext: SecretBlob,
        /// How it was encrypted.
        encryption_algorithm: EncryptionAlgorithm,
        /// Which version of the key, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
    }

    /// Answer of `ReEncrypt`.
    ReEncryptResponse {
        /// The new ciphertext.
        ciphertext_blob: Blob,
        /// ARN of the key that decrypted.
        source_key_id: String,
        /// ARN of the key that encrypted.
        key_id: String,
        /// How it was encrypted.
        source_encryption_algorithm: EncryptionAlgorithm,
        /// How it is encrypted.
        destination_encryption_algorithm: EncryptionAlgorithm,
        /// Which version decrypted, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_key_material_id: Option<String>,
        /// Which version encrypted, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination_key_material_id: Option<String>,
    }

    /// Answer of `GenerateDataKey`.
    GenerateDataKeyResponse {
        /// The data key, encrypted.
        ciphertext_blob: Blob,
        /// The data key, plain.
        plaintext: SecretBlob,
        /// ARN of the key.
        key_id: String,
        /// Which version of the key, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
    }

    /// Answer of `GenerateDataKeyWithoutPlaintext`.
    GenerateDataKeyWithoutPlaintextResponse {
        /// The data key, encrypted.
        ciphertext_blob: Blob,
        /// ARN of the key.
        key_id: String,
        /// Which version of the key, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
    }

    /// Answer of `GenerateRandom`.
    GenerateRandomResponse {
        /// The bytes.
        plaintext: SecretBlob,
    }

    /// What a key is.
    #[derive(Clone)]
    KeyMetadata {
        /// The account it belongs to.
        #[serde(rename = "AWSAccountId", default)]
        account: String,
        /// Its id.
        key_id: String,
        /// Its ARN.
        arn: String,
        /// When it was made.
        creation_date: Timestamp,
        /// Whether its state is `Enabled`.
        enabled: bool,
        /// For people.
        #[serde(default)]
        description: String,
        /// What it is for.
        key_usage: KeyUsage,
        /// Where it stands in its life.
        key_state: KeyState,
        /// When it will be destroyed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deletion_date: Option<Timestamp>,
        /// When imported material expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        valid_to: Option<Timestamp>,
        /// Where the material comes from.
        origin: Origin,
        /// Whether imported material expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expiration_model: Option<ExpirationModel>,
        /// Who manages it.
        key_manager: KeyManager,
        /// The old name of `key_spec`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        customer_master_key_spec: Option<KeySpec>,
        /// What kind of material it has.
        key_spec: KeySpec,
        /// What it can encrypt with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encryption_algorithms: Option<Vec<EncryptionAlgorithm>>,
        /// What it can sign with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signing_algorithms: Option<Vec<SigningAlgorithm>>,
        /// How it can agree on secrets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_agreement_algorithms: Option<Vec<KeyAgreementAlgorithm>>,
        /// What it can make MACs with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac_algorithms: Option<Vec<MacAlgorithm>>,
        /// How it can encapsulate secrets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encapsulation_algorithms: Option<Vec<EncapsulationAlgorithm>>,
        /// Whether it may be replicated.
        #[serde(default)]
        multi_region: bool,
        /// The keys of a multi-Region key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        multi_region_configuration: Option<MultiRegionConfiguration>,
        /// Days that a primary key lives on after the last of its replicas.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pending_deletion_window_in_days: Option<i64>,
        /// The version that encrypts, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        current_key_material_id: Option<String>,
    }

    /// Answer of `CreateKey` and `DescribeKey`.
    KeyMetadataResponse {
        /// The key.
        key_metadata: KeyMetadata,
    }

    /// An entry of `ListKeys`.
    KeyListEntry {
        /// Its id.
        key_id: String,
        /// Its ARN.
        key_arn: String,
    }

    /// Answer of `ListKeys`.
    ListKeysResponse {
        /// The page.
        keys: Vec<KeyListEntry>,
        /// Where it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_marker: Option<String>,
        /// Whether there is more.
        #[serde(default)]
        truncated: bool,
    }

    /// Answer of `ScheduleKeyDeletion`.
    ScheduleKeyDeletionResponse {
        /// ARN of the key.
        key_id: String,
        /// When it will be destroyed; not known yet of a primary key that has replicas.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deletion_date: Option<Timestamp>,
        /// Its state now.
        key_state: KeyState,
        /// Days until then.
        pending_window_in_days: i64,
    }

    /// Answer of `CancelKeyDeletion` and `RotateKeyOnDemand`.
    KeyIdResponse {
        /// The key.
        key_id: String,
    }

    /// An entry of `ListAliases`.
    AliasListEntry {
        /// `alias/NAME`.
        alias_name: String,
        /// Its ARN.
        alias_arn: String,
        /// Id of the key it points to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_key_id: Option<String>,
        /// When it was made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        creation_date: Option<Timestamp>,
        /// When it was last pointed elsewhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_updated_date: Option<Timestamp>,
    }

    /// Answer of `ListAliases`.
    ListAliasesResponse {
        /// The page.
        aliases: Vec<AliasListEntry>,
        /// Where it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_marker: Option<String>,
        /// Whether there is more.
        #[serde(default)]
        truncated: bool,
    }

    /// Answer of `GetKeyPolicy`.
    GetKeyPolicyResponse {
        /// The document, as it was put.
        policy: String,
        /// `default`.
        #[serde(default)]
        policy_name: String,
    }

    /// Answer of `ListKeyPolicies`.
    ListKeyPoliciesResponse {
        /// The page.
        policy_names: Vec<String>,
        /// Whether there is more.
        #[serde(default)]
        truncated: bool,
    }

    /// Answer of `ListResourceTags`.
    ListResourceTagsResponse {
        /// The page.
        tags: Vec<Tag>,
        /// Where it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_marker: Option<String>,
        /// Whether there is more.
        #[serde(default)]
        truncated: bool,
    }

    /// Answer of `GetKeyRotationStatus`.
    GetKeyRotationStatusResponse {
        /// Whether it rotates by itself.
        key_rotation_enabled: bool,
        /// ARN of the key.
        #[serde(default)]
        key_id: String,
        /// Days between rotations.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation_period_in_days: Option<i64>,
        /// When it rotates next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_rotation_date: Option<Timestamp>,
        /// When a rotation on demand that is under way began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_demand_rotation_start_date: Option<Timestamp>,
    }

    /// An entry of `ListKeyRotations`.
    RotationListEntry {
        /// ARN of the key.
        key_id: String,
        /// Which version of the material, in hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_id: Option<String>,
        /// What the customer said of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_description: Option<String>,
        /// Whether it is here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        import_state: Option<ImportState>,
        /// Whether it is the one that encrypts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_material_state: Option<MaterialState>,
        /// Whether it expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expiration_model: Option<ExpirationModel>,
        /// When it expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        valid_to: Option<Timestamp>,
        /// When it took over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation_date: Option<Timestamp>,
        /// What set the rotation off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation_type: Option<RotationType>,
    }

    /// Answer of `ListKeyRotations`.
    ListKeyRotationsResponse {
        /// The page.
        rotations: Vec<RotationListEntry>,
        /// Where it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_marker: Option<String>,
        /// Whether there is more.
        #[serde(default)]
        truncated: bool,
    }

    /// Answer of operations that say nothing: no body at all.
    EmptyResponse {}
}
