//! Writing a range: blocks are sealed into an image of the lower file, which one positioned write puts in place.
//!
//! Blocks that may be on stable storage already are staged (`stage`), whoever else goes straight to the lower file. Order
//! there: mark the file dirty, data (with the tag pages that lie between), the tag page before the data or the header
//! page, the lower length. Cut at any point, what was there before is there still.

use std::sync::Arc;

use rustix::io::Errno;

use super::body::{Body, CachedPage};
use super::lower::Lower;
use super::stage::Staged;
use super::{FileIo, Inner};
use crate::crypto::{FileKeys, Nonce, random_array, random_nonces};
use crate::format::FileId;
use crate::format::layout::{self, BLOCK, BLOCK_LEN, MAX_SIZE};
use crate::format::seal::State;
use crate::format::tags::{Entry, HOLE, seal_block};
use crate::tree::FsError;

/// How far a growing file may outrun its sealed size before the seal follows, in bytes. A recovery does not believe a
/// length beyond that unless data stands there.
pub(super) const PROMISE_EVERY: u64 = 64 << 20;

/// New contents of the blocks from `first` on.
pub(super) struct Change {
    first: u64,
    /// The lower bytes from the place of `first` on, with gaps for the tag pages between.
    image: Vec<u8>,
    entries: Vec<Entry>,
    /// It came about in part: these are the entries of what was written.
    short: bool,
}

impl Change {
    /// Room for the blocks `first..=last`, with nothing in it yet.
    fn new(first: u64, last: u64) -> Self {
        let image = Vec::with_capacity(image_len(first, last));
        Self { first, image, entries: vec![HOLE; (last - first + 1) as usize], short: false }
    }

    /// The blocks that `data` at `offset` touches: those that it fills sealed, zeros for the others. Whole blocks depend on
    /// nothing but the data, so no lock is needed.
    fn of_data(keys: &FileKeys, id: FileId, offset: u64, data: &[u8]) -> Self {
        let end = offset + data.len() as u64;
        let mut change = Self::new(offset / BLOCK, (end - 1) / BLOCK);
        let (from, to) = (offset.div_ceil(BLOCK), end / BLOCK);
        let mut nonces = vec![[0; 12]; to.saturating_sub(from) as usize];
        random_nonces(&mut nonces);
        for (block, nonce) in (from..to).zip(&nonces) {
            // What is filled with data next is not filled with zeros before.
            change.image.resize(change.place(block), 0);
            let source = (block * BLOCK - offset) as usize;
            change.image.extend_from_slice(&data[source..source + BLOCK_LEN]);
            change.seal(keys, id, block, BLOCK_LEN, nonce);
        }
        change.image.resize(image_len(change.first, change.last()), 0);
        change
    }

    /// Nothing but a change of size.
    pub(super) fn none(at: u64) -> Self {
        Self { first: at, image: Vec::new(), entries: Vec::new(), short: false }
    }

    /// How many of `len` bytes from `offset` on are in place although the change failed.
    fn placed(&self, offset: u64, len: usize) -> usize {
        let end = (self.first + self.entries.len() as u64) * BLOCK;
        if self.short { (end.saturating_sub(offset) as usize).min(len) } else { 0 }
    }

    fn place(&self, block: u64) -> usize {
        (layout::block_offset(block) - layout::block_offset(self.first)) as usize
    }

    /// Seals `len` bytes, which stand in the image at the block's place.
    fn seal(&mut self, keys: &FileKeys, id: FileId, block: u64, len: usize, nonce: &Nonce) {
        let at = self.place(block);
        let entry = seal_block(keys, id, block, nonce, &mut self.image[at..at + len]);
        self.entries[(block - self.first) as usize] = entry;
    }

    /// A change of one block to `data`.
    pub(super) fn of_block(keys: &FileKeys, id: FileId, block: u64, data: &[u8]) -> Self {
        let mut change = Self::new(block, block);
        change.image.extend_from_slice(data);
        change.image.resize(BLOCK_LEN, 0);
        change.seal(keys, id, block, data.len(), &random_array());
        change
    }

    /// Entry and ciphertext of a change of one block of `len` bytes.
    pub(super) fn single(&self, len: usize) -> (Entry, &[u8]) {
        (self.entries[0], &self.image[..len])
    }

    /// The blocks, to be put in place later; the last one has `last_len` bytes.
    fn into_staged(self, last_len: usize) -> impl Iterator<Item = (u64, Staged)> {
        let (first, last) = (self.first, self.last());
        let places: Vec<usize> = (first..=last).map(|block| self.place(block)).collect();
        let (entries, image) = (self.entries, Arc::new(self.image));
        (first..=last).zip(places).zip(entries).map(move |((block, at), entry)| {
            let len = if block == last { last_len } else { BLOCK_LEN };
            (block, Staged { image: Arc::clone(&image), at, len, entry })
        })
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl FileIo {
    /// Writes `data` at `offset` (pwrite(2)); a gap before it becomes a hole.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.write_most(offset, data).map_err(|(_, e)| e)
    }

    /// The same, and where the lower filesystem takes a part alone, gives the bytes of that instead of an error.
    pub fn write_some(&self, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        match self.write_most(offset, data) {
            Ok(()) => Ok(data.len()),
            Err((0, e)) => Err(e),
            Err((done, _)) => Ok(done),
        }
    }

    /// Writes; on an error tells also how many bytes from the first on were written before it.
    fn write_most(&self, offset: u64, data: &[u8]) -> Result<(), (usize, FsError)> {
        match self.write_once(offset, data) {
            Err((_, FsError::Os(Errno::NOSPC | Errno::DQUOT))) if self.context.release_removed() => {
                self.write_once(offset, data)
            }
            done => done,
        }
    }

    fn write_once(&self, offset: u64, data: &[u8]) -> Result<(), (usize, FsError)> {
        if data.is_empty() {
            return Ok(());
        }
        let nothing = |e| (0, e);
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= MAX_SIZE);
        let end = end.ok_or((0, FsError::Os(Errno::FBIG)))?;
        if offset == 0 && self.write_first(data).map_err(nothing)? {
            return Ok(());
        }
        let (keys, id) = self.keys_for_write().map_err(nothing)?;
        loop {
            let border = self.border(end);
            let split = if offset < border && border < end { (border - offset) as usize } else { data.len() };
            let (head, rest) = data.split_at(split);
            let after_head = |(done, e)| (split + done, e);
            if self.write_part(&keys, id, offset, head)?
                && (rest.is_empty() || self.write_part(&keys, id, border, rest).map_err(after_head)?)
            {
                return Ok(());
            }
        }
    }

    /// Where the blocks that change by way of the log end, for a write that ends at `end`: what may be on stable storage,
    /// less an end of the file that is kept in the header page, which changes as a whole.
    fn border(&self, end: u64) -> u64 {
        match (&*self.inner.read(), &self.context.log) {
            (Inner::Loaded(body), Some(_)) => body.border(end),
            _ => 0,
        }
    }

    /// Writes a part that lies on one side of the border; `false` where the border has moved. An error comes with the
    /// bytes that were written before it.
    fn write_part(
        &self,
        keys: &FileKeys,
        id: FileId,
        offset: u64,
        data: &[u8],
    ) -> Result<bool, (usize, FsError)> {
        let mut change = Change::of_data(keys, id, offset, data);
        self.place_part(offset, data, &mut change).map_err(|e| (change.placed(offset, data.len()), e))
    }

    fn place_part(&self, offset: u64, data: &[u8], change: &mut Change) -> Result<bool, FsError> {
        let end = offset + data.len() as u64;
        self.make_room()?;
        let mut log_first = false;
        loop {
            if log_first {
                self.flush()?;
            }
            let _one = log_first.then(|| self.flushing.lock());
            let mut inner = self.for_writing()?;
            let (body, keys) = self.body_for_write(&mut inner)?;
            let new_size = body.size.max(end);
            let border = if self.context.log.is_some() { body.border(end) } else { 0 };
            if offset < border && border < end {
                return Ok(false);
            }
            if offset < border {
                self.seal_edges(body, &keys, change, offset, data, new_size)?;
                let last_len = layout::block_len(change.last(), new_size);
                let change = std::mem::replace(change, Change::none(0));
                self.stage(body, change.into_staged(last_len), new_size);
                return Ok(true);
            }
            let gap = body.size < change.first * BLOCK && self.has_partial_tail(body, &keys)?;
            if gap {
                self.lower.may_reach(layout::lower_len(new_size))?;
                self.reserve_for(change)?;
            }
            if gap || body.stored != body.size || self.must_announce(body) {
                if !log_first || body.stored != body.size {
                    log_first = true;
                    continue;
                }
                self.begin_changes(body)?;
                if self.fill_tail(body, &keys, new_size)? {
                    continue;
                }
            }
            self.seal_edges(body, &keys, change, offset, data, new_size)?;
            self.apply(body, &keys, change, new_size)?;
            return Ok(true);
        }
    }

    /// Has space for `change` behind the end, so that the end is not filled up for a write that is then refused.
    fn reserve_for(&self, change: &Change) -> Result<(), FsError> {
        let page = layout::tag_page(change.first);
        let page = if page == 0 { 0 } else { layout::tag_page_offset(page) };
        for (offset, len) in [(page, BLOCK), (layout::block_offset(change.first), change.image.len() as u64)]
        {
            // A filesystem that cannot tells at the write.
            if let Err(e @ (Errno::NOSPC | Errno::DQUOT)) = self.lower.reserve(offset, len) {
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Seals the first and last block of a write where they are not whole: the rest of them is read first.
    fn seal_edges(
        &self,
        body: &Body,
        keys: &FileKeys,
        change: &mut Change,
        offset: u64,
        data: &[u8],
        new_size: u64,
    ) -> Result<(), FsError> {
        let end = offset + data.len() as u64;
        for block in [change.first, change.last()] {
            let start = block * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            if to - from == BLOCK || change.entries[(block - change.first) as usize] != HOLE {
                continue;
            }
            let len = layout::block_len(block, new_size);
            let at = change.place(block);
            if from > start || ((to - start) as usize) < len {
                self.read_block(body, keys, block, &mut change.image[at..at + len])?;
            }
            let into = at + (from - start) as usize;
            change.image[into..into + (to - from) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            change.seal(keys, body.superblock.file_id, block, len, &random_array());
        }
        Ok(())
    }

    pub(super) fn has_partial_tail(&self, body: &Body, keys: &FileKeys) -> Result<bool, FsError> {
        let block = body.size / BLOCK;
        let partial = !body.size.is_multiple_of(BLOCK);
        Ok(partial && (body.waiting(block).is_some() || body.entry(&self.lower, keys, block)? != HOLE))
    }

    /// Gives the last block, where it is partial, the length it has in a file of `new_size` bytes, filled with zeros.
    /// `true` where it was staged: then it must be flushed before anything is put behind it.
    pub(super) fn fill_tail(&self, body: &mut Body, keys: &FileKeys, new_size: u64) -> Result<bool, FsError> {
        if !self.has_partial_tail(body, keys)? {
            return Ok(false);
        }
        let block = body.size / BLOCK;
        let grown = new_size.min((block + 1) * BLOCK);
        let mut data = [0; BLOCK_LEN];
        let data = &mut data[..layout::block_len(block, grown)];
        self.read_block(body, keys, block, data)?;
        let change = Change::of_block(keys, body.superblock.file_id, block, data);
        self.replace_block(body, keys, change, grown)
    }

    /// Puts a change of one block in place, or stages it where that block may be on stable storage; `true` then.
    pub(super) fn replace_block(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        mut change: Change,
        new_size: u64,
    ) -> Result<bool, FsError> {
        let staged = self.context.log.is_some() && change.first * BLOCK < body.border(new_size);
        if staged {
            let len = layout::block_len(change.first, new_size);
            self.stage(body, change.into_staged(len), new_size);
        } else {
            self.apply(body, keys, &mut change, new_size)?;
        }
        Ok(staged)
    }

    /// Puts `change` in place and gives the file `new_size` bytes, which is at least what it has.
    pub(super) fn apply(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        change: &mut Change,
        new_size: u64,
    ) -> Result<(), FsError> {
        let tail = take_inline_tail(change, new_size);
        let stored = change.entries.len() - usize::from(tail.is_some());
        let only_head = stored == 0 && (tail.is_some() || change.entries.is_empty());
        if !only_head || !touches_head(change) {
            body.mark_dirty(&self.lower)?;
        }
        if new_size > body.sealed.size + PROMISE_EVERY && body.size > body.sealed.size {
            // A recovery would not believe the length that this change leaves when it is cut; what was there counts.
            body.write_seal(&self.lower, State::Dirty, body.size)?;
        }
        let before = pages_before(body, &self.lower, keys, change)?;
        let after = pages_after(keys, change, &before);
        fill_gaps(change, &after);
        body.touched();
        if change.entries.is_empty() {
            // The lower filesystem may refuse the length: before anything else has it.
            self.lower.set_len(layout::lower_len(new_size))?;
        }
        let result = self.write_image(change, stored, new_size);
        if let Err(short) = result {
            return self.settle_short(body, keys, change, before, short);
        }
        self.commit(body, change, before, after, tail, new_size)
    }

    /// Writes the image of the first `stored` blocks; on an error tells how many whole blocks were written.
    fn write_image(&self, change: &Change, stored: usize, new_size: u64) -> Result<(), (usize, Errno)> {
        let Some(last) = (stored as u64).checked_sub(1).map(|n| change.first + n) else { return Ok(()) };
        let len = change.place(last) + layout::block_len(last, new_size);
        let base = layout::block_offset(change.first);
        self.lower.write_at(&change.image[..len], base).map_err(|(bytes, error)| {
            let whole = (change.first..=last).take_while(|b| change.place(*b) + BLOCK_LEN <= bytes).count();
            (whole, error)
        })
    }

    /// After a short write: keeps the blocks that were written whole, so that no block is left without its tag.
    fn settle_short(
        &self,
        body: &mut Body,
        keys: &FileKeys,
        change: &mut Change,
        before: Vec<(u64, CachedPage)>,
        (whole, error): (usize, Errno),
    ) -> Result<(), FsError> {
        change.entries.truncate(whole);
        change.short = true;
        let after = pages_after(keys, change, &before);
        for ((page_no, old), new) in before.into_iter().zip(after) {
            // Unsaved again: the image may have carried the page with tags of blocks that were not written.
            body.replace_page(page_no, &old, new);
        }
        let size = if whole == 0 { body.size } else { body.size.max((change.last() + 1) * BLOCK) };
        if size > body.size {
            body.set_size(size);
            body.set_tail(Vec::new());
        }
        body.length_unsaved = true;
        body.write_promise(&self.lower)?;
        Err(FsError::Os(error))
    }

    /// The data is in place: now the tags, the tail, the length.
    fn commit(
        &self,
        body: &mut Body,
        change: &Change,
        before: Vec<(u64, CachedPage)>,
        after: Vec<CachedPage>,
        tail: Option<Vec<u8>>,
        new_size: u64,
    ) -> Result<(), FsError> {
        let grown = new_size != body.size;
        // Otherwise the lower file has its length from the last block's data, or got it first.
        let sets_len = tail.is_some();
        // Where all tags are in the header page, a recovery takes the size from its seal.
        let sizes_head = grown && (!body.tail.is_empty() || layout::tag_page_count(new_size) == 1);
        let head = touches_head(change) || tail.is_some() || sizes_head;
        let in_image: Vec<u64> = before.iter().skip(1).map(|(no, _)| *no).collect();
        let first_page = before.first().map(|(no, _)| *no);
        for ((page_no, old), new) in before.into_iter().zip(after) {
            body.replace_page(page_no, &old, new);
        }
        // The image has stored these.
        for page_no in &in_image {
            body.unsaved.remove(page_no);
        }
        body.set_size(new_size);
        body.length_unsaved |= grown && sets_len;
        if let Some(tail) = tail {
            body.set_tail(tail);
        } else if !layout::tail_is_inline(new_size) || grown {
            body.set_tail(Vec::new());
        }
        if let Some(page_no) = first_page.filter(|no| *no != 0 && !in_image.contains(no)) {
            body.write_page(&self.lower, page_no)?;
        }
        if head {
            body.write_hot(&self.lower, State::Dirty, new_size)?;
        } else if new_size > body.sealed.size + PROMISE_EVERY {
            body.write_seal(&self.lower, State::Dirty, new_size)?;
        }
        if grown && sets_len {
            body.set_lower_len(&self.lower)?;
        }
        Ok(())
    }
}

/// Lower bytes from the place of block `first` to the end of block `last`.
fn image_len(first: u64, last: u64) -> usize {
    (layout::block_offset(last) + BLOCK - layout::block_offset(first)) as usize
}

/// Takes the last block out of the image where it goes to the header page.
fn take_inline_tail(change: &mut Change, new_size: u64) -> Option<Vec<u8>> {
    let block = new_size / BLOCK;
    if change.entries.is_empty() || change.last() != block || !layout::tail_is_inline(new_size) {
        return None;
    }
    let at = change.place(block);
    Some(change.image[at..at + layout::block_len(block, new_size)].to_vec())
}

fn touches_head(change: &Change) -> bool {
    layout::tag_page(change.first) == 0 && !change.entries.is_empty()
}

/// The tag pages that `change` touches, as they are.
fn pages_before(
    body: &Body,
    lower: &Lower,
    keys: &FileKeys,
    change: &Change,
) -> Result<Vec<(u64, CachedPage)>, FsError> {
    if change.entries.is_empty() {
        return Ok(Vec::new());
    }
    let pages = layout::tag_page(change.first)..=layout::tag_page(change.last());
    pages.map(|no| Ok((no, body.page(lower, keys, no)?.as_ref().clone()))).collect()
}

/// The same pages with the change's entries.
fn pages_after(keys: &FileKeys, change: &Change, before: &[(u64, CachedPage)]) -> Vec<CachedPage> {
    let with_entries = |(page_no, old): &(u64, CachedPage)| {
        let mut page = old.page.clone();
        for (block, entry) in (change.first..).zip(&change.entries) {
            if layout::tag_page(block) == *page_no {
                page.set(layout::entry_index(block), *entry);
            }
        }
        CachedPage::new(keys, *page_no, page)
    };
    before.iter().map(with_entries).collect()
}

/// Puts the tag pages that lie between the blocks into the image.
fn fill_gaps(change: &mut Change, after: &[CachedPage]) {
    let first_page = if change.entries.is_empty() { return } else { layout::tag_page(change.first) };
    for (page_no, page) in (first_page..).zip(after).skip(1) {
        let at = (layout::tag_page_offset(page_no) - layout::block_offset(change.first)) as usize;
        change.image[at..at + BLOCK_LEN].copy_from_slice(&page.page.encode(&page.mac)[..]);
    }
}
