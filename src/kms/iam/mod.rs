//! Who may call: accounts, users, roles, groups, their policies and access keys.
//!
//! `records` is how they are stored, `directory` how they stand in memory, `change` how one becomes the other.

mod change;
pub mod directory;
pub mod records;

pub use directory::{Directory, Entity, Identity, Rules};
pub use records::{AccessKeyRecord, EntityRecord, Kind, NamedPolicy, PolicyRecord};
