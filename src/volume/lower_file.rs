//! Access to the header of one lower file, whatever its permission bits, without a trace in its times.
//!
//! Called by `rewrap`, `check` and `info`. Must never write outside a key slot.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, statat};
use rustix::fs::{CWD, Mode, OFlags, Timespec, chmodat, fstat, openat};
use rustix::io::{Errno, pread};

use crate::format::header::{SLOTS_LEN, SlotWrite};
use crate::format::seal::{SEAL_LEN, SEAL_OFFSETS};
use crate::sys::at;

const SEALS_LEN: usize = 2 * SEAL_LEN;

/// The first bytes of a header page: superblocks and slots.
pub type SlotBytes = [u8; SLOTS_LEN];

/// Opens the regular file `name` of `dir`, also where its owner took the right away from himself.
pub fn open(dir: BorrowedFd<'_>, name: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => open_in_spite_of_mode(dir, name, access),
        other => other,
    }
}

/// Permission is checked when a file is opened, so the mode is changed for just that long.
fn open_in_spite_of_mode(dir: BorrowedFd<'_>, name: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::ACCESS);
    }
    let path = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let by_path = format!("/proc/self/fd/{}", path.as_raw_fd());
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    chmodat(CWD, by_path.as_str(), mode | Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    let opened = openat(CWD, by_path.as_str(), access | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
    chmodat(CWD, by_path.as_str(), mode, AtFlags::empty())?;
    opened
}

/// Superblocks and slots; `None` for a file that is empty and has no header yet.
pub fn read_slots(file: BorrowedFd<'_>) -> Result<Option<SlotBytes>, Errno> {
    let mut bytes = [0; SLOTS_LEN];
    let mut filled = 0;
    while filled < SLOTS_LEN {
        match pread(file, &mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    // A file cut inside its header reads as zeros from there, which no checksum matches.
    Ok((filled > 0).then_some(bytes))
}

/// What came of an attempt to write a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The slot is written.
    Yes,
    /// The header is no longer the one that was read; nothing was written.
    Changed,
}

/// Writes slots, each durable before the next, if the header still is `expected`. Keeps the file's time of modification,
/// unless a mount began to write the file meanwhile.
pub fn write_slots(
    file: BorrowedFd<'_>,
    expected: &SlotBytes,
    writes: &[SlotWrite],
) -> Result<Written, Errno> {
    if read_slots(file)?.as_ref() != Some(expected) {
        return Ok(Written::Changed);
    }
    let (before, seals) = (fstat(file)?, read_seals(file)?);
    for (number, write) in writes.iter().enumerate() {
        if number > 0 {
            at::sync_file(file)?;
        }
        // One call and one page: the kernel takes all of it or none.
        at::write_at(file, &write.bytes, write.offset as u64)?;
    }
    let after = fstat(file)?;
    if after.st_size != before.st_size || read_seals(file)? != seals {
        return Ok(Written::Yes);
    }
    at::set_modified(file, Timespec { tv_sec: before.st_mtime as _, tv_nsec: before.st_mtime_nsec as _ })?;
    Ok(Written::Yes)
}

/// The seals, which change when a mount begins or ends to write a file.
fn read_seals(file: BorrowedFd<'_>) -> Result<[u8; SEALS_LEN], Errno> {
    let mut seals = [0; SEALS_LEN];
    pread(file, &mut seals, SEAL_OFFSETS[0] as u64)?;
    Ok(seals)
}

/// Opens a file for writing that is open for reading.
pub fn reopen_for_writing(dir: BorrowedFd<'_>, name: &CStr, file: &OwnedFd) -> Result<OwnedFd, Errno> {
    let writable = open(dir, name, OFlags::RDWR)?;
    let (a, b) = (fstat(file.as_fd())?, fstat(writable.as_fd())?);
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) { Ok(writable) } else { Err(Errno::NOENT) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::SLOT_LEN;
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_slot_is_written_only_over_the_header_that_was_read_and_leaves_the_mtime() {
        let path = std::env::temp_dir().join(format!("kmsfs-slot-{}", std::process::id()));
        std::fs::write(&path, [7; 5000]).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        let fd = open(CWD, &name, OFlags::RDWR).unwrap();
        let read = read_slots(fd.as_fd()).unwrap().unwrap();
        let slot = |offset, byte| [SlotWrite { offset, bytes: [byte; SLOT_LEN] }];
        assert_eq!(write_slots(fd.as_fd(), &read, &slot(512, 9)), Ok(Written::Yes));
        assert_eq!(write_slots(fd.as_fd(), &read, &slot(80, 8)), Ok(Written::Changed));
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[512..856] == [9; SLOT_LEN] && bytes[..512] == [7; 512] && bytes[856..] == [7; 4144]);
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec(), stat.mode() & 0o7777), (1_000_000, 123_456_789, 0o444));
        std::fs::remove_file(path).unwrap();
    }
}
