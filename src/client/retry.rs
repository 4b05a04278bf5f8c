//! Back-off: exponential, with full jitter, bounded in number and in time.
//!
//! Called by [`super::Kms`]. Decides how long to wait, never whether an error is worth it.

use std::time::{Duration, Instant};

use crate::crypto::random_array;

/// How often, and for how long, a call is tried.
#[derive(Debug, Clone, Copy)]
pub struct RetryLimits {
    /// Tries after the first.
    pub retries: u32,
    /// Upper bound of the first wait; each later one may be twice as long.
    pub base: Duration,
    /// Longest single wait.
    pub cap: Duration,
    /// No new try starts later than this after the first.
    pub total: Duration,
}

impl Default for RetryLimits {
    fn default() -> Self {
        Self {
            retries: 8,
            base: Duration::from_millis(20),
            cap: Duration::from_secs(2),
            total: Duration::from_secs(10),
        }
    }
}

/// The waits of one call.
pub struct Backoff {
    limits: RetryLimits,
    tried: u32,
    deadline: Instant,
}

impl Backoff {
    /// Starts the clock of a call.
    pub fn new(limits: RetryLimits) -> Self {
        Self { limits, tried: 0, deadline: Instant::now() + limits.total }
    }

    /// How long to wait before the next try; `None` when it is enough.
    pub fn next_wait(&mut self) -> Option<Duration> {
        if self.tried >= self.limits.retries {
            return None;
        }
        let bound = self.limits.base.saturating_mul(1 << self.tried.min(16)).min(self.limits.cap);
        self.tried += 1;
        let wait = jitter(bound);
        (Instant::now() + wait < self.deadline).then_some(wait)
    }
}

/// A random time up to `bound`, so that callers turned away together do not return together.
pub fn jitter(bound: Duration) -> Duration {
    let fraction = f64::from(u32::from_le_bytes(random_array())) / f64::from(u32::MAX);
    bound.mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_in_number_and_length() {
        let limits = RetryLimits {
            retries: 5,
            base: Duration::from_millis(10),
            cap: Duration::from_millis(40),
            total: Duration::from_mins(1),
        };
        let mut backoff = Backoff::new(limits);
        let waits: Vec<_> = std::iter::from_fn(|| backoff.next_wait()).collect();
        assert_eq!(waits.len(), 5);
        let bounds = [10, 20, 40, 40, 40].map(Duration::from_millis);
        assert!(waits.iter().zip(bounds).all(|(wait, bound)| *wait <= bound), "{waits:?}");
    }

    #[test]
    fn no_try_starts_after_the_total_time() {
        let limits = RetryLimits { total: Duration::ZERO, ..RetryLimits::default() };
        assert!(Backoff::new(limits).next_wait().is_none());
    }

    #[test]
    fn jitter_spreads() {
        let bound = Duration::from_secs(1);
        let samples: Vec<_> = (0..64).map(|_| jitter(bound)).collect();
        assert!(samples.iter().all(|s| *s <= bound));
        assert!(samples.iter().any(|s| *s < bound / 2) && samples.iter().any(|s| *s > bound / 2));
    }
}
