//! A parallel walk over a lower tree, by directory descriptors.
//!
//! Called by `rewrap` and `check`. Must never follow a symbolic link, leave the tree, or hold more than a bounded
//! number of names in memory.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::format::dir::DirId;

/// Names handed to a visitor at a time.
const CHUNK: usize = 64;
/// Tasks that may wait; beyond it a worker does the work itself.
const MAX_WAITING: usize = 4096;
/// Threads at most.
pub const MAX_JOBS: usize = 64;
/// An idle worker looks again after this long, should a wake-up be lost.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// One open lower directory and how it was reached.
pub struct Directory {
    fd: OwnedFd,
    parent: Option<(Arc<Directory>, CString)>,
    /// Its identity, once somebody with the key has read it.
    pub(super) id: OnceLock<DirId>,
}

impl Directory {
    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The parent directory and the name in it; `None` for the root.
    pub fn parent(&self) -> Option<(&Arc<Directory>, &CStr)> {
        self.parent.as_ref().map(|(parent, name)| (parent, name.as_c_str()))
    }

    /// Lower path of `name` in this directory, relative to the root.
    pub fn path_of(&self, name: &CStr) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let as_os = |name: &CStr| std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned();
        let mut names = vec![as_os(name)];
        let mut at = self.parent();
        while let Some((parent, name)) = at {
            names.push(as_os(name));
            at = parent.parent();
        }
        names.iter().rev().collect()
    }
}

/// A name in a lower directory.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: CString,
    /// What it is.
    pub kind: FileType,
}

/// What a walk does with what it finds. One worker state per thread.
pub trait Visitor: Sync {
    /// A thread's own state, such as work it batches.
    type Worker: Send;

    /// State of a new thread.
    fn worker(&self) -> Self::Worker;

    /// A directory was opened; its entries follow, in any number of chunks, on any thread.
    fn directory(&self, worker: &mut Self::Worker, dir: &Arc<Directory>);

    /// Some entries of a directory that are not directories.
    fn entries(&self, worker: &mut Self::Worker, dir: &Arc<Directory>, entries: &[Entry]);

    /// Whether to go below the directory `name` of `dir`.
    fn descends(&self, worker: &mut Self::Worker, dir: &Arc<Directory>, name: &CStr) -> bool;

    /// `name` in `dir` (or the directory itself, for an empty name) could not be read.
    fn unreadable(&self, worker: &mut Self::Worker, dir: &Arc<Directory>, name: &CStr, error: Errno);

    /// This thread has no more work: finish what is batched.
    fn finish(&self, worker: Self::Worker);

    /// Whether to stop early.
    fn stopped(&self) -> bool {
        false
    }
}

enum Task {
    Open(Arc<Directory>, CString),
    Read(Arc<Directory>),
    Visit(Arc<Directory>, Vec<Entry>),
}

struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

struct QueueState {
    waiting: Vec<Task>,
    busy: usize,
}

/// Visits everything below `root` with `jobs` threads. Errors of single entries go to the visitor.
pub fn walk<V: Visitor>(root: OwnedFd, jobs: usize, visitor: &V) {
    let root = Arc::new(Directory { fd: root, parent: None, id: OnceLock::new() });
    let state = QueueState { waiting: vec![Task::Read(root)], busy: 0 };
    let queue = Queue { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, MAX_JOBS) {
            scope.spawn(|| work(&queue, visitor));
        }
        work(&queue, visitor);
    });
}

fn work<V: Visitor>(queue: &Queue, visitor: &V) {
    let mut worker = visitor.worker();
    while let Some(task) = queue.next() {
        if !visitor.stopped() {
            perform(queue, visitor, &mut worker, task);
        }
        queue.done();
    }
    visitor.finish(worker);
}

fn perform<V: Visitor>(queue: &Queue, visitor: &V, worker: &mut V::Worker, task: Task) {
    match task {
        Task::Open(parent, name) => match open_dir(parent.fd(), &name) {
            Ok(fd) => {
                let dir = Arc::new(Directory { fd, parent: Some((parent, name)), id: OnceLock::new() });
                read(queue, visitor, worker, &dir);
            }
            // Renamed or removed meanwhile: a second pass sees it where it is now.
            Err(Errno::NOENT) => {}
            Err(e) => visitor.unreadable(worker, &parent, &name, e),
        },
        Task::Read(dir) => read(queue, visitor, worker, &dir),
        Task::Visit(dir, entries) => visitor.entries(worker, &dir, &entries),
    }
}

/// Opens the directory `name` of `parent` itself, never what a link points at.
pub fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn read<V: Visitor>(queue: &Queue, visitor: &V, worker: &mut V::Worker, dir: &Arc<Directory>) {
    visitor.directory(worker, dir);
    let listing = match Dir::read_from(dir.fd()) {
        Ok(listing) => listing,
        Err(e) => return visitor.unreadable(worker, dir, c"", e),
    };
    let mut chunk = Vec::with_capacity(CHUNK);
    for entry in listing {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                visitor.unreadable(worker, dir, c"", e);
                break;
            }
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        match kind_of(dir.fd(), entry.file_name(), entry.file_type()) {
            Ok(FileType::Directory) => {
                if visitor.descends(worker, dir, entry.file_name()) {
                    queue.offer(Task::Open(Arc::clone(dir), entry.file_name().to_owned()));
                }
            }
            Ok(kind) => chunk.push(Entry { name: entry.file_name().to_owned(), kind }),
            Err(Errno::NOENT) => {}
            Err(e) => visitor.unreadable(worker, dir, entry.file_name(), e),
        }
        if chunk.len() == CHUNK {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
            match queue.offer_if_short(Task::Visit(Arc::clone(dir), full)) {
                Some(Task::Visit(dir, entries)) => visitor.entries(worker, &dir, &entries),
                Some(Task::Open(..) | Task::Read(_)) | None => {}
            }
        }
        if visitor.stopped() {
            return;
        }
    }
    visitor.entries(worker, dir, &chunk);
}

fn kind_of(dir: BorrowedFd<'_>, name: &CStr, hint: FileType) -> Result<FileType, Errno> {
    if hint != FileType::Unknown {
        return Ok(hint);
    }
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

impl Queue {
    /// The task queued last, so that few directories are open at a time; `None` when all is done.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.waiting.pop() {
                state.busy += 1;
                return Some(task);
            }
            if state.busy == 0 {
                self.changed.notify_all();
                return None;
            }
            self.changed.wait_for(&mut state, IDLE_WAIT);
        }
    }

    fn done(&self) {
        let mut state = self.state.lock();
        state.busy -= 1;
        if state.busy == 0 && state.waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    fn offer(&self, task: Task) {
        self.state.lock().waiting.push(task);
        self.changed.notify_one();
    }

    /// Queues the task, or gives it back when enough is waiting.
    fn offer_if_short(&self, task: Task) -> Option<Task> {
        let mut state = self.state.lock();
        if state.waiting.len() >= MAX_WAITING {
            return Some(task);
        }
        state.waiting.push(task);
        drop(state);
        self.changed.notify_one();
        None
    }
}

/// Opens the root of a lower tree.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    struct Collect {
        seen: Mutex<BTreeSet<PathBuf>>,
        skip: &'static CStr,
    }

    impl Visitor for Collect {
        type Worker = Vec<PathBuf>;
        fn worker(&self) -> Self::Worker {
            Vec::new()
        }
        fn directory(&self, _: &mut Self::Worker, _: &Arc<Directory>) {}
        fn entries(&self, worker: &mut Self::Worker, dir: &Arc<Directory>, entries: &[Entry]) {
            worker.extend(entries.iter().map(|e| dir.path_of(&e.name)));
        }
        fn descends(&self, _: &mut Self::Worker, _: &Arc<Directory>, name: &CStr) -> bool {
            name != self.skip
        }
        fn unreadable(&self, _: &mut Self::Worker, _: &Arc<Directory>, name: &CStr, error: Errno) {
            panic!("{name:?}: {error}");
        }
        fn finish(&self, worker: Self::Worker) {
            self.seen.lock().extend(worker);
        }
    }

    fn make_tree(root: &Path) -> BTreeSet<PathBuf> {
        let mut expected = BTreeSet::new();
        for a in 0..5 {
            for b in 0..3 {
                let dir = format!("d{a}/e{b}");
                std::fs::create_dir_all(root.join(&dir)).unwrap();
                for c in 0..70 {
                    let file = PathBuf::from(format!("{dir}/f{c}"));
                    std::fs::write(root.join(&file), b"").unwrap();
                    expected.insert(file);
                }
            }
        }
        std::os::unix::fs::symlink("..", root.join("loop")).unwrap();
        expected.insert("loop".into());
        std::fs::create_dir(root.join("skipped")).unwrap();
        std::fs::write(root.join("skipped/inside"), b"").unwrap();
        expected
    }

    #[test]
    fn every_entry_is_seen_once_whatever_the_jobs_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("kmsfs-walk-{}", std::process::id()));
        std::fs::create_dir(&root).unwrap();
        let expected = make_tree(&root);
        for jobs in [1, 2, 7] {
            let visitor = Collect { seen: Mutex::new(BTreeSet::new()), skip: c"skipped" };
            walk(open_root(&root).unwrap(), jobs, &visitor);
            assert_eq!(*visitor.seen.lock(), expected, "{jobs} jobs");
        }
        std::fs::remove_dir_all(root).unwrap();
    }
}
