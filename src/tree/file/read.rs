//! Reading a range: one positioned read of the lower file, then each block is opened into place.

use std::cell::RefCell;

use super::body::Body;
use super::{FileIo, Inner};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK, BLOCK_LEN};
use crate::format::tags::{Entry, HOLE, open_block};
use crate::tree::FsError;

thread_local! {
    /// Ciphertext of the request under way; as long as the largest request so far.
    static CIPHERTEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl FileIo {
    /// Appends up to `len` bytes from `offset` on to `out`; fewer at the end of the file.
    pub fn read(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FsError> {
        let inner = self.for_reading()?;
        let Inner::Loaded(body) = &*inner else { return Ok(()) };
        let end = offset.saturating_add(len as u64).min(body.size);
        if offset >= end {
            return Ok(());
        }
        let keys = body.keys()?;
        let start = out.len();
        out.resize(start + (end - offset) as usize, 0);
        let read = self.read_range(body, &keys, offset, &mut out[start..]);
        if !read.inspect_err(|_| out.truncate(start))? {
            self.lower.note_access();
        }
        Ok(())
    }

    /// Whether the lower file was read for it; else all was at hand.
    fn read_range(&self, body: &Body, keys: &FileKeys, offset: u64, out: &mut [u8]) -> Result<bool, FsError> {
        let end = offset + out.len() as u64;
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let entries = self.entries(body, keys, first, last)?;
        CIPHERTEXT.with_borrow_mut(|buffer| {
            let base = self.fetch(body, first, &entries, buffer)?;
            for (block, entry) in (first..).zip(&entries) {
                let start = (block * BLOCK).max(offset);
                let stop = ((block + 1) * BLOCK).min(end);
                let place = &mut out[(start - offset) as usize..(stop - offset) as usize];
                let source = stored(body, block, base.unwrap_or(0), buffer);
                open_part(body, keys, block, entry, source, (start - block * BLOCK) as usize, place)?;
            }
            Ok(base.is_some())
        })
    }

    /// The entries of the blocks `first..=last`.
    pub(super) fn entries(
        &self,
        body: &Body,
        keys: &FileKeys,
        first: u64,
        last: u64,
    ) -> Result<Vec<Entry>, FsError> {
        let mut entries = Vec::with_capacity((last - first + 1) as usize);
        let mut block = first;
        while block <= last {
            let page_no = layout::tag_page(block);
            let stop = layout::first_block(page_no + 1).min(last + 1);
            let from = layout::entry_index(block);
            let range = from..from + (stop - block) as usize;
            if page_no == 0 {
                entries.extend_from_slice(&body.head.page.entries()[range]);
            } else {
                entries.extend_from_slice(&body.page(&self.lower, keys, page_no)?.page.entries()[range]);
            }
            block = stop;
        }
        if !body.is_settled() || !body.repaired.is_empty() {
            for (block, entry) in (first..).zip(&mut entries) {
                *entry = body.waiting(block).map_or(*entry, |staged| staged.entry);
            }
        }
        Ok(entries)
    }

    /// Reads the ciphertext of all present blocks in one call; gives the lower offset where `buffer` begins, `None` where
    /// there was none to read.
    fn fetch(
        &self,
        body: &Body,
        first: u64,
        entries: &[Entry],
        buffer: &mut Vec<u8>,
    ) -> Result<Option<u64>, FsError> {
        let inline = body.inline_block();
        let stored = |(block, entry): &(u64, &Entry)| {
            **entry != HOLE && Some(*block) != inline && body.waiting(*block).is_none()
        };
        let mut present = (first..).zip(entries).filter(stored).map(|(block, _)| block);
        let Some(from) = present.next() else { return Ok(None) };
        let to = present.last().unwrap_or(from);
        let base = layout::block_offset(from);
        let stop = layout::block_offset(to) + layout::block_len(to, body.size) as u64;
        let len = (stop - base) as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let got = self.lower.read_at(&mut buffer[..len], base)?;
        buffer[got..len].fill(0);
        Ok(Some(base))
    }

    /// The plaintext of one block as the file has it now, zero-padded to `out`.
    pub(super) fn read_block(
        &self,
        body: &Body,
        keys: &FileKeys,
        block: u64,
        out: &mut [u8],
    ) -> Result<(), FsError> {
        out.fill(0);
        let len = layout::block_len(block, body.size).min(out.len());
        if len == 0 {
            return Ok(());
        }
        self.read_range(body, keys, block * BLOCK, &mut out[..len]).map(drop)
    }
}

/// Where the ciphertext of `block` is: waiting for its place, in the header page's tail or in the buffer that begins at `base`.
fn stored<'a>(body: &'a Body, block: u64, base: u64, buffer: &'a [u8]) -> &'a [u8] {
    if let Some(staged) = body.waiting(block) {
        return staged.data();
    }
    if body.inline_block() == Some(block) {
        return &body.tail;
    }
    let len = layout::block_len(block, body.size);
    let at = layout::block_offset(block).wrapping_sub(base) as usize;
    // A hole outside what was fetched has no ciphertext.
    buffer.get(at..at.wrapping_add(len)).unwrap_or(&[])
}

/// Opens `block` and copies from its byte `skip` on into `place`.
#[allow(clippy::too_many_arguments)] // One block's coordinates; a struct of them would be used here alone.
fn open_part(
    body: &Body,
    keys: &FileKeys,
    block: u64,
    entry: &Entry,
    source: &[u8],
    skip: usize,
    place: &mut [u8],
) -> Result<(), FsError> {
    if *entry == HOLE {
        place.fill(0);
        return Ok(());
    }
    let id = body.superblock.file_id;
    let wrong = || body.corrupt(format_args!("block {block} does not verify"));
    if skip == 0 && place.len() == source.len() {
        return open_block(keys, id, block, entry, source, place).map_err(|_| wrong());
    }
    let mut whole = [0; BLOCK_LEN];
    let whole = &mut whole[..source.len()];
    open_block(keys, id, block, entry, source, whole).map_err(|_| wrong())?;
    // What the log holds of it may be shorter than its place in the file.
    place.copy_from_slice(whole.get(skip..skip + place.len()).ok_or_else(wrong)?);
    Ok(())
}
