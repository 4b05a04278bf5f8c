//! Checking every byte of one file, for the check of a volume.

use super::body::Body;
use super::{FileIo, Inner};
use crate::crypto::FileKeys;
use crate::format::layout::{self, BLOCK_LEN};
use crate::format::tags::HOLE;
use crate::tree::FsError;

/// When the root of a file is compared: whether its blocks are some version of themselves each, or together the state
/// that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Integrity {
    /// At open where that takes up to 16 tag pages; larger files when a tag page is missing, and by the check.
    #[default]
    Auto,
    /// When a tag page is missing, and by the check.
    Block,
    /// At open, whatever the size; and no tag page that is read again later may be an older one.
    File,
}

/// What a full check of one file found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that hold data and verify.
    pub blocks: u64,
    /// Blocks that are holes.
    pub holes: u64,
    /// What is wrong, block by block.
    pub problems: Vec<String>,
}

/// Most problems that are listed of one file.
const PROBLEMS_MAX: usize = 100;

impl Verified {
    /// Lists a problem once: a damaged tag page is met by each of its blocks.
    fn note(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

impl FileIo {
    /// Checks root, every tag and every block. An error means that the file does not open at all.
    pub fn verify(&self) -> Result<Verified, FsError> {
        let inner = self.for_reading()?;
        let mut found = Verified::default();
        let Inner::Loaded(body) = &*inner else { return Ok(found) };
        let keys = body.keys()?;
        if let Err(e) = body.check_root(&self.lower, &keys) {
            found.note(e.to_string());
        }
        let count = layout::block_count(body.size);
        let mut block = 0;
        while block < count {
            let stop = layout::first_block(layout::tag_page(block) + 1).min(count);
            (block..stop).for_each(|block| self.verify_block(body, &keys, block, &mut found));
            let next = if stop < count {
                self.next_present(body, stop)?.map_or(count, |b| b.min(count))
            } else {
                stop
            };
            found.holes += next - stop;
            block = next;
        }
        Ok(found)
    }

    /// Cuts off what stands behind the end of a file whose seal is clean. Gives how many bytes that were.
    pub fn cut_surplus(&self) -> Result<u64, FsError> {
        let sealed = self.sealed_clean_len()?;
        let surplus = self.lower.len()?.saturating_sub(sealed.unwrap_or(u64::MAX));
        if surplus > 0 {
            self.lower.keeping_mtime(|| self.lower.set_len(sealed.unwrap_or(u64::MAX)))?;
            self.lower.sync(false)?;
        }
        Ok(surplus)
    }

    fn verify_block(&self, body: &Body, keys: &FileKeys, block: u64, found: &mut Verified) {
        let mut data = [0; BLOCK_LEN];
        let data = &mut data[..layout::block_len(block, body.size)];
        let entry = body.entry(&self.lower, keys, block);
        match entry.and_then(|entry| self.read_block(body, keys, block, data).map(|()| entry == HOLE)) {
            Ok(true) => found.holes += 1,
            Ok(false) => found.blocks += 1,
            Err(e) => found.note(e.to_string()),
        }
    }
}
