//! Kernel requests to operations of the tree. Translates; decides nothing.
//!
//! Not here, because the library has no request for it: `O_TMPFILE`. The library answers the kernel's `FUSE_TMPFILE`
//! with ENOSYS, the kernel remembers and gives programs EOPNOTSUPP, which they take as "make a named file instead".
//! File locks are the kernel's own (neither POSIX_LOCKS nor FLOCK_LOCKS is negotiated), and so are the checks of
//! permissions (`default_permissions`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attr::{decode_device, file_attr, file_type, set_time};
use super::errno::report;
use super::handles::Streams;
use super::ioctl;
use super::reply::{
    absent_entry, allocation, nameless, open_flags, reply_attr, reply_data, reply_empty, reply_entry,
    reply_sized, reply_written,
};
use super::seeker::{SeekRequest, Seeker};
use super::server::Server;
use super::session::{MountOptions, negotiate};
use crate::tree::{
    Attr, Caller, DirStream, FsError, KeyError, Kind, NewObject, RenameMode, Seek, SetAttr, SpecialFile,
    Tree, WriteManner, XattrMode,
};

/// An entry or attribute that is found stale at once, for answers that must not be cached.
const NO_TIME: Duration = Duration::ZERO;

/// The filesystem as the library drives it.
pub struct Adapter {
    server: Arc<Server>,
    streams: Streams,
    seeker: Seeker,
    cache_time: Duration,
    writeback: bool,
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// File handles carry nothing: the state of an open file hangs on its inode.
const FILE: FileHandle = FileHandle(0);

impl Adapter {
    /// Serves the server's tree.
    pub fn new(server: Arc<Server>, seeker: Seeker, options: &MountOptions) -> Self {
        let writeback = options.writeback && !options.read_only;
        Self { server, seeker, streams: Streams::default(), cache_time: options.cache_time, writeback }
    }

    fn open_stream(&self, id: INodeNo) -> Result<u64, FsError> {
        self.streams.insert(self.server.run(id.0, |tree| tree.open_stream(id.0))?)
    }

    fn listing(
        &self,
        id: INodeNo,
        handle: FileHandle,
        list: impl FnOnce(&Tree, &mut DirStream) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let stream = self.streams.find(handle.0)?;
        self.server.run(id.0, |tree| list(tree, &mut stream.lock()))
    }
}

/// Makes and opens a file, or opens the one that is there unless the caller insists on a new one.
fn create_or_open(
    tree: &Tree,
    parent: u64,
    name: &[u8],
    new: NewObject,
    flags: i32,
) -> Result<(Attr, u32), FsError> {
    let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
    match tree.create(parent, name, new, write) {
        Err(FsError::Os(rustix::io::Errno::EXIST)) if flags & libc::O_EXCL == 0 => {}
        other => return other,
    }
    let (attr, generation) = tree.look_up(parent, name)?;
    let opened = tree.open_file(attr.node_id, write, flags & libc::O_TRUNC != 0);
    let attr = opened.and_then(|()| tree.attr(attr.node_id)).inspect_err(|_| {
        tree.forget(attr.node_id, 1);
    })?;
    Ok((attr, generation))
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, self.writeback);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.server.run(parent.0, |tree| tree.look_up(parent.0, name.as_bytes())) {
            Err(FsError::Os(rustix::io::Errno::NOENT)) => absent_entry(reply, self.cache_time),
            found => reply_entry(reply, self.cache_time, parent, found),
        }
    }

    fn forget(&self, _request: &Request, id: INodeNo, count: u64) {
        let _ = self.server.run(id.0, |tree| {
            tree.forget(id.0, count);
            Ok(())
        });
    }

    fn getattr(&self, _request: &Request, id: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.cache_time, id, self.server.run(id.0, |tree| tree.attr(id.0)));
    }

    fn setattr(
        &self,
        request: &Request,
        id: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_mac: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            permissions: mode,
            uid,
            gid,
            size,
            accessed: accessed.map(set_time),
            modified: modified.map(set_time),
        };
        let (caller, ttl) = (caller(request), self.cache_time);
        self.server.answer(
            id.0,
            move |tree| tree.set_attr(id.0, set, caller),
            move |done| reply_attr(reply, ttl, id, done),
        );
    }

    fn readlink(&self, _request: &Request, id: INodeNo, reply: ReplyData) {
        reply_data(reply, id, self.server.run(id.0, |tree| tree.read_symlink(id.0)));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let new = NewObject { permissions: mode, umask, caller: caller(request) };
        let made = match Kind::of_mode(mode) {
            Some(kind) => {
                let file = SpecialFile { kind, device: decode_device(device) };
                self.server.run(parent.0, |tree| tree.make_node(parent.0, name.as_bytes(), file, new))
            }
            None => Err(FsError::Os(rustix::io::Errno::INVAL)),
        };
        reply_entry(reply, self.cache_time, parent, made);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = NewObject { permissions: mode, umask, caller: caller(request) };
        let made = self.server.run(parent.0, |tree| tree.make_dir(parent.0, name.as_bytes(), new));
        reply_entry(reply, self.cache_time, parent, made);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.server.run(parent.0, |tree| tree.unlink(parent.0, name.as_bytes()));
        reply_empty(reply, parent, done);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.server.run(parent.0, |tree| tree.remove_dir(parent.0, name.as_bytes()));
        reply_empty(reply, parent, done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let caller = caller(request);
        let made =
            self.server.run(parent.0, |tree| tree.make_symlink(parent.0, name.as_bytes(), target, caller));
        reply_entry(reply, self.cache_time, parent, made);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = RenameMode {
            no_replace: flags.contains(RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(RenameFlags::RENAME_EXCHANGE),
            whiteout: flags.contains(RenameFlags::RENAME_WHITEOUT),
        };
        let (old, new) = (name.as_bytes(), new_name.as_bytes());
        let done = self.server.run(parent.0, |tree| tree.rename(parent.0, old, new_parent.0, new, mode));
        reply_empty(reply, parent, done);
    }

    fn link(&self, _request: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.server.run(id.0, |tree| tree.link(id.0, parent.0, name.as_bytes()));
        reply_entry(reply, self.cache_time, parent, made);
    }

    fn open(&self, _request: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        self.server.answer(
            id.0,
            move |tree| tree.open_file(id.0, write, flags.0 & libc::O_TRUNC != 0),
            move |opened| match opened {
                Ok(()) => reply.opened(FILE, open_flags(flags.0)),
                Err(e) => reply.error(report(id.0, &e)),
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.server.read(id.0, offset, size as usize, reply);
    }

    fn write(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let manner = WriteManner {
            from_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let len = data.len() as u32;
        match self.server.run(id.0, |tree| tree.write(id.0, offset, data, manner)) {
            Err(FsError::Key(KeyError::Absent(_))) => {
                let data = data.to_vec();
                let write = move |tree: &Tree| tree.write(id.0, offset, &data, manner).map(|()| len);
                self.server.wait(id.0, write, move |written| reply_written(reply, id, written));
            }
            done => reply_written(reply, id, done.map(|()| len)),
        }
    }

    /// Nothing to do at a close: the kernel has written back, and the file is sealed at its release.
    fn flush(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let released = self.server.run(id.0, |tree| {
            tree.release_file(id.0, write);
            Ok(())
        });
        reply_empty(reply, id, released);
    }

    fn fsync(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let sync = move |tree: &Tree| tree.sync_file(id.0, data_only);
        self.server.answer_slowly(id.0, sync, move |done| reply_empty(reply, id, done));
    }

    fn opendir(&self, _request: &Request, id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.open_stream(id) {
            Ok(number) => {
                reply.opened(FileHandle(number), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.listing(id, handle, |tree, stream| {
            tree.list(stream, offset, |entry| {
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(INodeNo(entry.node_id), entry.position, file_type(entry.kind), name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.listing(id, handle, |tree, stream| {
            let dir = stream.listed_dir();
            tree.list(stream, offset, |entry| {
                let name = OsStr::from_bytes(&entry.name);
                let Some((attr, generation)) = tree.look_up_listed(&dir, entry) else {
                    // Node id 0 says "no attributes": for the dots, and for an entry that just went.
                    let attr = nameless(entry.node_id, file_type(entry.kind));
                    return !reply.add(INodeNo(0), entry.position, name, &NO_TIME, &attr, Generation(0));
                };
                let generation = Generation(generation.into());
                let ttl = &self.cache_time;
                let full = reply.add(
                    INodeNo(attr.node_id),
                    entry.position,
                    name,
                    ttl,
                    &file_attr(&attr),
                    generation,
                );
                if full {
                    tree.forget(attr.node_id, 1);
                }
                !full
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _id: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.streams.remove(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, id: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        let sync = move |tree: &Tree| tree.sync_dir(id.0);
        self.server.answer_slowly(id.0, sync, move |done| reply_empty(reply, id, done));
    }

    fn statfs(&self, _request: &Request, id: INodeNo, reply: ReplyStatfs) {
        match self.server.run(id.0, Tree::statfs) {
            Ok(f) => reply.statfs(
                f.f_blocks,
                f.f_bfree,
                f.f_bavail,
                f.f_files,
                f.f_ffree,
                f.f_bsize as u32,
                f.f_namemax as u32,
                f.f_frsize as u32,
            ),
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        id: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let (name, value, caller) = (name.as_bytes().to_vec(), value.to_vec(), caller(request));
        let set = move |tree: &Tree| tree.set_xattr(id.0, &name, &value, mode, caller);
        self.server.answer(id.0, set, move |done| reply_empty(reply, id, done));
    }

    fn getxattr(&self, _request: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.server.answer(
            id.0,
            move |tree| tree.xattr(id.0, &name),
            move |value| match value {
                Ok(value) => reply_sized(reply, size, &value),
                Err(e) => reply.error(report(id.0, &e)),
            },
        );
    }

    fn listxattr(&self, request: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        match self.server.run(id.0, |tree| tree.xattr_names(id.0, caller(request))) {
            Ok(names) => {
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                reply_sized(reply, size, &list);
            }
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    fn removexattr(&self, request: &Request, id: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = caller(request);
        reply_empty(
            reply,
            id,
            self.server.run(id.0, |tree| tree.remove_xattr(id.0, name.as_bytes(), caller)),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewObject { permissions: mode, umask, caller: caller(request) };
        let (name, ttl) = (name.as_bytes().to_vec(), self.cache_time);
        self.server.answer(
            parent.0,
            move |tree| create_or_open(tree, parent.0, &name, new, flags),
            move |made| match made {
                Ok((attr, generation)) => {
                    let generation = Generation(generation.into());
                    reply.created(&ttl, &file_attr(&attr), generation, FILE, open_flags(flags));
                }
                Err(e) => reply.error(report(parent.0, &e)),
            },
        );
    }

    fn ioctl(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        ioctl::answer(&self.server, id, command, data, reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let allocate = move |tree: &Tree| tree.allocate(id.0, what, offset, length);
        self.server.answer_slowly(id.0, allocate, move |done| reply_empty(reply, id, done));
    }

    fn lseek(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        self.seeker.seek(SeekRequest { id: id.0, offset: offset as u64, what, reply });
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits; the caller goes on from where the copy ended.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let copy = move |tree: &Tree| {
            tree.copy_range(from.0, from_offset, to.0, to_offset, len).map(|copied| copied as u32)
        };
        self.server.answer_slowly(from.0, copy, move |copied| reply_written(reply, from, copied));
    }
}
