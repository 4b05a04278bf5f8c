//! From lower names back to plaintext ones, for messages.
//!
//! Called by `check` and `rewrap`.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::readlinkat;
use rustix::io::Errno;

use super::walk::Directory;
use crate::crypto::{DirKey, Place, VolumeKey};
use crate::format::dir::{self, DIR_RECORD, DIR_RECORD_COPY, DirId};
use crate::format::name::{self, Kind, classify};
use crate::sys::at;

/// Why a lower name has no plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameTrouble {
    /// The directory's key did not make it.
    Forged,
    /// A long name's sidecar is missing or of another entry.
    Sidecar(&'static str),
    /// The sidecar cannot be read.
    Unreadable(Errno),
}

impl std::fmt::Display for NameTrouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forged => f.write_str("the name is damaged, or was moved here from another directory"),
            Self::Sidecar(why) => f.write_str(why),
            Self::Unreadable(e) => write!(f, "the sidecar of the long name: {e}"),
        }
    }
}

/// The keys of a directory, when its record opens.
pub fn dir_key(volume_key: &VolumeKey, dir: &Directory) -> Option<DirKey> {
    dir_id(volume_key, dir).map(|id| volume_key.dir_key(&id))
}

/// The identity of a directory, when its record opens; or its copy, where a rename that bound it was cut short.
pub fn dir_id(volume_key: &VolumeKey, dir: &Directory) -> Option<DirId> {
    if let Some(id) = dir.id.get() {
        return Some(*id);
    }
    let place = dir_place(volume_key, dir).ok()?;
    let opens = |target: &[u8]| dir::open(volume_key, target, place.as_ref()).ok();
    let record = readlinkat(dir.fd(), DIR_RECORD, Vec::new()).ok()?;
    let copy = || place.and_then(|_| at::xattr(dir.fd(), DIR_RECORD_COPY.as_bytes()).ok());
    let id = opens(record.as_bytes()).or_else(|| opens(&copy()?))?;
    Some(*dir.id.get_or_init(|| id))
}

/// A place cannot be told, because the directory does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unplaced;

/// The place of a directory; `None` where names are not bound.
pub fn dir_place(volume_key: &VolumeKey, dir: &Directory) -> Result<Option<Place>, Unplaced> {
    match dir.parent() {
        Some((parent, name)) => place(volume_key, parent, name),
        None => Ok(volume_key.root_place()),
    }
}

/// The same of the entry `name` of `dir`.
pub fn place(volume_key: &VolumeKey, dir: &Directory, name: &CStr) -> Result<Option<Place>, Unplaced> {
    if !volume_key.binds_names() {
        return Ok(None);
    }
    dir_id(volume_key, dir).map(|id| volume_key.place(&id, name.to_bytes())).ok_or(Unplaced)
}

/// The plaintext path of `name` in `dir`, when every name on the way opens.
pub fn of(volume_key: &VolumeKey, dir: &Directory, name: &CStr) -> Option<PathBuf> {
    let mut names = vec![plain_name(&dir_key(volume_key, dir)?, dir, name).ok()?];
    let mut at = dir.parent();
    while let Some((parent, name)) = at {
        names.push(plain_name(&dir_key(volume_key, parent)?, parent, name).ok()?);
        at = parent.parent();
    }
    Some(names.iter().rev().map(|name| OsStr::from_bytes(name)).collect())
}

/// The plaintext path of the directory itself; `.` for the root.
pub fn of_dir(volume_key: &VolumeKey, dir: &Directory) -> Option<PathBuf> {
    dir.parent().map_or_else(|| Some(".".into()), |(parent, name)| of(volume_key, parent, name))
}

/// The plaintext name of an entry, short or long.
pub fn plain_name(key: &DirKey, dir: &Directory, name: &CStr) -> Result<Vec<u8>, NameTrouble> {
    let text = match classify(name.to_bytes()) {
        Kind::LongEntry => sidecar_target(dir, name)?,
        Kind::Short | Kind::Sidecar | Kind::Record | Kind::Foreign => name.to_bytes().to_vec(),
    };
    name::decrypt(key, &text).map_err(|_| NameTrouble::Forged)
}

/// The text of a long name.
pub fn sidecar_target(dir: &Directory, entry: &CStr) -> Result<Vec<u8>, NameTrouble> {
    let entry = entry.to_str().map_err(|_| NameTrouble::Forged)?;
    let sidecar = name::sidecar_of(entry).ok_or(NameTrouble::Forged)?;
    match readlinkat(dir.fd(), sidecar, Vec::new()) {
        Ok(target) if name::sidecar_fits(entry, target.as_bytes()) => Ok(target.into_bytes()),
        Ok(_) => Err(NameTrouble::Sidecar("the sidecar of the long name is of another entry")),
        Err(Errno::NOENT) => Err(NameTrouble::Sidecar("the sidecar of the long name is missing")),
        Err(e) => Err(NameTrouble::Unreadable(e)),
    }
}
