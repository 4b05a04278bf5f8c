//! The end of the audit log: room kept on disk for the records of calls that have begun, and the writing of them.
//!
//! Called by `audit_log` under its lock. A call begins only when its record has a place: the place is allocated on disk
//! first, so that a disk that fills up meanwhile cannot leave a change without its record.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::api::hex;
use crate::crypto::sha256;

use super::audit::AuditError;
use super::audit_chain::{Link, segment_path};
use super::audit_log::{MAX_LINE, SEGMENT_BYTES, io};

/// Allocated at once beyond what is promised.
const STEP: u64 = 1024 * 1024;
/// Most calls at the same time, and most records that wait for a log that cannot be written.
const MAX_PROMISED: u64 = 1024;

/// Where the next record goes.
pub(super) struct Writer {
    dir: PathBuf,
    pub(super) file: File,
    pub(super) len: u64,
    /// Up to here the file has its blocks.
    allocated: u64,
    /// Records of calls that have begun.
    promised: u64,
    /// Records that could not be written, without their place in the chain; written before any other.
    owed: Vec<String>,
    pub(super) last: Link,
    /// Set when it is unknown what the file holds.
    pub(super) latched: bool,
}

impl Writer {
    /// Goes on in `file`, which holds `len` bytes up to the record `last`.
    pub(super) fn new(dir: &Path, file: File, len: u64, last: Link) -> Self {
        let dir = dir.to_owned();
        Self { dir, file, len, allocated: len, promised: 0, owed: Vec::new(), last, latched: false }
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

    fn ready(&self) -> Result<(), AuditError> {
        if self.latched { Err(AuditError::Latched) } else { Ok(()) }
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
            self.latched = self.file.set_len(self.len).is_err();
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

    fn next_segment(&mut self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|e| io(&e))?;
        let end = (self.promised + 1) * MAX_LINE as u64 + STEP;
        let first = self.last.seq + 1;
        let made = new_segment(&self.dir, first).and_then(|file| {
            allocate(&file, 0, end)?;
            Ok(file)
        });
        let file = made.inspect_err(|_| {
            // The old segment goes on; a name that does not match what follows must not stay.
            let path = segment_path(&self.dir, first);
            self.latched = fs::remove_file(path).is_err_and(|e| e.kind() != ErrorKind::NotFound);
        })?;
        self.give_back();
        (self.file, self.len, self.allocated) = (file, 0, end);
        Ok(())
    }

    /// Frees the blocks kept beyond the end.
    pub(super) fn give_back(&self) {
        if self.allocated > self.len && !self.latched {
            let _ = self.file.set_len(self.len);
        }
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
