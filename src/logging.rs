//! Log lines: one logger for both programs, and a per-call-site rate limit.
//!
//! Called from anywhere. Must never be handed keys or plaintext, and plaintext names only at debug.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("kmsfs") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && !is_late_reply(record.target(), &record.args().to_string()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // A full or closed stderr must not stop the daemon.
            let _ = writeln!(std::io::stderr().lock(), "{level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// The FUSE library's complaint that nobody waits for an answer any more, as after a signal. ENOENT says that; other
/// failures are worth a line.
fn is_late_reply(target: &str, text: &str) -> bool {
    target.starts_with("fuser")
        && text.starts_with("Failed to send FUSE reply")
        && text.ends_with("(os error 2)")
}

/// Sends log lines to standard error from `level` up. A second call changes only the level.
pub fn init(level: LevelFilter) {
    let _ = log::set_logger(&StderrLogger);
    log::set_max_level(level);
}

/// Lets a call site through at most once a second, for lines that a caller can trigger at will.
#[derive(Debug)]
pub struct RateLimit {
    last_second: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// A fresh limit, usable in a `static`.
    pub const fn new() -> Self {
        Self { last_second: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// `Some(n)` when a line may be written now, `n` being how many were held back before it.
    pub fn admit(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if self.last_second.swap(now, Ordering::Relaxed) == now {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_came_too_late_is_no_news_but_a_failed_one_is() {
        let text = |code| format!("Failed to send FUSE reply: {}", std::io::Error::from_raw_os_error(code));
        assert!(is_late_reply("fuser::reply", &text(2)));
        assert!(!is_late_reply("fuser::reply", &text(22)));
        assert!(!is_late_reply("kmsfs::fuse", &text(2)));
    }
}
