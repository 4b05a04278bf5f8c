//! Open regular files: what programs do through their descriptors.
//!
//! A descriptor's handle stands for the descriptor and the user who opened it, by whose right it is read and written,
//! whoever holds it; what is known of the file hangs on its inode.
//! Called by the adapter.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileHandle, Generation, INodeNo, OpenFlags, ReplyCreate, ReplyEmpty, ReplyLseek, ReplyOpen,
    ReplyWrite, WriteFlags,
};

use parking_lot::Mutex;

use super::attr::file_attr;
use super::errno::{errno, report};
use super::handles::Handles;
use super::kernel_cache::KernelCache;
use super::refusals::Refusals;
use super::reply::{allocation, open_flags, reply_empty, reply_written};
use super::seeker::{SeekRequest, Seeker};
use super::server::Server;
use super::session::MountOptions;
use crate::tree::{Asker, Attr, FsError, KeyError, NewObject, OpenManner, Seek, Tree, WriteManner};

/// Files open at a time. The kernel's own limit (fs.file-max) is mostly met before; a handle takes less than 100 bytes.
const HANDLES_MAX: usize = 4 << 20;

/// One open file description.
pub struct Descriptor {
    /// It may write, which its release has to tell the tree.
    write: bool,
    /// Who opened it.
    asker: Asker,
    /// Failed syncs of the file that it was told of, or that came before it.
    failures_seen: AtomicU32,
}

/// The open files of a mount.
pub struct Files {
    server: Arc<Server>,
    seeker: Seeker,
    kernel: KernelCache,
    descriptors: Arc<Handles<Descriptor>>,
    refusals: Arc<Refusals>,
    cache_time: Duration,
    per_caller: bool,
    /// The kernel keeps the times of files itself, and asks nobody for them.
    keeps_times: bool,
}

impl Files {
    /// None is open yet.
    pub fn new(
        server: Arc<Server>,
        (seeker, kernel): (Seeker, KernelCache),
        cache_time: Duration,
        options: &MountOptions,
    ) -> Self {
        let descriptors = Arc::new(Handles::new(HANDLES_MAX));
        let (per_caller, keeps_times) = (options.per_caller, options.writeback);
        let refusals = Arc::default();
        Self { server, seeker, kernel, descriptors, refusals, cache_time, per_caller, keeps_times }
    }

    /// By whose right the descriptor is used. Read-ahead and write-back name one of those that the file has.
    pub fn holder(&self, handle: FileHandle) -> Asker {
        if !self.per_caller {
            return Asker::Mount;
        }
        match self.descriptors.find(handle.0).map(|descriptor| descriptor.asker) {
            Ok(Asker::Caller(uid) | Asker::Holder(uid)) => Asker::Holder(uid),
            Ok(Asker::Mount) | Err(_) => Asker::Mount,
        }
    }

    /// Opens a file. To empty it, the kernel asks next ([`super::session::negotiate`]).
    pub fn open(&self, id: INodeNo, flags: OpenFlags, asker: Asker, reply: ReplyOpen) {
        let manner = open_manner(flags.0, false);
        let descriptors = self.descriptors.clone();
        self.server.answer(
            id.0,
            move |tree| {
                tree.open_file(id.0, manner, asker)?;
                described(tree, &descriptors, id.0, manner.write, asker)
            },
            move |opened| match opened {
                Ok(handle) => reply.opened(handle, open_flags(flags.0)),
                Err(e) => reply.error(report(id.0, &e)),
            },
        );
    }

    /// Makes and opens a file.
    pub fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        new: NewObject,
        flags: i32,
        asker: Asker,
        reply: ReplyCreate,
    ) {
        let (name, ttl) = (name.as_bytes().to_vec(), self.cache_time);
        let descriptors = self.descriptors.clone();
        self.server.answer(
            parent.0,
            move |tree| {
                let (attr, generation) = create_or_open(tree, parent.0, &name, new, flags, asker)?;
                let handle =
                    described(tree, &descriptors, attr.node_id, open_manner(flags, false).write, asker);
                let handle = handle.inspect_err(|_| tree.forget(attr.node_id, 1))?;
                Ok((attr, generation, handle))
            },
            move |made| match made {
                Ok((attr, generation, handle)) => {
                    let generation = Generation(generation.into());
                    reply.created(&ttl, &file_attr(&attr), generation, handle, open_flags(flags));
                }
                Err(e) => reply.error(report(parent.0, &e)),
            },
        );
    }

    /// Ends a descriptor.
    pub fn release(&self, id: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        let released = self.server.run(id.0, |tree| {
            if let Some(descriptor) = self.descriptors.remove(handle.0) {
                tree.release_file(id.0, descriptor.write);
                // Nearly always there are none: they are asked first.
                if self.refusals.has(id.0) && !tree.is_open(id.0) && self.refusals.end(id.0) {
                    tree.note_resized(id.0);
                }
            }
            Ok(())
        });
        reply_empty(reply, id, released);
    }

    /// Writes `data` at `offset`.
    pub fn write(
        &self,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        (flags, open_flags): (WriteFlags, OpenFlags),
        reply: ReplyWrite,
    ) {
        let manner = WriteManner {
            from_cache: flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_set_id: flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        // The kernel itself follows with a sync where it has collected.
        if !manner.from_cache && open_flags.0 & libc::O_DSYNC != 0 {
            return self.write_synced(id, handle, (offset, data), (manner, open_flags.0), reply);
        }
        // What the kernel collected it writes through any descriptor of the file, whoever wrote it.
        let asker = if manner.from_cache { Asker::Mount } else { self.holder(handle) };
        let refusals = manner.from_cache.then(|| (self.refusals.clone(), self.kernel.clone()));
        let (traffic, begin) = (Arc::clone(self.server.traffic()), Instant::now());
        let answer = move |written: Result<usize, FsError>| {
            traffic.note_write(begin, written.as_ref().map_or(0, |len| *len));
            if let (Err(e), Some((refusals, kernel))) = (&written, refusals) {
                refusals.note(id.0, errno(e));
                kernel.forget_attributes(id);
            }
            reply_written(reply, id, written);
        };
        match self.server.run_uncounted(id.0, |tree| tree.write(id.0, offset, data, manner, asker)) {
            Err(FsError::Key(KeyError::Absent(..))) => {
                let data = data.to_vec();
                let write = move |tree: &Tree| tree.write(id.0, offset, &data, manner, asker);
                self.server.wait(id.0, write, answer);
            }
            done => answer(done),
        }
    }

    /// A write past the kernel's cache that is to be durable when it returns (O_DSYNC, and with the attributes O_SYNC).
    fn write_synced(
        &self,
        id: INodeNo,
        handle: FileHandle,
        (offset, data): (u64, &[u8]),
        (manner, open_flags): (WriteManner, i32),
        reply: ReplyWrite,
    ) {
        let (data, asker, descriptor) = (data.to_vec(), self.holder(handle), self.descriptors.find(handle.0));
        let data_only = open_flags & libc::O_SYNC != libc::O_SYNC;
        let write = move |tree: &Tree| {
            let written = tree.write(id.0, offset, &data, manner, asker)?;
            sync_through(tree, id.0, data_only, &descriptor, None).map(|()| written)
        };
        let traffic = Arc::clone(self.server.traffic());
        self.server.answer_slowly(id.0, write, move |written| {
            traffic.written_bytes.add(written.as_ref().map_or(0, |len| *len as u64));
            reply_written(reply, id, written);
        });
    }

    /// Why writes through the file that had returned were refused; once for each time.
    pub fn refusal(&self, id: INodeNo) -> Option<Errno> {
        self.refusals.take(id.0)
    }

    /// Makes what was written durable, and answers as soon as it is.
    pub fn sync(&self, id: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let descriptor = self.descriptors.find(handle.0);
        let reply = Arc::new(Mutex::new(Some(reply)));
        // What is done after the answer moves the lower file's time for a moment.
        let early = self.keeps_times.then(|| Arc::clone(&reply));
        let sync = move |tree: &Tree| {
            let durable = || {
                if let Some(reply) = early.as_ref().and_then(|reply| reply.lock().take()) {
                    reply.ok();
                }
            };
            let durable = early.is_some().then_some(&durable as &dyn Fn());
            sync_through(tree, id.0, data_only, &descriptor, durable).map(|()| tree.has_other_blocks(id.0))
        };
        let kernel = self.kernel.clone();
        self.server.answer_slowly(id.0, sync, move |done| {
            // It does not count the blocks of what it wrote back. To ask again costs it two requests at the next write.
            if !matches!(done, Ok(false)) {
                kernel.forget_attributes(id);
            }
            match (reply.lock().take(), done) {
                (Some(reply), done) => reply_empty(reply, id, done.map(drop)),
                (None, Err(e)) => drop(report(id.0, &e)),
                (None, Ok(_)) => {}
            }
        });
    }

    /// Takes or gives back space.
    pub fn allocate(
        &self,
        id: INodeNo,
        handle: FileHandle,
        (offset, length): (u64, u64),
        mode: i32,
        clear_set_id: bool,
        reply: ReplyEmpty,
    ) {
        let Some(what) = allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let asker = self.holder(handle);
        let allocate = move |tree: &Tree| tree.allocate(id.0, what, (offset, length), asker, clear_set_id);
        let kernel = clear_set_id.then(|| self.kernel.clone());
        self.server.answer_slowly(id.0, allocate, move |done| {
            // It takes the mode for unchanged.
            kernel.inspect(|kernel| kernel.forget_attributes(id));
            reply_empty(reply, id, done);
        });
    }

    /// The next data or hole.
    pub fn seek(&self, id: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        self.seeker.seek(SeekRequest { id: id.0, offset: offset as u64, what, reply });
    }

    /// Copies from one file to another; each is an inode, a descriptor of it and an offset. What is read is read by the right
    /// of the first descriptor, and written by that of the second.
    pub fn copy(
        &self,
        from: (INodeNo, FileHandle, u64),
        to: (INodeNo, FileHandle, u64),
        len: u64,
        clear_set_id: bool,
        reply: ReplyWrite,
    ) {
        let end = |(id, handle, offset): (INodeNo, FileHandle, u64)| (id.0, offset, self.holder(handle));
        let (source, target) = (end(from), end(to));
        // The reply has 32 bits; the caller goes on from where the copy ended.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let copy = move |tree: &Tree| {
            tree.copy_range(source, target, len, clear_set_id).map(|copied| copied as usize)
        };
        let kernel = clear_set_id.then(|| self.kernel.clone());
        self.server.answer_slowly(from.0.0, copy, move |copied| {
            kernel.inspect(|kernel| kernel.forget_attributes(to.0));
            reply_written(reply, from.0, copied);
        });
    }
}

/// Makes the file durable for one descriptor, which is told of what failed before, too; calls `durable`, where there
/// is one, where the rest need not be waited for.
fn sync_through(
    tree: &Tree,
    id: u64,
    data_only: bool,
    descriptor: &Result<Arc<Descriptor>, FsError>,
    durable: Option<&dyn Fn()>,
) -> Result<(), FsError> {
    match descriptor {
        Ok(descriptor) => tree.sync_descriptor(id, data_only, &descriptor.failures_seen, durable),
        Err(_) => tree.sync_file(id, data_only),
    }
}

/// What open(2) asks for by `flags`.
fn open_manner(flags: i32, clear_set_id: bool) -> OpenManner {
    let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
    OpenManner { write, truncate: flags & libc::O_TRUNC != 0, clear_set_id }
}

/// Gives the file just opened a handle, or closes it again.
fn described(
    tree: &Tree,
    descriptors: &Handles<Descriptor>,
    id: u64,
    write: bool,
    asker: Asker,
) -> Result<FileHandle, FsError> {
    let failures_seen = AtomicU32::new(tree.sync_failures(id));
    let number = descriptors.insert(Descriptor { write, asker, failures_seen });
    number.map(FileHandle).inspect_err(|_| tree.release_file(id, write))
}

/// Makes and opens a file, or opens the one that is there unless the caller insists on a new one.
fn create_or_open(
    tree: &Tree,
    parent: u64,
    name: &[u8],
    new: NewObject,
    flags: i32,
    asker: Asker,
) -> Result<(Attr, u32), FsError> {
    let manner = open_manner(flags, new.caller.uid != 0);
    match tree.create(parent, name, new, manner.write, asker.user()) {
        Err(FsError::Os(rustix::io::Errno::EXIST)) if flags & libc::O_EXCL == 0 => {}
        other => return other,
    }
    let (attr, generation) = tree.look_up(parent, name)?;
    let opened = tree.open_file(attr.node_id, manner, asker);
    let attr = opened.and_then(|()| tree.attr(attr.node_id)).inspect_err(|_| {
        tree.forget(attr.node_id, 1);
    })?;
    Ok((attr, generation))
}
