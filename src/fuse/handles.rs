//! Open directories by handle number. Open files need no table: their state hangs on the inode.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::tree::{DirStream, FsError};

/// Listings open at a time; each has a descriptor.
const STREAMS_MAX: usize = 16_384;

/// One open listing; its position moves, so one request at a time.
pub type Stream = Arc<Mutex<DirStream>>;

/// All open listings.
#[derive(Default)]
pub struct Streams {
    open: Mutex<HashMap<u64, Stream>>,
    next: AtomicU64,
}

impl Streams {
    /// Keeps `stream` and gives its number.
    pub fn insert(&self, stream: DirStream) -> Result<u64, FsError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open.lock();
        if open.len() >= STREAMS_MAX {
            return Err(FsError::Os(Errno::NFILE));
        }
        open.insert(number, Arc::new(Mutex::new(stream)));
        Ok(number)
    }

    /// The listing `number`.
    pub fn find(&self, number: u64) -> Result<Stream, FsError> {
        self.open.lock().get(&number).cloned().ok_or(FsError::Os(Errno::BADF))
    }

    /// Closes the listing `number`.
    pub fn remove(&self, number: u64) {
        self.open.lock().remove(&number);
    }
}
