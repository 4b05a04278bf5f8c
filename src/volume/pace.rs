//! A limit on how many files a second long work looks at. Called by `rewrap`.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Work that fell behind may catch up by this much at once.
const BURST: Duration = Duration::from_millis(100);

/// Spreads work over time, for all threads together.
pub(super) struct Pace {
    each: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// At most `per_second` a second; no limit where there is none.
    pub fn new(per_second: Option<u32>) -> Option<Self> {
        let each = Duration::from_secs(1).checked_div(per_second?)?;
        Some(Self { each, next: Mutex::new(Instant::now()) })
    }

    /// Waits for the next turn.
    pub fn wait(&self) {
        let turn = {
            let mut next = self.next.lock();
            let earliest = Instant::now().checked_sub(BURST).unwrap_or(*next);
            let turn = (*next).max(earliest);
            *next = turn + self.each;
            turn
        };
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_given_out_one_after_the_other() {
        let pace = Pace::new(Some(1000)).unwrap();
        let start = *pace.next.lock();
        (0..5).for_each(|_| pace.wait());
        assert!(*pace.next.lock() >= start + Duration::from_millis(5));
        assert!(Pace::new(None).is_none() && Pace::new(Some(0)).is_none());
    }
}
