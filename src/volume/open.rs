//! Opening a volume: its record, its key, the lock against a second mount.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::refusal::unopened;
use super::{VolumeError, VolumeKeys, context, record_file, walk};
use crate::client::{CacheLimits, Decrypted, Kms};
use crate::crypto::VolumeKey;
use crate::format::VolumeId;
use crate::format::record::{VolumeRecord, VolumeSettings};
use crate::tree::KeySource;
use crate::tree::file::{Durability, FileContext, Integrity, LastEnd, Stage, TagLog};

/// How often a mount tries to take its lock, and the pause between.
const TAKE_TRIES: u32 = 10;
const TAKE_PAUSE: Duration = Duration::from_millis(50);

/// An open volume.
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// The key of its names, links and directory records.
    pub key: Arc<VolumeKey>,
    /// Where its data keys come from.
    pub keys: Arc<VolumeKeys>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    path: PathBuf,
    root: OwnedFd,
}

impl Volume {
    /// Opens the volume in the lower directory `lower`.
    pub fn open(lower: &Path, kms: Arc<Kms>, limits: CacheLimits) -> Result<Self, VolumeError> {
        let root = open_lower(lower)?;
        let record = record_file::read(root.as_fd(), lower)?;
        let (key, settings) = open_record(&kms, &record, lower)?;
        let created = settings.created;
        let duplicate = root.try_clone().map_err(|e| VolumeError::io("open", lower, e))?;
        let keys = VolumeKeys::new(kms, record.volume_id, duplicate, lower.to_owned(), settings, limits);
        let wrapped = &record.active().wrapped;
        keys.note_use(&wrapped.key_arn, &wrapped.blob, context::record(record.volume_id));
        let (key, keys) = (Arc::new(key), Arc::new(keys));
        Ok(Self { id: record.volume_id, key, keys, created, path: lower.to_owned(), root })
    }

    /// The lower directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What files of the volume are opened with. Without `durability` nothing is changed on disk, not even to recover; with
    /// it the caller has made the epoch odd before, and ends it after the log was closed ([`super::epoch`]).
    pub(super) fn file_context(
        &self,
        durability: Option<Durability>,
        integrity: Integrity,
        last: LastEnd,
        keys: Arc<dyn KeySource>,
    ) -> Result<FileContext, VolumeError> {
        let opened = match durability {
            None => TagLog::open_read_only(&self.root, &self.key, last),
            Some(durability) => TagLog::open(&self.root, &self.key, durability, last),
        };
        let log = opened.map_err(|e| VolumeError::io("open the tag log in", &self.path, e))?;
        let (read_only, stage) = (durability.is_none(), Stage::default());
        Ok(FileContext { volume_id: self.id, keys, read_only, log: Some(log), stage, integrity })
    }

    /// A descriptor of the lower directory.
    pub fn root(&self) -> Result<OwnedFd, VolumeError> {
        self.root.try_clone().map_err(|e| VolumeError::io("open", &self.path, e))
    }
}

/// What can be told of a volume without its key: identity, and the key that is needed.
pub fn peek(lower: &Path) -> Result<VolumeRecord, VolumeError> {
    record_file::read(open_lower(lower)?.as_fd(), lower)
}

pub(super) fn open_lower(lower: &Path) -> Result<OwnedFd, VolumeError> {
    walk::open_root(lower).map_err(|e| VolumeError::io("open", lower, e))
}

/// Unwraps the record's key, by the mount's own right.
pub(super) fn unwrap_record(kms: &Kms, record: &VolumeRecord) -> Result<Decrypted, VolumeError> {
    let wrapped = &record.active().wrapped;
    kms.decrypt(&wrapped.blob, &wrapped.key_arn, &context::record(record.volume_id), None)
        .map_err(|e| VolumeError::Key(wrapped.key_arn.clone(), unopened(&e, wrapped)))
}

/// Unwraps the record's key and opens its sealed part.
pub(super) fn open_record(
    kms: &Kms,
    record: &VolumeRecord,
    lower: &Path,
) -> Result<(VolumeKey, VolumeSettings), VolumeError> {
    let decrypted = unwrap_record(kms, record)?;
    record.open(&decrypted.data_key).map_err(|e| VolumeError::Record(lower.to_owned(), e))
}

/// Held by a mount for as long as it lives: no second mount may use the lower directory.
pub struct MountLock(#[allow(dead_code, reason = "held for its lock alone")] OwnedFd);

impl MountLock {
    /// Takes the lock of `lower`, or says that it is in use.
    pub fn take(lower: &Path) -> Result<Self, VolumeError> {
        let root = open_lower(lower)?;
        for _ in 0..TAKE_TRIES {
            if try_lock(&root, lower)? {
                return Ok(Self(root));
            }
            // Perhaps somebody only looked ([`is_mounted`]).
            std::thread::sleep(TAKE_PAUSE);
        }
        Err(VolumeError::InUse(lower.to_owned(), "another mount"))
    }
}

/// Whether a mount that may write holds `lower`.
pub fn is_mounted(lower: &Path) -> Result<bool, VolumeError> {
    try_lock(&open_lower(lower)?, lower).map(|free| !free)
}

fn try_lock(root: &OwnedFd, lower: &Path) -> Result<bool, VolumeError> {
    match flock(root.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(VolumeError::io("lock", lower, e)),
    }
}
