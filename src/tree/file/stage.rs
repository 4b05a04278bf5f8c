//! Blocks that are to replace what may be on stable storage: kept here until the log has their tags.
//!
//! A write to such a block waits in memory, sealed. A flush notes all that wait in the log, makes the log durable
//! (shared with other files' flushes) and puts them in place. A sync of a few blocks, with nothing else to make
//! durable, notes their data too and is done when the log is. Called by `write`, `resize` and the tree's flusher.
//!
//! Locks, in this order: `flushing`, `inner`, the log's. Whoever appends to the log holds `flushing`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::body::{Body, CachedPage, Promised};
use super::log::Ticket;
use super::record::{Logged, Record, fitting};
use super::{FileContext, FileIo, Inner, TagLog};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK_LEN};
use crate::format::seal::State;
use crate::format::tags::{Entry, HOLE};
use crate::logging::RateLimit;
use crate::tree::FsError;

/// Bytes that may wait in all files together before writers put theirs in place.
const WAITING_MAX: usize = 8 << 20;
/// Bytes above which a writer waits for other files' blocks too.
const WAITING_HARD: usize = 32 << 20;
/// Most blocks whose data a sync puts into the log.
const SYNC_BLOCKS: usize = 64;
/// How long a block waits when nobody asks for it.
const TICK: Duration = Duration::from_secs(1);

static KEPT: RateLimit = RateLimit::new();

/// A block that waits: a part of the image of the write that made it.
#[derive(Clone)]
pub(super) struct Staged {
    pub(super) image: Arc<Vec<u8>>,
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) entry: Entry,
}

impl Staged {
    /// The ciphertext.
    pub(super) fn data(&self) -> &[u8] {
        &self.image[self.at..self.at + self.len]
    }
}

impl AsRef<[u8]> for Staged {
    fn as_ref(&self) -> &[u8] {
        self.data()
    }
}

/// What the log is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Tags: enough to put the blocks in place.
    Tags,
    /// Data too: a sync.
    Data,
}

/// The blocks in flight, whose records are in the log or on their way there.
struct Flight<'a> {
    tickets: Vec<Ticket<'a>>,
    /// Each replaces one of the same length in its place: neither the size of the file nor the space it takes changes.
    in_place: bool,
}

/// What waits in all files of a mount.
#[derive(Default)]
pub struct Stage {
    bytes: AtomicUsize,
    files: Mutex<HashMap<usize, Weak<FileIo>>>,
}

impl Stage {
    fn waiting_files(&self) -> Vec<Arc<FileIo>> {
        let mut files = self.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.values().filter_map(Weak::upgrade).collect()
    }
}

/// Puts in place, once a second, what nobody asked for; ends with the last user of `context`.
pub fn start_flusher(context: &Arc<FileContext>) -> std::io::Result<()> {
    let context = Arc::downgrade(context);
    let run = move || {
        if let Some(log) = context.upgrade().as_ref().and_then(|context| context.log.as_ref()) {
            log.prepare();
        }
        while let Some(context) = context.upgrade() {
            context.flush_all();
            context.release_removed();
            drop(context);
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("flusher".into()).spawn(run).map(drop)
}

impl FileContext {
    /// Gives back the space of removed files that the log still holds; tells whether there were any.
    pub(super) fn release_removed(&self) -> bool {
        self.log.as_ref().is_some_and(super::TagLog::release_removed)
    }

    /// Puts in place what waits in any file.
    pub fn flush_all(&self) {
        for file in self.stage.waiting_files() {
            if let Err(e) = file.flush() {
                log::warn!("overwritten blocks wait for their place: {e}");
            }
        }
    }
}

impl Drop for FileIo {
    /// What still waits goes with the file: that of a removed file, or of one that was given up.
    fn drop(&mut self) {
        if let Inner::Loaded(body) = self.inner.get_mut() {
            let waiting = body.staged.len() + body.in_flight.len();
            self.context.stage.bytes.fetch_sub(waiting * BLOCK_LEN, Ordering::Relaxed);
        }
        self.context.stage.files.lock().remove(&(std::ptr::from_ref(self) as usize));
    }
}

impl FileIo {
    /// Keeps `blocks` until they are put in place. The file has `new_size` bytes then.
    pub(super) fn stage(&self, body: &mut Body, blocks: impl Iterator<Item = (u64, Staged)>, new_size: u64) {
        let mut added = 0;
        for (block, staged) in blocks {
            added += usize::from(body.staged.insert(block, staged).is_none());
        }
        body.size = new_size;
        self.context.stage.bytes.fetch_add(added * BLOCK_LEN, Ordering::Relaxed);
        let key = std::ptr::from_ref(self) as usize;
        self.context.stage.files.lock().entry(key).or_insert_with(|| self.me.clone());
    }

    /// Before more is kept: puts blocks in place where too many wait.
    pub(super) fn make_room(&self) -> Result<(), FsError> {
        let waiting = || self.context.stage.bytes.load(Ordering::Relaxed);
        if waiting() > WAITING_MAX && !matches!(&*self.inner.read(), Inner::Loaded(body) if body.is_settled())
        {
            self.flush()?;
        }
        if waiting() > WAITING_HARD {
            self.context.flush_all();
        }
        Ok(())
    }

    /// Puts every waiting block in place.
    pub fn flush(&self) -> Result<(), FsError> {
        self.flush_as(Manner::Tags, &|| {})
    }

    /// Makes the waiting blocks durable by the log alone, where that makes the whole file durable.
    /// `false` where it takes a sync of the lower file. Calls `durable` as [`FileIo::sync_telling`] says.
    pub(super) fn sync_by_log(&self, attributes_too: bool, durable: &dyn Fn()) -> Result<bool, FsError> {
        {
            let inner = self.inner.read();
            let (Inner::Loaded(body), Some(log)) = (&*inner, &self.context.log) else { return Ok(false) };
            let waiting = body.staged.len() + body.in_flight.len();
            let enough =
                log.is_strict() && !body.unsynced && body.in_flight.is_empty() && waiting <= SYNC_BLOCKS;
            if !enough || waiting == 0 || attributes_too {
                return Ok(false);
            }
        }
        self.flush_as(Manner::Data, durable)?;
        // Something else may have come between.
        Ok(matches!(&*self.inner.read(), Inner::Loaded(body) if !body.unsynced && body.is_settled()))
    }

    /// Puts every waiting block in place; calls `durable` before that, where the log alone makes the file durable and
    /// nothing but contents changes.
    fn flush_as(&self, manner: Manner, durable: &dyn Fn()) -> Result<(), FsError> {
        if matches!(&*self.inner.read(), Inner::Loaded(body) if body.is_placed()) {
            return Ok(());
        }
        let _one = self.flushing.lock();
        let Some(log) = &self.context.log else { return Ok(()) };
        if !matches!(&*self.inner.read(), Inner::Loaded(_)) {
            return Ok(());
        }
        let flight = {
            let mut inner = self.for_writing()?;
            let Inner::Loaded(body) = &mut *inner else { return Ok(()) };
            if body.is_placed() {
                return Ok(());
            }
            self.place_kept(body, log)?;
            let mut staged = std::mem::take(&mut body.staged);
            body.in_flight.append(&mut staged);
            self.log_in_flight(body, manner)?
        };
        let committed =
            flight.tickets.iter().map(|ticket| ticket.number).max().map_or(Ok(()), |last| log.commit(last));
        let mut inner = self.for_writing()?;
        let Inner::Loaded(body) = &mut *inner else { return Ok(()) };
        if let Err(e) = committed {
            // Nothing says durably that the file is being changed.
            body.sealed.state = if body.seal_stored { body.sealed.state } else { State::Clean };
            return Err(e.into());
        }
        // The log has all of it.
        let by_log = manner == Manner::Data && !body.unsynced;
        let told = by_log && flight.in_place;
        let keep = |why| flight.tickets.iter().for_each(|ticket| ticket.keep(&self.lower, why));
        if told {
            // From here on nobody waits for it: whatever happens, its records must stay.
            keep(Errno::IO);
            body.promised = Promised::InLog;
            durable();
        }
        let size = flight_size(body);
        let placed = self.lower.keeping_mtime(|| self.put_in_place(body));
        if let (Err(e), true) = (&placed, told) {
            if let FsError::Os(e) = e {
                keep(*e);
            }
            note_kept(body, e);
        }
        placed?;
        if by_log {
            body.unsynced = false;
            (body.firm, body.guarded) = (size, body.guarded.max(size));
        }
        self.note_placed(body, log);
        Ok(())
    }

    /// Puts what the log keeps in place, so that it need not: first, and with no new record of it, since the log may have
    /// no room until this is done. The caller holds `flushing`.
    fn place_kept(&self, body: &mut Body, log: &TagLog) -> Result<(), FsError> {
        if body.promised == Promised::InLog {
            self.lower.keeping_mtime(|| self.put_in_place(body)).inspect_err(|e| note_kept(body, e))?;
            self.let_go(body, log);
        }
        Ok(())
    }

    fn let_go(&self, body: &mut Body, log: &TagLog) {
        if std::mem::take(&mut body.promised) == Promised::InLog {
            log.let_go(&self.lower);
        }
    }

    /// Puts in place what a sync has promised, before the file is forgotten. After an error memory and log alone have it.
    pub fn keep_promises(&self) -> Result<(), FsError> {
        if !matches!(&*self.inner.read(), Inner::Loaded(body) if body.promised == Promised::InLog) {
            return Ok(());
        }
        let _one = self.flushing.lock();
        match (&mut *self.for_writing()?, &self.context.log) {
            (Inner::Loaded(body), Some(log)) => self.place_kept(body, log),
            _ => Ok(()),
        }
    }

    /// Lets go of what was needed until everything is in place.
    fn note_placed(&self, body: &mut Body, log: &TagLog) {
        self.let_go(body, log);
        if body.is_settled() {
            self.context.stage.files.lock().remove(&(std::ptr::from_ref(self) as usize));
        }
    }

    /// Writes the records of the blocks in flight.
    fn log_in_flight(&self, body: &mut Body, manner: Manner) -> Result<Flight<'_>, FsError> {
        let mut flight = Flight { tickets: Vec::new(), in_place: true };
        let Some(log) = self.context.log.as_ref().filter(|_| !body.in_flight.is_empty()) else {
            return Ok(flight);
        };
        let keys = body.keys()?;
        body.read_tags_ahead(&self.lower, body.in_flight.keys());
        let mut blocks = Vec::with_capacity(body.in_flight.len());
        for (block, staged) in &body.in_flight {
            let old = body.entry(&self.lower, &keys, *block)?;
            let old_len = layout::block_len(*block, body.stored);
            // Where the old data goes with the header page, or the new may be there and the length not, tags do not do.
            let moves = body.inline_block() == Some(*block) || staged.len > old_len;
            flight.in_place &= !moves && old != HOLE;
            blocks.push(Logged {
                block: *block,
                old,
                old_len,
                new: staged.entry,
                new_len: staged.len,
                data: (moves || manner == Manner::Data).then(|| staged.clone()),
            });
        }
        let (size, before) = (flight_size(body), (body.sealed, body.seal_bytes, body.seal_stored));
        let mut seal = None;
        if body.sealed.state == State::Clean || size != body.sealed.size {
            body.leave_cut(&self.lower, State::Dirty)?;
            let mut next = body.next_seal(State::Dirty, size);
            if manner == Manner::Data && !body.unsynced {
                next.firm = size;
            }
            seal = Some(body.note_next(&keys, next));
        }
        let modified = if manner == Manner::Data { Some(self.lower.modified()?) } else { None };
        let id = body.superblock.file_id;
        while !blocks.is_empty() {
            let rest = blocks.split_off(fitting(&blocks));
            let record = Record { sequence: 0, seal, modified, blocks };
            let ticket = log.append(&keys, id, &self.lower, record);
            flight
                .tickets
                .push(ticket.inspect_err(|_| (body.sealed, body.seal_bytes, body.seal_stored) = before)?);
            blocks = rest;
        }
        Ok(flight)
    }

    /// Writes the blocks in flight to their places, and their tags. What fails stays in flight.
    fn put_in_place(&self, body: &mut Body) -> Result<(), FsError> {
        let keys = body.keys()?;
        let (size, edge) = (flight_size(body), body.stored / layout::BLOCK);
        let mut written = BTreeMap::new();
        let outcome = self.write_runs(body, &mut written);
        if written.contains_key(&edge) {
            body.stored = size;
        }
        let moved = body.inline_block().filter(|block| written.contains_key(block));
        if moved.is_some() {
            body.set_tail(Vec::new());
        }
        self.enter(body, &keys, &written)?;
        outcome
    }

    /// Writes runs of neighbours, each in one call; `written` gets what was. They stay in flight until they have their tags.
    fn write_runs(&self, body: &mut Body, written: &mut BTreeMap<u64, Entry>) -> Result<(), FsError> {
        let mut from = 0;
        while let Some((first, head)) = body.in_flight.range(from..).next().map(|(b, s)| (*b, s.clone())) {
            let mut run = vec![(first, head.entry)];
            let mut end = head.at + head.len;
            for (block, next) in body.in_flight.range(first + 1..) {
                let place = head.at + (layout::block_offset(*block) - layout::block_offset(first)) as usize;
                if !Arc::ptr_eq(&next.image, &head.image) || next.at != place || end != place {
                    break;
                }
                run.push((*block, next.entry));
                end = next.at + next.len;
            }
            body.touched();
            let done = self.lower.write_at(&head.image[head.at..end], layout::block_offset(first));
            let bytes = done.as_ref().map_or_else(|(bytes, _)| *bytes, |()| end - head.at);
            for (index, (block, entry)) in run.iter().enumerate() {
                let whole = bytes == end - head.at || bytes >= (index + 1) * BLOCK_LEN;
                if !whole {
                    break;
                }
                written.insert(*block, *entry);
            }
            from = first + run.len() as u64;
            done.map_err(|(_, e)| FsError::Os(e))?;
        }
        Ok(())
    }

    /// Enters the tags of blocks that are in place, page by page, and stores the pages and the seal.
    fn enter(&self, body: &mut Body, keys: &FileKeys, written: &BTreeMap<u64, Entry>) -> Result<(), FsError> {
        let mut left = written.iter().peekable();
        while let Some((block, _)) = left.peek() {
            let page_no = layout::tag_page(**block);
            let old = body.page(&self.lower, keys, page_no)?.as_ref().clone();
            let mut page = old.page.clone();
            while let Some((block, entry)) = left.next_if(|(block, _)| layout::tag_page(**block) == page_no) {
                page.set(layout::entry_index(*block), *entry);
            }
            body.replace_page(page_no, &old, CachedPage::new(keys, page_no, page));
        }
        body.in_flight.retain(|block, _| !written.contains_key(block));
        self.context.stage.bytes.fetch_sub(written.len() * BLOCK_LEN, Ordering::Relaxed);
        if !body.unsaved.contains(&0) {
            body.store_seal(&self.lower)?;
        }
        body.save_pages(&self.lower)
    }

    /// Notes in the log, durably, that a file which was closed and durable is going to change; and that blocks are going
    /// to go. The caller holds `flushing`. The change may be made while the ticket is held.
    pub(super) fn announce(
        &self,
        body: &mut Body,
        blocks: Vec<Logged<Vec<u8>>>,
        state: State,
        size: u64,
    ) -> Result<Option<Ticket<'_>>, FsError> {
        let Some(log) = &self.context.log else { return Ok(None) };
        body.leave_cut(&self.lower, state)?;
        let (keys, id) = (body.keys()?, body.superblock.file_id);
        let before = (body.sealed, body.seal_bytes, body.seal_stored);
        let seal = Some(body.note_next(&keys, body.next_seal(state, size)));
        let record = Record { sequence: 0, seal, modified: None, blocks };
        let ticket = log
            .append(&keys, id, &self.lower, record)
            .and_then(|ticket| log.commit(ticket.number).map(|()| ticket))
            .inspect_err(|_| (body.sealed, body.seal_bytes, body.seal_stored) = before)?;
        body.touched();
        Ok(Some(ticket))
    }

    /// Whether a change of the file must be announced: it is sealed and durable as it is.
    pub(super) fn must_announce(&self, body: &Body) -> bool {
        self.context.log.is_some() && body.sealed.state == State::Clean && body.sealed.session != body.session
    }

    /// Announces the first change of a file that was closed and durable. The caller holds `flushing`.
    pub(super) fn begin_changes(&self, body: &mut Body) -> Result<(), FsError> {
        if !self.must_announce(body) {
            return Ok(());
        }
        let _ticket = self.announce(body, Vec::new(), State::Dirty, body.stored)?;
        body.store_seal(&self.lower)
    }
}

/// Says which file fills the log, at most once a second.
fn note_kept(body: &Body, why: &FsError) {
    if KEPT.admit().is_some() {
        log::error!(
            "file {}: what a sync promised cannot be put in place ({why}); the log keeps it and may fill up until it can",
            body.superblock.file_id
        );
    }
}

/// The size that the file has when the blocks in flight are in place.
fn flight_size(body: &Body) -> u64 {
    let edge = body.stored / layout::BLOCK;
    let grown = body.in_flight.get(&edge).map_or(0, |staged| edge * layout::BLOCK + staged.len as u64);
    body.stored.max(grown)
}

/// A record's word on a block that becomes a hole.
pub(super) fn goes(block: u64, old: Entry, old_len: usize) -> Logged<Vec<u8>> {
    Logged { block, old, old_len, new: HOLE, new_len: 0, data: None }
}
