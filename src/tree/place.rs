//! Volumes that bind names: files, directories and symbolic links open in one directory and under one name alone.
//!
//! A file's place stands in its seal, a directory's in its record, a link's with its target. Called by `rename`, which moves
//! what is bound, and where inodes are opened. Must never leave a moment at which an unclean stop makes an entry
//! unreadable: before the rename it opens at both places.

use std::sync::Arc;

use parking_lot::ReentrantMutexGuard;
use rustix::fs;
use rustix::io::Errno;

use super::FsError;
use super::attr::Kind;
use super::dir::Dir;
use super::dir_record;
use super::namespace::Tree;
use super::node::Node;
use super::rename::End;
use crate::crypto::{Place, random_array};
use crate::format::{link, name};
use crate::sys::at;

/// What a rename under way has bound to its new place.
enum Moving {
    File(Arc<Node>, Place),
    Dir(Arc<Dir>, Place, Place),
    /// Opens at both places already, or is not bound.
    Ready,
}

impl Tree {
    /// While this is held, what is bound to a place is there, and no rename has half moved it. `None` where names are not
    /// bound. To be held from telling a place until what is there was opened by it; not while a key is waited for.
    pub(super) fn steady_places(&self) -> Option<ReentrantMutexGuard<'_, ()>> {
        self.volume_key.binds_names().then(|| self.places.lock())
    }

    /// Where the one name of `node` is; `None` where names are not bound, or it has none.
    pub(super) fn place_of(&self, node: &Node) -> Result<Option<Place>, FsError> {
        if !self.volume_key.binds_names() {
            return Ok(None);
        }
        self.check_one_name(node)?;
        let Some(link) = node.link() else { return Ok(None) };
        Ok(self.volume_key.place(&self.dir(link.parent)?.id, link.name.as_bytes()))
    }

    /// Where names are bound, an inode that was found under two has been moved behind the mount's back.
    pub(super) fn check_one_name(&self, node: &Node) -> Result<(), FsError> {
        if !self.volume_key.binds_names() || node.known_links() <= 1 {
            return Ok(());
        }
        let _steady = self.steady_places();
        if node.known_links() > 1 {
            let why = format!("inode {} was found under two names, of which one is not its own", node.id);
            return Err(FsError::Corrupt(why));
        }
        Ok(())
    }

    /// A directory that is found elsewhere than before is checked anew when it is next used.
    pub(super) fn forget_if_moved(&self, id: u64, dir: &Dir, entry: &str) {
        if !self.volume_key.binds_names() {
            return;
        }
        let known = self.nodes.find(id).filter(|node| node.kind == Kind::Dir).and_then(|node| node.link());
        if known.is_some_and(|known| known.parent != dir.node_id || *known.name != *entry) {
            self.dirs.remove(id);
        }
    }

    /// Does `go`, which moves each first end to its second, with what moves bound to where it goes. Waits for no key: one
    /// that is not at hand is the error [`super::KeyError::Absent`], and nothing has moved then.
    pub(super) fn binding(
        &self,
        moves: &[(&End, &End)],
        go: impl FnOnce() -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        if !self.volume_key.binds_names() {
            return go();
        }
        let mut moving = Vec::with_capacity(moves.len());
        let mut done = Ok(());
        for (from, to) in moves {
            match self.begin_move(from, to) {
                Ok(bound) => moving.push(bound),
                Err(e) => {
                    done = Err(e);
                    break;
                }
            }
        }
        let done = done.and_then(|()| go());
        for bound in moving {
            self.end_move(bound, done.is_ok());
        }
        done
    }

    fn begin_move(&self, from: &End, to: &End) -> Result<Moving, FsError> {
        let place = |end: &End| self.volume_key.place(&end.dir.id, end.lower.entry.as_bytes());
        let (Some(old), Some(new), Some(stat)) = (place(from), place(to), &from.stat) else {
            return Ok(Moving::Ready);
        };
        match Kind::of_mode(stat.st_mode) {
            Some(Kind::File) => {
                let node = from.node(self).ok_or(FsError::Os(Errno::STALE))?;
                // Held open, so that nobody opens it meanwhile for the place that it is about to leave.
                node.file.write().handles += 1;
                let moving = Moving::File(Arc::clone(&node), old);
                let bound = self.with_held_file(&node, |file| file.io.bind(new));
                bound.inspect_err(|_| self.release(&node, false)).map(|()| moving)
            }
            Some(Kind::Dir) => {
                let dir = self.dir(self.node_id(stat))?;
                dir_record::bind_copy(&self.volume_key, &dir.fd, &dir.id, &new)?;
                Ok(Moving::Dir(dir, old, new))
            }
            Some(Kind::Symlink) => self.bind_link(from, old, new).map(|()| Moving::Ready),
            _ => Ok(Moving::Ready),
        }
    }

    /// Tells the log what could not be put right; it opens where it is all the same, or says so itself.
    fn end_move(&self, moving: Moving, moved: bool) {
        let ended = match moving {
            Moving::File(node, old) => {
                let back = || self.with_held_file(&node, |file| file.io.bind(old));
                let ended = if moved { Ok(()) } else { back() };
                self.release(&node, false);
                ended
            }
            Moving::Dir(dir, _, new) if moved => {
                dir_record::bind_record(&self.volume_key, &dir.fd, &dir.id, &new)
            }
            Moving::Dir(dir, old, _) => dir_record::bind_copy(&self.volume_key, &dir.fd, &dir.id, &old),
            Moving::Ready => Ok(()),
        };
        if let Err(e) = ended {
            log::warn!("the place of a renamed entry is not stored yet: {e}");
        }
    }

    /// Replaces the link at `from` by one that opens at both places: a link's target cannot be changed.
    fn bind_link(&self, from: &End, old: Place, new: Place) -> Result<(), FsError> {
        let entry = from.lower.entry.as_bytes();
        let inode = self.spare_descriptors(|| at::open_path(&from.dir.fd, entry))?;
        let forged = |_| FsError::Corrupt("the target of a symbolic link does not open".into());
        let target = link::open(&self.volume_key, &at::read_link_of(&inode)?, Some(&old)).map_err(forged)?;
        let sealed = link::seal(&self.volume_key, &target, Some([new, old]));
        let sealed = sealed.ok_or(FsError::Os(Errno::NAMETOOLONG))?;
        let temporary = name::temporary(random_array());
        at::make_link(sealed.as_bytes(), &from.dir.fd, temporary.as_bytes())?;
        let take_its_place =
            || at::rename(&from.dir.fd, temporary.as_bytes(), &from.dir.fd, entry, fs::RenameFlags::empty());
        let replaced =
            self.copy_attributes(&inode, &from.dir, &temporary).and_then(|()| Ok(take_its_place()?));
        if let Err(e) = replaced {
            let _ = at::unlink(&from.dir.fd, temporary.as_bytes());
            return Err(e);
        }
        if let Some(node) = from.node(self) {
            // The kernel knows it until it forgets it: till then no other inode may have its number.
            node.pin(inode);
            node.remove_link(from.dir.node_id, &from.lower.entry);
        }
        Ok(())
    }

    /// Whether `node` is a link that a rename has replaced ([`Self::bind_link`]); the kernel is to look its name up again.
    pub(super) fn is_replaced(&self, node: &Node) -> bool {
        node.kind == Kind::Symlink && self.volume_key.binds_names() && node.known_links() == 0
    }

    /// Owner, times and attributes of the link `inode` for the one that takes its place.
    fn copy_attributes(&self, inode: &std::os::fd::OwnedFd, dir: &Dir, to: &str) -> Result<(), FsError> {
        let copy = self.spare_descriptors(|| at::open_path(&dir.fd, to.as_bytes()))?;
        let stat = fs::fstat(inode)?;
        if self.can_chown {
            at::set_owner(&copy, Some(stat.st_uid), Some(stat.st_gid))?;
        }
        for name in at::list_xattrs(inode)? {
            let value = at::xattr(inode, &name)?;
            match at::set_xattr(&copy, &name, &value, fs::XattrFlags::empty()) {
                // What the lower filesystem gives by itself, such as a label of the kernel's, it does not take.
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let times = fs::Timestamps {
            last_access: fs::Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
            last_modification: fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
        };
        Ok(at::set_times(&copy, &times)?)
    }
}
