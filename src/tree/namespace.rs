//! The tree itself: how a node id leads to a lower inode, and what holds for all operations.
//!
//! The lower tree belongs to one mount at a time. Operations that change one directory arrive serialised (the kernel
//! holds the directory's lock), and every step is one atomic call on the lower filesystem, so a reader sees the state
//! before or after.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::{Mutex, ReentrantMutex};
use rustix::fs::{self, Stat};
use rustix::io::Errno;

use super::FsError;
use super::ahead::Ahead;
use super::attr::{Attr, Kind};
use super::changes::Gate;
use super::dir::{Dir, DirCache, PlainName};
use super::dir_record;
use super::file::FileContext;
use super::kept::Kept;
use super::node::{Node, NodeTable, RENAME_RETRIES, ROOT_ID};
use super::wait::Waits;
use crate::crypto::VolumeKey;
use crate::format;
use crate::sys::at;

/// Directories kept open by default; each costs a descriptor and its keys.
pub const DEFAULT_OPEN_DIRS: usize = 1024;
/// Levels of directories below each other that a lookup walks.
const DEPTH_MAX: usize = 100_000;

/// How a tree is opened.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// Directories kept open.
    pub open_dirs: usize,
    /// Refuse every change.
    pub read_only: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { open_dirs: DEFAULT_OPEN_DIRS, read_only: false }
    }
}

/// A plaintext view of one lower tree.
pub struct Tree {
    pub(super) volume_key: Arc<VolumeKey>,
    pub(super) files: Arc<FileContext>,
    pub(super) nodes: NodeTable,
    pub(super) dirs: DirCache,
    /// Nodes whose file is open, so that keys can be dropped and descriptors reclaimed.
    pub(super) open_files: Mutex<HashMap<u64, Arc<Node>>>,
    /// As many of them as may have a descriptor at a time: the process needs some for what it cannot open again.
    pub(super) files_max: usize,
    /// Those of them that no handle counts on.
    pub(super) kept: Kept,
    /// Nodes among them whose file could not be sealed when its last handle went.
    pub(super) left_open: AtomicUsize,
    pub(super) waits: Waits,
    pub(super) ahead: Ahead,
    pub(super) gate: Gate,
    pub(super) read_only: bool,
    /// Held where names are bound ([`Tree::steady_places`]); before the lock of any file, and before the next.
    pub(super) places: ReentrantMutex<()>,
    /// Held while a directory is without its record, because it is about to go.
    pub(super) removals: Mutex<()>,
    /// Whether new objects can be given to their callers.
    pub(super) can_chown: bool,
    pub(super) device: u64,
    root_inode: u64,
}

/// A descriptor of some inode, kept as long as it is used.
pub(super) enum InodeFd {
    Dir(Arc<Dir>),
    Pinned(Arc<OwnedFd>),
    Opened(OwnedFd),
}

impl AsFd for InodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Dir(dir) => dir.fd.as_fd(),
            Self::Pinned(fd) => fd.as_fd(),
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl Tree {
    /// Opens the tree below `root`; its directory record must be of the volume.
    pub fn open(
        root: OwnedFd,
        volume_key: Arc<VolumeKey>,
        files: Arc<FileContext>,
        options: &TreeOptions,
    ) -> Result<Arc<Self>, FsError> {
        let stat = fs::fstat(&root)?;
        let place = volume_key.root_place();
        let lost = |fd: &OwnedFd| dir_record::make_up(&volume_key, fd, place.as_ref(), options.read_only);
        let root = Arc::new(Dir::open(&volume_key, ROOT_ID, root, place.as_ref(), lost)?);
        let descriptors = crate::sys::harden::descriptors();
        Ok(Arc::new(Self {
            volume_key,
            files,
            nodes: NodeTable::new(),
            dirs: DirCache::new(root, options.open_dirs.min(descriptors / 8).max(8)),
            open_files: Mutex::default(),
            files_max: descriptors / 4,
            kept: Kept::new(descriptors / 4),
            left_open: AtomicUsize::new(0),
            waits: Waits::default(),
            ahead: Ahead::default(),
            gate: Gate::default(),
            read_only: options.read_only,
            places: ReentrantMutex::default(),
            removals: Mutex::default(),
            can_chown: rustix::process::geteuid().is_root(),
            device: stat.st_dev,
            root_inode: stat.st_ino,
        }))
    }

    /// How many inodes the kernel holds.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many files are open, those that are merely kept ready not counted.
    pub fn open_file_count(&self) -> usize {
        self.open_files.lock().len().saturating_sub(self.kept.len())
    }

    /// Node id of a lower inode: its number, with the root's and 1 exchanged.
    pub(super) fn node_id(&self, stat: &Stat) -> u64 {
        match stat.st_ino {
            ino if ino == self.root_inode => ROOT_ID,
            ROOT_ID => self.root_inode,
            ino => ino,
        }
    }

    pub(super) fn node_id_of_ino(&self, ino: u64) -> u64 {
        match ino {
            ino if ino == self.root_inode => ROOT_ID,
            ROOT_ID => self.root_inode,
            ino => ino,
        }
    }

    /// The node `id`. The kernel names only what it has looked up.
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, FsError> {
        self.nodes.find(id).ok_or(FsError::Os(Errno::STALE))
    }

    /// Refuses a change on a read-only mount.
    pub(super) fn check_writable(&self) -> Result<(), FsError> {
        if self.read_only { Err(FsError::Os(Errno::ROFS)) } else { Ok(()) }
    }

    /// Status of a lower entry that is part of this tree. What is mounted below is not.
    pub(super) fn stat_entry(&self, dir: &Dir, entry: &str) -> Result<Stat, FsError> {
        let stat = at::stat(&dir.fd, entry.as_bytes())?;
        if stat.st_dev == self.device { Ok(stat) } else { Err(FsError::Os(Errno::XDEV)) }
    }

    /// The same, `None` where there is no such entry.
    pub(super) fn stat_if_present(&self, dir: &Dir, entry: &str) -> Result<Option<Stat>, FsError> {
        match self.stat_entry(dir, entry) {
            Ok(stat) => Ok(Some(stat)),
            Err(FsError::Os(Errno::NOENT)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Plaintext attributes from a lower status.
    pub(super) fn attr_of(&self, stat: &Stat) -> Result<Attr, FsError> {
        let lower = stat.st_size as u64;
        let size = match Kind::of_mode(stat.st_mode) {
            Some(Kind::File) => format::layout::plain_size(lower),
            Some(Kind::Symlink) => format::link::plain_len(&self.volume_key, lower),
            _ => lower,
        };
        Attr::of(self.node_id(stat), stat, size).ok_or(FsError::Os(Errno::IO))
    }

    /// Finds `name` in `parent` and counts one lookup of it.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> Result<(Attr, u32), FsError> {
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        self.look_up_entry(&dir, &lower.entry)
    }

    /// Counts a lookup of the lower entry `entry`.
    pub(super) fn look_up_entry(&self, dir: &Dir, entry: &str) -> Result<(Attr, u32), FsError> {
        let steady = self.steady_places();
        let stat = self.stat_entry(dir, entry)?;
        let attr = self.attr_of(&stat)?;
        self.forget_if_moved(attr.node_id, dir, entry);
        let node = self.nodes.look_up(attr.node_id, attr.kind, dir.node_id, entry);
        drop(steady); // What follows may wait for a key.
        match self.settle(&node, dir, entry, attr) {
            Ok(attr) => {
                node.note_told(attr.blocks);
                Ok((attr, node.generation()))
            }
            Err(e) => {
                self.forget(node.id, 1);
                Err(e)
            }
        }
    }

    /// Counts a lookup of the lower entry `entry` of `parent`, and tells its plain name too.
    pub fn look_up_lower(&self, parent: u64, entry: &str) -> Result<(Attr, std::ffi::OsString), FsError> {
        let dir = self.dir(parent)?;
        let PlainName::Name(name) = dir.plain_name(entry.as_bytes()) else {
            return Err(FsError::Os(Errno::NOENT));
        };
        let (attr, _) = self.look_up_entry(&dir, entry)?;
        Ok((attr, std::os::unix::ffi::OsStringExt::from_vec(name)))
    }

    /// Counts one more lookup of a node that is known.
    pub fn look_up_again(&self, id: u64) -> Result<(), FsError> {
        if self.nodes.hold(id) { Ok(()) } else { Err(FsError::Os(Errno::STALE)) }
    }

    /// The kernel dropped `count` lookups of the node `id`.
    pub fn forget(&self, id: u64, count: u64) {
        match self.nodes.forget(id, count) {
            Some(node) if node.kind == Kind::Dir => self.dirs.remove(id),
            Some(node) if node.kind == Kind::File => self.let_go(&node),
            _ => {}
        }
    }

    /// Attributes of a node. Asks for no key.
    pub fn attr(&self, id: u64) -> Result<Attr, FsError> {
        let node = self.node(id)?;
        let attr = self.attr_of_node(&node)?;
        node.note_told(attr.blocks);
        Ok(attr)
    }

    pub(super) fn attr_of_node(&self, node: &Node) -> Result<Attr, FsError> {
        if node.kind == Kind::Dir
            && let Some(dir) = self.dirs.find(node.id)
        {
            return self.attr_of(&fs::fstat(&dir.fd)?);
        }
        if let Some(pin) = node.pinned() {
            return self.attr_of(&fs::fstat(&*pin)?);
        }
        let stat = node.by_name(|link| {
            let parent = self.dir(link.parent)?;
            let stat = self.stat_entry(&parent, &link.name)?;
            self.same_inode(node, &stat).map(|()| stat)
        })?;
        self.attr_of(&stat)
    }

    pub(super) fn same_inode(&self, node: &Node, stat: &Stat) -> Result<(), FsError> {
        let same = self.node_id(stat) == node.id && stat.st_dev == self.device;
        if same { Ok(()) } else { Err(FsError::Os(Errno::STALE)) }
    }

    /// A descriptor of the node's inode for everything but data.
    pub(super) fn inode(&self, node: &Node) -> Result<InodeFd, FsError> {
        if node.kind == Kind::Dir
            && let Some(dir) = self.dirs.find(node.id)
        {
            return Ok(InodeFd::Dir(dir));
        }
        if self.is_replaced(node) {
            return Err(FsError::Os(Errno::STALE));
        }
        if let Some(pin) = node.pinned() {
            return Ok(InodeFd::Pinned(pin));
        }
        node.by_name(|link| {
            let parent = self.dir(link.parent)?;
            let fd = self.spare_descriptors(|| at::open_path(&parent.fd, link.name.as_bytes()))?;
            self.same_inode(node, &fs::fstat(&fd)?)?;
            Ok(InodeFd::Opened(fd))
        })
    }

    /// The directory of node `id`, from the cache or opened from its nearest cached ancestor down.
    pub(super) fn dir(&self, id: u64) -> Result<Arc<Dir>, FsError> {
        if let Some(dir) = self.dirs.find(id) {
            return Ok(dir);
        }
        let _steady = self.steady_places();
        for _ in 0..RENAME_RETRIES {
            match self.open_dir(id) {
                Err(FsError::Os(Errno::NOENT | Errno::STALE | Errno::NOTDIR)) => std::thread::yield_now(),
                other => return other,
            }
        }
        self.open_dir(id)
    }

    fn open_dir(&self, id: u64) -> Result<Arc<Dir>, FsError> {
        let mut below: Vec<(u64, Box<str>)> = Vec::new();
        let mut ancestor = id;
        let mut dir = loop {
            if let Some(dir) = self.dirs.find(ancestor) {
                break dir;
            }
            let node = self.node(ancestor)?;
            if node.kind != Kind::Dir || below.len() >= DEPTH_MAX {
                return Err(FsError::Os(Errno::NOTDIR));
            }
            let link = node.link().ok_or(FsError::Os(Errno::NOENT))?;
            below.push((ancestor, link.name));
            ancestor = link.parent;
        };
        for (id, name) in below.into_iter().rev() {
            let fd = self.spare_descriptors(|| at::open_dir(&dir.fd, name.as_bytes()))?;
            let stat = fs::fstat(&fd)?;
            if self.node_id(&stat) != id || stat.st_dev != self.device {
                return Err(FsError::Os(Errno::STALE));
            }
            let place = self.volume_key.place(&dir.id, name.as_bytes());
            let lost = |fd: &OwnedFd| {
                let _none_is_being_removed = self.removals.lock();
                dir_record::make_up(&self.volume_key, fd, place.as_ref(), self.read_only)
            };
            let opened = Dir::open(&self.volume_key, id, fd, place.as_ref(), lost).map_err(|e| {
                let moved = |stat: Stat| place.is_some() && self.node_id(&stat) != id;
                let gone = at::stat(&dir.fd, name.as_bytes()).map_or(place.is_some(), moved);
                // Renamed between the opening and the reading of its record.
                if gone { FsError::Os(Errno::STALE) } else { e }
            });
            dir = Arc::new(opened?);
            self.dirs.insert(dir.clone());
        }
        Ok(dir)
    }

    /// Runs `open`; when descriptors have run out, gives back those that can be had again, and tries once more.
    pub(super) fn spare_descriptors<R>(&self, open: impl Fn() -> Result<R, Errno>) -> Result<R, Errno> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.dirs.halve();
                self.close_idle_files();
                open()
            }
            other => other,
        }
    }

    /// Figures of the lower filesystem, in its own blocks.
    pub fn statfs(&self) -> Result<fs::StatVfs, FsError> {
        let root = self.dir(ROOT_ID)?;
        let mut figures = fs::fstatvfs(&root.fd)?;
        figures.f_namemax = format::name::NAME_MAX as u64;
        Ok(figures)
    }
}
