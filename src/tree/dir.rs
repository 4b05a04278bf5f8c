//! Lower directories in use: descriptor, identity and keys, kept in a bounded cache.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::FsError;
use super::dir_record;
use crate::crypto::{DirKey, Place, VolumeKey};
use crate::format::dir::DirId;
use crate::format::name::{self, LowerName, NameError};
use crate::sys::at;

/// Name of the attribute that new objects in a directory inherit their ACL from.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
const ACL_UNKNOWN: u8 = 0;
const ACL_ABSENT: u8 = 1;
const ACL_PRESENT: u8 = 2;

/// One lower directory: its descriptor (`O_PATH`), its verified identity and its keys.
pub struct Dir {
    /// Node id.
    pub node_id: u64,
    /// The directory.
    pub fd: OwnedFd,
    /// Its identity, from the record.
    pub id: DirId,
    /// The keys of its names and attributes.
    pub keys: DirKey,
    default_acl: AtomicU8,
    /// The key that its files take, once it was read.
    default_key: Mutex<Option<Choice>>,
    /// Held while a long name's sidecar and entry are made or removed together.
    pub long_names: Mutex<()>,
}

/// The key that files of a directory take; `None` for the volume's default key.
type Choice = Option<Arc<str>>;

/// What a lower name is in the plaintext tree.
pub enum PlainName {
    /// The entry of this name.
    Name(Vec<u8>),
    /// Nothing: not ours, or a record of ours.
    Hidden,
    /// It is spelled like an entry of ours, but this directory's key did not make it.
    Damaged,
}

impl Dir {
    /// Reads and verifies the record of the directory `fd`, which stands at `place`; `make_up` is asked where there is
    /// none.
    pub fn open(
        volume_key: &VolumeKey,
        node_id: u64,
        fd: OwnedFd,
        place: Option<&Place>,
        make_up: impl FnOnce(&OwnedFd) -> Result<Vec<u8>, FsError>,
    ) -> Result<Self, FsError> {
        let record = match dir_record::read(&fd)? {
            Some(record) => dir_record::or_moved(volume_key, &fd, record, place),
            None => make_up(&fd)?,
        };
        let id = dir_record::identity(volume_key, &record, place)?;
        Ok(Self::with(volume_key, node_id, fd, id, ACL_UNKNOWN))
    }

    /// The directory `fd` just made in `parent` with the identity `id`.
    pub fn made(volume_key: &VolumeKey, node_id: u64, fd: OwnedFd, id: DirId, parent: &Self) -> Self {
        let inherits = parent.default_acl.load(Ordering::Relaxed) != ACL_ABSENT;
        Self::with(volume_key, node_id, fd, id, if inherits { ACL_UNKNOWN } else { ACL_ABSENT })
    }

    fn with(volume_key: &VolumeKey, node_id: u64, fd: OwnedFd, id: DirId, default_acl: u8) -> Self {
        let (keys, default_acl) = (volume_key.dir_key(&id), AtomicU8::new(default_acl));
        let (default_key, long_names) = (Mutex::default(), Mutex::default());
        Self { node_id, fd, id, keys, default_acl, default_key, long_names }
    }

    /// The lower name of `name` in this directory.
    pub fn lower_name(&self, name: &[u8]) -> Result<LowerName, FsError> {
        name::encrypt(&self.keys, name).map_err(|e| match e {
            NameError::TooLong => FsError::Os(Errno::NAMETOOLONG),
            NameError::Invalid | NameError::Forged => FsError::Os(Errno::INVAL),
        })
    }

    /// What the lower entry `entry` is.
    pub fn plain_name(&self, entry: &[u8]) -> PlainName {
        let name = match name::classify(entry) {
            name::Kind::Short => name::decrypt(&self.keys, entry).ok(),
            name::Kind::LongEntry => self.long_name(entry),
            name::Kind::Sidecar | name::Kind::Record | name::Kind::Foreign => return PlainName::Hidden,
        };
        match name {
            Some(name) => PlainName::Name(name),
            // A long name's sidecar goes after its entry: somebody may be removing it.
            None if at::stat(&self.fd, entry).is_err() => PlainName::Hidden,
            None => PlainName::Damaged,
        }
    }

    fn long_name(&self, entry: &[u8]) -> Option<Vec<u8>> {
        let entry = std::str::from_utf8(entry).ok()?;
        let target = at::read_link(&self.fd, name::sidecar_of(entry)?.as_bytes()).ok()?;
        name::sidecar_fits(entry, &target).then(|| name::decrypt(&self.keys, &target).ok())?
    }

    /// Whether new objects inherit an ACL from this directory; asked of the lower filesystem once.
    pub fn has_default_acl(&self) -> bool {
        match self.default_acl.load(Ordering::Relaxed) {
            ACL_ABSENT => false,
            ACL_PRESENT => true,
            _ => {
                let present = at::xattr(&self.fd, DEFAULT_ACL.as_bytes()).is_ok();
                self.default_acl.store(if present { ACL_PRESENT } else { ACL_ABSENT }, Ordering::Relaxed);
                present
            }
        }
    }

    /// The key that its files take, read by `read` where it is not known yet.
    pub fn default_key(&self, read: impl FnOnce() -> Result<Choice, FsError>) -> Result<Choice, FsError> {
        let mut known = self.default_key.lock();
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let key = read()?;
        *known = Some(key.clone());
        Ok(key)
    }

    /// To be called when another key was chosen.
    pub fn forget_default_key(&self) {
        *self.default_key.lock() = None;
    }

    /// To be called when the default ACL may have changed.
    pub fn forget_default_acl(&self) {
        self.default_acl.store(ACL_UNKNOWN, Ordering::Relaxed);
    }
}

struct Slot {
    dir: Arc<Dir>,
    used: AtomicU64,
}

/// The directories used last, at most `capacity` of them. The root is kept besides.
pub struct DirCache {
    root: Arc<Dir>,
    slots: parking_lot::RwLock<HashMap<u64, Slot>>,
    clock: AtomicU64,
    capacity: usize,
}

impl DirCache {
    /// An empty cache for `capacity` directories below `root`.
    pub fn new(root: Arc<Dir>, capacity: usize) -> Self {
        Self { root, slots: parking_lot::RwLock::default(), clock: AtomicU64::new(0), capacity }
    }

    /// The directory of node `id`, if cached.
    pub fn find(&self, id: u64) -> Option<Arc<Dir>> {
        if id == self.root.node_id {
            return Some(self.root.clone());
        }
        let slots = self.slots.read();
        let slot = slots.get(&id)?;
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(slot.dir.clone())
    }

    /// Adds a directory; the ones not used for longest make room.
    pub fn insert(&self, dir: Arc<Dir>) {
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        let mut slots = self.slots.write();
        if slots.len() >= self.capacity {
            shrink(&mut slots, self.capacity - self.capacity / 8 - 1);
        }
        slots.insert(dir.node_id, Slot { dir, used });
    }

    /// Drops the directory of node `id`.
    pub fn remove(&self, id: u64) {
        self.slots.write().remove(&id);
    }

    /// Drops half of the directories, when descriptors run short.
    pub fn halve(&self) {
        let mut slots = self.slots.write();
        let keep = slots.len() / 2;
        shrink(&mut slots, keep);
    }
}

fn shrink(slots: &mut HashMap<u64, Slot>, keep: usize) {
    let mut ages: Vec<u64> = slots.values().map(|s| s.used.load(Ordering::Relaxed)).collect();
    ages.sort_unstable();
    let Some(oldest_kept) = ages.len().checked_sub(keep).and_then(|cut| ages.get(cut)).copied() else {
        slots.clear();
        return;
    };
    slots.retain(|_, slot| slot.used.load(Ordering::Relaxed) >= oldest_kept);
}
