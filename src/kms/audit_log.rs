//! The audit log on disk: JSON lines in segments, each line chained to the one before by a hash.
//!
//! Made by `serve`; the pipeline writes through the [`Audit`] trait, before the answer leaves. When a record cannot be
//! written the call fails. Never rewrites a line; only bytes after the last whole line of a power cut are set aside.
//!
//! ```text
//! audit/audit-000000000001.jsonl    named after the first sequence number in it
//!   line: { CloudTrail record, "eventID":"..", "seq":N, "prev":"<hash of line N-1>", "hash":"<64 hex>" } \n
//!   hash = SHA-256(the line's bytes before `,"hash":`);  prev of the first line is 64 zeros
//! audit/head    see `audit_head`
//! ```
//! The head is written when the log has been synced, at least each second: what it names cannot be cut off unseen.
//! Old segments go when retention says so; the head then says from where on the log is kept.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::crypto::AuditKey;

use super::audit::{Audit, AuditError, AuditRecord, EventId};
use super::audit_chain::{Link, Segment, read_end, segment_path, segments};
use super::audit_head::{Head, HeadFile};
use super::audit_writer::{Position, Writer, new_segment};

/// A segment is closed at this length.
pub(super) const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
/// Longest line.
pub const MAX_LINE: usize = 256 * 1024;
/// Line buffers larger than this are not kept.
const KEEP_BUFFER: usize = 16 * 1024;

/// When a record is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditSync {
    /// Within a second: survives a killed daemon, may lose the last second to a power cut.
    Second,
    /// Before the answer, one sync for all calls that wait.
    Each,
}

/// The log in a state directory.
pub struct AuditLog {
    pub(super) dir: PathBuf,
    key: AuditKey,
    sync: AuditSync,
    pub(super) writer: Mutex<Writer>,
    /// What the head file says.
    pub(super) synced: Mutex<Synced>,
}

pub(super) struct Synced {
    file: HeadFile,
    pub(super) head: Head,
}

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuditLog({})", self.dir.display())
    }
}

/// Makes the directory of a new log, with an empty chain.
pub fn create(dir: &Path, key: &AuditKey) -> Result<(), AuditError> {
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(|e| io(&e))?;
    HeadFile::open(dir, true)?.write(key, Head::START)
}

impl AuditLog {
    /// Opens the log in `dir` where it ended.
    pub fn open(dir: &Path, key: AuditKey, sync: AuditSync) -> Result<Self, AuditError> {
        let file = HeadFile::open(dir, false)?;
        let head = file.read(&key)?;
        drop_unkept(dir, head)?;
        let writer = open_last(dir, head)?;
        let synced = Synced { file, head };
        let log =
            Self { dir: dir.to_owned(), key, sync, writer: Mutex::new(writer), synced: Mutex::new(synced) };
        log.sync()?;
        Ok(log)
    }

    /// Makes everything written so far durable, and signs it.
    pub fn sync(&self) -> Result<(), AuditError> {
        let mut synced = self.synced.lock();
        let (file, position) = {
            let mut writer = self.writer.lock();
            writer.ready()?;
            (writer.file.try_clone().map_err(|e| io(&e))?, writer.position())
        };
        if synced.head.last.seq == position.last.seq {
            return Ok(());
        }
        if let Err(error) = file.sync_data() {
            self.writer.lock().lost_sync();
            return Err(io(&error));
        }
        self.writer.lock().is_synced_to(position);
        let head = Head { last: position.last, ..synced.head };
        self.sign(&mut synced, head)
    }

    /// Writes a new head.
    pub(super) fn sign(&self, synced: &mut Synced, head: Head) -> Result<(), AuditError> {
        synced.file.write(&self.key, head)?;
        synced.head = head;
        Ok(())
    }

    /// Whether records are made durable before each answer.
    pub fn syncs_each(&self) -> bool {
        self.sync == AuditSync::Each
    }

    /// Records that a power cut might take: those written since the last sync.
    pub fn lag(&self) -> u64 {
        let written = self.writer.lock().position().last.seq;
        written.saturating_sub(self.synced.lock().head.last.seq)
    }

    /// Why no call can be recorded now, if so.
    pub fn trouble(&self) -> Option<AuditError> {
        self.writer.lock().trouble()
    }

    fn sync_to(&self, seq: u64) -> Result<(), AuditError> {
        if self.synced.lock().head.last.seq >= seq {
            return Ok(());
        }
        self.sync()
    }
}

impl Audit for AuditLog {
    fn reserve(&self) -> Result<(), AuditError> {
        self.writer.lock().reserve()
    }

    fn record(&self, record: &AuditRecord<'_>) -> Result<EventId, AuditError> {
        let id = EventId::random();
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write_open(line);
            let _ = write!(line, ",\"eventID\":\"{id}\"");
            let outcome = self.writer.lock().append(line);
            line.shrink_to(KEEP_BUFFER);
            let seq = outcome?;
            if self.sync == AuditSync::Each { self.sync_to(seq) } else { Ok(()) }
        })?;
        Ok(id)
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            log::error!("{error}");
        }
        self.writer.lock().give_back();
    }
}

/// Removes segments that the head no longer names: a pruning that was interrupted.
fn drop_unkept(dir: &Path, head: Head) -> Result<(), AuditError> {
    for first in segments(dir)?.into_iter().filter(|first| *first <= head.base.seq) {
        fs::remove_file(segment_path(dir, first)).map_err(|e| io(&e))?;
    }
    Ok(())
}

/// The segment to go on in. Checks that it holds what the head names, and sets a torn tail aside.
fn open_last(dir: &Path, head: Head) -> Result<Writer, AuditError> {
    let firsts = segments(dir)?;
    let Some(first) = firsts.last().copied() else {
        if head.last.seq != head.base.seq {
            return Err(AuditError::Broken("every segment is missing".into()));
        }
        let first = head.base.seq + 1;
        let position = Position { first, len: 0, last: head.last };
        return Ok(Writer::new(dir, new_segment(dir, first)?, position));
    };
    let path = segment_path(dir, first);
    let before = link_before(dir, &firsts, head)?;
    if before.seq + 1 != first {
        return Err(AuditError::Broken(format!("{} does not follow record {}", path.display(), before.seq)));
    }
    let segment = read_end(&path, Some(before), head.last)?;
    let last = segment.last.unwrap_or(before);
    if last.seq < head.last.seq {
        return Err(AuditError::Broken(format!("{} ends before record {}", path.display(), head.last.seq)));
    }
    let file = OpenOptions::new().append(true).open(&path).map_err(|e| io(&e))?;
    if segment.torn > 0 {
        set_aside(&path, &segment)?;
        file.set_len(segment.whole_len).map_err(|e| io(&e))?;
        log::warn!(
            "audit log: {} bytes after the last whole record were moved to {}",
            segment.torn,
            path.with_extension("torn").display()
        );
    }
    Ok(Writer::new(dir, file, Position { first, len: segment.whole_len, last }))
}

/// The record that the last segment continues: the last one of its predecessor.
fn link_before(dir: &Path, firsts: &[u64], head: Head) -> Result<Link, AuditError> {
    let kept_from = head.base.seq + 1;
    if firsts[0] != kept_from {
        return Err(AuditError::Broken(format!("records {kept_from} to {} are missing", firsts[0] - 1)));
    }
    let [.., previous, _] = firsts else { return Ok(head.base) };
    let path = segment_path(dir, *previous);
    let before = read_end(&path, None, head.last)?;
    match before.last {
        Some(last) if before.torn == 0 => Ok(last),
        _ => Err(AuditError::Broken(format!("{} is empty or torn", path.display()))),
    }
}

/// Keeps the bytes of a torn tail beside the segment, as evidence.
fn set_aside(path: &Path, segment: &Segment) -> Result<(), AuditError> {
    let mut tail = vec![0; segment.torn.min(MAX_LINE as u64) as usize];
    let file = File::open(path).map_err(|e| io(&e))?;
    file.read_exact_at(&mut tail, segment.whole_len).map_err(|e| io(&e))?;
    let mut options = OpenOptions::new();
    let mut torn = options
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path.with_extension("torn"))
        .map_err(|e| io(&e))?;
    torn.write_all(&tail).and_then(|()| torn.sync_all()).map_err(|e| io(&e))
}

pub(super) fn io(error: &std::io::Error) -> AuditError {
    AuditError::Io(error.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::audit::{Identity, JsonText};
    use super::super::audit_chain::verify;
    use super::super::audit_head::signed_head;
    use super::*;
    use crate::api::hex;
    use crate::crypto::RootKey;
    use crate::crypto::random_array;

    pub(in super::super) struct Scratch(pub(in super::super) PathBuf);

    impl Scratch {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("kmsd-audit-{}", hex(&random_array::<8>())));
            create(&dir, &key()).unwrap();
            Self(dir)
        }

        pub(in super::super) fn open(&self) -> Result<AuditLog, AuditError> {
            AuditLog::open(&self.0, key(), AuditSync::Second)
        }

        fn only_segment(&self) -> PathBuf {
            segment_path(&self.0, 1)
        }

        pub(in super::super) fn with_records(count: usize) -> Self {
            let scratch = Self::new();
            let log = scratch.open().unwrap();
            (0..count).for_each(|_| write(&log).unwrap());
            scratch
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    pub(in super::super) fn key() -> AuditKey {
        RootKey::of_bytes([7; 32]).audit_key()
    }

    pub(in super::super) fn write(log: &dyn Audit) -> Result<(), AuditError> {
        log.reserve()?;
        write_kept(log)
    }

    /// A record whose place is kept already.
    fn write_kept(log: &dyn Audit) -> Result<(), AuditError> {
        let (arn, null) = ("arn:aws:iam::000000000000:root", JsonText::null());
        log.record(&AuditRecord {
            time_ms: 1_000,
            event_source: "kms.amazonaws.com",
            event_name: "Decrypt",
            region: "local",
            identity: Identity {
                kind: "Root",
                arn,
                account: "000000000000",
                access_key_id: None,
                invoked_by: None,
            },
            source: "unix",
            peer: None,
            user_agent: "test \"agent\"",
            request: &JsonText::of(&serde_json::json!({"encryptionContext": {"a": "b"}})),
            response: &null,
            additional: &null,
            error: None,
            read_only: true,
            resources: &[],
            request_id: "r",
        })
        .map(|_| ())
    }

    #[test]
    fn the_hash_of_a_line_is_pinned() {
        let (file, path) = {
            let path = std::env::temp_dir().join(format!("kmsd-line-{}", hex(&random_array::<8>())));
            (File::create_new(&path).unwrap(), path)
        };
        let last = Link { seq: 4, hash: [0xab; 32] };
        let mut writer = Writer::new(Path::new("/"), file, Position { first: 5, len: 0, last });
        writer.append(&mut "{\"eventName\":\"X\"".to_owned()).unwrap();
        let line = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        assert_eq!(
            line,
            concat!(
                r#"{"eventName":"X","seq":5,"prev":"abababababababababababababababababababababababababababababababab","hash":""#,
                "83f75f8668de3f8e307b2be1e30b89a2841a9f31268ae8c6fe7d0246aa59f988\"}\n"
            )
        );
    }

    #[test]
    fn the_chain_goes_on_after_each_opening() {
        let scratch = Scratch::with_records(3);
        (0..3).for_each(|_| write(&scratch.open().unwrap()).unwrap());
        let report = verify(&scratch.0, Some(signed_head(&scratch.0, &key()).unwrap())).unwrap();
        assert_eq!((report.records, report.last_seq), (6, 6));
    }

    #[test]
    fn a_killed_daemon_loses_no_record_and_the_chain_goes_on() {
        let scratch = Scratch::with_records(2);
        let log = scratch.open().unwrap();
        write(&log).unwrap();
        std::mem::forget(log);
        write(&scratch.open().unwrap()).unwrap();
        assert_eq!(verify(&scratch.0, None).unwrap().records, 4);
    }

    #[test]
    fn a_torn_last_line_is_set_aside_and_the_chain_goes_on() {
        let scratch = Scratch::with_records(2);
        let mut file = OpenOptions::new().append(true).open(scratch.only_segment()).unwrap();
        file.write_all(b"{\"eventVersion\":\"1.11\",\"userId").unwrap();
        write(&scratch.open().unwrap()).unwrap();
        assert_eq!(verify(&scratch.0, None).unwrap().records, 3);
        let torn = fs::read(scratch.only_segment().with_extension("torn")).unwrap();
        assert_eq!(torn, b"{\"eventVersion\":\"1.11\",\"userId");
    }

    #[test]
    fn edited_removed_and_cut_records_are_noticed() {
        let text = |scratch: &Scratch| fs::read_to_string(scratch.only_segment()).unwrap();
        let edits: [fn(&str) -> String; 4] = [
            |text| text.replacen("Decrypt", "Encrypt", 1),
            |text| text.split_inclusive('\n').skip(1).collect(),
            |text| {
                text.split_inclusive('\n')
                    .enumerate()
                    .filter(|(i, _)| *i != 1)
                    .map(|(_, line)| line)
                    .collect()
            },
            |text| text.split_inclusive('\n').take(2).collect(),
        ];
        for (index, edit) in edits.iter().enumerate() {
            let scratch = Scratch::with_records(3);
            let head = signed_head(&scratch.0, &key()).unwrap();
            fs::write(scratch.only_segment(), edit(&text(&scratch))).unwrap();
            assert!(verify(&scratch.0, Some(head)).is_err(), "edit {index}");
            assert!(matches!(scratch.open(), Err(AuditError::Broken(_))), "edit {index}");
        }
    }

    #[test]
    fn of_a_long_segment_a_start_reads_the_end_and_finds_what_is_wrong_there() {
        let scratch = Scratch::with_records(1);
        let line = fs::read_to_string(scratch.only_segment()).unwrap().len();
        let (head, long) = {
            let log = scratch.open().unwrap();
            (0..(3 << 20) / line).for_each(|_| write(&log).unwrap());
            drop(log);
            (signed_head(&scratch.0, &key()).unwrap(), fs::read_to_string(scratch.only_segment()).unwrap())
        };
        let open = |text: &str| {
            fs::write(scratch.only_segment(), text).unwrap();
            scratch.open().map(|log| log.writer.lock().position())
        };
        let position = open(&long).unwrap();
        assert_eq!((position.len, position.last), (long.len() as u64, head.last));
        // Torn behind the last record, changed and cut in the end.
        assert_eq!(open(&format!("{long}{{\"torn")).unwrap(), position);
        let near_the_end = long.len() - 5 * line;
        let edited = long[near_the_end..].replacen("Decrypt", "Encrypt", 1);
        for bad in [format!("{}{edited}", &long[..near_the_end]), long[..near_the_end].to_owned()] {
            assert!(matches!(open(&bad), Err(AuditError::Broken(_))));
        }
        // What the head vouches for is held against it by the whole check.
        let early = long.replacen("Decrypt", "Encrypt", 1);
        assert!(open(&early).is_ok() && verify(&scratch.0, Some(head)).is_err());
    }

    #[test]
    fn a_record_that_could_not_be_written_is_owed_and_nothing_begins_before_it() {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        log.reserve().unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut log.writer.lock().file, full);
        assert!(matches!(write_kept(&log), Err(AuditError::Io(_))));
        // No length can be set on a device, so what is there is unknown, and nothing begins.
        assert!(log.reserve().is_err() && log.trouble().is_some());
        let mut writer = log.writer.lock();
        writer.file = good;
        writer.forget_pause();
        drop(writer);
        // The disk is back: the log goes on by itself.
        log.reserve().unwrap();
        assert_eq!(log.trouble(), None);
        write_kept(&log).unwrap();
        drop(log);
        assert_eq!(verify(&scratch.0, None).unwrap().records, 3);
    }

    #[test]
    fn records_whose_sync_failed_are_written_again_before_anything_goes_on() {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        (0..3).for_each(|_| write(&log).unwrap());
        log.writer.lock().lost_sync();
        log.reserve().unwrap();
        write_kept(&log).unwrap();
        // What the kernel lost and shows no more is not signed as if it were there.
        write(&log).unwrap();
        let mut text = fs::read(scratch.only_segment()).unwrap();
        let end = text.len();
        text[end - 100] ^= 1;
        fs::write(scratch.only_segment(), &text).unwrap();
        log.writer.lock().lost_sync();
        assert!(matches!(log.reserve(), Err(AuditError::Broken(_))));
        assert!(log.sync().is_err());
    }

    #[test]
    fn a_place_that_is_kept_has_its_blocks_and_gives_them_back() {
        use std::os::unix::fs::MetadataExt;
        let scratch = Scratch::new();
        let log = scratch.open().unwrap();
        let blocks = || fs::metadata(scratch.only_segment()).unwrap().blocks() * 512;
        (0..5).for_each(|_| log.reserve().unwrap());
        assert!(blocks() >= 5 * MAX_LINE as u64);
        (0..5).for_each(|_| write_kept(&log).unwrap());
        drop(log);
        assert!(blocks() < MAX_LINE as u64);
    }

    #[test]
    fn an_empty_segment_left_by_an_attempt_is_taken_and_a_filled_one_is_not() {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        fs::write(segment_path(&scratch.0, 2), b"").unwrap();
        log.writer.lock().len = SEGMENT_BYTES;
        write(&log).unwrap();
        drop(log);
        assert_eq!(verify(&scratch.0, None).unwrap().records, 2);
    }

    #[test]
    fn segments_follow_each_other_without_a_gap() {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        for _ in 0..3 {
            log.writer.lock().len = SEGMENT_BYTES;
            write(&log).unwrap();
        }
        drop(log);
        write(&scratch.open().unwrap()).unwrap();
        let report = verify(&scratch.0, Some(signed_head(&scratch.0, &key()).unwrap())).unwrap();
        assert_eq!((report.segments, report.records), (4, 5));
        fs::remove_file(segment_path(&scratch.0, 3)).unwrap();
        assert!(verify(&scratch.0, None).is_err());
    }

    #[test]
    fn a_log_removed_behind_an_empty_or_planted_segment_is_noticed() {
        let three = || {
            let scratch = Scratch::with_records(1);
            let log = scratch.open().unwrap();
            for _ in 0..2 {
                log.writer.lock().len = SEGMENT_BYTES;
                write(&log).unwrap();
            }
            scratch
        };
        let deeds: [(&[u64], Option<u64>); 4] =
            [(&[1, 2, 3], Some(4)), (&[1], None), (&[1, 2], None), (&[], Some(900))];
        for (index, (removed, planted)) in deeds.into_iter().enumerate() {
            let scratch = three();
            for first in removed {
                fs::remove_file(segment_path(&scratch.0, *first)).unwrap();
            }
            if let Some(first) = planted {
                fs::write(segment_path(&scratch.0, first), b"").unwrap();
            }
            let head = signed_head(&scratch.0, &key()).unwrap();
            assert!(verify(&scratch.0, Some(head)).is_err(), "deed {index}");
            assert!(matches!(scratch.open(), Err(AuditError::Broken(_))), "deed {index}");
        }
        let scratch = three();
        fs::write(segment_path(&scratch.0, 4), b"").unwrap();
        write(&scratch.open().unwrap()).unwrap();
        let head = signed_head(&scratch.0, &key()).unwrap();
        assert_eq!(verify(&scratch.0, Some(head)).unwrap().records, 4);
    }

    #[test]
    fn records_are_synced_before_the_answer_where_asked() {
        let scratch = Scratch::new();
        let log = AuditLog::open(&scratch.0, key(), AuditSync::Each).unwrap();
        write(&log).unwrap();
        assert_eq!(signed_head(&scratch.0, &key()).unwrap().last.seq, 1);
    }
}
