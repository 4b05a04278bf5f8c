//! A volume as a whole: making and opening it, its keys, rewrap, re-encryption, check.
//!
//! Called by `fuse` and `cli`. Must never write a plaintext key anywhere, nor touch data pages of a lower file itself.

mod attachment;
mod census;
mod check;
mod check_attributes;
mod check_file;
pub mod context;
mod copy;
mod count;
mod customer;
mod epoch;
mod error;
#[cfg(test)]
mod fake_service_for_tests;
mod info;
mod init;
mod keys;
#[cfg(test)]
mod live_step_tests;
mod lower_dir;
mod lower_file;
mod mounted;
mod open;
mod pace;
mod plain_path;
mod pool;
mod record_file;
mod reencrypt;
mod refusal;
pub mod registry;
mod repair;
mod report;
mod rewrap;
mod rewrap_pass;
mod rights;
pub mod snapshot;
pub mod speed;
#[cfg(test)]
mod step_tests;
pub mod stream;
mod walk;
mod watch;

pub use crate::tree::{Durability, Integrity, KEY_ATTRIBUTE, KeyError, Moment};
pub use attachment::{MountGrants, collect as collect_grants};
pub use census::versions_in_use;
pub use check::{CheckOptions, CheckReport, Class, Finding, check};
pub use copy::{CopyOptions, CopyReport, copy, purge};
pub use count::count_files;
pub use epoch::Epoch;
pub use error::{VolumeError, key_error};
pub use info::{FileInfo, SlotInfo, file_info};
pub use init::{
    InitOptions, Made, SERVICE_KEY, check_new, init, is_made, new_id, restore, sheet_of, take_back,
};
pub use keys::VolumeKeys;
pub use lower_dir::{change_limit, lift_limit, limit_lower, prepare_lower, remove_lower, split_lower};
pub use mounted::MountedTree;
pub use open::{MountLock, Volume, is_mounted, peek};
pub use reencrypt::{ReencryptOptions, ReencryptReport, reencrypt, reencrypt_offline};
pub use refusal::{KeyFigures, KeyInUse};
pub use report::{Failure, Progress, Version};
pub use rewrap::{RewrapOptions, RewrapReport, admit_key, rewrap};
pub use walk::MAX_JOBS;
pub use watch::{KeyEvent, KeyWatch, WatchOptions};
