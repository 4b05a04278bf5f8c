//! The first write of a file: header, tags and data in one call on the lower file.
//!
//! Called by `write`. Most files are written once, from their beginning, in one request. The seal says that the file is
//! being written, as any other until the close: a clean one here would let somebody put the file back to what its first
//! write left, as if it had been closed like that. Must leave the lower file empty where it fails.

use super::body::CachedPage;
use super::{FileIo, Inner};
use crate::crypto::random_nonces;
use crate::format::header::SLOTS_LEN;
use crate::format::layout::{self, BLOCK, BLOCK_LEN, HEAD_BLOCKS};
use crate::format::seal::State;
use crate::format::tags::{TagPage, seal_block};
use crate::tree::FsError;

impl FileIo {
    /// Writes `data` where that makes the whole file; `false` where there is something already, or `data` is more than
    /// the header page has tags for.
    pub(super) fn write_first(&self, data: &[u8]) -> Result<bool, FsError> {
        let fits = data.len() as u64 <= HEAD_BLOCKS * BLOCK && !self.context.read_only;
        if !fits || self.has_header() {
            return Ok(false);
        }
        let mut inner = self.for_writing()?;
        let Inner::Empty(reserved) = &mut *inner else { return Ok(false) };
        let (mut body, slots) = self.new_body(reserved.take())?;
        let (keys, id, size) = (body.keys()?, body.superblock.file_id, data.len() as u64);
        // The header page, then the blocks at their places, which follow it.
        let mut image = Vec::with_capacity(BLOCK_LEN + data.len());
        image.resize(BLOCK_LEN, 0);
        image.extend_from_slice(data);
        let mut page = TagPage::empty(0);
        let mut nonces = [[0; 12]; HEAD_BLOCKS as usize];
        random_nonces(&mut nonces[..layout::block_count(size) as usize]);
        for (index, block) in image[BLOCK_LEN..].chunks_mut(BLOCK_LEN).enumerate() {
            page.set(index, seal_block(&keys, id, index as u64, &nonces[index], block));
        }
        if layout::tail_is_inline(size) {
            body.set_tail(image.split_off(BLOCK_LEN + (size / BLOCK * BLOCK) as usize));
        }
        let empty = body.head.clone();
        body.replace_page(0, &empty, CachedPage::new(&keys, 0, page));
        body.set_size(size);
        body.note_next(&keys, body.next_seal(State::Dirty, size));
        body.seal_stored = true;
        image[..BLOCK_LEN].copy_from_slice(&body.hot_page(size)[..]);
        image[..SLOTS_LEN].copy_from_slice(&slots);
        body.touched();
        if let Err((_, e)) = self.lower.write_at(&image, 0) {
            self.lower.set_len(0)?;
            return Err(FsError::Os(e));
        }
        body.unsaved.remove(&0);
        let sets_len = !body.tail.is_empty();
        body.length_unsaved = sets_len;
        *inner = Inner::Loaded(Box::new(body));
        if let (true, Inner::Loaded(body)) = (sets_len, &mut *inner) {
            body.set_lower_len(&self.lower)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lower::trace::{self, Change};
    use super::super::tests::{Bench, contents};
    use crate::format::seal::SEAL_LEN;

    fn changes_of(work: impl FnOnce()) -> Vec<Change> {
        trace::start();
        work();
        trace::stop().into_iter().map(|(_, change)| change).collect()
    }

    #[test]
    fn a_new_file_costs_one_write_one_change_of_length_and_a_seal() {
        for (len, written, length) in [(100, 4096, 4196), (10_000, 3 * 4096, 4096 + 10_000)] {
            let bench = Bench::new();
            let file = bench.mount();
            let changes = changes_of(|| {
                file.write(0, &vec![7; len]).unwrap();
                file.seal().unwrap();
            });
            let [Change::Write(0, all), Change::Length(to), Change::Write(_, seal)] = &changes[..] else {
                panic!("{changes:?}")
            };
            assert_eq!((all.len(), *to, seal.len()), (written, length, SEAL_LEN));
            drop(file);
            assert_eq!(contents(&bench.mount()), vec![7; len]);
        }
    }

    #[test]
    fn what_was_synced_right_after_the_first_write_changes_by_way_of_the_log() {
        let bench = Bench::new();
        let file = bench.mount();
        file.write(0, &[1; 8192]).unwrap();
        assert!(!changes_of(|| file.write(0, &[2; 4096]).unwrap()).is_empty(), "it was never synced");
        let bench = Bench::new();
        let file = bench.mount();
        file.write(0, &[1; 8192]).unwrap();
        file.sync(false).unwrap();
        assert!(changes_of(|| file.write(0, &[2; 4096]).unwrap()).is_empty(), "it waits for the log");
        assert_eq!(contents(&file)[..4096], [2; 4096]);
    }
}
