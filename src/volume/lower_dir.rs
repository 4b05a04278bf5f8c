//! The lower directory as a thing of its own: made in the way that its filesystem likes best, limited, removed.
//!
//! Called by `kmsfs volume`. Must never follow a link out of the directory it removes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, RenameFlags};
use rustix::io::Errno;

use super::VolumeError;
use super::walk::{open_dir, open_root};
use crate::crypto::random_array;
use crate::format::name;
use crate::format::record::VOLUME_RECORD;
use crate::sys::{at, btrfs, quota};

/// Calls of a removal within each other, each of which takes stack and holds a directory open.
const LEVELS: usize = 64;

/// The lower directory that `path` is, or lies in, and the rest. What is no volume at all stays whole.
pub fn split_lower(path: &Path) -> (PathBuf, PathBuf) {
    let split = || {
        let full = std::fs::canonicalize(path).ok()?;
        let root = full.ancestors().find(|above| above.join(VOLUME_RECORD).exists())?;
        Some((root.to_owned(), full.strip_prefix(root).ok()?.to_owned()))
    };
    split().unwrap_or_else(|| (path.to_owned(), PathBuf::new()))
}

/// Makes `lower` where it is missing: on btrfs a subvolume, so that a snapshot of it is one step. Returns whether it was
/// made.
pub fn prepare_lower(lower: &Path) -> Result<bool, VolumeError> {
    let failed = |e: io::Error| VolumeError::io("make", lower, e);
    if lower.exists() {
        return Ok(false);
    }
    let name = lower.file_name().and_then(|name| name.to_str());
    let parent = lower.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = open_root(parent).map_err(failed)?;
    if let Some(name) = name
        && btrfs::is_btrfs(&dir)
        && btrfs::create(&dir, name).is_ok()
    {
        return Ok(true);
    }
    std::fs::create_dir(lower).map(|()| true).map_err(failed)
}

/// Limits what the new, empty directory `lower` will hold.
pub fn limit_lower(lower: &Path, project: u32, bytes: u64) -> Result<(), VolumeError> {
    let dir = open_root(lower).map_err(|e| VolumeError::io("open", lower, e))?;
    quota::limit(&dir, project, bytes).map_err(|e| no_quota(lower, &e))
}

/// Sets another limit.
pub fn change_limit(lower: &Path, project: u32, bytes: u64) -> Result<(), VolumeError> {
    let dir = open_root(lower).map_err(|e| VolumeError::io("open", lower, e))?;
    quota::set_limit(&dir, project, bytes).map_err(|e| no_quota(lower, &e))
}

/// Takes the limit `project` from `lower`, which is empty, where it has it.
pub fn lift_limit(lower: &Path, project: u32) -> Result<(), VolumeError> {
    match open_root(lower) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        dir => dir.and_then(|dir| quota::lift(&dir, project)).map_err(|e| no_quota(lower, &e)),
    }
}

fn no_quota(lower: &Path, e: &io::Error) -> VolumeError {
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    let why = match errno {
        Some(Errno::PERM | Errno::ACCESS) => "only root may set project quotas".to_owned(),
        Some(
            Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::NODEV
            | Errno::NOTBLK,
        ) => "its filesystem keeps no project quotas: mount it with -o prjquota (ext4, xfs), or leave out --size"
            .to_owned(),
        _ => e.to_string(),
    };
    VolumeError::io("limit", lower, io::Error::other(why))
}

/// Removes `lower` with everything in it.
pub fn remove_lower(lower: &Path) -> Result<(), VolumeError> {
    let failed = |e: io::Error| VolumeError::io("remove", lower, e);
    let parent = lower.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = lower.file_name() else { return Err(failed(io::ErrorKind::InvalidInput.into())) };
    let parent = match open_root(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    let name = std::os::unix::ffi::OsStrExt::as_bytes(name);
    remove_tree(&parent, name).map_err(|e| failed(e.into()))
}

/// Removes the entry `name` of `parent`, whatever it is, with what is below it.
pub(super) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    remove_level(parent, name, 0)
}

fn remove_level(parent: &OwnedFd, name: &[u8], level: usize) -> Result<(), Errno> {
    match at::unlink(parent, name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    if let Ok(text) = std::str::from_utf8(name)
        && at::open_dir(parent, name).is_ok_and(|dir| btrfs::is_subvolume(&dir))
        && btrfs::destroy(parent, text).is_ok()
    {
        return Ok(());
    }
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut dir = open_dir(parent.as_fd(), &name);
    if matches!(dir, Err(Errno::ACCESS)) {
        allow(parent, name.to_bytes())?;
        dir = open_dir(parent.as_fd(), &name);
    }
    empty_level(&dir?, parent, level)?;
    match at::rmdir(parent, name.to_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn move_up(dir: &OwnedFd, name: &[u8], above: &OwnedFd) -> Result<(), Errno> {
    let new = name::temporary(random_array());
    let moved = || at::rename(dir, name, above, new.as_bytes(), RenameFlags::NOREPLACE);
    match moved() {
        // Who is not root must be allowed to write to what is moved.
        Err(Errno::ACCESS) => allow(dir, name).and_then(|()| moved()),
        other => other,
    }
}

fn allow(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    at::set_mode(at::open_dir(parent, name)?, 0o700)
}

/// Removes everything in `dir`.
pub(super) fn empty(dir: &OwnedFd) -> Result<(), Errno> {
    empty_level(dir, dir, 0)
}

/// Removes everything in `dir`, a call for each level. What lies too deep is moved up first, to be found in `above`.
fn empty_level(dir: &OwnedFd, above: &OwnedFd, level: usize) -> Result<(), Errno> {
    loop {
        let mut removed = 0;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let is_dir = entry.file_type() == FileType::Directory;
            match if is_dir { Err(Errno::ISDIR) } else { at::unlink(dir, name) } {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) if level == LEVELS => move_up(dir, name, above)?,
                Err(Errno::ISDIR) => remove_level(dir, name, level + 1)?,
                Err(e) => return Err(e),
            }
            removed += 1;
        }
        // A listing may leave out what moved while others were removed.
        if removed == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    #[test]
    fn a_tree_far_deeper_than_calls_may_go_is_removed_with_what_lies_in_it() {
        let dir = std::env::temp_dir().join(format!("kmsfs-remove-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut at = open_root(&dir).unwrap();
        for _ in 0..4 * LEVELS {
            for name in ["below", "beside"] {
                mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            at = openat(&at, "below", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        let (above, name) = (open_root(&std::env::temp_dir()).unwrap(), dir.file_name().unwrap());
        remove_tree(&above, name.as_encoded_bytes()).unwrap();
        assert!(!dir.exists());
    }
}
