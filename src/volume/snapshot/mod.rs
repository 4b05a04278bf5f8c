//! Snapshots of a volume: its tree as it was at one moment, in `.kmsfs.snapshots/NAME` of the lower root.
//!
//! A snapshot is a whole lower tree: it mounts, checks, and is copied like any other, but only for reading. It is made
//! under a temporary name and renamed when it is whole and durable, so that what was interrupted is never taken for one.
//!
//! Called by the command line and by a mount. Must never hold changes up for longer than sealing open files takes.

mod diff;
mod make;
mod record;
mod restore;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, OFlags, RenameFlags};
use rustix::io::Errno;

use super::lower_dir::remove_tree;
use super::open::open_lower;
use super::record_file::ChangeLock;
use super::registry::check_name;
use super::{Volume, VolumeError};
use crate::format::name::{FOREIGN_PREFIX, TEMPORARY_PREFIX};
use crate::sys::at;

pub use diff::{Changed, Difference, diff};
pub(super) use make::walk_offline;
pub use make::{Making, make_offline};
pub use record::{SNAPSHOT_RECORD, SnapshotRecord, of_volume};
pub use restore::{RESTORE_NOTE, finish_restore_first, restore};

/// Where snapshots lie in the lower root.
pub const SNAPSHOTS: &str = ".kmsfs.snapshots";
/// Snapshots of a volume.
const SNAPSHOTS_MAX: usize = 10_000;

/// The directory of snapshots, made where it is missing.
fn snapshots_dir(root: &OwnedFd, lower: &Path) -> Result<OwnedFd, VolumeError> {
    let failed = |e: Errno| VolumeError::io("open", &lower.join(SNAPSHOTS), e);
    match at::make_dir(root, SNAPSHOTS.as_bytes(), 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    open_snapshots(root).map_err(failed)
}

fn open_snapshots(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    at::open(root, SNAPSHOTS.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)
}

/// Removes what interrupted commands left. The caller holds the change lock.
fn remove_leftovers(snapshots: &OwnedFd) -> Result<(), Errno> {
    for entry in Dir::read_from(snapshots)? {
        let entry = entry?;
        let left = |prefix: &str| entry.file_name().to_bytes().starts_with(prefix.as_bytes());
        if left(TEMPORARY_PREFIX) || left(FOREIGN_PREFIX) {
            remove_tree(snapshots, entry.file_name().to_bytes())?;
        }
    }
    Ok(())
}

/// The snapshots of the volume in `lower`, the oldest first. What is told is not authenticated: it takes no key.
pub fn list(lower: &Path) -> Result<Vec<SnapshotRecord>, VolumeError> {
    let mut found = Vec::new();
    for (name, path) in paths(lower)?.into_iter().take(SNAPSHOTS_MAX) {
        if let Ok(dir) = open_lower(&path)
            && let Some(record) = record::read(&dir)
        {
            found.push(SnapshotRecord { name, ..record });
        }
    }
    found.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok(found)
}

/// Every directory in the place of a snapshot of the volume in `lower`, with its name, whether it tells of itself or not.
pub fn paths(lower: &Path) -> Result<Vec<(String, PathBuf)>, VolumeError> {
    let root = open_lower(lower)?;
    let failed = |e: Errno| VolumeError::io("read", &lower.join(SNAPSHOTS), e);
    let snapshots = match open_snapshots(&root) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in Dir::read_from(&snapshots).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if check_name(&name).is_ok() {
            found.push((name.clone(), lower.join(SNAPSHOTS).join(name)));
        }
    }
    Ok(found)
}

/// The lower directory of the snapshot `name`.
pub fn path_of(lower: &Path, name: &str) -> Result<PathBuf, VolumeError> {
    check_name(name).map_err(|e| named(lower, &e.to_string()))?;
    let path = lower.join(SNAPSHOTS).join(name);
    if path.join(SNAPSHOT_RECORD).exists() {
        return Ok(path);
    }
    Err(named(lower, &format!("it has no snapshot '{name}'; 'kmsfs snapshot list' names those there are")))
}

fn named(lower: &Path, why: &str) -> VolumeError {
    VolumeError::io("use a snapshot of", lower, std::io::Error::other(why.to_owned()))
}

/// Removes the snapshot `name`. Interrupted, it is no snapshot any more, and its rest goes with the next command, this one
/// too.
pub fn delete(lower: &Path, name: &str) -> Result<(), VolumeError> {
    let found = path_of(lower, name);
    let root = open_lower(lower)?;
    let failed = |e: Errno| VolumeError::io("remove", &lower.join(SNAPSHOTS).join(name), e);
    let snapshots = match open_snapshots(&root) {
        Err(Errno::NOENT) => return found.map(drop),
        other => other.map_err(failed)?,
    };
    let _lock = ChangeLock::take(root.as_fd(), lower)?;
    // Its trees have no names yet, and would be taken for leftovers.
    finish_restore_first(lower)?;
    let _unused = found.as_ref().ok().map(|path| super::MountLock::take(path)).transpose()?;
    if found.is_ok() {
        let temporary = crate::format::name::temporary(crate::crypto::random_array());
        // What is half removed must not come back under the name.
        at::rename(&snapshots, name.as_bytes(), &snapshots, temporary.as_bytes(), RenameFlags::empty())
            .and_then(|()| at::sync_dir(&snapshots))
            .map_err(failed)?;
    }
    remove_leftovers(&snapshots).map_err(failed)?;
    found.map(drop)
}

/// Whether the lower directory is that of a snapshot, by its place.
pub fn is_place_of_one(lower: &Path) -> bool {
    lower.parent().and_then(Path::file_name).is_some_and(|name| name == SNAPSHOTS)
}

impl Volume {
    /// Takes the right to change records, and removes what interrupted snapshots left.
    fn snapshots(&self) -> Result<(ChangeLock, OwnedFd), VolumeError> {
        let root = self.root()?;
        let lock = ChangeLock::take(root.as_fd(), self.path())?;
        finish_restore_first(self.path())?;
        let snapshots = snapshots_dir(&root, self.path())?;
        remove_leftovers(&snapshots)
            .map_err(|e| VolumeError::io("clean", &self.path().join(SNAPSHOTS), e))?;
        Ok((lock, snapshots))
    }
}
