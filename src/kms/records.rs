//! The records in memory, from the moment on at which a daemon answers: those that have not been read yet are read when
//! somebody asks for them.
//!
//! Held by the pipeline. A store that was at rest is read by [`Records::read_rest`] beside the calls. Until that has come
//! to its end, keys and aliases are read singly, each authentic by its MAC; whoever needs the whole (a list, a grant, a
//! change) waits for the end. Where the end shows that the store was meddled with, nothing more is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::api::KeyId;

use super::home::Home;
use super::model::Key;
use super::state::{LoadError, Policies, State, fill, read_alias, read_key};
use super::store::{Store, Table};

const READING: u8 = 0;
const WHOLE: u8 = 1;
const BROKEN: u8 = 2;

/// Everything the daemon knows.
pub struct Records {
    state: RwLock<State>,
    phase: AtomicU8,
    /// Who waits for the end, and what was found if it is a bad one.
    waiting: (Mutex<Option<LoadError>>, Condvar),
    store: Arc<dyn Store>,
    own: (String, String),
}

impl Records {
    /// Reads the records of `store`: all of them, or who may call and no more where the rest can wait. `own` is the
    /// home of records that do not tell theirs.
    pub fn open(store: Arc<dyn Store>, own: Home<'_>) -> Result<Self, LoadError> {
        let is_checked = store.is_checked();
        let load = if is_checked { State::load } else { State::load_identities };
        let state = load(&*store, own)?;
        Ok(Self {
            state: RwLock::new(state),
            phase: AtomicU8::new(if is_checked { WHOLE } else { READING }),
            waiting: Default::default(),
            store,
            own: (own.account.to_owned(), own.region.to_owned()),
        })
    }

    /// Everything; waits until it is there.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.wait();
        self.state.read()
    }

    /// Everything, to be changed; waits until it is there.
    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.wait();
        self.state.write()
    }

    /// What is there so far: users, roles, their policies and access keys for sure.
    pub fn read_early(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// The key `id` of `home`.
    pub fn key(&self, home: Home<'_>, id: KeyId) -> Option<Arc<Key>> {
        let known = self.state.read().key(home, id);
        if known.is_some() || !self.is_reading() {
            return known;
        }
        self.or_break(self.fetch_key(home, id))
    }

    /// The key that the alias `name` of `home` points to.
    pub fn alias_target(&self, home: Home<'_>, name: &str) -> Option<Arc<Key>> {
        let known = self.state.read().alias_target(home, name);
        if known.is_some() || !self.is_reading() {
            return known;
        }
        let row = self.store.get(Table::Alias, &home.row(self.own(), &name)).map_err(LoadError::from);
        let alias = row.and_then(|row| row.map(|row| read_alias(&row, self.own())).transpose());
        self.key(home, self.or_break(alias)?.target)
    }

    /// Whether it is still being read.
    pub fn is_reading(&self) -> bool {
        self.phase.load(Ordering::Acquire) == READING
    }

    /// Whether the store was found to be meddled with: nothing of it may be told.
    pub fn is_broken(&self) -> bool {
        self.phase.load(Ordering::Acquire) == BROKEN
    }

    /// Reads what is left, and shows it to `seen` before anybody else. On an error, all who wait are let go, and
    /// `is_broken`.
    pub fn read_rest(&self, seen: impl FnOnce(&mut State)) -> Result<(), LoadError> {
        if !self.is_reading() {
            return self.waiting.0.lock().take().map_or(Ok(()), Err);
        }
        let _end = End(self);
        fill(&self.state, &*self.store, self.own(), &|| !self.is_reading())?;
        seen(&mut self.state.write());
        self.enter(WHOLE, None);
        // A call may have found before what the end of the reading would have.
        self.waiting.0.lock().take().map_or(Ok(()), Err)
    }

    fn own(&self) -> Home<'_> {
        Home::new(&self.own.0, &self.own.1)
    }

    fn fetch_key(&self, home: Home<'_>, id: KeyId) -> Result<Option<Arc<Key>>, LoadError> {
        let own = self.own();
        let Some(row) = self.store.get(Table::Key, &home.row(own, &id))? else { return Ok(None) };
        let token = |id: &str| Ok(self.store.get(Table::Material, id)?.map(|row| row.body));
        let key = read_key(&row, own, &mut Policies::default(), token)?;
        let mut state = self.state.write();
        // Once all is read, keys may change and go: then what is there counts, not what was read before.
        Ok(if self.is_reading() { Some(state.put_new_key(key)) } else { state.key(home, id) })
    }

    /// A record that cannot be read is no missing record: the caller is told nothing at all.
    fn or_break<T>(&self, outcome: Result<Option<T>, LoadError>) -> Option<T> {
        outcome.unwrap_or_else(|error| {
            log::error!("{error}");
            self.enter(BROKEN, Some(error));
            None
        })
    }

    /// Nothing comes after the end.
    fn enter(&self, phase: u8, found: Option<LoadError>) {
        let mut held = self.waiting.0.lock();
        if self.phase.compare_exchange(READING, phase, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            *held = found;
        }
        self.waiting.1.notify_all();
    }

    /// Waits until everything is there.
    pub fn wait(&self) {
        if self.is_reading() {
            let mut held = self.waiting.0.lock();
            self.waiting.1.wait_while(&mut held, |_| self.is_reading());
        }
    }
}

/// The end of the reading, whichever way it comes: nobody waits for more.
struct End<'a>(&'a Records);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.enter(BROKEN, None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::AliasRecord;
    use super::super::store::{Change, MemoryStore, Row, StoreError};
    use super::*;
    use crate::api::Timestamp;

    const HOME: Home<'static> = Home::new("111122223333", "local");

    /// A store whose rows were not read when it was opened.
    struct AtRest(MemoryStore);

    impl Store for AtRest {
        fn load(&self, table: Table) -> Result<Vec<Row>, StoreError> {
            self.0.load(table)
        }

        fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
            self.0.commit(changes)
        }

        fn is_checked(&self) -> bool {
            false
        }
    }

    fn id(byte: u8) -> KeyId {
        KeyId { bytes: [byte; 16], multi_region: false }
    }

    fn with_aliases(names: &[(&str, &[u8])]) -> Records {
        let put = |(name, body): &(&str, &[u8])| Change::Put {
            table: Table::Alias,
            id: (*name).into(),
            body: body.to_vec(),
        };
        let store = AtRest(MemoryStore::new());
        store.commit(&names.iter().map(put).collect::<Vec<_>>()).unwrap();
        Records::open(Arc::new(store), HOME).unwrap()
    }

    fn alias(name: &str) -> Vec<u8> {
        let record = AliasRecord::new(HOME, name.into(), id(1), Timestamp::default());
        serde_json::to_vec(&record).unwrap()
    }

    #[test]
    fn who_needs_everything_waits_for_it() {
        let records = with_aliases(&[("alias/a", &alias("alias/a"))]);
        assert!(records.is_reading() && records.read_early().realm(HOME).aliases.is_empty());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| records.read().realm(HOME).aliases.len());
            records.read_rest(|_| ()).unwrap();
            assert_eq!(reader.join().unwrap(), 1);
        });
        assert!(!records.is_reading() && !records.is_broken());
        assert!(records.key(HOME, id(1)).is_none());
    }

    #[test]
    fn a_record_that_cannot_be_read_ends_everything() {
        let records = with_aliases(&[("alias/a", b"{"), ("alias/b", &alias("alias/b"))]);
        assert!(records.alias_target(HOME, "alias/b").is_none() && records.is_reading());
        assert!(records.alias_target(HOME, "alias/a").is_none() && records.is_broken());
        // Nobody waits for ever, and the reader tells why.
        drop(records.read());
        let records = with_aliases(&[("alias/a", b"{")]);
        let told = records.read_rest(|_| ()).unwrap_err().to_string();
        assert!(told.contains("row alias/a of Alias cannot be read"), "{told}");
        assert!(records.is_broken());
    }
}
