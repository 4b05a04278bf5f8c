//! Tests of plaintext I/O on one lower file: against a byte vector, against hostile edits, against kills at any change.
#![cfg(test)]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::lower::fault::{self, Fault};
pub(super) use super::op_tests::*;
use super::{Allocate, Durability, FileContext, FileIo, Integrity, LastEnd, Seek, Stage, TagLog};
use crate::crypto::{DataKey, Secret, VolumeKey, random_array};
use crate::format::layout::{self, BLOCK};
use crate::format::{FileId, VolumeId, WrappedKey};
use crate::tree::{FreshKey, FsError, KeyError, KeySource, KeyUser};

/// Keys in a map; the blob is the file id.
#[derive(Default)]
pub(in crate::tree) struct MapKeys(Mutex<HashMap<FileId, DataKey>>);

impl KeySource for MapKeys {
    fn fresh(&self, _key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let (file_id, data_key) = (FileId(random_array()), DataKey::random());
        self.0.lock().insert(file_id, data_key.duplicate());
        let wrapped = WrappedKey { key_arn: "arn:test".into(), material_id: None, blob: file_id.0.to_vec() };
        Ok(FreshKey { user, file_id, data_key, wrapped })
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if wrapped.blob != file_id.0 {
            return Err(KeyError::Invalid("another file's".into()));
        }
        self.0.lock().get(&file_id).map(DataKey::duplicate).ok_or(KeyError::Denied("unknown".into()))
    }
}

/// A lower directory with one file, removed on drop.
pub(super) struct Bench {
    pub(super) dir: PathBuf,
    keys: Arc<MapKeys>,
    volume: Arc<VolumeKey>,
    pub(super) integrity: Integrity,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A new directory, in memory where that keeps attributes.
pub(crate) fn new_dir() -> PathBuf {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let make = |base: PathBuf| {
        let dir = base.join(format!("kmsfs-tree-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).map(|()| dir)
    };
    if let Ok(dir) = make("/dev/shm".into()) {
        if rustix::fs::setxattr(&dir, "user.kmsfs", b"kept", rustix::fs::XattrFlags::empty()).is_ok() {
            return dir;
        }
        std::fs::remove_dir(&dir).unwrap();
    }
    make(std::env::temp_dir()).unwrap()
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = new_dir();
        let volume = Arc::new(VolumeKey::new(Secret::random()));
        Self { dir, keys: Arc::default(), volume, integrity: Integrity::default() }
    }

    /// Another directory for the same volume.
    pub(super) fn again(&self) -> Self {
        let fresh = Self::new();
        let (dir, keys, volume) = (fresh.dir.clone(), self.keys.clone(), self.volume.clone());
        std::mem::forget(fresh);
        Self { dir, keys, volume, integrity: self.integrity }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join("file")
    }

    pub(super) fn fd(&self) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::open(self.path(), flags, Mode::RUSR | Mode::WUSR).unwrap()
    }

    /// A new mount's view: what the last one did not close is found as it was left.
    pub(super) fn mount(&self) -> Arc<FileIo> {
        self.mount_as(false, LastEnd::Unknown)
    }

    /// The same, where the key service tells that the last mount ended well.
    pub(super) fn mount_after_end(&self) -> Arc<FileIo> {
        self.mount_as(false, LastEnd::Well)
    }

    /// Another file of the mount of `file`.
    pub(super) fn beside(&self, file: &FileIo) -> Arc<FileIo> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = rustix::fs::open(self.dir.join("other"), flags, Mode::RUSR | Mode::WUSR).unwrap();
        FileIo::new(fd, file.context.clone(), None)
    }

    fn mount_as(&self, read_only: bool, last: LastEnd) -> Arc<FileIo> {
        let root = rustix::fs::open(&self.dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let log = if read_only {
            TagLog::open_read_only(&root, &self.volume, last)
        } else {
            TagLog::open(&root, &self.volume, Durability::Strict, last)
        };
        let keys: Arc<dyn KeySource> = self.keys.clone();
        let log = Some(log.unwrap());
        let context = Arc::new(FileContext {
            volume_id: VolumeId([1; 16]),
            keys,
            read_only,
            log,
            stage: Stage::default(),
            integrity: self.integrity,
        });
        FileIo::new(self.fd(), context, None)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    /// Whether a fresh view of the file as `bytes` refuses to give out all of it.
    fn detects(&self, bytes: &[u8]) -> bool {
        std::fs::write(self.path(), bytes).unwrap();
        let file = self.mount_as(true, LastEnd::Unknown);
        let mut out = Vec::new();
        let read = file.read(0, 1 << 26, &mut out);
        matches!(read, Err(FsError::Corrupt(_) | FsError::Key(KeyError::Invalid(_))))
    }
}

/// Ends a mount well: the file is sealed, and the log says that nothing is open.
pub(super) fn unmount(file: &FileIo) {
    file.seal().unwrap();
    file.context.log.as_ref().unwrap().close();
}

impl Drop for Bench {
    fn drop(&mut self) {
        fault::clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn contents(file: &FileIo) -> Vec<u8> {
    let mut out = Vec::new();
    file.read(0, 1 << 26, &mut out).unwrap();
    out
}

/// So many cases, or as many as `PROPTEST_CASES` asks for.
pub(super) fn cases(number: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    if asked { ProptestConfig::default() } else { ProptestConfig::with_cases(number) }
}

fn check_holes(file: &FileIo, model: &[u8]) {
    let mut at = 0;
    while let Ok(data) = file.seek(at, Seek::Data) {
        assert!(model[at as usize..data as usize].iter().all(|b| *b == 0), "a hole that holds data at {at}");
        at = file.seek(data, Seek::Hole).unwrap();
        assert!(at > data);
    }
    assert!(model[(at as usize).min(model.len())..].iter().all(|b| *b == 0));
}

proptest! {
    #![proptest_config(cases(100))]

    /// Any sequence of operations, with remounts in between, reads as a plain file does.
    #[test]
    fn a_file_reads_as_a_plain_file(ops in proptest::collection::vec(op(), 1..40), clean: bool) {
        let bench = Bench::new();
        let mut file = bench.mount();
        let mut model = Vec::new();
        for op in &ops {
            apply_to_file(&file, op).unwrap();
            apply_to_model(&mut model, op);
            prop_assert_eq!(file.size().unwrap(), model.len() as u64);
            if let Op::Read(offset, len) = *op {
                let mut out = Vec::new();
                file.read(offset, len, &mut out).unwrap();
                let start = (offset as usize).min(model.len());
                prop_assert_eq!(&out, &model[start..(start + len).min(model.len())]);
            }
            if matches!(op, Op::Remount) {
                if clean { file.seal().unwrap(); } else { file.flush().unwrap(); }
                drop(file);
                file = bench.mount();
                prop_assert_eq!(file.size().unwrap(), model.len() as u64);
            }
        }
        prop_assert!(contents(&file) == model);
        check_holes(&file, &model);
        file.seal().unwrap();
        drop(file);
        let lower = bench.bytes().len() as u64;
        prop_assert!(lower == 0 || lower == layout::lower_len(model.len() as u64));
        let again = bench.mount();
        prop_assert!(contents(&again) == model);
        let verified = again.verify().unwrap();
        prop_assert!(verified.problems.is_empty(), "{:?}", verified.problems);
        prop_assert_eq!(verified.blocks + verified.holes, layout::block_count(model.len() as u64));
    }

    /// A kill at any change of the lower file leaves a file that opens, whose every block reads as before or after.
    #[test]
    fn a_kill_at_any_point_leaves_old_or_new(
        setup in proptest::collection::vec(op(), 1..8), last in op(), at in 0_u32..12,
    ) {
        let bench = Bench::new();
        let mut model = Vec::new();
        {
            let file = bench.mount();
            for op in &setup {
                apply_to_file(&file, op).unwrap();
                apply_to_model(&mut model, op);
            }
            file.sync(true).unwrap();
            fault::after(Some((at, Fault::Kill)));
            let _ = apply_to_file(&file, &last);
            fault::clear();
        }
        let mut new = model.clone();
        apply_to_model(&mut new, &last);
        let file = bench.mount();
        let got = contents(&file);
        check_old_or_new(&got, &model, &new);
        let problems = file.verify().unwrap().problems;
        prop_assert!(problems.is_empty(), "{problems:?}");
        drop(file);
        prop_assert!(contents(&bench.mount()) == got, "a second mount sees the same");
    }

    /// A full disk at any change: the error is told, every block reads as before or after, work goes on.
    #[test]
    fn a_full_disk_at_any_point_costs_nothing(
        setup in proptest::collection::vec(op(), 1..8), last in op(), at in 0_u32..8, then in op(),
    ) {
        let bench = Bench::new();
        let mut model = Vec::new();
        let file = bench.mount();
        for op in &setup {
            apply_to_file(&file, op).unwrap();
            apply_to_model(&mut model, op);
        }
        fault::after(Some((at, Fault::Full)));
        let result = apply_to_file(&file, &last);
        fault::clear();
        let mut new = model.clone();
        apply_to_model(&mut new, &last);
        let got = contents(&file);
        if result.is_ok() { prop_assert!(got == new) } else { check_old_or_new(&got, &model, &new) }
        let mut model = got;
        apply_to_file(&file, &then).unwrap();
        apply_to_model(&mut model, &then);
        prop_assert!(contents(&file) == model);
        file.seal().unwrap();
        drop(file);
        let file = bench.mount();
        prop_assert!(contents(&file) == model);
        let problems = file.verify().unwrap().problems;
        prop_assert!(problems.is_empty(), "{problems:?}");
    }

    /// Any edit of the lower file of a closed file is noticed.
    #[test]
    fn any_flipped_bit_cut_or_extension_is_detected(
        size in prop_oneof![1..4000_u64, 3000..9000_u64, 390_000..400_000_u64], at in any::<prop::sample::Index>(),
        kind in 0..4, bit in 0..8,
    ) {
        let bench = Bench::new();
        let file = bench.mount();
        file.write(0, &pattern(0, size as usize, 7)).unwrap();
        unmount(&file);
        let good = bench.bytes();
        let mut bad = good.clone();
        let at = at.index(good.len());
        match kind {
            0 => { bad[at] ^= 1_u8 << bit; prop_assume!(counts(at, size)); }
            1 => { bad.truncate(at); prop_assume!(at > 0); }
            2 => bad.extend(std::iter::repeat_n(0, at + 1)),
            _ => {
                let page = at / 4096 * 4096;
                let end = (page + 4096).min(bad.len());
                bad[page..end].fill(0);
                prop_assume!(bad != good && (page == 0 || counts(page, size)));
            }
        }
        prop_assert!(bench.detects(&bad));
    }
}

/// Whether a byte of the lower file carries meaning: spare space, the key slots' bytes (guarded by the other slot, the
/// second superblock and the key service) and the page of an inline tail do not.
fn counts(at: usize, size: u64) -> bool {
    let entries = 4096 - layout::block_count(size).min(layout::HEAD_BLOCKS) as usize * layout::ENTRY_LEN;
    let tail = if layout::tail_is_inline(size) { (size % BLOCK) as usize } else { 0 };
    let last_page = layout::block_offset(size / BLOCK) as usize;
    match at {
        // Which of the two seals counts depends on the number of writes; a flipped bit in the other one is harmless.
        0..1032 | 1048..1056 => false,
        1032..1048 => true,
        1056..4096 => at < 1056 + tail || at >= entries,
        _ => tail == 0 || at < last_page,
    }
}

pub(super) fn check_old_or_new(got: &[u8], old: &[u8], new: &[u8]) {
    let kept = old.len().min(new.len());
    assert!(got.len() >= kept, "{} bytes left of {} or {}", got.len(), old.len(), new.len());
    assert!(got.len() <= old.len().max(new.len()));
    for (block, chunk) in got.chunks(4096).enumerate() {
        let start = block * 4096;
        let range = |model: &[u8]| {
            let mut part = model[start.min(model.len())..(start + chunk.len()).min(model.len())].to_vec();
            part.resize(chunk.len(), 0);
            part
        };
        // Beyond the old end nothing was promised: a hole is right too.
        let unwritten = start >= old.len() && chunk.iter().all(|b| *b == 0);
        assert!(
            chunk == range(old) || chunk == range(new) || unwritten,
            "block {block} is neither old nor new"
        );
    }
}

#[test]
fn a_block_put_back_is_detected() {
    for size in [3 * BLOCK, 200 * BLOCK, 300 * BLOCK] {
        let bench = Bench::new();
        let file = bench.mount();
        file.write(0, &pattern(0, size as usize, 1)).unwrap();
        file.seal().unwrap();
        let old = bench.bytes();
        file.write(BLOCK * 2, &pattern(0, 4096, 2)).unwrap();
        unmount(&file);
        let new = bench.bytes();
        let mut back = new.clone();
        // Block 2 with its tag, and the MAC of its page, as they were.
        back[3 * 4096..4 * 4096].copy_from_slice(&old[3 * 4096..4 * 4096]);
        back[1000..4096].copy_from_slice(&old[1000..4096]);
        assert!(bench.detects(&back), "{size}");
        assert!(!bench.detects(&new));
    }
}

#[test]
fn a_whole_group_put_back_or_removed_is_detected() {
    let bench = Bench::new();
    let size = 300 * BLOCK;
    let file = bench.mount();
    file.write(0, &pattern(0, size as usize, 1)).unwrap();
    file.seal().unwrap();
    let old = bench.bytes();
    file.write(100 * BLOCK, &pattern(0, 4096, 2)).unwrap();
    unmount(&file);
    let new = bench.bytes();
    let (from, to) = (layout::tag_page_offset(1) as usize, layout::tag_page_offset(2) as usize);
    let mut back = new.clone();
    back[from..to].copy_from_slice(&old[from..to]);
    assert!(bench.detects(&back), "put back");
    let mut gone = new.clone();
    gone[from..to].fill(0);
    assert!(bench.detects(&gone), "zeroed with its tags");
}

#[test]
fn blocks_do_not_move_between_files() {
    let bench = Bench::new();
    let (keys, volume) = (bench.keys.clone(), bench.volume.clone());
    let other = Bench { dir: bench.dir.clone(), keys, volume, integrity: bench.integrity };
    let file = bench.mount();
    file.write(0, &[1; 8192]).unwrap();
    file.seal().unwrap();
    let first = bench.bytes();
    std::fs::remove_file(bench.path()).unwrap();
    let file = other.mount();
    file.write(0, &[2; 8192]).unwrap();
    file.seal().unwrap();
    let second = bench.bytes();
    let mut mixed = second.clone();
    mixed[4096..8192].copy_from_slice(&first[4096..8192]);
    mixed[4096 - 28..4096].copy_from_slice(&first[4096 - 28..4096]);
    assert!(bench.detects(&mixed), "a block with its tag");
    let mut rewrapped = second;
    rewrapped[80..424].copy_from_slice(&first[80..424]);
    assert!(bench.detects(&rewrapped), "another file's wrapped key");
    std::mem::forget(other);
}

#[test]
fn equal_data_written_twice_does_not_show() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, &[7; 4096]).unwrap();
    let first = bench.bytes();
    file.write(0, &[7; 4096]).unwrap();
    assert_ne!(first[4096..], bench.bytes()[4096..]);
}

#[test]
fn sparse_files_stay_sparse_and_small_files_take_one_page() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, b"x").unwrap();
    assert_eq!(std::fs::metadata(bench.path()).unwrap().blocks() * 512, 4096);
    file.truncate(1 << 40).unwrap();
    file.write(1 << 39, b"far away").unwrap();
    file.seal().unwrap();
    drop(file);
    assert!(std::fs::metadata(bench.path()).unwrap().blocks() * 512 <= 5 * 4096);
    let file = bench.mount();
    let mut out = Vec::new();
    file.read(1 << 39, 8, &mut out).unwrap();
    assert_eq!(out, b"far away");
    assert_eq!(file.seek(5000, Seek::Data).unwrap(), 1 << 39);
    assert_eq!(file.seek(1 << 39, Seek::Hole).unwrap(), (1 << 39) + 4096);
    assert!(file.verify().unwrap().problems.is_empty());
    file.allocate(Allocate::Punch, 0, 1 << 40).unwrap();
    assert!(file.seek(0, Seek::Data).is_err());
}

#[test]
fn a_read_only_view_changes_nothing() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, &[1; 10_000]).unwrap();
    drop(file);
    let before = bench.bytes();
    let file = bench.mount_as(true, LastEnd::Unknown);
    assert_eq!(contents(&file), [1; 10_000]);
    assert!(matches!(file.write(0, b"x"), Err(FsError::Os(rustix::io::Errno::ROFS))));
    file.seal().unwrap();
    assert_eq!(bench.bytes(), before);
}

#[test]
fn a_foreign_volume_and_a_lost_key_are_told_apart() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, b"data").unwrap();
    file.seal().unwrap();
    drop(file);
    bench.keys.0.lock().clear();
    let file = bench.mount();
    assert!(matches!(file.ensure_keys(), Err(FsError::Key(KeyError::Denied(_)))));
    assert_eq!(file.size().unwrap(), 4, "the size needs no key");
    let keys: Arc<dyn KeySource> = bench.keys.clone();
    let context = FileContext {
        volume_id: VolumeId([2; 16]),
        keys,
        read_only: false,
        log: None,
        stage: Stage::default(),
        integrity: Integrity::default(),
    };
    let foreign = FileIo::new(bench.fd(), Arc::new(context), None);
    assert!(matches!(foreign.ensure_keys(), Err(FsError::Corrupt(why)) if why.contains("belongs to volume")));
}

#[test]
fn internal_writes_leave_the_modification_time_alone() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, b"data").unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::options().write(true).open(bench.path()).unwrap().set_modified(time).unwrap();
    file.seal().unwrap();
    assert_eq!(std::fs::metadata(bench.path()).unwrap().modified().unwrap(), time);
}

#[test]
fn a_file_extended_behind_a_crash_gives_its_data_and_no_more() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, &pattern(0, 30_000, 1)).unwrap();
    file.sync(true).unwrap();
    file.write(30_000, &pattern(30_000, 20_000, 1)).unwrap();
    drop(file);
    std::fs::File::options().write(true).open(bench.path()).unwrap().set_len(1 << 40).unwrap();
    let file = bench.mount();
    let got = contents(&file);
    assert!(got[..30_000] == pattern(0, 30_000, 1), "what was synced stands");
    assert!(got.len() <= 53_248, "no terabyte of zeros: {}", got.len());
    drop(file);
    assert_eq!(bench.bytes().len() as u64, layout::lower_len(got.len() as u64), "the lower file is cut back");
}

#[test]
fn a_kill_within_a_write_far_beyond_the_end_keeps_what_was_there() {
    for at in 0..8 {
        let bench = Bench::new();
        let file = bench.mount();
        file.write(0, &pattern(0, 5000, 1)).unwrap();
        file.truncate(1 << 20).unwrap();
        fault::after(Some((at, Fault::Kill)));
        let done = file.write(1 << 34, &[9; 10_000]).is_ok();
        fault::clear();
        drop(file);
        let file = bench.mount();
        let mut out = Vec::new();
        file.read(0, 1 << 20, &mut out).unwrap();
        assert_eq!(out.len(), 1 << 20, "killed at change {at}");
        assert!(out[..5000] == pattern(0, 5000, 1) && out[5000..].iter().all(|b| *b == 0));
        if done {
            out.clear();
            file.read(1 << 34, 20_000, &mut out).unwrap();
            assert_eq!(out, [9; 10_000]);
        }
    }
}
