//! New data keys for files that are there: each file's content and attributes are encrypted anew under a fresh data key,
//! and put in the place of the old ciphertext, in the same inode. So names, hard links, owner, mode, ACLs, times, holes
//! and open handles stay what they are, and the kernel's cache of plaintext stays true.
//!
//! A new lower file is made beside, while everybody goes on with the old one. Then the file is held still; where it is as
//! it was read, the new one is put in its place, which the [`Journal`] makes one step whatever interrupts it. A file that
//! changed meanwhile is told as such, and may be tried again.
//!
//! Called by `volume` in a mount, and for a tree that is open without one. Must never let a file be used while it is a
//! mixture, nor lose what was written to it.
//!
//! Locks: the gate, then files one after the other, each only if it is to be had soon.

mod journal;
mod overwrite;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLockWriteGuard;
use rustix::fs;
use rustix::io::Errno;

use super::changes::Change;
use super::close::seal;
use super::file::{FileContext, FileIo, Integrity, Seek, Stage};
use super::namespace::Tree;
use super::node::{FileSlot, Node, OpenFile};
use super::{Asker, FreshKey, FsError, KeyError, KeyUser, ROOT_ID};
use crate::crypto::sha256;
use crate::format::FileId;
use crate::format::layout::BLOCK_LEN;
use crate::format::xattr as codec;
use crate::sys::at;
use journal::Swap;
pub use journal::{Journal, RENEWALS, finish, is_unfinished};
use overwrite::{Attribute, Kept, overwrite, sealed_attributes};

/// Plaintext encrypted at a time, whole blocks.
const CHUNK: u64 = 1 << 20;
/// How long a file in use is waited for, while others are held.
const PATIENCE: Duration = Duration::from_millis(100);
/// Levels of directories above a file.
const DEPTH_MAX: usize = 100_000;
/// From so many files on, one sync of the lower filesystem costs less than one of each.
const SYNC_TOGETHER: usize = 4;
/// How often a file that cannot be put in place is tried, and the pause between: space may come free.
const PLACE_TRIES: u32 = 50;
const PLACE_PAUSE: Duration = Duration::from_millis(100);

/// A file whose new ciphertext is made.
pub struct Renewal {
    node: Arc<Node>,
    number: u32,
    old: OwnedFd,
    new: OwnedFd,
    /// The first page of the old file and its sealed attributes, as they were when it was read.
    head: Box<[u8; BLOCK_LEN]>,
    attributes: Vec<Attribute>,
    kept: Kept,
    old_id: FileId,
    /// Identity under the new key.
    pub new_id: FileId,
    /// Plaintext bytes.
    pub size: u64,
}

/// What a file is, before it gets a new key.
pub enum Prepared {
    /// Empty: it has none.
    NoHeader,
    /// The caller does not want it.
    Unwanted,
    /// Its new ciphertext is made.
    Ready(Box<Renewal>),
}

/// What became of a file.
#[derive(Debug)]
pub enum Renewed {
    /// It is under the new key.
    Done,
    /// It changed, or was in use: try again.
    Changed,
    /// It has no name any more.
    Gone,
    /// It is as it was.
    Failed(FsError),
}

/// New files are in place in part only, or the note of them cannot be taken away: nothing more may be renewed, and the
/// next mount ends it.
#[derive(Debug)]
pub struct Stuck(pub Errno);

/// A handle of our own, so that nobody closes the file meanwhile.
struct Handle<'a>(&'a Tree, &'a Arc<Node>);

impl<'a> Handle<'a> {
    fn new(tree: &'a Tree, node: &'a Arc<Node>) -> Self {
        let mut slot = node.file.write();
        tree.kept.take(&mut slot);
        slot.handles += 1;
        Self(tree, node)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        self.0.release(self.1, false);
    }
}

impl Tree {
    /// The place where new files are made. The caller sees to it that nobody else renews files of the volume.
    pub fn renewals(&self) -> Result<Journal, FsError> {
        self.check_writable()?;
        let root = self.dir(ROOT_ID)?;
        Ok(Journal::open(&root.fd, Arc::clone(&self.volume_key), self.files.volume_id)?)
    }

    /// Makes the new ciphertext of the file `id`, as the journal's file `number`: under the master key `key`, or under
    /// the one that it is under. Waits for keys; not for a thread that serves the mount.
    pub fn prepare_renewal(
        &self,
        id: u64,
        key: Option<&str>,
        number: u32,
        journal: &Journal,
        wanted: impl FnOnce(FileId) -> bool,
    ) -> Result<Prepared, FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        let _handle = Handle::new(self, &node);
        let accessed = self.steadily(&node, |file| Ok(Kept::of(&fs::fstat(file.io.lower_fd())?)))?;
        let found = self.steadily(&node, |file| {
            file.io.ensure_keys()?;
            Ok(if file.io.has_header() { file.io.wrapped() } else { None })
        })?;
        let Some((old_id, wrapped)) = found else { return Ok(Prepared::NoHeader) };
        if !wanted(old_id) {
            return Ok(Prepared::Unwanted);
        }
        let key = key.unwrap_or(&wrapped.key_arn);
        let fresh = || Ok(self.files.keys.fresh(Some(key), KeyUser::Mount)?);
        let fresh = self.with_keys_patiently(fresh)?;
        let new = journal.make(number)?;
        let made = self.encrypt_anew(&node, fresh, number, new, accessed);
        made.inspect_err(|_| journal.discard(number)).map(|made| Prepared::Ready(Box::new(made)))
    }

    /// Runs `action` on the open file of `node`, waiting for its key.
    fn steadily<R>(
        &self,
        node: &Arc<Node>,
        action: impl Fn(&OpenFile) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.with_keys_patiently(|| self.with_file(node, true, Asker::Mount, &action))
    }

    fn encrypt_anew(
        &self,
        node: &Arc<Node>,
        fresh: FreshKey,
        number: u32,
        new: OwnedFd,
        accessed: Kept,
    ) -> Result<Renewal, FsError> {
        let (old_id, new_id) = (self.steadily(node, |file| Ok(file.io.wrapped()))?, fresh.file_id);
        let (old_id, _) = old_id.ok_or(FsError::Os(Errno::STALE))?;
        let (old, head, size) = self.steadily(node, |file| {
            file.io.seal()?;
            let old = rustix::io::fcntl_dupfd_cloexec(file.io.lower_fd(), 0)?;
            Ok((file.io.size()?, read_head(&old)?, old)).map(|(size, head, old)| (old, head, size))
        })?;
        let attributes = sealed_attributes(&old)?;
        let kept = Kept::of(&fs::fstat(&old)?).read_as(accessed);
        let target = self.new_file(node, fresh, &new)?;
        self.copy_content(node, &target, size)?;
        self.seal_attributes(node, &target, &new, &attributes)?;
        target.seal()?;
        let node = Arc::clone(node);
        Ok(Renewal { node, number, old, new, head, attributes, kept, old_id, new_id, size })
    }

    /// What writes the new file: without a log, since nothing in it is overwritten, and nobody uses it before it is whole
    /// and durable. So its seal counts whatever becomes of this mount.
    fn new_file(&self, node: &Node, fresh: FreshKey, new: &OwnedFd) -> Result<Arc<FileIo>, FsError> {
        let context = FileContext {
            volume_id: self.files.volume_id,
            keys: Arc::clone(&self.files.keys),
            read_only: false,
            log: None,
            stage: Stage::default(),
            integrity: Integrity::Block,
        };
        let fd = rustix::io::fcntl_dupfd_cloexec(new, 0)?;
        Ok(FileIo::new_empty(fd, Arc::new(context), Some(fresh), self.place_of(node)?, None))
    }

    /// Encrypts the data of `node`, and leaves its holes holes.
    fn copy_content(&self, node: &Arc<Node>, target: &FileIo, size: u64) -> Result<(), FsError> {
        let mut at = 0;
        let mut made = false;
        while at < size {
            let data = match self.steadily(node, |file| file.io.seek(at, Seek::Data)) {
                Err(FsError::Os(Errno::NXIO)) => break,
                other => other?,
            };
            let end = self.steadily(node, |file| file.io.seek(data, Seek::Hole))?.min(size);
            let mut from = data;
            while from < end {
                let len = (end - from).min(CHUNK) as usize;
                let chunk = self.steadily(node, |file| {
                    let mut out = Vec::with_capacity(len);
                    file.io.read(from, len, &mut out).map(|()| out)
                })?;
                if chunk.len() < len {
                    return Err(FsError::Os(Errno::STALE));
                }
                target.write(from, &chunk)?;
                (from, made) = (from + len as u64, true);
            }
            at = end.max(at + 1);
        }
        if made {
            target.truncate(size)
        } else {
            target.keys_for_attributes().and_then(|_| target.truncate(size))
        }
    }

    /// Seals the attributes anew.
    fn seal_attributes(
        &self,
        node: &Arc<Node>,
        target: &FileIo,
        new: &OwnedFd,
        attributes: &[Attribute],
    ) -> Result<(), FsError> {
        if attributes.is_empty() {
            return Ok(());
        }
        let no_key = || FsError::Os(Errno::STALE);
        let (old_keys, old_id) = self.steadily(node, |file| file.io.keys_for_read())?.ok_or_else(no_key)?;
        let (new_keys, new_id) = target.keys_for_read()?.ok_or_else(no_key)?;
        for (lower, sealed) in attributes {
            let name = codec::plain_name(&self.volume_key, codec::PREFIX, lower).and_then(Result::ok);
            let value = name.as_ref().and_then(|name| {
                codec::open_value(&old_keys.xattr, &old_id.0, name, sealed).ok().map(|value| (name, value))
            });
            let Some((name, value)) = value else {
                return Err(FsError::Corrupt("an extended attribute does not open".to_owned()));
            };
            let sealed = codec::seal_value(&new_keys.xattr, &new_id.0, name, &value);
            at::set_xattr(new, lower, &sealed, fs::XattrFlags::empty())?;
        }
        Ok(())
    }

    /// Puts new ciphertext in the place of the old. All of `renewals` that are as they were change together; tells what
    /// became of each.
    pub fn apply_renewals(&self, renewals: &[Renewal], journal: &Journal) -> Result<Vec<Renewed>, Stuck> {
        if let Err(e) = sync_all(renewals.iter().map(|renewal| &renewal.new), journal.dir()) {
            for renewal in renewals {
                journal.discard(renewal.number);
            }
            return Ok(renewals.iter().map(|_| Renewed::Failed(FsError::Os(e))).collect());
        }
        let change = self.change();
        let mut held: Vec<Result<Held<'_>, Renewed>> =
            renewals.iter().map(|renewal| self.hold(&change, renewal)).collect();
        let ready: Vec<&mut Held<'_>> = held.iter_mut().filter_map(|held| held.as_mut().ok()).collect();
        let placed = self.place_all(ready, journal);
        let outcome = |(held, renewal): (Result<Held<'_>, Renewed>, &Renewal)| {
            let kept_back = held.err();
            if kept_back.is_some() || matches!(placed, Ok(Err(_))) {
                journal.discard(renewal.number);
            }
            kept_back.unwrap_or(match &placed {
                Ok(Err(e)) => Renewed::Failed(FsError::Os(*e)),
                _ => Renewed::Done,
            })
        };
        let outcomes = held.into_iter().zip(renewals).map(outcome).collect();
        placed.map(|_| outcomes)
    }

    /// The outer error leaves some in place and some not; the inner one, all as they were.
    fn place_all(&self, ready: Vec<&mut Held<'_>>, journal: &Journal) -> Result<Result<(), Errno>, Stuck> {
        if ready.is_empty() {
            return Ok(Ok(()));
        }
        let swaps: Vec<Swap> = ready.iter().map(|held| held.swap.clone()).collect();
        if let Err(e) = journal.commit(&swaps)? {
            return Ok(Err(e));
        }
        let olds: Vec<&OwnedFd> = ready
            .into_iter()
            .map(|held| {
                self.drop_open(&held.renewal.node, &mut held.slot);
                place(held.renewal).map(|()| &held.renewal.old)
            })
            .collect::<Result<_, _>>()
            .map_err(Stuck)?;
        sync_all(olds.into_iter(), journal.dir()).and_then(|()| journal.end(&swaps)).map_err(Stuck)?;
        Ok(Ok(()))
    }

    /// Holds the file of `renewal` still, where it is as it was when it was read.
    fn hold<'a>(&self, change: &Change<'_>, renewal: &'a Renewal) -> Result<Held<'a>, Renewed> {
        let node = &renewal.node;
        let slot = node.file.try_write_for(PATIENCE).ok_or(Renewed::Changed)?;
        let path = self.lower_path_of(node).ok_or(Renewed::Gone)?;
        let told_of_failure = slot.open.as_ref().is_some_and(|open| open.io.failures().0 > 0);
        if slot.left_open || told_of_failure {
            return Err(Renewed::Changed);
        }
        change.of_node(node).map_err(Renewed::Failed)?;
        match seal(&slot) {
            Ok(()) => {}
            // It is opened again, with its key, by the next attempt.
            Err(FsError::Key(KeyError::Absent(..))) => return Err(Renewed::Changed),
            Err(e) => return Err(Renewed::Failed(e)),
        }
        let state = || {
            let head = read_head(&renewal.old)?;
            Ok((head, sealed_attributes(&renewal.old)?, Kept::of(&fs::fstat(&renewal.old)?)))
        };
        let (head, attributes, now) = state().map_err(Renewed::Failed)?;
        if head != renewal.head || attributes != renewal.attributes {
            return Err(Renewed::Changed);
        }
        let new_head = read_head(&renewal.new).map_err(Renewed::Failed)?;
        let swap = Swap {
            number: renewal.number,
            path,
            old_id: renewal.old_id.0,
            new_id: renewal.new_id.0,
            head: sha256(&new_head[..]),
            kept: now.read_as(renewal.kept),
        };
        Ok(Held { renewal, slot, swap })
    }

    /// A lower path of `node`, relative to the root; `None` where it has no name.
    fn lower_path_of(&self, node: &Node) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut link = node.link()?;
        for _ in 0..DEPTH_MAX {
            let parent = link.parent;
            names.push(link.name);
            if parent == ROOT_ID {
                return Some(names.iter().rev().map(|name| &**name).collect());
            }
            link = self.nodes.find(parent)?.link()?;
        }
        None
    }

    /// Overwrites what the log and those of unclean stops still hold of what was written before, under keys that files no
    /// longer have. With `all`, every file of the volume was opened since.
    pub fn forget_logged(&self, all: bool) -> Result<(), FsError> {
        self.files.flush_all();
        let Some(log) = &self.files.log else { return Ok(()) };
        if all {
            log.settle_old();
        }
        Ok(log.wipe()?)
    }
}

/// A file that nobody else uses as long as this lives.
struct Held<'a> {
    renewal: &'a Renewal,
    slot: RwLockWriteGuard<'a, FileSlot>,
    swap: Swap,
}

fn place(renewal: &Renewal) -> Result<(), Errno> {
    let kept = Kept::of(&fs::fstat(&renewal.old)?).read_as(renewal.kept);
    let mut tries = PLACE_TRIES;
    loop {
        match overwrite(&renewal.new, &renewal.old, kept) {
            Err(Errno::NOSPC | Errno::DQUOT) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(PLACE_PAUSE);
            }
            other => return other,
        }
    }
}

fn read_head(file: impl AsFd) -> Result<Box<[u8; BLOCK_LEN]>, FsError> {
    let mut head = Box::new([0; BLOCK_LEN]);
    rustix::io::pread(file, &mut head[..], 0)?;
    Ok(head)
}

/// Makes `files` durable, which lie on one file system with `beside`.
fn sync_all<'a>(
    mut files: impl ExactSizeIterator<Item = &'a OwnedFd>,
    beside: &OwnedFd,
) -> Result<(), Errno> {
    if files.len() >= SYNC_TOGETHER { fs::syncfs(beside) } else { files.try_for_each(fs::fsync) }
}
