//! Changes of names and attributes, stopped between any two of the calls that they make on the lower filesystem.
//!
//! A journal holds changes of names in the order in which they were made, so what a power cut leaves of an operation is
//! what a kill between two of its calls leaves: that state is made for each of them, and must be the one before the
//! operation or the one after it. The same calls, made to fail one at a time: the operation tells, and has not happened.
#![cfg(test)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::file::tests::{MapKeys, new_dir};
use super::*;
use crate::crypto::{Secret, VolumeKey, random_array};
use crate::format::VolumeId;
use crate::format::dir::{self, DIR_RECORD};
use crate::format::name::{self, TEMPORARY_PREFIX};
use crate::sys::steps::{self, Stop};

/// More calls than any operation here makes.
const CALLS_MAX: u32 = 60;
/// Whose the new objects are, where the test may give them away.
const CALLER: Caller = Caller { uid: 1234, gid: 1234, pid: 0 };
const NEW: NewObject = NewObject { permissions: 0o750, umask: 0, caller: CALLER };

fn long(letter: char) -> String {
    letter.to_string().repeat(220)
}

/// A lower directory whose volume key stays, removed on drop.
struct Bench {
    dir: PathBuf,
    keys: Arc<MapKeys>,
    volume: Arc<VolumeKey>,
}

impl Bench {
    fn new(binds_names: bool) -> Self {
        let dir = new_dir();
        let volume = Arc::new(VolumeKey::new(Secret::random()).binding_names(binds_names));
        let record = dir::seal(&volume, &random_array(), volume.root_place().as_ref());
        std::os::unix::fs::symlink(record, dir.join(DIR_RECORD)).unwrap();
        Self { dir, keys: Arc::default(), volume }
    }

    /// A mount that begins.
    fn mount(&self) -> Arc<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root: OwnedFd = rustix::fs::open(&self.dir, flags, Mode::empty()).unwrap();
        let log = TagLog::open(&root, &self.volume, Durability::Strict, LastEnd::Unknown).unwrap();
        let files = FileContext {
            volume_id: VolumeId([1; 16]),
            keys: self.keys.clone(),
            read_only: false,
            log: Some(log),
            stage: Stage::default(),
            integrity: Integrity::default(),
        };
        Tree::open(root, self.volume.clone(), Arc::new(files), &TreeOptions::default()).unwrap()
    }

    /// Lower names that stand for nothing: temporary ones, and sidecars without their entry.
    fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
                let entry_of = name::entry_of_sidecar(&name);
                let orphan = entry_of.is_some_and(|entry| dir.join(entry).symlink_metadata().is_err());
                if name.starts_with(TEMPORARY_PREFIX) || orphan {
                    found.push(path);
                } else if entry.file_type().unwrap().is_dir() {
                    dirs.push(path);
                }
            }
        }
        found
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        steps::clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A tree seen by path.
struct View<'a>(&'a Tree);

impl View<'_> {
    /// The directory that holds the last name of `path`, and that name.
    fn split(&self, path: &str) -> (u64, Vec<u8>) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { ROOT_ID } else { self.id(parent) };
        (parent, name.into())
    }

    fn id(&self, path: &str) -> u64 {
        let (parent, name) = self.split(path);
        self.0.look_up(parent, &name).unwrap().0.node_id
    }

    fn write(&self, path: &str, data: &[u8]) -> Result<(), FsError> {
        let (parent, name) = self.split(path);
        let id = self.0.create(parent, &name, NEW, true, KeyUser::Mount)?.0.node_id;
        let written = self.0.write(id, 0, data, WriteManner::default(), Asker::Mount).map(drop);
        let synced = written.and_then(|()| self.0.sync_file(id, false));
        self.0.release_file(id, true);
        synced
    }

    fn make_dir(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.split(path);
        self.0.make_dir(parent, &name, NEW).map(drop)
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> Result<(), FsError> {
        let ((parent, name), (new_parent, new_name)) = (self.split(from), self.split(to));
        self.0.rename(parent, &name, new_parent, &new_name, mode)
    }

    fn describe(&self, path: &str, listed: &Listed) -> String {
        let (parent, name) = self.split(path);
        let attr = self.0.look_up(parent, &name).unwrap().0;
        let content = match listed.kind {
            Kind::File => {
                let mut data = Vec::new();
                self.0.open_file(attr.node_id, OpenManner::default(), Asker::Mount).unwrap();
                self.0.read(attr.node_id, 0, 1 << 20, Asker::Mount, &mut data).unwrap();
                self.0.release_file(attr.node_id, false);
                format!("{data:?}")
            }
            Kind::Symlink => format!("{:?}", self.0.read_symlink(attr.node_id).unwrap()),
            Kind::Dir => {
                format!("{:?}", self.0.xattr(attr.node_id, KEY_ATTRIBUTE.as_bytes(), Asker::Mount).ok())
            }
            _ => String::new(),
        };
        format!("{:?} {:o} {} {content}", attr.kind, attr.permissions, attr.uid)
    }

    /// Everything that the tree shows.
    fn all(&self) -> BTreeMap<String, String> {
        let (mut found, mut dirs) = (BTreeMap::new(), vec![(ROOT_ID, String::new())]);
        while let Some((id, path)) = dirs.pop() {
            let mut stream = self.0.open_stream(id).unwrap();
            let mut listed = Vec::new();
            let mut more = true;
            while std::mem::take(&mut more) {
                let position = stream.position();
                let take = |entry: &Listed| {
                    more = true;
                    listed.push(entry.clone());
                    true
                };
                self.0.list(&mut stream, position, take).unwrap();
            }
            listed.retain(|entry| entry.name != b"." && entry.name != b"..");
            for entry in listed {
                let below = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                found.insert(below.clone(), self.describe(&below, &entry));
                if entry.kind == Kind::Dir {
                    dirs.push((self.id(&below), below));
                }
            }
        }
        found
    }
}

type Op = fn(&View<'_>) -> Result<(), FsError>;

/// What there is before each operation.
fn furnish(view: &View<'_>) {
    for dir in ["a", "a/inner", "b", "keyed", "empty", &long('D')] {
        view.make_dir(dir).unwrap();
    }
    for (file, data) in [("f", "first"), ("g", "second"), (&long('F'), "long"), ("b/x", "third")] {
        view.write(file, data.as_bytes()).unwrap();
    }
    view.write(&format!("b/{}", long('G')), b"longer").unwrap();
    view.0.make_symlink(ROOT_ID, b"s", b"target", CALLER).unwrap();
    choose_key(view, "keyed", "arn:one").unwrap();
}

fn choose_key(view: &View<'_>, dir: &str, key: &str) -> Result<(), FsError> {
    let (mode, root) = (XattrMode::Any, Caller { uid: 0, gid: 0, pid: 0 });
    view.0.set_xattr(view.id(dir), KEY_ATTRIBUTE.as_bytes(), key.as_bytes(), mode, root, Asker::Mount)
}

const OVER: RenameMode = RenameMode { no_replace: false, exchange: false, whiteout: false };
const EXCHANGE: RenameMode = RenameMode { no_replace: false, exchange: true, whiteout: false };

/// Operations that either happen or do not.
const OPERATIONS: &[(&str, Op)] = &[
    ("create", |v| create(v, "new")),
    ("create, long", |v| create(v, &long('N'))),
    ("mkdir", |v| v.make_dir("new")),
    ("mkdir, long", |v| v.make_dir(&long('N'))),
    ("mkdir, key inherited", |v| v.make_dir("keyed/new")),
    ("symlink, long", |v| v.0.make_symlink(ROOT_ID, long('N').as_bytes(), b"there", CALLER).map(drop)),
    ("fifo, long", |v| {
        let file = SpecialFile { kind: Kind::Fifo, device: (0, 0) };
        v.0.make_node(ROOT_ID, long('N').as_bytes(), file, NEW).map(drop)
    }),
    ("unlink", |v| v.0.unlink(ROOT_ID, b"f")),
    ("unlink, long", |v| v.0.unlink(ROOT_ID, long('F').as_bytes())),
    ("rmdir", |v| v.0.remove_dir(ROOT_ID, b"empty")),
    ("rmdir, long", |v| v.0.remove_dir(ROOT_ID, long('D').as_bytes())),
    ("rename", |v| v.rename("f", "new", OVER)),
    ("rename to a long name", |v| v.rename("f", &long('N'), OVER)),
    ("rename from a long name", |v| v.rename(&long('F'), "new", OVER)),
    ("rename across, long", |v| v.rename(&long('F'), &format!("b/{}", long('N')), OVER)),
    ("rename over", |v| v.rename("f", "g", OVER)),
    ("rename over, across", |v| v.rename("f", "b/x", OVER)),
    ("rename over, across, long", |v| v.rename(&long('F'), &format!("b/{}", long('G')), OVER)),
    ("rename of a link over", |v| v.rename("s", "b/x", OVER)),
    ("rename of a directory, across", |v| v.rename("a", "b/a", OVER)),
    ("rename of a directory over", |v| v.rename("a", "empty", OVER)),
    ("rename of a directory over, long", |v| v.rename("a", &long('D'), OVER)),
    ("exchange", |v| v.rename("f", "b/x", EXCHANGE)),
    ("exchange, long", |v| v.rename("a", &format!("b/{}", long('G')), EXCHANGE)),
    ("default key", |v| choose_key(v, "keyed", "arn:two")),
];

fn create(view: &View<'_>, name: &str) -> Result<(), FsError> {
    let (parent, name) = view.split(name);
    view.0
        .create(parent, &name, NEW, true, KeyUser::Mount)
        .map(|(attr, _)| view.0.release_file(attr.node_id, true))
}

/// A furnished volume, mounted anew, and what it shows.
fn furnished(binds_names: bool) -> (Bench, Arc<Tree>) {
    let bench = Bench::new(binds_names);
    furnish(&View(&bench.mount()));
    let tree = bench.mount();
    (bench, tree)
}

/// What is shown before and after `op`.
fn old_and_new(binds_names: bool, op: Op) -> [BTreeMap<String, String>; 2] {
    let (bench, tree) = furnished(binds_names);
    let view = View(&tree);
    let old = view.all();
    op(&view).unwrap();
    let new = view.all();
    assert!(bench.leftovers().is_empty());
    [old, new]
}

/// Each operation, on a volume that binds names and on one that does not.
fn operations() -> impl Iterator<Item = (bool, &'static str, Op)> {
    [false, true].into_iter().flat_map(|binds| OPERATIONS.iter().map(move |(name, op)| (binds, *name, *op)))
}

/// Runs `f` with each stop of `op` until one does not come any more.
fn at_each_call(name: &str, f: impl Fn(u32) -> bool) {
    let calls = (0..CALLS_MAX).take_while(|call| f(*call)).count() as u32;
    assert!((1..CALLS_MAX).contains(&calls), "{name}: {calls} calls");
}

#[test]
fn a_stop_between_any_two_calls_leaves_old_or_new() {
    for (binds_names, name, op) in operations() {
        let [old, new] = old_and_new(binds_names, op);
        at_each_call(name, |call| {
            let (bench, tree) = furnished(binds_names);
            View(&tree).all();
            steps::after(call, Stop::Kill);
            let _ = op(&View(&tree));
            drop(tree);
            let came = steps::clear();
            let mut found = View(&bench.mount()).all();
            // A new object may not be its owner's yet.
            let given = |(path, now): (&String, &mut String)| {
                if !old.contains_key(path) && !now.starts_with("Dir") {
                    *now = now.replacen(" 0 ", &format!(" {} ", CALLER.uid), 1);
                }
            };
            found.iter_mut().for_each(given);
            assert!(found == old || found == new, "{name}, bound {binds_names}, call {call}: {found:#?}");
            came
        });
    }
}

#[test]
fn a_call_that_fails_is_told_and_the_operation_can_be_tried_again() {
    for (binds_names, name, op) in operations() {
        let [old, new] = old_and_new(binds_names, op);
        at_each_call(name, |call| {
            let (bench, tree) = furnished(binds_names);
            let view = View(&tree);
            view.all();
            let error = [Errno::NOSPC, Errno::IO, Errno::DQUOT][call as usize % 3];
            steps::after(call, Stop::Fail(error));
            let told = op(&view);
            let came = steps::clear();
            assert!(!matches!(told, Err(FsError::Os(e)) if e != error), "{name}: {told:?} for {error}");
            let what = format!("{name}, bound {binds_names}, call {call}: {told:?}");
            let found = view.all();
            assert!(found == if told.is_ok() { new.clone() } else { old.clone() }, "{what} {found:#?}");
            if told.is_err() {
                assert!(bench.leftovers().is_empty(), "{what} {:?}", bench.leftovers());
                op(&view).unwrap_or_else(|e| panic!("{what}, then {e}"));
            }
            drop(tree);
            assert!(View(&bench.mount()).all() == new, "{what}");
            came
        });
    }
}

/// A filesystem that stores each synced file with its own name alone must have the sidecar first.
#[test]
fn a_long_name_waits_for_its_sidecar_where_names_are_stored_in_any_order() {
    let makes = [
        ("create, long", "open"),
        ("mkdir, long", "rename"),
        ("symlink, long", "make_link"),
        ("fifo, long", "make_node"),
        ("rename to a long name", "rename"),
        ("rename across, long", "rename"),
    ];
    for (wanted, makes) in makes {
        let (_, op) = OPERATIONS.iter().find(|(name, _)| *name == wanted).unwrap();
        let (_bench, tree) = furnished(false);
        steps::watch();
        op(&View(&tree)).unwrap();
        let seen = steps::seen();
        assert!(seen.windows(3).any(|calls| calls == ["make_link", "sync_dir", makes]), "{wanted}: {seen:?}");
    }
}
