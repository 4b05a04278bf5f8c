//! Reading and checking the header of a file, and making the header of a new one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::body::{Body, CachedPage};
use super::{FileIo, Inner};
use crate::crypto::{FileKeys, constant_time_eq};
use crate::format::header::{HeaderError, SLOTS_LEN, Slots, Superblock};
use crate::format::layout::{self, BLOCK, BLOCK_LEN};
use crate::format::seal::{SEAL_LEN, SEAL_OFFSETS, Seal, State};
use crate::format::tags::{HOLE, TagPage, tail_range};
use crate::tree::{FreshKey, FsError, KeyError};

/// Files of up to this many tag pages have their root checked at open; larger ones when a tag page is missing, and by
/// the check. 16 pages are the tags of 9 MiB.
const CHECK_AT_OPEN_PAGES: u64 = 16;

fn damaged(what: &HeaderError) -> FsError {
    FsError::Corrupt(what.to_string())
}

impl FileIo {
    /// Reads the header, gets the key, checks seal, size and tags, and repairs what a crash left.
    pub(super) fn load(&self) -> Result<Inner, FsError> {
        let lower_len = self.lower.len()?;
        if lower_len == 0 {
            return Ok(Inner::Empty(None));
        }
        let mut page = Box::new([0; BLOCK_LEN]);
        if lower_len < BLOCK || self.lower.read_at(&mut page[..], 0)? < BLOCK_LEN {
            return Err(FsError::Corrupt(format!("cut inside the header ({lower_len} bytes)")));
        }
        let slots = self.slots(&page)?;
        let keys = self.unwrap(&slots)?;
        let mut body = Self::parse_body(slots, keys, &page)?;
        self.check_size(&mut body, lower_len)?;
        // Only what is stored repaired makes its records superfluous.
        if let Some(log) =
            self.context.log.as_ref().filter(|_| !self.context.read_only && !body.is_unsealed())
        {
            log.resolve(body.superblock.file_id);
        }
        Ok(Inner::Loaded(Box::new(body)))
    }

    fn slots(&self, page: &[u8; BLOCK_LEN]) -> Result<Slots, FsError> {
        let head = page.first_chunk::<SLOTS_LEN>().expect("the slots are part of the page");
        let slots = Slots::parse(head).map_err(|e| damaged(&e))?;
        if slots.superblock.volume_id != self.context.volume_id {
            return Err(FsError::Corrupt(format!(
                "file {} belongs to volume {}, not to this one",
                slots.superblock.file_id, slots.superblock.volume_id
            )));
        }
        Ok(slots)
    }

    fn unwrap(&self, slots: &Slots) -> Result<Arc<FileKeys>, FsError> {
        let file_id = slots.superblock.file_id;
        let dek = self.context.keys.unwrap(file_id, &slots.active().wrapped)?;
        let keys = FileKeys::derive(&dek, &file_id.0);
        if !constant_time_eq(keys.commitment(), &slots.superblock.commitment) {
            let why = format!("file {file_id}: the key service returned a key this file was not made with");
            return Err(FsError::Key(KeyError::Invalid(why)));
        }
        Ok(Arc::new(keys))
    }

    /// Gets the keys anew after they were dropped, from the slot that counts now (a rewrap may have run meanwhile).
    pub(super) fn reload_keys(&self, body: &mut Body) -> Result<(), FsError> {
        let mut page = Box::new([0; BLOCK_LEN]);
        self.lower.read_at(&mut page[..], 0)?;
        let slots = self.slots(&page)?;
        if slots.superblock != body.superblock {
            return Err(body.corrupt("the header was replaced while the file was open"));
        }
        body.keys = Some(self.unwrap(&slots)?);
        body.wrapped = slots.active().wrapped.clone();
        Ok(())
    }

    fn parse_body(slots: Slots, keys: Arc<FileKeys>, page: &[u8; BLOCK_LEN]) -> Result<Body, FsError> {
        let superblock_bytes = slots.superblock.encode();
        let file_id = slots.superblock.file_id;
        let corrupt = |what: &str| FsError::Corrupt(format!("file {file_id}: {what}"));
        let sealed =
            Seal::latest(&keys, &superblock_bytes, page).ok_or_else(|| corrupt("neither seal opens"))?;
        let blocks = layout::block_count(sealed.size);
        let head = TagPage::parse_head(&keys, page, blocks)
            .map_err(|_| corrupt("the tags in the header do not verify"))?;
        let last = sealed.size / BLOCK;
        let has_tail = layout::tail_is_inline(sealed.size) && *head.entry(last as usize) != HOLE;
        let tail_len = if has_tail { layout::block_len(last, sealed.size) } else { 0 };
        Ok(Body {
            superblock_bytes,
            wrapped: slots.active().wrapped.clone(),
            superblock: slots.superblock,
            size: sealed.size,
            root: sealed.root,
            sealed,
            seal_bytes: SEAL_OFFSETS
                .map(|at| *page[at..].first_chunk::<SEAL_LEN>().expect("inside the page")),
            holes_trusted: AtomicBool::new(false),
            head: CachedPage::new(&keys, 0, head),
            tail: page[tail_range(tail_len)].to_vec(),
            pages: Mutex::new(HashMap::new()),
            unsaved: BTreeSet::new(),
            length_unsaved: false,
            keys: Some(keys),
        })
    }

    /// The lower length that a clean seal asks for; `None` for a file without one.
    pub(super) fn sealed_clean_len(&self) -> Result<Option<u64>, FsError> {
        let mut page = Box::new([0; BLOCK_LEN]);
        if self.lower.read_at(&mut page[..], 0)? < BLOCK_LEN {
            return Ok(None);
        }
        let slots = self.slots(&page)?;
        let keys = self.unwrap(&slots)?;
        let body = Self::parse_body(slots, keys, &page)?;
        Ok((body.sealed.state == State::Clean).then(|| layout::lower_len(body.size)))
    }

    /// Holds the lower length against the sealed size, and the tags against the root where they are few.
    fn check_size(&self, body: &mut Body, lower_len: u64) -> Result<(), FsError> {
        if body.sealed.state != State::Clean {
            return self.recover(body, lower_len);
        }
        let expected = layout::lower_len(body.size);
        if lower_len != expected {
            let how = if lower_len < expected { "cut" } else { "extended" };
            return Err(body.corrupt(format_args!(
                "the file was {how}: {lower_len} bytes instead of {expected} for its {} bytes of data",
                body.size
            )));
        }
        let pages = layout::tag_page_count(body.size);
        if pages == 1 {
            if body.head.term != body.root {
                return Err(body.corrupt("the tags are not those that were sealed: a block was put back"));
            }
            body.holes_trusted.store(true, Ordering::Release);
        } else if pages <= CHECK_AT_OPEN_PAGES {
            let keys = body.keys()?;
            body.check_root(&self.lower, &keys)?;
        }
        Ok(())
    }

    /// Gives an empty lower file its header.
    pub(super) fn make_header(&self, reserved: Option<Box<FreshKey>>) -> Result<Body, FsError> {
        let fresh = match reserved {
            Some(fresh) => *fresh,
            None => self.context.keys.fresh(None)?,
        };
        let keys = Arc::new(FileKeys::derive(&fresh.data_key, &fresh.file_id.0));
        let superblock = Superblock::new(self.context.volume_id, fresh.file_id, *keys.commitment());
        let superblock_bytes = superblock.encode();
        let slots = Slots::new(superblock, fresh.wrapped);
        let sealed = Seal { epoch: 1, size: 0, root: [0; 16], state: State::Dirty };
        let mut seal_bytes = [[0; SEAL_LEN]; 2];
        seal_bytes[1] = sealed.encode(&keys, &superblock_bytes);
        let body = Body {
            superblock_bytes,
            wrapped: slots.active().wrapped.clone(),
            superblock: slots.superblock.clone(),
            size: 0,
            root: sealed.root,
            sealed,
            seal_bytes,
            holes_trusted: AtomicBool::new(true),
            head: CachedPage::new(&keys, 0, TagPage::empty(0)),
            tail: Vec::new(),
            pages: Mutex::new(HashMap::new()),
            unsaved: BTreeSet::new(),
            length_unsaved: false,
            keys: Some(keys),
        };
        let mut page = body.hot_page(0);
        page[..SLOTS_LEN].copy_from_slice(&slots.encode().map_err(|e| damaged(&e))?);
        if let Err((_, e)) = self.lower.write_at(&page[..], 0) {
            // A header cut short would read as damage: leave the file as empty as it was.
            self.lower.set_len(0)?;
            return Err(FsError::Os(e));
        }
        Ok(body)
    }
}
