//! Open regular files: one plaintext I/O per inode, shared by all its handles.
//!
//! The lower file is opened for reading and writing whatever the handle asks: partial blocks are read before they are
//! written, and the kernel's write-back cache reads through write-only handles. Which handle may do what is the
//! kernel's business.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::attr::Kind;
use super::file::{Allocate, FileIo, Seek};
use super::namespace::{InodeFd, Tree};
use super::node::{Node, OpenFile};
use super::{Asker, FsError, KeyError};
use crate::sys::at;

const OWNER_READ_WRITE: u32 = 0o600;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
/// Bytes moved at a time by `copy_range`.
const COPY_CHUNK: u64 = 1 << 20;

/// What a write is besides its data.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteManner {
    /// Written back from the kernel's cache, which keeps the time of the write itself.
    pub from_cache: bool,
    /// The writer may not keep set-user-id and set-group-id.
    pub clear_set_id: bool,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenManner {
    /// The handle may write.
    pub write: bool,
    /// The file is emptied.
    pub truncate: bool,
    /// Who empties it may not keep set-user-id and set-group-id.
    pub clear_set_id: bool,
}

impl Tree {
    /// Opens a regular file for one more handle. The key must be to be had: what may not be decrypted does not open.
    pub fn open_file(&self, id: u64, manner: OpenManner, asker: Asker) -> Result<(), FsError> {
        let OpenManner { write, truncate, clear_set_id } = manner;
        if write || truncate {
            self.check_writable()?;
        }
        let node = self.node(id)?;
        if node.kind != Kind::File {
            return Err(FsError::Os(Errno::INVAL));
        }
        {
            let mut slot = node.file.write();
            self.kept.take(&mut slot);
            slot.handles += 1;
            slot.writers += u32::from(write);
        }
        let ready = |file: &OpenFile| {
            if write { file.io.ensure_keys_for_write(asker) } else { file.io.ensure_keys() }
        };
        let opened = if truncate {
            self.with_changed_file(&node, asker, |file| {
                ready(file)?;
                file.note_changed();
                file.io.truncate(0)?;
                file.clear_set_id(clear_set_id)
            })
        } else {
            self.with_file(&node, write, asker, ready)
        };
        // The kernel looks it up again, learns the true size, and opens it.
        let opened = opened.and_then(|()| if node.is_resized() { Err(Errno::STALE.into()) } else { Ok(()) });
        if opened.is_err() {
            self.release(&node, write);
        }
        opened
    }

    /// Runs `action`, which changes the open file of `node`.
    pub(super) fn with_changed_file<R>(
        &self,
        node: &Arc<Node>,
        asker: Asker,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.with_file_under(
            node,
            true,
            asker,
            || {
                let change = self.change();
                change.of_node(node).map(|()| change)
            },
            action,
        )
    }

    /// Runs `action` on the open file of `node`, which is opened for it when it is not, where `asker` may use its key.
    pub(super) fn with_file<R>(
        &self,
        node: &Arc<Node>,
        write: bool,
        asker: Asker,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.with_file_under(node, write, asker, || Ok(()), action)
    }

    /// The same, holding what `begin` gives, but not while a key is waited for.
    fn with_file_under<G, R>(
        &self,
        node: &Arc<Node>,
        write: bool,
        asker: Asker,
        begin: impl Fn() -> Result<G, FsError>,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let unused = Cell::new(false);
        let done = self.with_keys(asker.user(), || {
            let _held = begin()?;
            let admitted = |file: &OpenFile| {
                file.io.admit(asker, write)?;
                action(file)
            };
            let done = self.on_open_file(node, write, &unused, admitted);
            if matches!(done, Err(FsError::Key(KeyError::Absent(..)))) && asker == Asker::Mount {
                self.ahead.note(|| node.link());
            }
            done
        });
        if unused.get() {
            self.close_unused(node);
        }
        done
    }

    /// Runs `action` on the file of `node`, on which a handle counts, for writing and in the mount's own right. Does not
    /// wait for its key.
    pub(super) fn with_held_file<R>(
        &self,
        node: &Arc<Node>,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.on_open_file(node, true, &Cell::new(false), action)
    }

    fn on_open_file<R>(
        &self,
        node: &Arc<Node>,
        write: bool,
        unused: &Cell<bool>,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        loop {
            self.check_one_name(node)?;
            {
                let slot = node.file.read();
                if let Some(open) = &slot.open
                    && (open.writable || !write)
                {
                    unused.set(slot.handles == 0);
                    let done = action(open);
                    if open.io.take_resized() {
                        node.note_resized();
                    }
                    return done;
                }
            }
            self.open_slot(node, write)?;
        }
    }

    /// Opens the lower file of `node`, or opens it anew for writing.
    fn open_slot(&self, node: &Arc<Node>, write: bool) -> Result<(), FsError> {
        let _steady = self.steady_places();
        let mut slot = node.file.write();
        if slot.open.as_ref().is_some_and(|open| open.writable || !write) {
            return Ok(());
        }
        let (fd, writable) = match self.open_by_name(node) {
            Some(fd) => (fd, true),
            None => self.open_lower(&self.inode(node)?, write)?,
        };
        let io = FileIo::with_choice(fd, self.files.clone(), self.place_of(node)?, self.key_for(node)?);
        slot.open = Some(Box::new(OpenFile::new(io, writable)));
        self.note_open(node);
        Ok(())
    }

    /// The file of `node`, which is locked, was opened. Others give their descriptors back where there are too many.
    pub(super) fn note_open(&self, node: &Arc<Node>) {
        let count = {
            let mut open = self.open_files.lock();
            open.insert(node.id, node.clone());
            open.len()
        };
        if count > self.files_max {
            self.close_idle_files();
        }
    }

    /// The lower file for reading and writing by a name of it: one call where it goes, as it mostly does.
    fn open_by_name(&self, node: &Node) -> Option<OwnedFd> {
        if self.read_only || node.pinned().is_some() {
            return None;
        }
        // Not waiting, in case the name has become that of a fifo behind the mount's back.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = node.by_name(|link| {
            let parent = self.dir(link.parent)?;
            let fd = self.spare_descriptors(|| at::open(&parent.fd, link.name.as_bytes(), flags, 0))?;
            self.same_inode(node, &fs::fstat(&fd)?)?;
            Ok(fd)
        });
        opened.ok()
    }

    /// The lower file for reading and writing, or for reading alone where that is all there is.
    fn open_lower(&self, inode: &InodeFd, write: bool) -> Result<(OwnedFd, bool), FsError> {
        if self.read_only {
            return Ok((self.spare_descriptors(|| at::reopen(inode, OFlags::RDONLY))?, false));
        }
        let denied = match self.spare_descriptors(|| at::reopen(inode, OFlags::RDWR)) {
            Ok(fd) => return Ok((fd, true)),
            Err(e @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => e,
            Err(e) => return Err(e.into()),
        };
        if !write && let Ok(fd) = self.spare_descriptors(|| at::reopen(inode, OFlags::RDONLY)) {
            return Ok((fd, false));
        }
        if denied != Errno::ACCESS {
            return Err(denied.into());
        }
        self.open_own(inode).map(|fd| (fd, true))
    }

    /// A file of the daemon's user whose mode denies what the kernel has allowed the caller, or what partial blocks
    /// need: the mode is lifted for the moment of opening.
    fn open_own(&self, inode: &InodeFd) -> Result<OwnedFd, FsError> {
        let mode = fs::fstat(inode.as_fd())?.st_mode & 0o7777;
        at::set_mode(inode, mode | OWNER_READ_WRITE)?;
        let fd = self.spare_descriptors(|| at::reopen(inode, OFlags::RDWR));
        at::set_mode(inode, mode)?;
        Ok(fd?)
    }

    /// Reads up to `len` bytes at `offset` into `out`; short only at the end of the file.
    pub fn read(
        &self,
        id: u64,
        offset: u64,
        len: usize,
        asker: Asker,
        out: &mut Vec<u8>,
    ) -> Result<(), FsError> {
        let node = self.node(id)?;
        let buffer = std::cell::RefCell::new(out);
        self.with_file(&node, false, asker, |file| {
            file.io.read(offset, len, &mut buffer.borrow_mut())?;
            Ok(())
        })
    }

    /// Writes `data` at `offset` and gives the bytes written: all of them, but where the lower filesystem has room for
    /// some alone. Of what comes from the kernel's cache that is an error.
    pub fn write(
        &self,
        id: u64,
        offset: u64,
        data: &[u8],
        manner: WriteManner,
        asker: Asker,
    ) -> Result<usize, FsError> {
        let node = self.node(id)?;
        self.with_changed_file(&node, asker, |file| {
            if manner.from_cache {
                file.note_written_back()?;
            } else {
                file.note_modified(None);
            }
            let written = if manner.from_cache {
                file.io.write(offset, data).map(|()| data.len())
            } else {
                file.io.write_some(offset, data)
            }?;
            file.clear_set_id(manner.clear_set_id).map(|()| written)
        })
    }

    /// Sets the plaintext size.
    pub fn truncate(&self, id: u64, size: u64, asker: Asker) -> Result<(), FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        if node.kind != Kind::File {
            return Err(FsError::Os(if node.kind == Kind::Dir { Errno::ISDIR } else { Errno::INVAL }));
        }
        self.with_changed_file(&node, asker, |file| {
            file.note_changed();
            file.io.truncate(size)
        })
    }

    /// Preallocates, punches or zeroes a range of `len` bytes from `offset` on. `clear_set_id` as in [`WriteManner`].
    pub fn allocate(
        &self,
        id: u64,
        what: Allocate,
        (offset, len): (u64, u64),
        asker: Asker,
        clear_set_id: bool,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        self.with_changed_file(&node, asker, |file| {
            file.note_changed();
            file.io.allocate(what, offset, len)?;
            file.clear_set_id(clear_set_id)
        })
    }

    /// Whether a handle may write to the file, so that the kernel may hold data of it that is not here yet.
    pub fn has_writers(&self, id: u64) -> bool {
        self.nodes.find(id).is_some_and(|node| node.file.read().writers > 0)
    }

    /// Whether a handle is open on the file.
    pub fn is_open(&self, id: u64) -> bool {
        self.nodes.find(id).is_some_and(|node| node.file.read().handles > 0)
    }

    /// The kernel may take the file for longer than it is: it is to look it up again before it opens it.
    pub fn note_resized(&self, id: u64) {
        if let Some(node) = self.nodes.find(id) {
            node.note_resized();
        }
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, id: u64, offset: u64, what: Seek) -> Result<u64, FsError> {
        let node = self.node(id)?;
        self.with_file(&node, false, Asker::Mount, |file| file.io.seek(offset, what))
    }

    /// Copies a range from one file to another, each with its offset there and with whoever stands behind its use, and gives
    /// the number of bytes copied. `clear_set_id` as in [`WriteManner`].
    pub fn copy_range(
        &self,
        (from, at, reader): (u64, u64, Asker),
        (to, to_at, writer): (u64, u64, Asker),
        len: u64,
        clear_set_id: bool,
    ) -> Result<u64, FsError> {
        self.check_writable()?;
        let manner = WriteManner { from_cache: false, clear_set_id };
        let mut copied = 0;
        let mut chunk = Vec::new();
        while copied < len {
            let wanted = (len - copied).min(COPY_CHUNK) as usize;
            chunk.clear();
            let step = self.read(from, at + copied, wanted, reader, &mut chunk).and_then(|()| {
                if chunk.is_empty() { Ok(0) } else { self.write(to, to_at + copied, &chunk, manner, writer) }
            });
            match step {
                Ok(0) => break,
                Ok(written) => copied += written as u64,
                Err(_) if copied > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(copied)
    }

    /// Makes a file's data durable, and its attributes unless `data_only`.
    pub fn sync_file(&self, id: u64, data_only: bool) -> Result<(), FsError> {
        self.sync_file_telling(id, data_only, &|| {})
    }

    fn sync_file_telling(&self, id: u64, data_only: bool, durable: &dyn Fn()) -> Result<(), FsError> {
        let node = self.node(id)?;
        if self.read_only || node.kind != Kind::File {
            return Ok(());
        }
        self.with_file(&node, false, Asker::Mount, |file| {
            file.restore_modified()?;
            if file.writable { file.io.sync_telling(data_only, durable) } else { Ok(()) }
        })
    }

    /// The same for one of several descriptors, which is told once of each failure, also where another one met it.
    /// `seen` is the count of failures that it knows of ([`Tree::sync_failures`]). Calls `durable`, if any, at most once, where
    /// nothing is to be told but that the data is durable, and work is left that the caller need not wait for; what goes
    /// wrong in that is told at the next sync.
    pub fn sync_descriptor(
        &self,
        id: u64,
        data_only: bool,
        seen: &AtomicU32,
        durable: Option<&dyn Fn()>,
    ) -> Result<(), FsError> {
        let knows_all = self.sync_failures(id) == seen.load(Ordering::Acquire);
        let told = Cell::new(false);
        let tell = || {
            if let Some(durable) = durable
                && knows_all
                && !told.replace(true)
            {
                durable();
            }
        };
        let done = self.sync_file_telling(id, data_only, &tell);
        if told.get() {
            return done;
        }
        let node = self.node(id)?;
        let (count, last) = node.file.read().open.as_ref().map(|open| open.io.failures()).unwrap_or_default();
        match last {
            Some(e) if seen.swap(count, Ordering::AcqRel) != count => done.and(Err(e.into())),
            _ => done,
        }
    }

    /// Whether the kernel may know another number of blocks than the file takes, which was just synced.
    pub fn has_other_blocks(&self, id: u64) -> bool {
        self.nodes.find(id).is_none_or(|node| node.has_other_blocks())
    }

    /// How many syncs of the file have failed since it was opened.
    pub fn sync_failures(&self, id: u64) -> u32 {
        let node = self.nodes.find(id);
        node.and_then(|node| Some(node.file.read().open.as_ref()?.io.failures().0)).unwrap_or_default()
    }

    /// Makes the entries of a directory durable.
    pub fn sync_dir(&self, id: u64) -> Result<(), FsError> {
        let dir = self.dir(id)?;
        let fd = self.spare_descriptors(|| at::reopen_dir(&dir.fd))?;
        Ok(at::sync_dir(fd)?)
    }

    /// Open files whose data key is wrapped under the CMK `key_arn`, or all of them.
    pub fn nodes_under(&self, key_arn: Option<&str>) -> Vec<u64> {
        let nodes: Vec<Arc<Node>> = self.open_files.lock().values().cloned().collect();
        let under = |node: &Arc<Node>| {
            let slot = node.file.read();
            let wrapped = slot.open.as_ref().and_then(|open| open.io.wrapped());
            wrapped.is_some_and(|(_, w)| key_arn.is_none_or(|arn| w.key_arn == arn))
        };
        nodes.into_iter().filter(under).map(|node| node.id).collect()
    }

    /// Drops the keys of open files under the CMK `key_arn`; their next use asks for them again. Dirty pages of
    /// these nodes ([`Tree::nodes_under`]) should have been written back before.
    pub fn revoke(&self, key_arn: &str) -> Vec<u64> {
        let ids = self.nodes_under(Some(key_arn));
        self.drop_keys(&ids);
        ids
    }

    /// Drops every data key.
    pub fn lock_all(&self) -> Vec<u64> {
        let ids = self.nodes_under(None);
        self.drop_keys(&ids);
        ids
    }

    fn drop_keys(&self, ids: &[u64]) {
        for node in ids.iter().filter_map(|id| self.nodes.find(*id)) {
            if let Some(open) = &node.file.read().open {
                // While the keys are there; what cannot be sealed now is when they are back, or recovered.
                if open.writable
                    && let Err(e) = open.io.seal()
                {
                    log::debug!("file {} is not sealed before its keys go: {e}", node.id);
                }
                open.io.drop_keys();
            }
        }
    }
}

impl OpenFile {
    fn clear_set_id(&self, clear: bool) -> Result<(), FsError> {
        if clear { clear_set_id_bits(self.io.lower_fd()) } else { Ok(()) }
    }
}

/// Set-user-id goes, and set-group-id where it means a group of executors.
pub(super) fn clear_set_id_bits(fd: impl AsFd) -> Result<(), FsError> {
    let mode = fs::fstat(&fd)?.st_mode & 0o7777;
    let mut kept = mode & !SET_UID;
    if mode & GROUP_EXECUTE != 0 {
        kept &= !SET_GID;
    }
    if kept != mode {
        at::set_mode(&fd, kept)?;
    }
    Ok(())
}
