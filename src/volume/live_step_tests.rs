//! Snapshots of a mount that is being written to, stopped between any two of the calls that making them makes on the
//! lower filesystem.
//!
//! The load goes through states one after the other. A snapshot is one of those that the load was in while it was made,
//! or it is none; the mount goes on, or is found by the next one, as it was told to be.
#![cfg(test)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::snapshot::path_of;
use super::step_tests::{Bench, Interruption, STOPS};
use super::*;
use crate::client::CacheLimits;
use crate::sys::btrfs;
use crate::tree::file::tests::new_dir;
use crate::tree::{
    Asker, Caller, KeyUser, LastEnd, Listed, NewObject, OpenManner, ROOT_ID, RenameMode, Tree, WriteManner,
};

/// Bytes of the file that is overwritten: one block, so that it holds one number.
const LEN: usize = 3000;
/// The load is to end.
const END: u32 = u32::MAX;

/// What the load has made of the volume: the number in the file, that in the name of another, those of the files that
/// come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    written: u32,
    named: u32,
    born: Vec<u32>,
}

impl State {
    /// Whether the load goes through it, one round after the other: it writes, renames, makes and removes.
    fn is_one(&self) -> bool {
        let n = self.written;
        match (n - self.named.min(n), &self.born[..]) {
            (1, [a]) => *a == n - 1,
            (0, [a]) => *a == n || *a + 1 == n,
            (0, [a, b]) => (*a + 1, *b) == (n, n),
            _ => false,
        }
    }
}

fn caller() -> Caller {
    Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), pid: 0 }
}

fn create(tree: &Tree, name: &str) -> u64 {
    let new = NewObject { permissions: 0o644, umask: 0, caller: caller() };
    tree.create(ROOT_ID, name.as_bytes(), new, true, KeyUser::Mount).unwrap().0.node_id
}

fn overwrite(tree: &Tree, id: u64, n: u32) {
    tree.write(id, 0, &n.to_le_bytes().repeat(LEN / 4), WriteManner::default(), Asker::Mount).unwrap();
}

/// A number in a long name: it has a sidecar, which goes with it.
fn long(n: u32) -> String {
    format!("named-{n:0210}")
}

/// State 0.
fn prepare(tree: &Tree) {
    let written = create(tree, "written");
    overwrite(tree, written, 0);
    tree.release_file(written, true);
    for name in [long(0), "born-0".to_owned()] {
        let id = create(tree, &name);
        tree.release_file(id, true);
    }
}

/// One that writes and renames in a thread of its own, round after round.
struct Load {
    thread: JoinHandle<u64>,
    round: Arc<AtomicU32>,
}

impl Load {
    /// When this returns, two rounds are over.
    fn begin(tree: Arc<Tree>) -> Self {
        let round = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&round);
        let thread = std::thread::spawn(move || {
            let written = tree.look_up(ROOT_ID, b"written").unwrap().0.node_id;
            tree.open_file(written, OpenManner { write: true, ..OpenManner::default() }, Asker::Mount)
                .unwrap();
            for n in 1.. {
                Self::round(&tree, written, n);
                if told.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |r| (r != END).then_some(n)).is_err()
                {
                    break;
                }
            }
            written
        });
        while round.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        Self { thread, round }
    }

    fn round(tree: &Tree, written: u64, n: u32) {
        overwrite(tree, written, n);
        let (from, to) = (long(n - 1), long(n));
        tree.rename(ROOT_ID, from.as_bytes(), ROOT_ID, to.as_bytes(), RenameMode::default()).unwrap();
        let born = create(tree, &format!("born-{n}"));
        tree.release_file(born, true);
        tree.unlink(ROOT_ID, format!("born-{}", n - 1).as_bytes()).unwrap();
    }

    /// Rounds that are over for sure.
    fn rounds(&self) -> u32 {
        self.round.load(Ordering::SeqCst)
    }

    /// Ends it; gives the file that it leaves open.
    fn end(self) -> u64 {
        self.round.store(END, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn state_of(tree: &Tree) -> State {
    let (mut stream, mut names) = (tree.open_stream(ROOT_ID).unwrap(), Vec::new());
    let mut take = |entry: &Listed| {
        names.push(String::from_utf8(entry.name.clone()).unwrap());
        true
    };
    tree.list(&mut stream, 0, &mut take).unwrap();
    let numbers = |prefix: &str| {
        let mut found: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
        found.sort_unstable();
        found
    };
    let named = numbers("named-");
    assert_eq!(named.len(), 1, "{named:?}");
    let (id, mut data) = (tree.look_up(ROOT_ID, b"written").unwrap().0.node_id, Vec::new());
    tree.open_file(id, OpenManner::default(), Asker::Mount).unwrap();
    tree.read(id, 0, LEN, Asker::Mount, &mut data).unwrap();
    tree.release_file(id, false);
    let written = u32::from_le_bytes(*data.first_chunk().unwrap());
    assert_eq!(data, written.to_le_bytes().repeat(LEN / 4), "a mixture");
    State { written, named: named[0], born: numbers("born-") }
}

fn state_below(bench: &Bench, lower: &Path, durability: Option<Durability>) -> State {
    let volume = Volume::open(lower, Arc::clone(&bench.kms), CacheLimits::default());
    let mounted = volume.unwrap().tree(durability, Integrity::default(), LastEnd::Unknown).unwrap();
    let tree = mounted.for_session();
    let state = state_of(&tree);
    tree.close_all();
    state
}

/// One snapshot of a mount under load, with what comes between; tells whether it did.
fn attempt(bench: &Bench, how: Interruption, calls: u32) -> bool {
    let what = format!("{how:?} after {calls}");
    let volume = bench.open();
    let mounted = volume.tree(Some(Durability::Strict), Integrity::default(), LastEnd::Unknown).unwrap();
    let tree = mounted.for_session();
    let load = Load::begin(Arc::clone(&tree));
    let first = load.rounds();
    let (told, came) = bench.interrupted(how, calls, || mounted.snapshot(&volume, "one", &Mutex::default()));
    let last = load.rounds() + 1;
    let open = load.end();
    let made = snapshot::list(&bench.lower).unwrap();
    assert!(made.len() <= 1 && (told.is_err() || made.len() == 1), "{what}: {told:?}");
    if how != STOPS[0] {
        assert_eq!(made.len(), usize::from(told.is_ok()), "{what}: {told:?}");
    }
    if !made.is_empty() {
        let state = state_below(bench, &path_of(&bench.lower, "one").unwrap(), None);
        assert!(
            state.is_one() && (first..=last).contains(&state.written),
            "{what}: {first} {last} {state:?}"
        );
    }
    let now = state_of(&tree);
    assert!(now.is_one() && now.born.len() == 1 && now.written >= last - 1, "{what}: {now:?}");
    if how == STOPS[0] {
        // What was not synced may be lost with the process, and nothing else.
        tree.sync_file(open, false).unwrap();
    } else {
        mounted.snapshot(&volume, "two", &Mutex::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(state_below(bench, &path_of(&bench.lower, "two").unwrap(), None), now, "{what}");
        tree.release_file(open, true);
        tree.close_all();
        assert!(tree.ended_well(), "{what}");
    }
    drop((tree, mounted));
    assert_eq!(state_below(bench, &bench.lower, Some(Durability::Strict)), now, "{what}");
    snapshot::make_offline(&bench.open(), "three", &Mutex::default()).unwrap();
    bench.has_no_leftovers(&what);
    came
}

fn at_each_call(bench: &mut Bench, what: &str, how: &[Interruption]) {
    bench.in_mount(|tree, _| prepare(tree));
    bench.keep();
    bench.at_each_call(what, how, |how, calls| attempt(bench, how, calls));
    bench.is_whole(what);
}

#[test]
fn a_snapshot_of_a_mount_under_load_that_is_interrupted_anywhere_is_one_moment_or_none() {
    at_each_call(&mut Bench::new(), "live snapshot", &STOPS[..2]);
}

/// A btrfs of its own at `dir`; `false` where there is none to be had.
fn mount_btrfs(dir: &Path) -> bool {
    let image = dir.with_extension("img");
    std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let run = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mounted = rustix::process::geteuid().is_root()
        && run(Command::new("mkfs.btrfs").arg("-q").arg(&image).env("PATH", path))
        && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(dir));
    std::fs::remove_file(&image).unwrap();
    mounted
}

#[test]
fn a_snapshot_of_a_subvolume_under_load_that_is_interrupted_anywhere_is_one_moment_or_none() {
    let dir = new_dir();
    if let Some(mut bench) = Bench::on(dir.clone(), mount_btrfs) {
        assert!(btrfs::is_subvolume(std::fs::File::open(&bench.lower).unwrap()));
        at_each_call(&mut bench, "live snapshot of a subvolume", &STOPS[..2]);
        drop(bench);
        assert!(Command::new("umount").arg("-l").arg(&dir).status().unwrap().success());
    }
    std::fs::remove_dir(dir).unwrap();
}
