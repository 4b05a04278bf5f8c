//! The one source of time, so that tests can move it.

use std::time::SystemTime;

use parking_lot::Mutex;

use crate::api::Timestamp;

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct SettableClock(Mutex<Timestamp>);

impl SettableClock {
    /// Stands at `now`.
    pub const fn new(now: Timestamp) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves on.
    pub fn advance_days(&self, days: i64) {
        let mut now = self.0.lock();
        *now = now.plus_days(days);
    }

    /// Moves on.
    pub fn advance_millis(&self, millis: i64) {
        let mut now = self.0.lock();
        *now = now.plus_millis(millis);
    }
}

impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}
