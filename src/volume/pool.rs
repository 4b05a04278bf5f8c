//! Fresh data keys made ahead of need, so that creating a file does not wait for the key service.
//!
//! Called by [`super::keys`]. There is a stock for each user and master key, so that the service decides for the user who
//! makes the file, and records it. Must never hand out a key that is old, or whose master key was revoked meanwhile.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::tree::{FreshKey, KeyUser};

/// Keys of one stock kept at least while files are being created.
const MIN_TARGET: usize = 8;
/// Keys of one stock kept at most where each is used before it grows old: the more are made at a time, the less often
/// do those who take them, the thread that fetches them and the service wake each other.
const STEADY_TARGET: usize = 64;
/// Keys of one stock kept at most.
const MAX_TARGET: usize = 256;
/// Stocks kept at most; the one not used for longest makes room.
const MAX_STOCKS: usize = 16;
/// A key not taken within this time is wiped.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Whose keys a stock holds, and under which master key.
type Name = (KeyUser, String);

/// The pool. It fills only while keys are being taken, so an idle mount makes no calls.
#[derive(Default)]
pub struct Pool {
    state: Mutex<State>,
    wanted: Condvar,
}

#[derive(Default)]
struct State {
    stocks: HashMap<Name, Stock>,
    closed: bool,
    /// Counts what was wiped on purpose, so that keys asked for before it are not kept.
    generation: u64,
}

struct Stock {
    keys: VecDeque<(Instant, FreshKey)>,
    /// How many keys to hold; grows when the stock is used up or ran dry, shrinks when keys grew old in it.
    target: usize,
    refill: bool,
    used: Instant,
}

impl Default for Stock {
    fn default() -> Self {
        Self { keys: VecDeque::new(), target: 0, refill: false, used: Instant::now() }
    }
}

/// A request to make keys.
pub struct Refill {
    /// For whom.
    pub user: KeyUser,
    /// Under which master key.
    pub key: String,
    /// How many.
    pub count: usize,
    generation: u64,
}

impl Pool {
    /// A key for `user` under `key`, if one is there. Asks for more either way.
    pub fn take(&self, user: KeyUser, key: &str) -> Option<FreshKey> {
        let mut state = self.state.lock();
        let stock = state.stock(user, key);
        stock.drop_old();
        let fresh = stock.keys.pop_front().map(|(_, key)| key);
        if fresh.is_none() {
            stock.target = (stock.target * 2).clamp(MIN_TARGET, MAX_TARGET);
        }
        if stock.keys.len() * 2 <= stock.target && !stock.refill {
            if fresh.is_some() {
                stock.target = stock.target.max((stock.target * 2).min(STEADY_TARGET));
            }
            stock.refill = true;
            self.wanted.notify_one();
        }
        fresh
    }

    /// Waits until keys are wanted, at most `patience`. `None` when none are, or the pool is closed.
    pub fn wait(&self, patience: Duration) -> Option<Refill> {
        let mut state = self.state.lock();
        if !state.closed && !state.stocks.values().any(|stock| stock.refill) {
            self.wanted.wait_for(&mut state, patience);
        }
        state.drop_old();
        if state.closed {
            return None;
        }
        let generation = state.generation;
        state.stocks.iter_mut().find_map(|((user, key), stock)| {
            let count = stock.target.saturating_sub(stock.keys.len());
            stock.refill &= count > 0;
            stock.refill.then(|| Refill { user: *user, key: key.clone(), count, generation })
        })
    }

    /// A request for one key, by a caller that makes it itself.
    pub fn one(&self, user: KeyUser, key: &str) -> Refill {
        Refill { user, key: key.to_owned(), count: 1, generation: self.state.lock().generation }
    }

    /// Hands over what was made for `refill`; an empty batch means that none could be made now.
    pub fn fill(&self, refill: &Refill, fresh: Vec<FreshKey>) {
        let mut state = self.state.lock();
        let void = state.generation != refill.generation || state.closed;
        let stock = state.stock(refill.user, &refill.key);
        if fresh.is_empty() || void {
            stock.refill = false;
            return;
        }
        let now = Instant::now();
        stock.keys.extend(fresh.into_iter().map(|key| (now, key)));
        stock.refill = stock.keys.len() < stock.target;
    }

    /// Wipes all keys, and those being made.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.stocks.clear();
        state.generation += 1;
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
        self.state.lock().stocks.values().map(|stock| stock.keys.len()).sum()
    }
}

impl State {
    /// The stock of that name, which is made where there is none.
    fn stock(&mut self, user: KeyUser, key: &str) -> &mut Stock {
        let name = (user, key.to_owned());
        if self.stocks.len() >= MAX_STOCKS && !self.stocks.contains_key(&name) {
            let idle = self.stocks.iter().min_by_key(|(_, stock)| stock.used).map(|(name, _)| name.clone());
            idle.and_then(|idle| self.stocks.remove(&idle));
        }
        let stock = self.stocks.entry(name).or_default();
        stock.used = Instant::now();
        stock
    }

    fn drop_old(&mut self) {
        self.stocks.values_mut().for_each(Stock::drop_old);
    }
}

impl Stock {
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
            user: KeyUser::Mount,
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
        assert!(pool.take(KeyUser::Mount, "k").is_none());
        let first = pool.wait(Duration::ZERO).unwrap();
        assert_eq!(first.count, MIN_TARGET);
        pool.fill(&first, fresh(first.count));
        assert_eq!(pool.len(), MIN_TARGET);
        assert!(pool.wait(Duration::ZERO).is_none());
        (0..MIN_TARGET).for_each(|_| assert!(pool.take(KeyUser::Mount, "k").is_some()));
        assert_eq!(pool.wait(Duration::ZERO).unwrap().count, 2 * MIN_TARGET);
        assert!(pool.take(KeyUser::Mount, "k").is_none());
        assert_eq!(pool.wait(Duration::ZERO).unwrap().count, 4 * MIN_TARGET);
    }

    #[test]
    fn a_stock_that_is_used_up_is_filled_with_more_at_a_time_up_to_a_bound() {
        let pool = Pool::default();
        pool.take(KeyUser::Mount, "k");
        let mut counts = Vec::new();
        for _ in 0..6 {
            let refill = pool.wait(Duration::ZERO).unwrap();
            counts.push(refill.count);
            pool.fill(&refill, fresh(refill.count));
            while pool.wait(Duration::ZERO).is_none() {
                assert!(pool.take(KeyUser::Mount, "k").is_some(), "it ran dry");
            }
        }
        assert_eq!(counts, [8, 12, 24, 48, 32, 32]);
        assert!(pool.len() <= STEADY_TARGET);
    }

    #[test]
    fn keys_asked_for_before_a_revocation_are_not_kept() {
        let pool = Pool::default();
        pool.take(KeyUser::Mount, "k");
        let refill = pool.wait(Duration::ZERO).unwrap();
        pool.clear();
        pool.fill(&refill, fresh(3));
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn a_closed_pool_ends_waits() {
        let pool = Pool::default();
        pool.take(KeyUser::Mount, "k");
        pool.close();
        assert!(pool.wait(Duration::from_hours(1)).is_none() && pool.is_closed());
    }

    #[test]
    fn each_user_and_master_key_has_a_stock_of_its_own_and_there_are_not_too_many() {
        let pool = Pool::default();
        let (one, two) = (KeyUser::User(1), KeyUser::User(2));
        pool.take(one, "k");
        let refill = pool.wait(Duration::ZERO).unwrap();
        assert_eq!((refill.user, refill.key.as_str()), (one, "k"));
        pool.fill(&refill, fresh(refill.count));
        assert!(
            pool.take(two, "k").is_none() && pool.take(one, "l").is_none() && pool.take(one, "k").is_some()
        );
        for uid in 0..100 {
            pool.take(KeyUser::User(uid), "k");
        }
        assert!(pool.state.lock().stocks.len() <= MAX_STOCKS);
    }
}
