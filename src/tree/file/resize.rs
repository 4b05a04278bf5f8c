//! Changing the size, and taking or giving back space: truncate(2) and fallocate(2).

use rustix::io::Errno;

use super::body::{Body, CachedPage, xor};
use super::log::InFlight;
use super::write::Change;
use super::{FileIo, Inner};
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
        let mut inner = self.for_writing()?;
        if matches!(&*inner, Inner::Empty(_)) && size == 0 {
            return Ok(());
        }
        let (body, keys) = self.body_for_write(&mut inner)?;
        if size < body.size {
            return self.cut(body, &keys, size);
        }
        if size > body.size {
            self.grow(body, &keys, size)?;
        }
        Ok(())
    }

    /// Extends the file by a hole.
    fn grow(&self, body: &mut Body, keys: &FileKeys, size: u64) -> Result<(), FsError> {
        self.fill_tail(body, keys, size)?;
        if size > body.size {
            self.apply(body, keys, Change::none(size / BLOCK), size)?;
        }
        Ok(())
    }

    /// Cuts the file. The sealed size goes first, so that whoever opens the file after a crash completes the cut.
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
        if edge_page > 0 {
            body.write_seal(&self.lower, State::Cutting, size)?;
        } else if has_tail && !layout::tail_is_inline(size) {
            body.mark_dirty(&self.lower)?;
        }
        let old = body.page(&self.lower, keys, edge_page)?.as_ref().clone();
        let mut page = old.page.clone();
        for index in (kept_blocks - layout::first_block(edge_page)) as usize..page.entries().len() {
            page.set(index, HOLE);
        }
        let _in_flight = self.place_tail(body, keys, &old, change.as_ref(), &mut page, size)?;
        body.root = root;
        body.replace_page(edge_page, &old, CachedPage::new(keys, edge_page, page));
        body.pages.lock().retain(|no, _| *no <= edge_page);
        body.unsaved.retain(|no| *no <= edge_page);
        body.size = size;
        let inline = change.filter(|_| layout::tail_is_inline(size));
        body.tail = inline.map_or_else(Vec::new, |change| change.single(tail_len).1.to_vec());
        self.finish_cut(body, edge_page)
    }

    /// Enters the tag of the shortened last block and, where it has a page of its own, writes it there. The log's slot
    /// is held until the tag is stored too.
    fn place_tail(
        &self,
        body: &Body,
        keys: &FileKeys,
        old: &CachedPage,
        change: Option<&Change>,
        page: &mut TagPage,
        size: u64,
    ) -> Result<Option<InFlight<'_>>, FsError> {
        let Some(change) = change else { return Ok(None) };
        let block = size / BLOCK;
        let index = layout::entry_index(block);
        let (entry, data) = change.single(layout::block_len(block, size));
        page.set(index, entry);
        if layout::tail_is_inline(size) {
            return Ok(None);
        }
        let pair = (*old.page.entry(index), entry);
        let (id, log) = (body.superblock.file_id, self.context.log.as_ref());
        let in_flight = log.map(|log| log.note(keys, id, block, &[pair], data.len())).transpose()?;
        self.lower.write_at(data, layout::block_offset(block)).map_err(|(_, e)| e)?;
        Ok(in_flight)
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
        let mut inner = self.for_writing()?;
        if matches!(&*inner, Inner::Empty(_)) && what == Allocate::Punch {
            return Ok(());
        }
        let (body, keys) = self.body_for_write(&mut inner)?;
        match what {
            Allocate::Reserve { keep_size } => self.reserve(body, &keys, offset, end, keep_size),
            Allocate::Punch => self.punch(body, &keys, offset, end),
            Allocate::Zero { keep_size } => {
                self.punch(body, &keys, offset, end)?;
                self.reserve(body, &keys, offset, end, keep_size)
            }
        }
    }

    fn reserve(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        offset: u64,
        end: u64,
        keep_size: bool,
    ) -> Result<(), FsError> {
        let from = layout::block_offset(offset / BLOCK);
        let to = layout::block_offset((end - 1) / BLOCK) + BLOCK;
        self.lower.reserve(from, to - from)?;
        if !keep_size && end > body.size {
            self.grow(body, keys, end)?;
        }
        Ok(())
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
        self.apply(body, keys, change, body.size)
    }

    /// Turns the blocks `from..to` into holes: the tags first, then the space goes back.
    fn clear_blocks(&self, body: &mut Body, keys: &FileKeys, from: u64, to: u64) -> Result<(), FsError> {
        body.mark_dirty(&self.lower)?;
        let mut block = from;
        while block < to {
            let page_no = layout::tag_page(block);
            let stop = layout::first_block(page_no + 1).min(to);
            self.clear_in_page(body, keys, page_no, block, stop)?;
            block = self.lower.next_data(layout::block_offset(stop - 1) + BLOCK)?.map_or(to, |at| {
                stop.max(layout::block_at(at)) // Groups that the lower file holds nothing for have no tags.
            });
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
        if page != old.page {
            body.replace_page(page_no, &old, CachedPage::new(keys, page_no, page));
            if body.inline_block().is_some_and(|block| (from..to).contains(&block)) {
                body.tail.clear();
            }
            if page_no == 0 {
                body.write_hot(&self.lower, State::Dirty, body.size)?;
            } else {
                body.write_page(&self.lower, page_no)?;
            }
        }
        let start = layout::block_offset(from);
        Ok(self.lower.punch(start, layout::block_offset(to - 1) + BLOCK - start)?)
    }
}
