//! `kmsd audit`: follow the audit log, search it, check it, remove what is old, start it anew.
//!
//! Called by the command line. Reads only, but for `prune`, and `reset`, which moves a broken log aside.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Subcommand;

use super::audit_chain::{Report, segment_path, segments, verify};
use super::audit_head::signed_head;
use super::audit_log::{self, AuditLog, AuditSync, MAX_LINE};
use super::audit_retention::{MIB, Retention, accept_missing};
use super::audit_search::{Query, search, timeline};
use super::daemon;
use super::failure::Failure;
use super::seal_source::SealSource;
use super::state_dir::StateDir;

/// How often a followed log is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
/// Most records shown of the past.
const MAX_TAIL: u32 = 100_000;

/// What to do with the log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check every record: none changed, moved, removed, and none cut off the end
    Verify {
        /// What unseals the root key, whose MAC the end of the log carries
        #[arg(long, value_name = "SOURCE")]
        seal: Option<SealSource>,
        /// Check the chain only, without the root key: records cut off the end do not show
        #[arg(long, conflicts_with = "seal")]
        chain_only: bool,
    },
    /// Print the last records, one JSON object a line
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_TAIL)))]
        lines: u32,
        /// Go on as they come
        #[arg(short, long)]
        follow: bool,
    },
    /// Print the records that fit, one JSON object a line
    Search(Query),
    /// Tell who used what when: a line for each record that fits
    Timeline(Query),
    /// Remove old segments, or accept that archived ones are gone (the daemon must be stopped)
    Prune {
        /// Remove segments whose last record is older
        #[arg(long, value_name = "DAYS", required_unless_present_any = ["keep_mib", "accept_missing"])]
        keep_days: Option<u32>,
        /// Remove the oldest segments beyond this size
        #[arg(long, value_name = "MIB")]
        keep_mib: Option<u64>,
        /// The oldest segments were moved away: check the rest, and sign that it begins there
        #[arg(long, conflicts_with_all = ["keep_days", "keep_mib"])]
        accept_missing: bool,
        /// What unseals the root key
        #[arg(long, value_name = "SOURCE")]
        seal: Option<SealSource>,
    },
    /// Move a broken log aside and start a new one (the daemon must be stopped)
    Reset {
        /// What unseals the root key
        #[arg(long, value_name = "SOURCE")]
        seal: Option<SealSource>,
    },
}

/// Runs one of the commands.
pub fn run(state: &StateDir, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Verify { seal, chain_only } => check(state, seal.as_ref(), chain_only),
        AuditCommand::Tail { lines, follow } => {
            tail(state, lines as usize, follow).map_err(|e| Failure::System("the audit log".into(), e))
        }
        AuditCommand::Search(query) => find(state, &query, |dir, out| search(dir, &query, out)),
        AuditCommand::Timeline(query) => find(state, &query, |dir, out| timeline(dir, &query, out)),
        AuditCommand::Prune { keep_days, keep_mib, accept_missing, seal } => {
            let keep = Retention { days: keep_days, bytes: keep_mib.map(|mib| mib * MIB) };
            prune(state, seal.as_ref(), keep, accept_missing)
        }
        AuditCommand::Reset { seal } => reset(state, seal.as_ref()),
    }
}

fn check(state: &StateDir, seal: Option<&SealSource>, chain_only: bool) -> Result<(), Failure> {
    let dir = state.audit_dir();
    // The head is read first: a running daemon only adds behind it.
    let head = if chain_only {
        None
    } else {
        let key = daemon::unseal(state, seal)?.audit_key();
        Some(signed_head(&dir, &key).map_err(Failure::Audit)?)
    };
    let Report { segments, records, first_seq, last_seq, torn } =
        verify(&dir, head).map_err(Failure::Audit)?;
    println!("{records} records ({first_seq} to {last_seq}) in {segments} segments are whole");
    if torn > 0 {
        println!("{torn} bytes of an unfinished record stand at the end");
    }
    if first_seq > 1 {
        println!("records before {first_seq} are no longer kept");
    }
    Ok(())
}

fn find(
    state: &StateDir,
    query: &Query,
    show: impl FnOnce(&Path, &mut io::BufWriter<io::StdoutLock<'_>>) -> io::Result<u64>,
) -> Result<(), Failure> {
    let failed = |e| Failure::System("the audit log".into(), e);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let found = show(&state.audit_dir(), &mut out).map_err(failed)?;
    out.flush().map_err(failed)?;
    match query.unknown_error().filter(|_| found == 0) {
        Some(name) => Err(Failure::Usage(format!(
            "no record has the error {name}, and there is none of that name; they are called as clients see them: \
             AccessDeniedException, NotFoundException, NoSuchEntity"
        ))),
        None => Ok(()),
    }
}

fn prune(state: &StateDir, seal: Option<&SealSource>, keep: Retention, accept: bool) -> Result<(), Failure> {
    let _lock = daemon::lock(state)?;
    let key = daemon::unseal(state, seal)?.audit_key();
    let dir = state.audit_dir();
    if accept {
        let first = accept_missing(&dir, &key).map_err(Failure::Audit)?;
        println!("the log begins with record {first}");
        return Ok(());
    }
    let log = AuditLog::open(&dir, key, AuditSync::Second).map_err(Failure::Audit)?;
    let gone = log.prune(keep, SystemTime::now()).map_err(Failure::Audit)?;
    println!("{gone} segments removed");
    Ok(())
}

fn reset(state: &StateDir, seal: Option<&SealSource>) -> Result<(), Failure> {
    let _lock = daemon::lock(state)?;
    let key = daemon::unseal(state, seal)?.audit_key();
    let aside = free_name(state)?;
    fs::rename(state.audit_dir(), &aside).map_err(|e| Failure::System(aside.display().to_string(), e))?;
    audit_log::create(&state.audit_dir(), &key).map_err(Failure::Audit)?;
    println!("the old log is kept in {}", aside.display());
    Ok(())
}

fn free_name(state: &StateDir) -> Result<PathBuf, Failure> {
    let names = (1..10_000).map(|number| state.path().join(format!("audit.old-{number}")));
    let free = names.into_iter().find(|path| !path.exists());
    free.ok_or_else(|| Failure::Refused("too many old audit logs; remove some".into()))
}

fn tail(state: &StateDir, lines: usize, follow: bool) -> io::Result<()> {
    let dir = state.audit_dir();
    let all = segments(&dir).map_err(|e| io::Error::other(e.to_string()))?;
    let Some(mut current) = all.last().copied() else { return Ok(()) };
    let mut file = File::open(segment_path(&dir, current))?;
    let mut position = show_last(&mut file, lines)?;
    if !follow {
        return Ok(());
    }
    loop {
        position += copy_lines(&mut file, position)?;
        let next = segments(&dir).map_err(|e| io::Error::other(e.to_string()))?.last().copied();
        match next.filter(|next| *next > current) {
            Some(next) => {
                copy_lines(&mut file, position)?;
                current = next;
                file = File::open(segment_path(&dir, current))?;
                position = 0;
            }
            None => std::thread::sleep(FOLLOW_PAUSE),
        }
    }
}

/// Prints the last `lines` lines; returns where the file ended.
fn show_last(file: &mut File, lines: usize) -> io::Result<u64> {
    let mut starts = std::collections::VecDeque::with_capacity(lines + 1);
    let (mut at, mut input, mut line) = (0, BufReader::new(&mut *file), Vec::new());
    loop {
        line.clear();
        let read = (&mut input).take(MAX_LINE as u64).read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            break;
        }
        starts.push_back(at);
        if starts.len() > lines {
            starts.pop_front();
        }
        at += read;
    }
    let from = starts.front().copied().unwrap_or(at);
    Ok(from + copy_lines(file, from)?)
}

/// Prints everything from `from` on; returns how many bytes that was.
fn copy_lines(file: &mut File, from: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(from))?;
    let mut out = io::stdout().lock();
    let copied = io::copy(file, &mut out)?;
    out.flush()?;
    Ok(copied)
}
