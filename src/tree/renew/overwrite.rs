//! Makes one lower file what another is: its bytes, its holes, its sealed attributes. Names, owner, ACLs stay.
//!
//! Called by `renew`, in a mount and after an interruption. Done again from any point it has the same outcome. Must leave
//! nothing of what was there before: where the new file has a hole, the old one's data goes.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::fs::{self, FallocateFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::journal::step;
use crate::format::xattr::PREFIX;
use crate::sys::at;
use crate::tree::moment::copy;

/// Zeros written at a time, where the lower filesystem cannot punch.
const ZEROS: usize = 64 << 10;

/// What writing to a file changes of its own accord, and is to be as before: mode and times, in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    mode: u32,
    accessed: (i64, i64),
    modified: (i64, i64),
}

impl Kept {
    pub(super) fn of(stat: &fs::Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            accessed: (stat.st_atime, stat.st_atime_nsec as i64),
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }

    /// The same, last read at the time that `earlier` has.
    pub(super) fn read_as(self, earlier: Self) -> Self {
        Self { accessed: earlier.accessed, ..self }
    }

    fn give(self, to: impl AsFd) -> Result<(), Errno> {
        if fs::fstat(&to)?.st_mode & 0o7777 != self.mode {
            at::set_mode(&to, self.mode)?;
        }
        let time = |(seconds, nanos): (i64, i64)| Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
        let (last_access, last_modification) = (time(self.accessed), time(self.modified));
        fs::futimens(&to, &Timestamps { last_access, last_modification })
    }
}

/// Makes `to` what `from` is; both are open for reading and writing.
pub(super) fn overwrite(from: impl AsFd, to: impl AsFd, kept: Kept) -> Result<(), Errno> {
    step()?;
    let len = fs::fstat(&from)?.st_size as u64;
    if fs::ioctl_ficlone(&to, &from).is_err() {
        clear_holes(&from, &to, len)?;
        step()?;
        let (reflink, copied_bytes, stop) =
            (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
        let copier = copy::Copier { reflink: &reflink, copied_bytes: &copied_bytes, stop: &stop };
        copy::bytes(&copier, &from, len, &to)?;
    } else if fs::fstat(&to)?.st_size as u64 != len {
        fs::ftruncate(&to, len)?;
    }
    for (name, value) in sealed_attributes(&from)? {
        step()?;
        at::set_xattr(&to, &name, &value, XattrFlags::empty())?;
    }
    step()?;
    kept.give(to)
}

/// Lower name and value of an attribute.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// The attributes whose values a file's key seals.
pub(super) fn sealed_attributes(file: impl AsFd) -> Result<Vec<Attribute>, Errno> {
    let names = match at::list_xattrs(&file) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let ours = names.into_iter().filter(|name| name.starts_with(PREFIX.as_bytes()));
    let mut found: Vec<_> =
        ours.map(|name| Ok((name.clone(), at::xattr(&file, &name)?))).collect::<Result<_, Errno>>()?;
    found.sort();
    Ok(found)
}

/// Takes the data out of `to` where `from` has none.
fn clear_holes(from: impl AsFd, to: impl AsFd, len: u64) -> Result<(), Errno> {
    let mut at = 0;
    while at < len {
        let hole = seek(&from, SeekFrom::Hole(at))?.unwrap_or(len).min(len);
        let end = seek(&from, SeekFrom::Data(hole))?.unwrap_or(len).min(len);
        clear_data(&to, hole, end)?;
        at = end.max(at + 1);
    }
    Ok(())
}

/// Takes the data out of `start..end`. Space that was set aside and never written stays.
fn clear_data(to: impl AsFd, start: u64, end: u64) -> Result<(), Errno> {
    let mut at = start;
    while at < end {
        let Some(data) = seek(&to, SeekFrom::Data(at))?.filter(|data| *data < end) else { return Ok(()) };
        let stop = seek(&to, SeekFrom::Hole(data))?.unwrap_or(end).min(end);
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        match fs::fallocate(&to, flags, data, stop - data) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(&to, data, stop)?,
            other => other?,
        }
        at = stop.max(at + 1);
    }
    Ok(())
}

fn write_zeros(to: impl AsFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let zeros = vec![0; ZEROS];
    while at < end {
        let len = (end - at).min(ZEROS as u64) as usize;
        at += rustix::io::pwrite(&to, &zeros[..len], at)? as u64;
    }
    Ok(())
}

/// `None` where there is no more of it.
fn seek(file: impl AsFd, from: SeekFrom) -> Result<Option<u64>, Errno> {
    match fs::seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e),
    }
}
