//! Changing attributes: owner, permissions, size, times, in this order.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::attr::{Attr, Caller, Kind, SetAttr, SetTime, modified};
use super::namespace::Tree;
use super::node::{Node, OpenFile};
use super::open::clear_set_id_bits;
use super::{Asker, FsError};
use crate::sys::at;

impl Tree {
    /// Changes what `set` names and gives the attributes afterwards. `asker` stands behind a change of size.
    pub fn set_attr(&self, id: u64, set: SetAttr, caller: Caller, asker: Asker) -> Result<Attr, FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        let permissions = set.permissions.filter(|_| node.kind != Kind::Symlink);
        if set.uid.is_some() || set.gid.is_some() || permissions.is_some() {
            let change = self.change();
            change.of_node(&node)?;
            self.on_inode(&node, false, |fd, _| {
                if set.uid.is_some() || set.gid.is_some() {
                    at::set_owner(fd, set.uid, set.gid)?;
                }
                Ok(permissions.map_or(Ok(()), |permissions| at::set_mode(fd, permissions & 0o7777))?)
            })?;
        }
        if let Some(size) = set.size {
            self.truncate(id, size, asker)?;
        }
        let clear_set_id = set.size.is_some() && caller.uid != 0;
        let change = self.change();
        change.of_node(&node)?;
        let stat = self.on_inode(&node, !clear_set_id, |fd, open| {
            if clear_set_id {
                clear_set_id_bits(fd)?;
            }
            if set.accessed.is_some() || set.modified.is_some() {
                at::set_times(fd, &timestamps(&set))?;
            }
            let stat = fs::fstat(fd)?;
            if set.modified.is_some()
                && let Some(open) = open
            {
                // The kernel has told its time of the last write; what was kept of the lower one is out of date.
                open.note_modified(Some(modified(&stat)));
            }
            Ok(stat)
        })?;
        let attr = self.attr_of(&stat)?;
        node.note_told(attr.blocks);
        Ok(attr)
    }

    /// Runs `action` on the node's inode: through the open file where there is one, which is at hand, and not while
    /// that is being written behind, which keeps its times.
    fn on_inode<R>(
        &self,
        node: &Node,
        times_only: bool,
        action: impl Fn(BorrowedFd<'_>, Option<&OpenFile>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        if let Some(open) = &node.file.read().open {
            return open.io.with_attributes(times_only, || action(open.io.lower_fd(), Some(open)));
        }
        action(self.inode(node)?.as_fd(), None)
    }
}

fn timestamps(set: &SetAttr) -> Timestamps {
    let one = |time: Option<SetTime>| match time {
        Some(SetTime::At(time)) => time.into(),
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    Timestamps { last_access: one(set.accessed), last_modification: one(set.modified) }
}
