//! Project quotas of a directory: one limit for everything below it, whoever writes.
//!
//! Called by `volume`. Needs a lower filesystem that was mounted with project quotas (ext4, xfs), and root.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR` of linux/fs.h.
const GET_XATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const SET_XATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;
/// What is made in the directory belongs to its project.
const PROJECT_INHERIT: u32 = 0x200;
/// `QCMD(Q_SETQUOTA, PRJQUOTA)` of linux/quota.h.
const SET_PROJECT_QUOTA: libc::c_long = (0x80_0008 << 8) | 2;
/// The limit of blocks is what is set (`QIF_BLIMITS`).
const BLOCK_LIMITS: u32 = 1;
/// Bytes of a quota block.
const QUOTA_BLOCK: u64 = 1024;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct QuotaBlock {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Limits what `dir`, which is empty, will hold to `bytes`, under the project number `project`.
pub fn limit(dir: &OwnedFd, project: u32, bytes: u64) -> io::Result<()> {
    // The limit first: where there are no quotas, nothing is changed.
    set_limit(dir, project, bytes)?;
    let mut attributes = attributes_of(dir)?;
    attributes.project = project;
    attributes.flags |= PROJECT_INHERIT;
    set_attributes(dir, &attributes)
}

/// Takes `dir`, which is empty, out of the project `project`, where it is in that, and the limit from the project.
pub fn lift(dir: &OwnedFd, project: u32) -> io::Result<()> {
    let lifted = set_limit(dir, project, 0);
    match attributes_of(dir) {
        Ok(mut attributes) if attributes.project == project => {
            attributes.project = 0;
            attributes.flags &= !PROJECT_INHERIT;
            set_attributes(dir, &attributes).and(lifted)
        }
        // It was never put under the limit.
        _ => Ok(()),
    }
}

fn attributes_of(dir: &OwnedFd) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open, and the call fills in a structure of this layout.
    if unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), GET_XATTR, &raw mut attributes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes)
}

fn set_attributes(dir: &OwnedFd, attributes: &FsXattr) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call only reads a structure of this layout.
    if unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), SET_XATTR, std::ptr::from_ref(attributes)) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the limit of a project on the filesystem of `dir`; 0 is none.
pub fn set_limit(dir: &OwnedFd, project: u32, bytes: u64) -> io::Result<()> {
    let blocks = bytes.div_ceil(QUOTA_BLOCK);
    let block =
        QuotaBlock { hard_blocks: blocks, soft_blocks: blocks, valid: BLOCK_LIMITS, ..QuotaBlock::default() };
    // SAFETY: quotactl_fd(2) reads a structure of this layout.
    let done = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            dir.as_fd().as_raw_fd(),
            SET_PROJECT_QUOTA,
            libc::c_long::from(project),
            &raw const block,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
