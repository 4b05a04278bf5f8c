//! Subvolumes of btrfs: made, snapshotted and destroyed in one step each, however much they hold.
//!
//! Called by `volume`. Must only be asked about directories of btrfs; [`is_subvolume`] tells.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{fstat, fstatfs};

#[cfg(test)]
use crate::sys::steps;

/// `BTRFS_SUPER_MAGIC`.
const MAGIC: u64 = 0x9123_683e;
/// Inode number of the root directory of each subvolume.
const ROOT_INODE: u64 = 256;
/// linux/btrfs.h: `_IOW(0x94, 14 | 15, 4096 bytes)`, `_IOW(0x94, 23, 4096 bytes)`.
const SUBVOL_CREATE: libc::Ioctl = 0x5000_940e_u32 as libc::Ioctl;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f_u32 as libc::Ioctl;
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417_u32 as libc::Ioctl;
const NAME_LEN: usize = 4088;
const NAME_LEN_V2: usize = 4040;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Args {
    fd: i64,
    name: [u8; NAME_LEN],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct ArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_LEN_V2],
}

/// Whether the directory lies on btrfs.
pub fn is_btrfs(dir: impl AsFd) -> bool {
    fstatfs(dir).is_ok_and(|stat| stat.f_type as u64 == MAGIC)
}

/// Whether the directory is the root of a subvolume.
pub fn is_subvolume(dir: impl AsFd) -> bool {
    is_btrfs(&dir) && fstat(dir).is_ok_and(|stat| stat.st_ino == ROOT_INODE)
}

/// Makes the subvolume `name` in `parent`.
pub fn create(parent: impl AsFd, name: &str) -> io::Result<()> {
    by_name(parent, name, SUBVOL_CREATE)
}

/// Removes the subvolume `name` of `parent` with all that it holds; no subvolume may be left below it.
pub fn destroy(parent: impl AsFd, name: &str) -> io::Result<()> {
    by_name(parent, name, SNAP_DESTROY)
}

/// Makes `name` in `parent` a writable snapshot of the subvolume `source`.
pub fn snapshot(source: impl AsFd, parent: impl AsFd, name: &str) -> io::Result<()> {
    let mut args = ArgsV2 {
        fd: i64::from(source.as_fd().as_raw_fd()),
        transid: 0,
        flags: 0,
        unused: [0; 4],
        name: [0; NAME_LEN_V2],
    };
    copy_name(&mut args.name, name)?;
    #[cfg(test)]
    steps::admit("snapshot")?;
    // SAFETY: the structure is that of the call, its name ends with a NUL, and it outlives the call.
    let done = unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), SNAP_CREATE_V2, &raw const args) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn by_name(parent: impl AsFd, name: &str, call: libc::Ioctl) -> io::Result<()> {
    let mut args = Args { fd: 0, name: [0; NAME_LEN] };
    copy_name(&mut args.name, name)?;
    #[cfg(test)]
    steps::admit("subvolume")?;
    // SAFETY: the structure is that of the call, its name ends with a NUL, and it outlives the call.
    let done = unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), call, &raw const args) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A single name, shorter than its place.
fn copy_name(place: &mut [u8], name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= place.len() || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    place[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_names_are_taken_and_plain_directories_are_no_subvolumes() {
        let here = std::fs::File::open("/proc").unwrap();
        for bad in ["", "a/b", "a\0b"] {
            assert_eq!(create(&here, bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert!(!is_subvolume(&here));
    }
}
