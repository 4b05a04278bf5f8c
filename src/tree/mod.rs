//! Plaintext operations on the ciphertext tree, by directory descriptor.
//!
//! Called by `fuse` and `volume`. Never talks to the key daemon itself: it asks a [`KeySource`].

mod ahead;
mod attr;
mod changes;
mod close;
mod create;
mod default_key;
mod dir;
mod dir_record;
mod error;
pub mod file;
mod flags;
mod kept;
mod key_source;
mod list;
mod moment;
mod namespace;
mod node;
mod open;
mod place;
mod remove;
mod rename;
mod renew;
mod setattr;
mod settle;
#[cfg(test)]
mod step_tests;
mod wait;
mod xattr;

pub use attr::{Attr, Caller, Kind, SetAttr, SetTime, Time};
pub use changes::Frozen;
pub use create::{NewObject, SpecialFile};
pub use default_key::KEY_ATTRIBUTE;
pub use dir_record::holds_nothing;
pub use error::FsError;
pub use file::{
    Allocate, Durability, FileContext, FileIo, Integrity, LOG_NAME, LastEnd, Seek, Stage, TagLog,
    ended_cleanly, start_flusher,
};
pub use key_source::{Asker, FreshKey, KeyError, KeyNeed, KeySource, KeyUser};
pub use list::{DirStream, Listed, ListedDir};
pub use moment::Moment;
pub use namespace::{DEFAULT_OPEN_DIRS, Tree, TreeOptions};
pub use node::ROOT_ID;
pub use open::{OpenManner, WriteManner};
pub use rename::RenameMode;
pub use renew::{Journal, Prepared, RENEWALS, Renewal, Renewed, Stuck, finish, is_unfinished};
pub use wait::KEY_WAITS;
pub use xattr::XattrMode;
