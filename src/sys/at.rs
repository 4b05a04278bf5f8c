//! File system calls relative to descriptors: single names only, never through a symbolic link.
//!
//! Called by `tree`. Must never be given a name that holds a slash: `checked` refuses it. A descriptor opened with
//! `O_PATH` stands for an inode whatever its permissions; [`proc_path`] is how calls that refuse `O_PATH` reach it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

#[cfg(test)]
use super::steps;

/// Largest value of an extended attribute (XATTR_SIZE_MAX of xattr(7)).
pub const XATTR_SIZE_MAX: usize = 65536;
/// Largest list of attribute names (XATTR_LIST_MAX of xattr(7)).
pub const XATTR_LIST_MAX: usize = 65536;

/// What [`open_regular`] says of anything else (`InvalidData`).
const NOT_REGULAR: &str = "it is not a regular file; kmsfs did not put it there";

/// `path` without symbolic links and from the root, or as it is where that cannot be told.
pub fn resolved(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// A single path component that resolves below its directory.
fn checked(name: &[u8]) -> Result<&[u8], Errno> {
    if name.is_empty() || name.contains(&b'/') || name == b".." { Err(Errno::INVAL) } else { Ok(name) }
}

/// Opens `name` in `dir` with `flags`; a symbolic link is opened itself or refused.
pub fn open(dir: impl AsFd, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    #[cfg(test)]
    if flags.contains(OFlags::CREATE) {
        steps::admit("open")?;
    }
    fs::openat(dir, checked(name)?, flags, Mode::from_raw_mode(mode))
}

/// Opens `name` in `dir`, or makes it, as a regular file. What else somebody put there (a FIFO, a device, a directory, a
/// symbolic link) is refused, and never waited for.
pub fn open_regular(dir: impl AsFd, name: &[u8], flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    let foreign = || io::Error::new(io::ErrorKind::InvalidData, NOT_REGULAR);
    let fd = match open(dir, name, flags | OFlags::NONBLOCK, mode) {
        Ok(fd) => fd,
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(foreign()),
        Err(e) => return Err(e.into()),
    };
    let kind = FileType::from_raw_mode(fs::fstat(&fd)?.st_mode);
    if kind == FileType::RegularFile { Ok(fd) } else { Err(foreign()) }
}

/// The inode `name` in `dir`, whatever it is, for everything but data.
pub fn open_path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    open(dir, name, OFlags::PATH, 0)
}

/// The directory `name` in `dir`, for lookups; needs no right to read it.
pub fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    open(dir, name, OFlags::PATH | OFlags::DIRECTORY, 0)
}

/// A relative path of several components, resolved below `dir` and through no symbolic link.
pub fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A path by which calls without a descriptor form reach the inode of `fd` itself.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens the inode of `fd` anew, with its own offset and other flags.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the directory of `fd` anew, for reading its entries or syncing it.
pub fn reopen_dir(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    fs::openat(fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// File systems whose journal, or memory, holds changes of names in the order in which they were made: EXT4_SUPER_MAGIC,
/// XFS_SUPER_MAGIC, TMPFS_MAGIC of statfs(2).
const IN_ORDER: [i64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

/// Whether a power cut that leaves a name in the directory `fd` surely leaves the names that were made in it before.
pub fn keeps_order_of_names(fd: impl AsFd) -> bool {
    #[cfg(test)]
    if steps::watched() {
        return false;
    }
    fs::fstatfs(fd).is_ok_and(|found| IN_ORDER.contains(&found.f_type))
}

/// Status of the entry `name`.
pub fn stat(dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    fs::statat(dir, checked(name)?, AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets permission bits; works on `O_PATH`.
pub fn set_mode(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("set_mode")?;
    let mode = Mode::from_raw_mode(mode);
    match fs::fchmod(&fd, mode) {
        Err(Errno::BADF) => fs::chmod(proc_path(fd), mode),
        done => done,
    }
}

/// Sets owner and group; works on `O_PATH`.
pub fn set_owner(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("set_owner")?;
    let uid = uid.map(rustix::process::Uid::from_raw);
    let gid = gid.map(rustix::process::Gid::from_raw);
    fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// Sets the times; works on `O_PATH`.
pub fn set_times(fd: impl AsFd, times: &fs::Timestamps) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("set_times")?;
    fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH)
}

/// Sets the time of the last write of an open file.
pub fn set_modified(fd: impl AsFd, time: fs::Timespec) -> Result<(), Errno> {
    let last_access = fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
    #[cfg(test)]
    steps::admit("set_modified")?;
    fs::futimens(fd, &fs::Timestamps { last_access, last_modification: time })
}

/// The target of the symbolic link `name`.
pub fn read_link(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    fs::readlinkat(dir, checked(name)?, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// The target of the symbolic link that the `O_PATH` descriptor `fd` stands for.
pub fn read_link_of(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    fs::readlinkat(fd, "", Vec::new()).map(std::ffi::CString::into_bytes)
}

/// Removes the entry `name`, which is not a directory.
pub fn unlink(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("unlink")?;
    fs::unlinkat(dir, checked(name)?, AtFlags::empty())
}

/// Removes the empty directory `name`.
pub fn rmdir(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("rmdir")?;
    fs::unlinkat(dir, checked(name)?, AtFlags::REMOVEDIR)
}

/// Gives the inode of `fd` (`O_PATH` will do) another name.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("link")?;
    fs::linkat(fs::CWD, proc_path(fd), dir, checked(name)?, AtFlags::SYMLINK_FOLLOW)
}

/// Gives the entry `from` another name, `to`.
pub fn link_entry(from_dir: impl AsFd, from: &[u8], dir: impl AsFd, to: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("link_entry")?;
    fs::linkat(from_dir, checked(from)?, dir, checked(to)?, AtFlags::empty())
}

/// Makes a symbolic link.
pub fn make_link(target: &[u8], dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("make_link")?;
    fs::symlinkat(target, dir, checked(name)?)
}

/// Makes a directory.
pub fn make_dir(dir: impl AsFd, name: &[u8], mode: u32) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("make_dir")?;
    fs::mkdirat(dir, checked(name)?, Mode::from_raw_mode(mode))
}

/// Makes a special file, or a plain one; `device` is major and minor number.
pub fn make_node(
    dir: impl AsFd,
    name: &[u8],
    kind: FileType,
    mode: u32,
    device: (u32, u32),
) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("make_node")?;
    fs::mknodat(dir, checked(name)?, kind, Mode::from_raw_mode(mode), fs::makedev(device.0, device.1))
}

/// Renames `from`.
pub fn rename(
    from_dir: impl AsFd,
    from: &[u8],
    dir: impl AsFd,
    to: &[u8],
    flags: RenameFlags,
) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("rename")?;
    fs::renameat_with(from_dir, checked(from)?, dir, checked(to)?, flags)
}

/// Makes the entries of the directory `fd`, opened for reading, durable.
pub fn sync_dir(fd: impl AsFd) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("sync_dir")?;
    fs::fsync(fd)
}

/// Makes everything on the filesystem of `fd` durable.
pub fn sync_filesystem(fd: impl AsFd) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("sync_filesystem")?;
    fs::syncfs(fd)
}

/// Makes the file `fd` durable.
pub fn sync_file(fd: impl AsFd) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("sync_file")?;
    fs::fsync(fd)
}

/// Writes all of `bytes` at `offset`, in one call where the kernel takes them so.
pub fn write_at(fd: impl AsFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("write_at")?;
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(&fd, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Cuts the file `fd` to `len` bytes, or lengthens it by a hole.
pub fn set_len(fd: impl AsFd, len: u64) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("set_len")?;
    fs::ftruncate(fd, len)
}

/// The value of an attribute of the inode of `fd`; works on `O_PATH`.
pub fn xattr(fd: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = proc_path(fd);
    whole_xattr(|value| fs::getxattr(path.as_str(), name, rustix::buffer::spare_capacity(value)))
}

/// The value of an attribute of the entry `entry` of `dir`, which may be opened with `O_PATH`, in one call.
pub fn xattr_of_entry(dir: impl AsFd, entry: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = [proc_path(dir).as_bytes(), b"/", checked(entry)?].concat();
    whole_xattr(|value| fs::lgetxattr(path.as_slice(), name, rustix::buffer::spare_capacity(value)))
}

/// The value that `get` puts into the room it is given, which is made larger once.
fn whole_xattr(get: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut value = Vec::with_capacity(256);
    match get(&mut value) {
        Err(Errno::RANGE) => {}
        other => return other.map(|_| value),
    }
    value.reserve(XATTR_SIZE_MAX);
    get(&mut value)?;
    Ok(value)
}

/// Sets an attribute of the inode of `fd`; works on `O_PATH`.
pub fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8], flags: fs::XattrFlags) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("set_xattr")?;
    fs::setxattr(proc_path(fd), name, value, flags)
}

/// Removes an attribute of the inode of `fd`; works on `O_PATH`.
pub fn remove_xattr(fd: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(test)]
    steps::admit("remove_xattr")?;
    fs::removexattr(proc_path(fd), name)
}

/// The names of the attributes of the inode of `fd`; works on `O_PATH`.
pub fn list_xattrs(fd: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut list = Vec::with_capacity(XATTR_LIST_MAX);
    fs::listxattr(proc_path(fd), rustix::buffer::spare_capacity(&mut list))?;
    Ok(list.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The supplementary groups of process `pid`; empty where they cannot be read.
pub fn groups_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        for name in [&b""[..], b"..", b"a/b", b"/etc"] {
            assert_eq!(stat(fs::CWD, name).unwrap_err(), Errno::INVAL);
        }
    }

    #[test]
    fn a_symbolic_link_is_never_followed() {
        let dir = std::env::temp_dir().join(format!("kmsfs-at-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        let fd = fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(open(&fd, b"link", OFlags::RDONLY, 0).unwrap_err(), Errno::LOOP);
        assert!(open_dir(&fd, b"link").is_err());
        assert_eq!(open_beneath(&fd, b"link/passwd", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(read_link_of(open_path(&fd, b"link").unwrap()).unwrap(), b"/etc");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
