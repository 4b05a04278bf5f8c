//! Changing attributes: owner, permissions, size, times, in this order.

use std::os::fd::AsFd;

use rustix::fs::{self, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::FsError;
use super::attr::{Attr, Caller, Kind, SetAttr, SetTime};
use super::namespace::Tree;
use super::node::Node;
use super::open::clear_set_id_bits;
use crate::sys::at;

impl Tree {
    /// Changes what `set` names and gives the attributes afterwards.
    pub fn set_attr(&self, id: u64, set: SetAttr, caller: Caller) -> Result<Attr, FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        let fd = self.inode(&node)?;
        if set.uid.is_some() || set.gid.is_some() {
            at::set_owner(&fd, set.uid, set.gid)?;
        }
        if let Some(permissions) = set.permissions
            && node.kind != Kind::Symlink
        {
            at::set_mode(&fd, permissions & 0o7777)?;
        }
        if let Some(size) = set.size {
            self.truncate(id, size)?;
            if caller.uid != 0 {
                clear_set_id_bits(fd.as_fd())?;
            }
        }
        if set.accessed.is_some() || set.modified.is_some() {
            seal_before_times(&node)?;
            at::set_times(&fd, &timestamps(&set))?;
            if let Some(open) = &node.file.read().open
                && set.modified.is_some()
            {
                *open.kernel_modified.lock() = None;
            }
        }
        self.attr_of(&fs::fstat(fd.as_fd())?)
    }
}

/// The kernel sets the times after it has written back; what the seal still has to write comes before them.
fn seal_before_times(node: &Node) -> Result<(), FsError> {
    match &node.file.read().open {
        Some(open) if open.writable => open.io.seal(),
        _ => Ok(()),
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
