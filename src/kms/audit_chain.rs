//! Reading the audit log back: its segments, the chain through them, and the check of the whole.
//!
//! Called by the log when it opens and by `kmsd audit verify`. Reads only.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::api::{hex, unhex};
use crate::crypto::sha256;

use super::audit::AuditError;
use super::audit_head::Head;
use super::audit_log::MAX_LINE;

/// Most segments a log may have.
const MAX_SEGMENTS: usize = 1_000_000;
/// The end of a segment that a start reads: the log is opened in milliseconds, however long it is.
const END_BYTES: u64 = 2 * 1024 * 1024;

/// One place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Sequence number of a record; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Link {
    /// Before the first record.
    pub const START: Self = Self { seq: 0, hash: [0; 32] };
}

/// What one segment holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) last: Option<Link>,
    pub(super) records: u64,
    /// Bytes up to the end of the last whole record.
    pub(super) whole_len: u64,
    /// Bytes after it.
    pub(super) torn: u64,
}

impl Segment {
    pub(super) fn empty() -> Self {
        Self { last: None, records: 0, whole_len: 0, torn: 0 }
    }
}

/// What a verified log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Files.
    pub segments: usize,
    /// Records.
    pub records: u64,
    /// First sequence number; above 1 when older segments were archived.
    pub first_seq: u64,
    /// Last sequence number.
    pub last_seq: u64,
    /// Bytes of a torn last line.
    pub torn: u64,
}

/// Checks every line of the log in `dir`, and that it reaches `head` when that is known.
pub fn verify(dir: &Path, head: Option<Head>) -> Result<Report, AuditError> {
    let mut firsts = segments(dir)?;
    let kept_from = head.map_or(1, |head| head.base.seq + 1);
    // A pruning that was interrupted leaves older ones; the next start removes them.
    firsts.retain(|first| *first >= kept_from);
    let first_seq = firsts.first().copied().unwrap_or(kept_from);
    let mut report =
        Report { segments: firsts.len(), records: 0, first_seq, last_seq: first_seq - 1, torn: 0 };
    if head.is_some() && first_seq != kept_from {
        return Err(AuditError::Broken(format!("records {kept_from} to {} are missing", first_seq - 1)));
    }
    let mut before = match head {
        Some(head) => Some(head.base),
        None => (first_seq == 1).then_some(Link::START),
    };
    let head = head.map(|head| head.last);
    for first in firsts {
        let path = segment_path(dir, first);
        if report.torn > 0 {
            return Err(broken(&path, "follows a torn segment"));
        }
        if first != report.last_seq + 1 {
            let missing = report.last_seq + 1;
            let what =
                format!("records {missing} to {} before it are missing, or it was put there", first - 1);
            return Err(broken(&path, &what));
        }
        let segment = read_segment(&path, before, head)?;
        report.records += segment.records;
        report.torn = segment.torn;
        if let Some(last) = segment.last {
            report.last_seq = last.seq;
            before = Some(last);
        }
    }
    match head {
        Some(head) if report.last_seq < head.seq => Err(AuditError::Broken(format!(
            "records {} to {} were cut off its end",
            report.last_seq + 1,
            head.seq
        ))),
        _ => Ok(report),
    }
}

/// Path of the segment that begins with record `first`.
pub fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("audit-{first:012}.jsonl"))
}

/// First sequence numbers of the segments in `dir`, ascending.
pub fn segments(dir: &Path) -> Result<Vec<u64>, AuditError> {
    let entries = fs::read_dir(dir).map_err(|e| AuditError::Io(format!("{}: {e}", dir.display())))?;
    let mut found = Vec::new();
    for entry in entries.take(MAX_SEGMENTS) {
        let name = entry.map_err(|e| AuditError::Io(e.to_string()))?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".jsonl"));
        if let Some(first) = number.and_then(|n| n.parse::<u64>().ok()).filter(|first| *first > 0) {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Walks a segment. `before` is the link it must continue; `head` a link that must be in it if it reaches so far.
/// Lines that do not verify count as torn when nothing after them does and the head does not vouch for them.
pub(super) fn read_segment(
    path: &Path,
    before: Option<Link>,
    head: Option<Link>,
) -> Result<Segment, AuditError> {
    read_from(path, 0, before, head)
}

/// As `read_segment`; but where a segment is long and its end holds what the signed head names, from there on: the head
/// vouches for all before it, and `verify` reads that.
pub(super) fn read_end(path: &Path, before: Option<Link>, head: Link) -> Result<Segment, AuditError> {
    if let Some((offset, first)) =
        find_end(path).map_err(|e| AuditError::Io(format!("{}: {e}", path.display())))?
        && first.link.seq <= head.seq
    {
        let before = Link { seq: first.link.seq - 1, hash: first.prev };
        if let Ok(segment) = read_from(path, offset, Some(before), Some(head)) {
            return Ok(segment);
        }
    }
    // What is wrong, and where, is told by a look at everything.
    read_segment(path, before, Some(head))
}

/// Where the first whole record in the end of a long segment stands, and its links.
fn find_end(path: &Path) -> std::io::Result<Option<(u64, ChainedLink)>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let Some(begin) = len.checked_sub(END_BYTES).filter(|begin| *begin > 0) else { return Ok(None) };
    file.seek(SeekFrom::Start(begin))?;
    let (mut input, mut line) = (BufReader::new(file), Vec::new());
    // The line that this is in the middle of, and the one behind it.
    let skipped = (&mut input).take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    line.clear();
    input.take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    Ok(parse_line(&line).map(|first| (begin + skipped as u64, first)))
}

fn read_from(
    path: &Path,
    offset: u64,
    before: Option<Link>,
    head: Option<Link>,
) -> Result<Segment, AuditError> {
    let io = |e: std::io::Error| AuditError::Io(format!("{}: {e}", path.display()));
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut input = BufReader::with_capacity(1 << 20, file);
    let (mut segment, mut before, mut line) =
        (Segment { whole_len: offset, ..Segment::empty() }, before, Vec::new());
    loop {
        line.clear();
        let read = (&mut input).take(MAX_LINE as u64).read_until(b'\n', &mut line).map_err(io)?;
        if read == 0 {
            return Ok(segment);
        }
        let Some(link) = parse_line(&line) else { break };
        let continues = before.is_none_or(|b| link.link.seq == b.seq + 1 && link.prev == b.hash);
        let as_signed = head.is_none_or(|h| h.seq != link.link.seq || h.hash == link.link.hash);
        if !continues || !as_signed {
            return Err(broken(path, &format!("record {} does not follow the one before it", link.link.seq)));
        }
        before = Some(link.link);
        segment.last = before;
        segment.records += 1;
        segment.whole_len += read as u64;
    }
    segment.torn = len - segment.whole_len;
    // A tear is at the very end: one line, without its newline or full of what the disk had there.
    let more = rest_holds_a_record(&mut input).map_err(io)?;
    if more {
        let line = segment.records + 1;
        return Err(broken(path, &format!("line {line} was changed")));
    }
    Ok(segment)
}

fn rest_holds_a_record(input: &mut impl BufRead) -> std::io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if parse_line(&line).is_some() {
            return Ok(true);
        }
    }
}

/// The record before the first one of the segment that begins with `first`, as that one names it.
pub(super) fn link_named_by(dir: &Path, first: u64) -> Result<Link, AuditError> {
    let path = segment_path(dir, first);
    let mut line = Vec::new();
    let file = File::open(&path).map_err(|e| AuditError::Io(format!("{}: {e}", path.display())))?;
    BufReader::new(file)
        .take(MAX_LINE as u64)
        .read_until(b'\n', &mut line)
        .map_err(|e| AuditError::Io(format!("{}: {e}", path.display())))?;
    match parse_line(&line) {
        Some(found) if found.link.seq == first => Ok(Link { seq: first - 1, hash: found.prev }),
        _ => Err(broken(&path, "its first line is not its first record")),
    }
}

/// A record's own link, and the hash of the one before it.
pub(super) struct ChainedLink {
    pub(super) link: Link,
    pub(super) prev: [u8; 32],
}

/// The chain members of a whole line whose hash is right.
pub(super) fn parse_line(line: &[u8]) -> Option<ChainedLink> {
    const HASH: &str = ",\"hash\":\"";
    const PREV: &str = ",\"prev\":\"";
    const SEQ: &str = ",\"seq\":";
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\"}\n")?;
    let (covered, hash) = line.split_at_checked(line.len().checked_sub(64)?)?;
    let covered = covered.strip_suffix(HASH)?;
    let head = covered.strip_suffix('"')?;
    let (head, prev) = head.split_at_checked(head.len().checked_sub(64)?)?;
    let seq = &head.strip_suffix(PREV)?;
    let seq = &seq[seq.rfind(SEQ)? + SEQ.len()..];
    if hex(&sha256(covered.as_bytes())) != hash {
        return None;
    }
    let bytes = |text| unhex(text).and_then(|b| <[u8; 32]>::try_from(b).ok());
    Some(ChainedLink { link: Link { seq: seq.parse().ok()?, hash: bytes(hash)? }, prev: bytes(prev)? })
}

fn broken(path: &Path, what: &str) -> AuditError {
    AuditError::Broken(format!("{}: {what}", path.display()))
}
