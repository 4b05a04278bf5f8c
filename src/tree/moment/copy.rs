//! Copies of single lower inodes with all their attributes: by reference where the file system can, else byte by byte.
//!
//! Called by `moment` and `renew`. Must leave holes holes: what takes no space in the lower file takes none in the copy.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{self, FileType, OFlags, SeekFrom, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::sys::at;
#[cfg(test)]
use crate::sys::steps;

/// Bytes copied between two looks at whether to stop.
const CHUNK: u64 = 4 << 20;

/// How files are copied.
pub(in crate::tree) struct Copier<'a> {
    /// Cleared when the file system turns out to have no reflinks.
    pub reflink: &'a AtomicBool,
    /// Counts bytes that were copied.
    pub copied_bytes: &'a AtomicU64,
    /// Set to end early.
    pub stop: &'a AtomicBool,
}

/// Copies the entry `name` of `dir`, which is no directory, to `to_name` in `to`.
pub(super) fn entry(
    copier: &Copier<'_>,
    dir: impl AsFd,
    name: &[u8],
    stat: &Stat,
    to: &OwnedFd,
    to_name: &[u8],
) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let from = open_source(&dir, name, stat)?;
            // The entry is not necessarily still the inode that was claimed.
            let now = fs::fstat(&from)?;
            if now.st_ino != stat.st_ino {
                return Err(Errno::STALE);
            }
            file(copier, from, &now, to, to_name)
        }
        FileType::Symlink => {
            let target = at::read_link(&dir, name)?;
            at::make_link(&target, to, to_name)?;
            attributes(at::open_path(&dir, name)?, stat, &at::open_path(to, to_name)?)
        }
        kind => {
            let device = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
            at::make_node(to, to_name, kind, stat.st_mode & 0o7777, device)?;
            attributes(at::open_path(&dir, name)?, stat, &at::open_path(to, to_name)?)
        }
    }
}

/// Opens a file for reading, also where its mode denies that to its owner.
fn open_source(dir: impl AsFd, name: &[u8], stat: &Stat) -> Result<OwnedFd, Errno> {
    match at::open(&dir, name, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let path = at::open_path(&dir, name)?;
    at::set_mode(&path, (stat.st_mode & 0o7777) | 0o400)?;
    let opened = at::reopen(&path, OFlags::RDONLY);
    at::set_mode(&path, stat.st_mode & 0o7777)?;
    opened
}

/// Copies the open file `from`.
pub(super) fn file(
    copier: &Copier<'_>,
    from: impl AsFd,
    stat: &Stat,
    to: &OwnedFd,
    to_name: &[u8],
) -> Result<(), Errno> {
    let made = at::open(to, to_name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?;
    if stat.st_size > 0 && !(copier.reflink.load(Ordering::Relaxed) && clone(copier, &from, &made)?) {
        bytes(copier, &from, stat.st_size as u64, &made)?;
    }
    attributes(from, stat, &made)
}

/// `false` where the file system has no reflinks.
fn clone(copier: &Copier<'_>, from: impl AsFd, made: &OwnedFd) -> Result<bool, Errno> {
    #[cfg(test)]
    steps::admit("clone")?;
    match fs::ioctl_ficlone(made, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copier.reflink.store(false, Ordering::Relaxed);
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Copies `len` bytes, less the holes, and gives `made` that length.
pub(in crate::tree) fn bytes(
    copier: &Copier<'_>,
    from: impl AsFd,
    len: u64,
    made: impl AsFd,
) -> Result<(), Errno> {
    let mut at = 0;
    while at < len {
        let data = match fs::seek(&from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = fs::seek(&from, SeekFrom::Hole(data)).unwrap_or(len).min(len);
        let (mut source, mut target) = (data, data);
        while source < end {
            if copier.stop.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            let wanted = (end - source).min(CHUNK) as usize;
            #[cfg(test)]
            steps::admit("copy")?;
            let moved = fs::copy_file_range(&from, Some(&mut source), &made, Some(&mut target), wanted);
            match moved {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    copier.copied_bytes.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    by_hand(copier, &from, &mut source, end, &made)?;
                    target = source;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        at = end;
    }
    at::set_len(made, len)
}

/// Where the kernel does not copy between two files.
fn by_hand(
    copier: &Copier<'_>,
    from: impl AsFd,
    source: &mut u64,
    end: u64,
    made: impl AsFd,
) -> Result<(), Errno> {
    let mut buffer = vec![0; (end - *source).min(1 << 20) as usize];
    let read = rustix::io::pread(&from, &mut buffer, *source)?;
    if read == 0 {
        return Err(Errno::IO);
    }
    at::write_at(&made, &buffer[..read], *source)?;
    *source += read as u64;
    copier.copied_bytes.fetch_add(read as u64, Ordering::Relaxed);
    Ok(())
}

/// Extended attributes, owner, mode and times, in the order in which none undoes another.
pub(super) fn attributes(from: impl AsFd, stat: &Stat, made: &OwnedFd) -> Result<(), Errno> {
    xattrs(from, made)?;
    plain_attributes(stat, made)
}

/// Owner, mode and times.
pub(super) fn plain_attributes(stat: &Stat, made: &OwnedFd) -> Result<(), Errno> {
    let now = fs::fstat(made)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        at::set_owner(made, Some(stat.st_uid), Some(stat.st_gid))?;
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        at::set_mode(made, stat.st_mode & 0o7777)?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds as _, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    at::set_times(made, &times)
}

/// Every extended attribute that we may see.
pub(super) fn xattrs(from: impl AsFd, made: &OwnedFd) -> Result<(), Errno> {
    let names = match at::list_xattrs(&from) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names {
        match at::xattr(&from, &name)
            .and_then(|value| at::set_xattr(made, &name, &value, fs::XattrFlags::empty()))
        {
            // Labels of the host's security modules are not ours to give.
            Err(Errno::PERM | Errno::OPNOTSUPP) if name.starts_with(b"security.") => {}
            Err(Errno::NODATA) => {}
            other => other?,
        }
    }
    Ok(())
}
