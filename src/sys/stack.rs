//! Room for work that goes down a tree with a call for each level.

use std::io;

/// Bytes of address space, of which only what is used takes memory: more levels than descriptors allow.
const DEEP_STACK: usize = 512 << 20;

/// Runs `work` on a thread with a deep stack. Signals are blocked there as they are here.
///
/// Errors: that the thread could not be started, as under a limit of address space.
pub fn on_deep_stack<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(DEEP_STACK).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call for each level, which takes a KiB at least.
    fn go_down(levels: usize) -> u64 {
        let room = std::hint::black_box([1_u64; 128]);
        if levels == 0 { 0 } else { room[levels % room.len()] + go_down(levels - 1) }
    }

    #[test]
    fn work_goes_down_more_levels_than_another_thread_has_room_for() {
        assert_eq!(on_deep_stack(|| go_down(40_000)).unwrap(), 40_000);
    }
}
