//! What makes a renewal one step: the new files, whole and durable, and a note that they count.
//!
//! ```text
//! .kmsfs.reencrypt/N.new     a whole lower file, ciphertext under the new data key
//! .kmsfs.reencrypt/commit    these are being put in the place of the old ones: magic "KMRC" 4 B | JSON | MAC 16 B
//! MAC = GCM-SIV tag (directory record key, nonce = 0, aad = "reencrypt" || volume id 16 B || JSON, empty message)
//! ```
//!
//! While the note is there, the files that it names may be a mixture on the disk, and nobody may read them: whoever opens
//! the volume for writing puts the new ones in place first ([`finish`]). That takes no key but the volume's own, and may be
//! interrupted and done again. The note is durably gone before a file that it names is used.
//!
//! Must never touch a file that is not the one it was made for: an old file is known by its id, a new one by its header.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Stuck;
use super::overwrite::{Kept, overwrite};
use crate::crypto::{VolumeKey, constant_time_eq, sha256};
use crate::format::header::{SUPERBLOCK_LEN, Superblock};
use crate::format::layout::BLOCK_LEN;
use crate::format::name::{self, Kind};
use crate::format::{FileId, VolumeId};
use crate::sys::at;
use crate::tree::FsError;

/// The directory in the lower root.
pub const RENEWALS: &str = ".kmsfs.reencrypt";
const COMMIT: &str = "commit";
const COMMIT_NEW: &str = "commit.part";
const MAGIC: [u8; 4] = *b"KMRC";
const MAC_LEN: usize = 16;
/// Longest note read: paths of a whole batch.
const COMMIT_MAX: u64 = 16 << 20;
/// Where the file's identity stands in the superblock.
const FILE_ID_AT: usize = 28;
const OWNER_READ_WRITE: u32 = 0o600;

/// A point at which tests interrupt.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps, reason = "in tests it fails")]
pub(super) const fn step() -> Result<(), Errno> {
    Ok(())
}
#[cfg(test)]
pub(super) use super::tests::step;

/// One file that gets the bytes of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Swap {
    /// Number of the new file.
    pub number: u32,
    /// A lower path of the old one, at the time of the note.
    pub path: PathBuf,
    /// Its identity, before and after.
    pub old_id: [u8; 16],
    pub new_id: [u8; 16],
    /// Hash of the first page of the new file, by which the rest of it is authenticated.
    pub head: [u8; 32],
    /// What stays as it was.
    pub kept: Kept,
}

/// The place where new files are made, of one volume that nobody else changes.
pub struct Journal {
    dir: OwnedFd,
    key: Arc<VolumeKey>,
    volume_id: VolumeId,
}

fn new_name(number: u32) -> String {
    format!("{number}.new")
}

fn open_dir(root: impl AsFd) -> Result<OwnedFd, Errno> {
    at::open(root, RENEWALS.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)
}

fn unlink_if_there(dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    step()?;
    match at::unlink(dir, name.as_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

impl Journal {
    /// Makes the place in the lower directory `root`.
    pub(super) fn open(root: impl AsFd, key: Arc<VolumeKey>, volume_id: VolumeId) -> Result<Self, Errno> {
        match fs::mkdirat(&root, RENEWALS, Mode::RWXU) {
            Ok(()) => fs::fsync(at::reopen_dir(&root)?)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        Ok(Self { dir: open_dir(root)?, key, volume_id })
    }

    /// The directory, for what else is kept of the work.
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// An empty new file.
    pub(super) fn make(&self, number: u32) -> Result<OwnedFd, Errno> {
        self.discard(number);
        at::open(
            &self.dir,
            new_name(number).as_bytes(),
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            OWNER_READ_WRITE,
        )
    }

    /// Removes a new file that does not count.
    pub(super) fn discard(&self, number: u32) {
        if let Err(e) = unlink_if_there(&self.dir, &new_name(number)) {
            log::debug!("a new file that does not count stays for now: {e}");
        }
    }

    /// The new files of `swaps`, which are durable, count from here on.
    /// The inner error leaves no note; with the outer one there may be one.
    pub(super) fn commit(&self, swaps: &[Swap]) -> Result<Result<(), Errno>, Stuck> {
        let Ok(json) = serde_json::to_vec(swaps) else { return Ok(Err(Errno::INVAL)) };
        let mac = self.mac(&json);
        let noted = self.write_note(&[&MAGIC[..], &json, &mac].concat());
        if noted.is_err() {
            // It must not come to count later, when the old files have gone on.
            unlink_if_there(&self.dir, COMMIT_NEW)
                .and_then(|()| unlink_if_there(&self.dir, COMMIT))
                .and_then(|()| fs::fsync(&self.dir))
                .map_err(Stuck)?;
        }
        Ok(noted)
    }

    fn write_note(&self, bytes: &[u8]) -> Result<(), Errno> {
        step()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = at::open(&self.dir, COMMIT_NEW.as_bytes(), flags, OWNER_READ_WRITE)?;
        let mut written = 0;
        while written < bytes.len() {
            written += rustix::io::pwrite(&file, &bytes[written..], written as u64)?;
        }
        fs::fsync(&file)?;
        step()?;
        fs::renameat(&self.dir, COMMIT_NEW, &self.dir, COMMIT)?;
        step()?;
        // What was put into this directory before is durable with it.
        fs::fsync(&self.dir)
    }

    /// The old files are durably what the new ones are.
    pub(super) fn end(&self, swaps: &[Swap]) -> Result<(), Errno> {
        unlink_if_there(&self.dir, COMMIT)?;
        fs::fsync(&self.dir)?;
        for swap in swaps {
            self.discard(swap.number);
        }
        Ok(())
    }

    fn mac(&self, json: &[u8]) -> [u8; MAC_LEN] {
        self.key.dir_record.mac(&[0; 12], &[&b"reencrypt"[..], &self.volume_id.0, json].concat())
    }

    /// The note, if there is one.
    fn read_note(&self) -> Result<Option<Vec<Swap>>, FsError> {
        let file = match at::open_regular(&self.dir, COMMIT.as_bytes(), OFlags::RDONLY, 0) {
            Ok(file) => std::fs::File::from(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FsError::Os(Errno::from_io_error(&e).unwrap_or(Errno::IO))),
        };
        let mut bytes = Vec::new();
        file.take(COMMIT_MAX).read_to_end(&mut bytes).map_err(|_| FsError::Os(Errno::IO))?;
        let json = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.split_last_chunk::<MAC_LEN>());
        let swaps = json.filter(|(json, mac)| constant_time_eq(&self.mac(json), &mac[..]));
        swaps.and_then(|(json, _)| serde_json::from_slice(json).ok()).map(Some).ok_or_else(|| {
            FsError::Corrupt(format!(
                "{RENEWALS}/{COMMIT} was not written by this volume: move {RENEWALS} out of the lower directory and run \
                 'kmsfs fsck'"
            ))
        })
    }
}

/// Whether files may be a mixture because a renewal was interrupted, or is under way.
pub fn is_unfinished(root: impl AsFd) -> bool {
    at::open_dir(root, RENEWALS.as_bytes()).is_ok_and(|dir| at::stat(&dir, COMMIT.as_bytes()).is_ok())
}

/// Puts in place what an interrupted renewal left, and removes what does not count. The caller holds the volume
/// exclusively. Gives the number of files.
pub fn finish(root: &OwnedFd, key: &Arc<VolumeKey>, volume_id: VolumeId) -> Result<usize, FsError> {
    let dir = match open_dir(root) {
        Err(Errno::NOENT) => return Ok(0),
        other => other?,
    };
    let journal = Journal { dir, key: Arc::clone(key), volume_id };
    let swaps = journal.read_note()?.unwrap_or_default();
    let old = journal.locate_all(root, &swaps)?;
    for swap in &swaps {
        // One that was removed meanwhile needs nothing.
        let Some(old) = old.get(&swap.number) else { continue };
        let new = journal.open_new(swap)?;
        overwrite(&new, old, swap.kept)?;
        fs::fsync(old)?;
    }
    journal.end(&swaps)?;
    journal.remove_leftovers()?;
    Ok(swaps.len())
}

impl Journal {
    /// A new file that counts.
    fn open_new(&self, swap: &Swap) -> Result<OwnedFd, FsError> {
        let open = || at::open_regular(&self.dir, new_name(swap.number).as_bytes(), OFlags::RDWR, 0);
        let file = open().map_err(|e| FsError::Os(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let mut head = [0; BLOCK_LEN];
        if rustix::io::pread(&file, &mut head, 0)? == BLOCK_LEN && sha256(&head) == swap.head {
            return Ok(file);
        }
        Err(FsError::Corrupt(format!("{RENEWALS}/{} is not the file it was", new_name(swap.number))))
    }

    /// Opens the old files, each by its path, or where it has been moved to meanwhile.
    fn locate_all(&self, root: &OwnedFd, swaps: &[Swap]) -> Result<HashMap<u32, OwnedFd>, FsError> {
        let mut found = HashMap::new();
        let mut moved = Vec::new();
        for swap in swaps {
            match open_by_path(root, &swap.path) {
                Ok(file) if self.is_it(&file, swap) => drop(found.insert(swap.number, file)),
                _ => moved.push(swap),
            }
        }
        let mut dirs = if moved.is_empty() { Vec::new() } else { vec![at::reopen_dir(root)?] };
        while let Some(dir) = dirs.pop() {
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                self.look_at(&dir, entry.file_name(), &mut dirs, &moved, &mut found)?;
            }
        }
        Ok(found)
    }

    fn look_at(
        &self,
        dir: &OwnedFd,
        entry: &CStr,
        dirs: &mut Vec<OwnedFd>,
        moved: &[&Swap],
        found: &mut HashMap<u32, OwnedFd>,
    ) -> Result<(), FsError> {
        if !matches!(name::classify(entry.to_bytes()), Kind::Short | Kind::LongEntry) {
            return Ok(());
        }
        let stat = at::stat(dir, entry.to_bytes())?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                dirs.push(at::open(dir, entry.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)?);
            }
            FileType::RegularFile if stat.st_size > 0 => {
                let file = open_for_change(&at::open_path(dir, entry.to_bytes())?)?;
                let swap = moved.iter().find(|swap| self.is_it(&file, swap));
                swap.map(|swap| found.insert(swap.number, file));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether `file` is the one to be changed, before or after it was.
    fn is_it(&self, file: &OwnedFd, swap: &Swap) -> bool {
        let id = id_of(file, self.volume_id);
        id == Some(FileId(swap.old_id)) || id == Some(FileId(swap.new_id))
    }

    fn remove_leftovers(&self) -> Result<(), FsError> {
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.ends_with(b".new") || name == COMMIT_NEW.as_bytes() {
                at::unlink(&self.dir, name)?;
            }
        }
        Ok(())
    }
}

/// Identity of a lower file of this volume, by the superblock alone: the rest of its header may be a mixture.
fn id_of(file: &OwnedFd, volume_id: VolumeId) -> Option<FileId> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    let read = rustix::io::pread(file, &mut bytes, 0).ok()?;
    let id = *bytes.get(FILE_ID_AT..)?.first_chunk::<16>()?;
    let expected = Superblock::new(volume_id, FileId(id), [0; 32]).encode();
    (read == SUPERBLOCK_LEN && bytes[..FILE_ID_AT] == expected[..FILE_ID_AT]).then_some(FileId(id))
}

fn open_by_path(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    use std::os::unix::ffi::OsStrExt;
    open_for_change(&at::open_beneath(root, path.as_os_str().as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)?)
}

/// Opens an inode for reading and writing, also where its owner took the right away from himself.
fn open_for_change(inode: &OwnedFd) -> Result<OwnedFd, Errno> {
    let stat = fs::fstat(inode)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let denied = match at::reopen(inode, OFlags::RDWR) {
        Err(e @ (Errno::ACCESS | Errno::PERM)) => e,
        other => return other,
    };
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(denied);
    }
    at::set_mode(inode, stat.st_mode & 0o7777 | OWNER_READ_WRITE)?;
    let opened = at::reopen(inode, OFlags::RDWR);
    at::set_mode(inode, stat.st_mode & 0o7777)?;
    opened
}
