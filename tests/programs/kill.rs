//! Ends a process as a crash does.
#![allow(clippy::unwrap_used)] // A test that cannot go on shall panic.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// SIGKILL, and waits until it is gone with its locks and descriptors: a signal that was sent is only on its way.
#[track_caller]
pub fn kill(pid: i32, patience: Duration) {
    let process = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    assert_eq!(poll(&mut ended, Some(&timeout)).unwrap(), 1, "process {pid} does not end");
}
