//! The commands about running mounts: status, lock, unlock, umount.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::args::{LockArgs, StatusArgs, UmountArgs, UnlockArgs};
use super::control::{self, Answer, Request, Status};
use super::error::{CliError, Exit};
use super::figures;
use super::output::{facts, json as print_json, line, table, time_of};
use super::service::{self, Behalf};
use crate::volume::MountLock;

/// How long `umount` waits for the mount to write everything and end: a slow disk may have gigabytes before it.
const UNMOUNT_PATIENCE: Duration = Duration::from_mins(10);
const UNMOUNT_POLL: Duration = Duration::from_millis(20);
/// How often a busy mount is tried, so far apart: whoever merely looks at it (a `df`, a monitor) is gone by then.
const BUSY_TRIES: u32 = 25;
const BUSY_PAUSE: Duration = Duration::from_millis(40);

/// `kmsfs status`
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    if let Some(mountpoint) = &args.mountpoint {
        let Answer::Status(status) = control::ask(mountpoint, &Request::Status)? else {
            return Err(CliError::failed("the mount gave an answer to another question"));
        };
        if args.prometheus {
            return line(figures::prometheus(&status).trim_end());
        }
        return if args.json { print_json(&status) } else { print_status(&status) };
    }
    let mounts = control::mounts();
    if args.json {
        return print_json(&mounts);
    }
    if mounts.is_empty() {
        return line("nothing is mounted");
    }
    let shown = |path: &Path| path.display().to_string();
    let row = |s: &Status| {
        let mode = if s.read_only { "ro" } else { "rw" };
        let files = s.open_files.to_string();
        vec![shown(&s.mountpoint), shown(&s.lower), mode.to_owned(), files, s.default_key.clone()]
    };
    let rows: Vec<_> = mounts.iter().map(row).collect();
    table(&["MOUNT POINT", "LOWER", "MODE", "OPEN", "KEY"], &rows)
}

fn print_status(s: &Status) -> Result<(), CliError> {
    let mut shown = vec![
        ("mount point", Some(s.mountpoint.display().to_string())),
        ("lower directory", Some(s.lower.display().to_string())),
        ("volume id", Some(s.volume_id.clone())),
        ("mode", Some(if s.read_only { "read-only" } else { "read-write" }.to_owned())),
        ("key service", Some(s.kms.clone())),
        ("key for new files", Some(s.default_key.clone())),
        ("data keys cached", Some(s.cached_keys.to_string())),
        ("data keys in stock", Some(s.fresh_keys.to_string())),
        ("locked", s.locked.then(|| "everything, by 'kmsfs lock'".to_owned())),
        ("locked keys", (!s.locked_keys.is_empty()).then(|| s.locked_keys.join(", "))),
        ("rights to keys", s.per_caller.then(|| "decided for each caller".to_owned())),
        ("open files", Some(s.open_files.to_string())),
        ("inodes known", Some(s.inodes.to_string())),
        (
            "damage met",
            (s.damage_seen > 0).then(|| format!("{} requests; see the log, run fsck", s.damage_seen)),
        ),
        ("since", Some(time_of(s.since))),
        ("unmounts when idle", s.idle_seconds.map(|n| format!("for {n} s"))),
        ("process", Some(s.pid.to_string())),
    ];
    shown.extend(figures::lines(&s.figures));
    if let Some(work) = &s.work {
        shown.push(("under way", Some(work.to_string())));
    }
    shown.push(("socket", Some(s.socket.display().to_string())));
    facts(&shown)
}

/// `kmsfs lock`
pub fn lock(args: &LockArgs) -> Result<(), CliError> {
    let key = args.key.as_deref().map(|key| arn_of(&args.mountpoint, key)).transpose()?;
    let then = match (args.once, &key) {
        (true, _) => "the next use of a file asks for its key".to_owned(),
        (false, None) => "nothing is fetched until 'kmsfs unlock'".to_owned(),
        (false, Some(key)) => format!("nothing is fetched under {key} until 'kmsfs unlock'"),
    };
    match control::ask(&args.mountpoint, &Request::Lock { key, once: args.once })? {
        Answer::Locked(keys) => line(&format!("{keys} data keys dropped; {then}")),
        _ => Err(CliError::failed("the mount gave an answer to another question")),
    }
}

/// `kmsfs unlock`
pub fn unlock(args: &UnlockArgs) -> Result<(), CliError> {
    let key = args.key.as_deref().map(|key| arn_of(&args.mountpoint, key)).transpose()?;
    match control::ask(&args.mountpoint, &Request::Unlock { key })? {
        Answer::Unlocked(true) => line("unlocked"),
        Answer::Unlocked(false) => Err(CliError::failed("it was not locked; 'kmsfs status' tells what is")),
        _ => Err(CliError::failed("the mount gave an answer to another question")),
    }
}

/// The ARN of `key` at the mount's key service. An ARN is taken as it is: it may be locked though the service is away.
fn arn_of(mountpoint: &Path, key: &str) -> Result<String, CliError> {
    if key.starts_with("arn:") && key.contains(":key/") {
        return Ok(key.to_owned());
    }
    let Answer::Status(status) = control::ask(mountpoint, &Request::Status)? else {
        return Err(CliError::failed("the mount gave an answer to another question"));
    };
    let kms = service::connect(Some(&status.kms), Behalf::Filesystem)?;
    Ok(kms.describe_key(key)?.arn)
}

/// `kmsfs umount`: returns when the daemon has written everything and is gone.
pub fn umount(args: &UmountArgs) -> Result<(), CliError> {
    unmount(&args.mountpoint, args.lazy)
}

/// Unmounts `mountpoint`, and unless `lazy` waits until its daemon has written everything and is gone.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), CliError> {
    let status = match control::ask(mountpoint, &Request::Status) {
        Ok(Answer::Status(status)) => Some(status),
        _ => None,
    };
    detach(mountpoint, lazy)?;
    let Some(status) = status.filter(|_| !lazy) else { return Ok(()) };
    let deadline = Instant::now() + UNMOUNT_PATIENCE;
    while MountLock::take(&status.lower).is_err() {
        if Instant::now() > deadline {
            let text = format!(
                "{} is unmounted here, but process {} has not ended: it still writes to {}, or another mount namespace \
                 holds the mount",
                status.mountpoint.display(),
                status.pid,
                status.lower.display()
            );
            return Err(CliError::new(Exit::Busy, text));
        }
        std::thread::sleep(UNMOUNT_POLL);
    }
    Ok(())
}

/// Takes the mount away, also when somebody is just looking at it.
fn detach(mountpoint: &Path, lazy: bool) -> Result<(), CliError> {
    while_busy(|| detach_once(mountpoint, lazy), || std::thread::sleep(BUSY_PAUSE))
}

fn while_busy(mut attempt: impl FnMut() -> Result<(), CliError>, pause: impl Fn()) -> Result<(), CliError> {
    for _ in 1..BUSY_TRIES {
        match attempt() {
            Err(e) if e.exit == Exit::Busy => pause(),
            done => return done,
        }
    }
    attempt()
}

/// Takes the mount away: by fusermount3, which any user may call, else by umount.
fn detach_once(mountpoint: &Path, lazy: bool) -> Result<(), CliError> {
    let mut complaint = String::new();
    for (program, unmount, lazily) in [("fusermount3", "-u", "-uz"), ("umount", "--", "-l")] {
        let flag = if lazy { lazily } else { unmount };
        match Command::new(program).arg(flag).arg(mountpoint).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                complaint = if text.is_empty() { format!("{program} failed") } else { text };
            }
            Err(e) => complaint = format!("{program}: {e}"),
        }
    }
    let complaint = complaint.trim_end_matches('.');
    let busy = complaint.to_ascii_lowercase().contains("busy");
    let exit = if busy { Exit::Busy } else { Exit::Failed };
    let hint = if busy { "; close what is open there, or use --lazy" } else { "" };
    Err(CliError::new(exit, format!("cannot unmount {}: {complaint}{hint}", mountpoint.display())))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_mount_that_is_busy_for_a_moment_is_tried_again_and_no_other_failure() {
        let (tries, pauses) = (Cell::new(0), Cell::new(0));
        let run = |exit: Exit, failures: u32| {
            tries.set(0);
            pauses.set(0);
            let attempt = || {
                tries.set(tries.get() + 1);
                if tries.get() > failures { Ok(()) } else { Err(CliError::new(exit, "no".to_owned())) }
            };
            let done = while_busy(attempt, || pauses.set(pauses.get() + 1));
            (done.is_ok(), tries.get(), pauses.get())
        };
        assert_eq!(run(Exit::Busy, 2), (true, 3, 2));
        assert_eq!(run(Exit::Failed, 2), (false, 1, 0));
        assert_eq!(run(Exit::Busy, u32::MAX), (false, BUSY_TRIES, BUSY_TRIES - 1));
    }
}
