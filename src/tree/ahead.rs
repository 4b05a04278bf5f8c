//! Keys ahead of need: whoever opens one cold file after another finds the keys of the next ones there.
//!
//! A cold open waits for a round trip to the key service. When several come close upon each other, the headers of the
//! files that follow in the directory are read and their keys fetched many at a time, on a thread of its own that `fuse`
//! runs ([`Tree::run_ahead`]). The key source says how many are worth it. Must never do so in the name of a user, for
//! whom the service's log would show files that the user never opened, nor touch the time of the last access.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;

use super::FsError;
use super::attr::Kind;
use super::dir::Dir;
use super::list::DirStream;
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
/// Directories that are gone through at the same time.
const MAX_WALKS: usize = 4;
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

/// A directory that is gone through, from the file on that was cold to the end and from its beginning to that file.
struct Walk {
    dir: Arc<Dir>,
    stream: DirStream,
    position: u64,
    look: usize,
    from: Box<str>,
    again: bool,
    done: bool,
}

impl Ahead {
    /// Notes that the key of the file at `link` was not at hand.
    pub fn note(&self, link: impl FnOnce() -> Option<Link>) {
        self.note_at(Instant::now(), link);
    }

    fn note_at(&self, now: Instant, link: impl FnOnce() -> Option<Link>) {
        let mut state = self.state.lock();
        let in_row = state.last.is_some_and(|last| now.duration_since(last) < PAUSE);
        state.row = if in_row { state.row.saturating_add(1) } else { 1 };
        state.last = Some(now);
        if state.row >= ROW {
            state.cold = link();
            self.wanted.notify_one();
        }
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
                Next::Cold(link) => drop(self.go_ahead(&mut walks, link)),
            }
        }
    }

    /// Ends [`Tree::run_ahead`].
    pub fn stop_ahead(&self) {
        self.ahead.state.lock().stopped = true;
        self.ahead.wanted.notify_all();
    }

    fn go_ahead(&self, walks: &mut Vec<Walk>, cold: Link) -> Result<(), FsError> {
        let room = self.files.keys.room_ahead();
        if room == 0 {
            return Ok(());
        }
        let known = walks.iter().position(|walk| walk.dir.node_id == cold.parent);
        let mut walk = match known {
            Some(place) => walks.remove(place),
            None => self.walk_from(cold, walks.first().map_or(FIRST_LOOK, |last| last.look))?,
        };
        let mut left = walk.look.min(room);
        walk.look = (walk.look * 2).min(MAX_LOOK);
        while left > 0 && !walk.done {
            let wraps = self.next_wraps(&mut walk, left.min(BATCH))?;
            self.files.keys.fetch_ahead(&wraps);
            left -= left.min(BATCH);
        }
        walks.truncate(MAX_WALKS - 1);
        walks.insert(0, walk);
        Ok(())
    }

    /// A walk that begins behind the entry at `cold`.
    fn walk_from(&self, cold: Link, look: usize) -> Result<Walk, FsError> {
        let dir = self.dir(cold.parent)?;
        let mut stream = self.open_stream(cold.parent)?;
        let (mut passed, mut found) = (0, false);
        self.list(&mut stream, 0, |listed| {
            let behind = found || passed == MAX_PASSED;
            passed += 1;
            found = found || listed.entry() == Some(&*cold.name);
            !behind
        })?;
        let position = if found { stream.position() } else { 0 };
        Ok(Walk { dir, stream, position, look, from: cold.name, again: !found, done: false })
    }

    /// The wrapped keys of the `left` files that come next.
    fn next_wraps(&self, walk: &mut Walk, mut left: usize) -> Result<Vec<(FileId, WrappedKey)>, FsError> {
        let mut wraps = Vec::new();
        while left > 0 && !walk.done {
            let Walk { dir, stream, position, from, again, .. } = walk;
            let mut came_round = false;
            self.list(stream, *position, |listed| {
                came_round = *again && listed.entry() == Some(&**from);
                if left == 0 || came_round {
                    return false;
                }
                if listed.kind == Kind::File
                    && let Some(entry) = listed.entry()
                {
                    left -= 1;
                    wraps.extend(self.wrap_of(dir, entry));
                }
                true
            })?;
            *position = stream.position();
            if left > 0 {
                walk.done = *again;
                (walk.position, walk.again) = (0, true);
            }
        }
        Ok(wraps)
    }

    fn wrap_of(&self, dir: &Dir, entry: &str) -> Option<(FileId, WrappedKey)> {
        // Not waiting, in case the name has become that of a fifo.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME;
        let lower = at::open(&dir.fd, entry.as_bytes(), flags, 0).ok()?;
        self.files.wrap_in(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ROOT_ID;
    use crate::tree::close::tests::{Bench, written};

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
    }

    #[test]
    fn a_directory_is_gone_through_from_the_cold_file_on_and_then_from_its_beginning() {
        let bench = Bench::new();
        let tree = bench.tree();
        for n in 0..FILES {
            let id = written(&tree, format!("file {n}").as_bytes(), b"some");
            tree.release_file(id, true);
        }
        let dir = tree.dir(ROOT_ID).unwrap();
        let mut order = Vec::new();
        let list = |listed: &crate::tree::Listed| {
            let entry = listed.entry().filter(|_| listed.kind == Kind::File);
            order.extend(entry.map(|entry| (entry.to_owned(), tree.wrap_of(&dir, entry).unwrap().0)));
            true
        };
        tree.list(&mut tree.open_stream(ROOT_ID).unwrap(), 0, list).unwrap();
        assert_eq!(order.len(), FILES);
        let ids = |range: std::ops::Range<usize>| order[range].iter().map(|(_, id)| *id).collect::<Vec<_>>();
        let next = |walk: &mut Walk, room| {
            tree.next_wraps(walk, room).unwrap().into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };

        let from =
            |name: &str| tree.walk_from(Link { parent: ROOT_ID, name: name.into() }, FIRST_LOOK).unwrap();
        let mut walk = from(&order[9].0);
        assert_eq!(next(&mut walk, 16), ids(10..26));
        assert_eq!(next(&mut walk, 5), ids(26..31));
        assert_eq!(next(&mut walk, 1_000), [ids(31..FILES), ids(0..9)].concat());
        assert_eq!((next(&mut walk, 1_000), walk.done), (vec![], true));

        let mut walk = from("renamed meanwhile");
        assert_eq!((next(&mut walk, 1_000), walk.done), (ids(0..FILES), true));
    }
}
