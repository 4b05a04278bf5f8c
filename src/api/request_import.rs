//! Requests about key material that customers bring, and about multi-Region keys.

use super::request_data::KEY_REF;
use super::rule::Rule::{self, Form, Length};
use super::rule::{KEY_MATERIAL_DESCRIPTION, KEY_MATERIAL_ID, POLICY_TEXT, REGION};
use super::shape::shape;
use super::{Blob, ExpirationModel, ImportType, Tag, Timestamp, WrappingAlgorithm, WrappingKeySpec};

const CIPHERTEXT: Rule = Length(1, 6144);
const MATERIAL_ID: [Rule; 2] = [Length(64, 64), Form(&KEY_MATERIAL_ID)];
const MATERIAL_DESCRIPTION: [Rule; 2] = [Length(0, 256), Form(&KEY_MATERIAL_DESCRIPTION)];
const POLICY: [Rule; 2] = [Length(1, 131_072), Form(&POLICY_TEXT)];
const REGION_NAME: [Rule; 2] = [Length(1, 32), Form(&REGION)];

shape! {
    /// Asks for a wrapping key.
    GetParametersForImportRequest for GetParametersForImport {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// How the material will be wrapped.
            wrapping_algorithm: WrappingAlgorithm,
            /// What kind of wrapping key.
            wrapping_key_spec: WrappingKeySpec,
        }
    }

    /// Brings key material.
    ImportKeyMaterialRequest for ImportKeyMaterial {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// As it came with the wrapping key.
            import_token: Blob [CIPHERTEXT],
            /// The material, wrapped.
            encrypted_key_material: Blob [CIPHERTEXT],
        }
        optional {
            /// When it expires.
            valid_to: Timestamp,
            /// Whether it expires; it does where absent.
            expiration_model: ExpirationModel,
            /// Whether the key had it before.
            import_type: ImportType,
            /// For people.
            key_material_description: String [MATERIAL_DESCRIPTION[0], MATERIAL_DESCRIPTION[1]],
            /// Which material it should be, in hex.
            key_material_id: String [MATERIAL_ID[0], MATERIAL_ID[1]],
        }
    }

    /// Takes key material away.
    DeleteImportedKeyMaterialRequest for DeleteImportedKeyMaterial {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Which material, in hex; the current one where absent.
            key_material_id: String [MATERIAL_ID[0], MATERIAL_ID[1]],
        }
    }

    /// Makes a replica of a multi-Region key.
    ReplicateKeyRequest for ReplicateKey {
        required {
            /// The primary key: id or ARN.
            key_id: String [KEY_REF],
            /// Where the replica shall live.
            replica_region: String [REGION_NAME[0], REGION_NAME[1]],
        }
        optional {
            /// Who may use the replica; the default policy where absent.
            policy: String [POLICY[0], POLICY[1]],
            /// Take a policy that locks the caller out.
            bypass_policy_lockout_safety_check: bool,
            /// For people.
            description: String [Length(0, 8192)],
            /// Tags to begin with.
            tags: Vec<Tag>,
        }
    }

    /// Makes a replica the primary key.
    UpdatePrimaryRegionRequest for UpdatePrimaryRegion {
        required {
            /// The primary key: id or ARN.
            key_id: String [KEY_REF],
            /// Where the replica lives.
            primary_region: String [REGION_NAME[0], REGION_NAME[1]],
        }
    }
}
