//! The plaintext tree of an open volume, as a mount uses it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::readlinkat;
use rustix::io::Errno;

use super::keys::MountKeys;
use super::snapshot::{Making, SnapshotRecord};
use super::watch::KeyEvent;
use super::{Volume, VolumeError, walk};
use crate::crypto::VolumeKey;
use crate::format::dir::{self, DIR_RECORD};
use crate::format::name;
use crate::tree::{Durability, Integrity, LastEnd, Moment, Tree, TreeOptions, start_flusher};

/// A tree that is, or is about to be, mounted.
#[derive(Clone)]
pub struct MountedTree {
    tree: Arc<Tree>,
    key: Arc<VolumeKey>,
    root: Arc<OwnedFd>,
}

impl Volume {
    /// The plaintext tree; without `durability` a read-only one. Otherwise the caller holds the volume exclusively.
    pub fn tree(
        &self,
        durability: Option<Durability>,
        integrity: Integrity,
        last: LastEnd,
    ) -> Result<MountedTree, VolumeError> {
        let keys = Arc::new(MountKeys(self.keys.clone()));
        let files = Arc::new(self.file_context(durability, integrity, last, keys)?);
        let read_only = durability.is_none();
        if !read_only {
            start_flusher(&files)
                .map_err(|e| VolumeError::Tree(Errno::from_io_error(&e).unwrap_or(Errno::AGAIN).into()))?;
        }
        let options = TreeOptions { read_only, ..TreeOptions::default() };
        let tree =
            Tree::open(self.root()?, Arc::clone(&self.key), files, &options).map_err(VolumeError::Tree)?;
        Ok(MountedTree { tree, key: Arc::clone(&self.key), root: Arc::new(self.root()?) })
    }
}

impl MountedTree {
    /// For the session that serves it.
    pub fn for_session(&self) -> Arc<Tree> {
        Arc::clone(&self.tree)
    }

    /// Whether the tree was closed with every file sealed and durable.
    pub fn ended_well(&self) -> bool {
        self.tree.ended_well()
    }

    /// Makes the snapshot `name` of `volume`, which this is the tree of, while it goes on. What the kernel still holds
    /// back should have been written before. `moment` gets the copy while it takes time.
    pub fn snapshot(
        &self,
        volume: &Volume,
        name: &str,
        moment: &Mutex<Option<Arc<Moment>>>,
    ) -> Result<SnapshotRecord, VolumeError> {
        Making::prepare(volume, name, moment)?.of_mount(&self.tree)
    }

    /// Files open now.
    pub fn open_files(&self) -> usize {
        self.tree.open_file_count()
    }

    /// Inodes the kernel knows.
    pub fn inodes(&self) -> usize {
        self.tree.node_count()
    }

    /// Tries again to close files that could not be sealed when they were closed.
    pub fn close_left_open(&self) {
        self.tree.close_left_open();
    }

    /// Does what an event asks for. `drop_pages` makes the kernel write back and forget pages of open files, which
    /// must come first: what is dirty can only be encrypted while the keys are there.
    pub fn act_on(&self, event: KeyEvent<'_>, drop_pages: impl Fn(&[u64])) {
        match event {
            KeyEvent::Revoked(key_arn) => {
                drop_pages(&self.tree.nodes_under(Some(key_arn)));
                let dropped = self.tree.revoke(key_arn);
                // Pages that were read while the first ones were being dropped.
                drop_pages(&dropped);
            }
            KeyEvent::RecordChanged => {
                self.tree.lock_all();
            }
        }
    }

    /// Drops the keys of all open files or of those under one master key, and what the kernel caches of them. Returns how
    /// many there were.
    pub fn drop_keys(&self, key_arn: Option<&str>, drop_pages: impl Fn(&[u64])) -> usize {
        drop_pages(&self.tree.nodes_under(key_arn));
        let dropped = match key_arn {
            Some(key_arn) => self.tree.revoke(key_arn),
            None => self.tree.lock_all(),
        };
        drop_pages(&dropped);
        dropped.len()
    }

    /// Where the lower file of a plaintext path is, relative to the lower directory.
    pub fn lower_path(&self, path: &Path) -> std::io::Result<PathBuf> {
        let mut lower = PathBuf::new();
        let mut here = self.root.try_clone()?;
        let mut place = self.key.root_place();
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let Component::Normal(plain) = component else { return Err(Errno::INVAL.into()) };
            let record = readlinkat(here.as_fd(), DIR_RECORD, Vec::new())?;
            let id = dir::open(&self.key, record.as_bytes(), place.as_ref()).map_err(|_| Errno::IO)?;
            let key = self.key.dir_key(&id);
            let name = name::encrypt(&key, plain.as_bytes()).map_err(|_| Errno::NAMETOOLONG)?;
            place = self.key.place(&id, name.entry.as_bytes());
            if components.peek().is_some() {
                let entry = std::ffi::CString::new(name.entry.as_str())?;
                here = walk::open_dir(here.as_fd(), &entry)?;
            }
            lower.push(name.entry);
        }
        Ok(lower)
    }
}
