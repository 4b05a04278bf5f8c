//! A copy of the lower tree as it was at one moment, made while the tree goes on changing.
//!
//! The moment is when [`super::Tree::freeze`] sets it: every file is sealed then and nothing is under way. From then on
//! whatever is about to change is copied first by whoever changes it, and a walker copies the rest. Who copies an inode
//! claims it by its number, so each is copied once. What is made after the moment counts as copied from its birth.
//!
//! Copies are laid down flat, a directory for each lower directory by its inode number, and put together at the end: so
//! it does not matter where a directory has been moved to meanwhile. On a file system with reflinks a copy is a
//! reference; elsewhere the bytes are copied, and the first change of a file waits for its copy.
//!
//! Called by `tree` for its changes and by `volume` for snapshots and copies. Must never make a change fail: what cannot
//! be copied fails the moment alone.

mod assemble;
pub(super) mod copy;
mod inodes;
mod walk;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{self, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::format::dir::DIR_RECORD;
use crate::sys::at;
use inodes::InodeSet;

/// Inodes with several names that are remembered; more fail the copy.
const PLACES_MAX: usize = 1 << 20;
/// Directories of a tree that are remembered; more fail the copy.
const DIRS_MAX: usize = 1 << 24;
/// Where files go whose name is not known when they change.
const NAMELESS: &str = "nameless";

/// Where a copy stands: the inode number of its directory, and its name there.
type Place = (u64, Box<[u8]>);

/// A directory of the tree: its name in its parent.
struct Child {
    parent: u64,
    name: Box<[u8]>,
    inode: u64,
}

#[derive(Default)]
struct State {
    /// Copied, or made after the moment.
    done: InodeSet,
    /// Being copied.
    busy: HashSet<u64>,
    /// Directories whose name in their parent is noted.
    entered: InodeSet,
    children: Vec<Child>,
    /// Attributes of directories at the moment.
    dirs: HashMap<u64, Stat>,
    /// Where the copy of an inode with several names is.
    places: HashMap<u64, Place>,
    /// Names given after the moment to inodes that had several.
    late_names: HashSet<Place>,
    /// Directories that moved before the walker came.
    moved: Vec<(u64, OwnedFd)>,
    failed: Option<(Errno, String)>,
}

/// One copy that is being made.
pub struct Moment {
    stage: OwnedFd,
    device: u64,
    root_inode: u64,
    reflink: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    files: AtomicU64,
    copied_bytes: AtomicU64,
}

enum Claim {
    /// The caller copies it.
    Mine,
    /// It is copied.
    Done,
    /// Somebody is copying it.
    Busy,
}

impl Moment {
    /// A copy of the tree below `root`, laid down in the empty directory `stage`.
    pub fn new(root: impl AsFd, stage: OwnedFd) -> Result<Self, Errno> {
        let stat = fs::fstat(&root)?;
        let moment = Self {
            stage,
            device: stat.st_dev,
            root_inode: stat.st_ino,
            reflink: AtomicBool::new(true),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            files: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
        };
        moment.state.lock().entered.insert(stat.st_ino);
        moment.touch(stat.st_ino, &root)?;
        Ok(moment)
    }

    /// The directory that becomes the root of the copy.
    pub fn stage_root(&self) -> Result<OwnedFd, Errno> {
        at::open(&self.stage, self.root_inode.to_string().as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)
    }

    /// Its name.
    pub fn root_name(&self) -> String {
        self.root_inode.to_string()
    }

    /// Copies one more entry of `dir`, which is not of the tree, to `to`.
    pub fn copy_beside(&self, dir: impl AsFd, name: &[u8], to: &OwnedFd) -> Result<(), Errno> {
        let stat = at::stat(&dir, name)?;
        copy::entry(&self.copier(), dir, name, &stat, to, name)
    }

    /// Files copied so far, and bytes of them that no reflink could share.
    pub fn progress(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.copied_bytes.load(Ordering::Relaxed))
    }

    /// Whether copies are references to the same blocks.
    pub fn shares_blocks(&self) -> bool {
        self.reflink.load(Ordering::Relaxed)
    }

    /// Ends the copy early.
    pub fn cancel(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.fail(Errno::CANCELED, "the copy was ended early");
    }

    /// Why the copy is no good, if it is not.
    pub fn failure(&self) -> Option<io::Error> {
        let state = self.state.lock();
        let (errno, what) = state.failed.as_ref()?;
        let error: io::Error = (*errno).into();
        Some(io::Error::new(error.kind(), format!("{what}: {error}")))
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn fail(&self, errno: Errno, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        self.state.lock().failed.get_or_insert_with(|| (errno, what.to_owned()));
        self.changed.notify_all();
    }

    /// Runs `copy`; what goes wrong there fails the whole.
    fn guard(&self, what: &str, copy: impl FnOnce() -> Result<(), Errno>) {
        if !self.is_over()
            && let Err(e) = copy()
        {
            self.fail(e, what);
        }
    }

    fn claim(&self, inode: u64) -> Claim {
        let mut state = self.state.lock();
        if state.done.contains(inode) || state.failed.is_some() {
            return Claim::Done;
        }
        if state.busy.insert(inode) { Claim::Mine } else { Claim::Busy }
    }

    /// The same, waiting for somebody else's copy. `false` where there is nothing left to do.
    fn claim_or_wait(&self, inode: u64) -> bool {
        loop {
            match self.claim(inode) {
                Claim::Mine => return true,
                Claim::Done => return false,
                Claim::Busy => self.wait_while_busy(inode),
            }
        }
    }

    fn wait_while_busy(&self, inode: u64) {
        let mut state = self.state.lock();
        while state.busy.contains(&inode) && state.failed.is_none() {
            self.changed.wait(&mut state);
        }
    }

    /// Ends a claim; the copy stands at `place`, where that must be remembered.
    fn finish(&self, inode: u64, copied: Result<Option<Place>, Errno>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        state.busy.remove(&inode);
        let outcome = copied.and_then(|place| {
            state.done.insert(inode);
            let Some(place) = place else { return Ok(()) };
            if state.places.len() >= PLACES_MAX {
                return Err(Errno::NOBUFS);
            }
            state.places.insert(inode, place);
            Ok(())
        });
        drop(state);
        self.changed.notify_all();
        outcome
    }

    /// Before the directory `inode` changes, or when the walker comes to it: its place, attributes and record.
    fn touch(&self, inode: u64, dir: impl AsFd) -> Result<(), Errno> {
        if !self.claim_or_wait(inode) {
            return Ok(());
        }
        let touched = self.touch_claimed(inode, &dir);
        self.finish(inode, touched.map(|()| None))
    }

    fn touch_claimed(&self, inode: u64, dir: impl AsFd) -> Result<(), Errno> {
        let stat = fs::fstat(&dir)?;
        let name = inode.to_string();
        at::make_dir(&self.stage, name.as_bytes(), 0o700)?;
        let made = at::open_dir(&self.stage, name.as_bytes())?;
        copy::xattrs(&dir, &made)?;
        match at::stat(&dir, DIR_RECORD.as_bytes()) {
            Ok(record) => copy::entry(
                &self.copier(),
                &dir,
                DIR_RECORD.as_bytes(),
                &record,
                &made,
                DIR_RECORD.as_bytes(),
            )?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let mut state = self.state.lock();
        if state.dirs.len() >= DIRS_MAX {
            return Err(Errno::NOBUFS);
        }
        state.dirs.insert(inode, stat);
        Ok(())
    }

    fn copier(&self) -> copy::Copier<'_> {
        copy::Copier { reflink: &self.reflink, copied_bytes: &self.copied_bytes, stop: &self.stop }
    }

    fn stage_dir(&self, inode: u64) -> Result<OwnedFd, Errno> {
        at::open_dir(&self.stage, inode.to_string().as_bytes())
    }

    /// Notes the directory `inode` under the name that it has in `parent`. `false` where that was done before.
    fn enter(&self, parent: u64, name: &[u8], inode: u64, dir: impl AsFd) -> Result<bool, Errno> {
        {
            let mut state = self.state.lock();
            // One made after the moment is none of ours.
            if state.done.contains(inode) && !state.dirs.contains_key(&inode) || !state.entered.insert(inode)
            {
                return Ok(false);
            }
            state.children.push(Child { parent, name: name.into(), inode });
        }
        self.touch(inode, dir)?;
        Ok(true)
    }

    /// Copies what stands under `name` in `dir`, which is no directory and was claimed.
    fn copy_claimed(&self, dir: impl AsFd, dir_inode: u64, name: &[u8], stat: &Stat) -> Result<(), Errno> {
        let copied = self
            .stage_dir(dir_inode)
            .and_then(|to| copy::entry(&self.copier(), dir, name, stat, &to, name))
            .map(|()| (stat.st_nlink > 1).then(|| (dir_inode, name.into())));
        self.files.fetch_add(1, Ordering::Relaxed);
        self.finish(stat.st_ino, copied)
    }

    /// Before the entries of `dir` change.
    pub(super) fn before_dir(&self, inode: u64, dir: impl AsFd) {
        self.guard("a directory that changes", || self.touch(inode, dir));
    }

    /// Before the entry `name` of `dir` goes or gets another name.
    pub(super) fn before_entry(&self, dir_inode: u64, dir: impl AsFd, name: &[u8], moves: bool) {
        self.guard("a name that changes", || {
            self.touch(dir_inode, &dir)?;
            let stat = match at::stat(&dir, name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e),
            };
            if stat.st_dev != self.device {
                return Ok(());
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return self.before_dir_moves(dir_inode, &dir, name, stat.st_ino, moves);
            }
            if self.claim_or_wait(stat.st_ino) {
                return self.copy_claimed(&dir, dir_inode, name, &stat);
            }
            Ok(())
        });
    }

    fn before_dir_moves(
        &self,
        parent: u64,
        dir: impl AsFd,
        name: &[u8],
        inode: u64,
        moves: bool,
    ) -> Result<(), Errno> {
        let fd = at::open(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        if self.enter(parent, name, inode, &fd)? && moves {
            self.state.lock().moved.push((inode, fd));
        }
        Ok(())
    }

    /// Whether the inode needs nothing before it changes.
    pub(super) fn is_done(&self, inode: u64) -> bool {
        let state = self.state.lock();
        state.done.contains(inode) || state.failed.is_some()
    }

    /// Before a file changes of which no name is known; `file` is open for reading.
    pub(super) fn before_nameless(&self, inode: u64, file: impl AsFd) {
        self.guard("a file that changes", || {
            let stat = fs::fstat(&file)?;
            if stat.st_nlink == 0 || !self.claim_or_wait(inode) {
                return Ok(());
            }
            let name = inode.to_string();
            let made = match at::make_dir(&self.stage, NAMELESS.as_bytes(), 0o700) {
                Ok(()) | Err(Errno::EXIST) => at::open_dir(&self.stage, NAMELESS.as_bytes()),
                Err(e) => Err(e),
            };
            let copied = made.and_then(|to| copy::file(&self.copier(), file, &stat, &to, name.as_bytes()));
            // No directory has the number 0.
            self.finish(inode, copied.map(|()| Some((0, name.into_bytes().into()))))
        });
    }

    /// The entry `name` of `dir` was just made, or given to an inode that was there.
    pub(super) fn made(&self, dir_inode: u64, dir: impl AsFd, name: &[u8]) {
        if self.is_over() {
            return;
        }
        let Ok(stat) = at::stat(&dir, name) else { return };
        let mut state = self.state.lock();
        if state.places.contains_key(&stat.st_ino) {
            state.late_names.insert((dir_inode, name.into()));
        }
        state.done.insert(stat.st_ino);
    }
}
