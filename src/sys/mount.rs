//! Mounting and unmounting a FUSE filesystem, with the rights of the process itself.
//!
//! Called by `fuse`. Ordinary users have no such right; for them `fuse` asks the setuid helper.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Restrictions the kernel puts on the mount.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)] // They are the kernel's own independent mount flags.
pub struct MountFlags {
    /// No change through this mount.
    pub read_only: bool,
    /// Set-user-id has no effect.
    pub no_suid: bool,
    /// Device files have no effect.
    pub no_dev: bool,
    /// Programs do not run.
    pub no_exec: bool,
}

fn text(s: &[u8]) -> io::Result<CString> {
    CString::new(s).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Mounts the connection `device` (an open `/dev/fuse`) at `mountpoint`.
pub fn mount_fuse(
    device: impl AsFd,
    source: &str,
    subtype: &str,
    mountpoint: &Path,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let fd = device.as_fd().as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id={},group_id={}{options}", uid.as_raw(), gid.as_raw());
    let (source, data) = (text(source.as_bytes())?, text(data.as_bytes())?);
    let kind = text(format!("fuse.{subtype}").as_bytes())?;
    let target = text(mountpoint.as_os_str().as_bytes())?;
    let mut bits = 0;
    for (on, bit) in [
        (flags.read_only, libc::MS_RDONLY),
        (flags.no_suid, libc::MS_NOSUID),
        (flags.no_dev, libc::MS_NODEV),
        (flags.no_exec, libc::MS_NOEXEC),
    ] {
        bits |= if on { bit } else { 0 };
    }
    // SAFETY: all four are NUL-terminated strings that outlive the call.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), bits, data.as_ptr().cast()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts what is mounted at `mountpoint`. `lazy` takes a busy mount out of sight and ends it when it is free.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let target = text(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the string is NUL-terminated and outlives the call.
    let done = unsafe { libc::umount2(target.as_ptr(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
