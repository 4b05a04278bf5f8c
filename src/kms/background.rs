//! `serve --background`: starts the daemon as a child, waits until it answers, and passes its word on.
//!
//! Called by the command line. The child is this program again, in the foreground, with `--report`: it writes one
//! line on standard output, `ready` or `CODE MESSAGE`. There is no fork: threads and locked memory stay whole.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::audit_log::AuditSync;
use super::audit_retention::MIB;
use super::daemon::{self, ServePlan};
use super::failure::Failure;
use super::keeper::Bounds;
use super::seal_source::SealSource;

const READY: &str = "ready";
/// How long a start may take: a passphrase is expensive, a large store is checked whole.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// Longest line of the child.
const MAX_REPORT: u64 = 16 * 1024;

/// Starts `plan` in the background; returns when it answers.
pub fn start(plan: &ServePlan, log: &Path) -> Result<(), Failure> {
    // What can be told without the secret is told before it is asked for.
    let source = daemon::check_before_start(plan)?;
    let secret = match &source {
        SealSource::Passphrase(None) => Some(source.read()?),
        _ => None,
    };
    let passphrase = secret.as_ref().and_then(|secret| secret.passphrase());
    let mut child = spawn(plan, log, passphrase.is_some())?;
    if let (Some(text), Some(mut input)) = (passphrase, child.stdin.take()) {
        // A child that died already says why on its own.
        let _ = input.write_all(text).and_then(|()| input.write_all(b"\n"));
    }
    match read_report(&mut child)?.as_deref() {
        Some(READY) => Ok(()),
        Some(report) => Err(parse_report(report)),
        None => {
            Err(Failure::Child(format!("kmsd ended, or hung, before it answered; see {}", log.display()), 9))
        }
    }
}

/// Tells the parent that the daemon answers.
pub fn report_ready() {
    report(READY);
}

/// Tells the parent why the daemon does not start.
pub fn report_failure(failure: &Failure) {
    let line = failure.to_string().replace('\n', " ");
    report(&format!("{} {line}", failure.exit_code()));
}

fn report(line: &str) {
    // The parent may be gone; the daemon goes on.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn spawn(plan: &ServePlan, log: &Path, with_input: bool) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::System("this program".into(), e))?;
    let mut command = Command::new(program);
    command.args(arguments(plan));
    command.stdin(if with_input { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped());
    command.stderr(open_log(log).map_err(|e| Failure::System(log.display().to_string(), e))?);
    // The supervisor's socket is not for a process that it did not start.
    command.env_remove("NOTIFY_SOCKET");
    command.spawn().map_err(|e| Failure::System("kmsd cannot be started".into(), e))
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn arguments(plan: &ServePlan) -> Vec<OsString> {
    let mut out: Vec<OsString> = vec!["serve".into(), "--report".into()];
    let mut option = |name: &str, value: OsString| out.extend([OsString::from(name), value]);
    option("--dir", plan.state.path().into());
    option("--socket", plan.socket.clone().into());
    option("--socket-mode", format!("{:o}", plan.socket_mode).into());
    if let Some(address) = plan.listen {
        option("--listen", address.to_string().into());
    }
    option("--settle", plan.settle_millis.to_string().into());
    for region in &plan.regions {
        option("--region", region.into());
    }
    let tls = plan.tls.as_ref();
    let (certificate, key) = (tls.map(|tls| &tls.certificate), tls.map(|tls| &tls.key));
    let files = [
        ("--seed", plan.seed.as_ref()),
        ("--map", plan.map.as_ref()),
        ("--tls-cert", certificate),
        ("--tls-key", key),
    ];
    for (name, path) in files {
        if let Some(path) = path {
            option(name, path.clone().into());
        }
    }
    match &plan.seal {
        Some(SealSource::KeyFile(path)) => option("--seal", format!("keyfile:{}", path.display()).into()),
        Some(SealSource::Passphrase(Some(path))) => {
            option("--seal", format!("passphrase:{}", path.display()).into());
        }
        Some(SealSource::Passphrase(None)) => option("--seal", "passphrase".into()),
        None => {}
    }
    if let Some(workers) = plan.workers {
        option("--workers", workers.to_string().into());
    }
    if plan.audit_sync == AuditSync::Each {
        option("--audit-sync", "each".into());
    }
    add_bounds(plan, &mut option);
    if plan.takes_unknown_principals {
        out.push("--unknown-principals".into());
    }
    if log::max_level() >= log::LevelFilter::Info {
        out.push("-v".into());
    }
    out
}

fn add_bounds(plan: &ServePlan, option: &mut impl FnMut(&str, OsString)) {
    if let Some(address) = plan.metrics {
        option("--metrics", address.to_string().into());
    }
    let Bounds { quotas, faults, retention } = &plan.bounds;
    if let Some(profile) = quotas.to_possible_value() {
        option("--quota-profile", profile.get_name().into());
    }
    for fault in faults {
        option("--inject", fault.to_string().into());
    }
    if let Some(days) = retention.days {
        option("--audit-keep-days", days.to_string().into());
    }
    if let Some(bytes) = retention.bytes {
        option("--audit-keep-mib", (bytes / MIB).to_string().into());
    }
}

/// The child's line; `None` when it ended without one, or took too long.
fn read_report(child: &mut Child) -> Result<Option<String>, Failure> {
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let deadline = Instant::now() + START_TIMEOUT;
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
    let mut wait = [PollFd::new(&output, PollFlags::IN)];
    let ready = rustix::event::poll(&mut wait, Some(&timeout));
    let ready = ready.map_err(|e| Failure::System("waiting for kmsd".into(), e.into()))?;
    if ready == 0 {
        // It never answered, so nothing of its work is lost.
        let _ = child.kill();
        return Ok(None);
    }
    let mut line = String::new();
    let read = BufReader::new(output.take(MAX_REPORT)).read_line(&mut line);
    read.map_err(|e| Failure::System("waiting for kmsd".into(), e))?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

fn parse_report(line: &str) -> Failure {
    let (code, message) = line.split_once(' ').unwrap_or(("9", line));
    Failure::Child(message.to_owned(), code.parse().unwrap_or(9))
}
