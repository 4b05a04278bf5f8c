//! Names that move. Each case ends in one atomic rename on the lower filesystem.

use std::sync::Arc;

use rustix::fs::{RenameFlags, Stat};
use rustix::io::Errno;

use super::attr::Kind;
use super::dir::Dir;
use super::namespace::Tree;
use super::node::Node;
use super::remove::{check_empty, drop_sidecar};
use super::{FsError, KeyUser};
use crate::format::name::LowerName;
use crate::sys::at;

/// What a rename does with an existing target, and leaves at the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RenameMode {
    /// Fail when the target exists.
    pub no_replace: bool,
    /// Source and target change places.
    pub exchange: bool,
    /// Leave a character device 0/0 at the source (for overlays).
    pub whiteout: bool,
}

impl RenameMode {
    fn flags(self) -> RenameFlags {
        let mut flags = RenameFlags::empty();
        flags.set(RenameFlags::NOREPLACE, self.no_replace);
        flags.set(RenameFlags::EXCHANGE, self.exchange);
        flags.set(RenameFlags::WHITEOUT, self.whiteout);
        flags
    }
}

/// One end of a rename.
pub(super) struct End {
    pub(super) dir: Arc<Dir>,
    pub(super) lower: LowerName,
    pub(super) stat: Option<Stat>,
}

impl End {
    pub(super) fn node(&self, tree: &Tree) -> Option<Arc<Node>> {
        tree.nodes.find(tree.node_id(self.stat.as_ref()?))
    }

    fn is_dir(&self) -> bool {
        self.stat.as_ref().is_some_and(|s| Kind::of_mode(s.st_mode) == Some(Kind::Dir))
    }
}

impl Tree {
    /// Renames `name` in `parent` to `new_name` in `new_parent`.
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        // What is bound to its place moves with its key, and that is waited for outside of the gate.
        self.with_keys(KeyUser::Mount, || self.rename_at_once((parent, name), (new_parent, new_name), mode))
    }

    fn rename_at_once(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let change = self.change_names();
        let _none_opens_by_its_place = self.steady_places();
        let from = self.end(parent, name)?;
        let to = self.end(new_parent, new_name)?;
        change.of_entry(&from.dir, &from.lower, true);
        change.of_dir(&to.dir);
        change.of_entry(&to.dir, &to.lower, mode.exchange);
        let renamed = self.rename_ends(&from, &to, mode);
        if renamed.is_ok() {
            change.made(&to.dir, &to.lower);
            change.made(&from.dir, &from.lower);
        }
        renamed
    }

    fn rename_ends(&self, from: &End, to: &End, mode: RenameMode) -> Result<(), FsError> {
        let source = from.stat.as_ref().ok_or(FsError::Os(Errno::NOENT))?;
        if mode.no_replace && to.stat.is_some() {
            return Err(FsError::Os(Errno::EXIST));
        }
        if mode.exchange {
            return self.exchange(from, to);
        }
        if to.stat.as_ref().is_some_and(|target| target.st_ino == source.st_ino) {
            return Ok(()); // Two names of one inode: rename(2) leaves both.
        }
        if from.is_dir() && to.is_dir() {
            return self.replace_dir(from, to, mode);
        }
        let victim = match &to.stat {
            Some(stat) => self.keep_nameless(&to.dir, &to.lower, stat)?,
            None => None,
        };
        let replace = || {
            self.rename_entry(from, to, mode.flags())?;
            victim.as_ref().inspect(|node| self.lose_link(node, to.dir.node_id, &to.lower.entry));
            self.moved(from, to, mode);
            Ok(())
        };
        self.binding(&[(from, to)], replace).inspect_err(|_| {
            victim.as_ref().inspect(|node| node.unpin());
        })
    }

    fn end(&self, parent: u64, name: &[u8]) -> Result<End, FsError> {
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let stat = self.stat_if_present(&dir, &lower.entry)?;
        Ok(End { dir, lower, stat })
    }

    /// After `from` has become `to`: the node's name and the source's sidecar.
    fn moved(&self, from: &End, to: &End, mode: RenameMode) {
        if let Some(node) = from.node(self) {
            node.move_link((from.dir.node_id, &from.lower.entry), (to.dir.node_id, &to.lower.entry));
        }
        if !mode.whiteout {
            drop_sidecar(&from.dir, &from.lower);
        }
    }

    fn exchange(&self, from: &End, to: &End) -> Result<(), FsError> {
        if to.stat.is_none() {
            return Err(FsError::Os(Errno::NOENT));
        }
        self.binding(&[(from, to), (to, from)], || {
            let (first, second) = (from.lower.entry.as_bytes(), to.lower.entry.as_bytes());
            at::rename(&from.dir.fd, first, &to.dir.fd, second, RenameFlags::EXCHANGE)?;
            for (end, other) in [(from, to), (to, from)] {
                if let Some(node) = end.node(self) {
                    node.move_link(
                        (end.dir.node_id, &end.lower.entry),
                        (other.dir.node_id, &other.lower.entry),
                    );
                }
            }
            Ok(())
        })
    }

    /// A directory over an empty one, which must be without its record for the lower rename to replace it.
    fn replace_dir(&self, from: &End, to: &End, mode: RenameMode) -> Result<(), FsError> {
        let stat = to.stat.as_ref().ok_or(FsError::Os(Errno::NOENT))?;
        let victim = self.open_victim(&to.dir, &to.lower.entry, stat)?;
        check_empty(&victim)?;
        let node = self.keep_nameless(&to.dir, &to.lower, stat)?;
        let replace = || {
            self.without_record(&victim, || self.rename_entry(from, to, mode.flags()))?;
            if let Some(node) = &node {
                node.remove_link(to.dir.node_id, &to.lower.entry);
                self.dirs.remove(node.id);
            }
            self.moved(from, to, mode);
            Ok(())
        };
        self.binding(&[(from, to)], replace).inspect_err(|_| {
            node.as_ref().inspect(|node| node.unpin());
        })
    }

    fn rename_entry(&self, from: &End, to: &End, flags: RenameFlags) -> Result<(), FsError> {
        self.with_sidecar(&to.dir, &to.lower, || {
            let (first, second) = (from.lower.entry.as_bytes(), to.lower.entry.as_bytes());
            at::rename(&from.dir.fd, first, &to.dir.fd, second, flags)
        })
    }
}
