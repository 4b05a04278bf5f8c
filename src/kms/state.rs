//! Everything the daemon knows, in memory: loaded from the store at start, replaced record by record on changes.
//!
//! Read by every call under a short shared lock; records are handed out as `Arc`s and never copied.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::api::KeyId;

use super::model::{AccessKeyRecord, AliasRecord, Key, KeyRecord, User, UserRecord, Version, material_row};
use super::policy::Policy;
use super::store::{Row, Store, StoreError, Table};

/// The records by name.
#[derive(Debug, Default)]
pub struct State {
    /// Keys by id.
    pub keys: BTreeMap<KeyId, Arc<Key>>,
    /// Aliases by name, prefix included.
    pub aliases: BTreeMap<String, Arc<AliasRecord>>,
    /// Users by name.
    pub users: BTreeMap<String, Arc<User>>,
    /// Access keys by id.
    pub access_keys: BTreeMap<String, Arc<AccessKeyRecord>>,
}

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
    /// Loads everything.
    pub fn load(store: &dyn Store) -> Result<Self, LoadError> {
        let mut state = Self::default();
        let mut tokens: BTreeMap<String, Vec<u8>> =
            store.load(Table::Material)?.into_iter().map(|row| (row.id, row.body)).collect();
        for row in store.load(Table::Key)? {
            let record: KeyRecord = record(Table::Key, &row)?;
            let key = load_key(record, &mut tokens).map_err(|reason| bad(Table::Key, &row, reason))?;
            state.keys.insert(key.record.id, Arc::new(key));
        }
        for row in store.load(Table::Alias)? {
            let alias: AliasRecord = record(Table::Alias, &row)?;
            state.aliases.insert(row.id, Arc::new(alias));
        }
        for row in store.load(Table::User)? {
            let user: UserRecord = record(Table::User, &row)?;
            let user = compile_user(user).map_err(|error| bad(Table::User, &row, error))?;
            state.users.insert(row.id, Arc::new(user));
        }
        for row in store.load(Table::AccessKey)? {
            let access_key: AccessKeyRecord = record(Table::AccessKey, &row)?;
            state.access_keys.insert(row.id, Arc::new(access_key));
        }
        Ok(state)
    }

    /// The key an alias points to.
    pub fn alias_target(&self, name: &str) -> Option<Arc<Key>> {
        self.keys.get(&self.aliases.get(name)?.target).cloned()
    }
}

/// Compiles a user's policies.
pub fn compile_user(record: UserRecord) -> Result<User, String> {
    let compile = |policy: &super::model::NamedPolicy| {
        Policy::of_identity(&policy.document).map_err(|error| format!("policy {}: {error}", policy.name))
    };
    let policies = record.policies.iter().map(compile).collect::<Result<_, _>>()?;
    Ok(User { record, policies })
}

fn load_key(record: KeyRecord, tokens: &mut BTreeMap<String, Vec<u8>>) -> Result<Key, String> {
    let policy = Policy::of_key(&record.policy).map_err(|error| error.to_string())?;
    let mut versions = Vec::with_capacity(record.materials.len());
    for material in &record.materials {
        let token = tokens.remove(&material_row(record.id, &material.id));
        let token = token.ok_or_else(|| format!("material {} is missing", material.id))?;
        versions.push(Version::load(material, token).ok_or("a material id is no id")?);
    }
    Ok(Key { record, policy, versions })
}

fn record<T: DeserializeOwned>(table: Table, row: &Row) -> Result<T, LoadError> {
    serde_json::from_slice(&row.body).map_err(|error| bad(table, row, error.to_string()))
}

fn bad(table: Table, row: &Row, reason: String) -> LoadError {
    LoadError::Record { table, id: row.id.clone(), reason }
}
