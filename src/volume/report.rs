//! What long work on a volume tells its caller: progress while it runs, failures and versions at the end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::api::hex;

/// Failures listed; more are only counted.
pub const MAX_LISTED: usize = 1000;

/// Shared between the work and whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files to look at, as far as known.
    pub total: AtomicU64,
    /// Files looked at.
    pub done: AtomicU64,
    /// Set to end the work early; what is under way is finished.
    pub stop: AtomicBool,
}

impl Progress {
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One file that could not be dealt with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Lower path, relative to the lower directory, where it is known.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub lower_path: PathBuf,
    /// Plaintext path, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Why.
    pub why: String,
}

fn is_unknown(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

/// One version of a master key, and how many headers are under it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// ARN of the key.
    pub key_arn: String,
    /// Key material id, where the service tells it.
    pub material_id: Option<String>,
    /// Headers under it.
    pub files: u64,
    /// Whether it is what the work moves to.
    pub current: bool,
}

/// Counts headers by key and version.
#[derive(Debug, Default)]
pub(super) struct Census(BTreeMap<(String, Option<[u8; 32]>), u64>);

impl Census {
    pub(super) fn count(&mut self, key_arn: &str, material_id: Option<[u8; 32]>) {
        *self.0.entry((key_arn.to_owned(), material_id)).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (version, files) in other.0 {
            *self.0.entry(version).or_default() += files;
        }
    }

    pub(super) fn versions(&self, is_current: impl Fn(&str, Option<[u8; 32]>) -> bool) -> Vec<Version> {
        let version = |((key_arn, material), files): (&(String, Option<[u8; 32]>), &u64)| Version {
            key_arn: key_arn.clone(),
            material_id: material.map(|id| hex(&id)),
            files: *files,
            current: is_current(key_arn, *material),
        };
        self.0.iter().map(version).collect()
    }
}
