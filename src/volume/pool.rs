//! Fresh data keys made ahead of need, so that creating a file does not wait for the key service.
//!
//! Called by [`super::keys`]. Must never hand out a key that is old, or whose master key was revoked meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::tree::FreshKey;

/// Keys kept at least while files are being created.
const MIN_TARGET: usize = 8;
/// Keys kept at most.
const MAX_TARGET: usize = 256;
/// A key not taken within this time is wiped.
const MAX_AGE: Duration = Duration::from_secs(30);

/// The pool. It fills only while keys are being taken, so an idle mount makes no calls.
#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    wanted: Condvar,
}

#[derive(Default)]
struct State {
    keys: VecDeque<(Instant, FreshKey)>,
    /// How many keys to hold; grows when the pool ran dry, shrinks when keys grew old in it.
    target: usize,
    refill: bool,
    closed: bool,
    /// Counts [`Pool::clear`], so that keys asked for before it are not kept.
    generation: u64,
}

/// A request to make keys.
pub struct Refill {
    /// How many.
    pub count: usize,
    generation: u64,
}

impl Pool {
    /// A key, if one is there. Asks for more either way.
    pub fn take(&self) -> Option<FreshKey> {
        let mut state = self.state.lock();
        state.drop_old();
        let key = state.keys.pop_front().map(|(_, key)| key);
        if key.is_none() {
            state.target = (state.target * 2).clamp(MIN_TARGET, MAX_TARGET);
        }
        if state.keys.len() * 2 <= state.target && !state.refill {
            state.refill = true;
            self.wanted.notify_one();
        }
        key
    }

    /// Waits until keys are wanted, at most `patience`. `None` when none are, or the pool is closed.
    pub fn wait(&self, patience: Duration) -> Option<Refill> {
        let mut state = self.state.lock();
        if !state.refill && !state.closed {
            self.wanted.wait_for(&mut state, patience);
        }
        state.drop_old();
        let wanted = state.refill && !state.closed;
        let count = state.target.saturating_sub(state.keys.len());
        state.refill = wanted && count > 0;
        state.refill.then_some(Refill { count, generation: state.generation })
    }

    /// A request for one key, by a caller that makes it itself.
    pub fn one(&self) -> Refill {
        Refill { count: 1, generation: self.state.lock().generation }
    }

    /// Hands over what was made for `refill`; an empty batch means that none could be made now.
    pub fn fill(&self, refill: &Refill, fresh: Vec<FreshKey>) {
        let mut state = self.state.lock();
        if fresh.is_empty() || state.generation != refill.generation || state.closed {
            state.refill = false;
            return;
        }
        let now = Instant::now();
        state.keys.extend(fresh.into_iter().map(|key| (now, key)));
        state.refill = state.keys.len() < state.target;
    }

    /// Wipes all keys, and those being made.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.keys.clear();
        state.generation += 1;
        state.refill = false;
    }

    /// Wipes keys that grew old.
    pub fn expire(&self) {
        self.state.lock().drop_old();
    }

    /// Wipes all keys and ends every wait.
    pub fn close(&self) {
        self.clear();
        self.state.lock().closed = true;
        self.wanted.notify_all();
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.state.lock().keys.len()
    }
}

impl State {
    fn drop_old(&mut self) {
        let before = self.keys.len();
        while self.keys.front().is_some_and(|(made, _)| made.elapsed() >= MAX_AGE) {
            self.keys.pop_front();
        }
        if self.keys.len() < before {
            self.target = (self.target / 2).max(MIN_TARGET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DataKey;
    use crate::format::{FileId, WrappedKey};

    fn fresh(n: usize) -> Vec<FreshKey> {
        let key = || FreshKey {
            file_id: FileId([0; 16]),
            data_key: DataKey::random(),
            wrapped: WrappedKey { key_arn: "k".into(), material_id: None, blob: vec![] },
        };
        (0..n).map(|_| key()).collect()
    }

    #[test]
    fn an_idle_pool_asks_for_nothing_and_a_dry_one_for_more() {
        let pool = Pool::default();
        assert!(pool.wait(Duration::ZERO).is_none());
        assert!(pool.take().is_none());
        let first = pool.wait(Duration::ZERO).unwrap();
        assert_eq!(first.count, MIN_TARGET);
        pool.fill(&first, fresh(first.count));
        assert_eq!(pool.len(), MIN_TARGET);
        assert!(pool.wait(Duration::ZERO).is_none());
        (0..MIN_TARGET).for_each(|_| assert!(pool.take().is_some()));
        assert!(pool.take().is_none());
        assert_eq!(pool.wait(Duration::ZERO).unwrap().count, 2 * MIN_TARGET);
    }

    #[test]
    fn keys_asked_for_before_a_revocation_are_not_kept() {
        let pool = Pool::default();
        pool.take();
        let refill = pool.wait(Duration::ZERO).unwrap();
        pool.clear();
        pool.fill(&refill, fresh(3));
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn a_closed_pool_ends_waits() {
        let pool = Pool::default();
        pool.take();
        pool.close();
        assert!(pool.wait(Duration::from_hours(1)).is_none() && pool.is_closed());
    }
}
