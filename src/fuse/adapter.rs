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
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attr::{decode_device, set_time};
use super::dirs::Dirs;
use super::errno::report;
use super::files::Files;
use super::ioctl;
use super::kernel_cache::KernelCache;
use super::reply::{absent_entry, reply_attr, reply_data, reply_empty, reply_entry, reply_sized};
use super::seeker::Seeker;
use super::server::Server;
use super::session::{MountOptions, negotiate};
use crate::tree::{
    Asker, Caller, FsError, Kind, NewObject, RenameMode, SetAttr, SpecialFile, Tree, XattrMode,
};

/// The filesystem as the library drives it.
pub struct Adapter {
    server: Arc<Server>,
    dirs: Dirs,
    files: Files,
    cache_time: Duration,
    writeback: bool,
    per_caller: bool,
    /// The kernel enforces labels (SELinux).
    labels: bool,
}

/// The label of SELinux.
const LABEL: &str = "security.selinux";

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// Whether a change by this caller takes set-user-id and set-group-id from the file; a write request tells itself.
fn loses_set_id(request: &Request) -> bool {
    request.uid() != 0
}

/// Whether this kernel has a use for labels: it offers their filesystem then (filesystems(5)).
fn labels_are_enforced() -> bool {
    std::fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("selinuxfs"))
}

impl Adapter {
    /// Serves the server's tree.
    pub fn new(server: Arc<Server>, seeker: Seeker, kernel: KernelCache, options: &MountOptions) -> Self {
        let writeback = options.writeback && !options.read_only;
        let cache_time = options.cache_time;
        let dirs = Dirs::new(server.clone(), cache_time);
        let files = Files::new(server.clone(), (seeker, kernel), cache_time, options);
        let labels = labels_are_enforced();
        Self { server, dirs, files, cache_time, writeback, per_caller: options.per_caller, labels }
    }

    /// Who asks for a file's key by `request`. The user id is the kernel's word.
    fn asker(&self, request: &Request) -> Asker {
        if self.per_caller { Asker::Caller(request.uid()) } else { Asker::Mount }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, self.writeback);
        self.dirs.set_must_open(!config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
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

    fn getattr(&self, _request: &Request, id: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(refused) = handle.and_then(|_| self.files.refusal(id)) {
            return reply.error(refused);
        }
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
        handle: Option<FileHandle>,
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
        let asker = handle.map_or_else(|| self.asker(request), |handle| self.files.holder(handle));
        self.server.answer(
            id.0,
            move |tree| tree.set_attr(id.0, set, caller, asker),
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

    fn open(&self, request: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.files.open(id, flags, self.asker(request), reply);
    }

    fn read(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.server.read(id.0, offset, size as usize, self.files.holder(handle), reply);
    }

    fn write(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.files.write(id, handle, offset, data, (write_flags, flags), reply);
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
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.release(id, handle, reply);
    }

    fn fsync(&self, _request: &Request, id: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.files.sync(id, handle, data_only, reply);
    }

    fn opendir(&self, _request: &Request, _id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.dirs.open(reply);
    }

    fn readdir(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.dirs.read(id, offset, reply);
    }

    fn readdirplus(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.dirs.read_plus(id, offset, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, id: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.dirs.sync(id, reply);
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
        let asker = self.asker(request);
        let set = move |tree: &Tree| tree.set_xattr(id.0, &name, &value, mode, caller, asker);
        self.server.answer(id.0, set, move |done| reply_empty(reply, id, done));
    }

    fn getxattr(&self, request: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // `ls -l` asks for the label of each file, but of no other one once it is told that there are none here.
        let no_labels = name == LABEL && !self.labels;
        let (name, asker) = (name.as_bytes().to_vec(), self.asker(request));
        self.server.answer(
            id.0,
            move |tree| tree.xattr(id.0, &name, asker),
            move |value| match value {
                Ok(value) => reply_sized(reply, size, &value),
                Err(FsError::Os(rustix::io::Errno::NODATA)) if no_labels => reply.error(Errno::EOPNOTSUPP),
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
        self.files.create(parent, name, new, flags, self.asker(request), reply);
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
        request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.files.allocate(id, handle, (offset, length), mode, loses_set_id(request), reply);
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
        self.files.seek(id, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let set_id = loses_set_id(request);
        let (from, to) = ((from, from_handle, from_offset), (to, to_handle, to_offset));
        self.files.copy(from, to, len, set_id, reply);
    }
}
