//! The end of one version of a key: what a version that was compromised asks for, and AWS does not give.

use super::rule::Rule::Length;
use super::shape::shape;

shape! {
    /// Destroys a version of a key that is not the current one. For users who may schedule the key's deletion.
    RetireVersionRequest for RetireVersion {
        required {
            /// The key.
            key_id: String [Length(1, 2048)],
            /// The version's whole id.
            key_material_id: String [Length(64, 64)],
        }
        optional {
            /// Only say whether it would be done.
            dry_run: bool,
        }
    }
}
