//! The state of one loaded file: header, seal, tags. Called by the rest of `file`, under its lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::lower::Lower;
use super::stage::Staged;
use crate::crypto::{FileKeys, Place, Tag, constant_time_eq};
use crate::format::WrappedKey;
use crate::format::header::{HOT_OFFSET, SUPERBLOCK_LEN, Superblock};
use crate::format::layout::{self, BLOCK_LEN};
use crate::format::seal::{SEAL_LEN, SEAL_OFFSETS, Seal, State};
use crate::format::tags::{Entry, TagPage, tail_range};
use crate::tree::{FsError, KeyError};

/// Most tag pages that one file keeps in memory (4 MiB, the tags of 576 MiB).
#[cfg(not(test))]
const PAGES_MAX: usize = 1024;
/// So few that tests evict.
#[cfg(test)]
const PAGES_MAX: usize = 2;

/// A checked tag page with its MAC and what it adds to the root.
#[derive(Debug, Clone)]
pub(super) struct CachedPage {
    pub(super) page: TagPage,
    pub(super) mac: Tag,
    pub(super) term: Tag,
}

impl CachedPage {
    pub(super) fn new(keys: &FileKeys, page_no: u64, page: TagPage) -> Self {
        let mac = page.mac(keys, page_no);
        Self::checked(keys, page_no, page, mac)
    }

    /// A page that was found to have this MAC.
    pub(super) fn checked(keys: &FileKeys, page_no: u64, page: TagPage, mac: Tag) -> Self {
        let term = page.root_term(keys, page_no, &mac);
        Self { page, mac, term }
    }
}

/// How tag pages are asked for that are not in memory.
#[derive(Default)]
pub(super) struct Misses {
    last: AtomicU64,
    scattered: AtomicU64,
}

impl Misses {
    /// Notes one; `true` where so many did not follow each other that the rest of `count` pages will be wanted too.
    fn note(&self, page_no: u64, count: u64) -> bool {
        let follows = self.last.swap(page_no, Ordering::Relaxed) + 1 == page_no;
        !follows && self.scattered.fetch_add(1, Ordering::Relaxed) + 1 == SCATTERED_MIN.max(count / 32)
    }
}

/// What may become of that which a cut took, after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutOff {
    /// The lower length is durable.
    Gone,
    /// It is there again, tags and all, unless the newest seal says that the file is cut.
    MayShow,
}

/// Where that is which a sync said to be durable before it was in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Promised {
    #[default]
    InPlace,
    /// In the log, which keeps the records of all blocks in flight; not in place, or not with its tags.
    InLog,
}

/// The state of a file that has a header.
pub(super) struct Body {
    pub(super) superblock: Superblock,
    pub(super) superblock_bytes: [u8; SUPERBLOCK_LEN],
    pub(super) wrapped: WrappedKey,
    pub(super) keys: Option<Arc<FileKeys>>,
    /// Plaintext size.
    pub(super) size: u64,
    /// The size that the lower file stands for: less than `size` while the last block's growth is staged.
    pub(super) stored: u64,
    /// Up to here the file is known to be on stable storage: goes into the seals.
    pub(super) firm: u64,
    /// Blocks below this size may be on stable storage: they change by way of the log.
    pub(super) guarded: u64,
    /// Whether a power cut could lose something that no durable record of the log has.
    pub(super) unsynced: bool,
    /// Counts cuts, for the same reason.
    pub(super) cuts: u64,
    pub(super) cut_off: CutOff,
    /// Counts changes of the lower file, to tell whether one came during a sync.
    pub(super) changes: u64,
    /// Blocks of a repair that may not be stored.
    pub(super) repaired: BTreeMap<u64, Staged>,
    /// The mount that seals are written for.
    pub(super) session: u32,
    /// The place that seals are written for; zero where names are not bound.
    pub(super) place: Place,
    /// Blocks that wait for their record in the log.
    pub(super) staged: BTreeMap<u64, Staged>,
    /// Blocks whose record is in the log or on its way there, and that are to be put in place.
    pub(super) in_flight: BTreeMap<u64, Staged>,
    pub(super) promised: Promised,
    /// What the newest stored seal says.
    pub(super) sealed: Seal,
    /// The two seals as stored.
    pub(super) seal_bytes: [[u8; SEAL_LEN]; 2],
    /// Whether the newest of them is, and not in memory and log alone.
    pub(super) seal_stored: bool,
    /// Sum of the terms of all tag pages.
    pub(super) root: Tag,
    /// The root was checked against every tag page, so a missing page is a true hole.
    pub(super) holes_trusted: AtomicBool,
    pub(super) head: CachedPage,
    /// Ciphertext of the inline tail; empty where the last block is elsewhere.
    pub(super) tail: Vec<u8>,
    pub(super) pages: Mutex<HashMap<u64, Arc<CachedPage>>>,
    /// The MACs of all tag pages that hold an entry, where each page that is read must be the newest.
    pub(super) pins: Mutex<Option<HashMap<u64, Tag>>>,
    pub(super) misses: Misses,
    /// Tag pages whose write failed; memory is ahead of the disk, and every sync tries again.
    pub(super) unsaved: BTreeSet<u64>,
    /// The lower length could not be set; tried again with the pages.
    pub(super) length_unsaved: bool,
}

/// Tag pages that are read out of order, at least, before the others are read ahead.
const SCATTERED_MIN: u64 = 8;
/// Most tag pages that are read ahead (those of 2.25 GiB): 16 MiB.
const AHEAD_MAX: u64 = 4096;

pub(super) fn xor(sum: &mut Tag, term: &Tag) {
    sum.iter_mut().zip(term).for_each(|(s, t)| *s ^= t);
}

impl Body {
    pub(super) fn keys(&self) -> Result<Arc<FileKeys>, FsError> {
        let keys = self.keys.clone();
        keys.ok_or_else(|| FsError::Key(KeyError::Unavailable("the key was dropped meanwhile".into())))
    }

    /// A damage report that names the file.
    pub(super) fn corrupt(&self, what: impl std::fmt::Display) -> FsError {
        FsError::Corrupt(format!("file {}: {what}", self.superblock.file_id))
    }

    pub(super) fn is_unsealed(&self) -> bool {
        self.sealed.state != State::Clean
            || !self.unsaved.is_empty()
            || self.length_unsaved
            || !self.is_placed()
    }

    /// The tag page `page_no`, from memory or checked off the disk.
    pub(super) fn page(
        &self,
        lower: &Lower,
        keys: &FileKeys,
        page_no: u64,
    ) -> Result<Arc<CachedPage>, FsError> {
        if page_no == 0 {
            return Ok(Arc::new(self.head.clone()));
        }
        if let Some(page) = self.pages.lock().get(&page_no) {
            return Ok(Arc::clone(page));
        }
        let count = layout::tag_page_count(self.stored);
        if self.misses.note(page_no, count) && count <= AHEAD_MAX {
            // Random access: each of the others would cost a wait for the disk of its own.
            (1..count).for_each(|no| lower.read_ahead(layout::tag_page_offset(no), BLOCK_LEN));
        }
        let page = Arc::new(self.read_page(lower, keys, page_no)?);
        if page.term == [0; 16] && !self.holes_trusted.load(Ordering::Acquire) {
            self.check_root(lower, keys)?;
        }
        self.remember(page_no, Arc::clone(&page));
        Ok(page)
    }

    /// Has the tag pages of `blocks`, which come in order, read that are not in memory: all at once, not one by one.
    pub(super) fn read_tags_ahead<'a>(&self, lower: &Lower, blocks: impl Iterator<Item = &'a u64>) {
        let pages = self.pages.lock();
        let mut last = 0;
        for page_no in blocks.map(|block| layout::tag_page(*block)) {
            if page_no != last && !pages.contains_key(&page_no) {
                lower.read_ahead(layout::tag_page_offset(page_no), BLOCK_LEN);
            }
            last = page_no;
        }
    }

    pub(super) fn read_page(
        &self,
        lower: &Lower,
        keys: &FileKeys,
        page_no: u64,
    ) -> Result<CachedPage, FsError> {
        let mut bytes = [0; BLOCK_LEN];
        lower.read_at(&mut bytes, layout::tag_page_offset(page_no))?;
        let page = TagPage::parse(keys, page_no, &bytes)
            .map_err(|_| self.corrupt(format_args!("tag page {page_no} does not verify")))?;
        let page = CachedPage::checked(keys, page_no, page, TagPage::stored_mac(&bytes));
        let pinned = self.pins.lock().as_ref().map(|pins| pins.get(&page_no).copied().unwrap_or_default());
        if pinned.is_some_and(|mac| mac != page.mac) {
            return Err(self.corrupt(format_args!("tag page {page_no} was put back to an older state")));
        }
        Ok(page)
    }

    fn remember(&self, page_no: u64, page: Arc<CachedPage>) {
        let mut pages = self.pages.lock();
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page_no) {
            let unsaved = &self.unsaved;
            let victim = pages.keys().copied().find(|no| !unsaved.contains(no));
            victim.map(|no| pages.remove(&no));
        }
        pages.insert(page_no, page);
    }

    /// Replaces a tag page in memory and in the root.
    pub(super) fn replace_page(&mut self, page_no: u64, old: &CachedPage, new: CachedPage) {
        xor(&mut self.root, &old.term);
        xor(&mut self.root, &new.term);
        if let Some(pins) = self.pins.get_mut() {
            pins.insert(page_no, new.mac);
        }
        // Not to be evicted, and no seal without it, before it is stored.
        self.unsaved.insert(page_no);
        if page_no == 0 {
            self.head = new;
        } else {
            self.remember(page_no, Arc::new(new));
        }
    }

    /// Forgets the tag pages behind `last`, which are cut off.
    pub(super) fn drop_pages_behind(&mut self, last: u64) {
        self.pages.get_mut().retain(|page_no, _| *page_no <= last);
        if let Some(pins) = self.pins.get_mut() {
            pins.retain(|page_no, _| *page_no <= last);
        }
    }

    /// Compares the root, and remembers which tag pages made it.
    pub(super) fn pin_pages(&self, lower: &Lower, keys: &FileKeys) -> Result<(), FsError> {
        let mut pins = HashMap::new();
        self.check_root_with(lower, keys, |page_no, page| {
            pins.insert(page_no, page.mac);
        })?;
        *self.pins.lock() = Some(pins);
        Ok(())
    }

    /// Sums the terms of all tag pages on disk and compares with the root.
    pub(super) fn check_root(&self, lower: &Lower, keys: &FileKeys) -> Result<(), FsError> {
        self.check_root_with(lower, keys, |_, _| {})
    }

    fn check_root_with(
        &self,
        lower: &Lower,
        keys: &FileKeys,
        see: impl FnMut(u64, &CachedPage),
    ) -> Result<(), FsError> {
        if !constant_time_eq(&self.sum_of_terms(lower, keys, see)?, &self.root) {
            return Err(
                self.corrupt("the tags do not add up to the sealed root: blocks were put back or removed")
            );
        }
        self.holes_trusted.store(true, Ordering::Release);
        Ok(())
    }

    /// The sum of the terms of all tag pages; `see` gets those that are read for it.
    pub(super) fn sum_of_terms(
        &self,
        lower: &Lower,
        keys: &FileKeys,
        mut see: impl FnMut(u64, &CachedPage),
    ) -> Result<Tag, FsError> {
        let mut sum = self.head.term;
        let count = layout::tag_page_count(self.stored);
        let mut page_no = 1;
        while page_no < count {
            let held = self.unsaved.contains(&page_no).then(|| self.pages.lock().get(&page_no).cloned());
            if let Some(Some(held)) = held {
                xor(&mut sum, &held.term);
                page_no += 1;
                continue;
            }
            // Whole groups that the lower filesystem holds no data for have no tags.
            let next = lower.next_data(layout::tag_page_offset(page_no))?;
            let next = next.map_or(count, |at| layout::tag_page(layout::block_at(at)));
            let next = self.unsaved.range(page_no..).next().map_or(next, |unsaved| next.min(*unsaved));
            if next > page_no {
                page_no = next;
                continue;
            }
            let page = self.read_page(lower, keys, page_no)?;
            see(page_no, &page);
            xor(&mut sum, &page.term);
            page_no += 1;
        }
        Ok(sum)
    }

    /// A change of the lower file that is about to happen.
    pub(super) fn touched(&mut self) {
        self.unsynced = true;
        self.changes += 1;
    }

    /// Writes a seal alone.
    pub(super) fn write_seal(&mut self, lower: &Lower, state: State, size: u64) -> Result<(), FsError> {
        self.leave_cut(lower, state)?;
        self.touched();
        let keys = self.keys()?;
        let seal = self.next_seal(state, size);
        let bytes = seal.encode(&keys, &self.superblock_bytes);
        lower.write_at(&bytes, seal.offset() as u64).map_err(|(_, e)| e)?;
        self.note_seal(seal, bytes);
        self.seal_stored = true;
        Ok(())
    }

    /// Takes `seal` for the newest, which the log is to hold before the header page does; gives its bytes.
    pub(super) fn note_next(&mut self, keys: &FileKeys, seal: Seal) -> [u8; SEAL_LEN] {
        let bytes = seal.encode(keys, &self.superblock_bytes);
        self.note_seal(seal, bytes);
        self.seal_stored = false;
        bytes
    }

    /// Before a seal that says `state`: where it supersedes that of a cut, the length that the cut left must be durable.
    pub(super) fn leave_cut(&mut self, lower: &Lower, state: State) -> Result<(), FsError> {
        if self.cut_off == CutOff::Gone || state == State::Cutting {
            return Ok(());
        }
        if self.length_unsaved {
            self.set_lower_len(lower)?;
        }
        lower.sync_behind()?;
        self.cut_off = CutOff::Gone;
        Ok(())
    }

    /// Writes the newest seal into the header page, where only the log has it.
    pub(super) fn store_seal(&mut self, lower: &Lower) -> Result<(), FsError> {
        if !self.seal_stored {
            self.touched();
            let bytes = self.seal_bytes[(self.sealed.epoch % 2) as usize];
            lower.write_at(&bytes, self.sealed.offset() as u64).map_err(|(_, e)| e)?;
            self.seal_stored = true;
        }
        Ok(())
    }

    pub(super) fn next_seal(&self, state: State, size: u64) -> Seal {
        let (epoch, firm) = (self.sealed.epoch + 1, self.firm.min(size));
        Seal { epoch, size, root: self.root, state, firm, session: self.session, place: self.place }
    }

    fn note_seal(&mut self, seal: Seal, bytes: [u8; SEAL_LEN]) {
        let index = SEAL_OFFSETS.iter().position(|at| *at == seal.offset()).expect("one of the two places");
        self.seal_bytes[index] = bytes;
        self.sealed = seal;
    }

    /// Writes the mount's part of the header page (seals, head tags, inline tail) in one call.
    pub(super) fn write_hot(&mut self, lower: &Lower, state: State, size: u64) -> Result<(), FsError> {
        self.leave_cut(lower, state)?;
        self.touched();
        let keys = self.keys()?;
        let seal = self.next_seal(state, size);
        let bytes = seal.encode(&keys, &self.superblock_bytes);
        let before = (self.sealed, self.seal_bytes);
        self.note_seal(seal, bytes);
        let page = self.hot_page(size);
        if let Err((_, e)) = lower.write_at(&page[HOT_OFFSET..], HOT_OFFSET as u64) {
            self.unsaved.insert(0);
            (self.sealed, self.seal_bytes) = before;
            return Err(FsError::Os(e));
        }
        self.unsaved.remove(&0);
        self.seal_stored = true;
        Ok(())
    }

    /// The header page less superblock and slots.
    pub(super) fn hot_page(&self, size: u64) -> Box<[u8; BLOCK_LEN]> {
        let mut page = Box::new([0; BLOCK_LEN]);
        for (bytes, at) in self.seal_bytes.iter().zip(SEAL_OFFSETS) {
            page[at..at + SEAL_LEN].copy_from_slice(bytes);
        }
        self.head.page.encode_head(&self.head.mac, layout::block_count(size), &mut page);
        page[tail_range(self.tail.len())].copy_from_slice(&self.tail);
        page
    }

    /// Says, before a block is touched, that the file is being written.
    pub(super) fn mark_dirty(&mut self, lower: &Lower) -> Result<(), FsError> {
        if self.sealed.state == State::Dirty {
            return Ok(());
        }
        self.write_seal(lower, State::Dirty, self.stored)
    }

    /// Makes the stored seal promise the size as it is now; for fsync.
    pub(super) fn write_promise(&mut self, lower: &Lower) -> Result<(), FsError> {
        self.save_pages(lower)?;
        if self.sealed.size != self.stored {
            self.write_seal(lower, State::Dirty, self.stored)?;
        }
        Ok(())
    }

    /// Says that the file is closed and whole.
    pub(super) fn write_clean_seal(&mut self, lower: &Lower) -> Result<(), FsError> {
        self.save_pages(lower)?;
        if !self.unsynced {
            self.firm = self.stored;
        }
        self.write_seal(lower, State::Clean, self.stored)
    }

    /// Writes tag page `page_no` as memory has it.
    pub(super) fn write_page(&mut self, lower: &Lower, page_no: u64) -> Result<(), FsError> {
        let page = self.pages.lock().get(&page_no).cloned();
        let Some(page) = page else { return Err(FsError::Os(Errno::IO)) };
        self.touched();
        let bytes = page.page.encode(&page.mac);
        match lower.write_at(&bytes[..], layout::tag_page_offset(page_no)) {
            Ok(()) => {
                self.unsaved.remove(&page_no);
                Ok(())
            }
            Err((_, e)) => {
                self.unsaved.insert(page_no);
                Err(FsError::Os(e))
            }
        }
    }

    /// Writes what an earlier failure kept back.
    pub(super) fn save_pages(&mut self, lower: &Lower) -> Result<(), FsError> {
        let unsaved: Vec<u64> = self.unsaved.iter().copied().collect();
        for page_no in unsaved {
            if page_no == 0 {
                self.write_hot(lower, State::Dirty, self.stored)?;
            } else if page_no < layout::tag_page_count(self.stored) {
                self.write_page(lower, page_no)?;
            } else {
                self.unsaved.remove(&page_no);
            }
        }
        if self.length_unsaved { self.set_lower_len(lower) } else { Ok(()) }
    }

    /// Gives the lower file the length that the size asks for.
    pub(super) fn set_lower_len(&mut self, lower: &Lower) -> Result<(), FsError> {
        self.touched();
        self.length_unsaved = true;
        lower.set_len(layout::lower_len(self.stored))?;
        self.length_unsaved = false;
        Ok(())
    }

    /// The entry of `block`; a hole beyond the end.
    pub(super) fn entry(&self, lower: &Lower, keys: &FileKeys, block: u64) -> Result<Entry, FsError> {
        let page = self.page(lower, keys, layout::tag_page(block))?;
        Ok(*page.page.entry(layout::entry_index(block)))
    }

    /// What `block` is to become, where that is not in place yet.
    pub(super) fn waiting(&self, block: u64) -> Option<&Staged> {
        self.staged.get(&block).or_else(|| self.in_flight.get(&block)).or_else(|| self.repaired.get(&block))
    }

    /// The first block from `block` on that is not in place.
    pub(super) fn next_waiting(&self, block: u64) -> Option<u64> {
        let maps = [&self.staged, &self.in_flight, &self.repaired];
        maps.into_iter().filter_map(|map| map.range(block..).next().map(|(at, _)| *at)).min()
    }

    /// Where the blocks end that change by way of the log, when the file is written up to `end`.
    pub(super) fn border(&self, end: u64) -> u64 {
        let (guarded, size) = (layout::block_count(self.guarded) * layout::BLOCK, self.size.max(end));
        if layout::tail_is_inline(size) { guarded.min(size / layout::BLOCK * layout::BLOCK) } else { guarded }
    }

    /// The lower file was synced, as it was when the sync began.
    pub(super) fn note_synced(&mut self, (changes, cuts, size): (u64, u64, u64)) {
        self.unsynced = self.unsynced && self.changes != changes;
        if self.cuts != cuts {
            // What grew again after a cut was not synced.
            return;
        }
        self.cut_off = CutOff::Gone;
        self.firm = self.firm.max(size).min(self.stored);
        self.guarded = self.guarded.max(size).min(self.size);
    }

    /// A sync begins: what [`Body::note_synced`] is to be told at its end. What it is to make durable changes by way of
    /// the log from here on, since a change may reach the disk with it in part.
    pub(super) fn sync_begins(&mut self) -> (u64, u64, u64) {
        self.guarded = self.guarded.max(self.stored);
        (self.changes, self.cuts, self.stored)
    }

    /// Whether every change is in place.
    pub(super) fn is_settled(&self) -> bool {
        self.staged.is_empty() && self.in_flight.is_empty()
    }

    /// The same, and the log need not keep any of it.
    pub(super) fn is_placed(&self) -> bool {
        self.is_settled() && self.promised == Promised::InPlace
    }

    /// Gives the file a size that the lower file has too, or is about to get.
    pub(super) fn set_size(&mut self, size: u64) {
        self.cuts += u64::from(size < self.size);
        (self.size, self.stored) = (size, size);
        self.firm = self.firm.min(size);
        self.guarded = self.guarded.min(size);
    }

    /// Gives the header page another end of the file, or none. It shares the page with the tags: until the page is
    /// stored as a whole, a seal alone would vouch for a mixture.
    pub(super) fn set_tail(&mut self, tail: Vec<u8>) {
        if !(self.tail.is_empty() && tail.is_empty()) {
            self.unsaved.insert(0);
        }
        self.tail = tail;
    }

    /// The last block's number, where it is kept in the header page.
    pub(super) fn inline_block(&self) -> Option<u64> {
        (!self.tail.is_empty()).then_some(self.stored / layout::BLOCK)
    }
}
