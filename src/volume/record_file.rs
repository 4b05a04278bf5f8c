//! The volume record on disk: read with its copy as a fallback, replaced whole or not at all.
//!
//! Called by `init`, `open` and `rewrap`. Must never write one copy before the other is durable.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, OFlags, RenameFlags, flock, fstat, statat};
use rustix::io::Errno;

use super::VolumeError;
use crate::crypto::random_array;
use crate::format::name::{foreign, temporary};
use crate::format::record::{RECORD_MAX, VOLUME_RECORD, VOLUME_RECORD_COPY, VolumeRecord};
use crate::sys::at;

/// Locked by whoever changes records or headers of the lower tree; holds nothing.
pub(super) const LOCK_FILE: &str = ".kmsfs.lock";
/// The least that a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Between two tries to take a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What tells one state of the stored record from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    mtime: (i64, i64),
}

/// The stamp of the stored record, if there is one.
pub fn stamp(root: BorrowedFd<'_>) -> Option<Stamp> {
    let stat = statat(root, VOLUME_RECORD, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Stamp { inode: stat.st_ino, mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64) })
}

/// Reads the record, or its copy when the record itself is missing or damaged.
pub fn read(root: BorrowedFd<'_>, path: &Path) -> Result<VolumeRecord, VolumeError> {
    let first = match read_one(root, path, VOLUME_RECORD) {
        Ok(record) => return Ok(record),
        Err(e) => e,
    };
    match read_one(root, path, VOLUME_RECORD_COPY) {
        Ok(record) => {
            log::warn!(
                "{}: its copy {VOLUME_RECORD_COPY} is used; 'kmsfs rewrap' writes it anew",
                first.in_short()
            );
            Ok(record)
        }
        // What is wrong with the record itself matters more, unless it is merely absent.
        Err(second) if matches!(first, VolumeError::NotAVolume(_)) => Err(second),
        Err(_) => Err(first),
    }
}

/// Whether both copies are there and alike.
pub fn is_whole(root: BorrowedFd<'_>, path: &Path) -> bool {
    let both = [VOLUME_RECORD, VOLUME_RECORD_COPY].map(|name| read_one(root, path, name));
    matches!(&both, [Ok(record), Ok(copy)] if record == copy)
}

/// Reads one of the two copies.
pub fn read_one(root: BorrowedFd<'_>, path: &Path, name: &str) -> Result<VolumeRecord, VolumeError> {
    let place = path.join(name);
    let file = match at::open_regular(root, name.as_bytes(), OFlags::RDONLY, 0) {
        Ok(fd) => std::fs::File::from(fd),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(VolumeError::NotAVolume(path.to_owned()));
        }
        Err(e) => return Err(VolumeError::io("read", &place, e)),
    };
    let mut bytes = Vec::new();
    let limit = RECORD_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|e| VolumeError::io("read", &place, e))?;
    VolumeRecord::parse(&bytes).map_err(|e| VolumeError::Record(place, e))
}

/// Stores `record`: the copy first, and the record once the copy is durable.
pub fn write(root: BorrowedFd<'_>, path: &Path, record: &VolumeRecord) -> Result<(), VolumeError> {
    let bytes = record.encode().map_err(|e| VolumeError::Record(path.join(VOLUME_RECORD), e))?;
    for name in [VOLUME_RECORD_COPY, VOLUME_RECORD] {
        replace(root, name, &bytes).map_err(|e| VolumeError::io("write", &path.join(name), e))?;
    }
    Ok(())
}

/// Replaces the file `name` by one that holds `bytes`, durably.
pub(super) fn replace(root: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(random_array());
    let file = at::open(root, temporary.as_bytes(), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o600)?;
    let written = at::write_at(&file, bytes, 0)
        .and_then(|()| at::sync_file(&file))
        .and_then(|()| move_directory_aside(root, name))
        .and_then(|()| at::rename(root, temporary.as_bytes(), root, name.as_bytes(), RenameFlags::empty()))
        .and_then(|()| at::sync_dir(root));
    if written.is_err() {
        let _ = at::unlink(root, temporary.as_bytes());
    }
    Ok(written?)
}

/// As [`replace`], and where there is no room for another file over the bytes of this one, which must be as many: so few
/// lie in one sector, which is written whole or not at all.
pub(super) fn replace_without_room(root: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let full = match replace(root, name, bytes) {
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => e,
        done => return done,
    };
    let file = at::open_regular(root, name.as_bytes(), OFlags::WRONLY, 0)?;
    if bytes.len() > SECTOR || fstat(&file)?.st_size as u64 != bytes.len() as u64 {
        return Err(full);
    }
    at::write_at(&file, bytes, 0)?;
    Ok(at::sync_file(&file)?)
}

/// A directory in the place of a file of ours, which no rename replaces, gets another name.
fn move_directory_aside(root: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let stat = at::stat(root, name.as_bytes());
    if !stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
        return Ok(());
    }
    let aside = foreign(random_array());
    log::warn!("{name} is a directory; it was not put there by kmsfs and is now {aside}");
    at::rename(root, name.as_bytes(), root, aside.as_bytes(), RenameFlags::empty())
}

/// Held while records or headers are changed; released on drop.
pub struct ChangeLock(#[allow(dead_code, reason = "held for its lock alone")] std::fs::File);

impl ChangeLock {
    /// Takes the lock, or says that somebody else has it.
    pub fn take(root: BorrowedFd<'_>, path: &Path) -> Result<Self, VolumeError> {
        let place = path.join(LOCK_FILE);
        match lock(root, LOCK_FILE, Duration::ZERO) {
            Ok(file) => Ok(Self(file)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(VolumeError::InUse(path.to_owned(), "another rewrap, a snapshot or a re-encryption"))
            }
            Err(e) => Err(VolumeError::io("lock", &place, e)),
        }
    }
}

/// Locks the file `name`, made if need be, until what is returned is dropped; `WouldBlock` where somebody else has it for
/// longer than `patience`. It may be replaced meanwhile by whoever has the lock.
pub(super) fn lock(root: BorrowedFd<'_>, name: &str, patience: Duration) -> io::Result<std::fs::File> {
    let begun = Instant::now();
    loop {
        let fd = open_lock(root, name)?;
        match flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => match at::stat(root, name.as_bytes()) {
                Ok(there) if there.st_ino == fstat(&fd)?.st_ino => return Ok(fd.into()),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            },
            Err(Errno::WOULDBLOCK) if begun.elapsed() < patience => std::thread::sleep(LOCK_PAUSE),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Opens the lock file. What else stands in its place is moved aside: it would keep every rewrap from running.
fn open_lock(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let open = || at::open_regular(root, name.as_bytes(), OFlags::RDONLY | OFlags::CREATE, 0o600);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            let aside = foreign(random_array());
            at::rename(root, name.as_bytes(), root, aside.as_bytes(), RenameFlags::empty())?;
            log::warn!("{name}: {e}, and is now {aside}");
            open()
        }
        other => other,
    }
}
