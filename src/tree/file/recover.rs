//! Repairing a file that was being written when its daemon or machine stopped. Called by `load` only.
//!
//! What the seal promised must verify under a stored or a logged tag. What lies beyond was promised to nobody: blocks
//! there that do not verify become holes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::FileIo;
use super::body::{Body, CachedPage};
use super::log::Logged;
use super::write::{Change, PROMISE_EVERY};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK, BLOCK_LEN};
use crate::format::seal::State;
use crate::format::tags::{Entry, HOLE, open_block};
use crate::tree::FsError;

/// What a suspect block turned out to be.
enum Found {
    /// It verifies under its stored tag.
    Whole,
    /// It verifies under this logged tag at this length.
    Logged(Entry, usize),
    /// It verifies under nothing.
    Lost,
}

impl FileIo {
    /// Repairs `body`, whose seal is not clean and whose lower file is `lower_len` bytes long.
    pub(super) fn recover(&self, body: &mut Body, lower_len: u64) -> Result<(), FsError> {
        let keys = body.keys()?;
        // The root says nothing in this state: the tag pages' own MACs must do.
        body.holes_trusted.store(true, Ordering::Release);
        let logged = self.logged(body, &keys);
        if body.sealed.state == State::Cutting {
            self.complete_cut(body, &keys, lower_len, &logged)?;
        } else {
            self.settle_size(body, &keys, lower_len, &logged)?;
            self.settle_promised(body, &keys, &logged)?;
        }
        body.root = body.sum_of_terms(&self.lower, &keys)?;
        log::info!("file {} was repaired after an unclean stop", body.superblock.file_id);
        if self.context.read_only {
            return Ok(());
        }
        let stored = self.lower.keeping_mtime(|| {
            body.unsaved.insert(0);
            body.length_unsaved = true;
            body.write_clean_seal(&self.lower)
        });
        match stored {
            // The lower file could be opened for reading only: the repair stays in memory, the log keeps its records.
            Err(FsError::Os(Errno::BADF)) => Ok(()),
            Err(e) => Err(e),
            Ok(()) => Ok(self.lower.sync(true)?),
        }
    }

    fn logged(&self, body: &Body, keys: &FileKeys) -> BTreeMap<u64, Vec<Logged>> {
        let mut by_block = BTreeMap::<_, Vec<_>>::new();
        let log = self.context.log.as_ref();
        for record in log.into_iter().flat_map(|log| log.pending(keys, body.superblock.file_id)) {
            by_block.entry(record.block).or_default().push(record);
        }
        by_block
    }

    /// A cut was under way: the sealed size rules.
    fn complete_cut(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        lower_len: u64,
        logged: &BTreeMap<u64, Vec<Logged>>,
    ) -> Result<(), FsError> {
        let block = body.size / BLOCK;
        let len = layout::block_len(block, body.size);
        let in_page = body.tail.is_empty() && len > 0 && body.entry(&self.lower, keys, block)? != HOLE;
        if in_page && matches!(self.examine(body, keys, block, len, &[])?, Found::Lost) {
            // The last block still has its old length, or its new tag is only in the log.
            let before = layout::block_len(block, layout::plain_size(lower_len));
            let records = logged.get(&block).map_or(&[][..], Vec::as_slice);
            match self.examine(body, keys, block, before, records)? {
                Found::Whole => self.shorten(body, keys, block, before, len)?,
                Found::Logged(entry, found) if found == len => self.set_entry(body, keys, block, entry)?,
                Found::Logged(..) | Found::Lost => {}
            }
        }
        let kept = layout::block_count(body.size);
        let page_no = if kept == 0 { 0 } else { layout::tag_page(kept - 1) };
        for block in kept..layout::first_block(page_no + 1) {
            if body.entry(&self.lower, keys, block)? != HOLE {
                self.set_entry(body, keys, block, HOLE)?;
            }
        }
        Ok(())
    }

    /// Seals the first `len` bytes of a block anew that is stored with `before` bytes.
    fn shorten(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        block: u64,
        before: usize,
        len: usize,
    ) -> Result<(), FsError> {
        let mut data = [0; BLOCK_LEN];
        let entry = body.entry(&self.lower, keys, block)?;
        self.open_stored(body, keys, block, &entry, &mut data[..before])?;
        let change = Change::of_block(keys, body.superblock.file_id, block, &data[..len]);
        let (entry, sealed) = change.single(len);
        if layout::tail_is_inline(body.size) {
            body.tail = sealed.to_vec();
        } else if !self.context.read_only {
            self.lower.write_at(sealed, layout::block_offset(block)).map_err(|(_, e)| e)?;
        }
        self.set_entry(body, keys, block, entry)
    }

    /// Finds the true size: what was promised, and beyond it what verifies.
    fn settle_size(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        lower_len: u64,
        logged: &BTreeMap<u64, Vec<Logged>>,
    ) -> Result<(), FsError> {
        let (promised, reached) = (body.size, layout::plain_size(lower_len));
        if reached <= promised {
            return self.check_not_cut(body, keys, reached);
        }
        let (edge, standing) = (promised / BLOCK, self.settle_beyond(body, keys, reached, logged)?);
        let reached = believable(body, promised, reached, standing);
        body.size = promised;
        if self.edge_reaches(body, keys, edge, reached, logged)? {
            body.size = reached;
            if !layout::tail_is_inline(reached) {
                body.tail.clear();
            }
        } else {
            self.drop_beyond(body, keys, layout::block_count(promised), reached)?;
        }
        Ok(())
    }

    /// Keeps of the blocks between the promised size and `reached` what verifies; gives the end of the last one, as a
    /// count of blocks. Costs as much as the lower file holds there, not as much as it is long.
    fn settle_beyond(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        reached: u64,
        logged: &BTreeMap<u64, Vec<Logged>>,
    ) -> Result<u64, FsError> {
        let promised = layout::block_count(body.size);
        let mut standing = promised;
        body.size = reached;
        self.for_present(body, promised, layout::block_count(reached), |body, block| {
            let records = logged.get(&block).map_or(&[][..], Vec::as_slice);
            let len = layout::block_len(block, reached);
            match self.examine(body, keys, block, len, records)? {
                Found::Whole => {}
                Found::Logged(entry, found) if found == len => self.set_entry(body, keys, block, entry)?,
                Found::Logged(..) | Found::Lost => self.set_entry(body, keys, block, HOLE)?,
            }
            if body.entry(&self.lower, keys, block)? != HOLE {
                standing = block + 1;
            }
            Ok(())
        })?;
        Ok(standing)
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
            block = if stop < to { self.skip_absent_groups(stop)?.unwrap_or(to) } else { to };
        }
        Ok(())
    }

    /// Whether the block at the promised end stands with the length that the lower length tells.
    fn edge_reaches(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        edge: u64,
        reached: u64,
        logged: &BTreeMap<u64, Vec<Logged>>,
    ) -> Result<bool, FsError> {
        if body.size.is_multiple_of(BLOCK) || body.entry(&self.lower, keys, edge)? == HOLE {
            return Ok(true);
        }
        let (promised, len) = (body.size, layout::block_len(edge, reached));
        let tail = std::mem::take(&mut body.tail);
        body.size = reached;
        let records = logged.get(&edge).map_or(&[][..], Vec::as_slice);
        match self.examine(body, keys, edge, len, records)? {
            Found::Whole => Ok(true),
            Found::Logged(entry, found) if found == len => {
                self.set_entry(body, keys, edge, entry)?;
                Ok(true)
            }
            Found::Logged(..) | Found::Lost => {
                (body.size, body.tail) = (promised, tail);
                Ok(false)
            }
        }
    }

    fn drop_beyond(&self, body: &mut Body, keys: &FileKeys, from: u64, reached: u64) -> Result<(), FsError> {
        self.for_present(body, from, layout::block_count(reached), |body, block| {
            if body.entry(&self.lower, keys, block)? != HOLE {
                self.set_entry(body, keys, block, HOLE)?;
            }
            Ok(())
        })
    }

    /// A lower file shorter than promised is whole only where what is missing holds nothing.
    fn check_not_cut(&self, body: &Body, keys: &FileKeys, reached: u64) -> Result<(), FsError> {
        // Later groups have lost their tag pages too.
        let first = reached / BLOCK;
        let stop = layout::first_block(layout::tag_page(first) + 1).min(layout::block_count(body.size));
        for block in first..stop {
            let stored = layout::block_offset(block) + layout::block_len(block, body.size) as u64;
            let missing =
                stored > layout::lower_len(reached).max(BLOCK) && body.inline_block() != Some(block);
            if missing && body.entry(&self.lower, keys, block)? != HOLE {
                return Err(body.corrupt(format_args!("the file was cut: block {block} is missing")));
            }
        }
        Ok(())
    }

    /// Holds each logged block below the promised size against its stored and its logged tags.
    fn settle_promised(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        logged: &BTreeMap<u64, Vec<Logged>>,
    ) -> Result<(), FsError> {
        for (block, records) in logged {
            if *block >= layout::block_count(body.size) || body.inline_block() == Some(*block) {
                continue;
            }
            let len = layout::block_len(*block, body.size);
            match self.examine(body, keys, *block, len, records)? {
                Found::Whole | Found::Lost => {}
                Found::Logged(entry, found) => {
                    self.set_entry(body, keys, *block, entry)?;
                    if found < len {
                        // A cut had begun with this block: complete it.
                        let reached = body.size;
                        body.size = block * BLOCK + found as u64;
                        body.tail.clear();
                        self.drop_beyond(body, keys, block + 1, reached)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Holds a block, stored with `len` bytes, against its stored tag and the logged ones.
    fn examine(
        &self,
        body: &Body,
        keys: &FileKeys,
        block: u64,
        len: usize,
        records: &[Logged],
    ) -> Result<Found, FsError> {
        let entry = body.entry(&self.lower, keys, block)?;
        let mut data = [0; BLOCK_LEN];
        let mut opens =
            |entry: &Entry, len: usize| self.open_stored(body, keys, block, entry, &mut data[..len]).is_ok();
        if entry == HOLE && records.is_empty() || entry != HOLE && opens(&entry, len) {
            return Ok(Found::Whole);
        }
        for record in records {
            if record.new != HOLE && opens(&record.new, record.new_len) {
                return Ok(Found::Logged(record.new, record.new_len));
            }
            if record.old != HOLE && opens(&record.old, len) {
                return Ok(Found::Logged(record.old, len));
            }
        }
        // A hole whose filling was logged but never reached the disk is a hole still.
        let was_hole = records.iter().any(|record| record.old == HOLE && record.new == entry);
        Ok(match entry {
            HOLE => Found::Whole,
            _ if was_hole => Found::Logged(HOLE, len),
            _ => Found::Lost,
        })
    }

    fn open_stored(
        &self,
        body: &Body,
        keys: &FileKeys,
        block: u64,
        entry: &Entry,
        out: &mut [u8],
    ) -> Result<(), FsError> {
        let mut sealed = [0; BLOCK_LEN];
        let sealed = &mut sealed[..out.len()];
        if self.lower.read_at(sealed, layout::block_offset(block))? < sealed.len() {
            return Err(body.corrupt(format_args!("block {block} is missing")));
        }
        open_block(keys, body.superblock.file_id, block, entry, sealed, out)
            .map_err(|_| body.corrupt(format_args!("block {block} does not verify")))
    }

    fn set_entry(&self, body: &mut Body, keys: &FileKeys, block: u64, entry: Entry) -> Result<(), FsError> {
        let page_no = layout::tag_page(block);
        let old = body.page(&self.lower, keys, page_no)?.as_ref().clone();
        let mut page = old.page.clone();
        page.set(layout::entry_index(block), entry);
        body.replace_page(page_no, &old, CachedPage::new(keys, page_no, page));
        body.unsaved.insert(page_no);
        Ok(())
    }
}

/// The size that the lower length tells, unless it is farther from what was promised than a writer goes and
/// nothing stands there: then the end of what stands.
fn believable(body: &Body, promised: u64, reached: u64, standing: u64) -> u64 {
    if reached - promised <= PROMISE_EVERY || standing == layout::block_count(reached) {
        return reached;
    }
    let kept = promised.max(standing * BLOCK);
    log::warn!(
        "file {}: its lower file is {reached} bytes long, of which {promised} were promised and {kept} verify; \
         the rest is cut off",
        body.superblock.file_id
    );
    kept
}
