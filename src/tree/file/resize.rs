//! Changing the size, and taking or giving back space: truncate(2) and fallocate(2).

use rustix::io::Errno;

use super::body::{Body, CachedPage, CutOff, xor};
use super::log::Ticket;
use super::record::Logged;
use super::stage::goes;
use super::write::Change;
use super::{FileIo, Inner, TagLog};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK, BLOCK_LEN, MAX_SIZE};
use crate::format::seal::State;
use crate::format::tags::{HOLE, TagPage};
use crate::tree::FsError;

/// What fallocate(2) is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space.
    Reserve {
        /// FALLOC_FL_KEEP_SIZE: the size stays.
        keep_size: bool,
    },
    /// FALLOC_FL_PUNCH_HOLE.
    Punch,
    /// FALLOC_FL_ZERO_RANGE.
    Zero {
        /// FALLOC_FL_KEEP_SIZE: the size stays.
        keep_size: bool,
    },
}

impl FileIo {
    /// Sets the size (truncate(2)); growing leaves a hole.
    pub fn truncate(&self, size: u64) -> Result<(), FsError> {
        if size > MAX_SIZE {
            return Err(FsError::Os(Errno::FBIG));
        }
        if size > self.size()? {
            self.lower.may_reach(layout::lower_len(size))?;
        }
        loop {
            self.flush()?;
            let _one = self.flushing.lock();
            let mut inner = self.for_writing()?;
            if matches!(&*inner, Inner::Empty(_)) && size == 0 {
                return Ok(());
            }
            let (body, keys) = self.body_for_write(&mut inner)?;
            if !body.is_settled() {
                continue;
            }
            if size < body.size {
                return self.cut(body, &keys, size);
            }
            if self.grow(body, &keys, size)? {
                return Ok(());
            }
        }
    }

    /// Extends the file by a hole; `false` where the last block must be flushed first. The caller holds `flushing`.
    fn grow(&self, body: &mut Body, keys: &FileKeys, size: u64) -> Result<bool, FsError> {
        if size <= body.size {
            return Ok(true);
        }
        self.begin_changes(body)?;
        if self.fill_tail(body, keys, size)? {
            return Ok(false);
        }
        if size > body.size {
            self.apply(body, keys, &mut Change::none(size / BLOCK), size)?;
        }
        Ok(true)
    }

    /// Cuts the file. The sealed size goes first, so that whoever opens the file after a crash completes the cut; by way
    /// of the log where something durable goes. The caller holds `flushing`.
    fn cut(&self, body: &mut Body, keys: &FileKeys, size: u64) -> Result<(), FsError> {
        let block = size / BLOCK;
        let tail_len = layout::block_len(block, size);
        let mut tail = [0; BLOCK_LEN];
        let tail = &mut tail[..tail_len];
        let has_tail = tail_len > 0 && body.entry(&self.lower, keys, block)? != HOLE;
        if has_tail {
            self.read_block(body, keys, block, tail)?;
        }
        let kept_blocks = layout::block_count(size);
        let edge_page = if kept_blocks == 0 { 0 } else { layout::tag_page(kept_blocks - 1) };
        let root = self.root_of_pages(body, keys, edge_page)?;
        let change = has_tail.then(|| Change::of_block(keys, body.superblock.file_id, block, tail));
        let _ticket = self.announce_cut(body, keys, change.as_ref(), size)?;
        // A seal without its head tags goes only where they stay as they are: all of them are in use.
        if edge_page > 0 && body.seal_stored {
            body.write_seal(&self.lower, State::Cutting, size)?;
        } else if edge_page > 0 {
            // Where this fails, the log has it.
            let _ = body.store_seal(&self.lower);
        }
        let old = body.page(&self.lower, keys, edge_page)?.as_ref().clone();
        let mut page = old.page.clone();
        for index in (kept_blocks - layout::first_block(edge_page)) as usize..page.entries().len() {
            page.set(index, HOLE);
        }
        if let Err(e) = self.place_tail(body, change.as_ref(), &mut page, size) {
            self.take_back_cut(body, keys, change.as_ref())?;
            return Err(e);
        }
        body.root = root;
        // The header page's own tags go with the seal.
        let tags_elsewhere = layout::tag_page_count(body.size) > 1;
        let logged = self.context.log.as_ref().is_some_and(TagLog::is_strict);
        if logged && tags_elsewhere && size < body.guarded {
            body.cut_off = CutOff::MayShow;
        }
        body.replace_page(edge_page, &old, CachedPage::new(keys, edge_page, page));
        body.drop_pages_behind(edge_page);
        body.unsaved.retain(|no| *no <= edge_page);
        body.set_size(size);
        let inline = change.filter(|_| layout::tail_is_inline(size));
        body.set_tail(inline.map_or_else(Vec::new, |change| change.single(tail_len).1.to_vec()));
        self.finish_cut(body, edge_page)
    }

    /// Notes the cut in the log, with the shortened last block, where that block's old state goes or something that may be
    /// durable: what was there when the file was opened, or a sync began. The log may have records of such blocks, and
    /// the holes that follow would pass for what was there before them.
    fn announce_cut(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        change: Option<&Change>,
        size: u64,
    ) -> Result<Option<Ticket<'_>>, FsError> {
        let replaces = change.is_some() && !layout::tail_is_inline(size);
        if size >= body.guarded && !replaces && !self.must_announce(body) {
            return Ok(None);
        }
        let block = size / BLOCK;
        let mut blocks = Vec::new();
        if let Some(change) = change {
            let (new, data) = change.single(layout::block_len(block, size));
            let (old, old_len) = (body.entry(&self.lower, keys, block)?, layout::block_len(block, body.size));
            let data = Some(data.to_vec());
            blocks.push(Logged { block, old, old_len, new, new_len: layout::block_len(block, size), data });
        }
        self.announce(body, blocks, State::Cutting, size)
    }

    /// Notes in the log that the cut did not come about after all.
    fn take_back_cut(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        change: Option<&Change>,
    ) -> Result<(), FsError> {
        let Some(change) = change else { return Ok(()) };
        let block = change.first();
        let (new, new_len) = (body.entry(&self.lower, keys, block)?, layout::block_len(block, body.size));
        let old = change.single(0).0;
        let word = Logged { block, old, old_len: 0, new, new_len, data: None };
        let _ticket = self.announce(body, vec![word], State::Dirty, body.stored)?;
        body.store_seal(&self.lower)
    }

    /// Enters the tag of the shortened last block and, where it has a page of its own, writes it there.
    fn place_tail(
        &self,
        body: &mut Body,
        change: Option<&Change>,
        page: &mut TagPage,
        size: u64,
    ) -> Result<(), FsError> {
        let Some(change) = change else { return Ok(()) };
        let block = size / BLOCK;
        let (entry, data) = change.single(layout::block_len(block, size));
        page.set(layout::entry_index(block), entry);
        if !layout::tail_is_inline(size) {
            body.touched();
            self.lower.write_at(data, layout::block_offset(block)).map_err(|(_, e)| e)?;
        }
        Ok(())
    }

    fn finish_cut(&self, body: &mut Body, edge_page: u64) -> Result<(), FsError> {
        body.length_unsaved = true;
        if edge_page == 0 {
            body.write_hot(&self.lower, State::Cutting, body.size)?;
        } else {
            body.write_page(&self.lower, edge_page)?;
        }
        body.set_lower_len(&self.lower)
    }

    /// The sum of the terms of the tag pages `0..=last`, by whichever way reads fewer pages.
    fn root_of_pages(&self, body: &Body, keys: &FileKeys, last: u64) -> Result<[u8; 16], FsError> {
        let count = layout::tag_page_count(body.size);
        if last < count / 2 {
            let mut sum = body.head.term;
            self.add_terms(body, keys, 1, last + 1, &mut sum)?;
            return Ok(sum);
        }
        let mut sum = body.root;
        self.add_terms(body, keys, last + 1, count, &mut sum)?;
        Ok(sum)
    }

    /// Adds the terms of the tag pages `from..to`, none of which is the header page. Whole groups that the lower
    /// filesystem holds no data for have no tags and are passed over.
    fn add_terms(
        &self,
        body: &Body,
        keys: &FileKeys,
        from: u64,
        to: u64,
        sum: &mut [u8; 16],
    ) -> Result<(), FsError> {
        let mut page_no = from;
        while page_no < to {
            let next = self.lower.next_data(layout::tag_page_offset(page_no))?;
            let next = next.map_or(to, |at| layout::tag_page(layout::block_at(at)));
            let next = body.unsaved.range(page_no..).next().map_or(next, |unsaved| next.min(*unsaved));
            if next > page_no {
                page_no = next;
                continue;
            }
            xor(sum, &body.page(&self.lower, keys, page_no)?.term);
            page_no += 1;
        }
        Ok(())
    }

    /// fallocate(2) for the modes that make sense here; others are the caller's EOPNOTSUPP.
    pub fn allocate(&self, what: Allocate, offset: u64, len: u64) -> Result<(), FsError> {
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE).ok_or(FsError::Os(Errno::FBIG))?;
        if len == 0 {
            return Err(FsError::Os(Errno::INVAL));
        }
        loop {
            self.flush()?;
            let _one = self.flushing.lock();
            let mut inner = self.for_writing()?;
            if matches!(&*inner, Inner::Empty(_)) && what == Allocate::Punch {
                return Ok(());
            }
            let (body, keys) = self.body_for_write(&mut inner)?;
            if !body.is_settled() {
                continue;
            }
            let keep_size = match what {
                Allocate::Reserve { keep_size } => keep_size,
                Allocate::Punch => return self.punch(body, &keys, offset, end),
                Allocate::Zero { keep_size } => {
                    // Where there is no room for it, nothing is lost.
                    self.reserve(body, offset, end)?;
                    self.punch(body, &keys, offset, end)?;
                    keep_size
                }
            };
            self.reserve(body, offset, end)?;
            if keep_size || self.grow(body, &keys, end)? {
                return Ok(());
            }
        }
    }

    /// Has the lower filesystem set the range's place apart.
    fn reserve(&self, body: &mut Body, offset: u64, end: u64) -> Result<(), FsError> {
        let from = layout::block_offset(offset / BLOCK);
        let to = layout::block_offset((end - 1) / BLOCK) + BLOCK;
        body.touched();
        Ok(self.lower.reserve(from, to - from)?)
    }

    /// Makes the range read as zeros: whole blocks become holes, the edges are rewritten.
    fn punch(&self, body: &mut Body, keys: &FileKeys, offset: u64, end: u64) -> Result<(), FsError> {
        let end = end.min(body.size);
        if offset >= end {
            return Ok(());
        }
        // A partial last block that is punched to its end goes as a whole.
        let to = if end == body.size { layout::block_count(end) } else { end / BLOCK };
        let from = offset.div_ceil(BLOCK);
        if offset / BLOCK < from && offset / BLOCK < layout::block_count(end) {
            let stop = end.min(from * BLOCK);
            self.zero_part(body, keys, offset, stop)?;
        }
        if from < to {
            self.clear_blocks(body, keys, from, to)?;
        }
        if to * BLOCK < end && to >= from {
            self.zero_part(body, keys, (to * BLOCK).max(offset), end)?;
        }
        Ok(())
    }

    /// Writes zeros into a part of one block; a hole stays one.
    fn zero_part(&self, body: &mut Body, keys: &FileKeys, offset: u64, end: u64) -> Result<(), FsError> {
        let block = offset / BLOCK;
        if body.entry(&self.lower, keys, block)? == HOLE {
            return Ok(());
        }
        let mut data = [0; BLOCK_LEN];
        let data = &mut data[..layout::block_len(block, body.size)];
        self.read_block(body, keys, block, data)?;
        data[(offset - block * BLOCK) as usize..(end - block * BLOCK) as usize].fill(0);
        let change = Change::of_block(keys, body.superblock.file_id, block, data);
        self.replace_block(body, keys, change, body.size).map(drop)
    }

    /// Turns the blocks `from..to` into holes: the tags first, then the space goes back. The caller holds `flushing`.
    fn clear_blocks(&self, body: &mut Body, keys: &FileKeys, from: u64, to: u64) -> Result<(), FsError> {
        self.begin_changes(body)?;
        body.mark_dirty(&self.lower)?;
        let mut block = from;
        while block < to {
            let page_no = layout::tag_page(block);
            let stop = layout::first_block(page_no + 1).min(to);
            self.clear_in_page(body, keys, page_no, block, stop)?;
            // Groups that the lower file holds nothing for have no tags, but perhaps a place that was set apart.
            let (behind, end) =
                (layout::block_offset(stop - 1) + BLOCK, layout::block_offset(to - 1) + BLOCK);
            let next = self.lower.next_data(behind)?;
            let gap = next.unwrap_or(end).min(end).saturating_sub(behind);
            if gap > 0 {
                self.lower.punch(behind, gap)?;
            }
            block = next.map_or(to, |at| stop.max(layout::block_at(at)));
        }
        Ok(())
    }

    fn clear_in_page(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        page_no: u64,
        from: u64,
        to: u64,
    ) -> Result<(), FsError> {
        let old = body.page(&self.lower, keys, page_no)?.as_ref().clone();
        let mut page = old.page.clone();
        for block in from..to {
            page.set(layout::entry_index(block), HOLE);
        }
        let _ticket = self.announce_holes(body, &old, from, to)?;
        if page != old.page {
            body.replace_page(page_no, &old, CachedPage::new(keys, page_no, page));
            if body.inline_block().is_some_and(|block| (from..to).contains(&block)) {
                body.set_tail(Vec::new());
            }
            if page_no == 0 {
                body.write_hot(&self.lower, State::Dirty, body.size)?;
            } else {
                body.write_page(&self.lower, page_no)?;
            }
        }
        let start = layout::block_offset(from);
        body.touched();
        Ok(self.lower.punch(start, layout::block_offset(to - 1) + BLOCK - start)?)
    }

    /// Notes in the log which blocks of one tag page go, as far as they may be on stable storage. One in the header page
    /// too, though that changes as a whole: a hole says nothing of when it was made, and an older record that began with
    /// one would count.
    fn announce_holes(
        &self,
        body: &mut Body,
        old: &CachedPage,
        from: u64,
        to: u64,
    ) -> Result<Option<Ticket<'_>>, FsError> {
        let guarded = layout::block_count(body.guarded).min(to);
        let lost = (from..guarded).map(|block| (block, *old.page.entry(layout::entry_index(block))));
        let blocks: Vec<_> = lost
            .filter(|(_, entry)| *entry != HOLE)
            .map(|(block, entry)| goes(block, entry, layout::block_len(block, body.size)))
            .collect();
        if blocks.is_empty() {
            return Ok(None);
        }
        let ticket = self.announce(body, blocks, State::Dirty, body.size)?;
        // Where this fails, the log has it; from here on the blocks must go, or a recovery would take them from a file
        // that still shows them.
        let _ = body.store_seal(&self.lower);
        Ok(ticket)
    }
}
