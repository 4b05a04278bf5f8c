//! SEEK_DATA and SEEK_HOLE (lseek(2)), exact by the tags.

use rustix::io::Errno;

use super::body::Body;
use super::{FileIo, Inner};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK};
use crate::format::tags::HOLE;
use crate::tree::FsError;

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

impl FileIo {
    /// The first offset from `offset` on that is data or hole; the end of the file counts as a hole. ENXIO past it.
    pub fn seek(&self, offset: u64, what: Seek) -> Result<u64, FsError> {
        let inner = self.for_reading()?;
        let Inner::Loaded(body) = &*inner else { return Err(FsError::Os(Errno::NXIO)) };
        if offset >= body.size {
            return Err(FsError::Os(Errno::NXIO));
        }
        let keys = body.keys()?;
        let count = layout::block_count(body.size);
        let mut block = offset / BLOCK;
        while block < count {
            if let Some(found) = self.find_in_page(body, &keys, block, what)? {
                return Ok((found * BLOCK).max(offset).min(body.size));
            }
            block = layout::first_block(layout::tag_page(block) + 1);
            if what == Seek::Data && block < count {
                block = self.next_present(body, block)?.unwrap_or(count);
            }
        }
        match what {
            Seek::Hole => Ok(body.size),
            Seek::Data => Err(FsError::Os(Errno::NXIO)),
        }
    }

    /// The first block from `block` on, within its tag page, that is what we look for.
    fn find_in_page(
        &self,
        body: &Body,
        keys: &FileKeys,
        block: u64,
        what: Seek,
    ) -> Result<Option<u64>, FsError> {
        let page_no = layout::tag_page(block);
        let stop = layout::first_block(page_no + 1).min(layout::block_count(body.size));
        let entries = self.entries(body, keys, block, stop - 1)?;
        let wanted = |entry: &[u8; 28]| (*entry == HOLE) == (what == Seek::Hole);
        Ok((block..stop).zip(&entries).find(|(_, entry)| wanted(entry)).map(|(block, _)| block))
    }

    /// The same, or a group in which a block waits for its place.
    pub(super) fn next_present(&self, body: &Body, block: u64) -> Result<Option<u64>, FsError> {
        let waiting = body.next_waiting(block).map(|at| block.max(layout::first_block(layout::tag_page(at))));
        Ok(self.skip_absent_groups(block)?.into_iter().chain(waiting).min())
    }

    /// The first block of the group from `block` on that the lower file holds anything for.
    pub(super) fn skip_absent_groups(&self, block: u64) -> Result<Option<u64>, FsError> {
        let offset = layout::tag_page_offset(layout::tag_page(block));
        let found = self.lower.next_data(offset)?.map(layout::block_at);
        Ok(found.map(|found| block.max(layout::first_block(layout::tag_page(found)))))
    }
}
