//! Plaintext I/O on the lower file of one regular file.
//!
//! Called by the rest of `tree` for open inodes, and by the check. One [`FileIo`] serves all handles of an inode.
//! Must never release plaintext that did not verify, nor leave a block that neither its stored nor its logged tag fits.

mod body;
#[cfg(test)]
mod cut_states;
#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod end_tests;
mod first;
#[cfg(test)]
mod limit_tests;
mod load;
mod log;
mod lower;
mod old_logs;
#[cfg(test)]
mod op_tests;
mod read;
mod record;
mod recover;
mod resize;
mod seek;
mod stage;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
pub(crate) mod tests;
mod verify;
#[cfg(test)]
mod whole_tests;
mod write;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use super::{Asker, FreshKey, FsError, KeySource, KeyUser};
use crate::crypto::{FileKeys, Place};
use crate::format::seal::State;
use crate::format::{FileId, VolumeId, WrappedKey, layout};
use body::Body;
use lower::Lower;

#[cfg(test)]
pub(super) use lower::fault;

pub use log::{Durability, LOG_NAME, LastEnd, TagLog, ended_cleanly};
pub use resize::Allocate;
pub use seek::Seek;
pub use stage::{Stage, start_flusher};
pub use verify::{Integrity, Verified};

/// What all files of one mount share.
pub struct FileContext {
    /// The volume; a file of another one does not open.
    pub volume_id: VolumeId,
    /// Where data keys come from.
    pub keys: Arc<dyn KeySource>,
    /// Nothing is written, recoveries stay in memory.
    pub read_only: bool,
    /// The tag log; `None` only where nothing is ever overwritten.
    pub log: Option<TagLog>,
    /// What waits to be put in place.
    pub stage: Stage,
    /// When roots are compared.
    pub integrity: Integrity,
}

/// What is known of the lower file.
enum Inner {
    /// Nothing yet.
    Unread,
    /// Zero bytes long: an empty file that has no header. A key may be reserved for the one it gets.
    Empty(Option<Box<FreshKey>>),
    /// Header read and checked.
    Loaded(Box<Body>),
}

/// The data of one regular file.
pub struct FileIo {
    lower: Arc<Lower>,
    context: Arc<FileContext>,
    inner: RwLock<Inner>,
    /// The master key that the file will be under once it has a header; `None` for the volume's default key.
    choice: Option<Arc<str>>,
    /// Held by whoever appends to the log, before `inner`.
    flushing: Mutex<()>,
    /// Owner or permissions have changed, or may have, since the lower file was last synced with its attributes.
    attributes_unsynced: AtomicBool,
    /// How many syncs have failed, and how the last of them did.
    failures: Mutex<(u32, Option<Errno>)>,
    /// A repair gave the file another size than its lower length told.
    resized: AtomicBool,
    /// Where the file stands, on a volume that binds names.
    place: Mutex<Option<Place>>,
    me: Weak<Self>,
}

impl FileIo {
    /// Takes over the lower file, opened for reading and, unless the mount is read-only, writing. Asks for no key.
    /// Bound to `place` where that is known, else to wherever its seal says.
    pub fn new(fd: OwnedFd, context: Arc<FileContext>, place: Option<Place>) -> Arc<Self> {
        Self::with_choice(fd, context, place, None)
    }

    /// The same, for a file that will be under the master key `choice` if it is empty.
    pub fn with_choice(
        fd: OwnedFd,
        context: Arc<FileContext>,
        place: Option<Place>,
        choice: Option<Arc<str>>,
    ) -> Arc<Self> {
        Self::with(fd, context, Inner::Unread, place, choice)
    }

    /// A new file's: the lower file was just made and is empty. `reserved` is the key its first write will use.
    pub fn new_empty(
        fd: OwnedFd,
        context: Arc<FileContext>,
        reserved: Option<FreshKey>,
        place: Option<Place>,
        choice: Option<Arc<str>>,
    ) -> Arc<Self> {
        Self::with(fd, context, Inner::Empty(reserved.map(Box::new)), place, choice)
    }

    fn with(
        fd: OwnedFd,
        context: Arc<FileContext>,
        inner: Inner,
        place: Option<Place>,
        choice: Option<Arc<str>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            lower: Arc::new(Lower::new(fd)),
            context,
            inner: RwLock::new(inner),
            choice,
            flushing: Mutex::new(()),
            attributes_unsynced: AtomicBool::new(true),
            failures: Mutex::default(),
            resized: AtomicBool::new(false),
            place: Mutex::new(place),
            me: me.clone(),
        })
    }

    /// The lower file, for operations that concern its inode.
    pub fn lower_fd(&self) -> BorrowedFd<'_> {
        self.lower.as_fd()
    }

    /// Changes attributes of the lower file, `times_only` or others too. Nothing that keeps times runs meanwhile.
    pub fn with_attributes<R>(&self, times_only: bool, change: impl FnOnce() -> R) -> R {
        let _nobody_else = self.inner.write();
        if !times_only {
            self.attributes_unsynced.store(true, Ordering::Release);
        }
        change()
    }

    /// Plaintext size in bytes. Asks for no key.
    pub fn size(&self) -> Result<u64, FsError> {
        match &*self.inner.read() {
            Inner::Unread => Ok(layout::plain_size(self.lower.len()?)),
            Inner::Empty(_) => Ok(0),
            Inner::Loaded(body) => Ok(body.size),
        }
    }

    /// Whether a repair changed the size; told once.
    pub fn take_resized(&self) -> bool {
        self.resized.load(Ordering::Relaxed) && self.resized.swap(false, Ordering::Relaxed)
    }

    /// Makes sure that header and key are at hand, so that an open fails where a read would.
    pub fn ensure_keys(&self) -> Result<(), FsError> {
        self.for_reading().map(drop)
    }

    /// Makes sure that a write will find a key, so that opening for writing fails where the first write would; with
    /// the kernel's write-back cache that write comes after the program has gone.
    pub fn ensure_keys_for_write(&self, asker: Asker) -> Result<(), FsError> {
        self.ensure_keys()?;
        let user = asker.user();
        let serves = |key: &FreshKey| user == KeyUser::Mount || key.user == user;
        if !matches!(&*self.inner.read(), Inner::Empty(reserved) if !reserved.as_deref().is_some_and(serves))
        {
            return Ok(());
        }
        let fresh = Box::new(self.context.keys.fresh(self.choice.as_deref(), user)?);
        if let Inner::Empty(reserved) = &mut *self.inner.write()
            && !reserved.as_deref().is_some_and(serves)
        {
            *reserved = Some(fresh);
        }
        Ok(())
    }

    /// Refuses an asker that may not use the file's key. An empty file has none; to `write`, one is reserved for the
    /// asker.
    pub fn admit(&self, asker: Asker, write: bool) -> Result<(), FsError> {
        let keys = &self.context.keys;
        if asker == Asker::Mount {
            return Ok(());
        }
        {
            let inner = self.for_reading()?;
            if let Inner::Loaded(body) = &*inner {
                let admitted = match asker {
                    Asker::Caller(uid) => keys.permit(uid, body.superblock.file_id, &body.wrapped),
                    Asker::Holder(uid) => keys.check_holder(uid, body.superblock.file_id, &body.wrapped),
                    Asker::Mount => Ok(()),
                };
                return admitted.map_err(FsError::Key);
            }
        }
        if write { self.ensure_keys_for_write(asker) } else { Ok(()) }
    }

    /// Gives an empty file its header, under a key that `fresh` makes. ENOTEMPTY where it has one.
    pub fn begin_under(&self, fresh: impl FnOnce() -> Result<FreshKey, FsError>) -> Result<(), FsError> {
        let mut inner = self.for_writing()?;
        if !matches!(&*inner, Inner::Empty(_)) {
            return Err(FsError::Os(Errno::NOTEMPTY));
        }
        if self.context.read_only {
            return Err(FsError::Os(Errno::ROFS));
        }
        *inner = Inner::Loaded(Box::new(self.make_header(Some(Box::new(fresh()?)))?));
        Ok(())
    }

    /// Whether the file has a header, and it was read.
    pub fn has_header(&self) -> bool {
        matches!(&*self.inner.read(), Inner::Loaded(_))
    }

    /// The wrapped key and identity, where the file has a header that was read, or a key reserved for it.
    pub fn wrapped(&self) -> Option<(FileId, WrappedKey)> {
        match &*self.inner.read() {
            Inner::Loaded(body) => Some((body.superblock.file_id, body.wrapped.clone())),
            Inner::Empty(reserved) => reserved.as_ref().map(|key| (key.file_id, key.wrapped.clone())),
            Inner::Unread => None,
        }
    }

    /// The file's keys and identity, making a header where there is none: for a write.
    fn keys_for_write(&self) -> Result<(Arc<FileKeys>, FileId), FsError> {
        let mut inner = self.for_writing()?;
        let (body, keys) = self.body_for_write(&mut inner)?;
        Ok((keys, body.superblock.file_id))
    }

    /// The same for extended attributes, for which a header may be made, but not the time of the last write changed.
    pub fn keys_for_attributes(&self) -> Result<(Arc<FileKeys>, FileId), FsError> {
        if matches!(&*self.for_reading()?, Inner::Empty(_)) {
            let mut inner = self.for_writing()?;
            self.lower.keeping_mtime(|| self.body_for_write(&mut inner).map(drop))?;
        }
        self.keys_for_write()
    }

    /// The file's keys and identity; `None` for a file without header.
    pub fn keys_for_read(&self) -> Result<Option<(Arc<FileKeys>, FileId)>, FsError> {
        let inner = self.for_reading()?;
        let Inner::Loaded(body) = &*inner else { return Ok(None) };
        Ok(Some((body.keys()?, body.superblock.file_id)))
    }

    /// Forgets the keys (not the metadata). The next use asks the key source again.
    pub fn drop_keys(&self) {
        // What waits needs its keys; where it cannot be put in place now, it waits for them to come back.
        if let Err(e) = self.flush() {
            ::log::warn!("overwritten blocks wait for their place and their key: {e}");
        }
        match &mut *self.inner.write() {
            Inner::Unread => {}
            Inner::Empty(reserved) => *reserved = None,
            Inner::Loaded(body) => body.keys = None,
        }
    }

    /// Makes the seal say that the file is closed and whole. Leaves the modification time alone.
    pub fn seal(&self) -> Result<(), FsError> {
        self.seal_with(None).map(drop)
    }

    /// The same, and gives the lower file the modification time `time` (seconds, nanoseconds) where that is another one;
    /// `false` where the file was sealed already, so that nothing was done.
    pub fn seal_with(&self, time: Option<(i64, u32)>) -> Result<bool, FsError> {
        if self.context.read_only || !self.is_unsealed() {
            return Ok(false);
        }
        self.flush()?;
        let mut inner = self.for_writing()?;
        let Inner::Loaded(body) = &mut *inner else { return Ok(false) };
        self.lower.with_mtime(time, || body.write_clean_seal(&self.lower)).map(|()| true)
    }

    /// Whether the file has no name any more.
    pub fn is_removed(&self) -> bool {
        self.lower.is_removed()
    }

    pub(super) fn place(&self) -> Option<Place> {
        *self.place.lock()
    }

    /// Binds the file to `place`, before or after it is moved there. When this returns, an unclean stop leaves it
    /// readable at its old name and at the new one: a seal of this mount is on stable storage, and where such a mount
    /// did not end well the place is taken from where the file is found.
    pub fn bind(&self, place: Place) -> Result<(), FsError> {
        self.flush()?;
        let _one = self.flushing.lock();
        let mut inner = self.for_writing()?;
        let Inner::Loaded(body) = &mut *inner else {
            *self.place.lock() = Some(place);
            return Ok(());
        };
        let before = std::mem::replace(&mut body.place, place);
        self.store_place(body).inspect_err(|_| body.place = before)?;
        *self.place.lock() = Some(place);
        Ok(())
    }

    /// Writes the place of `body` into a seal; what is dirty gets it at its close.
    fn store_place(&self, body: &mut Body) -> Result<(), FsError> {
        let from_before = self.must_announce(body);
        self.lower.keeping_mtime(|| {
            self.begin_changes(body)?;
            if body.sealed.state == State::Clean { body.write_clean_seal(&self.lower) } else { Ok(()) }
        })?;
        let logged = self.context.log.as_ref().is_some_and(TagLog::is_strict);
        if from_before && !logged { Ok(self.lower.sync(true)?) } else { Ok(()) }
    }

    /// Makes everything written so far durable (fsync(2), fdatasync(2)).
    pub fn sync(&self, data_only: bool) -> Result<(), FsError> {
        self.sync_telling(data_only, &|| {})
    }

    /// The same; calls `durable` as soon as it is, where work is left then that nobody need wait for. It is not called
    /// where the size or the space of the file changes, and what goes wrong after it is an error all the same.
    pub fn sync_telling(&self, data_only: bool, durable: &dyn Fn()) -> Result<(), FsError> {
        let done = self.sync_once(data_only, durable);
        if let Err(FsError::Os(e)) = done {
            let mut failures = self.failures.lock();
            *failures = (failures.0 + 1, Some(e));
        }
        done
    }

    /// How many syncs have failed, and how the last of them did.
    pub fn failures(&self) -> (u32, Option<Errno>) {
        *self.failures.lock()
    }

    fn sync_once(&self, data_only: bool, durable: &dyn Fn()) -> Result<(), FsError> {
        let attributes_too = !data_only && self.attributes_unsynced.load(Ordering::Acquire);
        if self.sync_by_log(attributes_too, durable)? {
            return Ok(());
        }
        let reached = self.promise()?;
        if !data_only {
            self.attributes_unsynced.store(false, Ordering::Release);
        }
        let synced = self.lower.sync(data_only);
        if synced.is_err() {
            self.attributes_unsynced.store(true, Ordering::Release);
        }
        synced?;
        if let (Some(reached), Inner::Loaded(body)) = (reached, &mut *self.inner.write()) {
            body.note_synced(reached);
        }
        Ok(())
    }

    /// Makes the stored file one that promises its size; gives what a sync that begins now makes durable. That holds for
    /// a file that was sealed before too: from then on its blocks change by way of the log.
    fn promise(&self) -> Result<Option<(u64, u64, u64)>, FsError> {
        if self.context.read_only {
            return Ok(None);
        }
        if self.is_unsealed() {
            self.flush()?;
        }
        // Who has nothing to write needs no key.
        let mut inner = if self.is_unsealed() { self.for_writing()? } else { self.inner.write() };
        let Inner::Loaded(body) = &mut *inner else { return Ok(None) };
        if body.is_unsealed() {
            self.lower.keeping_mtime(|| body.write_promise(&self.lower))?;
        }
        Ok(Some(body.sync_begins()))
    }

    fn is_unsealed(&self) -> bool {
        matches!(&*self.inner.read(), Inner::Loaded(body) if body.is_unsealed())
    }

    /// The state for a reader, with header and keys at hand.
    fn for_reading(&self) -> Result<RwLockReadGuard<'_, Inner>, FsError> {
        let inner = self.inner.read();
        let ready = match &*inner {
            Inner::Unread => false,
            Inner::Empty(_) => true,
            Inner::Loaded(body) => body.keys.is_some(),
        };
        if ready {
            return Ok(inner);
        }
        drop(inner);
        Ok(RwLockWriteGuard::downgrade(self.for_writing()?))
    }

    /// The state for a writer, with header (where there is one) and keys at hand.
    fn for_writing(&self) -> Result<RwLockWriteGuard<'_, Inner>, FsError> {
        let mut inner = self.inner.write();
        match &mut *inner {
            Inner::Unread => *inner = self.load()?,
            Inner::Loaded(body) if body.keys.is_none() => self.reload_keys(body)?,
            Inner::Empty(_) | Inner::Loaded(_) => {}
        }
        Ok(inner)
    }

    /// The loaded body of a file that is about to be written; makes the header of an empty one.
    fn body_for_write<'a>(&self, inner: &'a mut Inner) -> Result<(&'a mut Body, Arc<FileKeys>), FsError> {
        if self.context.read_only {
            return Err(FsError::Os(Errno::ROFS));
        }
        if let Inner::Empty(reserved) = inner {
            *inner = Inner::Loaded(Box::new(self.make_header(reserved.take())?));
        }
        let Inner::Loaded(body) = inner else { return Err(FsError::Os(Errno::IO)) };
        let keys = body.keys()?;
        // What a full disk kept back goes first: new changes would build on it.
        body.save_pages(&self.lower)?;
        Ok((body, keys))
    }
}
