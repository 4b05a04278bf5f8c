//! What the kernel's open files stand for, by handle number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::tree::FsError;

/// Everything of one kind that is open. Numbers begin at 1 and are not used again.
pub struct Handles<T> {
    open: Mutex<HashMap<u64, Arc<T>>>,
    last: AtomicU64,
    most: usize,
}

impl<T> Handles<T> {
    /// Nothing is open; `most` can be at a time.
    pub fn new(most: usize) -> Self {
        Self { open: Mutex::default(), last: AtomicU64::new(0), most }
    }

    /// Keeps `what` and gives its number.
    pub fn insert(&self, what: T) -> Result<u64, FsError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open.lock();
        if open.len() >= self.most {
            return Err(FsError::Os(Errno::NFILE));
        }
        open.insert(number, Arc::new(what));
        Ok(number)
    }

    /// What `number` stands for.
    pub fn find(&self, number: u64) -> Result<Arc<T>, FsError> {
        self.open.lock().get(&number).cloned().ok_or(FsError::Os(Errno::BADF))
    }

    /// Ends `number`, and gives what it stood for.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.lock().remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_until_it_ends_and_does_not_come_back() {
        let handles = Handles::new(2);
        let (first, second) = (handles.insert("a").unwrap(), handles.insert("b").unwrap());
        assert_eq!(*handles.find(first).unwrap(), "a");
        assert!(matches!(handles.insert("c"), Err(FsError::Os(Errno::NFILE))));
        assert_eq!(handles.remove(first).as_deref(), Some(&"a"));
        assert!(matches!(handles.find(first), Err(FsError::Os(Errno::BADF))));
        assert!(handles.remove(first).is_none());
        assert!(handles.insert("c").unwrap() > second);
    }
}
