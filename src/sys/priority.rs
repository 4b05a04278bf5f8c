//! Giving way to others: the lowest priority for processor and disk.
//!
//! Called by long work that nobody waits for. Must never raise a priority.

use std::io;

/// Niceness of work that nobody waits for.
const NICENESS: i32 = 19;
/// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)` of linux/ioprio.h.
const IDLE_CLASS: libc::c_int = 3 << 13;
/// `IOPRIO_WHO_PROCESS`.
const WHO_PROCESS: libc::c_int = 1;

/// Lets every other process go first, from this thread and those it starts.
pub fn give_way() -> io::Result<()> {
    rustix::process::nice(NICENESS)?;
    // SAFETY: the call takes three numbers; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE_CLASS) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
