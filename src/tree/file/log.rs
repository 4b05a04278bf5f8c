//! The tag log: what is about to change in blocks that must not be lost, durable before it changes.
//!
//! Data page and tag page of a block are two pages of the lower file, which the kernel writes back in any order. A
//! record in the log, on stable storage before either is written, lets `recover` find the tag that fits. Records also
//! carry seals, and where a sync is to cost one write instead of two, the data itself.
//!
//! `.kmsfs.log` in the lower root: one page that names the mount's session, then two halves that are filled in turn. A
//! half is used again when every file with records in it was synced, and a mark that stays until then says that what it
//! held is void: of the records that count none is missing that came after one of them. Locks: a file's own before the
//! log's, never the other way round.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::lower::Lower;
use super::old_logs::{self, Header, OldLogs, mark};
use super::record::{ALIGN, RECORD_MAX, Record};
use crate::crypto::{FileKeys, VolumeKey, random_array};
use crate::format::FileId;
use crate::format::layout::BLOCK;

pub use super::old_logs::{LOG_NAME, ended_cleanly};

/// Bytes of one half.
#[cfg(not(test))]
pub(super) const HALF: u64 = 2 << 20;
/// So short that tests go round.
#[cfg(test)]
pub(super) const HALF: u64 = 1 << 20;
const _: () = assert!(RECORD_MAX as u64 <= HALF / 2);
/// Bytes of the log that are filled at a time.
const PREPARED_AT_A_TIME: u64 = 64 << 10;
/// Files with records in one half, at most: each keeps its descriptor until it is synced.
const FILES_MAX: usize = 512;

/// What fsync and an in-place overwrite cost and promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// A power cut leaves each block that was once synced as it was or as it was to become.
    #[default]
    Strict,
    /// The log is written but not waited for: a power cut may lose blocks that were being overwritten.
    Relaxed,
}

/// How the last mount that could write ended, by a witness other than the lower tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastEnd {
    /// There is no witness: the log of an unclean stop is believed.
    #[default]
    Unknown,
    /// With everything whole: a log that says otherwise was put back.
    Well,
}

/// One half of the log.
#[derive(Default)]
struct Half {
    /// Records whose changes are not in place yet.
    pending: usize,
    /// Files with records in it that were not synced since.
    files: HashMap<usize, Arc<Lower>>,
    /// Those of them whose records must stay, and why: what was said to be durable could not be put in place.
    kept: HashMap<usize, Errno>,
    /// Its records have this number or a higher one.
    from: u64,
}

struct State {
    halves: [Half; 2],
    current: usize,
    /// Where the next record of the current half goes.
    offset: u64,
    /// How many records were written, and how many of them are durable.
    written: u64,
    durable: u64,
    /// How often the log went on in its other half.
    turns: u64,
    syncing: bool,
    changing: bool,
    failed: Option<Errno>,
}

/// The log of one mount.
pub struct TagLog {
    root: OwnedFd,
    file: Lower,
    /// This mount's number.
    pub(super) session: u32,
    durability: Durability,
    sequence: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    key: Option<Arc<VolumeKey>>,
    old: OldLogs,
    /// [`FILES_MAX`], or less where descriptors are few.
    files_max: usize,
    /// Some file of this mount was let go without a clean seal.
    left_dirty: AtomicBool,
    closed: AtomicBool,
}

/// A record whose changes are being put in place; dropped when they are.
pub(super) struct Ticket<'a> {
    log: &'a TagLog,
    half: usize,
    /// To be given to [`TagLog::commit`].
    pub(super) number: u64,
}

impl Ticket<'_> {
    /// The record must stay until [`TagLog::let_go`], also when the ticket is dropped.
    pub(super) fn keep(&self, lower: &Arc<Lower>, why: Errno) {
        self.log.state.lock().halves[self.half].kept.insert(Arc::as_ptr(lower) as usize, why);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.log.state.lock().halves[self.half].pending -= 1;
        self.log.changed.notify_all();
    }
}

impl TagLog {
    /// Opens the log of the volume in `root`, after setting one of an unclean unmount aside.
    /// The caller holds the volume exclusively.
    pub fn open(
        root: impl AsFd,
        key: &Arc<VolumeKey>,
        durability: Durability,
        last: LastEnd,
    ) -> Result<Self, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        let old = OldLogs::set_aside(&root, key, last)?;
        let session = u32::from_le_bytes(random_array()) | 1;
        let header = Header { clean: false, session, unclean: old.sessions() };
        let header = header.encode(key);
        let made = match old_logs::create(&root, &header) {
            Err(Errno::NOSPC | Errno::DQUOT) if old.give_back() => old_logs::create(&root, &header),
            made => made,
        };
        let file = Lower::new(made?);
        reserve(&file);
        old.remove_resolved();
        Ok(Self::new(root, file, session, durability, Some(Arc::clone(key)), old))
    }

    /// The records of unclean unmounts alone, for a reader that changes nothing.
    pub fn open_read_only(root: impl AsFd, key: &Arc<VolumeKey>, last: LastEnd) -> Result<Self, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
        let old = OldLogs::read_all(&root, key, last)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, ".", flags, rustix::fs::Mode::empty())?;
        Ok(Self::new(root, Lower::new(file), 0, Durability::Relaxed, None, old))
    }

    fn new(
        root: OwnedFd,
        file: Lower,
        session: u32,
        durability: Durability,
        key: Option<Arc<VolumeKey>>,
        old: OldLogs,
    ) -> Self {
        let state = State {
            halves: <[Half; 2]>::default(),
            current: 0,
            offset: 0,
            written: 0,
            durable: 0,
            turns: 0,
            syncing: false,
            changing: false,
            failed: None,
        };
        let (sequence, changed) = (AtomicU64::new(1), Condvar::new());
        let (left_dirty, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self {
            root,
            file,
            session,
            durability,
            sequence,
            state: Mutex::new(state),
            changed,
            key,
            old,
            files_max: FILES_MAX.min(crate::sys::harden::descriptors() / 8),
            left_dirty,
            closed,
        }
    }

    /// Whether a record is durable once it is committed.
    pub(super) fn is_strict(&self) -> bool {
        self.durability == Durability::Strict
    }

    /// What unclean unmounts left.
    pub(super) fn old(&self) -> &OldLogs {
        &self.old
    }

    /// Numbers the record and writes it for `lower`. Its changes may be made when [`TagLog::commit`] has come back, and
    /// the ticket is dropped when they are.
    pub(super) fn append<D: AsRef<[u8]>>(
        &self,
        keys: &FileKeys,
        file_id: FileId,
        lower: &Arc<Lower>,
        mut record: Record<D>,
    ) -> Result<Ticket<'_>, Errno> {
        let mut encode = || {
            record.sequence = self.sequence.fetch_add(1, Ordering::SeqCst);
            (record.sequence, record.encode(keys, file_id))
        };
        let (mut number, mut bytes) = encode();
        let len = (bytes.len() as u64).next_multiple_of(ALIGN as u64);
        let mut state = self.room(len)?;
        let half = state.current;
        if number < state.halves[half].from {
            // It was numbered before the log went on in this half.
            (number, bytes) = encode();
        }
        debug_assert!(number >= state.halves[half].from);
        let at = BLOCK + half as u64 * HALF + state.offset;
        // To the end of its page, where nothing is yet: the kernel need not read the page to write a part of it.
        bytes.resize(((at + len).next_multiple_of(BLOCK) - at) as usize, 0);
        self.file.write_at(&bytes, at).map_err(|(_, e)| e)?;
        state.offset += len;
        state.written += 1;
        state.halves[half].pending += 1;
        state.halves[half].files.insert(Arc::as_ptr(lower) as usize, Arc::clone(lower));
        Ok(Ticket { log: self, half, number: state.written })
    }

    /// Everything of `lower` is in place: its records need not stay.
    pub(super) fn let_go(&self, lower: &Arc<Lower>) {
        for half in &mut self.state.lock().halves {
            half.kept.remove(&(Arc::as_ptr(lower) as usize));
        }
    }

    /// Waits until the current half has room for `len` bytes, turning to the other half where it has not.
    fn room(&self, len: u64) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.state.lock();
        loop {
            if let Some(e) = state.failed {
                return Err(e);
            }
            let full = state.offset + len > HALF - mark::LEN as u64
                || state.halves[state.current].files.len() >= self.files_max;
            if !full {
                return Ok(state);
            }
            if state.changing {
                self.changed.wait(&mut state);
                continue;
            }
            state.changing = true;
            let turned;
            (state, turned) = self.turn(state);
            state.changing = false;
            self.changed.notify_all();
            turned?;
        }
    }

    /// Makes the records of the other half superfluous, then goes on there.
    fn turn<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, Result<(), Errno>) {
        let other = 1 - state.current;
        // Each is between its commit and the drop of its ticket, which wait for nothing that we hold.
        while state.halves[other].pending > 0 {
            self.changed.wait(&mut state);
        }
        let half = &mut state.halves[other];
        let needed = |key: &usize| half.files.get(key).is_some_and(|lower| !lower.is_removed());
        if let Some((_, why)) = half.kept.iter().find(|(key, _)| needed(key)) {
            let why = *why;
            return (state, Err(why));
        }
        let files = std::mem::take(&mut half.files);
        let (current, void_below) = (state.current, state.halves[state.current].from);
        drop(state);
        for lower in files.values() {
            // Its users are told of an error at their next sync.
            let _ = lower.sync_behind();
        }
        let marked = self.mark(current, void_below);
        let mut state = self.state.lock();
        if marked.is_ok() {
            let from = self.sequence.load(Ordering::SeqCst);
            state.halves[other] = Half { from, ..Half::default() };
            (state.current, state.offset, state.turns) = (other, 0, state.turns + 1);
        }
        (state, marked)
    }

    /// Says in half `half`, durably, that records before number `void_below` are void. Only then may those be
    /// overwritten, one by one and in no order.
    fn mark(&self, half: usize, void_below: u64) -> Result<(), Errno> {
        let Some(key) = &self.key else { return Ok(()) };
        let at = BLOCK + half as u64 * HALF + mark::AT;
        self.file.write_at(&mark::encode(key, void_below), at).map_err(|(_, e)| e)?;
        if self.is_strict() { self.file.sync(true) } else { Ok(()) }
    }

    /// Overwrites the records that are superfluous with zeros, after making all of them so that were written before.
    pub fn wipe(&self) -> Result<(), Errno> {
        if self.key.is_none() {
            return Ok(());
        }
        for _ in 0..2 {
            let mut state = self.state.lock();
            while state.changing {
                self.changed.wait(&mut state);
            }
            state.changing = true;
            let mut turned;
            (state, turned) = self.turn(state);
            if turned.is_ok() {
                // Nothing is in it yet, and nobody puts anything there meanwhile.
                let at = BLOCK + state.current as u64 * HALF;
                let zeros = vec![0; mark::AT as usize];
                turned = self.file.write_at(&zeros, at).map_err(|(_, e)| e);
            }
            state.changing = false;
            drop(state);
            self.changed.notify_all();
            turned?;
        }
        self.file.sync(true)
    }

    /// The next record goes to the other half.
    #[cfg(test)]
    pub(super) fn leave_half(&self) {
        self.state.lock().offset = HALF;
    }

    /// Fills the space that no record has used yet, from its end on, so that a sync of a record is one of data alone: what
    /// is merely reserved takes a change of the lower filesystem's metadata at each first write. For the background.
    pub(super) fn prepare(&self) {
        if self.key.is_none() {
            return;
        }
        let zeros = vec![0; PREPARED_AT_A_TIME as usize];
        let mut parts = self.file.len().unwrap_or(0).saturating_sub(BLOCK) / PREPARED_AT_A_TIME;
        while parts > 0 {
            parts -= 1;
            let at = BLOCK + parts * PREPARED_AT_A_TIME;
            let state = self.state.lock();
            if state.turns > 0
                || state.changing
                || at < BLOCK + state.offset
                || self.file.write_at(&zeros, at).is_err()
            {
                break;
            }
        }
        let _ = self.file.sync_behind();
    }

    /// Makes every record up to `number` durable; concurrent callers share one sync.
    pub(super) fn commit(&self, number: u64) -> Result<(), Errno> {
        if !self.is_strict() {
            return Ok(());
        }
        let mut state = self.state.lock();
        loop {
            if let Some(e) = state.failed {
                return Err(e);
            }
            if state.durable >= number {
                return Ok(());
            }
            if state.syncing {
                self.changed.wait(&mut state);
                continue;
            }
            state.syncing = true;
            let target = state.written;
            drop(state);
            let synced = self.file.sync(true);
            state = self.state.lock();
            state.syncing = false;
            match synced {
                Ok(()) => state.durable = target,
                // What the kernel could not write it forgets: no later sync would tell.
                Err(e) => {
                    log::error!(
                        "the tag log cannot be written ({e}); overwriting is refused until the next mount"
                    );
                    state.failed = Some(e);
                }
            }
            self.changed.notify_all();
        }
    }

    /// Lets go of files that were removed and closed, which keep their space until then; tells whether there were any.
    pub(super) fn release_removed(&self) -> bool {
        let mut released = Vec::new();
        for half in &mut self.state.lock().halves {
            let gone = |lower: &Arc<Lower>| Arc::strong_count(lower) == 1 && lower.is_removed();
            released.extend(half.files.extract_if(|_, lower| gone(lower)));
            half.kept.retain(|key, _| half.files.contains_key(key));
        }
        !released.is_empty()
    }

    /// Gives the tree in `root`, a copy of this one with every file sealed, the logs that it needs.
    /// Where it has the old ones already, `has_old`, only this mount's is to be replaced.
    pub fn copy_closed(&self, root: &OwnedFd, has_old: bool) -> Result<(), Errno> {
        let unclean = self.old.sessions();
        if has_old {
            match rustix::fs::unlinkat(root, LOG_NAME, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        let Some(key) = self.key.as_ref().filter(|_| !unclean.is_empty()) else { return Ok(()) };
        if !has_old {
            self.old.link_into(root)?;
        }
        let header = Header { clean: true, session: self.session, unclean };
        old_logs::create(root, &header.encode(key)).map(drop)
    }

    /// Every file of the volume was opened and is whole: what unclean unmounts left is needed no longer.
    pub fn settle_old(&self) {
        self.old.settle();
    }

    /// Some file is let go without a clean seal: this mount will count as ended uncleanly.
    pub fn note_left_dirty(&self) {
        self.left_dirty.store(true, Ordering::Release);
    }

    /// Whether a file that was last sealed by `session` may have been left dirty. A dirty seal of any other session was
    /// followed by a clean one: somebody put it back.
    pub(super) fn may_be_dirty(&self, session: u32) -> bool {
        let own = session == self.session && self.left_dirty.load(Ordering::Acquire);
        own || session == 0 || self.old.was_unclean(session)
    }

    /// Every write is done and sealed: makes all of it durable and says so. Without that, the next mount takes this one
    /// for ended uncleanly.
    pub fn close(&self) {
        let Some(key) = self.key.as_ref().filter(|_| !self.left_dirty.load(Ordering::Acquire)) else {
            return;
        };
        let closed = rustix::fs::syncfs(&self.root).and_then(|()| {
            let unclean = self.old.sessions();
            if unclean.is_empty() {
                return rustix::fs::unlinkat(&self.root, LOG_NAME, rustix::fs::AtFlags::empty());
            }
            self.file.set_len(BLOCK)?;
            let header = Header { clean: true, session: self.session, unclean };
            self.file.write_at(&header.encode(key)[..], 0).map_err(|(_, e)| e)?;
            // Once the end is known outside, a log that does not tell of it is no longer believed.
            self.file.sync(true)
        });
        match closed {
            Ok(()) => self.closed.store(true, Ordering::Release),
            Err(e) => log::error!("the unmount could not make everything durable: {e}"),
        }
    }

    /// Whether [`TagLog::close`] found everything sealed and made it durable.
    pub fn ended_well(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Takes the space of the whole log now, so that a full disk refuses no overwrite later; or a part of it.
fn reserve(file: &Lower) {
    // Tests make logs by the thousand.
    let most = if cfg!(test) { HALF / 8 } else { 2 * HALF };
    for part in [most, HALF, HALF / 8] {
        match file.reserve(0, BLOCK + part) {
            Err(Errno::NOSPC | Errno::DQUOT) => {}
            Ok(()) => {
                // A write within the length is a write of data alone.
                let _ = file.set_len(BLOCK + part);
                return;
            }
            Err(e) => return log::debug!("the lower file system cannot reserve space for the tag log: {e}"),
        }
    }
    log::warn!("there is no space for the tag log: overwriting may be refused until there is");
}
