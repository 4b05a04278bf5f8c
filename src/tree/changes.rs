//! The gate that every change of the tree goes through, so that it can be stopped for a moment.
//!
//! A change holds the gate open for reading; [`Tree::freeze`] closes it, waits for what is under way, seals every file and
//! does what is to be done at that moment. While a copy of that moment is being made, changes tell it before they begin.
//!
//! Must never be held while a key is waited for: a change that finds a key absent gives the gate back with its locks.
//! Locks: the gate before any file's, `names` after the gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::FsError;
use super::attr::Kind;
use super::close::seal;
use super::dir::Dir;
use super::moment::Moment;
use super::namespace::Tree;
use super::node::Node;
use crate::format::name::LowerName;
use crate::sys::at;

/// What changes pass through.
#[derive(Default)]
pub(super) struct Gate {
    current: RwLock<Option<Arc<Moment>>>,
    /// Held for reading by changes of names while a copy is made; the walker looks at a name when nobody holds it.
    names: RwLock<()>,
    /// How many changes of names have begun, and how many of them ended.
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Gate {
    /// A value that stays the same while no name changes; `None` where one is changing.
    pub(super) fn steady_names(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(ended)
    }
}

/// Counts the changes under way on a thread, in debug builds, to find whoever waits within one.
pub(super) struct Passage(());

#[cfg(debug_assertions)]
thread_local! {
    static UNDER_WAY: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl Passage {
    fn begin() -> Self {
        #[cfg(debug_assertions)]
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        Self(())
    }

    /// To be called before a wait for a key.
    pub(super) fn check_none() {
        #[cfg(debug_assertions)]
        assert_eq!(UNDER_WAY.get(), 0, "a key is waited for within a change");
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

/// A change under way.
pub(super) struct Change<'a> {
    tree: &'a Tree,
    _passage: Passage,
    current: RwLockReadGuard<'a, Option<Arc<Moment>>>,
    _names: Option<RwLockReadGuard<'a, ()>>,
    of_names: bool,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.of_names {
            self.tree.gate.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// How a freeze went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen {
    /// How long changes were held up.
    pub held: Duration,
}

impl Tree {
    /// Begins a change of data or attributes.
    pub(super) fn change(&self) -> Change<'_> {
        let current = self.gate.current.read();
        Change { tree: self, _passage: Passage::begin(), current, _names: None, of_names: false }
    }

    /// Begins a change of names.
    pub(super) fn change_names(&self) -> Change<'_> {
        let current = self.gate.current.read();
        let names = current.is_some().then(|| self.gate.names.read());
        self.gate.begun.fetch_add(1, Ordering::SeqCst);
        Change { tree: self, _passage: Passage::begin(), current, _names: names, of_names: true }
    }

    /// Stops all changes, at most after `patience`, with every file sealed on the lower file system; does `act` and goes
    /// on. What `act` gives is a copy that is told of changes from then on, until [`Tree::end_moment`].
    pub fn freeze(
        &self,
        patience: Duration,
        act: impl FnOnce() -> Result<Option<Arc<Moment>>, FsError>,
    ) -> Result<Frozen, FsError> {
        // Most of the work, while everybody goes on.
        self.with_keys_patiently(|| self.seal_all())?;
        let asked = Instant::now();
        let mut current = self.gate.current.try_write_for(patience).ok_or(FsError::Os(Errno::BUSY))?;
        if current.is_some() {
            return Err(FsError::Os(Errno::BUSY));
        }
        self.seal_all()?;
        *current = act()?;
        drop(current);
        Ok(Frozen { held: asked.elapsed() })
    }

    /// Puts in place what waits, and seals every open file.
    fn seal_all(&self) -> Result<(), FsError> {
        self.files.flush_all();
        self.nodes_open().iter().try_for_each(|node| seal(&node.file.read()))
    }

    /// Lets the walker of `moment` copy what is left.
    pub fn walk_moment(&self, moment: &Moment) -> Result<(), FsError> {
        let root = self.dir(super::ROOT_ID)?;
        moment.walk(at::reopen_dir(&root.fd)?, &self.gate.names);
        Ok(())
    }

    /// The copy is whole, or given up: changes need no longer tell it.
    pub fn end_moment(&self) {
        *self.gate.current.write() = None;
    }

    /// Writes what a copy of this moment needs of the tag logs into `root`; to be called while frozen.
    pub fn copy_logs(&self, root: &std::os::fd::OwnedFd, has_old: bool) -> Result<(), FsError> {
        self.files.log.as_ref().map_or(Ok(()), |log| Ok(log.copy_closed(root, has_old)?))
    }
}

impl Change<'_> {
    fn inode_of(&self, dir: &Dir) -> u64 {
        self.tree.node_id_of_ino(dir.node_id)
    }

    /// Before entries of `dir` change.
    pub fn of_dir(&self, dir: &Dir) {
        if let Some(moment) = &*self.current {
            moment.before_dir(self.inode_of(dir), &dir.fd);
        }
    }

    /// Before the entry `lower` of `dir` goes, or moves.
    pub fn of_entry(&self, dir: &Dir, lower: &LowerName, moves: bool) {
        let Some(moment) = &*self.current else { return };
        moment.before_entry(self.inode_of(dir), &dir.fd, lower.entry.as_bytes(), moves);
        if let Some(sidecar) = &lower.sidecar {
            moment.before_entry(self.inode_of(dir), &dir.fd, sidecar.name.as_bytes(), false);
        }
    }

    /// The entry `lower` of `dir` was made.
    pub fn made(&self, dir: &Dir, lower: &LowerName) {
        let Some(moment) = &*self.current else { return };
        moment.made(self.inode_of(dir), &dir.fd, lower.entry.as_bytes());
        if let Some(sidecar) = &lower.sidecar {
            moment.made(self.inode_of(dir), &dir.fd, sidecar.name.as_bytes());
        }
    }

    /// Before the inode of `node` changes.
    pub fn of_node(&self, node: &Node) -> Result<(), FsError> {
        let Some(moment) = &*self.current else { return Ok(()) };
        let inode = self.tree.node_id_of_ino(node.id);
        if moment.is_done(inode) {
            return Ok(());
        }
        if node.kind == Kind::Dir {
            let dir = self.tree.dir(node.id)?;
            moment.before_dir(inode, &dir.fd);
            return Ok(());
        }
        if let Some(link) = node.link() {
            let dir = self.tree.dir(link.parent)?;
            let stat = at::stat(&dir.fd, link.name.as_bytes());
            if stat.is_ok_and(|stat| stat.st_ino == inode) {
                moment.before_entry(self.inode_of(&dir), &dir.fd, link.name.as_bytes(), false);
                return Ok(());
            }
        }
        if node.kind == Kind::File {
            let file = at::reopen(self.tree.inode(node)?, OFlags::RDONLY)?;
            moment.before_nameless(inode, &file);
        }
        Ok(())
    }
}
