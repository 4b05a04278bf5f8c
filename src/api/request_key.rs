//! Requests that make, show and change keys, aliases, policies and tags.

use super::request_data::KEY_REF;
use super::rule::Rule::{self, Each, Form, Length, Range};
use super::rule::{ALIAS_NAME, MARKER, POLICY_NAME, POLICY_TEXT};
use super::shape::shape;
use super::{CustomerMasterKeySpec, IncludeKeyMaterial, KeySpec, KeyUsage, Origin, ResourceOwner};

const ALIAS: [Rule; 2] = [Length(1, 256), Form(&ALIAS_NAME)];
const DESCRIPTION: Rule = Length(0, 8192);
const LIMIT: Rule = Range(1, 1000);
const MARKERS: [Rule; 2] = [Length(1, 1024), Form(&MARKER)];
const POLICY: [Rule; 2] = [Length(1, 131_072), Form(&POLICY_TEXT)];
const POLICY_NAMES: [Rule; 2] = [Length(1, 128), Form(&POLICY_NAME)];
const GRANT_TOKENS: [Rule; 2] = [Length(0, 10), Each(&[Length(1, 8192)])];

shape! {
    /// A tag of a key.
    #[derive(Clone, PartialEq, Eq, serde::Deserialize)]
    Tag {
        required {
            /// Its name.
            tag_key: String [Length(1, 128)],
            /// Its value.
            tag_value: String [Length(0, 256)],
        }
    }

    /// Makes a key.
    CreateKeyRequest for CreateKey {
        optional {
            /// Who may use it; the default policy where absent.
            policy: String [POLICY[0], POLICY[1]],
            /// For people.
            description: String [DESCRIPTION],
            /// What it is for.
            key_usage: KeyUsage,
            /// The old name of `key_spec`.
            customer_master_key_spec: CustomerMasterKeySpec,
            /// What kind of material it has.
            key_spec: KeySpec,
            /// Where the material comes from.
            origin: Origin,
            /// A store of its own.
            custom_key_store_id: String [Length(1, 64)],
            /// Take a policy that locks the caller out.
            bypass_policy_lockout_safety_check: bool,
            /// Tags to begin with.
            tags: Vec<Tag>,
            /// Whether it may be replicated.
            multi_region: bool,
            /// A key in an external store.
            xks_key_id: String [Length(1, 128)],
        }
    }

    /// Shows a key.
    DescribeKeyRequest for DescribeKey {
        required {
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [GRANT_TOKENS[0], GRANT_TOKENS[1]],
        }
    }

    /// Lists keys.
    ListKeysRequest for ListKeys {
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
            /// Whose keys.
            resource_owners: Vec<ResourceOwner> [Length(1, 2)],
        }
    }

    /// Lets a key be used.
    EnableKeyRequest for EnableKey {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Stops every use of a key.
    DisableKeyRequest for DisableKey {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Sets the day on which a key is destroyed.
    ScheduleKeyDeletionRequest for ScheduleKeyDeletion {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Days until then.
            pending_window_in_days: i64 [Range(1, 365)],
        }
    }

    /// Takes that day back.
    CancelKeyDeletionRequest for CancelKeyDeletion {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Describes a key anew.
    UpdateKeyDescriptionRequest for UpdateKeyDescription {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// For people.
            description: String [DESCRIPTION],
        }
    }

    /// Gives a key another name.
    CreateAliasRequest for CreateAlias {
        required {
            /// `alias/NAME`.
            alias_name: String [ALIAS[0], ALIAS[1]],
            /// The key: id or ARN.
            target_key_id: String [KEY_REF],
        }
    }

    /// Points a name to another key.
    UpdateAliasRequest for UpdateAlias {
        required {
            /// `alias/NAME`.
            alias_name: String [ALIAS[0], ALIAS[1]],
            /// The key: id or ARN.
            target_key_id: String [KEY_REF],
        }
    }

    /// Removes a name.
    DeleteAliasRequest for DeleteAlias {
        required {
            /// `alias/NAME`.
            alias_name: String [ALIAS[0], ALIAS[1]],
        }
    }

    /// Lists names.
    ListAliasesRequest for ListAliases {
        optional {
            /// Of this key only.
            key_id: String [KEY_REF],
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
        }
    }

    /// Replaces a key's policy.
    PutKeyPolicyRequest for PutKeyPolicy {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// The document.
            policy: String [POLICY[0], POLICY[1]],
        }
        optional {
            /// `default`.
            policy_name: String [POLICY_NAMES[0], POLICY_NAMES[1]],
            /// Take a policy that locks the caller out.
            bypass_policy_lockout_safety_check: bool,
        }
    }

    /// Shows a key's policy.
    GetKeyPolicyRequest for GetKeyPolicy {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// `default`.
            policy_name: String [POLICY_NAMES[0], POLICY_NAMES[1]],
        }
    }

    /// Lists the names of a key's policies.
    ListKeyPoliciesRequest for ListKeyPolicies {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
        }
    }

    /// Adds or replaces tags.
    TagResourceRequest for TagResource {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// The tags.
            tags: Vec<Tag>,
        }
    }

    /// Removes tags.
    UntagResourceRequest for UntagResource {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// Their names.
            tag_keys: Vec<String> [Each(&[Length(1, 128)])],
        }
    }

    /// Lists tags.
    ListResourceTagsRequest for ListResourceTags {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
        }
    }

    /// Turns automatic rotation on, or changes its period.
    EnableKeyRotationRequest for EnableKeyRotation {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Days between rotations.
            rotation_period_in_days: i64 [Range(90, 2560)],
        }
    }

    /// Turns automatic rotation off.
    DisableKeyRotationRequest for DisableKeyRotation {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Shows whether and when a key rotates.
    GetKeyRotationStatusRequest for GetKeyRotationStatus {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Rotates a key now.
    RotateKeyOnDemandRequest for RotateKeyOnDemand {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
    }

    /// Lists a key's rotations.
    ListKeyRotationsRequest for ListKeyRotations {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Rotations only, or every version of the material.
            include_key_material: IncludeKeyMaterial,
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
        }
    }
}
