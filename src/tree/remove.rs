//! Names that go: unlink and rmdir.
//!
//! An inode whose last known name goes while the kernel still refers to it keeps a descriptor, so that it works on
//! like any open file without a name. A directory goes in two steps: its record is taken out, then it is removed, or
//! replaced by a rename. A crash between them leaves an empty directory, which gets a new record when it is next opened.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, RawDir, Stat};
use rustix::io::Errno;

use super::FsError;
use super::create::remove_orphan_sidecar;
use super::dir::Dir;
use super::dir_record;
use super::namespace::Tree;
use super::node::Node;
use crate::format::dir::DIR_RECORD;
use crate::format::name::{self, LowerName, TEMPORARY_PREFIX};
use crate::logging::RateLimit;
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
        let change = self.change_names();
        change.of_entry(&dir, &lower, false);
        let victim = self.keep_nameless(&dir, &lower, &stat)?;
        if let Err(e) = at::unlink(&dir.fd, lower.entry.as_bytes()) {
            victim.inspect(|node| node.unpin());
            return Err(e.into());
        }
        drop_sidecar(&dir, &lower);
        victim.inspect(|node| self.lose_link(node, parent, &lower.entry));
        Ok(())
    }

    /// A name of `node` is gone; with the last one goes what was kept open of it.
    pub(super) fn lose_link(&self, node: &Node, parent: u64, entry: &str) {
        node.remove_link(parent, entry);
        if node.pinned().is_some() {
            node.forget_links();
        }
        if node.known_links() == 0 {
            self.let_go(node);
        }
    }

    /// Before the entry of `lower` goes: its node, with a descriptor kept when this is its last name. Names that are known
    /// beside it are no proof of another: a look-up that a rename overtook may have left one.
    pub(super) fn keep_nameless(
        &self,
        dir: &Dir,
        lower: &LowerName,
        stat: &Stat,
    ) -> Result<Option<Arc<Node>>, FsError> {
        let Some(node) = self.nodes.find(self.node_id(stat)) else { return Ok(None) };
        let is_last = stat.st_nlink <= 1 || node.known_links() <= 1;
        if is_last && node.pinned().is_none() {
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
        let change = self.change_names();
        change.of_entry(&dir, &lower, false);
        let victim = self.open_victim(&dir, &lower.entry, &stat)?;
        check_empty(&victim)?;
        let node = self.keep_nameless(&dir, &lower, &stat)?;
        let gone = self.without_record(&victim, || Ok(at::rmdir(&dir.fd, lower.entry.as_bytes())?));
        if let Err(e) = gone {
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

    /// Does `go`, which makes the checked-empty directory `victim` go, while it is without its record.
    pub(super) fn without_record(
        &self,
        victim: &OwnedFd,
        go: impl FnOnce() -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let _nobody_makes_up_for_it = self.removals.lock();
        let record = dir_record::take_out(victim)?;
        go().inspect_err(|_| dir_record::put_back(victim, record.as_deref()))
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

/// Says why a directory that looks empty in the mount is not.
static NOT_EMPTY: RateLimit = RateLimit::new();

/// Removes the sidecar after its entry.
pub(super) fn drop_sidecar(dir: &Dir, lower: &LowerName) {
    if lower.sidecar.is_some() {
        let _pair = dir.long_names.lock();
        remove_orphan_sidecar(dir, lower);
    }
}

/// ENOTEMPTY unless the lower directory holds its record alone. Leftovers of our own that name nothing are cleared: the
/// caller's kernel lets nobody work in a directory that is being removed, so a temporary there is a crash's.
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
            name::Kind::Record if entry.starts_with(TEMPORARY_PREFIX.as_bytes()) => {
                leftovers.push(entry.to_vec());
            }
            name::Kind::Short | name::Kind::LongEntry => return Err(FsError::Os(Errno::NOTEMPTY)),
            name::Kind::Record | name::Kind::Foreign => return Err(not_empty(entry)),
        }
    }
    leftovers.iter().try_for_each(|entry| clear_leftover(dir, entry))
}

/// What the mount does not show keeps the directory: its name belongs into the log.
fn not_empty(entry: &[u8]) -> FsError {
    if NOT_EMPTY.admit().is_some() {
        let entry = String::from_utf8_lossy(entry);
        log::warn!(
            "a directory is not removed: its lower directory holds '{entry}', which is not ours to remove"
        );
    }
    FsError::Os(Errno::NOTEMPTY)
}

/// Removes a sidecar, or a directory that a crash kept from getting its name and that holds its record at most.
fn clear_leftover(dir: &OwnedFd, entry: &[u8]) -> Result<(), FsError> {
    match at::unlink(dir, entry) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    let inner = at::open_dir(dir, entry)?;
    for inside in fs::Dir::new(at::reopen_dir(&inner)?)? {
        if !matches!(inside?.file_name().to_bytes(), b"." | b".." | b".kmsfs.dir") {
            return Err(not_empty(entry));
        }
    }
    dir_record::take_out(&inner)?;
    Ok(at::rmdir(dir, entry)?)
}
