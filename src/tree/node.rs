//! The inode table: node id to inode, with the kernel's lookup counts and the names it is known by.
//!
//! The node id is the lower inode number (the root is 1), so it is stable and unique. A node holds no descriptor while
//! it has a name: it is reopened by one of its known names. A node whose last known name goes keeps a descriptor
//! until the kernel forgets it, so the lower inode number cannot be used again meanwhile.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::FsError;
use super::attr::{Kind, Time, modified};
use super::file::FileIo;
use crate::sys::at;

/// Node id of the root.
pub const ROOT_ID: u64 = 1;
const SHARDS: usize = 64;
/// How often an inode that was renamed meanwhile is looked for again.
pub(super) const RENAME_RETRIES: usize = 16;

/// A name of an inode: the parent's node id and the lower name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Node id of the parent directory.
    pub parent: u64,
    /// The lower name.
    pub name: Box<str>,
}

/// The regular file of a node while it is open.
pub struct OpenFile {
    /// Its plaintext I/O, one for all handles.
    pub io: Arc<FileIo>,
    /// Whether the lower descriptor can write.
    pub writable: bool,
    modified: Mutex<Modified>,
    /// What the lower file took, in blocks, when it was last synced; no such number before the first time.
    synced_blocks: AtomicU64,
}

/// Stands for no number of blocks.
const NO_BLOCKS: u64 = u64::MAX;

/// What is known of the time of the last write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Modified {
    /// Nothing: the lower file has it.
    Unknown,
    /// The lower file has this one, and nothing was written since.
    Stands(Time),
    /// The kernel has this one; written-back data has moved that of the lower file.
    Moved(Time),
}

impl OpenFile {
    /// A file just opened.
    pub fn new(io: Arc<FileIo>, writable: bool) -> Self {
        let modified = Mutex::new(Modified::Unknown);
        Self { io, writable, modified, synced_blocks: AtomicU64::new(NO_BLOCKS) }
    }

    /// Before data that the kernel wrote back: the time of that write is the kernel's to tell, and it tells only
    /// what it changed since it last asked. So the lower time as it was stands until it does.
    pub fn note_written_back(&self) -> Result<(), Errno> {
        let mut known = self.modified.lock();
        *known = match *known {
            Modified::Unknown => Modified::Moved(self.lower_modified()?),
            Modified::Stands(time) | Modified::Moved(time) => Modified::Moved(time),
        };
        Ok(())
    }

    /// The lower file was given `time`; `None` where a write moves its time, as the kernel knows.
    pub fn note_modified(&self, time: Option<Time>) {
        *self.modified.lock() = time.map_or(Modified::Unknown, Modified::Stands);
    }

    /// Before a change that is no write: it moves the lower time, and the kernel tells where that is to be another.
    pub fn note_changed(&self) {
        let mut known = self.modified.lock();
        if matches!(*known, Modified::Stands(_)) {
            *known = Modified::Unknown;
        }
    }

    /// Gives the lower file the time that the kernel has.
    pub fn restore_modified(&self) -> Result<(), Errno> {
        let mut known = self.modified.lock();
        if let Modified::Moved(time) = *known {
            *known = Modified::Unknown;
            at::set_modified(self.io.lower_fd(), time.into())?;
            *known = Modified::Stands(time);
        }
        Ok(())
    }

    /// Leaves the file sealed and with the time that the kernel has.
    pub fn seal(&self) -> Result<(), FsError> {
        let known = *self.modified.lock();
        let time = match known {
            Modified::Unknown => None,
            Modified::Stands(time) | Modified::Moved(time) => Some(time),
        };
        if self.io.seal_with(time.map(|time| (time.seconds, time.nanoseconds)))? {
            let mut now = self.modified.lock();
            if let (Some(time), true) = (time, *now == known) {
                *now = Modified::Stands(time);
            }
        }
        Ok(())
    }

    /// Notes the blocks that the file takes now, which was just synced; whether they are others than at the last time.
    fn note_synced_blocks(&self) -> bool {
        let blocks = rustix::fs::fstat(self.io.lower_fd()).map_or(NO_BLOCKS, |stat| stat.st_blocks as u64);
        self.synced_blocks.swap(blocks, Ordering::AcqRel) != blocks || blocks == NO_BLOCKS
    }

    fn lower_modified(&self) -> Result<Time, Errno> {
        rustix::fs::fstat(self.io.lower_fd()).map(|stat| modified(&stat))
    }
}

/// The open file, if any, and how many handles count on it.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // Each is one fact of its own.
pub struct FileSlot {
    /// Present while handles are open; absent again when descriptors run short.
    pub open: Option<Box<OpenFile>>,
    /// Handles the kernel holds.
    pub handles: u32,
    /// Those of them that may write; while there are any, the kernel may hold data that is not here yet.
    pub writers: u32,
    /// No handle counts on it, but it could not be sealed; the node is held for it ([`NodeTable::hold`]).
    pub left_open: bool,
    /// No handle counts on it, but it stays open for the next one (`kept`).
    pub kept: bool,
    /// It stands in the queue of kept files.
    pub queued: bool,
    /// It was opened again since it was queued.
    pub used_again: bool,
}

/// Names beyond the first, and what keeps a nameless node alive. Rare, so kept out of line.
#[derive(Default)]
struct Extra {
    links: Vec<PackedLink>,
    pin: Option<Arc<OwnedFd>>,
}

/// A [`Link`] in one allocation: parent u64, then the lower name.
#[derive(PartialEq, Eq)]
struct PackedLink(Box<[u8]>);

impl PackedLink {
    fn new(parent: u64, name: &str) -> Self {
        Self([&parent.to_ne_bytes(), name.as_bytes()].concat().into())
    }

    fn is(&self, parent: u64, name: &str) -> bool {
        self.0[..8] == parent.to_ne_bytes() && self.0[8..] == *name.as_bytes()
    }

    fn unpacked(&self) -> Link {
        let (parent, name) = self.0.split_first_chunk().expect("made with a parent");
        let name = std::str::from_utf8(name).expect("made of a name");
        Link { parent: u64::from_ne_bytes(*parent), name: name.into() }
    }
}

#[derive(Default)]
struct Links {
    first: Option<PackedLink>,
    extra: Option<Box<Extra>>,
}

impl Links {
    fn add(&mut self, kind: Kind, parent: u64, name: &str) {
        if self.first.as_ref().is_some_and(|link| link.is(parent, name)) {
            return;
        }
        let previous = self.first.replace(PackedLink::new(parent, name));
        if kind == Kind::Dir {
            return;
        }
        if let Some(previous) = previous {
            let extra = self.extra.get_or_insert_default();
            extra.links.retain(|link| !link.is(parent, name));
            extra.links.push(previous);
        }
    }

    /// Whether it was there.
    fn remove(&mut self, parent: u64, name: &str) -> bool {
        let is_it = |link: &PackedLink| link.is(parent, name);
        let mut was_there = false;
        if self.first.as_ref().is_some_and(is_it) {
            self.first = None;
            was_there = true;
        }
        if let Some(extra) = &mut self.extra {
            let before = extra.links.len();
            extra.links.retain(|link| !is_it(link));
            was_there |= extra.links.len() < before;
            if self.first.is_none() {
                self.first = extra.links.pop();
            }
        }
        if self.extra.as_ref().is_some_and(|e| e.links.is_empty() && e.pin.is_none()) {
            self.extra = None;
        }
        was_there
    }
}

/// One inode.
pub struct Node {
    /// Node id.
    pub id: u64,
    /// What it is; never changes.
    pub kind: Kind,
    /// Distinguishes two lives of one inode number.
    generation: AtomicU32,
    /// A repair gave the file another size than the kernel may have been told.
    resized: AtomicBool,
    /// Made by this mount and never given a `security.capability`, which the kernel asks for before a first write.
    plain: AtomicBool,
    /// The kernel was told, or may have been, another number of blocks than the open file took when it was last synced.
    told_otherwise: AtomicBool,
    /// How often the kernel was told of it; changed under the lock of its shard.
    lookups: AtomicU64,
    links: Mutex<Links>,
    /// The open file.
    pub file: RwLock<FileSlot>,
}

// A million cached inodes must fit a daemon. What an allocator takes for the node and for a link of 43 characters, and
// the slot in a table that just grew, stay below 200 bytes.
const ALLOCATION: usize = 16;
const NODE_BYTES: usize =
    (2 * size_of::<usize>() + size_of::<Node>() + size_of::<usize>()).next_multiple_of(ALLOCATION);
const LINK_BYTES: usize = (8 + 43 + size_of::<usize>()).next_multiple_of(ALLOCATION);
const _: () = assert!(NODE_BYTES + LINK_BYTES + 16 * (size_of::<Known>() + 1) / 7 < 200);

impl Node {
    fn new(id: u64, kind: Kind, generation: u32) -> Self {
        Self {
            id,
            kind,
            generation: AtomicU32::new(generation),
            resized: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            told_otherwise: AtomicBool::new(false),
            lookups: AtomicU64::new(0),
            links: Mutex::default(),
            file: RwLock::default(),
        }
    }

    /// The generation to be told in answer to a lookup. It changes after a repair of the size: the kernel keeps the size
    /// that it was told once, and takes another one for another inode only.
    pub fn generation(&self) -> u32 {
        if self.resized.swap(false, Ordering::AcqRel) {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.generation.load(Ordering::Acquire)
    }

    /// A repair changed the size of the file.
    pub fn note_resized(&self) {
        self.resized.store(true, Ordering::Release);
    }

    /// Whether one did since the file was last looked up.
    pub fn is_resized(&self) -> bool {
        self.resized.load(Ordering::Acquire)
    }

    /// The inode was just made, so it has no `security.capability`.
    pub fn note_new(&self) {
        self.plain.store(true, Ordering::Relaxed);
    }

    /// To be called before it gets one.
    pub fn note_capability(&self) {
        self.plain.store(false, Ordering::Relaxed);
    }

    /// Whether the inode is known to have no `security.capability`.
    pub fn lacks_capability(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    /// The kernel is being told that the file takes `blocks`.
    pub fn note_told(&self, blocks: u64) {
        let as_synced = |open: &OpenFile| open.synced_blocks.load(Ordering::Acquire) == blocks;
        // Not waiting for who opens or closes it.
        let known = self.file.try_read().is_some_and(|slot| slot.open.as_deref().is_none_or(as_synced));
        if !known {
            self.told_otherwise.store(true, Ordering::Release);
        }
    }

    /// Whether the kernel may know another number of blocks than the file takes, which was just synced. It is asked once
    /// after each sync, and whoever gets `true` has the kernel ask again.
    pub fn has_other_blocks(&self) -> bool {
        let told_otherwise = self.told_otherwise.swap(false, Ordering::AcqRel);
        let slot = self.file.read();
        slot.open.as_ref().is_none_or(|open| open.note_synced_blocks()) || told_otherwise
    }

    /// A known name, the newest first.
    pub fn link(&self) -> Option<Link> {
        self.links.lock().first.as_ref().map(PackedLink::unpacked)
    }

    /// Runs `action` with a known name, again when a rename came between.
    pub fn by_name<R>(&self, action: impl Fn(&Link) -> Result<R, FsError>) -> Result<R, FsError> {
        for _ in 0..RENAME_RETRIES {
            let link = self.link().ok_or(FsError::Os(Errno::NOENT))?;
            match action(&link) {
                Err(FsError::Os(Errno::NOENT | Errno::STALE | Errno::NOTDIR)) => std::thread::yield_now(),
                other => return other,
            }
        }
        Err(FsError::Os(Errno::STALE))
    }

    /// How many names are known.
    pub fn known_links(&self) -> usize {
        let links = self.links.lock();
        usize::from(links.first.is_some()) + links.extra.as_ref().map_or(0, |e| e.links.len())
    }

    /// Remembers a name. A directory has one name only.
    pub fn add_link(&self, parent: u64, name: &str) {
        self.links.lock().add(self.kind, parent, name);
    }

    /// Forgets a name.
    pub fn remove_link(&self, parent: u64, name: &str) {
        self.links.lock().remove(parent, name);
    }

    /// Forgets every name: the inode has none any more.
    pub fn forget_links(&self) {
        let mut links = self.links.lock();
        links.first = None;
        if let Some(extra) = &mut links.extra {
            extra.links.clear();
        }
    }

    /// Puts the second name in the place of the first, if it has that; nobody sees both, or none.
    pub fn move_link(&self, (old_parent, old): (u64, &str), (parent, name): (u64, &str)) {
        let mut links = self.links.lock();
        if links.remove(old_parent, old) {
            links.add(self.kind, parent, name);
        }
    }

    /// Keeps a descriptor of the inode, for the time after its last name is gone.
    pub fn pin(&self, fd: OwnedFd) {
        self.links.lock().extra.get_or_insert_default().pin = Some(Arc::new(fd));
    }

    /// Lets the descriptor go, after all.
    pub fn unpin(&self) {
        if let Some(extra) = &mut self.links.lock().extra {
            extra.pin = None;
        }
    }

    /// The kept descriptor.
    pub fn pinned(&self) -> Option<Arc<OwnedFd>> {
        self.links.lock().extra.as_ref().and_then(|e| e.pin.clone())
    }
}

/// A node that is found by its id.
struct Known(Arc<Node>);

impl Borrow<u64> for Known {
    fn borrow(&self) -> &u64 {
        &self.0.id
    }
}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Known {}

/// All inodes the kernel knows.
pub struct NodeTable {
    shards: Vec<Mutex<HashSet<Known>>>,
}

impl NodeTable {
    /// A table that holds the root, for ever.
    pub fn new() -> Self {
        let table = Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() };
        let root = Node::new(ROOT_ID, Kind::Dir, 0);
        root.lookups.store(u64::MAX / 2, Ordering::Relaxed);
        table.shard(ROOT_ID).lock().insert(Known(Arc::new(root)));
        table
    }

    fn shard(&self, id: u64) -> &Mutex<HashSet<Known>> {
        &self.shards[(id % SHARDS as u64) as usize]
    }

    /// The node `id`, if the kernel may name it.
    pub fn find(&self, id: u64) -> Option<Arc<Node>> {
        self.shard(id).lock().get(&id).map(|known| known.0.clone())
    }

    /// The node `id` after one more lookup; made when it is new. Its name is remembered.
    pub fn look_up(&self, id: u64, kind: Kind, parent: u64, name: &str) -> Arc<Node> {
        let mut shard = self.shard(id).lock();
        let known = shard.get(&id).map(|known| known.0.clone());
        let node = known.filter(|node| node.kind == kind).unwrap_or_else(|| {
            // Where the lower inode was replaced behind the mount's back, the kernel learns it by the generation.
            let generation = shard.get(&id).map_or(0, |old| old.0.generation().wrapping_add(1));
            let made = Arc::new(Node::new(id, kind, generation));
            shard.replace(Known(made.clone()));
            made
        });
        node.lookups.fetch_add(1, Ordering::Relaxed);
        node.add_link(parent, name);
        node
    }

    /// Keeps the node `id` as one more lookup would; `false` where it is unknown.
    pub fn hold(&self, id: u64) -> bool {
        let shard = self.shard(id).lock();
        shard.get(&id).map(|known| known.0.lookups.fetch_add(1, Ordering::Relaxed)).is_some()
    }

    /// Takes back `count` lookups; gives the node when those were the last.
    pub fn forget(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        if id == ROOT_ID {
            return None;
        }
        let mut shard = self.shard(id).lock();
        let lookups = &shard.get(&id)?.0.lookups;
        let left = lookups.load(Ordering::Relaxed).saturating_sub(count);
        lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
        let gone = shard.take(&id).map(|known| known.0);
        if shard.capacity() > 4 * (shard.len() + 16) {
            shard.shrink_to_fit();
        }
        gone
    }

    /// How many inodes are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lives_until_the_last_lookup_is_forgotten() {
        let table = NodeTable::new();
        table.look_up(7, Kind::File, ROOT_ID, "a");
        let node = table.look_up(7, Kind::File, ROOT_ID, "b");
        assert_eq!(node.known_links(), 2);
        assert!(table.forget(7, 1).is_none());
        assert_eq!(table.forget(7, 1).map(|n| n.id), Some(7));
        assert!(table.find(7).is_none());
        assert!(table.forget(ROOT_ID, u64::MAX).is_none());
    }

    #[test]
    fn removing_a_name_leaves_the_others() {
        let node = Node::new(7, Kind::File, 0);
        node.add_link(1, "a");
        node.add_link(1, "b");
        node.add_link(2, "a");
        node.add_link(1, "b");
        assert_eq!(node.known_links(), 3);
        node.remove_link(1, "b");
        node.remove_link(2, "a");
        assert_eq!(node.link(), Some(Link { parent: 1, name: "a".into() }));
        node.remove_link(1, "a");
        assert_eq!(node.known_links(), 0);
        assert_eq!(node.link(), None);
    }
}
