//! What a process that holds keys gives up at start: dumps, debuggers, new privileges, a lax umask.
//!
//! Called first thing by both programs. `no_new_privileges` is for the key daemon only: a mount as an ordinary user
//! needs the set-uid helper `fusermount3`.

use std::io;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;

/// No core file, and no reading of our memory by other processes of the same user.
pub fn forbid_dumps() -> io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// No program started from here on gains rights by set-uid bits or file capabilities.
pub fn no_new_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Quotas hold for this process too: root's CAP_SYS_RESOURCE would write beyond them. For the calling thread and those
/// that it starts.
pub fn obey_quotas() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    if sets.effective.contains(CapabilitySet::SYS_RESOURCE) {
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        rustix::thread::set_capabilities(None, sets)?;
    }
    Ok(())
}

/// New files are ours alone unless a mode is set explicitly.
pub fn private_umask() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// How many files this process may have open.
pub fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Fails, with advice, where this process may have fewer than `least` files open: with too few a program stops at a place
/// that hangs on chance, in the middle of something.
pub fn need_descriptors(least: usize) -> io::Result<()> {
    let limit = descriptors();
    if limit >= least {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the limit of open files is {limit}, and at least {least} are needed; raise it (ulimit -n, or LimitNOFILE= of the unit)"
    )))
}

/// Raises the limit of open files as far as it goes, up to `wanted`; returns the limit in force.
pub fn raise_open_files(wanted: u64) -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(wanted).min(wanted);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= allowed {
        return current;
    }
    let raised = Rlimit { current: Some(allowed), maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => allowed,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_obeyed_by_the_thread_that_says_so() {
        obey_quotas().unwrap();
        let sets = rustix::thread::capabilities(None).unwrap();
        assert!(!sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    }

    #[test]
    fn a_hardened_process_leaves_no_core_and_no_way_in() {
        forbid_dumps().unwrap();
        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
