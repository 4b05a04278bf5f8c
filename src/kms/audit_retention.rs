//! How long the audit log is kept: whole segments go, oldest first, and the signed head says from where on it is kept.
//!
//! Called by the background worker and by `kmsd audit prune`. The head is written before a segment goes, so that an
//! interrupted pruning is finished at the next start and never looks like somebody else's deed.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::crypto::AuditKey;

use super::audit::AuditError;
use super::audit_chain::{link_named_by, segment_path, segments, verify};
use super::audit_head::{Head, HeadFile};
use super::audit_log::{AuditLog, io};

/// A segment is closed at this age, so that retention by days has something to remove.
const MAX_AGE: Duration = Duration::from_hours(24);

/// The unit of the command line.
pub const MIB: u64 = 1024 * 1024;

/// What is kept; everything where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Days since the last record of a segment.
    pub days: Option<u32>,
    /// Bytes of all segments together.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Whether everything is kept.
    pub fn keeps_all(self) -> bool {
        self == Self::default()
    }
}

struct Closed {
    first: u64,
    bytes: u64,
    age: Duration,
}

impl AuditLog {
    /// Removes closed segments that `keep` does not cover; returns how many.
    pub fn prune(&self, keep: Retention, now: SystemTime) -> Result<usize, AuditError> {
        if keep.keeps_all() {
            return Ok(0);
        }
        self.close_old(now)?;
        let firsts = segments(&self.dir)?;
        let Some((current, closed)) = firsts.split_last() else { return Ok(0) };
        let closed =
            closed.iter().map(|first| look_at(&self.dir, *first, now)).collect::<Result<Vec<_>, _>>()?;
        let current_bytes = look_at(&self.dir, *current, now)?.bytes;
        let gone = count_to_remove(&closed, current_bytes, keep);
        if gone == 0 {
            return Ok(0);
        }
        let kept_from = closed.get(gone).map_or(*current, |segment| segment.first);
        let end = self.writer.lock().position();
        // A segment that was just begun names nobody yet.
        let base = if end.first == kept_from && end.len == 0 {
            end.last
        } else {
            link_named_by(&self.dir, kept_from)?
        };
        self.sync()?;
        let mut synced = self.synced.lock();
        let head = Head { base, ..synced.head };
        self.sign(&mut synced, head)?;
        drop(synced);
        for segment in &closed[..gone] {
            fs::remove_file(segment_path(&self.dir, segment.first)).map_err(|e| io(&e))?;
        }
        log::info!("audit log: {gone} old segments were removed; it begins with record {kept_from} now");
        Ok(gone)
    }

    /// Begins a new segment when the current one was begun long ago and holds something.
    fn close_old(&self, now: SystemTime) -> Result<(), AuditError> {
        let mut writer = self.writer.lock();
        let position = writer.position();
        let begun = fs::metadata(segment_path(&self.dir, position.first)).and_then(|facts| facts.created());
        let age = begun.ok().and_then(|begun| now.duration_since(begun).ok());
        if position.len > 0 && age.is_some_and(|age| age >= MAX_AGE) {
            writer.ready()?;
            writer.next_segment()?;
        }
        Ok(())
    }
}

fn look_at(dir: &Path, first: u64, now: SystemTime) -> Result<Closed, AuditError> {
    let facts = fs::metadata(segment_path(dir, first)).map_err(|e| io(&e))?;
    let written = facts.modified().map_err(|e| io(&e))?;
    Ok(Closed { first, bytes: facts.len(), age: now.duration_since(written).unwrap_or_default() })
}

/// How many of the oldest segments go.
fn count_to_remove(closed: &[Closed], current_bytes: u64, keep: Retention) -> usize {
    let mut bytes = current_bytes + closed.iter().map(|segment| segment.bytes).sum::<u64>();
    let mut gone = 0;
    for segment in closed {
        let too_old = keep.days.is_some_and(|days| segment.age > Duration::from_hours(24) * days);
        if !too_old && keep.bytes.is_none_or(|most| bytes <= most) {
            break;
        }
        bytes -= segment.bytes;
        gone += 1;
    }
    gone
}

/// Takes the log in `dir` as beginning with the oldest segment that is still there: the older ones were archived by
/// hand. Everything that is left is checked. Returns the number of the first record kept.
pub fn accept_missing(dir: &Path, key: &AuditKey) -> Result<u64, AuditError> {
    let file = HeadFile::open(dir, false)?;
    let head = file.read(key)?;
    let firsts = segments(dir)?;
    let first = *firsts.first().ok_or_else(|| AuditError::Broken("no segment is left".into()))?;
    if first <= head.base.seq + 1 {
        return Ok(head.base.seq + 1);
    }
    let head = Head { base: link_named_by(dir, first)?, ..head };
    verify(dir, Some(head))?;
    file.write(key, head)?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::super::audit_head::signed_head;
    use super::super::audit_log::tests::{Scratch, key, write};
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn with_segments(count: usize) -> Scratch {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        for _ in 1..count {
            log.writer.lock().next_segment().unwrap();
            write(&log).unwrap();
        }
        scratch
    }

    #[test]
    fn old_segments_go_and_the_log_stays_whole() {
        let scratch = with_segments(4);
        let log = scratch.open().unwrap();
        let keep = Retention { days: Some(30), bytes: None };
        let now = SystemTime::now();
        assert_eq!(log.prune(Retention::default(), now + 1000 * DAY).unwrap(), 0);
        assert_eq!(log.prune(keep, now + 29 * DAY).unwrap(), 0);
        // The one in use is closed for its age, and is as old as the others.
        write(&log).unwrap();
        assert_eq!(segments(&scratch.0).unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(log.prune(keep, now + 31 * DAY).unwrap(), 5);
        drop(log);
        write(&scratch.open().unwrap()).unwrap();
        let head = signed_head(&scratch.0, &key()).unwrap();
        let report = verify(&scratch.0, Some(head)).unwrap();
        assert_eq!((report.first_seq, report.last_seq), (6, 6));
    }

    #[test]
    fn no_more_bytes_are_kept_than_were_asked_for() {
        let scratch = with_segments(4);
        let log = scratch.open().unwrap();
        let one = fs::metadata(segment_path(&scratch.0, 1)).unwrap().len();
        let keep = Retention { days: None, bytes: Some(one * 2 + one / 2) };
        assert_eq!(log.prune(keep, SystemTime::now()).unwrap(), 2);
        assert_eq!(segments(&scratch.0).unwrap(), [3, 4]);
    }

    #[test]
    fn what_was_removed_without_the_head_is_noticed_until_it_is_accepted() {
        let scratch = with_segments(4);
        fs::remove_file(segment_path(&scratch.0, 1)).unwrap();
        assert!(scratch.open().is_err());
        assert_eq!(accept_missing(&scratch.0, &key()).unwrap(), 2);
        write(&scratch.open().unwrap()).unwrap();
        // A gap in what is left is no archiving.
        fs::remove_file(segment_path(&scratch.0, 3)).unwrap();
        fs::remove_file(segment_path(&scratch.0, 2)).unwrap();
        assert_eq!(accept_missing(&scratch.0, &key()).unwrap(), 4);
        let scratch = with_segments(4);
        fs::remove_file(segment_path(&scratch.0, 3)).unwrap();
        fs::remove_file(segment_path(&scratch.0, 1)).unwrap();
        assert!(accept_missing(&scratch.0, &key()).is_err());
    }

    #[test]
    fn an_interrupted_pruning_is_finished_at_the_next_start() {
        let scratch = with_segments(3);
        let log = scratch.open().unwrap();
        let head = Head { base: link_named_by(&scratch.0, 2).unwrap(), ..log.synced.lock().head };
        log.sign(&mut log.synced.lock(), head).unwrap();
        drop(log);
        assert!(verify(&scratch.0, Some(head)).is_ok());
        write(&scratch.open().unwrap()).unwrap();
        assert_eq!(segments(&scratch.0).unwrap(), [2, 3]);
    }
}
