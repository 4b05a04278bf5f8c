//! Renewals: what stays and what goes, interrupted at each step, beside changes, on a full disk.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::crypto::{DataKey, Secret, VolumeKey, random_array};
use crate::format::dir::DIR_RECORD;
use crate::format::{VolumeId, WrappedKey};
use crate::tree::file::fault::{self, Fault};
use crate::tree::{
    Caller, Durability, KeySource, LOG_NAME, LastEnd, NewObject, OpenManner, TagLog, TreeOptions,
    WriteManner, XattrMode,
};

thread_local! {
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Fails from the planned step on, as everything does for a process that was killed.
pub(super) fn step() -> Result<(), Errno> {
    match STEPS_LEFT.get() {
        None => Ok(()),
        Some(0) => Err(Errno::IO),
        Some(left) => {
            STEPS_LEFT.set(Some(left - 1));
            Ok(())
        }
    }
}

const VOLUME: VolumeId = VolumeId([1; 16]);
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const WRITING: OpenManner = OpenManner { write: true, truncate: false, clear_set_id: false };
const NAMES: [&[u8]; 3] = [b"small", b"holes", b"large"];

/// A key of its own for each file.
#[derive(Default)]
struct Keys(Mutex<HashMap<Vec<u8>, DataKey>>);

impl KeySource for Keys {
    fn fresh(&self, key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let (data_key, blob) = (DataKey::random(), random_array::<16>().to_vec());
        self.0.lock().insert(blob.clone(), data_key.duplicate());
        let wrapped = WrappedKey { key_arn: key.unwrap_or("arn:first").into(), material_id: None, blob };
        Ok(FreshKey { user, file_id: FileId(random_array()), data_key, wrapped })
    }

    fn unwrap(&self, _file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let known = self.0.lock().get(&wrapped.blob).map(DataKey::duplicate);
        known.ok_or_else(|| KeyError::Denied("not one of ours".into()))
    }
}

struct Bench {
    dir: PathBuf,
    key: Arc<VolumeKey>,
    keys: Arc<Keys>,
}

impl Bench {
    fn new(label: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kmsfs-renew-{label}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let key = Arc::new(VolumeKey::new(Secret::random()));
        let record = crate::format::dir::seal(&key, &random_array(), None);
        std::os::unix::fs::symlink(record, dir.join(DIR_RECORD)).unwrap();
        Self { dir, key, keys: Arc::default() }
    }

    fn root(&self) -> OwnedFd {
        rustix::fs::open(&self.dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn tree(&self) -> Arc<Tree> {
        let root = self.root();
        let log = TagLog::open(&root, &self.key, Durability::Strict, LastEnd::Unknown).unwrap();
        let files = FileContext {
            volume_id: VOLUME,
            keys: self.keys.clone(),
            read_only: false,
            log: Some(log),
            stage: Stage::default(),
            integrity: Integrity::default(),
        };
        Tree::open(root, self.key.clone(), Arc::new(files), &TreeOptions::default()).unwrap()
    }

    fn finish(&self) -> Result<usize, FsError> {
        finish(&self.root(), &self.key, VOLUME)
    }

    /// Three files, of which one has another name and attributes, closed.
    fn populate(&self) {
        let tree = self.tree();
        for name in NAMES {
            let id = create(&tree, name);
            for (at, data) in contents(name) {
                tree.write(id, at, &data, WriteManner::default(), Asker::Mount).unwrap();
            }
            tree.truncate(id, size_of_file(name), Asker::Mount).unwrap();
            tree.release_file(id, true);
        }
        let (attr, _) = tree.look_up(ROOT_ID, b"large").unwrap();
        tree.link(attr.node_id, ROOT_ID, b"linked").unwrap();
        set_attribute(&tree, attr.node_id, &[3; 300]);
        tree.close_all();
        let lower = self.lower(b"large");
        std::fs::set_permissions(&lower, std::fs::Permissions::from_mode(0o640)).unwrap();
        let file = std::fs::File::options().write(true).open(lower).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000, 123_456_789)).unwrap();
    }

    /// The lower file of a name in the root.
    fn lower(&self, name: &[u8]) -> PathBuf {
        let record = rustix::fs::readlinkat(self.root(), DIR_RECORD, Vec::new()).unwrap();
        let id = crate::format::dir::open(&self.key, record.as_bytes(), None).unwrap();
        self.dir.join(crate::format::name::encrypt(&self.key.dir_key(&id), name).unwrap().entry)
    }

    /// Everything that must not change.
    #[track_caller]
    fn check(&self) {
        let tree = self.tree();
        for name in NAMES {
            let (attr, _) = tree.look_up(ROOT_ID, name).unwrap();
            assert_eq!(attr.size, size_of_file(name));
            let mut expected = vec![0; attr.size as usize];
            for (at, data) in contents(name) {
                expected[at as usize..at as usize + data.len()].copy_from_slice(&data);
            }
            assert!(read(&tree, attr.node_id) == expected, "{}", String::from_utf8_lossy(name));
        }
        let (large, linked) =
            (tree.look_up(ROOT_ID, b"large").unwrap().0, tree.look_up(ROOT_ID, b"linked").unwrap().0);
        assert_eq!((large.node_id, large.links), (linked.node_id, 2));
        assert_eq!(tree.xattr(large.node_id, b"user.a", Asker::Mount).unwrap(), [3; 300]);
        let stat = std::fs::metadata(self.lower(b"large")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec()), (0o640, 1_000_000, 123_456_789));
        let (holes, _) = tree.look_up(ROOT_ID, b"holes").unwrap();
        let hole = tree.seek(holes.node_id, 0, Seek::Hole).unwrap();
        assert_eq!((hole, tree.seek(holes.node_id, hole, Seek::Data).unwrap()), (8192, 3 << 20));
        tree.close_all();
    }

    fn ids(&self) -> Vec<[u8; 16]> {
        let id = |name: &&[u8]| std::fs::read(self.lower(name)).unwrap()[28..44].try_into().unwrap();
        NAMES.iter().map(id).collect()
    }

    /// Renews all, which ends before its eighth step on the lower files.
    fn interrupt(&self) {
        let tree = self.tree();
        STEPS_LEFT.set(Some(8));
        assert!(Self::renew(&tree, &NAMES).is_err());
        STEPS_LEFT.set(None);
    }

    /// Renews the files of `names` together.
    fn renew(tree: &Tree, names: &[&[u8]]) -> Result<Vec<Renewed>, String> {
        let journal = tree.renewals().map_err(|e| e.to_string())?;
        let mut renewals = Vec::new();
        for (number, name) in (1..).zip(names) {
            let (attr, _) = tree.look_up(ROOT_ID, name).unwrap();
            match tree.prepare_renewal(attr.node_id, None, number, &journal, |_| true) {
                Ok(Prepared::Ready(renewal)) => renewals.push(*renewal),
                Ok(_) => return Err("not prepared".into()),
                Err(e) => return Err(e.to_string()),
            }
        }
        tree.apply_renewals(&renewals, &journal).map_err(|e| format!("{e:?}"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        STEPS_LEFT.set(None);
        fault::clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn create(tree: &Tree, name: &[u8]) -> u64 {
    let new = NewObject { permissions: 0o600, umask: 0, caller: CALLER };
    tree.create(ROOT_ID, name, new, true, KeyUser::Mount).unwrap().0.node_id
}

fn set_attribute(tree: &Tree, id: u64, value: &[u8]) {
    tree.set_xattr(id, b"user.a", value, XattrMode::Any, CALLER, Asker::Mount).unwrap();
}

fn read(tree: &Tree, id: u64) -> Vec<u8> {
    let mut out = Vec::new();
    tree.read(id, 0, 8 << 20, Asker::Mount, &mut out).unwrap();
    out
}

fn contents(name: &[u8]) -> Vec<(u64, Vec<u8>)> {
    match name {
        b"small" => vec![(0, vec![5; 700])],
        b"holes" => vec![(0, vec![6; 8000]), (3 << 20, vec![7; 5000])],
        _ => vec![(0, (0..1_500_000u32).map(|i| (i / 7) as u8).collect())],
    }
}

fn size_of_file(name: &[u8]) -> u64 {
    match name {
        b"small" => 700,
        b"holes" => 5 << 20,
        _ => 1_500_000,
    }
}

fn all_done(outcomes: &[Renewed]) -> bool {
    outcomes.iter().all(|outcome| matches!(outcome, Renewed::Done))
}

/// Pages of `after` that are data and stand in `before` too.
fn pages_kept(before: &[u8], after: &[u8]) -> usize {
    let pages = before.chunks(4096).zip(after.chunks(4096));
    pages.filter(|(before, after)| before == after && after.iter().any(|byte| *byte != 0)).count()
}

#[test]
fn a_renewed_file_is_what_it_was_under_another_key() {
    let bench = Bench::new("whole");
    bench.populate();
    let before: Vec<_> = NAMES.iter().map(|name| std::fs::read(bench.lower(name)).unwrap()).collect();
    let (ids, inode) = (bench.ids(), std::fs::metadata(bench.lower(b"large")).unwrap().ino());
    let sealed = sealed_attributes(std::fs::File::open(bench.lower(b"large")).unwrap()).unwrap();
    let tree = bench.tree();
    assert!(all_done(&Bench::renew(&tree, &NAMES).unwrap()));
    tree.close_all();
    bench.check();
    for ((name, before), id) in NAMES.iter().zip(before).zip(ids) {
        let after = std::fs::read(bench.lower(name)).unwrap();
        assert_eq!((after.len(), pages_kept(&before, &after)), (before.len(), 0));
        assert_ne!(after[28..44], id);
    }
    assert_eq!(std::fs::metadata(bench.lower(b"large")).unwrap().ino(), inode);
    assert_ne!(sealed_attributes(std::fs::File::open(bench.lower(b"large")).unwrap()).unwrap(), sealed);
    assert_eq!(std::fs::read_dir(bench.dir.join(RENEWALS)).unwrap().count(), 0, "nothing is left beside");
    assert_eq!(bench.finish().unwrap(), 0);
}

/// Makes of the files that are being replaced what a power cut may: some sectors old, some new, some neither.
fn spoil(bench: &Bench) {
    for name in NAMES {
        let file = std::fs::File::options().write(true).open(bench.lower(name)).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&[9; 512], 512).unwrap();
        (1..len / 4096).step_by(3).for_each(|page| file.write_all_at(&[9; 4096], page * 4096).unwrap());
    }
}

#[test]
fn an_interruption_at_any_step_leaves_all_files_old_or_all_new() {
    let bench = Bench::new("steps");
    bench.populate();
    let (mut old, mut new, mut ended) = (0, 0, false);
    for steps in 0..200 {
        let (before, tree) = (bench.ids(), bench.tree());
        STEPS_LEFT.set(Some(steps));
        ended = Bench::renew(&tree, &NAMES).is_ok_and(|outcomes| all_done(&outcomes)) && step().is_ok();
        STEPS_LEFT.set(None);
        drop(tree);
        if is_unfinished(bench.root()) {
            spoil(&bench);
            // The repair is interrupted, too.
            STEPS_LEFT.set(Some(steps % 11));
            let _ = bench.finish();
            STEPS_LEFT.set(None);
        }
        bench.finish().unwrap();
        assert!(!is_unfinished(bench.root()));
        bench.check();
        let same = before.iter().zip(bench.ids()).filter(|(before, after)| **before == *after).count();
        assert!(same == 0 || same == NAMES.len(), "{same} of them changed, cut after {steps} steps");
        (old, new) = (old + u32::from(same > 0), new + u32::from(same == 0));
        if ended {
            break;
        }
    }
    assert!(ended && old > 3 && new > 10, "{old} old, {new} new");
}

#[test]
fn a_file_that_moved_or_went_after_an_interruption_is_found_or_not_missed() {
    let bench = Bench::new("moved");
    bench.populate();
    bench.interrupt();
    assert!(is_unfinished(bench.root()));
    spoil(&bench);
    let aside =
        bench.dir.join(crate::format::name::encrypt(&bench.key.dir_key(&[0; 16]), b"aside").unwrap().entry);
    std::fs::rename(bench.lower(b"holes"), &aside).unwrap();
    std::fs::remove_file(bench.lower(b"small")).unwrap();
    bench.finish().unwrap();
    std::fs::rename(aside, bench.lower(b"holes")).unwrap();
    let tree = bench.tree();
    for name in [&b"holes"[..], b"large"] {
        let (attr, _) = tree.look_up(ROOT_ID, name).unwrap();
        assert_eq!(read(&tree, attr.node_id).len() as u64, size_of_file(name));
    }
}

#[test]
fn a_note_that_is_not_of_the_volume_moves_nothing() {
    let bench = Bench::new("forged");
    bench.populate();
    bench.interrupt();
    let note = bench.dir.join(RENEWALS).join("commit");
    let whole = std::fs::read(&note).unwrap();
    for at in [0, 10, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&note, changed).unwrap();
        assert!(matches!(bench.finish(), Err(FsError::Corrupt(_))), "byte {at}");
    }
    std::fs::write(&note, &whole).unwrap();
    let new = bench.dir.join(RENEWALS).join("1.new");
    let kept = std::fs::read(&new).unwrap();
    std::fs::write(&new, [&kept[..100], &[!kept[100]], &kept[101..]].concat()).unwrap();
    assert!(matches!(bench.finish(), Err(FsError::Corrupt(_))));
    std::fs::write(&new, kept).unwrap();
    bench.finish().unwrap();
    bench.check();
}

#[test]
fn what_changes_while_it_is_encrypted_anew_is_not_replaced() {
    let bench = Bench::new("changed");
    bench.populate();
    let tree = bench.tree();
    let id = tree.look_up(ROOT_ID, b"large").unwrap().0.node_id;
    let journal = tree.renewals().unwrap();
    tree.open_file(id, WRITING, Asker::Mount).unwrap();
    let write = |at: u64| tree.write(id, at, b"new", WriteManner::default(), Asker::Mount).map(drop);
    let changes: [&dyn Fn(); 4] = [
        &|| write(10).unwrap(),
        &|| write(1_400_000).unwrap(),
        &|| tree.truncate(id, 1_400_001, Asker::Mount).unwrap(),
        &|| set_attribute(&tree, id, b"other"),
    ];
    for (number, change) in (1..).zip(changes) {
        let prepared = tree.prepare_renewal(id, None, number, &journal, |_| true).unwrap();
        let Prepared::Ready(renewal) = prepared else { panic!("it has data") };
        change();
        let expected = read(&tree, id);
        let outcome = tree.apply_renewals(std::slice::from_ref(&*renewal), &journal).unwrap();
        assert!(matches!(outcome[..], [Renewed::Changed]), "change {number}: {outcome:?}");
        assert!(read(&tree, id) == expected, "change {number}");
    }
    // The open handle goes on afterwards, by what is there then.
    assert!(all_done(&Bench::renew(&tree, &[b"large"]).unwrap()));
    write(20).unwrap();
    tree.sync_file(id, true).unwrap();
    tree.release_file(id, true);
    tree.close_all();
    let tree = bench.tree();
    let id = tree.look_up(ROOT_ID, b"large").unwrap().0.node_id;
    assert_eq!(tree.xattr(id, b"user.a", Asker::Mount).unwrap(), b"other");
    let back = read(&tree, id);
    assert_eq!((&back[10..13], &back[20..23], back.len()), (&b"new"[..], &b"new"[..], 1_400_001));
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_beside() {
    let bench = Bench::new("full");
    bench.populate();
    let ids = bench.ids();
    for calls in 0..8 {
        let tree = bench.tree();
        fault::after(Some((calls, Fault::Full)));
        let done = Bench::renew(&tree, &[b"holes"]);
        fault::clear();
        if calls < 2 {
            assert!(done.is_err(), "after {calls} calls");
            assert_eq!(bench.ids(), ids);
        }
        assert_eq!(std::fs::read_dir(bench.dir.join(RENEWALS)).unwrap().count(), 0);
        tree.close_all();
        bench.check();
    }
}

fn holds(file: &Path, bytes: &[u8]) -> bool {
    std::fs::read(file).unwrap().windows(bytes.len()).any(|window| window == bytes)
}

#[test]
fn the_log_keeps_nothing_of_what_was_under_the_old_key() {
    let bench = Bench::new("log");
    bench.populate();
    let tree = bench.tree();
    let id = tree.look_up(ROOT_ID, b"large").unwrap().0.node_id;
    tree.open_file(id, WRITING, Asker::Mount).unwrap();
    tree.write(id, 4096, &[8; 4096], WriteManner::default(), Asker::Mount).unwrap();
    tree.sync_file(id, true).unwrap();
    tree.release_file(id, true);
    let old = std::fs::read(bench.lower(b"large")).unwrap()[28..44].to_vec();
    let log = bench.dir.join(LOG_NAME);
    assert!(holds(&log, &old), "the write went through the log");
    assert!(all_done(&Bench::renew(&tree, &[b"large"]).unwrap()));
    tree.forget_logged(false).unwrap();
    assert!(!holds(&log, &old));
    // It is used as before, and a crash is recovered from by it.
    tree.open_file(id, WRITING, Asker::Mount).unwrap();
    tree.write(id, 8192, &[9; 4096], WriteManner::default(), Asker::Mount).unwrap();
    tree.sync_file(id, true).unwrap();
    drop(tree);
    let tree = bench.tree();
    let id = tree.look_up(ROOT_ID, b"large").unwrap().0.node_id;
    assert_eq!(read(&tree, id)[4096..12288], [[8; 4096], [9; 4096]].concat());
}
