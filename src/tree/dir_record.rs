//! The record of a lower directory: reading it, making it, taking it out for a removal, making up for a lost one.
//!
//! The record is the symbolic link `.kmsfs.dir`; a copy stands in an extended attribute of the directory, where the lower
//! filesystem has those. Called by the rest of `tree`. Must never make a new record for a directory that holds
//! anything: its names would be lost.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs;
use rustix::io::Errno;

use super::FsError;
use crate::crypto::{Place, VolumeKey, random_array};
use crate::format::dir::{self, DIR_RECORD, DIR_RECORD_COPY, DirId, DirRecordError};
use crate::format::name;
use crate::sys::at;

const RECORD: &[u8] = DIR_RECORD.as_bytes();

/// The target of the record's link; `None` where there is none.
pub fn read(dir: &OwnedFd) -> Result<Option<Vec<u8>>, FsError> {
    match at::read_link(dir, RECORD) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::INVAL) => Err(FsError::Corrupt("a directory record is not a symbolic link".into())),
        Err(e) => Err(e.into()),
    }
}

/// The identity that a record gives.
pub fn identity(key: &VolumeKey, target: &[u8], place: Option<&Place>) -> Result<DirId, FsError> {
    dir::open(key, target, place).map_err(|e| match e {
        DirRecordError::Forged if key.binds_names() => {
            FsError::Corrupt("a directory record is not of this volume, or of another place in it".into())
        }
        DirRecordError::Forged => FsError::Corrupt("a directory record is not of this volume".into()),
        DirRecordError::Newer(v) => FsError::Corrupt(format!("a directory record has the newer version {v}")),
    })
}

/// Gives a new directory, which is to stand at `place`, a fresh identity.
pub fn make(key: &VolumeKey, dir: &OwnedFd, place: Option<&Place>) -> Result<DirId, Errno> {
    let id = random_array();
    store(dir, dir::seal(key, &id, place).as_bytes()).map(|()| id)
}

/// `record`, or the copy where a rename was cut short after the copy had been bound to the new place.
pub fn or_moved(key: &VolumeKey, dir: &OwnedFd, record: Vec<u8>, place: Option<&Place>) -> Vec<u8> {
    if place.is_none() || dir::open(key, &record, place).is_ok() {
        return record;
    }
    let copy = at::xattr(dir, DIR_RECORD_COPY.as_bytes()).ok();
    copy.filter(|copy| dir::open(key, copy, place).is_ok()).unwrap_or(record)
}

/// Before the directory `id` moves to `place`: its copy is bound to that, its record still to where it is. So it opens at
/// both, whenever an unclean stop comes.
pub fn bind_copy(key: &VolumeKey, dir: &OwnedFd, id: &DirId, place: &Place) -> Result<(), FsError> {
    let target = dir::seal(key, id, Some(place));
    Ok(at::set_xattr(dir, DIR_RECORD_COPY.as_bytes(), target.as_bytes(), fs::XattrFlags::empty())?)
}

/// After the directory `id` has moved to `place`: its record follows its copy.
pub fn bind_record(key: &VolumeKey, dir: &OwnedFd, id: &DirId, place: &Place) -> Result<(), FsError> {
    let temporary = name::temporary(random_array());
    at::make_link(dir::seal(key, id, Some(place)).as_bytes(), dir, temporary.as_bytes())?;
    Ok(at::rename(dir, temporary.as_bytes(), dir, RECORD, fs::RenameFlags::empty())?)
}

/// Stores a record and its copy.
pub fn store(dir: &OwnedFd, target: &[u8]) -> Result<(), Errno> {
    at::make_link(target, dir, RECORD)?;
    copy(dir, target);
    Ok(())
}

/// Keeps the copy; a lower filesystem without extended attributes has none.
fn copy(dir: &OwnedFd, target: &[u8]) {
    if let Err(e) = at::set_xattr(dir, DIR_RECORD_COPY.as_bytes(), target, fs::XattrFlags::empty()) {
        log::debug!("a directory record has no copy: {e}");
    }
}

/// Takes the record out of a directory that is about to go, so that it is empty. [`put_back`] undoes it; a crash
/// between the two leaves an empty directory, which [`make_up`] takes care of.
pub fn take_out(dir: &OwnedFd) -> Result<Option<Vec<u8>>, FsError> {
    let target = read(dir)?;
    if target.is_some() {
        at::unlink(dir, RECORD)?;
    }
    Ok(target)
}

/// Puts back what [`take_out`] took.
pub fn put_back(dir: &OwnedFd, target: Option<&[u8]>) {
    match target.map_or(Ok(()), |target| at::make_link(target, dir, RECORD)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => log::error!("the record of a directory could not be put back: {e}"),
    }
}

/// The record of a directory that has lost it: from its copy, or a new one where the directory holds nothing, as after
/// a crash within its removal. `read_only` stores nothing. The caller holds the lock against removals.
pub fn make_up(
    key: &VolumeKey,
    dir: &OwnedFd,
    place: Option<&Place>,
    read_only: bool,
) -> Result<Vec<u8>, FsError> {
    if let Some(target) = read(dir)? {
        return Ok(target);
    }
    let opens = |copy: &Vec<u8>| dir::open(key, copy, place).is_ok();
    let copied = at::xattr(dir, DIR_RECORD_COPY.as_bytes()).ok().filter(opens);
    let (target, how) = match copied {
        Some(copy) => (copy, "its copy was taken"),
        None if holds_nothing(dir)? => {
            (dir::seal(key, &random_array(), place).into_bytes(), "it is empty and got a new one")
        }
        None => return Err(FsError::Corrupt("a lower directory has no directory record".into())),
    };
    if !read_only {
        store(dir, &target)?;
    }
    log::warn!("a directory had lost its record; {how}");
    Ok(target)
}

/// Whether a lower directory has no entry, not even a record.
pub fn holds_nothing(dir: impl AsFd) -> Result<bool, Errno> {
    for entry in fs::Dir::new(at::reopen_dir(dir)?)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
