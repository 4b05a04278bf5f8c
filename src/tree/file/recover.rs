//! Repairing a file that was being written when its daemon or machine stopped. Called by `load` only.
//!
//! What was on stable storage before (`firm`) must verify under a stored or a logged tag, or stand in the log as a whole;
//! else it is damage and stays so. What lies beyond was promised to nobody: blocks there that do not verify become holes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::FileIo;
use super::body::{Body, CachedPage};
use super::record::{Logged, Record};
use super::stage::Staged;
use super::write::{Change, PROMISE_EVERY};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK, BLOCK_LEN};
use crate::format::seal::{Seal, State};
use crate::format::tags::{Entry, HOLE, open_block};
use crate::tree::FsError;

type Word = Logged<Vec<u8>>;

/// What is known of a file that was not closed well.
pub(super) struct Evidence {
    /// The newest seal, of header page and log.
    pub(super) seal: Seal,
    /// What the log says, in the order of writing, with the seals.
    pub(super) records: Vec<(Option<Seal>, Record<Vec<u8>>)>,
}

/// What a block is to be.
struct Version {
    entry: Entry,
    len: usize,
    /// The ciphertext, where the lower file does not have it.
    data: Option<Vec<u8>>,
}

/// A repair under way.
struct Repair<'a> {
    io: &'a FileIo,
    keys: &'a FileKeys,
    /// Whether the repair goes to the lower file, or stays in memory.
    stores: bool,
    /// Lengths of the blocks that the log spoke of.
    settled: BTreeMap<u64, usize>,
}

impl FileIo {
    /// Repairs `body`.
    pub(super) fn recover(&self, body: &mut Body, evidence: &Evidence) -> Result<(), FsError> {
        let Evidence { seal, records } = evidence;
        let keys = body.keys()?;
        // The root says nothing in this state: the tag pages' own MACs must do.
        body.holes_trusted.store(true, Ordering::Release);
        (body.session, body.firm) = (seal.session, seal.firm);
        let writable = rustix::fs::fcntl_getfl(&self.lower).is_ok_and(|flags| flags.contains(OFlags::RDWR));
        let stores = writable && !self.context.read_only;
        let mut repair = Repair { io: self, keys: &keys, stores, settled: BTreeMap::new() };
        let cuts = cuts_of(records);
        repair.make_up_for_cuts(body, seal, &cuts)?;
        repair.follow_log(body, records, &cuts)?;
        let size = if seal.state == State::Cutting {
            repair.complete_cut(body, seal.size)?;
            let inline = body.inline_block();
            repair.settle_blocks(body, seal, seal.size, inline)?
        } else {
            repair.settle_size(body, seal)?
        };
        if !layout::tail_is_inline(size) || size / BLOCK != body.stored / BLOCK {
            body.set_tail(Vec::new());
        }
        repair.place_end(body, size)?;
        (body.size, body.stored, body.firm) = (size, size, size.min(body.firm));
        body.root = body.sum_of_terms(&self.lower, &keys, |_, _| {})?;
        log::info!("file {} was repaired after an unclean stop", body.superblock.file_id);
        if stores { self.store_repair(body, evidence) } else { Ok(()) }
    }

    /// Makes the repair durable, then says that the file is whole.
    fn store_repair(&self, body: &mut Body, evidence: &Evidence) -> Result<(), FsError> {
        self.lower.keeping_mtime(|| {
            // Cut short, the repair begins anew: with the same seal, or one that says the same.
            let state = if evidence.seal.state == State::Cutting { State::Cutting } else { State::Dirty };
            body.write_hot(&self.lower, state, body.size)?;
            body.length_unsaved = true;
            body.save_pages(&self.lower)
        })?;
        let told = evidence.records.iter().filter_map(|(_, record)| record.modified).next_back();
        if let Some(time) = told.filter(|time| self.lower.modified().is_ok_and(|now| now < *time)) {
            self.lower.set_modified(time)?;
        }
        // The log is needed until here: the seal that makes it void comes after, and is newer than any in it.
        self.lower.sync(true)?;
        let behind = evidence.seal.epoch.saturating_sub(body.sealed.epoch);
        body.sealed.epoch += behind.next_multiple_of(2);
        (body.firm, body.session) = (body.size, self.session());
        self.lower.keeping_mtime(|| body.write_clean_seal(&self.lower))?;
        Ok(self.lower.sync(true)?)
    }
}

impl Repair<'_> {
    /// A header page from before a cut that a later seal of the log has superseded: its tags behind the cut, and the end
    /// of the file that it keeps, went with the cut, as the log's words on them do. (Tags on other pages are of no concern:
    /// such a seal waits until the cut is durable.)
    fn make_up_for_cuts(&self, body: &mut Body, newest: &Seal, cuts: &[Option<Seal>]) -> Result<(), FsError> {
        let unseen = |cut: &&Seal| (body.sealed.epoch + 1..newest.epoch).contains(&cut.epoch);
        let Some(size) = cuts.iter().flatten().filter(unseen).map(|cut| cut.size).min() else {
            return Ok(());
        };
        let kept = layout::block_count(size);
        if body.inline_block().is_some_and(|block| block >= kept) {
            body.set_tail(Vec::new());
        }
        self.drop_beyond(body, kept)
    }

    /// Gives each block that the log speaks of the newest version that is to be had.
    fn follow_log(
        &mut self,
        body: &mut Body,
        records: &[(Option<Seal>, Record<Vec<u8>>)],
        cuts: &[Option<Seal>],
    ) -> Result<(), FsError> {
        let mut words = BTreeMap::<u64, Vec<&Word>>::new();
        for ((_, record), cut) in records.iter().zip(cuts) {
            if let Some(cut) = cut {
                words.retain(|block, _| *block < layout::block_count(cut.size));
            }
            for word in &record.blocks {
                words.entry(word.block).or_default().push(word);
            }
        }
        for (block, words) in words {
            let entry = body.entry(&self.io.lower, self.keys, block)?;
            // A file that has another tag by now was changed since, by ways that need no log.
            if !words.iter().any(|word| word.old == entry || word.new == entry) {
                continue;
            }
            let Some(version) = self.newest(body, block, entry, &words) else { continue };
            self.settled.insert(block, version.len);
            self.put(body, block, version, entry)?;
        }
        Ok(())
    }

    fn newest(&self, body: &Body, block: u64, stored: Entry, words: &[&Word]) -> Option<Version> {
        let stands = |entry: &Entry, len: usize| {
            let in_header = body.inline_block() == Some(block) && *entry == stored;
            *entry == HOLE || in_header || self.opens(body, block, entry, len)
        };
        for word in words.iter().rev() {
            let (entry, len) = (word.new, word.new_len);
            if stands(&entry, len) {
                return Some(Version { entry, len, data: None });
            }
            if word.data.is_some() {
                return Some(Version { entry, len, data: word.data.clone() });
            }
            if stands(&word.old, word.old_len) {
                return Some(Version { entry: word.old, len: word.old_len, data: None });
            }
        }
        None
    }

    /// Gives `block` the version; its entry is `stored` so far.
    fn put(&self, body: &mut Body, block: u64, version: Version, stored: Entry) -> Result<(), FsError> {
        let Version { entry, data, .. } = version;
        if body.inline_block() == Some(block) && entry != stored {
            body.set_tail(Vec::new());
        }
        if let Some(data) = data {
            if self.stores {
                self.io.lower.write_at(&data, layout::block_offset(block)).map_err(|(_, e)| e)?;
            } else {
                let len = data.len();
                body.repaired.insert(block, Staged { image: Arc::new(data), at: 0, len, entry });
            }
        }
        if entry == stored { Ok(()) } else { self.set_entry(body, block, entry) }
    }

    /// A cut was under way: the sealed size rules.
    fn complete_cut(&self, body: &mut Body, size: u64) -> Result<(), FsError> {
        let (block, len) = (size / BLOCK, layout::block_len(size / BLOCK, size));
        let entry = body.entry(&self.io.lower, self.keys, block)?;
        let in_header = body.inline_block() == Some(block) && body.stored == size;
        if len > 0 && entry != HOLE && !in_header {
            self.shorten(body, block, len, size)?;
        }
        if body.stored != size {
            // What the header page keeps is the end of a file of another size.
            body.set_tail(Vec::new());
        }
        self.drop_beyond(body, layout::block_count(size))?;
        body.stored = size;
        Ok(())
    }

    /// Brings the end of a file of `size` into the header page where it belongs there: what the log tells of a cut stands
    /// elsewhere, or in the log alone.
    fn place_end(&self, body: &mut Body, size: u64) -> Result<(), FsError> {
        let (block, len) = (size / BLOCK, layout::block_len(size / BLOCK, size));
        let in_place = body.inline_block() == Some(block) && body.tail.len() == len;
        if in_place || !layout::tail_is_inline(size) || body.entry(&self.io.lower, self.keys, block)? == HOLE
        {
            return Ok(());
        }
        self.shorten(body, block, len, size)
    }

    /// Gives the last block its length of `len` bytes in a file of `size`, and the place that goes with it.
    fn shorten(&self, body: &mut Body, block: u64, len: usize, size: u64) -> Result<(), FsError> {
        let entry = body.entry(&self.io.lower, self.keys, block)?;
        let inline = layout::tail_is_inline(size);
        let mut data = [0; BLOCK_LEN];
        let held = self.settled.get(&block).copied();
        let before = layout::block_len(block, layout::plain_size(self.io.lower.len()?));
        let lengths = [Some(len), held, Some(before), Some(layout::block_len(block, body.stored))];
        for found in lengths.into_iter().flatten().filter(|found| *found >= len) {
            if self.open_version(body, block, &entry, &mut data[..found]).is_err() {
                continue;
            }
            if found == len && !inline {
                return Ok(());
            }
            let change = Change::of_block(self.keys, body.superblock.file_id, block, &data[..len]);
            let (new, sealed) = change.single(len);
            if inline {
                (body.tail, body.stored) = (sealed.to_vec(), size);
                body.repaired.remove(&block);
                return self.set_entry(body, block, new);
            }
            return self.put(body, block, Version { entry: new, len, data: Some(sealed.to_vec()) }, entry);
        }
        Ok(())
    }

    /// Finds the true size: `firm` at least, and beyond it what verifies.
    fn settle_size(&self, body: &mut Body, seal: &Seal) -> Result<u64, FsError> {
        let (sealed, firm) = (body.stored, seal.firm);
        if let Some(block) = body.inline_block() {
            // The header page is one with its tail; what it knows nothing of never was.
            self.drop_beyond(body, layout::block_count(sealed))?;
            return self.settle_blocks(body, seal, sealed, Some(block));
        }
        // What is repaired in memory counts as it would below.
        let held = body
            .repaired
            .last_key_value()
            .map_or(0, |(block, held)| block * BLOCK + held.data().len() as u64);
        let reached = layout::plain_size(self.io.lower.len()?).max(held);
        if reached < firm {
            self.check_not_cut(body, firm, reached)?;
        }
        // A seal is one with the tags in its page: where those are all of them, it knows of every block, and the length
        // may be from before a cut that the seal came after.
        let in_head = layout::tag_page_count(reached) == 1;
        let target = if in_head { reached.min(seal.size) } else { reached };
        self.settle_blocks(body, seal, target.max(firm), None)
    }

    /// Makes holes of the blocks from `firm` of the seal on that do not verify in a file of `target` bytes; `inline` is
    /// in the header page; gives the size that stands. Costs as much as the lower file holds, not as much as it is long.
    fn settle_blocks(
        &self,
        body: &mut Body,
        seal: &Seal,
        target: u64,
        inline: Option<u64>,
    ) -> Result<u64, FsError> {
        let firm = seal.firm;
        let (edge, partial) = (firm / BLOCK, (firm % BLOCK) as usize);
        let (mut standing, mut lost, mut ends) = (firm, false, None);
        self.for_present(body, edge, layout::block_count(target), |body, block| {
            let entry = body.entry(&self.io.lower, self.keys, block)?;
            let len = layout::block_len(block, target);
            if entry == HOLE || ends.is_some() {
                return Ok(());
            }
            if inline == Some(block) || self.opens_now(body, block, &entry, len) {
                standing = block * BLOCK + len as u64;
                return Ok(());
            }
            let shorter =
                self.settled.get(&block).copied().or((block == edge && partial > 0).then_some(partial));
            if let Some(shorter) = shorter.filter(|len| self.opens_now(body, block, &entry, *len)) {
                ends = Some(block * BLOCK + shorter as u64);
            } else if block > edge || partial == 0 {
                lost = true;
                self.set_entry(body, block, HOLE)?;
            }
            Ok(())
        })?;
        let size = match ends {
            Some(end) => end,
            // A sync stores the size and not that it succeeded, so what was sealed counts, though no block stands there.
            None if lost && layout::block_count(standing) < layout::block_count(target) => {
                standing.max(seal.size.min(target))
            }
            None => believable(body, firm, target, standing),
        };
        self.drop_beyond(body, layout::block_count(size))?;
        Ok(size)
    }

    /// Calls `f` for the blocks `from..to`, but for whole groups that the lower file holds nothing for.
    fn for_present(
        &self,
        body: &mut Body,
        from: u64,
        to: u64,
        mut f: impl FnMut(&mut Body, u64) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let mut block = from;
        while block < to {
            let stop = layout::first_block(layout::tag_page(block) + 1).min(to);
            for block in block..stop {
                f(body, block)?;
            }
            let present = if stop < to { self.io.skip_absent_groups(stop)? } else { None };
            let held = body.repaired.range(stop..).next();
            let held = held.map(|(block, _)| layout::first_block(layout::tag_page(*block)).max(stop));
            block = present.into_iter().chain(held).min().unwrap_or(to);
        }
        Ok(())
    }

    /// Forgets the tags of the blocks from `from` on: in the last tag page that is needed, which may have reached the disk
    /// when the length did not. Later pages go with the length.
    fn drop_beyond(&self, body: &mut Body, from: u64) -> Result<(), FsError> {
        let page_no = if from == 0 { 0 } else { layout::tag_page(from - 1) };
        for block in from..layout::first_block(page_no + 1) {
            if body.entry(&self.io.lower, self.keys, block)? != HOLE {
                self.set_entry(body, block, HOLE)?;
            }
        }
        body.drop_pages_behind(page_no);
        body.unsaved.retain(|no| *no <= page_no);
        Ok(())
    }

    /// A lower file shorter than what was durable is whole only where what is missing holds nothing.
    fn check_not_cut(&self, body: &Body, firm: u64, reached: u64) -> Result<(), FsError> {
        // Later groups have lost their tag pages too.
        let first = reached / BLOCK;
        let stop = layout::first_block(layout::tag_page(first) + 1).min(layout::block_count(firm));
        for block in first..stop {
            let stored = layout::block_offset(block) + layout::block_len(block, firm) as u64;
            let missing =
                stored > layout::lower_len(reached).max(BLOCK) && !body.repaired.contains_key(&block);
            if missing && body.entry(&self.io.lower, self.keys, block)? != HOLE {
                return Err(body.corrupt(format_args!("the file was cut: block {block} is missing")));
            }
        }
        Ok(())
    }

    /// Whether the lower file has `block` under `entry` with `len` bytes.
    fn opens(&self, body: &Body, block: u64, entry: &Entry, len: usize) -> bool {
        len > 0 && self.open_stored(body, block, entry, &mut [0; BLOCK_LEN][..len]).is_ok()
    }

    /// The same, or whether it was repaired in memory.
    fn opens_now(&self, body: &Body, block: u64, entry: &Entry, len: usize) -> bool {
        len > 0 && self.open_version(body, block, entry, &mut [0; BLOCK_LEN][..len]).is_ok()
    }

    fn open_version(&self, body: &Body, block: u64, entry: &Entry, out: &mut [u8]) -> Result<(), FsError> {
        let tail = (body.inline_block() == Some(block)).then_some(&body.tail[..]);
        let held = body.repaired.get(&block).map(Staged::data).or(tail);
        let Some(sealed) = held else { return self.open_stored(body, block, entry, out) };
        let fits = sealed.len() == out.len();
        let opened = fits.then(|| open_block(self.keys, body.superblock.file_id, block, entry, sealed, out));
        opened.and_then(Result::ok).ok_or_else(|| body.corrupt(format_args!("block {block} does not verify")))
    }

    fn open_stored(&self, body: &Body, block: u64, entry: &Entry, out: &mut [u8]) -> Result<(), FsError> {
        let mut sealed = [0; BLOCK_LEN];
        let sealed = &mut sealed[..out.len()];
        if self.io.lower.read_at(sealed, layout::block_offset(block))? < sealed.len() {
            return Err(body.corrupt(format_args!("block {block} is missing")));
        }
        open_block(self.keys, body.superblock.file_id, block, entry, sealed, out)
            .map_err(|_| body.corrupt(format_args!("block {block} does not verify")))
    }

    fn set_entry(&self, body: &mut Body, block: u64, entry: Entry) -> Result<(), FsError> {
        if body.repaired.get(&block).is_some_and(|held| held.entry != entry) {
            // What the log held of it counts no longer.
            body.repaired.remove(&block);
        }
        let page_no = layout::tag_page(block);
        let old = body.page(&self.io.lower, self.keys, page_no)?.as_ref().clone();
        let mut page = old.page.clone();
        page.set(layout::entry_index(block), entry);
        body.replace_page(page_no, &old, CachedPage::new(self.keys, page_no, page));
        Ok(())
    }
}

/// The cut that each record tells of, but for one that the next seal takes back: its word gives the block that the cut
/// ended in its old tag again, and says so by an old length of nothing.
fn cuts_of(records: &[(Option<Seal>, Record<Vec<u8>>)]) -> Vec<Option<Seal>> {
    let takes_back =
        |record: &Record<Vec<u8>>| record.blocks.iter().any(|word| word.old != HOLE && word.old_len == 0);
    let after = |index: usize| records[index + 1..].iter().find(|(seal, _)| seal.is_some());
    let cut = |(index, (seal, _)): (usize, &(Option<Seal>, _))| {
        let cut = seal.filter(|seal| seal.state == State::Cutting)?;
        (!after(index).is_some_and(|(_, record)| takes_back(record))).then_some(cut)
    };
    records.iter().enumerate().map(cut).collect()
}

/// The size that the lower length tells, unless it is farther from what was promised than a writer goes and nothing
/// stands there: then the end of what stands.
fn believable(body: &Body, firm: u64, reached: u64, standing: u64) -> u64 {
    let promised = firm.max(body.sealed.size);
    if reached.saturating_sub(promised) <= PROMISE_EVERY || standing >= reached {
        return reached;
    }
    let kept = promised.max(standing);
    log::warn!(
        "file {}: its lower file is {reached} bytes long, of which {promised} were promised and {kept} verify; \
         the rest is cut off",
        body.superblock.file_id
    );
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_counts_unless_the_next_seal_takes_it_back() {
        let seal = |epoch, state| Seal {
            epoch,
            size: 3_000,
            root: [0; 16],
            state,
            firm: 0,
            session: 1,
            place: [0; 16],
        };
        let word =
            |old_len| Logged { block: 0, old: [1; 28], old_len, new: [2; 28], new_len: 3_000, data: None };
        let record = |seal: Option<Seal>, old_len| {
            (seal, Record { sequence: 0, seal: None, modified: None, blocks: vec![word(old_len)] })
        };
        let cut = Some(seal(5, State::Cutting));
        let told = |after: Vec<(Option<Seal>, Record<Vec<u8>>)>| {
            cuts_of(&[vec![record(cut, 4_096), record(None, 4_096)], after].concat())[0].is_some()
        };
        assert!(told(vec![]));
        assert!(told(vec![record(Some(seal(6, State::Dirty)), 3_000)]));
        assert!(!told(vec![record(Some(seal(6, State::Dirty)), 0)]));
        // Later seals speak of something else.
        assert!(told(vec![
            record(Some(seal(6, State::Dirty)), 3_000),
            record(Some(seal(7, State::Dirty)), 0)
        ]));
    }
}
