//! Writes that the kernel collects are refused when it writes them back (a full disk, a quota, a key): the write call
//! has returned long before. So that no program goes on for ever, the next write through the file is told.
//!
//! Called by `files`. The kernel asks for the mode of a file before each write where it does not trust what it knows;
//! that question is where the answer goes.

use std::collections::HashMap;

use fuser::Errno;
use parking_lot::Mutex;

/// Open files with such writes that are remembered; of more, `fsync` and `close` tell alone.
const FILES_MAX: usize = 4096;

/// The files of a mount that lost writes and are still open.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<u64, Option<Errno>>>);

impl Refusals {
    /// A write-back of the file failed.
    pub fn note(&self, id: u64, errno: Errno) {
        let mut files = self.0.lock();
        if files.len() < FILES_MAX || files.contains_key(&id) {
            files.insert(id, Some(errno));
        }
    }

    /// Why, once for each time that it did.
    pub fn take(&self, id: u64) -> Option<Errno> {
        self.0.lock().get_mut(&id)?.take()
    }

    /// Whether it did since the file was opened first.
    pub fn has(&self, id: u64) -> bool {
        self.0.lock().contains_key(&id)
    }

    /// The file is closed; whether it lost writes, so that the kernel may take it for longer than it is.
    pub fn end(&self, id: u64) -> bool {
        self.0.lock().remove(&id).is_some()
    }
}
