//! The memory that the allocator keeps for later.
//!
//! Called by `cli` for a mount. Knows nothing of what the memory was for.

/// Gives free memory back to the system, where the allocator can.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
