//! The end of the audit log: room kept on disk for the records of calls that have begun, and the writing of them.
//!
//! Called by `audit_log` under its lock. A call begins only when its record has a place: the place is allocated on disk
//! first, so that a disk that fills up meanwhile cannot leave a change without its record.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::api::hex;
use crate::crypto::sha256;

use super::audit::AuditError;
use super::audit_chain::{Link, parse_line, segment_path};
use super::audit_log::{MAX_LINE, SEGMENT_BYTES, io};

/// Allocated at once beyond what is promised.
const STEP: u64 = 1024 * 1024;
/// Most calls at the same time, and most records that wait for a log that cannot be written.
const MAX_PROMISED: u64 = 1024;

/// How often a log in trouble is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// First record of the segment.
    pub(super) first: u64,
    /// Bytes of it.
    pub(super) len: u64,
    /// The last record.
    pub(super) last: Link,
}

/// Where the next record goes.
pub(super) struct Writer {
    dir: PathBuf,
    pub(super) file: File,
    first: u64,
    pub(super) len: u64,
    /// Up to here the file has its blocks.
    allocated: u64,
    /// Records of calls that have begun.
    promised: u64,
    /// Records that could not be written, without their place in the chain; written before any other.
    owed: Vec<String>,
    last: Link,
    /// Up to here the segment is known to be on disk.
    synced: (u64, Link),
    trouble: Option<Trouble>,
    retry_at: Option<Instant>,
}

/// What is in the way of the next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Part of a line may stand at the end.
    Torn,
    /// A segment was named that does not follow.
    StrayName(u64),
    /// The kernel reported that it lost writes, and will not do so twice.
    Unsynced,
}

impl Writer {
    /// Goes on in `file` at `position`, up to which it is whole.
    pub(super) fn new(dir: &Path, file: File, position: Position) -> Self {
        let Position { first, len, last } = position;
        Self {
            dir: dir.to_owned(),
            file,
            first,
            len,
            allocated: len,
            promised: 0,
            owed: Vec::new(),
            last,
            synced: (len, last),
            trouble: None,
            retry_at: None,
        }
    }

    /// The end of the log.
    pub(super) fn position(&self) -> Position {
        Position { first: self.first, len: self.len, last: self.last }
    }

    /// Notes that everything up to `position` is on disk.
    pub(super) fn is_synced_to(&mut self, position: Position) {
        if position.first == self.first {
            self.synced = (position.len, position.last);
        }
    }

    /// Notes that a sync failed.
    pub(super) fn lost_sync(&mut self) {
        self.trouble = Some(Trouble::Unsynced);
    }

    /// Why nothing can be recorded, if so.
    pub(super) fn trouble(&self) -> Option<AuditError> {
        self.trouble.map(|_| AuditError::Down)
    }

    #[cfg(test)]
    pub(super) fn forget_pause(&mut self) {
        self.retry_at = None;
    }

    /// Whether a record can be written; repairs what an earlier failure left, once a second.
    pub(super) fn ready(&mut self) -> Result<(), AuditError> {
        let Some(trouble) = self.trouble else { return Ok(()) };
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(AuditError::Down);
        }
        self.retry_at = Some(Instant::now() + RETRY);
        match trouble {
            Trouble::Torn => self.file.set_len(self.len).map_err(|e| io(&e))?,
            Trouble::StrayName(first) => remove_stray(&self.dir, first)?,
            Trouble::Unsynced => self.write_again()?,
        }
        (self.trouble, self.retry_at) = (None, None);
        log::warn!("the audit log can be written again");
        Ok(())
    }

    /// After a failed sync the kernel takes its pages for clean: what was not on disk is written and synced anew.
    fn write_again(&mut self) -> Result<(), AuditError> {
        let (from, before) = self.synced;
        let path = segment_path(&self.dir, self.first);
        // Not the log's own handle, which can only append.
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| io(&e))?;
        let mut bytes = vec![0; usize::try_from(self.len - from).unwrap_or(0)];
        file.read_exact_at(&mut bytes, from).map_err(|e| io(&e))?;
        check_tail(&bytes, before, self.last).ok_or_else(|| {
            AuditError::Broken(format!("{}: records were lost by the disk", path.display()))
        })?;
        file.write_all_at(&bytes, from).and_then(|()| file.sync_data()).map_err(|e| io(&e))?;
        self.synced = (self.len, self.last);
        Ok(())
    }

    /// Keeps a place for one more record. Refuses while there are records that could not be written.
    pub(super) fn reserve(&mut self) -> Result<(), AuditError> {
        self.ready()?;
        self.write_owed()?;
        if self.promised >= MAX_PROMISED {
            return Err(AuditError::Io(format!("more than {MAX_PROMISED} calls at once")));
        }
        if self.len >= SEGMENT_BYTES {
            self.next_segment()?;
        }
        self.allocate(self.promised + 1)?;
        self.promised += 1;
        Ok(())
    }

    /// Writes `line`, whose members are complete but for the chain, into the place kept for it.
    pub(super) fn append(&mut self, line: &mut String) -> Result<u64, AuditError> {
        self.promised = self.promised.saturating_sub(1);
        let members = line.len();
        let outcome = self.ready().and_then(|()| self.write_owed()).and_then(|()| self.write(line));
        if outcome.is_err() && (self.owed.len() as u64) < MAX_PROMISED {
            line.truncate(members);
            self.owed.push(line.clone());
        }
        outcome
    }

    fn write_owed(&mut self) -> Result<(), AuditError> {
        while let Some(mut line) = self.owed.first().cloned() {
            self.write(&mut line)?;
            self.owed.remove(0);
        }
        Ok(())
    }

    /// Completes `line` with its place in the chain and writes it with one call.
    fn write(&mut self, line: &mut String) -> Result<u64, AuditError> {
        let seq = self.last.seq + 1;
        let _ = write!(line, ",\"seq\":{seq},\"prev\":\"{}\"", hex(&self.last.hash));
        let hash = sha256(line.as_bytes());
        let _ = write!(line, ",\"hash\":\"{}\"}}", hex(&hash));
        line.push('\n');
        if line.len() > MAX_LINE {
            return Err(AuditError::TooLarge(line.len()));
        }
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Part of the line may be there; without it the next record can be tried again.
            self.trouble = self.file.set_len(self.len).is_err().then_some(Trouble::Torn);
            self.allocated = self.len;
            return Err(io(&error));
        }
        self.len += line.len() as u64;
        self.last = Link { seq, hash };
        Ok(seq)
    }

    /// Sees to it that `records` of any size have their blocks.
    fn allocate(&mut self, records: u64) -> Result<(), AuditError> {
        let wanted = self.len + records * MAX_LINE as u64;
        if wanted <= self.allocated {
            return Ok(());
        }
        let end = wanted + STEP;
        allocate(&self.file, self.len, end)?;
        self.allocated = end;
        Ok(())
    }

    /// Closes the segment and begins the next one.
    pub(super) fn next_segment(&mut self) -> Result<(), AuditError> {
        if let Err(error) = self.file.sync_data() {
            self.lost_sync();
            return Err(io(&error));
        }
        self.synced = (self.len, self.last);
        let end = (self.promised + 1) * MAX_LINE as u64 + STEP;
        let first = self.last.seq + 1;
        let made = new_segment(&self.dir, first).and_then(|file| {
            allocate(&file, 0, end)?;
            Ok(file)
        });
        let file = made.inspect_err(|_| {
            // The old segment goes on; a name that does not match what follows must not stay.
            self.trouble = remove_stray(&self.dir, first).is_err().then_some(Trouble::StrayName(first));
        })?;
        self.give_back();
        (self.file, self.first, self.len, self.allocated) = (file, first, 0, end);
        self.synced = (0, self.last);
        Ok(())
    }

    /// Frees the blocks kept beyond the end.
    pub(super) fn give_back(&self) {
        if self.allocated > self.len && self.trouble.is_none() {
            let _ = self.file.set_len(self.len);
        }
    }
}

/// Whether `bytes` are whole records that go from `before` to `last`.
fn check_tail(bytes: &[u8], before: Link, last: Link) -> Option<()> {
    let mut at = before;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let found = parse_line(line)?;
        if found.prev != at.hash || found.link.seq != at.seq + 1 {
            return None;
        }
        at = found.link;
    }
    (at == last).then_some(())
}

fn remove_stray(dir: &Path, first: u64) -> Result<(), AuditError> {
    match fs::remove_file(segment_path(dir, first)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(&error)),
        _ => Ok(()),
    }
}

/// Gives `file` its blocks up to `end`, beyond its length. A file system that cannot do that has to do without.
fn allocate(file: &File, from: u64, end: u64) -> Result<(), AuditError> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, from, end - from) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(io(&error.into())),
    }
}

/// Makes the segment that begins with record `first`; an empty one that an earlier attempt left is taken.
pub(super) fn new_segment(dir: &Path, first: u64) -> Result<File, AuditError> {
    let path = segment_path(dir, first);
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).open(&path).map_err(|e| io(&e))?;
    if file.metadata().map_err(|e| io(&e))?.len() > 0 {
        return Err(AuditError::Broken(format!("{} is there already", path.display())));
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io(&e))?;
    Ok(file)
}
