//! Getting a connection to the kernel mounted: directly where the process may, else through `fusermount3`.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::session::MountOptions;
use crate::sys::mount::{MountFlags, mount_fuse, unmount as unmount_directly};

const DEVICE: &str = "/dev/fuse";
const SUBTYPE: &str = "kmsfs";
const HELPER: &str = "fusermount3";
/// How long the helper may take before the mount counts as failed.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Mounts at `mountpoint` and gives the connection.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        return mount_by_helper(mountpoint, options);
    }
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MountFlags {
        read_only: options.read_only,
        no_suid: options.no_suid,
        no_dev: options.no_dev,
        no_exec: options.no_exec,
    };
    let allow = if options.allow_other { ",default_permissions,allow_other" } else { ",default_permissions" };
    mount_fuse(&device, &options.source, SUBTYPE, mountpoint, flags, allow)?;
    Ok(device)
}

/// The words for the helper's `-o`. It adds nosuid and nodev on its own.
fn helper_options(options: &MountOptions) -> String {
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut words =
        vec![format!("fsname={source}"), format!("subtype={SUBTYPE}"), "default_permissions".into()];
    for (on, word) in
        [(options.allow_other, "allow_other"), (options.read_only, "ro"), (options.no_exec, "noexec")]
    {
        if on {
            words.push(word.into());
        }
    }
    words.join(",")
}

fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(HELPER_TIMEOUT))?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{HELPER} cannot be run (package fuse3): {e}")))?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    received.map_err(|e| {
        let said = String::from_utf8_lossy(&output.stderr);
        io::Error::new(e.kind(), format!("{HELPER}: {}", said.trim()))
    })
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    descriptors.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// Unmounts `mountpoint`, by the helper where the process itself may not.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    match unmount_directly(mountpoint, lazy) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        other => return other,
    }
    let mut helper = Command::new(HELPER);
    helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    let output = helper.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
