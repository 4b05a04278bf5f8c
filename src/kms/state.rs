//! Everything the daemon knows, in memory: loaded from the store at start, replaced record by record on changes.
//!
//! Read by every call, through `records`, under a short shared lock; records are handed out as `Arc`s and never copied.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::RwLock;
use serde::de::DeserializeOwned;

use crate::api::{KeyId, Timestamp};

use super::grants::{GrantRecord, Grants};
use super::home::Home;
use super::iam::{AccessKeyRecord, Directory, EntityRecord};
use super::last_usage::{LastUse, SINCE_ROW, UseRecord};
use super::model::{AliasRecord, Key, KeyRecord, Tombstone, Version, material_row};
use super::policy::{Policy, PolicyError};
use super::store::{Row, Store, StoreError, Table};

/// What the rows of marks begin with, among the settings.
pub const MARK_PREFIX: &str = "mark/";

/// Compiled key policies that are kept at hand while keys are read.
const RECENT_POLICIES: usize = 16;

/// The records by name.
#[derive(Debug, Default)]
pub struct State {
    /// By region, by account.
    realms: BTreeMap<String, BTreeMap<String, Realm>>,
    /// Users, roles, groups, policies and access keys.
    pub iam: Directory,
    /// Grants.
    pub grants: Grants,
    /// ARNs of keys that were destroyed.
    pub destroyed: BTreeSet<String>,
    /// Numbers that only rise, by owner.
    pub marks: BTreeMap<String, i64>,
    /// Since when uses of keys are known, and the last one of each, by ARN; taken by `last_usage`.
    pub uses: (Option<Timestamp>, Vec<(String, LastUse)>),
}

/// What lives in one home.
#[derive(Debug, Default)]
pub struct Realm {
    /// Keys by id.
    pub keys: BTreeMap<KeyId, Arc<Key>>,
    /// Aliases by name, prefix included.
    pub aliases: BTreeMap<String, Arc<AliasRecord>>,
}

static EMPTY: Realm = Realm { keys: BTreeMap::new(), aliases: BTreeMap::new() };

/// Why the records could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The store failed.
    Store(StoreError),
    /// A row is no record of its table.
    Record {
        /// Which table.
        table: Table,
        /// Which row.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Record { table, id, reason } => write!(f, "row {id} of {table:?} cannot be read: {reason}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl State {
    /// Loads everything. `own` is the home of records that do not tell theirs.
    pub fn load(store: &dyn Store, own: Home<'_>) -> Result<Self, LoadError> {
        let state = Self { iam: load_iam(store, own)?, ..Self::default() };
        let state = RwLock::new(state);
        fill(&state, store, own, &|| false)?;
        Ok(state.into_inner())
    }

    /// No more than what tells who calls.
    pub fn load_identities(store: &dyn Store, own: Home<'_>) -> Result<Self, LoadError> {
        Ok(Self { iam: load_iam(store, own)?, ..Self::default() })
    }

    /// What lives in `home`.
    pub fn realm(&self, home: Home<'_>) -> &Realm {
        self.realms.get(home.region).and_then(|accounts| accounts.get(home.account)).unwrap_or(&EMPTY)
    }

    /// What lives in `home`, to be changed.
    pub fn realm_mut(&mut self, home: Home<'_>) -> &mut Realm {
        // Looked up first: names are copied only for a home that is new.
        if self.realms.get(home.region).is_none_or(|accounts| !accounts.contains_key(home.account)) {
            let accounts = self.realms.entry(home.region.to_owned()).or_default();
            accounts.insert(home.account.to_owned(), Realm::default());
        }
        let realm = self.realms.get_mut(home.region).and_then(|accounts| accounts.get_mut(home.account));
        realm.expect("it was put in above")
    }

    /// Puts a key in place.
    pub fn put_key(&mut self, key: &Arc<Key>) {
        self.realm_mut(key.record.home()).keys.insert(key.record.id, Arc::clone(key));
    }

    /// Puts a key in place unless one is there. The one that is there now.
    pub fn put_new_key(&mut self, key: Key) -> Arc<Key> {
        let realm = self.realm_mut(key.record.home());
        Arc::clone(realm.keys.entry(key.record.id).or_insert_with(|| Arc::new(key)))
    }

    /// Puts an alias in place.
    pub fn put_alias(&mut self, alias: &Arc<AliasRecord>) {
        self.realm_mut(alias.home()).aliases.insert(alias.name.clone(), Arc::clone(alias));
    }

    /// The key `id` of `home`.
    pub fn key(&self, home: Home<'_>, id: KeyId) -> Option<Arc<Key>> {
        self.realm(home).keys.get(&id).cloned()
    }

    /// The key `id` of that region, in any account.
    pub fn key_in_region(&self, region: &str, id: KeyId) -> Option<Arc<Key>> {
        self.realms.get(region)?.values().find_map(|realm| realm.keys.get(&id)).cloned()
    }

    /// The keys `id` of `account` in every region, by region.
    pub fn in_every_region(&self, account: &str, id: KeyId) -> Vec<Arc<Key>> {
        let realms = self.realms.values().filter_map(|accounts| accounts.get(account));
        realms.filter_map(|realm| realm.keys.get(&id)).cloned().collect()
    }

    /// Every key of every home.
    pub fn all_keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.realms.values().flat_map(BTreeMap::values).flat_map(|realm| realm.keys.values())
    }

    /// How many keys there are.
    pub fn key_count(&self) -> usize {
        self.realms.values().flat_map(BTreeMap::values).map(|realm| realm.keys.len()).sum()
    }

    /// The key an alias points to.
    pub fn alias_target(&self, home: Home<'_>, name: &str) -> Option<Arc<Key>> {
        let realm = self.realm(home);
        realm.keys.get(&realm.aliases.get(name)?.target).cloned()
    }
}

/// Fills `state`, which has its identities, with everything else; it is locked for a page of rows at a time. What is
/// there already stays. Ends early, with no error, when `is_over` says so.
pub(super) fn fill(
    state: &RwLock<State>,
    store: &dyn Store,
    own: Home<'_>,
    is_over: &dyn Fn() -> bool,
) -> Result<(), LoadError> {
    // Material before the keys that have it.
    const ORDER: [Table; Table::ALL.len()] = [
        Table::Material,
        Table::Key,
        Table::Alias,
        Table::Grant,
        Table::Tombstone,
        Table::Setting,
        Table::Domain,
        Table::User,
        Table::AccessKey,
        Table::Policy,
        Table::LastUse,
    ];
    let (mut tokens, mut policies, mut outcome) = (BTreeMap::new(), Policies::default(), Ok(()));
    store.sweep(&ORDER, &mut |table, rows| {
        if outcome.is_ok() && !is_over() {
            outcome = take(state, table, rows, own, &mut tokens, &mut policies);
        }
    })?;
    outcome
}

fn take(
    state: &RwLock<State>,
    table: Table,
    rows: Vec<Row>,
    own: Home<'_>,
    tokens: &mut BTreeMap<String, Vec<u8>>,
    policies: &mut Policies,
) -> Result<(), LoadError> {
    match table {
        Table::Material => tokens.extend(rows.into_iter().map(|row| (row.id, row.body))),
        Table::Key => {
            let key = |row: &Row| read_key(row, own, policies, |id| Ok(tokens.remove(id)));
            let keys: Vec<Key> = rows.iter().map(key).collect::<Result<_, _>>()?;
            let mut state = state.write();
            for key in keys {
                state.put_new_key(key);
            }
        }
        Table::Alias => {
            let aliases: Vec<_> = rows.iter().map(|row| read_alias(row, own)).collect::<Result<_, _>>()?;
            let mut state = state.write();
            for alias in aliases {
                state.put_alias(&Arc::new(alias));
            }
        }
        Table::Grant => {
            let grants: Vec<GrantRecord> =
                rows.iter().map(|row| record(table, row)).collect::<Result<_, _>>()?;
            let mut state = state.write();
            for grant in grants {
                state.grants.insert(grant);
            }
        }
        Table::Tombstone => {
            let mut state = state.write();
            for row in &rows {
                let tombstone: Tombstone = record(table, row)?;
                state.destroyed.insert(tombstone.arn);
            }
        }
        Table::Setting => {
            let mut state = state.write();
            for row in &rows {
                if let Some(owner) = row.id.strip_prefix(MARK_PREFIX) {
                    state.marks.insert(owner.to_owned(), record(table, row)?);
                } else if row.id == SINCE_ROW {
                    state.uses.0 = Some(record(table, row)?);
                }
            }
        }
        Table::LastUse => {
            let mut state = state.write();
            for row in rows {
                let found: UseRecord = record(table, &row)?;
                state.uses.1.extend(found.last_use().map(|last| (row.id, last)));
            }
        }
        // Opened by the root, or there already.
        Table::Domain | Table::User | Table::AccessKey | Table::Policy => {}
    }
    Ok(())
}

/// Key policies compiled lately. Most keys have the policy of another, which they share.
#[derive(Debug, Default)]
pub(super) struct Policies(VecDeque<(String, Policy)>);

impl Policies {
    fn compile(&mut self, text: &str) -> Result<Policy, PolicyError> {
        if let Some((_, policy)) = self.0.iter().find(|(known, _)| known == text) {
            return Ok(policy.clone());
        }
        let policy = Policy::of_key(text)?;
        if self.0.len() >= RECENT_POLICIES {
            self.0.pop_front();
        }
        self.0.push_back((text.to_owned(), policy.clone()));
        Ok(policy)
    }
}

/// The key in `row`; `token` finds a row of sealed material by its id.
pub(super) fn read_key(
    row: &Row,
    own: Home<'_>,
    policies: &mut Policies,
    token: impl FnMut(&str) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Key, LoadError> {
    let found: KeyRecord = record(Table::Key, row)?;
    load_key(found, &row.id, own, policies, token).map_err(|error| match error {
        KeyError::Store(error) => error.into(),
        KeyError::Record(reason) => bad(Table::Key, row, reason),
    })
}

/// The alias in `row`.
pub(super) fn read_alias(row: &Row, own: Home<'_>) -> Result<AliasRecord, LoadError> {
    let mut alias: AliasRecord = record(Table::Alias, row)?;
    if alias.account.is_empty() {
        (alias.account, alias.region) = (own.account.to_owned(), own.region.to_owned());
    }
    check_row(&row.id, alias.home(), own, &alias.name).map_err(|reason| bad(Table::Alias, row, reason))?;
    Ok(alias)
}

enum KeyError {
    Store(StoreError),
    Record(String),
}

impl From<String> for KeyError {
    fn from(reason: String) -> Self {
        Self::Record(reason)
    }
}

fn load_iam(store: &dyn Store, own: Home<'_>) -> Result<Directory, LoadError> {
    let (mut entities, mut policies, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for row in store.load(Table::User)? {
        let mut entity: EntityRecord = record(Table::User, &row)?;
        entity.complete(own.account);
        entities.push(entity);
    }
    for row in store.load(Table::Policy)? {
        policies.push(record(Table::Policy, &row)?);
    }
    for row in store.load(Table::AccessKey)? {
        let mut key: AccessKeyRecord = record(Table::AccessKey, &row)?;
        if key.account.is_empty() {
            own.account.clone_into(&mut key.account);
        }
        keys.push(key);
    }
    Ok(Directory::load(entities, policies, keys))
}

fn load_key(
    mut record: KeyRecord,
    row: &str,
    own: Home<'_>,
    policies: &mut Policies,
    mut token: impl FnMut(&str) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Key, KeyError> {
    if record.region.is_empty() {
        own.region.clone_into(&mut record.region);
    }
    check_row(row, record.home(), own, &record.id)?;
    let policy = policies.compile(&record.policy).unwrap_or_else(|error| {
        log::error!(
            "the policy of {} (row {row} of table Key) cannot be read: nobody may use the key until its account puts \
             a new policy: {error}",
            record.arn
        );
        Policy::closed(&record.account)
    });
    let mut versions = Vec::with_capacity(record.materials.len());
    for material in &record.materials {
        let token = token(&material_row(row, &material.id)).map_err(KeyError::Store)?;
        if token.is_some() != material.is_present() {
            let reason = format!("material {} is missing, or there though it should not be", material.id);
            return Err(reason.into());
        }
        versions.push(Version::load(material, token).ok_or_else(|| "a material id is no id".to_owned())?);
    }
    Ok(Key { record, policy, versions })
}

/// A record must lie where its home says, or the next change would leave two of it.
fn check_row(row: &str, home: Home<'_>, own: Home<'_>, id: &impl std::fmt::Display) -> Result<(), String> {
    if row == home.row(own, id) { Ok(()) } else { Err("the row belongs to another name".into()) }
}

fn record<T: DeserializeOwned>(table: Table, row: &Row) -> Result<T, LoadError> {
    serde_json::from_slice(&row.body).map_err(|error| bad(table, row, error.to_string()))
}

fn bad(table: Table, row: &Row, reason: String) -> LoadError {
    LoadError::Record { table, id: row.id.clone(), reason }
}
