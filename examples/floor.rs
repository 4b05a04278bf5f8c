//! A bare passthrough filesystem without cryptography: the floor that `scripts/bench` measures kmsfs against.
//!
//!     floor LOWER MOUNTPOINT [attributes]
//!
//! With `attributes` it answers each question for an extended attribute (there is none) instead of saying once that it
//! knows none at all: what a filesystem costs that has them.
//!
//! It asks the kernel for what kmsfs asks for (write-back cache, long time-outs, cached contents, no FLUSH) and does
//! nothing else: no names to decrypt, no tags, no keys. Not a filesystem to use: it never checks who asks.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, Mode, OFlags, RawDir, Stat, Timespec, Timestamps};

const LONG: Duration = Duration::from_hours(24);
const FOREVER: Generation = Generation(0);
const MAX_WRITE: u32 = 1 << 20;

type Answer<T> = Result<T, rustix::io::Errno>;

struct Inode {
    fd: Arc<OwnedFd>,
    lookups: u64,
}

struct Floor {
    inodes: Mutex<HashMap<u64, Inode>>,
    open: Mutex<HashMap<u64, Arc<OwnedFd>>>,
    next: AtomicU64,
    attributes: bool,
}

fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

fn proc_path(fd: impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds as u32)
}

fn kind(mode: u32) -> FileType {
    match fs::FileType::from_raw_mode(mode) {
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharacterDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(stat.st_mode),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

impl Floor {
    fn new(lower: &Path, attributes: bool) -> Answer<Self> {
        let fd =
            Arc::new(fs::open(lower, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        let inodes = Mutex::new(HashMap::from([(1, Inode { fd, lookups: 1 << 40 })]));
        Ok(Self { inodes, open: Mutex::default(), next: AtomicU64::new(1), attributes })
    }

    fn fd(&self, id: INodeNo) -> Answer<Arc<OwnedFd>> {
        self.inodes.lock().get(&id.0).map(|i| i.fd.clone()).ok_or(rustix::io::Errno::STALE)
    }

    fn handle(&self, handle: FileHandle) -> Answer<Arc<OwnedFd>> {
        self.open.lock().get(&handle.0).cloned().ok_or(rustix::io::Errno::BADF)
    }

    fn keep(&self, fd: OwnedFd) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(number, Arc::new(fd));
        FileHandle(number)
    }

    fn entry(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let dir = self.fd(parent)?;
        let fd = fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let attr = attr(&fs::fstat(&fd)?);
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(attr.ino.0).or_insert_with(|| Inode { fd: Arc::new(fd), lookups: 0 });
        inode.lookups += 1;
        Ok(attr)
    }

    fn reopen(&self, id: INodeNo, flags: OFlags) -> Answer<OwnedFd> {
        fs::open(proc_path(self.fd(id)?), flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn list(
        &self,
        id: INodeNo,
        offset: u64,
        mut each: impl FnMut(&OsStr, u64, FileType, u64) -> bool,
    ) -> Answer<()> {
        let dir = self.reopen(id, OFlags::RDONLY | OFlags::DIRECTORY)?;
        fs::seek(&dir, fs::SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let kind = kind(entry.file_type().as_raw_mode());
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if each(name, entry.ino(), kind, entry.next_entry_cookie()) {
                break;
            }
        }
        Ok(())
    }

    fn change(
        &self,
        id: INodeNo,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
        times: (Option<TimeOrNow>, Option<TimeOrNow>),
    ) -> Answer<FileAttr> {
        let fd = self.fd(id)?;
        if let Some(mode) = mode {
            fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if owner != (None, None) {
            let uid = owner.0.map(rustix::process::Uid::from_raw);
            let gid = owner.1.map(rustix::process::Gid::from_raw);
            fs::chownat(&fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = size {
            fs::ftruncate(self.reopen(id, OFlags::WRONLY)?, size)?;
        }
        if times.0.is_some() || times.1.is_some() {
            let times = Timestamps { last_access: set_time(times.0), last_modification: set_time(times.1) };
            fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(attr(&fs::fstat(&fd)?))
    }
}

fn set_time(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}

fn answer_entry(reply: ReplyEntry, made: Answer<FileAttr>) {
    match made {
        Ok(attr) => reply.entry(&LONG, &attr, FOREVER),
        Err(e) => reply.error(errno(e)),
    }
}

fn answer_empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn answer_attr(reply: ReplyAttr, found: Answer<FileAttr>) {
    match found {
        Ok(attr) => reply.attr(&LONG, &attr),
        Err(e) => reply.error(errno(e)),
    }
}

/// With a write-back cache the kernel reads what it fills up, and places appended data itself.
fn lower_flags(flags: i32) -> OFlags {
    let access = if flags & libc::O_ACCMODE == libc::O_RDONLY { OFlags::RDONLY } else { OFlags::RDWR };
    access | OFlags::from_bits_retain((flags & libc::O_TRUNC) as u32)
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_WRITEBACK_CACHE;
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(reply, self.entry(parent, name));
    }

    fn forget(&self, _: &Request, id: INodeNo, count: u64) {
        let mut inodes = self.inodes.lock();
        if let Some(inode) = inodes.get_mut(&id.0) {
            inode.lookups = inode.lookups.saturating_sub(count);
            if inode.lookups == 0 {
                inodes.remove(&id.0);
            }
        }
    }

    fn getattr(&self, _: &Request, id: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(reply, self.fd(id).and_then(fs::fstat).map(|stat| attr(&stat)));
    }

    fn setattr(
        &self,
        _: &Request,
        id: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer_attr(reply, self.change(id, mode, (uid, gid), size, (accessed, modified)));
    }

    fn readlink(&self, _: &Request, id: INodeNo, reply: ReplyData) {
        match self.fd(id).and_then(|fd| fs::readlinkat(fd, "", Vec::new())) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.fd(parent).and_then(|dir| fs::mkdirat(dir, name, Mode::from_raw_mode(mode & !umask)));
        answer_entry(reply, made.and_then(|()| self.entry(parent, name)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.fd(parent).and_then(|dir| fs::unlinkat(dir, name, AtFlags::empty())));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(reply, self.fd(parent).and_then(|dir| fs::unlinkat(dir, name, AtFlags::REMOVEDIR)));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.fd(parent).and_then(|dir| fs::symlinkat(target, dir, name));
        answer_entry(reply, made.and_then(|()| self.entry(parent, name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.fd(parent).and_then(|from| fs::renameat(from, name, self.fd(new_parent)?, new_name));
        answer_empty(reply, done);
    }

    fn link(&self, _: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.fd(id).and_then(|fd| {
            fs::linkat(fs::CWD, proc_path(fd), self.fd(parent)?, name, AtFlags::SYMLINK_FOLLOW)
        });
        answer_entry(reply, made.and_then(|()| self.entry(parent, name)));
    }

    fn open(&self, _: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.reopen(id, lower_flags(flags.0)) {
            Ok(fd) => reply.opened(self.keep(fd), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = lower_flags(flags) | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & !umask);
        let made = self.fd(parent).and_then(|dir| fs::openat(dir, name, flags, mode));
        match made.and_then(|fd| Ok((fd, self.entry(parent, name)?))) {
            Ok((fd, attr)) => {
                reply.created(&LONG, &attr, FOREVER, self.keep(fd), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = Vec::with_capacity(size as usize);
        let read = self
            .handle(handle)
            .and_then(|fd| rustix::io::pread(fd, rustix::buffer::spare_capacity(&mut buffer), offset));
        match read {
            Ok(_) => reply.data(&buffer),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.handle(handle).and_then(|fd| rustix::io::pwrite(fd, data, offset)) {
            Ok(written) => reply.written(written as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open.lock().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let synced =
            self.handle(handle).and_then(|fd| if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) });
        answer_empty(reply, synced);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(if self.attributes { Errno::ENODATA } else { Errno::ENOSYS });
    }

    fn readdir(&self, _: &Request, id: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(id, offset, |name, ino, kind, next| reply.add(INodeNo(ino), next, kind, name));
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        id: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(id, offset, |name, _, _, next| {
            let dot = matches!(name.as_bytes(), b"." | b"..");
            match self.entry(id, name) {
                Ok(found) => {
                    let full = reply.add(found.ino, next, name, &LONG, &found, FOREVER);
                    if full || dot {
                        self.forget_one(found.ino);
                    }
                    full
                }
                Err(_) => false,
            }
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _: &Request, id: INodeNo, reply: ReplyStatfs) {
        match self.fd(id).and_then(fs::fstatfs) {
            Ok(f) => reply.statfs(
                f.f_blocks,
                f.f_bfree,
                f.f_bavail,
                f.f_files,
                f.f_ffree,
                f.f_bsize as u32,
                f.f_namelen as u32,
                f.f_frsize as u32,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }
}

impl Floor {
    fn forget_one(&self, id: INodeNo) {
        let mut inodes = self.inodes.lock();
        if let Some(inode) = inodes.get_mut(&id.0) {
            inode.lookups = inode.lookups.saturating_sub(1);
            if inode.lookups == 0 {
                inodes.remove(&id.0);
            }
        }
    }
}

fn usage() -> ! {
    eprintln!("usage: floor LOWER MOUNTPOINT [attributes]");
    std::process::exit(2);
}

fn main() -> std::io::Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(lower), Some(mountpoint)) = (words.next(), words.next()) else { usage() };
    let attributes = words.next();
    if attributes.as_ref().is_some_and(|word| word != "attributes") || words.next().is_some() {
        usage();
    }
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("floor".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    config.acl = SessionACL::Owner;
    config.n_threads = Some(2);
    config.clone_fd = true;
    fuser::mount(Floor::new(Path::new(&lower), attributes.is_some())?, Path::new(&mountpoint), &config)
}
