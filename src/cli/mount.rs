//! `kmsfs mount`, and `mount.fuse.kmsfs` for fstab: starts the mount's own process and waits until it answers.
//!
//! The process is a fresh one rather than a fork: nothing of the parent's memory goes along. It says on its standard
//! output that the mount answers, or what is wrong.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use clap::Parser;

use super::args::{Cli, MountArgs};
use super::error::{CliError, Exit};
use super::mount_plan::MountPlan;
use super::serve;

/// What the child says when the mount answers.
pub(super) const READY: &str = "ready";
/// What it says before the exit code and the message otherwise.
pub(super) const FAILED: &str = "failed";
/// A mount that does not answer within this time has failed.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// Longest message of the child.
const MAX_MESSAGE: u64 = 64 * 1024;
/// Names under which mount(8) calls us: `NAME LOWER MNT -o OPTIONS`.
const HELPER_NAMES: &[&str] = &["mount.fuse.kmsfs", "mount.kmsfs", "mount.fuse3.kmsfs"];

/// `kmsfs mount`
pub fn mount(args: &MountArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    if args.daemon_child {
        return serve::as_child(args, kms);
    }
    let plan = MountPlan::new(args, kms)?;
    if args.foreground {
        return serve::in_foreground(&plan);
    }
    start(&plan, args, verbose)
}

fn start(plan: &MountPlan, args: &MountArgs, verbose: u8) -> Result<(), CliError> {
    let failed =
        |e: std::io::Error| CliError::new(Exit::Mount, format!("cannot start the mount's process: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("mount").arg("--daemon-child").arg(&plan.lower).arg(&plan.mountpoint);
    for (set, flag) in [
        (args.allow_other, "--allow-other"),
        (args.read_only, "--read-only"),
        (args.accept_older, "--accept-older"),
    ] {
        command.args(set.then_some(flag));
    }
    for option in &args.options {
        command.arg("-o").arg(option);
    }
    for (name, file) in &args.customer_key {
        // The child works in another directory.
        let is_fd = file.to_str().is_some_and(|text| text.starts_with("fd:"));
        let file = if is_fd { file.clone() } else { std::path::absolute(file).map_err(failed)? };
        command.arg("--customer-key").arg(format!("{name}={}", file.display()));
    }
    if let Some(idle) = args.idle {
        command.arg("--idle").arg(idle.as_secs().to_string());
    }
    if let Some(log) = &args.log {
        command.arg("--log").arg(std::path::absolute(log).map_err(failed)?);
    }
    if let Some(name) = &args.attach {
        command.arg("--attach").arg(name);
    }
    if let Some(kms) = &plan.kms {
        command.arg("--kms").arg(kms);
    }
    command.args((0..verbose).map(|_| "--verbose"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let stdout = child.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
    let (sender, receiver) = channel();
    // A thread, because a pipe cannot be read with a time-out.
    std::thread::spawn(move || sender.send(read_outcome(stdout)));
    receiver.recv_timeout(START_PATIENCE).unwrap_or_else(|_| {
        let _ = child.kill();
        Err(CliError::new(Exit::Mount, "the mount did not answer in time"))
    })
}

/// What the child reports: ready, or an exit code and a message.
fn read_outcome(stdout: impl Read) -> Result<(), CliError> {
    let mut reader = BufReader::new(stdout.take(MAX_MESSAGE));
    let mut first = String::new();
    let _ = reader.read_line(&mut first);
    if first.trim_end() == READY {
        return Ok(());
    }
    let mut message = String::new();
    let _ = reader.read_to_string(&mut message);
    match first.trim_end().strip_prefix(FAILED).and_then(|code| code.trim().parse().ok()) {
        Some(code) => Err(CliError::from_code(code, message.trim_end().to_owned())),
        None => Err(CliError::new(Exit::Mount, "the mount's process ended before the mount answered")),
    }
}

/// The arguments of a call by mount(8), rewritten as those of `kmsfs mount`; `None` for an ordinary call.
pub fn as_helper(arguments: &[OsString]) -> Option<Result<Cli, ExitCode>> {
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    if !HELPER_NAMES.contains(&name) {
        return None;
    }
    let mut rewritten: Vec<OsString> = vec!["kmsfs".into(), "mount".into()];
    let mut options = Vec::new();
    let mut rest = arguments[1..].iter();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => options.extend(rest.next().cloned()),
            // Sloppy, verbose, no mtab, fake: nothing that matters here.
            Some("-s" | "-v" | "-n" | "-f") => {}
            Some("-t") => {
                rest.next();
            }
            _ => rewritten.push(argument.clone()),
        }
    }
    for option in options {
        rewritten.push("-o".into());
        rewritten.push(option);
    }
    Some(Cli::try_parse_from(rewritten).map_err(|e| {
        let _ = e.print();
        // mount(8): 1 is a wrong call.
        ExitCode::from(1)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command as Parsed;

    fn helper(line: &str) -> Option<MountArgs> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match as_helper(&arguments)?.ok()?.command {
            Parsed::Mount(args) => Some(args),
            _ => None,
        }
    }

    #[test]
    fn a_call_by_mount_is_a_mount() {
        let args = helper("/sbin/mount.fuse.kmsfs /lower /mnt -o rw,allow_other,idle=5m -v").unwrap();
        assert_eq!((args.lower.to_str(), args.mountpoint.to_str()), (Some("/lower"), Some("/mnt")));
        assert_eq!(args.options, ["rw", "allow_other", "idle=5m"]);
        assert!(helper("kmsfs mount /lower /mnt").is_none());
        assert!(helper("mount.kmsfs /lower").is_none());
    }

    #[test]
    fn the_childs_word_is_passed_on() {
        assert!(read_outcome(&b"ready\n"[..]).is_ok());
        let error = read_outcome(&b"failed 4\nthe key is disabled\n"[..]).unwrap_err();
        assert_eq!((error.exit, error.message.as_str()), (Exit::Key, "the key is disabled"));
        assert_eq!(read_outcome(&b""[..]).unwrap_err().exit, Exit::Mount);
    }
}
