//! Where the daemon keeps its records: one trait, and a store in memory for tests.
//!
//! Called by the pipeline's model and by `root`. A store holds named bytes in tables and knows nothing of what
//! they mean. `commit` is durable when it returns; nothing is ever half done.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// A table of the store. The number is part of the format and of every row's MAC: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Account, region and other settings of the daemon.
    Setting = 1,
    /// Domain keys, sealed under the root key.
    Domain = 2,
    /// Keys: metadata, policy, tags, grants.
    Key = 3,
    /// Key material, sealed under a domain key.
    Material = 4,
    /// Aliases.
    Alias = 5,
    /// IAM users, roles and groups with their policies.
    User = 6,
    /// Access keys.
    AccessKey = 7,
    /// Grants.
    Grant = 8,
    /// Managed policies.
    Policy = 9,
    /// What keys were last used for.
    LastUse = 10,
    /// Keys that were destroyed.
    Tombstone = 20,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 11] = [
        Self::Setting,
        Self::Domain,
        Self::Key,
        Self::Material,
        Self::Alias,
        Self::User,
        Self::AccessKey,
        Self::Grant,
        Self::Policy,
        Self::LastUse,
        Self::Tombstone,
    ];

    /// The number stored.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// One record.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name in the table.
    pub id: String,
    /// Its bytes.
    pub body: Vec<u8>,
}

// Bodies may hold access key secrets.
impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({}, {} bytes)", self.id, self.body.len())
    }
}

/// One step of a commit.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace.
    Put {
        /// Where.
        table: Table,
        /// Name of the row.
        id: String,
        /// Its new bytes.
        body: Vec<u8>,
    },
    /// Remove; removing what is not there is no error.
    Delete {
        /// Where.
        table: Table,
        /// Name of the row.
        id: String,
    },
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { table, id, body } => write!(f, "Put({table:?}, {id}, {} bytes)", body.len()),
            Self::Delete { table, id } => write!(f, "Delete({table:?}, {id})"),
        }
    }
}

/// Longest row id.
pub const MAX_ID_LEN: usize = 1024;
/// Longest row body.
pub const MAX_BODY_LEN: usize = 4 * 1024 * 1024;

/// Why the store could not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// A row, the head or the whole file was changed by something else than this daemon, or is damaged.
    Tampered(String),
    /// The disk refused.
    Io(String),
    /// An earlier commit failed in a way that leaves the state unknown; the daemon must be restarted.
    Latched,
    /// A row is larger than the store takes.
    TooLarge(String),
    /// The store was written by a newer version.
    Newer(u32),
    /// Another daemon has the store open.
    Busy,
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tampered(what) => {
                write!(f, "the key store was changed by something else or is damaged: {what}")
            }
            Self::Io(what) => write!(f, "the key store cannot be read or written: {what}"),
            Self::Latched => f.write_str("the key store refused a write earlier; restart kmsd"),
            Self::TooLarge(what) => write!(f, "a record is too large for the key store: {what}"),
            Self::Newer(version) => write!(
                f,
                "the key store has format {version}, which this kmsd does not know; run a newer kmsd"
            ),
            Self::Busy => f.write_str("another kmsd has the key store open"),
        }
    }
}

impl std::error::Error for StoreError {}

/// A place for records. All calls may come from any thread.
pub trait Store: Send + Sync {
    /// Every row of `table`, ordered by id.
    fn load(&self, table: Table) -> Result<Vec<Row>, StoreError>;

    /// The row `id` of `table`.
    fn get(&self, table: Table, id: &str) -> Result<Option<Row>, StoreError> {
        Ok(self.load(table)?.into_iter().find(|row| row.id == id))
    }

    /// Gives every row to `take`, table by table as `tables` has them, in pages ordered by id. When it returns `Ok`,
    /// the rows are as they were last written, all of them; until then each of them is authentic and no more.
    fn sweep(&self, tables: &[Table], take: &mut dyn FnMut(Table, Vec<Row>)) -> Result<(), StoreError> {
        tables.iter().try_for_each(|table| {
            take(*table, self.load(*table)?);
            Ok(())
        })
    }

    /// Whether the rows were held against each other when the store was opened. If not, `sweep` has to come before
    /// the first `commit`.
    fn is_checked(&self) -> bool {
        true
    }

    /// Does all of `changes` or none, in order; durable when it returns `Ok`.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// Prepares the next start, which need not read every row then: at the end, or when there was no commit since this
    /// was last called.
    fn vouch(&self, _is_end: bool) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A store that forgets at exit, for tests.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: Mutex<BTreeMap<(Table, String), Vec<u8>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn load(&self, table: Table) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows.lock();
        let of_table = rows.iter().filter(|((t, _), _)| *t == table);
        Ok(of_table.map(|((_, id), body)| Row { id: id.clone(), body: body.clone() }).collect())
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        changes.iter().try_for_each(check_size)?;
        let mut rows = self.rows.lock();
        for change in changes {
            match change {
                Change::Put { table, id, body } => {
                    rows.insert((*table, id.clone()), body.clone());
                }
                Change::Delete { table, id } => {
                    rows.remove(&(*table, id.clone()));
                }
            }
        }
        Ok(())
    }
}

/// Refuses rows beyond the limits, before anything is written.
pub(super) fn check_size(change: &Change) -> Result<(), StoreError> {
    let (id, body_len) = match change {
        Change::Put { id, body, .. } => (id, body.len()),
        Change::Delete { id, .. } => (id, 0),
    };
    if id.is_empty() || id.len() > MAX_ID_LEN || body_len > MAX_BODY_LEN {
        return Err(StoreError::TooLarge(format!("row id of {} bytes, body of {body_len}", id.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_with_one_row_too_large_changes_nothing() {
        let store = MemoryStore::new();
        let put = |id: &str, len| Change::Put { table: Table::Key, id: id.into(), body: vec![0; len] };
        assert!(store.commit(&[put("a", 1), put("b", MAX_BODY_LEN + 1)]).is_err());
        assert!(store.load(Table::Key).unwrap().is_empty());
        store.commit(&[put("b", 1), put("a", 2)]).unwrap();
        let ids: Vec<_> = store.load(Table::Key).unwrap().into_iter().map(|r| r.id).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
