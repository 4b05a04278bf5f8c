//! The tag log: what the tags of a block were and become, noted before the block is overwritten.
//!
//! Data page and tag page are two pages. A daemon that is killed between the two leaves a block that its stored tag does
//! not fit; the log then holds the tag that does. Called by `write` before it overwrites and by `recover` afterwards.
//! Holds nothing secret; a record carries a MAC under its file's key, since it may say that a block was a hole.
//!
//! `.kmsfs.log` in the lower root: 64 slots of 16 KiB, each used by one write at a time, never cleared (an old record
//! fits no block any more). Removed at a clean unmount; after an unclean one renamed to `.kmsfs.log.<n>` and kept until
//! every file it names was opened.
//!
//! ```text
//! record:  0  magic "KML1" 4 B | 4  CRC-32C of 8..end u32 | 8  file id 16 B | 24  first block u64
//!         32  blocks u32 | 36  length of the last block u32 | 40  per block: old entry 28 B, new entry 28 B
//!         then  MAC of 0..here with the CRC as zero 16 B (page key, nonce = 8 zero bytes || "log\0")
//! ```

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::lower::Lower;
use crate::crypto::{FileKeys, TAG_LEN, constant_time_eq, random_array};
use crate::format::FileId;
use crate::format::layout::{BLOCK_LEN, ENTRY_LEN};
use crate::format::name;
use crate::format::tags::Entry;
use crate::sys::at;

/// Name of the log in the lower root.
pub const LOG_NAME: &str = ".kmsfs.log";
const SLOTS: u64 = 64;
const SLOT_LEN: usize = 16 * 1024;
const RECORD_HEADER: usize = 40;
/// Most blocks of one record.
const BLOCKS_MAX: usize = (SLOT_LEN - RECORD_HEADER - TAG_LEN) / (2 * ENTRY_LEN);
const MAC_NONCE: [u8; 12] = *b"\0\0\0\0\0\0\0\0log\0";
/// Most logs of unclean unmounts that are kept; the oldest go first.
const OLD_LOGS_MAX: usize = 16;
const MAGIC: [u8; 4] = *b"KML1";
const _: () = assert!(BLOCKS_MAX >= 257, "a write of 1 MiB touches 257 blocks");

/// What one logged write knew of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logged {
    pub(super) block: u64,
    pub(super) old: Entry,
    pub(super) new: Entry,
    /// Length of the block's plaintext after the write.
    pub(super) new_len: usize,
}

/// Whole records by file, each with the number of its log.
type Pending = HashMap<FileId, Vec<(u32, Vec<u8>)>>;

/// The log of one mount.
#[derive(Debug)]
pub struct TagLog {
    root: OwnedFd,
    file: Lower,
    free: Mutex<Vec<u64>>,
    returned: Condvar,
    /// From logs of unclean unmounts.
    pending: Mutex<Pending>,
}

/// A slot in use; given back on drop.
pub(super) struct InFlight<'a>(&'a TagLog, u64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.free.lock().push(self.1);
        self.0.returned.notify_one();
    }
}

fn old_name(number: u32) -> String {
    format!("{LOG_NAME}.{number}")
}

impl TagLog {
    /// Opens the log of the volume in `root`, after setting one of an unclean unmount aside.
    /// The caller holds the volume exclusively.
    pub fn open(root: impl AsFd) -> Result<Self, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        set_aside_last(&root)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&root, LOG_NAME, flags, Mode::RUSR | Mode::WUSR)?;
        let log = Self {
            pending: Mutex::new(read_old(&root)?),
            root,
            file: Lower(file),
            free: Mutex::new((0..SLOTS).collect()),
            returned: Condvar::new(),
        };
        Ok(log)
    }

    /// The records of unclean unmounts alone, for a reader that changes nothing.
    pub fn open_read_only(root: impl AsFd) -> Result<Self, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        let mut pending = read_old(&root)?;
        read_into(&root, LOG_NAME, u32::MAX, &mut pending);
        let file = rustix::fs::openat(&root, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let (free, returned) = (Mutex::new(Vec::new()), Condvar::new());
        Ok(Self { root, file: Lower(file), free, returned, pending: Mutex::new(pending) })
    }

    /// Notes the change of the blocks from `first` on. Holds a slot until the guard is dropped, which must happen only
    /// after data and tags were both written.
    pub(super) fn note(
        &self,
        keys: &FileKeys,
        file_id: FileId,
        first: u64,
        changes: &[(Entry, Entry)],
        last_len: usize,
    ) -> Result<InFlight<'_>, Errno> {
        debug_assert!(changes.len() <= BLOCKS_MAX);
        let mut record = Vec::with_capacity(RECORD_HEADER + changes.len() * 2 * ENTRY_LEN + TAG_LEN);
        record.extend_from_slice(&MAGIC);
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&file_id.0);
        record.extend_from_slice(&first.to_le_bytes());
        record.extend_from_slice(&(changes.len() as u32).to_le_bytes());
        record.extend_from_slice(&(last_len as u32).to_le_bytes());
        for (old, new) in changes {
            record.extend_from_slice(old);
            record.extend_from_slice(new);
        }
        let mac = keys.page.mac(&MAC_NONCE, &record);
        record.extend_from_slice(&mac);
        let crc = crc32c::crc32c(&record[8..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        let guard = InFlight(self, self.take_slot());
        self.file.write_at(&record, guard.1 * SLOT_LEN as u64).map_err(|(_, e)| e)?;
        Ok(guard)
    }

    fn take_slot(&self) -> u64 {
        let mut free = self.free.lock();
        loop {
            if let Some(slot) = free.pop() {
                return slot;
            }
            // Every holder is inside one write call of ours, so a slot comes back.
            self.returned.wait(&mut free);
        }
    }

    /// What unclean unmounts left of `file_id`, as far as its key vouches for it.
    pub(super) fn pending(&self, keys: &FileKeys, file_id: FileId) -> Vec<Logged> {
        let pending = self.pending.lock();
        let records = pending.get(&file_id).into_iter().flatten();
        records
            .filter(|(_, record)| is_genuine(keys, record))
            .flat_map(|(_, record)| changes(record))
            .collect()
    }

    /// `file_id` was opened and is whole (or gone): its records are no longer needed.
    pub fn resolve(&self, file_id: FileId) {
        let mut pending = self.pending.lock();
        let Some(records) = pending.remove(&file_id) else { return };
        for (number, _) in records {
            let needed = pending.values().flatten().any(|(other, _)| *other == number);
            if !needed {
                // Left behind, it costs a little space and is read again at the next mount.
                let _ = rustix::fs::unlinkat(&self.root, old_name(number), AtFlags::empty());
            }
        }
    }

    /// Removes the log: every write is done.
    pub fn close(&self) {
        let _ = rustix::fs::unlinkat(&self.root, LOG_NAME, AtFlags::empty());
    }
}

/// Moves the log of an unclean unmount out of the way, under the next number; what else stands there under another name.
fn set_aside_last(root: &OwnedFd) -> Result<(), Errno> {
    let kind = match at::stat(root, LOG_NAME.as_bytes()) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    if kind != FileType::RegularFile {
        let aside = name::foreign(random_array());
        log::warn!("{LOG_NAME} is not a regular file; it was not put there by kmsfs and is now {aside}");
        return rustix::fs::renameat(root, LOG_NAME, root, &aside);
    }
    let numbers = old_numbers(root)?;
    let next = numbers.last().map_or(Some(0), |n| n.checked_add(1));
    let free = next.or_else(|| (0..=u32::MAX).find(|n| numbers.binary_search(n).is_err()));
    rustix::fs::renameat(root, LOG_NAME, root, old_name(free.unwrap_or(0)))
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
    while numbers.len() >= OLD_LOGS_MAX {
        let oldest = old_name(numbers.remove(0));
        log::warn!("dropping {oldest}, the tag log of an earlier unclean unmount");
        if let Err(e) = rustix::fs::unlinkat(root, &oldest, AtFlags::empty()) {
            log::warn!("{oldest} cannot be removed: {e}");
        }
    }
    Ok(numbers)
}

fn read_old(root: &OwnedFd) -> Result<Pending, Errno> {
    let mut pending = Pending::new();
    for number in old_numbers(root)? {
        read_into(root, &old_name(number), number, &mut pending);
    }
    Ok(pending)
}

/// Adds the records of one log. What cannot be read keeps no volume from being mounted.
fn read_into(root: &OwnedFd, name: &str, number: u32, pending: &mut Pending) {
    let file = match at::open_regular(root, name.as_bytes(), OFlags::RDONLY, 0) {
        Ok(file) => Lower(file),
        Err(e) if e.kind() == ErrorKind::NotFound => return,
        Err(e) => return log::warn!("the tag log {name} is passed over: {e}"),
    };
    let mut slot = vec![0; SLOT_LEN];
    for index in 0..SLOTS {
        match file.read_at(&mut slot, index * SLOT_LEN as u64) {
            Ok(len) => {
                let Some(end) = whole_record(&slot[..len]) else { continue };
                let file_id = FileId(slot[8..24].try_into().expect("16 bytes"));
                pending.entry(file_id).or_default().push((number, slot[..end].to_vec()));
            }
            Err(e) => log::warn!("slot {index} of the tag log {name} cannot be read: {e}"),
        }
    }
}

fn field(record: &[u8], at: usize) -> Option<u32> {
    record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The length of the record in `slot`, if one stands there whole.
fn whole_record(slot: &[u8]) -> Option<usize> {
    let (count, last_len) = (field(slot, 32)? as usize, field(slot, 36)? as usize);
    let end = RECORD_HEADER + count.min(BLOCKS_MAX) * 2 * ENTRY_LEN + TAG_LEN;
    let sane =
        slot[..4] == MAGIC && slot.len() >= end && count > 0 && count <= BLOCKS_MAX && last_len <= BLOCK_LEN;
    (sane && field(slot, 4)? == crc32c::crc32c(&slot[8..end])).then_some(end)
}

fn is_genuine(keys: &FileKeys, record: &[u8]) -> bool {
    let (body, mac) = record.split_at(record.len() - TAG_LEN);
    let mut body = body.to_vec();
    body[4..8].fill(0);
    constant_time_eq(&keys.page.mac(&MAC_NONCE, &body), mac)
}

/// The changes of a whole record.
fn changes(record: &[u8]) -> Vec<Logged> {
    let first = u64::from_le_bytes(record[24..32].try_into().expect("8 bytes"));
    let last_len = field(record, 36).unwrap_or(0) as usize;
    let pairs = record[RECORD_HEADER..record.len() - TAG_LEN].as_chunks::<{ 2 * ENTRY_LEN }>().0;
    let logged = |(i, both): (usize, &[u8; 2 * ENTRY_LEN])| Logged {
        block: first.saturating_add(i as u64),
        old: both[..ENTRY_LEN].try_into().expect("half of the record"),
        new: both[ENTRY_LEN..].try_into().expect("half of the record"),
        new_len: if i + 1 == pairs.len() { last_len } else { BLOCK_LEN },
    };
    pairs.iter().enumerate().map(logged).collect()
}
