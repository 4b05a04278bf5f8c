//! What a mount was asked for, how long it took and how many bytes went through. Written by `server`, read by the
//! command line. What the kernel answers from its caches does not show.

use std::time::Instant;

use crate::sys::figures::{Count, Timed, Timing};

/// Counted while the mount serves.
#[derive(Debug, Default)]
pub struct Traffic {
    pub(super) reads: Timed,
    pub(super) writes: Timed,
    pub(super) others: Timed,
    pub(super) read_bytes: Count,
    pub(super) written_bytes: Count,
}

/// The numbers at a moment.
#[derive(Debug, Clone, Copy)]
pub struct TrafficNow {
    /// Reads.
    pub reads: Timing,
    /// Writes.
    pub writes: Timing,
    /// Everything else.
    pub others: Timing,
    /// Bytes given to the kernel.
    pub read_bytes: u64,
    /// Bytes taken from the kernel.
    pub written_bytes: u64,
}

impl Traffic {
    /// The numbers now.
    pub fn now(&self) -> TrafficNow {
        TrafficNow {
            reads: self.reads.read(),
            writes: self.writes.read(),
            others: self.others.read(),
            read_bytes: self.read_bytes.read(),
            written_bytes: self.written_bytes.read(),
        }
    }

    pub(super) fn note_read(&self, begin: Instant, bytes: usize) {
        self.reads.note(begin.elapsed());
        self.read_bytes.add(bytes as u64);
    }

    pub(super) fn note_write(&self, begin: Instant, bytes: usize) {
        self.writes.note(begin.elapsed());
        self.written_bytes.add(bytes as u64);
    }
}
