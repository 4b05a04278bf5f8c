//! Names that go: unlink and rmdir.
//!
//! An inode whose last known name goes while the kernel still refers to it keeps a descriptor, so that it works on
//! like any open file without a name. A directory is set aside under a temporary name before its record is taken out,
//! and comes back, record and all, when it turns out not to be empty.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, RawDir, RenameFlags, Stat};
use rustix::io::Errno;

use super::FsError;
use super::create::remove_orphan_sidecar;
use super::dir::Dir;
use super::namespace::Tree;
use super::node::Node;
use crate::crypto::random_array;
use crate::format::dir::DIR_RECORD;
use crate::format::name::{self, LowerName};
use crate::sys::at;

const OWNER_BITS: u32 = 0o700;
const SCAN_BUFFER: usize = 8192;

impl Tree {
    /// Removes the name of a file.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let stat = self.stat_entry(&dir, &lower.entry)?;
        let victim = self.keep_nameless(&dir, &lower, &stat)?;
        if let Err(e) = at::unlink(&dir.fd, lower.entry.as_bytes()) {
            victim.inspect(|node| node.unpin());
            return Err(e.into());
        }
        drop_sidecar(&dir, &lower);
        victim.inspect(|node| node.remove_link(parent, &lower.entry));
        Ok(())
    }

    /// Before the entry of `lower` goes: its node, with a descriptor kept when this is its last known name.
    pub(super) fn keep_nameless(
        &self,
        dir: &Dir,
        lower: &LowerName,
        stat: &Stat,
    ) -> Result<Option<Arc<Node>>, FsError> {
        let Some(node) = self.nodes.find(self.node_id(stat)) else { return Ok(None) };
        if node.known_links() <= 1 && node.pinned().is_none() {
            let fd = self.spare_descriptors(|| at::open_path(&dir.fd, lower.entry.as_bytes()))?;
            node.pin(fd);
        }
        Ok(Some(node))
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let stat = self.stat_entry(&dir, &lower.entry)?;
        let victim = self.open_victim(&dir, &lower.entry, &stat)?;
        check_empty(&victim)?;
        let node = self.keep_nameless(&dir, &lower, &stat)?;
        if let Err(e) = discard(&dir, &lower.entry, &victim) {
            node.inspect(|node| node.unpin());
            return Err(e);
        }
        drop_sidecar(&dir, &lower);
        if let Some(node) = node {
            node.remove_link(parent, &lower.entry);
            self.dirs.remove(node.id);
        }
        Ok(())
    }

    /// A directory about to go, readable for the check that it is empty.
    pub(super) fn open_victim(&self, dir: &Dir, entry: &str, stat: &Stat) -> Result<OwnedFd, FsError> {
        let fd = self.spare_descriptors(|| at::open_dir(&dir.fd, entry.as_bytes()))?;
        let writable =
            || fs::accessat(&fd, ".", fs::Access::READ_OK | fs::Access::WRITE_OK, fs::AtFlags::EACCESS);
        if writable().is_err() {
            // Removing a directory asks nothing of its own permissions; taking the record out of it does.
            at::set_mode(&fd, (stat.st_mode & 0o7777) | OWNER_BITS)?;
        }
        Ok(fd)
    }
}

/// Takes the checked-empty directory `entry` away, or leaves it as it was.
pub(super) fn discard(parent: &Dir, entry: &str, victim: &OwnedFd) -> Result<(), FsError> {
    let record = at::read_link(victim, DIR_RECORD.as_bytes())?;
    let aside = name::temporary(random_array());
    fs::renameat_with(&parent.fd, entry, &parent.fd, &*aside, RenameFlags::NOREPLACE)?;
    let removed =
        at::unlink(victim, DIR_RECORD.as_bytes()).and_then(|()| at::rmdir(&parent.fd, aside.as_bytes()));
    let Err(why) = removed else { return Ok(()) };
    match fs::symlinkat(record.as_slice(), victim, DIR_RECORD) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => log::error!("the record of a directory could not be put back: {e}"),
    }
    fs::renameat_with(&parent.fd, &*aside, &parent.fd, entry, RenameFlags::NOREPLACE)?;
    Err(why.into())
}
/// Removes the sidecar after its entry.
pub(super) fn drop_sidecar(dir: &Dir, lower: &LowerName) {
    if lower.sidecar.is_some() {
        let _pair = dir.long_names.lock();
        remove_orphan_sidecar(dir, lower);
    }
}

/// ENOTEMPTY unless the lower directory holds its record alone. Leftovers of our own that name nothing are cleared.
pub(super) fn check_empty(dir: &OwnedFd) -> Result<(), FsError> {
    let listing = at::reopen_dir(dir)?;
    let mut buffer = [MaybeUninit::uninit(); SCAN_BUFFER];
    let mut entries = RawDir::new(&listing, &mut buffer);
    let mut leftovers = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let entry = entry.file_name().to_bytes();
        match name::classify(entry) {
            _ if entry == b"." || entry == b".." || entry == DIR_RECORD.as_bytes() => {}
            name::Kind::Sidecar => leftovers.push(entry.to_vec()),
            name::Kind::Short | name::Kind::LongEntry | name::Kind::Record | name::Kind::Foreign => {
                return Err(FsError::Os(Errno::NOTEMPTY));
            }
        }
    }
    leftovers.iter().try_for_each(|sidecar| Ok(at::unlink(dir, sidecar)?))
}
