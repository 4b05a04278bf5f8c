//! Reading and checking the header of a file, and making the header of a new one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::body::{Body, CachedPage, CutOff, Misses, Promised};
use super::lower::Lower;
use super::record::Record;
use super::recover::Evidence;
use super::{FileContext, FileIo, Inner, Integrity};
use crate::crypto::{FileKeys, constant_time_eq};
use crate::format::header::{HeaderError, SLOTS_LEN, Slots, Superblock};
use crate::format::layout::{self, BLOCK, BLOCK_LEN};
use crate::format::seal::{SEAL_LEN, SEAL_OFFSETS, Seal, State};
use crate::format::tags::{HOLE, TagPage, tail_range};
use crate::format::{FileId, WrappedKey};
use crate::tree::{FreshKey, FsError, KeyError, KeyUser};

/// Files of up to this many tag pages have their root checked at open; larger ones when a tag page is missing, and by
/// the check. 16 pages are the tags of 9 MiB.
const CHECK_AT_OPEN_PAGES: u64 = 16;

fn damaged(what: &HeaderError) -> FsError {
    FsError::Corrupt(what.to_string())
}

fn slots_in(lower: OwnedFd) -> Option<Slots> {
    let mut head = [0; SLOTS_LEN];
    let read = Lower::new(lower).read_at(&mut head, 0);
    if read == Ok(SLOTS_LEN) { Slots::parse(&head).ok() } else { None }
}

impl FileContext {
    /// Whether any file is left to be repaired by the log of an unclean stop.
    pub fn has_old_records(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.old().has_records())
    }

    /// Whether the lower file `lower` is.
    pub fn is_in_old_records(&self, lower: OwnedFd) -> bool {
        let id = slots_in(lower).map(|slots| slots.superblock.file_id);
        self.log.as_ref().zip(id).is_some_and(|(log, id)| log.old().speaks_of(id))
    }

    /// The wrapped key in the lower file `lower`, not looked at any further.
    pub fn wrap_in(&self, lower: OwnedFd) -> Option<(FileId, WrappedKey)> {
        let slots = slots_in(lower)?;
        (slots.superblock.volume_id == self.volume_id)
            .then(|| (slots.superblock.file_id, slots.active().wrapped.clone()))
    }
}

impl FileIo {
    /// Reads the header, gets the key, checks seal, size and tags, and repairs what a crash left.
    pub(super) fn load(&self) -> Result<Inner, FsError> {
        let lower_len = self.lower.len()?;
        if lower_len == 0 {
            return Ok(Inner::Empty(None));
        }
        let mut page = Box::new([0; BLOCK_LEN]);
        if self.header_was_lost(lower_len)? {
            self.resized.store(true, Ordering::Relaxed);
            return Ok(Inner::Empty(None));
        }
        if lower_len < BLOCK || self.lower.read_at(&mut page[..], 0)? < BLOCK_LEN {
            return Err(FsError::Corrupt(format!("cut inside the header ({lower_len} bytes)")));
        }
        let slots = self.slots(&page)?;
        let keys = self.unwrap(&slots)?;
        let mut body = Self::parse_body(slots, keys, &page)?;
        self.check_size(&mut body, lower_len)?;
        if self.context.integrity == Integrity::File {
            let keys = body.keys()?;
            body.pin_pages(&self.lower, &keys)?;
        }
        // Only what is stored repaired makes its records superfluous.
        if let Some(log) =
            self.context.log.as_ref().filter(|_| !self.context.read_only && !body.is_unsealed())
        {
            log.old().resolve(body.superblock.file_id);
        }
        self.resized.store(body.size != layout::plain_size(lower_len), Ordering::Relaxed);
        body.session = self.session();
        body.guarded = body.size;
        Ok(Inner::Loaded(Box::new(body)))
    }

    /// ARN of the master key that the file is under, or will be; asks for no key. `None` for an empty file without one.
    pub fn key_arn(&self) -> Result<Option<String>, FsError> {
        if let Some((_, wrapped)) = self.wrapped() {
            return Ok(Some(wrapped.key_arn));
        }
        let mut page = Box::new([0; BLOCK_LEN]);
        if self.lower.len()? < BLOCK || self.lower.read_at(&mut page[..], 0)? < BLOCK_LEN {
            return Ok(None);
        }
        Ok(Some(self.slots(&page)?.active().wrapped.key_arn.clone()))
    }

    /// The number of this mount.
    pub(super) fn session(&self) -> u32 {
        self.context.log.as_ref().map_or(0, |log| log.session)
    }

    /// A new file of which later pages reached the disk before a power cut and the header did not: it was never synced,
    /// and is empty. Without an unclean stop this is damage.
    fn header_was_lost(&self, lower_len: u64) -> Result<bool, FsError> {
        let Some(log) = self.context.log.as_ref().filter(|log| log.old().any_unclean()) else {
            return Ok(false);
        };
        let mut page = [0; BLOCK_LEN];
        let read = self.lower.read_at(&mut page, 0)?;
        if log.session == 0 && !self.context.read_only || page[..read].iter().any(|b| *b != 0) {
            return Ok(false);
        }
        log::warn!(
            "a file of {lower_len} lower bytes never got its header before an unclean stop: it is empty"
        );
        if !self.context.read_only {
            match self.lower.set_len(0) {
                Ok(()) | Err(Errno::INVAL | Errno::BADF) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
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
            stored: sealed.size,
            firm: sealed.firm,
            guarded: 0,
            unsynced: true,
            changes: 0,
            cuts: 0,
            cut_off: CutOff::Gone,
            session: sealed.session,
            place: sealed.place,
            staged: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            promised: Promised::default(),
            repaired: BTreeMap::new(),
            seal_stored: true,
            root: sealed.root,
            sealed,
            seal_bytes: SEAL_OFFSETS
                .map(|at| *page[at..].first_chunk::<SEAL_LEN>().expect("inside the page")),
            holes_trusted: AtomicBool::new(false),
            head: CachedPage::checked(&keys, 0, head, TagPage::stored_head_mac(page)),
            tail: page[tail_range(tail_len)].to_vec(),
            pages: Mutex::new(HashMap::new()),
            pins: Mutex::new(None),
            misses: Misses::default(),
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
        let place = self.place().unwrap_or(body.place);
        if let Some(evidence) = self.evidence(body)? {
            // A rename may have been cut short: the place is where the file was found.
            body.place = place;
            return self.recover(body, &evidence);
        }
        if !constant_time_eq(&body.place, &place) {
            return Err(
                body.corrupt("it does not belong here: it was sealed under another name or directory")
            );
        }
        if body.sealed.session != self.session() {
            // That mount ended well, and made everything durable.
            body.firm = body.size;
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
            if !constant_time_eq(&body.head.term, &body.root) {
                return Err(body.corrupt("the tags are not those that were sealed: a block was put back"));
            }
            body.holes_trusted.store(true, Ordering::Release);
        } else if self.context.integrity == Integrity::Auto && pages <= CHECK_AT_OPEN_PAGES {
            let keys = body.keys()?;
            body.check_root(&self.lower, &keys)?;
        }
        Ok(())
    }

    /// What a crash left to repair.
    fn evidence(&self, body: &Body) -> Result<Option<Evidence>, FsError> {
        let keys = body.keys()?;
        let Some(log) = &self.context.log else {
            let crashed = body.sealed.state != State::Clean;
            return Ok(crashed.then(|| Evidence { seal: body.sealed, records: Vec::new() }));
        };
        let with_seal = |(session, record): (u32, Record<Vec<u8>>)| {
            let bytes = record.seal.as_ref();
            (session, bytes.and_then(|bytes| Seal::parse(&keys, &body.superblock_bytes, bytes)), record)
        };
        let found: Vec<_> = log.old().of(&keys, body.superblock.file_id).into_iter().map(with_seal).collect();
        let seals = found.iter().filter_map(|(_, seal, _)| *seal).chain([body.sealed]);
        let seal = seals.max_by_key(|seal| seal.epoch).unwrap_or(body.sealed);
        if seal.state != State::Clean && !log.may_be_dirty(seal.session) {
            return Err(body.corrupt(
                "its seal says that it is being written, by a mount that ended well: an older header was put back, \
                 or the log of an unclean stop was taken away",
            ));
        }
        // What was written before the file was last repaired and sealed is void.
        let current = found.into_iter().filter(|(session, ..)| *session == seal.session);
        let records: Vec<_> = current.map(|(_, seal, record)| (seal, record)).collect();
        let crashed =
            seal.state != State::Clean || log.old().was_unclean(seal.session) || !records.is_empty();
        Ok(crashed.then_some(Evidence { seal, records }))
    }

    /// The state of a file that is to get its header, and the slots of that header.
    pub(super) fn new_body(
        &self,
        reserved: Option<Box<FreshKey>>,
    ) -> Result<(Body, [u8; SLOTS_LEN]), FsError> {
        let fresh = match reserved {
            Some(fresh) => *fresh,
            None => self.context.keys.fresh(self.choice.as_deref(), KeyUser::Mount)?,
        };
        let keys = Arc::new(FileKeys::derive(&fresh.data_key, &fresh.file_id.0));
        let superblock = Superblock::new(self.context.volume_id, fresh.file_id, *keys.commitment());
        let superblock_bytes = superblock.encode();
        let slots = Slots::new(superblock, fresh.wrapped);
        let session = self.session();
        let place = self.place().unwrap_or_default();
        let sealed = Seal { epoch: 0, size: 0, root: [0; 16], state: State::Dirty, firm: 0, session, place };
        let slots_bytes = slots.encode().map_err(|e| damaged(&e))?;
        let body = Body {
            superblock_bytes,
            wrapped: slots.active().wrapped.clone(),
            superblock: slots.superblock.clone(),
            size: 0,
            stored: 0,
            firm: 0,
            guarded: 0,
            unsynced: true,
            changes: 0,
            cuts: 0,
            cut_off: CutOff::Gone,
            session,
            place,
            staged: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            promised: Promised::default(),
            repaired: BTreeMap::new(),
            seal_stored: true,
            root: sealed.root,
            sealed,
            seal_bytes: [[0; SEAL_LEN]; 2],
            holes_trusted: AtomicBool::new(true),
            head: CachedPage::new(&keys, 0, TagPage::empty(0)),
            tail: Vec::new(),
            pages: Mutex::new(HashMap::new()),
            pins: Mutex::new(None),
            misses: Misses::default(),
            unsaved: BTreeSet::new(),
            length_unsaved: false,
            keys: Some(keys),
        };
        Ok((body, slots_bytes))
    }

    /// Gives an empty lower file its header.
    pub(super) fn make_header(&self, reserved: Option<Box<FreshKey>>) -> Result<Body, FsError> {
        let (mut body, slots) = self.new_body(reserved)?;
        let keys = body.keys()?;
        body.note_next(&keys, body.next_seal(State::Dirty, 0));
        body.seal_stored = true;
        let mut page = body.hot_page(0);
        page[..SLOTS_LEN].copy_from_slice(&slots);
        if let Err((_, e)) = self.lower.write_at(&page[..], 0) {
            // A header cut short would read as damage: leave the file as empty as it was.
            self.lower.set_len(0)?;
            return Err(FsError::Os(e));
        }
        Ok(body)
    }
}
