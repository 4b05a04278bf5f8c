//! What changed between two states of a volume, without reading data: every write of a file changes its seal.
//!
//! Called by `kmsfs snapshot diff` and by `send`.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags, Stat};
use rustix::io::{Errno, pread};
use serde::Serialize;

use crate::crypto::{DirKey, Place, VolumeKey};
use crate::format::dir::{self, DIR_RECORD, DirId};
use crate::format::header::{SLOTS_LEN, SUPERBLOCK_LEN};
use crate::format::name::{self, Kind, classify};
use crate::format::seal::SEAL_LEN;
use crate::sys::{at, on_deep_stack};
use crate::volume::open::open_lower;
use crate::volume::{Volume, VolumeError};

/// Differences told; more only count.
const LISTED_MAX: usize = 100_000;

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Changed {
    /// It was not there.
    Added,
    /// It is gone.
    Removed,
    /// Data, size, or target.
    Content,
    /// Owner, mode, or what is bound to the entry.
    Attributes,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Plaintext path; the lower one where a name does not open.
    pub path: PathBuf,
    /// What happened.
    pub changed: Changed,
}

/// How the tree in `to` differs from that in `from`: two snapshots, or a snapshot and the volume.
pub fn diff(volume: &Volume, from: &Path, to: &Path) -> Result<(Vec<Difference>, u64), VolumeError> {
    let mut walk = Walk { key: &volume.key, found: Vec::new(), total: 0 };
    let (a, b) = (open_lower(from)?, open_lower(to)?);
    let compare = || walk.compare(Some(&a), Some(&b), Path::new(""), volume.key.root_place());
    let failed = |e| VolumeError::io("compare", to, e);
    on_deep_stack(compare).map_err(failed)?.map_err(|e| failed(e.into()))?;
    Ok((walk.found, walk.total))
}

struct Walk<'a> {
    key: &'a VolumeKey,
    found: Vec<Difference>,
    total: u64,
}

type Entries = BTreeMap<CString, Stat>;

impl Walk<'_> {
    fn note(&mut self, path: PathBuf, changed: Changed) {
        self.total += 1;
        if self.found.len() < LISTED_MAX {
            self.found.push(Difference { path, changed });
        }
    }

    fn compare(
        &mut self,
        from: Option<&OwnedFd>,
        to: Option<&OwnedFd>,
        path: &Path,
        place: Option<Place>,
    ) -> Result<(), Errno> {
        let (before, after) = (entries(from)?, entries(to)?);
        let Some(dir) = to.or(from) else { return Ok(()) };
        let id = dir_id(self.key, dir, place.as_ref());
        let key = id.map(|id| self.key.dir_key(&id));
        let mut names: Vec<&CString> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let here = path.join(plain_name(key.as_ref(), to.or(from), name));
            let (old, new) = (before.get(name), after.get(name));
            let changed = match (old, new) {
                (Some(old), Some(new)) => changed(from, to, name, old, new)?,
                (None, _) => Some(Changed::Added),
                (_, None) => Some(Changed::Removed),
            };
            if let Some(changed) = changed {
                self.note(here.clone(), changed);
            }
            let below = |dir: Option<&OwnedFd>, stat: Option<&Stat>| match (dir, stat) {
                (Some(dir), Some(stat)) if is_dir(stat) => {
                    at::open(dir, name.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0).map(Some)
                }
                _ => Ok(None),
            };
            let (a, b) = (below(from, old)?, below(to, new)?);
            if a.is_some() || b.is_some() {
                let place = id.and_then(|id| self.key.place(&id, name.to_bytes()));
                self.compare(a.as_ref(), b.as_ref(), &here, place)?;
            }
        }
        Ok(())
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The entries of a directory that are the volume's.
fn entries(dir: Option<&OwnedFd>) -> Result<Entries, Errno> {
    let mut found = Entries::new();
    let Some(dir) = dir else { return Ok(found) };
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(classify(name.to_bytes()), Kind::Short | Kind::LongEntry) {
            match at::stat(dir, name.to_bytes()) {
                Ok(stat) => found.insert(name.to_owned(), stat),
                Err(Errno::NOENT) => None,
                Err(e) => return Err(e),
            };
        }
    }
    Ok(found)
}

fn changed(
    from: Option<&OwnedFd>,
    to: Option<&OwnedFd>,
    name: &CString,
    old: &Stat,
    new: &Stat,
) -> Result<Option<Changed>, Errno> {
    let (Some(from), Some(to)) = (from, to) else { return Ok(None) };
    let kind = FileType::from_raw_mode(new.st_mode);
    if FileType::from_raw_mode(old.st_mode) != kind {
        return Ok(Some(Changed::Content));
    }
    let same = match kind {
        FileType::RegularFile => old.st_size == new.st_size && same_seals(from, to, name)?,
        FileType::Symlink => at::read_link(from, name.to_bytes())? == at::read_link(to, name.to_bytes())?,
        FileType::CharacterDevice | FileType::BlockDevice => old.st_rdev == new.st_rdev,
        _ => true,
    };
    let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    Ok(match same {
        false => Some(Changed::Content),
        true if attributes(old) != attributes(new) => Some(Changed::Attributes),
        true => None,
    })
}

/// Superblock and seals: what a write changes and a rewrap does not.
fn same_seals(from: &OwnedFd, to: &OwnedFd, name: &CString) -> Result<bool, Errno> {
    let read = |dir: &OwnedFd| {
        let file = at::open(dir, name.to_bytes(), OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
        let (mut superblock, mut seals) = ([0; SUPERBLOCK_LEN], [0; 2 * SEAL_LEN]);
        pread(file.as_fd(), &mut superblock, 0)?;
        pread(file.as_fd(), &mut seals, SLOTS_LEN as u64)?;
        Ok::<_, Errno>((superblock, seals))
    };
    Ok(read(from)? == read(to)?)
}

fn dir_id(key: &VolumeKey, dir: &OwnedFd, place: Option<&Place>) -> Option<DirId> {
    let record = at::read_link(dir, DIR_RECORD.as_bytes()).ok()?;
    dir::open(key, &record, place).ok()
}

/// The plaintext name, or the lower one where it does not open.
fn plain_name(key: Option<&DirKey>, dir: Option<&OwnedFd>, name: &CString) -> PathBuf {
    let plain = || {
        let text = match (name.to_str().ok()?, classify(name.to_bytes())) {
            (entry, Kind::LongEntry) => at::read_link(dir?, name::sidecar_of(entry)?.as_bytes()).ok()?,
            (entry, _) => entry.as_bytes().to_vec(),
        };
        name::decrypt(key?, &text).ok()
    };
    let bytes = plain().unwrap_or_else(|| name.to_bytes().to_vec());
    PathBuf::from(OsStr::from_bytes(&bytes))
}
