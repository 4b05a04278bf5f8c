//! Work on whole volumes, stopped between any two of the calls that it makes on the lower filesystem or the key service.
//!
//! As the step tests of `tree`, for snapshots, restores and moves to another key: what a stop leaves is the state before
//! or the one after, and the same command, given again, does the rest.
#![cfg(test)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::fake_service_for_tests::{FakeService, KEY_A, KEY_B, Memory};
use super::snapshot::{self, RESTORE_NOTE, SNAPSHOTS, SnapshotRecord, finish_restore_first};
use super::*;
use crate::client::{CacheLimits, Kms};
use crate::format::name::{Kind, classify};
use crate::sys::steps::{self, Stop};
use crate::tree::file::tests::new_dir;
use crate::tree::{Asker, Caller, KeyUser, NewObject, ROOT_ID, Tree, WriteManner};

/// More calls than any work here makes.
const CALLS_MAX: u32 = 600;
pub(super) const STOPS: [Interruption; 3] = [
    Interruption::Below(Stop::Kill),
    Interruption::Below(Stop::Fail(Errno::IO)),
    Interruption::Below(Stop::Fail(Errno::NOSPC)),
];

/// What comes between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Interruption {
    /// At a change of the lower filesystem.
    Below(Stop),
    /// The key service goes away.
    Service,
}

/// A process that is being started holds for a moment what this one has locked: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

pub(super) type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// A volume and its key service, removed on drop.
pub(super) struct Bench {
    dir: PathBuf,
    pub(super) lower: PathBuf,
    service: FakeService,
    pub(super) kms: Arc<Kms>,
    kept: Memory,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// With files, directories, links and long names.
    pub(super) fn new() -> Self {
        Self::on(new_dir(), |_| true).unwrap()
    }

    /// The same on what `prepare` mounts at `dir`; `None` where it cannot.
    pub(super) fn on(dir: PathBuf, prepare: impl FnOnce(&Path) -> bool) -> Option<Self> {
        let alone = ALONE.lock();
        if !prepare(&dir) {
            return None;
        }
        let service = FakeService::start(&dir);
        let (lower, kms) = (dir.join("lower"), service.client());
        prepare_lower(&lower).unwrap();
        let options =
            InitOptions { key: KEY_A.into(), sheet_dir: dir.join("sheets"), bind_names: false, id: None };
        init(&lower, &kms, &options).unwrap();
        let bench = Self { dir, lower, service, kms, kept: Memory::default(), _alone: alone };
        bench.in_mount(|tree, caller| {
            let new = NewObject { permissions: 0o755, umask: 0, caller };
            let below = tree.make_dir(ROOT_ID, b"dir", new).unwrap().0.node_id;
            tree.make_dir(below, b"empty", new).unwrap();
            let file = write(tree, below, "f", b"first", caller);
            tree.link(file, ROOT_ID, b"link").unwrap();
            write(tree, ROOT_ID, &"L".repeat(220), b"second", caller);
            tree.make_symlink(below, b"s", b"target", caller).unwrap();
        });
        Some(bench)
    }

    pub(super) fn try_open(&self) -> Result<Volume, VolumeError> {
        Volume::open(&self.lower, Arc::clone(&self.kms), CacheLimits::default())
    }

    pub(super) fn open(&self) -> Volume {
        self.try_open().unwrap()
    }

    /// Works in a mount that begins and ends well.
    pub(super) fn in_mount(&self, work: impl FnOnce(&Tree, Caller)) {
        let volume = self.open();
        let epoch = Epoch::check(&volume, false).unwrap();
        epoch.begin().unwrap();
        let mounted = volume.tree(Some(Durability::Strict), Integrity::default(), epoch.last()).unwrap();
        let tree = mounted.for_session();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        work(&tree, Caller { uid, gid, pid: 0 });
        tree.close_all();
        assert!(tree.ended_well());
        epoch.end();
    }

    /// Remembers the volume as it is now.
    pub(super) fn keep(&mut self) {
        copy_tree(&self.lower, &self.dir.join("kept"));
        self.kept = self.service.memory.lock().clone();
    }

    /// Makes it so again.
    pub(super) fn put_back(&self) {
        copy_tree(&self.dir.join("kept"), &self.lower);
        *self.service.memory.lock() = self.kept.clone();
    }

    /// Does `work`, interrupted after `calls`; tells also whether it was.
    pub(super) fn interrupted<T>(
        &self,
        how: Interruption,
        calls: u32,
        work: impl FnOnce() -> T,
    ) -> (T, bool) {
        match how {
            Interruption::Below(stop) => steps::after(calls, stop),
            Interruption::Service => self.service.memory.lock().left = Some(calls),
        }
        let done = work();
        let left = self.service.memory.lock().left.take();
        (done, left.map_or_else(steps::clear, |left| left == 0))
    }

    /// Does `attempt` with each interruption of it, on the volume as it was kept. Prints how many there were.
    pub(super) fn at_each_call(
        &self,
        what: &str,
        how: &[Interruption],
        attempt: impl Fn(Interruption, u32) -> bool,
    ) {
        for how in how {
            let once = |calls: &u32| {
                self.put_back();
                attempt(*how, *calls)
            };
            let calls = (0..CALLS_MAX).take_while(once).count() as u32;
            assert!((2..CALLS_MAX).contains(&calls), "{what}, {how:?}: {calls}");
            // The last one would have come behind it all.
            println!("{what}, {how:?}: {} stops", calls - 1);
        }
    }

    pub(super) fn snapshots(&self) -> BTreeMap<String, Contents> {
        let listed = snapshot::list(&self.lower).unwrap();
        listed
            .into_iter()
            .map(|s| (s.name.clone(), contents(&self.lower.join(SNAPSHOTS).join(s.name))))
            .collect()
    }

    /// Everything opens, no older state is taken for the newest, and nothing of an interrupted snapshot is left.
    #[track_caller]
    pub(super) fn is_whole(&self, what: &str) {
        let volume = self.open();
        Epoch::check(&volume, false).unwrap();
        let options = CheckOptions { jobs: 1, data: true, repair: false };
        let report = check(&self.lower, Some(&volume), &options, &Progress::default()).unwrap();
        assert_eq!(report.errors, 0, "{what}: {:?}", report.findings);
    }

    #[track_caller]
    pub(super) fn has_no_leftovers(&self, what: &str) {
        let found: Vec<_> =
            std::fs::read_dir(self.lower.join(SNAPSHOTS)).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(found.len(), self.snapshots().len(), "{what}: {found:?}");
        assert!(!self.lower.join(RESTORE_NOTE).exists(), "{what}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        steps::clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn write(tree: &Tree, parent: u64, name: &str, data: &[u8], caller: Caller) -> u64 {
    let new = NewObject { permissions: 0o644, umask: 0, caller };
    let id = tree.create(parent, name.as_bytes(), new, true, KeyUser::Mount).unwrap().0.node_id;
    tree.write(id, 0, data, WriteManner::default(), Asker::Mount).unwrap();
    tree.sync_file(id, false).unwrap();
    tree.release_file(id, true);
    id
}

fn copy_tree(from: &Path, to: &Path) {
    remove_lower(to).unwrap();
    prepare_lower(to).unwrap();
    assert!(Command::new("cp").arg("-aT").arg(from).arg(to).status().unwrap().success());
}

/// The encrypted entries below `lower`.
pub(super) fn contents(lower: &Path) -> Contents {
    let (mut found, mut dirs) = (Contents::new(), vec![lower.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if !matches!(
                classify(entry.file_name().as_encoded_bytes()),
                Kind::Short | Kind::LongEntry | Kind::Sidecar
            ) {
                continue;
            }
            let data = if kind.is_dir() {
                dirs.push(path.clone());
                Vec::new()
            } else if kind.is_symlink() {
                std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                std::fs::read(&path).unwrap()
            };
            found.insert(path.strip_prefix(lower).unwrap().to_owned(), data);
        }
    }
    found
}

fn make(bench: &Bench, name: &str) -> Result<(), VolumeError> {
    snapshot::make_offline(&bench.open(), name, &Mutex::default()).map(drop)
}

fn restore(bench: &Bench, to: &str, kept: &str) -> Result<(), VolumeError> {
    let volume = bench.open();
    let kept = SnapshotRecord {
        name: kept.into(),
        volume_id: volume.id.to_string(),
        created: 1,
        live: false,
        held_us: 0,
        files: None,
        copied_bytes: 0,
    };
    snapshot::restore(&volume, to, kept, &Mutex::default()).map(drop)
}

fn copy_of(bench: &Bench) -> Result<CopyReport, VolumeError> {
    let options = CopyOptions { key: None, jobs: 1 };
    copy(&bench.lower, &bench.dir.join("copy"), &bench.kms, &options, &Progress::default(), &Mutex::default())
}

#[test]
fn a_snapshot_that_is_interrupted_anywhere_is_whole_or_none() {
    let mut bench = Bench::new();
    bench.keep();
    let old = contents(&bench.lower);
    bench.at_each_call("snapshot create", &STOPS, |how, calls| {
        let what = format!("{how:?} after {calls}");
        let (told, came) = bench.interrupted(how, calls, || make(&bench, "one"));
        let made = bench.snapshots();
        if how != STOPS[0] {
            assert_eq!(made.len(), usize::from(told.is_ok()), "{what}: {told:?}");
        }
        if made.is_empty() {
            make(&bench, "one").unwrap_or_else(|e| panic!("{what}: {e}"));
        } else {
            assert!(make(&bench, "one").is_err());
        }
        assert!(contents(&bench.lower) == old && bench.snapshots()["one"] == old, "{what}");
        bench.has_no_leftovers(&what);
        came
    });
    bench.is_whole("snapshot create");
}

/// A volume with the snapshot `one`, and changed since.
fn with_a_snapshot() -> (Bench, Contents, Contents) {
    let mut bench = Bench::new();
    let then = contents(&bench.lower);
    make(&bench, "one").unwrap();
    bench.in_mount(|tree, caller| {
        tree.unlink(ROOT_ID, b"link").unwrap();
        write(tree, ROOT_ID, "new", b"third", caller);
    });
    bench.keep();
    let now = contents(&bench.lower);
    (bench, then, now)
}

#[test]
fn a_removal_of_a_snapshot_that_is_interrupted_anywhere_leaves_it_whole_or_not_at_all() {
    let (bench, then, now) = with_a_snapshot();
    bench.at_each_call("snapshot delete", &STOPS, |how, calls| {
        let what = format!("{how:?} after {calls}");
        let (told, came) = bench.interrupted(how, calls, || snapshot::delete(&bench.lower, "one"));
        let left = bench.snapshots();
        assert!(left.get("one").is_none_or(|one| told.is_err() && *one == then), "{what}: {told:?}");
        let again = snapshot::delete(&bench.lower, "one");
        assert_eq!(again.is_ok(), !left.is_empty(), "{what}: {again:?}");
        assert!(contents(&bench.lower) == now, "{what}");
        bench.has_no_leftovers(&what);
        came
    });
}

#[test]
fn a_restore_that_is_interrupted_anywhere_is_gone_on_with() {
    let (bench, then, now) = with_a_snapshot();
    bench.at_each_call("snapshot restore", &STOPS, |how, calls| {
        let what = format!("{how:?} after {calls}");
        let (told, came) = bench.interrupted(how, calls, || restore(&bench, "one", "before"));
        let found = contents(&bench.lower);
        if finish_restore_first(&bench.lower).is_ok() {
            assert!(found == then || told.is_err() && found == now, "{what}: {told:?}");
        } else {
            // Nothing else may be done to it now.
            assert!(told.is_err() && make(&bench, "two").is_err(), "{what}: {told:?}");
            assert!(snapshot::delete(&bench.lower, "one").is_err(), "{what}");
            assert!(move_to(&bench, Some(KEY_B)).is_err() && copy_of(&bench).is_err(), "{what}");
            assert!(versions_in_use(&bench.lower, 1).is_err(), "{what}");
            let options = CheckOptions { jobs: 1, data: false, repair: true };
            let checked = check(&bench.lower, Some(&bench.open()), &options, &Progress::default());
            assert!(checked.is_err(), "{what}");
        }
        // What goes on is interrupted, too.
        let _ = bench.interrupted(STOPS[0], calls * 7 % 31, || restore(&bench, "one", "again"));
        restore(&bench, "one", "last").unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(contents(&bench.lower) == then, "{what}");
        let kept = bench.snapshots();
        assert!(kept["one"] == then && kept.values().any(|kept| *kept == now), "{what}: {:?}", kept.keys());
        bench.has_no_leftovers(&what);
        came
    });
    bench.is_whole("snapshot restore");
}

/// Moves the volume to `to`, or to the current version of its key.
fn move_to(bench: &Bench, to: Option<&str>) -> Result<bool, VolumeError> {
    let to_key = to.map(str::to_owned);
    let options = RewrapOptions { to_key, jobs: 1, purge: true, ..RewrapOptions::default() };
    rewrap(&bench.try_open()?, &options, &Progress::default(), || true).map(|report| report.is_complete())
}

/// Every wrap of it is under the newest version of `key`, and its two records are alike.
fn is_under(bench: &Bench, key: &str) -> bool {
    let options = RewrapOptions { jobs: 1, dry_run: true, ..RewrapOptions::default() };
    let report = rewrap(&bench.open(), &options, &Progress::default(), || true).unwrap();
    let root = bench.open().root().unwrap();
    let is_whole = record_file::is_whole(std::os::fd::AsFd::as_fd(&root), &bench.lower);
    let record = peek(&bench.lower).unwrap();
    let versions: Vec<_> = report.versions.iter().map(|version| version.key_arn.as_str()).collect();
    is_whole && report.moved == 0 && record.active().wrapped.key_arn == key && versions == [key]
}

#[test]
fn a_move_to_another_key_or_version_that_is_interrupted_anywhere_is_gone_on_with() {
    for (what, to) in [("rewrap to another key", Some(KEY_B)), ("rewrap to a new version", None)] {
        let mut bench = Bench::new();
        if to.is_none() {
            bench.service.memory.lock().rotations.insert(KEY_A.into(), 1);
        }
        bench.keep();
        let how = [STOPS.as_slice(), &[Interruption::Service]].concat();
        bench.at_each_call(what, &how, |how, calls| {
            let what = format!("{what}, {how:?} after {calls}");
            let (told, came) = bench.interrupted(how, calls, || move_to(&bench, to));
            bench.is_whole(&what);
            assert!(!matches!(told, Ok(true)) || is_under(&bench, to.unwrap_or(KEY_A)), "{what}");
            assert!(move_to(&bench, to).unwrap_or_else(|e| panic!("{what}: {e}")), "{what}");
            assert!(is_under(&bench, to.unwrap_or(KEY_A)), "{what}");
            bench.is_whole(&what);
            copy_tree(&bench.dir.join("kept"), &bench.lower);
            let older = Epoch::check(&bench.open(), false).map(drop);
            assert_eq!(to.is_some(), matches!(older, Err(VolumeError::PutBack { .. })), "{what}: {older:?}");
            came
        });
    }
}

/// What `work` changes below, in its order.
fn changes_of(work: impl FnOnce() -> Result<(), VolumeError>) -> Vec<&'static str> {
    steps::watch();
    work().unwrap();
    steps::seen()
}

/// A filesystem may store changes of names in another order than that in which they were made.
#[test]
fn what_must_not_be_stored_before_another_name_waits_for_it() {
    let (bench, ..) = with_a_snapshot();
    let restored = changes_of(|| restore(&bench, "one", "before"));
    let has = |order: &[&str]| restored.windows(order.len()).any(|calls| calls == order);
    // The old tree is out of the root before the note says so, and has its name before the note is gone.
    assert!(has(&["rename", "sync_filesystem", "open", "write_at", "sync_file", "rename"]), "{restored:?}");
    assert!(has(&["sync_filesystem", "rename", "sync_dir", "unlink", "sync_dir"]), "{restored:?}");
    let deleted = changes_of(|| snapshot::delete(&bench.lower, "one"));
    assert!(deleted.windows(3).any(|calls| calls == ["rename", "sync_dir", "unlink"]), "{deleted:?}");
}
