//! Counts and times of what happens often: written by relaxed atomics, read as plain numbers, told to Prometheus.
//!
//! Used wherever something is measured. Names nothing: what the numbers are of is for whoever holds them to say.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets of a [`Timing`], in microseconds; what took longer is in none.
pub const BOUNDS_US: [u64; 12] =
    [25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The number now.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often something was done, and how long it took.
#[derive(Debug, Default)]
pub struct Timed {
    count: Count,
    micros: Count,
    buckets: [Count; BOUNDS_US.len()],
}

impl Timed {
    /// Notes that it was done once more.
    pub fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count.add(1);
        self.micros.add(micros);
        if let Some(bucket) = BOUNDS_US.iter().position(|bound| micros <= *bound) {
            self.buckets[bucket].add(1);
        }
    }

    /// The numbers now.
    pub fn read(&self) -> Timing {
        let buckets: [u64; BOUNDS_US.len()] = std::array::from_fn(|place| self.buckets[place].read());
        // What is being noted at this moment may be in one number and not yet in the other.
        let count = self.count.read().max(buckets.iter().sum());
        Timing { count, micros: self.micros.read(), buckets }
    }
}

/// What [`Timed`] had counted at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How often.
    pub count: u64,
    /// Microseconds in all.
    pub micros: u64,
    /// How many took at most so long, and longer than the bound before.
    pub buckets: [u64; BOUNDS_US.len()],
}

impl Timing {
    /// What came since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            micros: self.micros.saturating_sub(before.micros),
            buckets: std::array::from_fn(|place| self.buckets[place].saturating_sub(before.buckets[place])),
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            count: self.count + other.count,
            micros: self.micros + other.micros,
            buckets: std::array::from_fn(|place| self.buckets[place] + other.buckets[place]),
        }
    }

    /// The bound, in microseconds, under which this share (of 100) of them stayed; `None` where nothing was counted or it
    /// took longer than the last bound.
    pub fn percentile(&self, share: u64) -> Option<u64> {
        let wanted = (self.count * share).div_ceil(100).max(1);
        let mut sum = 0;
        BOUNDS_US.iter().zip(&self.buckets).find_map(|(bound, bucket)| {
            sum += bucket;
            (sum >= wanted).then_some(*bound)
        })
    }

    /// Writes it as a histogram of Prometheus; `label` is `NAME="VALUE"`.
    pub fn write_histogram(&self, out: &mut String, name: &str, label: &str) {
        let mut sum = 0;
        for (bound, bucket) in BOUNDS_US.iter().zip(&self.buckets) {
            sum += bucket;
            let seconds = Duration::from_micros(*bound).as_secs_f64();
            let _ = writeln!(out, "{name}_bucket{{{label},le=\"{seconds}\"}} {sum}");
        }
        let _ = writeln!(out, "{name}_bucket{{{label},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{label}}} {}", Duration::from_micros(self.micros).as_secs_f64());
        let _ = writeln!(out, "{name}_count{{{label}}} {}", self.count);
    }
}

/// Writes what goes before the numbers of `name`: `kind` is counter, gauge or histogram.
pub fn write_head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_moves_the_percentiles() {
        let timed = Timed::default();
        (0..99).for_each(|_| timed.note(Duration::from_micros(20)));
        let before = timed.read();
        timed.note(Duration::from_millis(3));
        let now = timed.read();
        assert_eq!(
            (now.percentile(50), now.percentile(99), now.percentile(100)),
            (Some(25), Some(25), Some(5_000))
        );
        let last = now.since(&before);
        assert_eq!((last.count, last.micros, last.percentile(50)), (1, 3_000, Some(5_000)));
        timed.note(Duration::from_secs(9));
        assert_eq!(timed.read().percentile(100), None);
        assert_eq!(before.and(&last), now);
        assert_eq!(Timing::default().percentile(50), None);
    }
}
