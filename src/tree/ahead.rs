//! Keys ahead of need: whoever opens one cold file after another finds the keys of the next ones there.
//!
//! A cold open waits for a round trip to the key service. When several come close upon each other, the headers of the
//! files that follow in the directory, and in those beside it, are read and their keys fetched many at a time, on a thread
//! of its own that `fuse` runs ([`Tree::run_ahead`]). The key source says how many are worth it. Must never do so in the name of a user, for
//! whom the service's log would show files that the user never opened, nor touch the time of the last access.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{self, FileType, OFlags, RawDir, SeekFrom};

use super::FsError;
use super::dir::Dir;
use super::namespace::Tree;
use super::node::Link;
use crate::format::{FileId, WrappedKey};
use crate::sys::at;

/// Cold opens in a row after which more are expected.
const ROW: u32 = 8;
/// The longest time between two of a row.
const PAUSE: Duration = Duration::from_secs(1);
/// Files looked at for the first cold open of a row, and at most for a later one; it doubles between.
const FIRST_LOOK: usize = 16;
const MAX_LOOK: usize = 128;
/// Keys fetched at a time, so that the first are there soon.
const BATCH: usize = 16;
/// Entries passed over at most in search of the file that was opened.
const MAX_PASSED: usize = 100_000;
/// Entries and directories passed over at most for one cold open.
const MAX_STEPS: usize = 10_000;
/// Nothing is fetched ahead for so long after the service did not give what was asked for.
const REST: Duration = Duration::from_secs(10);
/// Directories that are gone through at the same time.
const MAX_WALKS: usize = 4;
/// How lower directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOATIME);
/// Bytes of lower entries read at a time.
const BUFFER_LEN: usize = 4 * 1024;
/// Directories are let go when nothing was cold for so long.
const IDLE: Duration = Duration::from_secs(2);

/// What was found cold.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    wanted: Condvar,
}

#[derive(Default)]
struct State {
    row: u32,
    last: Option<Instant>,
    rests_until: Option<Instant>,
    /// The last file of a long enough row, until it is taken up.
    cold: Option<Link>,
    stopped: bool,
}

/// What the thread wakes up for.
enum Next {
    Cold(Link),
    Idle,
    Stop,
}

/// A directory that is gone through, from the file on that was cold to the end and from its beginning to that file; then
/// those that follow it in its parent.
struct Walk {
    /// Node id of the directory.
    id: u64,
    fd: OwnedFd,
    position: u64,
    look: usize,
    /// Entries and directories that may still be passed over for this cold open.
    steps: usize,
    from: Vec<u8>,
    again: bool,
    done: bool,
    /// The parent, and where in it the next directory is looked for.
    beside: Option<(Arc<Dir>, OwnedFd, u64)>,
}

impl Ahead {
    /// Notes that the key of the file at `link` was not at hand.
    pub fn note(&self, link: impl FnOnce() -> Option<Link>) {
        self.note_at(Instant::now(), link);
    }

    fn note_at(&self, now: Instant, link: impl FnOnce() -> Option<Link>) {
        let mut state = self.state.lock();
        if state.rests_until.is_some_and(|until| now < until) {
            return;
        }
        let in_row = state.last.is_some_and(|last| now.duration_since(last) < PAUSE);
        state.row = if in_row { state.row.saturating_add(1) } else { 1 };
        state.last = Some(now);
        if state.row >= ROW {
            state.cold = link();
            self.wanted.notify_one();
        }
    }

    fn rest(&self) {
        let mut state = self.state.lock();
        (state.row, state.cold) = (0, None);
        state.rests_until = Some(Instant::now() + REST);
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    fn next(&self) -> Next {
        let mut state = self.state.lock();
        if !state.stopped && state.cold.is_none() {
            self.wanted.wait_for(&mut state, IDLE);
        }
        match state.cold.take() {
            _ if state.stopped => Next::Stop,
            Some(link) => Next::Cold(link),
            None => Next::Idle,
        }
    }
}

impl Tree {
    /// Fetches keys ahead of need until [`Tree::stop_ahead`].
    pub fn run_ahead(&self) {
        let mut walks = Vec::new();
        loop {
            match self.ahead.next() {
                Next::Stop => return,
                Next::Idle => walks.clear(),
                // Whatever is wrong is told by the open that meets it.
                Next::Cold(link) => {
                    if !self.go_ahead(&mut walks, &link).unwrap_or(false) {
                        self.ahead.rest();
                        walks.clear();
                    }
                }
            }
        }
    }

    /// Ends [`Tree::run_ahead`].
    pub fn stop_ahead(&self) {
        self.ahead.state.lock().stopped = true;
        self.ahead.wanted.notify_all();
    }

    /// `false` where the key service does not give what is asked for.
    fn go_ahead(&self, walks: &mut Vec<Walk>, cold: &Link) -> Result<bool, FsError> {
        let room = self.files.keys.room_ahead();
        if room == 0 {
            return Ok(true);
        }
        let known = walks.iter().position(|walk| walk.id == cold.parent);
        let mut walk = match known {
            Some(place) => walks.remove(place),
            None => self.walk_from(cold, walks.first().map_or(FIRST_LOOK, |last| last.look))?,
        };
        let mut left = walk.look.min(room);
        (walk.look, walk.steps) = ((walk.look * 2).min(MAX_LOOK), MAX_STEPS);
        while left > 0 && walk.steps > 0 && !walk.done && !self.ahead.is_stopped() {
            let wraps = self.next_wraps(&mut walk, left.min(BATCH))?;
            if !self.files.keys.fetch_ahead(&wraps) {
                return Ok(false);
            }
            left -= left.min(BATCH);
        }
        walks.truncate(MAX_WALKS - 1);
        walks.insert(0, walk);
        Ok(true)
    }

    /// A walk that begins behind the entry at `cold`.
    fn walk_from(&self, cold: &Link, look: usize) -> Result<Walk, FsError> {
        let dir = self.dir(cold.parent)?;
        let fd = self.spare_descriptors(|| at::reopen(&dir.fd, DIRECTORY))?;
        let from = cold.name.as_bytes().to_vec();
        let behind = behind(&fd, &from)?;
        let (position, again) = (behind.unwrap_or(0), behind.is_none());
        let steps = MAX_STEPS;
        Ok(Walk { id: cold.parent, fd, position, look, steps, from, again, done: false, beside: None })
    }

    /// The wrapped keys of the `left` files that come next.
    fn next_wraps(&self, walk: &mut Walk, mut left: usize) -> Result<Vec<(FileId, WrappedKey)>, FsError> {
        let mut wraps = Vec::new();
        while left > 0 && walk.steps > 0 && !walk.done {
            let Walk { fd, position, from, again, steps, .. } = walk;
            *position = each(fd, *position, |name, kind, _| {
                let came_round = *again && name == from;
                if left == 0 || *steps == 0 || came_round {
                    return false;
                }
                *steps -= 1;
                if kind == FileType::RegularFile {
                    left -= 1;
                    wraps.extend(self.wrap_of(fd, name));
                }
                true
            })?;
            if left == 0 || walk.steps == 0 {
                break;
            }
            if walk.again {
                self.go_beside(walk)?;
            }
            (walk.position, walk.again) = (0, true);
        }
        Ok(wraps)
    }

    /// Goes on with the directory that follows in the parent.
    fn go_beside(&self, walk: &mut Walk) -> Result<(), FsError> {
        walk.done = true;
        if walk.beside.is_none() {
            let Some(link) = self.nodes.find(walk.id).and_then(|node| node.link()) else { return Ok(()) };
            let parent = self.dir(link.parent)?;
            let fd = self.spare_descriptors(|| at::reopen(&parent.fd, DIRECTORY))?;
            let Some(position) = behind(&fd, link.name.as_bytes())? else { return Ok(()) };
            walk.beside = Some((parent, fd, position));
        }
        let (Some((parent, fd, position)), steps) = (&mut walk.beside, &mut walk.steps) else {
            return Ok(());
        };
        while *steps > 0 {
            let mut next = None;
            *position = each(fd, *position, |name, kind, _| {
                if next.is_some() || *steps == 0 {
                    return false;
                }
                *steps -= 1;
                // What begins with a dot is no directory of users.
                if kind == FileType::Directory && !name.starts_with(b".") {
                    next = Some(name.to_vec());
                }
                true
            })?;
            let Some(name) = next else { break };
            let fd = self.spare_descriptors(|| at::open(&parent.fd, &name, DIRECTORY, 0))?;
            let stat = fs::fstat(&fd)?;
            // What is mounted there is none of the volume.
            if stat.st_dev == self.device {
                (walk.id, walk.fd, walk.done) = (self.node_id(&stat), fd, false);
                walk.from.clear();
                break;
            }
        }
        Ok(())
    }

    fn wrap_of(&self, dir: &OwnedFd, entry: &[u8]) -> Option<(FileId, WrappedKey)> {
        // Not waiting, in case the name has become that of a fifo.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME;
        self.files.wrap_in(at::open(dir, entry, flags, 0).ok()?)
    }
}

/// Gives lower entries (name, type, inode) from `position` on to `take` until it answers `false`. Returns where the last one
/// that it took ends.
fn each(
    fd: &OwnedFd,
    mut position: u64,
    mut take: impl FnMut(&[u8], FileType, u64) -> bool,
) -> Result<u64, FsError> {
    fs::seek(fd, SeekFrom::Start(position))?;
    let mut buffer = [MaybeUninit::uninit(); BUFFER_LEN];
    let mut lower = RawDir::new(fd, &mut buffer);
    while let Some(entry) = lower.next() {
        let entry = entry?;
        if !take(entry.file_name().to_bytes(), entry.file_type(), entry.ino()) {
            break;
        }
        position = entry.next_entry_cookie();
    }
    Ok(position)
}

/// Where the entry after `name` begins, if it is found among the first.
fn behind(fd: &OwnedFd, name: &[u8]) -> Result<Option<u64>, FsError> {
    let (mut passed, mut found) = (0, false);
    let position = each(fd, 0, |entry, _, _| {
        let go_on = !found && passed < MAX_PASSED;
        passed += 1;
        found = found || entry == name;
        go_on
    })?;
    Ok(found.then_some(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::close::tests::{Bench, written};
    use crate::tree::{Asker, Caller, KeyUser, NewObject, ROOT_ID, WriteManner};

    const FILES: usize = 40;

    #[test]
    fn more_are_expected_after_a_row_of_cold_opens_without_a_pause() {
        let ahead = Ahead::default();
        let link = |name: &str| Link { parent: ROOT_ID, name: name.into() };
        let start = Instant::now();
        let cold = || ahead.state.lock().cold.take();
        let open = |count, at| (0..count).for_each(|_| ahead.note_at(at, || Some(link("f"))));
        open(ROW - 1, start);
        assert_eq!(cold(), None);
        open(ROW - 1, start + PAUSE);
        assert_eq!(cold(), None, "a row begins anew after a pause");
        ahead.note_at(start + PAUSE, || Some(link("last")));
        assert_eq!(cold(), Some(link("last")));
        open(1, start + PAUSE + PAUSE / 2);
        assert_eq!(cold(), Some(link("f")), "it goes on");
        ahead.rest();
        open(2 * ROW, Instant::now());
        assert_eq!(cold(), None, "the service did not give what was asked for");
        open(ROW, Instant::now() + REST);
        assert_eq!(cold(), Some(link("f")));
    }

    /// Lower names and ids of the files of a directory, as it lists them.
    fn in_order(tree: &Tree, dir: u64) -> Vec<(String, FileId)> {
        let fd = at::reopen_dir(&tree.dir(dir).unwrap().fd).unwrap();
        let mut order = Vec::new();
        let list = |name: &[u8], kind, _| {
            let found = if kind == FileType::RegularFile { tree.wrap_of(&fd, name) } else { None };
            order.extend(found.map(|(id, _)| (String::from_utf8(name.to_vec()).unwrap(), id)));
            true
        };
        each(&fd, 0, list).unwrap();
        order
    }

    fn ids(files: &[(String, FileId)]) -> Vec<FileId> {
        files.iter().map(|(_, id)| *id).collect()
    }

    fn next(tree: &Tree, walk: &mut Walk, left: usize) -> Vec<FileId> {
        tree.next_wraps(walk, left).unwrap().into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn a_directory_is_gone_through_from_the_cold_file_on_and_then_from_its_beginning() {
        let bench = Bench::new();
        let tree = bench.tree();
        for n in 0..FILES {
            let id = written(&tree, format!("file {n}").as_bytes(), b"some");
            tree.release_file(id, true);
        }
        let order = in_order(&tree, ROOT_ID);
        assert_eq!(order.len(), FILES);
        let from =
            |name: &str| tree.walk_from(&Link { parent: ROOT_ID, name: name.into() }, FIRST_LOOK).unwrap();
        let mut walk = from(&order[9].0);
        assert_eq!(next(&tree, &mut walk, 16), ids(&order[10..26]));
        assert_eq!(next(&tree, &mut walk, 5), ids(&order[26..31]));
        assert_eq!(next(&tree, &mut walk, 1_000), [ids(&order[31..]), ids(&order[..9])].concat());
        assert_eq!((next(&tree, &mut walk, 1_000), walk.done), (vec![], true));

        let mut walk = from("renamed meanwhile");
        assert_eq!((next(&tree, &mut walk, 1_000), walk.done), (ids(&order), true));
    }

    #[test]
    fn directories_that_follow_in_the_parent_come_next() {
        let bench = Bench::new();
        let tree = bench.tree();
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let new = NewObject { permissions: 0o700, umask: 0, caller };
        let dirs = ["one", "two", "three"].map(|name| {
            let (dir, _) = tree.make_dir(ROOT_ID, name.as_bytes(), new).unwrap();
            for name in ["a", "b", "c"] {
                let (file, _) = tree.create(dir.node_id, name.as_bytes(), new, true, KeyUser::Mount).unwrap();
                tree.write(file.node_id, 0, b"some", WriteManner::default(), Asker::Mount).unwrap();
                tree.release_file(file.node_id, true);
            }
            dir.node_id
        });
        let mut listed = Vec::new();
        let list = |_: &[u8], _, ino| {
            let id = tree.node_id_of_ino(ino);
            listed.extend(dirs.contains(&id).then_some(id));
            true
        };
        each(&at::reopen_dir(&tree.dir(ROOT_ID).unwrap().fd).unwrap(), 0, list).unwrap();
        let files: Vec<_> = listed.iter().map(|id| in_order(&tree, *id)).collect();

        let cold = Link { parent: listed[0], name: files[0][1].0.as_str().into() };
        let mut walk = tree.walk_from(&cold, FIRST_LOOK).unwrap();
        let expected = ids(&[&files[0][2..], &files[0][..1], &files[1], &files[2]].concat());
        assert_eq!(expected.len(), 8);
        assert_eq!(next(&tree, &mut walk, 3), expected[..3]);
        assert_eq!(walk.id, listed[1]);
        assert_eq!((next(&tree, &mut walk, 100), walk.done), (expected[3..].to_vec(), true));
    }
}
