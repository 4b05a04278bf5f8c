//! What the kernel remembers of files, where it must be told to write back or to ask again.
//!
//! Called by the adapter's parts. [`KernelCache::write_back`] must not be called on a serving thread.

use std::io;
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};

/// An offset that stands for "the attributes alone".
const ATTRIBUTES: i64 = -1;

/// The kernel's cache of one mount.
#[derive(Clone, Default)]
pub struct KernelCache(Arc<OnceLock<Notifier>>);

impl KernelCache {
    /// To be called once, when the mount is there; until then nothing is cached.
    pub fn connect(&self, notifier: Notifier) {
        let _ = self.0.set(notifier);
    }

    /// Makes the kernel write back what it has collected of the file. It needs a serving thread for that.
    pub fn write_back(&self, id: INodeNo) -> io::Result<()> {
        self.0.get().map_or(Ok(()), |notifier| notifier.inval_inode(id, 0, 0))
    }

    /// Makes the kernel ask for the attributes before it shows them again; those that it keeps itself while it collects
    /// writes (size, time of the last write) stay. Waits for nothing.
    pub fn forget_attributes(&self, id: INodeNo) {
        // It fails where the kernel does not know the inode any more.
        let _ = self.0.get().map(|notifier| notifier.inval_inode(id, ATTRIBUTES, 0));
    }
}
