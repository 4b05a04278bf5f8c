//! Tag logs of mounts that did not end cleanly: which sessions those were, and what their records say of which file.
//!
//! Called by `log` when a mount begins and by `load` for each file. An old log is kept as `.kmsfs.log.<n>` until every
//! file that it names was opened; the sessions themselves are noted on in the first page of each later log, since a file
//! that was closed in one of them but not synced may be found incomplete at any later time.
//!
//! ```text
//! first page of a log:  0  magic "KMLS" 4 B | 4  version u16 (2) | 6  flags u16 (bit 0: ended cleanly) | 8  session u32
//!                      12  unclean sessions before it u32, at most 1000 | 16  u32 each | 4080  MAC 16 B of 0..4080
//!                      (the volume's log key; nonce = 0)
//! last 64 B of a half: 0  number u64: records below it are void | 8  MAC 16 B of 0..8 (log key; nonce = "mark") | zero
//! ```

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::log::{HALF, LastEnd};
use super::lower::Lower;
use super::record::{self, ALIGN, Record};
use crate::crypto::{FileKeys, VolumeKey, constant_time_eq, random_array};
use crate::format::layout::{BLOCK, BLOCK_LEN};
use crate::format::{FileId, name};
use crate::sys::at;

/// Name of the log in the lower root.
pub const LOG_NAME: &str = ".kmsfs.log";
/// Old logs with records of files that were not opened since; beyond that the oldest go, and say so.
const OLD_LOGS_MAX: usize = 64;
/// Unclean sessions that are remembered; the oldest go first.
const SESSIONS_MAX: usize = 1000;
/// Longest log that is read.
const LOG_LEN_MAX: usize = 16 << 20;
const MAGIC: [u8; 4] = *b"KMLS";
const VERSION: u16 = 2;
const CLEAN: u16 = 1;
const MAC_AT: usize = BLOCK_LEN - 16;

/// The first page of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) clean: bool,
    pub(super) session: u32,
    pub(super) unclean: Vec<u32>,
}

impl Header {
    pub(super) fn encode(&self, key: &VolumeKey) -> Box<[u8; BLOCK_LEN]> {
        let mut page = Box::new([0; BLOCK_LEN]);
        let kept = &self.unclean[self.unclean.len().saturating_sub(SESSIONS_MAX)..];
        page[..4].copy_from_slice(&MAGIC);
        page[4..6].copy_from_slice(&VERSION.to_le_bytes());
        page[6..8].copy_from_slice(&(if self.clean { CLEAN } else { 0 }).to_le_bytes());
        page[8..12].copy_from_slice(&self.session.to_le_bytes());
        page[12..16].copy_from_slice(&(kept.len() as u32).to_le_bytes());
        for (place, session) in page[16..].chunks_exact_mut(4).zip(kept) {
            place.copy_from_slice(&session.to_le_bytes());
        }
        let mac = key.log.mac(&[0; 12], &page[..MAC_AT]);
        page[MAC_AT..].copy_from_slice(&mac);
        page
    }

    fn parse(key: &VolumeKey, page: &[u8]) -> Option<Self> {
        let page = page.get(..BLOCK_LEN)?;
        if page[..4] != MAGIC || !constant_time_eq(&key.log.mac(&[0; 12], &page[..MAC_AT]), &page[MAC_AT..]) {
            return None;
        }
        let number = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (flags, count) = (u16::from_le_bytes([page[6], page[7]]), number(12) as usize);
        let unclean = (0..count.min(SESSIONS_MAX)).map(|i| number(16 + 4 * i)).collect();
        Some(Self { clean: flags & CLEAN != 0, session: number(8), unclean })
    }
}

/// What a half of a log says when it is left: which records are void from then on.
pub(super) mod mark {
    use super::{ALIGN, VolumeKey, constant_time_eq};
    use crate::tree::file::log::HALF;

    /// Bytes that it takes.
    pub(in crate::tree::file) const LEN: usize = ALIGN;
    /// Where it stands in a half.
    pub(in crate::tree::file) const AT: u64 = HALF - LEN as u64;
    const NONCE: [u8; 12] = *b"mark\0\0\0\0\0\0\0\0";

    /// Records numbered below `void_below` are void.
    pub(in crate::tree::file) fn encode(key: &VolumeKey, void_below: u64) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&void_below.to_le_bytes());
        let mac = key.log.mac(&NONCE, &out[..8]);
        out[8..24].copy_from_slice(&mac);
        out
    }

    /// The number, where a mark stands there.
    pub(super) fn parse(key: &VolumeKey, bytes: &[u8]) -> Option<u64> {
        let (number, mac) = (bytes.first_chunk::<8>()?, bytes.get(8..24)?);
        constant_time_eq(&key.log.mac(&NONCE, number), mac).then(|| u64::from_le_bytes(*number))
    }
}

/// A record as found: its session, and its bytes.
struct Found {
    log: String,
    session: u32,
    bytes: Vec<u8>,
}

/// What earlier mounts left.
#[derive(Default)]
pub(super) struct OldLogs {
    root: Option<OwnedFd>,
    sessions: Mutex<Vec<u32>>,
    records: Mutex<HashMap<FileId, Vec<Found>>>,
}

impl OldLogs {
    /// Reads what is there, after moving the last log out of the way.
    pub(super) fn set_aside(root: &OwnedFd, key: &VolumeKey, last: LastEnd) -> Result<Self, Errno> {
        let inherited = set_aside_last(root, key, last)?;
        let old = Self::read(root, key, (last == LastEnd::Well).then_some(&inherited[..]))?;
        let mut sessions = inherited;
        sessions.append(&mut old.sessions.lock());
        sessions.dedup();
        *old.sessions.lock() = sessions;
        Ok(old)
    }

    /// Reads what is there, the last log too, and changes nothing.
    pub(super) fn read_all(root: &OwnedFd, key: &VolumeKey, last: LastEnd) -> Result<Self, Errno> {
        let inherited = match (last, last_header(root, key)) {
            (LastEnd::Well, Some(header)) if header.clean => Some(header.unclean),
            (LastEnd::Well, _) => Some(Vec::new()),
            (LastEnd::Unknown, _) => None,
        };
        let mut old = Self::read(root, key, inherited.as_deref())?;
        old.root = None;
        match inherited {
            Some(sessions) => *old.sessions.lock() = sessions,
            None => old.read_log(root, key, LOG_NAME, None),
        }
        Ok(old)
    }

    /// Reads the logs that were set aside; where only some sessions are `believed`, theirs alone.
    fn read(root: &OwnedFd, key: &VolumeKey, believed: Option<&[u32]>) -> Result<Self, Errno> {
        let mut old = Self { root: Some(root.try_clone().map_err(|_| Errno::MFILE)?), ..Self::default() };
        for number in old_numbers(root)? {
            old.read_log(root, key, &old_name(number), believed);
        }
        Ok(old)
    }

    /// Adds one log. What cannot be read, or was not written by a mount of the volume, keeps nobody from mounting.
    fn read_log(&mut self, root: &OwnedFd, key: &VolumeKey, name: &str, believed: Option<&[u32]>) {
        let file = match at::open_regular(root, name.as_bytes(), OFlags::RDONLY, 0) {
            Ok(file) => Lower::new(file),
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => return log::warn!("the tag log {name} is passed over: {e}"),
        };
        let len = file.len().unwrap_or(0).min(LOG_LEN_MAX as u64);
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(read);
        let Some(header) = Header::parse(key, &bytes) else {
            return log::warn!("the tag log {name} is passed over: its first page is not of this volume");
        };
        if believed.is_some_and(|sessions| !sessions.contains(&header.session)) {
            return log::warn!("the tag log {name} is passed over: its mount ended well, so it was put back");
        }
        if believed.is_none() {
            self.sessions.lock().extend(header.unclean);
        }
        if header.clean {
            return;
        }
        self.sessions.lock().push(header.session);
        self.add_records(name, header.session, &bytes, void_below(key, &bytes));
    }

    fn add_records(&self, name: &str, session: u32, bytes: &[u8], void_below: u64) {
        let mut at = BLOCK_LEN;
        let mut records = self.records.lock();
        while at < bytes.len() {
            let Some(whole) = record::whole(&bytes[at..]) else {
                at += ALIGN;
                continue;
            };
            if whole.sequence >= void_below {
                let bytes = bytes[at..at + whole.len].to_vec();
                records.entry(whole.file_id).or_default().push(Found { log: name.into(), session, bytes });
            }
            at += whole.len.next_multiple_of(ALIGN);
        }
    }

    /// The sessions that ended uncleanly and may still matter.
    pub(super) fn sessions(&self) -> Vec<u32> {
        self.sessions.lock().clone()
    }

    /// Every file was opened and is whole: nothing of what is here matters any more.
    pub(super) fn settle(&self) {
        self.sessions.lock().clear();
        self.records.lock().clear();
        self.remove_resolved();
    }

    /// Whether `session` ended without making everything durable.
    pub(super) fn was_unclean(&self, session: u32) -> bool {
        self.sessions.lock().contains(&session)
    }

    /// Whether there are records of any file.
    pub(super) fn has_records(&self) -> bool {
        !self.records.lock().is_empty()
    }

    /// Whether there are records of `file_id`.
    pub(super) fn speaks_of(&self, file_id: FileId) -> bool {
        self.records.lock().contains_key(&file_id)
    }

    /// Whether any session did.
    pub(super) fn any_unclean(&self) -> bool {
        !self.sessions.lock().is_empty()
    }

    /// What is known of `file_id`, as far as its key vouches for it: session and record, in the order of writing.
    pub(super) fn of(&self, keys: &FileKeys, file_id: FileId) -> Vec<(u32, Record<Vec<u8>>)> {
        let records = self.records.lock();
        let found = records.get(&file_id).into_iter().flatten();
        let mut parsed: Vec<_> =
            found.filter_map(|found| Some((found.session, record::parse(keys, &found.bytes)?))).collect();
        parsed.sort_by_key(|(_, record)| record.sequence);
        parsed
    }

    /// `file_id` is whole again, or gone: its records are no longer needed.
    pub(super) fn resolve(&self, file_id: FileId) {
        if self.records.lock().remove(&file_id).is_some() {
            self.remove_resolved();
        }
    }

    /// Gives back the space that no record in the old logs used, where a full disk has no room for a new one; tells
    /// whether there was any. A volume that is full must be mounted before something in it can be removed.
    pub(super) fn give_back(&self) -> bool {
        let Some(root) = &self.root else { return false };
        let cut = |number| {
            let file = at::open_regular(root, old_name(number).as_bytes(), OFlags::RDWR, 0).map(Lower::new);
            file.is_ok_and(|file| cut_unused(&file).unwrap_or(false))
        };
        let numbers = old_numbers(root).unwrap_or_default();
        numbers.into_iter().map(cut).fold(false, |any, one| any | one)
    }

    /// Gives each old log another name in `root`: they are never written again.
    pub(super) fn link_into(&self, root: &OwnedFd) -> Result<(), Errno> {
        let Some(own) = &self.root else { return Ok(()) };
        let _none_is_removed = self.records.lock();
        for number in old_numbers(own)? {
            let name = old_name(number);
            rustix::fs::linkat(own, &name, root, &name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Removes the logs that no file waits for. Their sessions must stand in the last log by then.
    pub(super) fn remove_resolved(&self) {
        let Some(root) = &self.root else { return };
        let records = self.records.lock();
        let needed: std::collections::HashSet<&str> =
            records.values().flatten().map(|f| f.log.as_str()).collect();
        for number in old_numbers(root).unwrap_or_default() {
            let name = old_name(number);
            if !needed.contains(name.as_str()) {
                // Left behind, it costs a little space and is read again at the next mount.
                let _ = rustix::fs::unlinkat(root, &name, AtFlags::empty());
            }
        }
    }
}

/// Below which number the records of a log are void, as the marks of its halves say.
fn void_below(key: &VolumeKey, log: &[u8]) -> u64 {
    let places = [BLOCK + mark::AT, BLOCK + HALF + mark::AT];
    let marks = places.iter().filter_map(|at| mark::parse(key, log.get(*at as usize..)?));
    marks.max().unwrap_or(0)
}

/// Whether the last mount of the volume in `root` that could write left everything sealed and durable, as its log says.
pub fn ended_cleanly(root: &OwnedFd, key: &VolumeKey) -> bool {
    let mut page = [0; BLOCK_LEN];
    match at::open_regular(root, LOG_NAME.as_bytes(), OFlags::RDONLY, 0) {
        Err(e) => e.kind() == ErrorKind::NotFound,
        Ok(file) => {
            let _ = Lower::new(file).read_at(&mut page, 0);
            Header::parse(key, &page).is_some_and(|header| header.clean)
        }
    }
}

/// Cuts the zeros off the end of an old log, where there are a page of them or more.
fn cut_unused(file: &Lower) -> Result<bool, Errno> {
    let mut bytes = vec![0; file.len()?.min(LOG_LEN_MAX as u64) as usize];
    let read = file.read_at(&mut bytes, 0)?;
    let used = bytes[..read].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let kept = used.next_multiple_of(BLOCK_LEN);
    if kept >= read {
        return Ok(false);
    }
    file.set_len(kept as u64).map(|()| true)
}

fn old_name(number: u32) -> String {
    format!("{LOG_NAME}.{number}")
}

/// Makes the log that begins with `header`, durable before it stands under its name; an old one of a clean unmount goes.
pub(super) fn create(root: &OwnedFd, header: &[u8; BLOCK_LEN]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let temporary = name::temporary(random_array());
    let fd = rustix::fs::openat(root, &*temporary, flags, Mode::RUSR | Mode::WUSR)?;
    let made = rustix::io::pwrite(&fd, header, 0)
        .and_then(|written| if written == BLOCK_LEN { Ok(()) } else { Err(Errno::NOSPC) })
        .and_then(|()| rustix::fs::fsync(&fd))
        .and_then(|()| rustix::fs::renameat(root, &*temporary, root, LOG_NAME))
        .and_then(|()| rustix::fs::fsync(root));
    if let Err(e) = made {
        let _ = rustix::fs::unlinkat(root, &*temporary, AtFlags::empty());
        return Err(e);
    }
    Ok(fd)
}

/// Moves the log of an unclean unmount out of the way, under the next number; what else stands there under another
/// name. One of a clean unmount stays to be replaced; the sessions that it still
/// knew of are given.
fn set_aside_last(root: &OwnedFd, key: &VolumeKey, last: LastEnd) -> Result<Vec<u32>, Errno> {
    let kind = match at::stat(root, LOG_NAME.as_bytes()) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    if kind != FileType::RegularFile {
        let aside = name::foreign(random_array());
        log::warn!("{LOG_NAME} is not a regular file; it was not put there by kmsfs and is now {aside}");
        rustix::fs::renameat(root, LOG_NAME, root, &aside)?;
        return Ok(Vec::new());
    }
    if let Some(header) = last_header(root, key).filter(|header| header.clean) {
        return Ok(header.unclean);
    }
    if last == LastEnd::Well {
        let aside = name::foreign(random_array());
        log::warn!("{LOG_NAME} is of a mount that ended well: it was put back, and is now {aside}");
        rustix::fs::renameat(root, LOG_NAME, root, &aside)?;
        return Ok(Vec::new());
    }
    let numbers = old_numbers(root)?;
    let next = numbers.last().map_or(Some(0), |n| n.checked_add(1));
    let free = next.or_else(|| (0..=u32::MAX).find(|n| numbers.binary_search(n).is_err()));
    rustix::fs::renameat(root, LOG_NAME, root, old_name(free.unwrap_or(0)))?;
    Ok(Vec::new())
}

/// The first page of the last log, where there is one of the volume.
fn last_header(root: &OwnedFd, key: &VolumeKey) -> Option<Header> {
    let mut page = [0; BLOCK_LEN];
    let file = at::open_regular(root, LOG_NAME.as_bytes(), OFlags::RDONLY, 0).ok()?;
    Lower::new(file).read_at(&mut page, 0).ok()?;
    Header::parse(key, &page)
}

/// Numbers of the logs that were set aside, in order, after dropping the oldest above the limit.
fn old_numbers(root: &OwnedFd) -> Result<Vec<u32>, Errno> {
    let mut numbers = Vec::new();
    for entry in rustix::fs::Dir::read_from(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        let number = name.strip_prefix(LOG_NAME).and_then(|rest| rest.strip_prefix('.'));
        // One number, one spelling.
        numbers.extend(number.and_then(|n| n.parse::<u32>().ok()).filter(|n| old_name(*n) == name));
    }
    numbers.sort_unstable();
    while numbers.len() > OLD_LOGS_MAX {
        let oldest = old_name(numbers.remove(0));
        log::error!(
            "dropping {oldest}, the tag log of an earlier unclean unmount: too many wait for their files"
        );
        if let Err(e) = rustix::fs::unlinkat(root, &oldest, AtFlags::empty()) {
            log::warn!("{oldest} cannot be removed: {e}");
        }
    }
    Ok(numbers)
}
