//! The embedded store: one SQLite file, every row under a MAC, the whole under a counter and a digest.
//!
//! Made by `serve` and `init`; used through the [`Store`] trait. A commit is on disk (WAL, `synchronous=FULL`) when it
//! returns. Rows edited, swapped, removed or put back by another hand are noticed when the store is opened.
//!
//! ```text
//! table row:  tbl INTEGER, id TEXT, body BLOB, mac BLOB(32)
//!             mac  = HMAC(row key,  tbl u8 || len(id) u32 LE || id || body)
//! table head: one row: counter, rows, mac BLOB(32)
//!             term = HMAC(term key, tbl u8 || id || mac of the row), kept secret
//!             mac  = HMAC(head key, "db" || counter u64 LE || rows u64 LE || XOR of all terms)
//! file head:   0 8 magic "KMSDHEAD" | 8 8 counter LE | 16 32 HMAC(head key, "file" || counter u64 LE)
//! ```
//! The counter grows with every commit and is also kept in the file `head` beside the database, written after it:
//! a database older than that file was put back. Terms are secret, so that no set of old rows can be made to fit.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use crate::crypto::{StoreKeys, constant_time_eq};

use super::store::{Change, Row, Store, StoreError, Table, check_size};

const FORMAT: u32 = 1;
/// `kmsd` in ASCII; tells our file from any other SQLite file.
const APPLICATION_ID: i32 = 0x6b6d_7364;
const DATABASE: &str = "store.db";
const HEAD_FILE: &str = "head";
const HEAD_MAGIC: &[u8; 8] = b"KMSDHEAD";
const HEAD_FILE_LEN: usize = 48;
/// Most rows that are read into memory at once.
const MAX_ROWS: u64 = 10_000_000;

const SCHEMA: &str = "
    CREATE TABLE row (
        tbl INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, mac BLOB NOT NULL, PRIMARY KEY (tbl, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE head (
        one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER NOT NULL, rows INTEGER NOT NULL, mac BLOB NOT NULL
    ) STRICT;";

type Mac = [u8; 32];

/// The store in a state directory.
pub struct SqliteStore {
    inner: Mutex<Inner>,
}

struct Inner {
    database: Connection,
    keys: StoreKeys,
    head: Head,
    head_file: File,
    /// Set when a write failed in a way that leaves unknown what is on disk.
    latched: bool,
}

/// What stands for the whole store.
#[derive(Clone, Copy)]
struct Head {
    counter: u64,
    rows: u64,
    digest: Mac,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteStore(..)")
    }
}

impl SqliteStore {
    /// Makes a new, empty store in `dir`.
    pub fn create(dir: &Path, keys: StoreKeys) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let database = connect(dir, flags)?;
        let head = Head { counter: 1, rows: 0, digest: [0; 32] };
        database.execute_batch(SCHEMA).map_err(io)?;
        database.pragma_update(None, "application_id", APPLICATION_ID).map_err(io)?;
        database.pragma_update(None, "user_version", FORMAT).map_err(io)?;
        let values = params![head.counter as i64, head.rows as i64, head_mac(&keys, &head)];
        database
            .execute("INSERT INTO head (one, counter, rows, mac) VALUES (1, ?1, ?2, ?3)", values)
            .map_err(io)?;
        let head_file = head_file(dir, true)?;
        let mut inner = Inner { database, keys, head, head_file, latched: false };
        inner.write_head_file()?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::Io(e.to_string()))?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Opens the store in `dir` and checks every row.
    pub fn open(dir: &Path, keys: StoreKeys) -> Result<Self, StoreError> {
        let database = connect(dir, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        check_identity(&database)?;
        let head = check_rows(&database, &keys)?;
        let head_file = head_file(dir, false)?;
        let mut inner = Inner { database, keys, head, head_file, latched: false };
        if inner.read_head_file()? > inner.head.counter {
            return Err(StoreError::Tampered(
                "store.db is older than its head: an old copy was put back".into(),
            ));
        }
        inner.write_head_file()?;
        Ok(Self { inner: Mutex::new(inner) })
    }
}

impl Store for SqliteStore {
    fn load(&self, table: Table) -> Result<Vec<Row>, StoreError> {
        let inner = self.inner.lock();
        let mut query = inner
            .database
            .prepare_cached("SELECT id, body, mac FROM row WHERE tbl = ?1 ORDER BY id")
            .map_err(io)?;
        let mut found = query.query([table.number()]).map_err(io)?;
        let mut rows = Vec::new();
        while let Some(row) = found.next().map_err(io)? {
            let (id, body): (String, Vec<u8>) = (row.get(0).map_err(io)?, row.get(1).map_err(io)?);
            let mac: Vec<u8> = row.get(2).map_err(io)?;
            check_mac(&inner.keys, table.number(), &id, &body, &mac)?;
            rows.push(Row { id, body });
        }
        Ok(rows)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        changes.iter().try_for_each(check_size)?;
        let mut inner = self.inner.lock();
        if inner.latched {
            return Err(StoreError::Latched);
        }
        inner.commit(changes)
    }
}

impl Inner {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut head = Head { counter: self.head.counter + 1, ..self.head };
        let step = self.database.transaction().map_err(io)?;
        for change in changes {
            apply(&step, &self.keys, &mut head, change)?;
        }
        let mac = head_mac(&self.keys, &head);
        step.execute(
            "UPDATE head SET counter = ?1, rows = ?2, mac = ?3",
            params![head.counter as i64, head.rows as i64, mac],
        )
        .map_err(io)?;
        // From here on an error leaves open whether the commit is on disk.
        self.latched = true;
        step.commit().map_err(io)?;
        self.head = head;
        self.write_head_file()?;
        if changes.iter().any(destroys) {
            self.forget_old_pages()?;
        }
        self.latched = false;
        Ok(())
    }

    /// Empties the write-ahead log, which may hold what was just deleted. `secure_delete` wiped the pages themselves.
    fn forget_old_pages(&self) -> Result<(), StoreError> {
        self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(io)
    }

    fn write_head_file(&mut self) -> Result<(), StoreError> {
        let counter = self.head.counter.to_le_bytes();
        let mut bytes = [0; HEAD_FILE_LEN];
        bytes[..8].copy_from_slice(HEAD_MAGIC);
        bytes[8..16].copy_from_slice(&counter);
        bytes[16..].copy_from_slice(&self.keys.head.sign(&[b"file", &counter]));
        let written = self.head_file.write_all_at(&bytes, 0).and_then(|()| self.head_file.sync_data());
        written.map_err(|error| StoreError::Io(format!("{HEAD_FILE}: {error}")))
    }

    fn read_head_file(&self) -> Result<u64, StoreError> {
        let mut bytes = [0; HEAD_FILE_LEN];
        let damaged = || StoreError::Tampered(format!("the file {HEAD_FILE} does not belong to this store"));
        self.head_file.read_exact_at(&mut bytes, 0).map_err(|_| damaged())?;
        let authentic = constant_time_eq(&self.keys.head.sign(&[b"file", &bytes[8..16]]), &bytes[16..]);
        if &bytes[..8] != HEAD_MAGIC || !authentic {
            return Err(damaged());
        }
        Ok(u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")))
    }
}

fn connect(dir: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let path = dir.canonicalize().map_err(|e| StoreError::Io(e.to_string()))?.join(DATABASE);
    let database = Connection::open_with_flags(path, flags).map_err(io)?;
    database.busy_timeout(Duration::ZERO).map_err(io)?;
    // Exclusive: a second process is refused, and no shared-memory file is needed.
    let settings = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                    PRAGMA secure_delete = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;";
    database.execute_batch(settings).map_err(io)?;
    Ok(database)
}

fn head_file(dir: &Path, create: bool) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600);
    options.open(dir.join(HEAD_FILE)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => StoreError::Tampered(format!("the file {HEAD_FILE} is missing")),
        _ => StoreError::Io(format!("{HEAD_FILE}: {error}")),
    })
}

fn check_identity(database: &Connection) -> Result<(), StoreError> {
    let number = |name| database.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(io);
    if number("application_id")? != APPLICATION_ID {
        return Err(StoreError::Tampered("store.db is not a key store".into()));
    }
    match number("user_version")? as u32 {
        FORMAT => Ok(()),
        version if version > FORMAT => Err(StoreError::Newer(version)),
        version => Err(StoreError::Tampered(format!("store.db claims format {version}"))),
    }
}

/// Checks every row and the head over all of them.
fn check_rows(database: &Connection, keys: &StoreKeys) -> Result<Head, StoreError> {
    let mut head = Head { counter: 0, rows: 0, digest: [0; 32] };
    let mut query = database.prepare("SELECT tbl, id, body, mac FROM row").map_err(io)?;
    let mut found = query.query([]).map_err(io)?;
    while let Some(row) = found.next().map_err(io)? {
        let (table, id): (u8, String) = (row.get(0).map_err(io)?, row.get(1).map_err(io)?);
        let (body, mac): (Vec<u8>, Vec<u8>) = (row.get(2).map_err(io)?, row.get(3).map_err(io)?);
        check_mac(keys, table, &id, &body, &mac)?;
        mix(&mut head.digest, &term(keys, table, &id, &mac));
        head.rows += 1;
        if head.rows > MAX_ROWS {
            return Err(StoreError::TooLarge(format!("more than {MAX_ROWS} rows")));
        }
    }
    let stored: Option<(i64, i64, Vec<u8>)> = database
        .query_row("SELECT counter, rows, mac FROM head WHERE one = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()
        .map_err(io)?;
    let Some((counter, rows, mac)) = stored else {
        return Err(StoreError::Tampered("the head of store.db is missing".into()));
    };
    head.counter = counter as u64;
    if rows as u64 != head.rows || !constant_time_eq(&head_mac(keys, &head), &mac) {
        return Err(StoreError::Tampered("rows were added, removed or put back".into()));
    }
    Ok(head)
}

fn apply(
    step: &Transaction<'_>,
    keys: &StoreKeys,
    head: &mut Head,
    change: &Change,
) -> Result<(), StoreError> {
    let (table, id) = match change {
        Change::Put { table, id, .. } | Change::Delete { table, id } => (table.number(), id),
    };
    let old: Option<Vec<u8>> = step
        .prepare_cached("SELECT mac FROM row WHERE tbl = ?1 AND id = ?2")
        .and_then(|mut query| query.query_row(params![table, id], |row| row.get(0)).optional())
        .map_err(io)?;
    if let Some(old) = old {
        mix(&mut head.digest, &term(keys, table, id, &old));
        head.rows = head.rows.checked_sub(1).ok_or_else(|| StoreError::Tampered("row count".into()))?;
    }
    let Change::Put { body, .. } = change else {
        let mut delete = step.prepare_cached("DELETE FROM row WHERE tbl = ?1 AND id = ?2").map_err(io)?;
        return delete.execute(params![table, id]).map(|_| ()).map_err(io);
    };
    let mac = row_mac(keys, table, id, body);
    mix(&mut head.digest, &term(keys, table, id, &mac));
    head.rows += 1;
    let mut put = step
        .prepare_cached("INSERT OR REPLACE INTO row (tbl, id, body, mac) VALUES (?1, ?2, ?3, ?4)")
        .map_err(io)?;
    put.execute(params![table, id, body, mac]).map(|_| ()).map_err(io)
}

fn destroys(change: &Change) -> bool {
    matches!(change, Change::Delete { table: Table::Material | Table::AccessKey, .. })
}

fn row_mac(keys: &StoreKeys, table: u8, id: &str, body: &[u8]) -> Mac {
    keys.row.sign(&[&[table], &(id.len() as u32).to_le_bytes(), id.as_bytes(), body])
}

fn term(keys: &StoreKeys, table: u8, id: &str, mac: &[u8]) -> Mac {
    keys.term.sign(&[&[table], id.as_bytes(), mac])
}

fn head_mac(keys: &StoreKeys, head: &Head) -> Mac {
    keys.head.sign(&[b"db", &head.counter.to_le_bytes(), &head.rows.to_le_bytes(), &head.digest])
}

fn check_mac(keys: &StoreKeys, table: u8, id: &str, body: &[u8], mac: &[u8]) -> Result<(), StoreError> {
    if constant_time_eq(&row_mac(keys, table, id, body), mac) {
        return Ok(());
    }
    Err(StoreError::Tampered(format!("row {id:?} of table {table}")))
}

fn mix(digest: &mut Mac, term: &Mac) {
    for (byte, other) in digest.iter_mut().zip(term) {
        *byte ^= other;
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn io(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => StoreError::Busy,
        Some(DatabaseCorrupt | NotADatabase) => StoreError::Tampered("store.db is damaged".into()),
        _ => StoreError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hex;
    use crate::crypto::{RootKey, random_array};
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("kmsd-store-{}", hex(&random_array::<8>())));
            std::fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn create(&self) -> SqliteStore {
            SqliteStore::create(&self.0, keys(1)).unwrap()
        }

        fn open(&self) -> Result<SqliteStore, StoreError> {
            SqliteStore::open(&self.0, keys(1))
        }

        /// Changes the database as somebody with write access to the file would.
        fn meddle(&self, sql: &str) {
            let database = Connection::open(self.0.join(DATABASE)).unwrap();
            database.execute_batch(sql).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn keys(seed: u8) -> StoreKeys {
        RootKey::of_bytes([seed; 32]).store_keys()
    }

    fn put(table: Table, id: &str, body: &[u8]) -> Change {
        Change::Put { table, id: id.into(), body: body.to_vec() }
    }

    fn filled() -> Scratch {
        let scratch = Scratch::new();
        let store = scratch.create();
        store.commit(&[put(Table::Key, "a", b"one"), put(Table::Key, "b", b"two")]).unwrap();
        store.commit(&[put(Table::Alias, "a", b"one"), put(Table::Key, "c", b"three")]).unwrap();
        scratch
    }

    #[test]
    fn the_mac_of_a_row_and_of_the_head_are_pinned() {
        let keys = keys(7);
        let mac = row_mac(&keys, Table::Key.number(), "id", b"body");
        assert_eq!(hex(&mac), "c0c0add140303fbe9adab842d71c799bbb4c04c533b4c8c8cd1c07f553413064");
        let head = Head { counter: 5, rows: 1, digest: term(&keys, 3, "id", &mac) };
        assert_eq!(
            hex(&head_mac(&keys, &head)),
            "087338f1b4e319e25de2f7177dbea3ff91c035db0d1d61082353c7d60dbfb858"
        );
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        store
            .commit(&[Change::Delete { table: Table::Key, id: "b".into() }, put(Table::Key, "a", b"new")])
            .unwrap();
        drop(store);
        let rows = scratch.open().unwrap().load(Table::Key).unwrap();
        let rows: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.body.as_slice())).collect();
        assert_eq!(rows, [("a", &b"new"[..]), ("c", b"three")]);
    }

    #[test]
    fn edited_swapped_removed_and_added_rows_are_noticed() {
        for sql in [
            "UPDATE row SET body = x'00' WHERE id = 'b'",
            "UPDATE row SET id = 'z' WHERE id = 'c'",
            "UPDATE row SET tbl = 8 WHERE tbl = 5",
            "DELETE FROM row WHERE id = 'b'",
            "UPDATE row SET body = (SELECT body FROM row WHERE id = 'b'), mac = (SELECT mac FROM row WHERE id = 'b') \
             WHERE id = 'c'",
            "INSERT INTO row SELECT 8, id, body, mac FROM row WHERE tbl = 5",
            "UPDATE head SET counter = counter + 1",
            "DELETE FROM head",
        ] {
            let scratch = filled();
            scratch.meddle(sql);
            assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))), "{sql}");
        }
    }

    #[test]
    fn a_row_put_back_to_an_older_version_is_noticed() {
        let scratch = filled();
        scratch.meddle("CREATE TABLE kept AS SELECT * FROM row WHERE id = 'b'");
        scratch.open().unwrap().commit(&[put(Table::Key, "b", b"newer")]).unwrap();
        scratch.meddle("REPLACE INTO row SELECT * FROM kept; DROP TABLE kept");
        assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))));
    }

    #[test]
    fn an_older_copy_of_the_whole_database_is_noticed() {
        let scratch = filled();
        drop(scratch.open().unwrap());
        let old = std::fs::read(scratch.0.join(DATABASE)).unwrap();
        scratch.open().unwrap().commit(&[put(Table::Key, "b", b"newer")]).unwrap();
        std::fs::write(scratch.0.join(DATABASE), old).unwrap();
        assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))));
        std::fs::remove_file(scratch.0.join(HEAD_FILE)).unwrap();
        assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))));
    }

    #[test]
    fn a_store_of_another_root_or_a_newer_format_does_not_open() {
        let scratch = filled();
        assert!(matches!(SqliteStore::open(&scratch.0, keys(2)), Err(StoreError::Tampered(_))));
        scratch.meddle("PRAGMA user_version = 2");
        assert_eq!(scratch.open().unwrap_err(), StoreError::Newer(2));
        std::fs::write(scratch.0.join(DATABASE), b"not a database, but long enough to be read as one....")
            .unwrap();
        assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))));
    }

    #[test]
    fn two_openers_at_once_are_refused() {
        let scratch = Scratch::new();
        let _store = scratch.create();
        assert_eq!(scratch.open().unwrap_err(), StoreError::Busy);
    }

    #[test]
    fn deleted_material_is_in_no_file_of_the_store() {
        let scratch = Scratch::new();
        let store = scratch.create();
        let secret = [0xa7, 0x31, 0x5c, 0x99].repeat(17);
        store.commit(&[put(Table::Material, "m", &secret)]).unwrap();
        store.commit(&[Change::Delete { table: Table::Material, id: "m".into() }]).unwrap();
        for entry in std::fs::read_dir(&scratch.0).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(16).any(|window| window == &secret[..16]), "{}", path.display());
        }
    }
}
