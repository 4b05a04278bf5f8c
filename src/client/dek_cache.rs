//! The cache of unwrapped data keys: bounded, expiring, in locked memory, wiped on eviction; one fetch a file at a time.
//!
//! Called by `volume`, which says how a key is fetched. Must never hand out a key of a master key that was revoked
//! while the fetch was under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::crypto::DataKey;

/// Names a data key: the id of the file or volume record it belongs to.
pub type DekId = [u8; 16];
/// A fetch is shared by those in whose name it is made: what one user is refused another may have.
type FlightId = (DekId, Option<u32>);
/// A fetch that was overtaken by a revocation is tried again this often.
const MAX_OVERTAKEN: usize = 4;
/// A caller waits this long for another caller's fetch, then fetches for itself.
const MAX_FLIGHT_WAIT: Duration = Duration::from_secs(30);
/// Keys fetched ahead of need of which nobody has needed any yet: at most so many, and a share of what is kept.
const UNUSED_AHEAD: usize = 1024;
const UNUSED_SHARE: usize = 8;
/// Half of those that were fetched in vain are forgiven after this long.
const FORGIVE_AFTER: Duration = Duration::from_mins(1);

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Keys kept; the least recently used is dropped first.
    pub capacity: usize,
    /// Age at which a key is dropped, used or not.
    pub ttl: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { capacity: 16 * 1024, ttl: Duration::from_mins(15) }
    }
}

/// Data keys by id, with the wrap each came from.
pub struct DekCache<E> {
    limits: CacheLimits,
    state: Mutex<State<E>>,
}

struct State<E> {
    entries: HashMap<DekId, Entry>,
    /// Entries by time of last use.
    by_use: BTreeMap<u64, DekId>,
    flights: HashMap<FlightId, Arc<Flight<E>>>,
    tick: u64,
    /// Counts revocations, so that a fetch notices one that happened meanwhile.
    revocations: u64,
    /// Keys fetched ahead and not needed yet, those that went unused with them; and when some were last forgiven.
    unused_ahead: usize,
    forgiven: Instant,
}

struct Entry {
    data_key: DataKey,
    wrap: [u8; 32],
    key_arn: Arc<str>,
    born: Instant,
    last_use: u64,
    /// Fetched before anybody needed it, and not needed since.
    ahead: bool,
}

impl Entry {
    fn new(data_key: DataKey, wrap: [u8; 32], key_arn: &str) -> Self {
        Self { data_key, wrap, key_arn: key_arn.into(), born: Instant::now(), last_use: 0, ahead: false }
    }
}

/// A fetch under way, which others of the same file wait for.
struct Flight<E> {
    outcome: Mutex<Option<Result<(), E>>>,
    landed: Condvar,
}

enum Turn<E> {
    Hit(DataKey),
    Wait(Arc<Flight<E>>),
    Fetch(Arc<Flight<E>>, u64),
}

impl<E: Clone> DekCache<E> {
    /// An empty cache.
    pub fn new(limits: CacheLimits) -> Self {
        let state = State {
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            flights: HashMap::new(),
            tick: 0,
            revocations: 0,
            unused_ahead: 0,
            forgiven: Instant::now(),
        };
        Self { limits, state: Mutex::new(state) }
    }

    /// The key of `id` under the wrap whose hash is `wrap`, if it is held.
    pub fn get(&self, id: DekId, wrap: &[u8; 32]) -> Option<DataKey> {
        self.state.lock().hit(id, wrap, self.limits.ttl)
    }

    /// The key of `id` under the wrap whose hash is `wrap`: from the cache, from a fetch under way in the name of the same
    /// `user`, or by `fetch`.
    pub fn get_or_fetch(
        &self,
        id: DekId,
        wrap: &[u8; 32],
        key_arn: &str,
        user: Option<u32>,
        mut fetch: impl FnMut() -> Result<DataKey, E>,
    ) -> Result<DataKey, E> {
        for _ in 0..MAX_OVERTAKEN {
            match self.turn((id, user), wrap) {
                Turn::Hit(data_key) => return Ok(data_key),
                Turn::Wait(flight) => {
                    if let Some(Err(e)) = flight.wait() {
                        return Err(e);
                    }
                }
                Turn::Fetch(flight, revocations) => {
                    let landing = Landing { cache: self, id: (id, user), flight: &flight };
                    let fetched = fetch();
                    let kept = fetched.map(|data_key| {
                        let entry = Entry::new(data_key.duplicate(), *wrap, key_arn);
                        self.insert(id, entry, revocations).then_some(data_key)
                    });
                    landing.report(kept.as_ref().map(|_| ()).map_err(Clone::clone));
                    if let Some(data_key) = kept? {
                        return Ok(data_key);
                    }
                }
            }
        }
        fetch()
    }

    fn turn(&self, id: FlightId, wrap: &[u8; 32]) -> Turn<E> {
        let mut state = self.state.lock();
        if let Some(data_key) = state.hit(id.0, wrap, self.limits.ttl) {
            return Turn::Hit(data_key);
        }
        if let Some(flight) = state.flights.get(&id) {
            return Turn::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight { outcome: Mutex::new(None), landed: Condvar::new() });
        state.flights.insert(id, Arc::clone(&flight));
        Turn::Fetch(flight, state.revocations)
    }

    /// Keeps a key that its owner just made or fetched, unless a revocation came in between.
    fn insert(&self, id: DekId, mut entry: Entry, revocations: u64) -> bool {
        let mut state = self.state.lock();
        if state.revocations != revocations {
            return false;
        }
        state.remove(id);
        while state.entries.len() >= self.limits.capacity {
            let Some((_, oldest)) = state.by_use.pop_first() else { break };
            state.entries.remove(&oldest);
        }
        state.tick += 1;
        entry.last_use = state.tick;
        state.unused_ahead += usize::from(entry.ahead);
        state.by_use.insert(entry.last_use, id);
        state.entries.insert(id, entry);
        true
    }

    /// Keeps the key of a file just created.
    pub fn put(&self, id: DekId, wrap: [u8; 32], key_arn: &str, data_key: DataKey) {
        let revocations = self.revocations();
        self.insert(id, Entry::new(data_key, wrap, key_arn), revocations);
    }

    /// Keeps a key that was fetched before anybody needs it, unless there were revocations since `revocations`.
    pub fn put_ahead(&self, id: DekId, wrap: [u8; 32], key_arn: &str, data_key: DataKey, revocations: u64) {
        let entry = Entry { ahead: true, ..Entry::new(data_key, wrap, key_arn) };
        self.insert(id, entry, revocations);
    }

    /// What [`Self::put_ahead`] is to be told: asked for before the fetch.
    pub fn revocations(&self) -> u64 {
        self.state.lock().revocations
    }

    /// Whether the key of `id` under the wrap whose hash is `wrap` is held. It does not count as used by that.
    pub fn holds(&self, id: DekId, wrap: &[u8; 32]) -> bool {
        let state = self.state.lock();
        state.entries.get(&id).is_some_and(|e| e.wrap == *wrap && e.born.elapsed() < self.limits.ttl)
    }

    /// How many keys may be fetched ahead of need now: fewer, the more were fetched so and not needed.
    pub fn room_ahead(&self) -> usize {
        let mut state = self.state.lock();
        if state.forgiven.elapsed() >= FORGIVE_AFTER {
            state.unused_ahead /= 2;
            state.forgiven = Instant::now();
        }
        UNUSED_AHEAD.min(self.limits.capacity / UNUSED_SHARE).saturating_sub(state.unused_ahead)
    }

    /// Drops and wipes every key that `key_arn` wraps; fetches under way will ask again.
    pub fn revoke(&self, key_arn: &str) -> usize {
        self.drop_where(|entry| entry.key_arn.as_ref() == key_arn, true)
    }

    /// Drops and wipes every key.
    pub fn clear(&self) -> usize {
        self.drop_where(|_| true, true)
    }

    /// Drops and wipes keys past their age.
    pub fn expire(&self) -> usize {
        let ttl = self.limits.ttl;
        self.drop_where(|entry| entry.born.elapsed() >= ttl, false)
    }

    fn drop_where(&self, unwanted: impl Fn(&Entry) -> bool, revokes: bool) -> usize {
        let mut state = self.state.lock();
        state.revocations += u64::from(revokes);
        let ids: Vec<DekId> = state.entries.iter().filter(|(_, e)| unwanted(e)).map(|(id, _)| *id).collect();
        for id in &ids {
            state.remove(*id);
        }
        ids.len()
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<E> State<E> {
    fn hit(&mut self, id: DekId, wrap: &[u8; 32], ttl: Duration) -> Option<DataKey> {
        let entry = self.entries.get(&id)?;
        if entry.born.elapsed() >= ttl {
            self.remove(id);
            return None;
        }
        self.tick += 1;
        let tick = self.tick;
        let entry = self.entries.get_mut(&id).filter(|e| e.wrap == *wrap)?;
        self.by_use.remove(&entry.last_use);
        self.by_use.insert(tick, id);
        entry.last_use = tick;
        let first_use = std::mem::take(&mut entry.ahead);
        let data_key = entry.data_key.duplicate();
        self.unused_ahead = self.unused_ahead.saturating_sub(usize::from(first_use));
        Some(data_key)
    }

    fn remove(&mut self, id: DekId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.by_use.remove(&entry.last_use);
        }
    }
}

impl<E: Clone> Flight<E> {
    /// The outcome; `None` when it took too long or the fetcher was lost.
    fn wait(&self) -> Option<Result<(), E>> {
        let mut outcome = self.outcome.lock();
        self.landed.wait_while_for(&mut outcome, |outcome| outcome.is_none(), MAX_FLIGHT_WAIT);
        outcome.clone()
    }
}

/// Ends a flight however the fetch ends, so that nobody waits for a fetcher that panicked.
struct Landing<'a, E: Clone> {
    cache: &'a DekCache<E>,
    id: FlightId,
    flight: &'a Arc<Flight<E>>,
}

impl<E: Clone> Landing<'_, E> {
    fn report(self, outcome: Result<(), E>) {
        *self.flight.outcome.lock() = Some(outcome);
    }
}

impl<E: Clone> Drop for Landing<'_, E> {
    fn drop(&mut self) {
        self.cache.state.lock().flights.remove(&self.id);
        self.flight.outcome.lock().get_or_insert(Ok(()));
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const WRAP: [u8; 32] = [1; 32];

    fn cache(capacity: usize, ttl: Duration) -> DekCache<String> {
        DekCache::new(CacheLimits { capacity, ttl })
    }

    fn id(n: u8) -> DekId {
        [n; 16]
    }

    #[test]
    fn a_second_opener_is_served_from_the_cache_unless_the_wrap_changed() {
        let cache = cache(4, Duration::from_mins(1));
        let calls = AtomicUsize::new(0);
        let fetch = || {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(DataKey::random())
        };
        cache.get_or_fetch(id(1), &WRAP, "arn:a", None, fetch).unwrap();
        cache.get_or_fetch(id(1), &WRAP, "arn:a", None, fetch).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        cache.get_or_fetch(id(1), &[2; 32], "arn:a", None, fetch).unwrap();
        assert_eq!((calls.load(Ordering::Relaxed), cache.len()), (2, 1));
    }

    #[test]
    fn many_openers_of_one_file_share_one_fetch() {
        let cache = cache(4, Duration::from_mins(1));
        let calls = AtomicUsize::new(0);
        let gate = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    gate.wait();
                    let fetch = || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        Ok(DataKey::random())
                    };
                    cache.get_or_fetch(id(1), &WRAP, "arn:a", None, fetch).unwrap();
                });
            }
        });
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_least_recently_used_key_goes_first() {
        let cache = cache(2, Duration::from_mins(1));
        for n in [1, 2, 1, 3] {
            cache.get_or_fetch(id(n), &WRAP, "arn:a", None, || Ok(DataKey::random())).unwrap();
        }
        let refetched = |n| {
            let mut asked = false;
            let fetch = || {
                asked = true;
                Err("not cached".to_owned())
            };
            let _ = cache.get_or_fetch(id(n), &WRAP, "arn:a", None, fetch);
            asked
        };
        assert_eq!((refetched(1), refetched(2), refetched(3)), (false, true, false));
    }

    #[test]
    fn keys_fetched_ahead_make_room_for_more_as_they_are_used_and_count_for_none_after_a_revocation() {
        let cache = cache(8 * 4, Duration::from_mins(1));
        let put = |n, since| cache.put_ahead(id(n), WRAP, "arn:a", DataKey::random(), since);
        assert_eq!(cache.room_ahead(), 4);
        (1..=3).for_each(|n| put(n, cache.revocations()));
        assert!(cache.holds(id(1), &WRAP) && !cache.holds(id(1), &[2; 32]) && !cache.holds(id(4), &WRAP));
        assert_eq!(cache.room_ahead(), 1);
        (0..2).for_each(|_| assert!(cache.get(id(1), &WRAP).is_some()));
        assert_eq!(cache.room_ahead(), 2, "used once or twice, it is one");
        let before = cache.revocations();
        cache.clear();
        put(4, before);
        assert_eq!((cache.len(), cache.room_ahead()), (0, 2), "what went unused still counts for a while");
        (10..20).for_each(|n| put(n, cache.revocations()));
        assert_eq!(cache.room_ahead(), 0);
    }

    #[test]
    fn keys_expire_and_are_revoked_by_master_key() {
        let cache = cache(8, Duration::ZERO);
        cache.put(id(1), WRAP, "arn:a", DataKey::random());
        assert_eq!((cache.expire(), cache.len()), (1, 0));
        let cache = self::cache(8, Duration::from_mins(1));
        cache.put(id(1), WRAP, "arn:a", DataKey::random());
        cache.put(id(2), WRAP, "arn:b", DataKey::random());
        assert_eq!((cache.revoke("arn:a"), cache.len(), cache.clear(), cache.len()), (1, 1, 1, 0));
    }

    #[test]
    fn a_fetch_overtaken_by_a_revocation_asks_again() {
        let cache = cache(8, Duration::from_mins(1));
        let mut calls = 0;
        let outcome = cache.get_or_fetch(id(1), &WRAP, "arn:a", None, || {
            calls += 1;
            if calls == 1 {
                cache.revoke("arn:a");
                return Ok(DataKey::random());
            }
            Err("disabled".to_owned())
        });
        assert_eq!((outcome.err().as_deref(), calls, cache.len()), (Some("disabled"), 2, 0));
    }

    #[test]
    fn a_failed_fetch_fails_its_waiters_and_is_not_remembered() {
        let cache = cache(8, Duration::from_mins(1));
        assert!(cache.get_or_fetch(id(1), &WRAP, "arn:a", None, || Err("down".to_owned())).is_err());
        assert!(cache.get_or_fetch(id(1), &WRAP, "arn:a", None, || Ok(DataKey::random())).is_ok());
    }
}
