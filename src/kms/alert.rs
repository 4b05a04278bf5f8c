//! Staying awake for a moment: after an answer, an event loop with few callers looks for the next call before it sleeps.
//!
//! Made by the server, one for each of its loops. To wake a processor can take longer than a call, and a caller that
//! waits for each answer pays for it each time. Looking costs processor time, so it goes on only while it finds calls: a
//! look in vain uses up what several good ones have earned. A machine with one processor needs that for the caller.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long a look lasts.
const LOOK: Duration = Duration::from_micros(80);
/// Connections above which there is mostly somebody whose call is there.
const FEW_CONNECTIONS: usize = 4;
/// Credit of a loop whose looks find calls.
const FULL_CREDIT: u32 = 64;
/// What a look in vain takes of it; one that finds a call gives 1.
const VAIN_LOOK: u32 = 8;
/// Without credit, one answer in so many is followed by a look.
const PROBE_EVERY: u64 = 128;

/// The looks of one event loop.
#[derive(Debug)]
pub(super) struct Alert {
    is_on: bool,
    answers: AtomicU64,
    answered: Notify,
}

impl Alert {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { is_on: processors > 1, answers: AtomicU64::new(0), answered: Notify::new() }
    }

    /// Notes that a call was answered.
    pub(super) fn answered(&self) {
        if self.is_on {
            self.answers.fetch_add(1, Ordering::Relaxed);
            self.answered.notify_one();
        }
    }

    /// Looks after answers, as long as the loop lives. `connections` are those of the loop.
    pub(super) async fn keep(&self, connections: &AtomicUsize) {
        let mut credit = FULL_CREDIT;
        loop {
            self.answered.notified().await;
            let seen = self.answers.load(Ordering::Relaxed);
            let is_few = connections.load(Ordering::Relaxed) <= FEW_CONNECTIONS;
            if is_few && (credit >= VAIN_LOOK || seen.is_multiple_of(PROBE_EVERY)) {
                credit = self.look(seen, credit).await;
            }
        }
    }

    /// Polls the sockets without sleeping until no call came for a while; the credit that is left.
    async fn look(&self, mut seen: u64, mut credit: u32) -> u32 {
        let mut end = Instant::now() + LOOK;
        loop {
            // Everybody else has their turn first, the sockets are asked, and nobody sleeps.
            tokio::task::yield_now().await;
            let now = self.answers.load(Ordering::Relaxed);
            if now != seen {
                (seen, credit) = (now, FULL_CREDIT.min(credit + 1));
                end = Instant::now() + LOOK;
            } else if Instant::now() >= end {
                return credit.saturating_sub(VAIN_LOOK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_in_vain_come_to_an_end_and_good_ones_go_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let alert = Alert { is_on: true, answers: AtomicU64::new(0), answered: Notify::new() };
            let mut credit = FULL_CREDIT;
            while credit >= VAIN_LOOK {
                let left = alert.look(0, credit).await;
                assert_eq!(left, credit - VAIN_LOOK);
                credit = left;
            }
            // An answer was given since the look began: that look has paid, and the one after it was in vain.
            alert.answered();
            assert_eq!(alert.look(0, 20).await, 20 + 1 - VAIN_LOOK);
        });
    }
}
