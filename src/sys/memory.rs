//! Locked memory for secrets: an arena of pages that are never swapped, dumped or given to a child.
//!
//! Called by `crypto::Secret` only.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Once;

use parking_lot::Mutex;
use zeroize::Zeroize;

/// Bytes of one slot; the largest secret that fits.
const SLOT_LEN: usize = 64;
/// Bytes mapped at a time.
const CHUNK_LEN: usize = 64 * 1024;

/// Free slots. Chunks are kept for the life of the process: they are few, and unmapping would race with readers.
static FREE: Mutex<Vec<Slot>> = Mutex::new(Vec::new());
static WARN_UNLOCKED: Once = Once::new();

struct Slot(NonNull<u8>);

// SAFETY: a slot is a unique handle to its 64 bytes; nothing else points at them.
unsafe impl Send for Slot {}
// SAFETY: shared access to a slot is read-only.
unsafe impl Sync for Slot {}

fn take_slot() -> Slot {
    let mut free = FREE.lock();
    if free.is_empty() {
        map_chunk(&mut free);
    }
    free.pop().expect("map_chunk adds slots or aborts")
}

fn map_chunk(free: &mut Vec<Slot>) {
    // SAFETY: an anonymous private mapping at an address the kernel chooses touches nothing of ours.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            CHUNK_LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let base = if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast::<u8>()) };
    let Some(base) = base else {
        std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; CHUNK_LEN]>())
    };
    // SAFETY: the range is the mapping just made.
    let locked = unsafe {
        libc::madvise(base.as_ptr().cast(), CHUNK_LEN, libc::MADV_DONTDUMP);
        libc::madvise(base.as_ptr().cast(), CHUNK_LEN, libc::MADV_WIPEONFORK);
        libc::mlock(base.as_ptr().cast(), CHUNK_LEN) == 0
    };
    if !locked {
        WARN_UNLOCKED.call_once(|| {
            log::warn!("key memory could not be locked; raise the limit of locked memory (ulimit -l)");
        });
    }
    for offset in (0..CHUNK_LEN).step_by(SLOT_LEN) {
        // SAFETY: offset stays within the mapping.
        free.push(Slot(unsafe { base.add(offset) }));
    }
}

/// `N` bytes (at most 64) in locked memory; wiped and returned to the arena on drop.
pub struct LockedBytes<const N: usize>(Option<Slot>);

impl<const N: usize> LockedBytes<N> {
    /// All zero.
    pub fn zeroed() -> Self {
        const { assert!(N <= SLOT_LEN) };
        Self(Some(take_slot()))
    }

    fn pointer(&self) -> *mut [u8; N] {
        self.0.as_ref().expect("the slot is taken only by drop").0.as_ptr().cast()
    }
}

impl<const N: usize> Deref for LockedBytes<N> {
    type Target = [u8; N];
    fn deref(&self) -> &[u8; N] {
        // SAFETY: the slot is ours alone, initialised (the kernel and every drop leave zeros), and at least N long.
        unsafe { &*self.pointer() }
    }
}

impl<const N: usize> DerefMut for LockedBytes<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { &mut *self.pointer() }
    }
}

impl<const N: usize> Drop for LockedBytes<N> {
    fn drop(&mut self) {
        (**self).zeroize();
        if let Some(slot) = self.0.take() {
            FREE.lock().push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_slot_is_wiped_and_reused() {
        let mut secret = LockedBytes::<32>::zeroed();
        secret.fill(7);
        let place = secret.pointer();
        drop(secret);
        let again: Vec<_> = (0..2000).map(|_| LockedBytes::<32>::zeroed()).collect();
        assert!(again.iter().any(|s| s.pointer() == place));
        assert!(again.iter().all(|s| s.iter().all(|b| *b == 0)));
    }
}
