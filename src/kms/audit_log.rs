//! The audit log on disk: JSON lines in segments, each line chained to the one before by a hash.
//!
//! Made by `serve`; the pipeline writes through the [`Audit`] trait, before the answer leaves. When a record cannot be
//! written the call fails. Never rewrites a line; only bytes after the last whole line of a power cut are set aside.
//!
//! ```text
//! audit/audit-000000000001.jsonl    named after the first sequence number in it
//!   line: { CloudTrail record, "eventID":"..", "seq":N, "prev":"<hash of line N-1>", "hash":"<64 hex>" } \n
//!   hash = SHA-256(the line's bytes before `,"hash":`);  prev of the first line is 64 zeros
//! audit/head    0 8 magic "KMSDAUDT" | 8 8 seq LE | 16 32 hash | 48 32 HMAC(audit key, bytes 0..48)
//! ```
//! The head is written when the log has been synced, at least each second: what it names cannot be cut off unseen.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::api::hex;
use crate::crypto::{AuditKey, constant_time_eq, random_array};

use super::audit::{Audit, AuditError, AuditRecord};
use super::audit_chain::{Link, Segment, read_segment, segment_path, segments};
use super::audit_writer::{Writer, new_segment};

const HEAD_FILE: &str = "head";
const HEAD_MAGIC: &[u8; 8] = b"KMSDAUDT";
const HEAD_LEN: usize = 80;
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
    dir: PathBuf,
    key: AuditKey,
    sync: AuditSync,
    writer: Mutex<Writer>,
    /// What the head file says.
    synced: Mutex<Synced>,
}

struct Synced {
    head_file: File,
    last: Link,
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
    let file = open_head(dir, true)?;
    write_head(&file, key, Link::START)
}

impl AuditLog {
    /// Opens the log in `dir` where it ended.
    pub fn open(dir: &Path, key: AuditKey, sync: AuditSync) -> Result<Self, AuditError> {
        let head_file = open_head(dir, false)?;
        let head = read_head(&head_file, &key)?;
        let (file, segment) = open_last(dir, head)?;
        let last = segment.last.unwrap_or(head);
        let writer = Writer::new(dir, file, segment.whole_len, last);
        let synced = Synced { head_file, last: head };
        let log =
            Self { dir: dir.to_owned(), key, sync, writer: Mutex::new(writer), synced: Mutex::new(synced) };
        log.sync()?;
        Ok(log)
    }

    /// Makes everything written so far durable, and signs it.
    pub fn sync(&self) -> Result<(), AuditError> {
        let mut synced = self.synced.lock();
        let (file, last) = {
            let writer = self.writer.lock();
            if writer.latched {
                return Err(AuditError::Latched);
            }
            (writer.file.try_clone().map_err(|e| io(&e))?, writer.last)
        };
        if synced.last.seq == last.seq {
            return Ok(());
        }
        let done = file.sync_data().map_err(|e| io(&e));
        let done = done.and_then(|()| write_head(&synced.head_file, &self.key, last));
        if done.is_err() {
            self.writer.lock().latched = true;
        }
        done?;
        synced.last = last;
        Ok(())
    }

    fn sync_to(&self, seq: u64) -> Result<(), AuditError> {
        if self.synced.lock().last.seq >= seq {
            return Ok(());
        }
        self.sync()
    }
}

impl Audit for AuditLog {
    fn reserve(&self) -> Result<(), AuditError> {
        self.writer.lock().reserve()
    }

    fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write_open(line);
            push_event_id(line);
            let outcome = self.writer.lock().append(line);
            line.shrink_to(KEEP_BUFFER);
            let seq = outcome?;
            if self.sync == AuditSync::Each { self.sync_to(seq) } else { Ok(()) }
        })
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

/// A random UUID (RFC 9562, version 4).
fn push_event_id(line: &mut String) {
    let mut id: [u8; 16] = random_array();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let text = hex(&id);
    let _ = write!(
        line,
        ",\"eventID\":\"{}-{}-{}-{}-{}\"",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    );
}

/// The segment to go on in. Checks that it holds what the head names, and sets a torn tail aside.
fn open_last(dir: &Path, head: Link) -> Result<(File, Segment), AuditError> {
    let firsts = segments(dir)?;
    let Some(first) = firsts.last().copied() else {
        if head.seq != 0 {
            return Err(AuditError::Broken("every segment is missing".into()));
        }
        return Ok((new_segment(dir, 1)?, Segment::empty()));
    };
    let path = segment_path(dir, first);
    let before = link_before(dir, &firsts, head)?;
    if before.seq + 1 != first {
        return Err(AuditError::Broken(format!("{} does not follow record {}", path.display(), before.seq)));
    }
    let mut segment = read_segment(&path, Some(before), Some(head))?;
    segment.last = segment.last.or(Some(before));
    if segment.last.is_none_or(|last| last.seq < head.seq) {
        return Err(AuditError::Broken(format!("{} ends before record {}", path.display(), head.seq)));
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
    Ok((file, segment))
}

/// The record that the last segment continues: the last one of its predecessor.
fn link_before(dir: &Path, firsts: &[u64], head: Link) -> Result<Link, AuditError> {
    if firsts[0] != 1 {
        return Err(AuditError::Broken(format!("records 1 to {} are missing", firsts[0] - 1)));
    }
    let [.., previous, _] = firsts else { return Ok(Link::START) };
    let path = segment_path(dir, *previous);
    let before = read_segment(&path, None, Some(head))?;
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

fn open_head(dir: &Path, create: bool) -> Result<File, AuditError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(create).mode(0o600).open(dir.join(HEAD_FILE));
    file.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => AuditError::Broken("its head file is missing".into()),
        _ => io(&error),
    })
}

fn write_head(file: &File, key: &AuditKey, last: Link) -> Result<(), AuditError> {
    let mut bytes = [0; HEAD_LEN];
    bytes[..8].copy_from_slice(HEAD_MAGIC);
    bytes[8..16].copy_from_slice(&last.seq.to_le_bytes());
    bytes[16..48].copy_from_slice(&last.hash);
    let mac = key.sign(&[&bytes[..48]]);
    bytes[48..].copy_from_slice(&mac);
    file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()).map_err(|e| io(&e))
}

fn read_head(file: &File, key: &AuditKey) -> Result<Link, AuditError> {
    let mut bytes = [0; HEAD_LEN];
    let whole = file.read_exact_at(&mut bytes, 0).is_ok();
    if !whole || &bytes[..8] != HEAD_MAGIC || !constant_time_eq(&key.sign(&[&bytes[..48]]), &bytes[48..]) {
        return Err(AuditError::Broken("its head file does not belong to this store".into()));
    }
    let seq = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    Ok(Link { seq, hash: bytes[16..48].try_into().expect("32 bytes") })
}

/// Reads what the signed head of the log in `dir` names.
pub fn signed_head(dir: &Path, key: &AuditKey) -> Result<Link, AuditError> {
    read_head(&open_head(dir, false)?, key)
}

pub(super) fn io(error: &std::io::Error) -> AuditError {
    AuditError::Io(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::audit::{Identity, JsonText};
    use super::super::audit_chain::verify;
    use super::*;
    use crate::crypto::RootKey;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("kmsd-audit-{}", hex(&random_array::<8>())));
            create(&dir, &key()).unwrap();
            Self(dir)
        }

        fn open(&self) -> Result<AuditLog, AuditError> {
            AuditLog::open(&self.0, key(), AuditSync::Second)
        }

        fn only_segment(&self) -> PathBuf {
            segment_path(&self.0, 1)
        }

        fn with_records(count: usize) -> Self {
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

    fn key() -> AuditKey {
        RootKey::of_bytes([7; 32]).audit_key()
    }

    fn write(log: &dyn Audit) -> Result<(), AuditError> {
        log.reserve()?;
        write_kept(log)
    }

    /// A record whose place is kept already.
    fn write_kept(log: &dyn Audit) -> Result<(), AuditError> {
        let (arn, null) = ("arn:aws:iam::000000000000:root", JsonText::null());
        log.record(&AuditRecord {
            time_ms: 1_000,
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
    }

    #[test]
    fn the_hash_of_a_line_is_pinned() {
        let (file, path) = {
            let path = std::env::temp_dir().join(format!("kmsd-line-{}", hex(&random_array::<8>())));
            (File::create_new(&path).unwrap(), path)
        };
        let mut writer = Writer::new(Path::new("/"), file, 0, Link { seq: 4, hash: [0xab; 32] });
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
    fn a_record_that_could_not_be_written_is_owed_and_nothing_begins_before_it() {
        let scratch = Scratch::with_records(1);
        let log = scratch.open().unwrap();
        log.reserve().unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut log.writer.lock().file, full);
        assert!(matches!(write_kept(&log), Err(AuditError::Io(_))));
        // No length can be set on a device, so what is there is unknown.
        assert_eq!(log.reserve(), Err(AuditError::Latched));
        log.writer.lock().latched = false;
        assert!(matches!(log.reserve(), Err(AuditError::Io(_))));
        let mut writer = log.writer.lock();
        (writer.file, writer.latched) = (good, false);
        drop(writer);
        log.reserve().unwrap();
        write_kept(&log).unwrap();
        drop(log);
        assert_eq!(verify(&scratch.0, None).unwrap().records, 3);
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
        assert_eq!(signed_head(&scratch.0, &key()).unwrap().seq, 1);
    }
}
