//! The check of one lower file: header, key, commitment, seal, tags, data.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use super::check::Class;
use super::{check_attributes, lower_file};
use crate::crypto::{Place, VolumeKey};
use crate::format::FileId;
use crate::format::header::{HeaderError, Slots};
use crate::format::layout::{BLOCK, lower_len, plain_size};
use crate::tree::FsError;
use crate::tree::file::{FileContext, FileIo, Verified};

/// A file that changes under the check, in a live mount, is read again this often before its trouble counts.
const LIVE_TRIES: usize = 3;
/// Problems of one file that are put into words.
const MAX_TOLD: usize = 3;

/// A file without trouble.
pub struct Sound {
    /// Plaintext size in bytes.
    pub size: u64,
    /// Bytes of data that were verified.
    pub verified: u64,
    /// Its identity, where it has a header, and its inode.
    pub identity: Option<(FileId, u64)>,
}

type Trouble = (Class, String);

/// How deep to look.
pub struct Depth {
    /// How files are opened; without it, structure alone is checked.
    pub context: Option<Arc<FileContext>>,
    /// The key of the volume, likewise.
    pub key: Option<Arc<VolumeKey>>,
    /// Whether to verify all data.
    pub data: bool,
    /// Whether a mount uses the tree at the same time.
    pub live: bool,
    /// Whether files may be changed, to recover what a crash left.
    pub writable: bool,
}

/// Checks the file `name` of `dir`, which is bound to `place`, if to any.
pub fn check_file(
    dir: BorrowedFd<'_>,
    name: &CStr,
    place: Option<Place>,
    depth: &Depth,
) -> Result<Sound, Trouble> {
    let mut tries = if depth.live { LIVE_TRIES } else { 1 };
    loop {
        let outcome = try_check(dir, name, place, depth);
        tries -= 1;
        match outcome {
            Err((Class::Data | Class::Header, _)) if tries > 0 => {}
            other => return other,
        }
    }
}

fn try_check(
    dir: BorrowedFd<'_>,
    name: &CStr,
    place: Option<Place>,
    depth: &Depth,
) -> Result<Sound, Trouble> {
    let unreadable = |e: Errno| (Class::Unreadable, e.to_string());
    let access = if depth.writable { OFlags::RDWR } else { OFlags::RDONLY };
    let file = lower_file::open(dir, name, access).map_err(unreadable)?;
    let stat = fstat(file.as_fd()).map_err(unreadable)?;
    let length = stat.st_size as u64;
    if length == 0 {
        return Ok(Sound { size: 0, verified: 0, identity: None });
    }
    let file_id = match (check_structure(&file, length), &depth.context) {
        (Err((Class::Header, _)), Some(context)) if lost_its_header(&file, context) => {
            return Ok(Sound { size: 0, verified: 0, identity: None });
        }
        (structure, _) => structure?,
    };
    let identity = Some((file_id, stat.st_ino));
    match &depth.context {
        None => Ok(Sound { size: plain_size(length), verified: 0, identity }),
        Some(context) => {
            let io = FileIo::new(
                file.try_clone().map_err(|e| (Class::Unreadable, e.to_string()))?,
                Arc::clone(context),
                place,
            );
            let sound =
                check_content(&io, identity, depth.data).map_err(|trouble| naming_key(&file, trouble))?;
            match depth.key.as_ref().filter(|_| depth.data).and_then(|key| attributes(&file, &io, key)) {
                None => Ok(sound),
                Some(why) => Err((Class::Attribute, why)),
            }
        }
    }
}

/// Trouble with a key names that key.
fn naming_key(file: &OwnedFd, (class, why): Trouble) -> Trouble {
    let bytes = lower_file::read_slots(file.as_fd()).ok().flatten();
    let slots = bytes.filter(|_| class == Class::Key).and_then(|bytes| Slots::parse(&bytes).ok());
    let key = slots.map(|slots| slots.active().wrapped.key_arn.clone()).filter(|key| !why.contains(key));
    (class, key.map_or(why.clone(), |key| format!("{why} (its key is {key})")))
}

/// What of the file's superblocks and slots is torn though the rest serves.
pub fn torn(dir: BorrowedFd<'_>, name: &CStr) -> Option<String> {
    let file = lower_file::open(dir, name, OFlags::RDONLY).ok()?;
    let bytes = lower_file::read_slots(file.as_fd()).ok()??;
    Slots::mended(&bytes).ok()?.map(|(_, torn)| torn)
}

/// What can be seen without a key.
fn check_structure(file: &OwnedFd, length: u64) -> Result<FileId, Trouble> {
    let bytes = lower_file::read_slots(file.as_fd()).map_err(|e| (Class::Unreadable, e.to_string()))?;
    let header = bytes.ok_or(HeaderError::NoSuperblock).and_then(|bytes| Slots::parse(&bytes));
    let slots = header.map_err(|e| (Class::Header, e.to_string()))?;
    if length < BLOCK || lower_len(plain_size(length)) != length {
        return Err((Class::Data, format!("it was cut: no file of ours is {length} bytes long")));
    }
    Ok(slots.superblock.file_id)
}

/// Whether an unclean stop took the header of a new file, which is empty then.
fn lost_its_header(file: &OwnedFd, context: &Arc<FileContext>) -> bool {
    let Ok(file) = file.try_clone() else { return false };
    let io = FileIo::new(file, Arc::clone(context), None);
    io.ensure_keys().is_ok() && !io.has_header()
}

fn check_content(io: &FileIo, identity: Option<(FileId, u64)>, data: bool) -> Result<Sound, Trouble> {
    io.ensure_keys().map_err(trouble)?;
    let size = io.size().map_err(trouble)?;
    if !data {
        return Ok(Sound { size, verified: 0, identity });
    }
    let Verified { blocks, problems, .. } = io.verify().map_err(trouble)?;
    if problems.is_empty() {
        return Ok(Sound { size, verified: (blocks * BLOCK).min(size), identity });
    }
    let told: Vec<&str> = problems.iter().take(MAX_TOLD).map(String::as_str).collect();
    let more = problems.len().saturating_sub(MAX_TOLD);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err((Class::Data, format!("{}{more}", told.join("; "))))
}

/// What is wrong with the extended attributes of the file, if anything is.
fn attributes(file: &OwnedFd, io: &FileIo, key: &VolumeKey) -> Option<String> {
    let (keys, id) = io.keys_for_read().ok()??;
    check_attributes::trouble(file, key, &keys.xattr, &id.0)
}

fn trouble(error: FsError) -> Trouble {
    match error {
        FsError::Key(e) => (Class::Key, e.to_string()),
        FsError::Os(e) => (Class::Unreadable, e.to_string()),
        FsError::Corrupt(why) => (Class::Data, why),
    }
}
