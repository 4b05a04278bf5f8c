//! The embedded store: one SQLite file, every row under a MAC, the whole under a counter and a digest.
//!
//! Made by `serve` and `init`; used through the [`Store`] trait. A commit is on disk (WAL, `synchronous=FULL`) when it
//! returns. Rows edited, swapped, removed or put back by another hand are noticed when the store is opened.
//!
//! ```text
//! table row:  tbl INTEGER, id TEXT, body BLOB, mac BLOB(32)
//!             mac  = HMAC(row key,  tbl u8 || len(id) u32 LE || id || body)
//! table latest: tbl, id, mac of every row as it was last written; not authenticated, it only names what was put back
//! table head: one row: counter, rows, mac BLOB(32)
//!             term = HMAC(term key, tbl u8 || id || mac of the row), kept secret
//!             mac  = HMAC(head key, "db" || counter u64 LE || rows u64 LE || XOR of all terms)
//! file head:   0 8 magic "KMSDHEAD" | 8 8 counter LE | 16 32 HMAC(head key, "file" || counter u64 LE)
//! ```
//! Opening reads and checks every row, unless the file's `image` vouches for all of them at once; then they are checked
//! one by one as they are read, and together by the sweep that reads them all.
//!
//! The counter grows with every commit and is also kept in the file `head` beside the database, written after it:
//! a database older than that file was put back. Terms are secret, so that no set of old rows can be made to fit.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use crate::crypto::{StoreKeys, constant_time_eq};

use super::image;
use super::sqlite_check::{check_head, check_identity, check_rows, check_schema, migrate, stored_head};
use super::store::{Change, Row, Store, StoreError, Table, check_size};

/// Version 2 added the table `latest`.
pub(super) const FORMAT: u32 = 2;
/// `kmsd` in ASCII; tells our file from any other SQLite file.
pub(super) const APPLICATION_ID: i32 = 0x6b6d_7364;
const DATABASE: &str = "store.db";
const HEAD_FILE: &str = "head";
const HEAD_MAGIC: &[u8; 8] = b"KMSDHEAD";
const HEAD_FILE_LEN: usize = 48;
/// Rows that are read with one hold of the lock: those who wait for single rows come in between.
const PAGE: usize = 512;

pub(super) const SCHEMA: &str = "
    CREATE TABLE row (
        tbl INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, mac BLOB NOT NULL, PRIMARY KEY (tbl, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE head (
        one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER NOT NULL, rows INTEGER NOT NULL, mac BLOB NOT NULL
    ) STRICT;";
pub(super) const SCHEMA_LATEST: &str = "
    CREATE TABLE latest (
        tbl INTEGER NOT NULL, id TEXT NOT NULL, mac BLOB NOT NULL, PRIMARY KEY (tbl, id)
    ) STRICT, WITHOUT ROWID;";

pub(super) type Mac = [u8; 32];

/// The store in a state directory.
pub struct SqliteStore {
    inner: Mutex<Inner>,
}

struct Inner {
    database: Connection,
    /// The database's file. Closed after the connection: closing any descriptor of a file drops the locks on it.
    file: File,
    dir: PathBuf,
    keys: StoreKeys,
    /// Its digest is known when the rows are checked.
    head: Head,
    is_checked: bool,
    /// The counter that the image is of, when it is known.
    image: Option<u64>,
    /// The counter when an image was last thought of.
    seen: u64,
    head_file: File,
    /// Set when a commit failed and what is on disk could not be read: the head before it may be there, or the next.
    latched: bool,
    /// What is to be done after a commit and has failed so far; done before the next one.
    due: Due,
}

#[derive(Clone, Copy, Default)]
struct Due {
    head_file: bool,
    old_pages: bool,
}

/// What stands for the whole store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) counter: u64,
    pub(super) rows: u64,
    pub(super) digest: Mac,
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
        database.execute_batch(SCHEMA).and_then(|()| database.execute_batch(SCHEMA_LATEST)).map_err(io)?;
        database.pragma_update(None, "application_id", APPLICATION_ID).map_err(io)?;
        database.pragma_update(None, "user_version", FORMAT).map_err(io)?;
        let values = params![head.counter as i64, head.rows as i64, head_mac(&keys, &head)];
        database
            .execute("INSERT INTO head (one, counter, rows, mac) VALUES (1, ?1, ?2, ?3)", values)
            .map_err(io)?;
        let head_file = head_file(dir, true)?;
        let mut inner = Inner::new(dir, (database, database_file(dir)?), keys, head, head_file);
        inner.write_head_file()?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::Io(e.to_string()))?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Opens the store in `dir` and checks every row.
    pub fn open(dir: &Path, keys: StoreKeys) -> Result<Self, StoreError> {
        let file = database_file(dir)?;
        Self::open_checked(dir, keys, file)
    }

    /// Opens the store in `dir`. Where its image vouches for the whole file, the rows are left to a sweep, which has to
    /// come before the first commit.
    pub fn open_at_rest(dir: &Path, keys: StoreKeys) -> Result<Self, StoreError> {
        // Before the connection: what it would close afterwards would take its locks along.
        let (file, head_file) = (database_file(dir)?, head_file(dir, false)?);
        let is_vouched_for =
            read_head_file(&head_file, &keys).is_ok_and(|counter| image::vouches(dir, &keys, &file, counter));
        if !is_vouched_for {
            return Self::open_checked(dir, keys, file);
        }
        let database = connect(dir, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        if check_identity(&database)? != FORMAT {
            drop(database);
            return Self::open_checked(dir, keys, file);
        }
        check_schema(&database, FORMAT)?;
        let (counter, rows, _) = stored_head(&database)?;
        let head = Head { counter, rows, digest: [0; 32] };
        let mut inner = Inner::new(dir, (database, file), keys, head, head_file);
        (inner.is_checked, inner.image) = (false, Some(counter));
        Ok(Self { inner: Mutex::new(inner) })
    }

    fn open_checked(dir: &Path, keys: StoreKeys, file: File) -> Result<Self, StoreError> {
        let database = connect(dir, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let format = check_identity(&database)?;
        check_schema(&database, format)?;
        let head = check_rows(&database, &keys, format)?;
        migrate(&database, format)?;
        let head_file = head_file(dir, false)?;
        if read_head_file(&head_file, &keys)? > head.counter {
            return Err(StoreError::Tampered(
                "store.db is older than its head: an old copy was put back".into(),
            ));
        }
        let mut inner = Inner::new(dir, (database, file), keys, head, head_file);
        inner.write_head_file()?;
        Ok(Self { inner: Mutex::new(inner) })
    }
}

impl Store for SqliteStore {
    fn load(&self, table: Table) -> Result<Vec<Row>, StoreError> {
        let inner = self.inner.lock();
        inner.rows(
            table,
            "SELECT id, body, mac FROM row WHERE tbl = ?1 ORDER BY id",
            [table.number()],
            |_, _| (),
        )
    }

    fn get(&self, table: Table, id: &str) -> Result<Option<Row>, StoreError> {
        let inner = self.inner.lock();
        let text = "SELECT id, body, mac FROM row WHERE tbl = ?1 AND id = ?2";
        inner.rows(table, text, params![table.number(), id], |_, _| ()).map(|mut rows| rows.pop())
    }

    fn sweep(&self, tables: &[Table], take: &mut dyn FnMut(Table, Vec<Row>)) -> Result<(), StoreError> {
        let mut found = Head { counter: 0, rows: 0, digest: [0; 32] };
        for table in tables {
            let mut after = String::new();
            loop {
                let page = self.inner.lock().page(*table, &after, &mut found)?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.id);
                take(*table, page);
            }
        }
        self.inner.lock().end_sweep(found)
    }

    fn is_checked(&self) -> bool {
        self.inner.lock().is_checked
    }

    fn vouch(&self, is_end: bool) -> Result<(), StoreError> {
        self.inner.lock().vouch(is_end)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        changes.iter().try_for_each(check_size)?;
        self.inner.lock().commit(changes)
    }
}

impl Inner {
    fn new(
        dir: &Path,
        (database, file): (Connection, File),
        keys: StoreKeys,
        head: Head,
        head_file: File,
    ) -> Self {
        let (is_checked, latched, due) = (true, false, Due::default());
        let dir = dir.to_owned();
        Self { database, file, dir, keys, head, is_checked, image: None, seen: 0, head_file, latched, due }
    }

    /// The rows of `table` that a query for id, body and MAC finds, each authentic.
    fn rows(
        &self,
        table: Table,
        text: &str,
        values: impl rusqlite::Params,
        mut seen: impl FnMut(&str, &[u8]),
    ) -> Result<Vec<Row>, StoreError> {
        let mut query = self.database.prepare_cached(text).map_err(io)?;
        let mut found = query.query(values).map_err(io)?;
        let mut rows = Vec::new();
        while let Some(row) = found.next().map_err(io)? {
            let (id, body): (String, Vec<u8>) = (row.get(0).map_err(io)?, row.get(1).map_err(io)?);
            let mac: Vec<u8> = row.get(2).map_err(io)?;
            check_mac(&self.keys, table.number(), &id, &body, &mac)?;
            seen(&id, &mac);
            rows.push(Row { id, body });
        }
        Ok(rows)
    }

    /// The next rows of `table` behind `after`; they are counted in `found`.
    fn page(&self, table: Table, after: &str, found: &mut Head) -> Result<Vec<Row>, StoreError> {
        let text = "SELECT id, body, mac FROM row WHERE tbl = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let values = params![table.number(), after, PAGE as i64];
        let rows = self.rows(table, text, values, |id, mac| {
            mix(&mut found.digest, &term(&self.keys, table.number(), id, mac));
        })?;
        found.rows += rows.len() as u64;
        Ok(rows)
    }

    /// Holds what a sweep has found against the head.
    fn end_sweep(&mut self, found: Head) -> Result<(), StoreError> {
        if !self.is_checked {
            self.head = check_head(&self.database, &self.keys, FORMAT, found)?;
            self.is_checked = true;
        }
        Ok(())
    }

    /// Writes the image of the file as it is now, unless it is written.
    fn vouch(&mut self, is_end: bool) -> Result<(), StoreError> {
        let is_quiet = std::mem::replace(&mut self.seen, self.head.counter) == self.head.counter;
        if !(is_end || is_quiet) || self.latched || !self.is_checked || self.image == Some(self.head.counter)
        {
            return Ok(());
        }
        self.finish()?;
        self.forget_old_pages()?;
        let counter = self.head.counter;
        image::take(&self.dir, &self.keys, &self.file, counter)
            .map_err(|error| StoreError::Io(format!("the image of store.db: {error}")))?;
        self.image = Some(counter);
        Ok(())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if !self.is_checked {
            return Err(StoreError::Io("its rows have not all been checked yet".into()));
        }
        self.recover()?;
        self.finish()?;
        let next = match self.write(changes) {
            Ok(next) => next,
            Err((error, None)) => return Err(error),
            Err((error, Some(next))) => self.settle(next).map_err(|()| error)?,
        };
        self.head = next;
        self.due = Due { head_file: true, old_pages: changes.iter().any(destroys) };
        if let Err(error) = self.finish() {
            // The change itself is done and durable; the next one waits for what is left.
            log::error!("{error}");
        }
        Ok(())
    }

    /// Commits `changes` to the database. On an error, the head that may be on disk nevertheless.
    fn write(&mut self, changes: &[Change]) -> Result<Head, (StoreError, Option<Head>)> {
        let mut head = Head { counter: self.head.counter + 1, ..self.head };
        let before = |error| (error, None);
        let step = self.database.transaction().map_err(|e| before(io(e)))?;
        for change in changes {
            apply(&step, &self.keys, &mut head, change).map_err(before)?;
        }
        let mac = head_mac(&self.keys, &head);
        step.execute(
            "UPDATE head SET counter = ?1, rows = ?2, mac = ?3",
            params![head.counter as i64, head.rows as i64, mac],
        )
        .map_err(|e| before(io(e)))?;
        step.commit().map_err(|e| (io(e), Some(head)))?;
        Ok(head)
    }

    /// After a failed commit: reads which head is there. `next`: it was done after all; an error: it was not, or
    /// nobody knows, and then nothing is written until the old head is seen again.
    fn settle(&mut self, next: Head) -> Result<Head, ()> {
        self.latched = true;
        match self.head_on_disk() {
            Ok(mac) if constant_time_eq(&mac, &head_mac(&self.keys, &self.head)) => {
                self.latched = false;
                Err(())
            }
            // Only what reached the database file itself is known to be durable.
            Ok(mac) if constant_time_eq(&mac, &head_mac(&self.keys, &next)) => {
                self.forget_old_pages().map_err(|_| ())?;
                self.latched = false;
                Ok(next)
            }
            _ => Err(()),
        }
    }

    /// Lifts the latch when the database is as it was before the commit that failed.
    fn recover(&mut self) -> Result<(), StoreError> {
        if !self.latched {
            return Ok(());
        }
        let mac = self.head_on_disk()?;
        if !constant_time_eq(&mac, &head_mac(&self.keys, &self.head)) {
            // The caller was told that it failed, and yet it is there: memory and store differ until a restart.
            return Err(StoreError::Latched);
        }
        self.latched = false;
        Ok(())
    }

    /// The MAC of the head as the database gives it now, outside of any transaction.
    fn head_on_disk(&mut self) -> Result<Vec<u8>, StoreError> {
        if !self.database.is_autocommit() {
            self.database.execute_batch("ROLLBACK").map_err(io)?;
        }
        self.database.query_row("SELECT mac FROM head WHERE one = 1", [], |row| row.get(0)).map_err(io)
    }

    /// Does what is due after a commit.
    fn finish(&mut self) -> Result<(), StoreError> {
        if self.due.head_file {
            self.write_head_file()?;
            self.due.head_file = false;
        }
        if self.due.old_pages {
            self.forget_old_pages()?;
            self.due.old_pages = false;
        }
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
}

/// The counter in the head file.
fn read_head_file(file: &File, keys: &StoreKeys) -> Result<u64, StoreError> {
    let mut bytes = [0; HEAD_FILE_LEN];
    let damaged = || StoreError::Tampered(format!("the file {HEAD_FILE} does not belong to this store"));
    file.read_exact_at(&mut bytes, 0).map_err(|_| damaged())?;
    let authentic = constant_time_eq(&keys.head.sign(&[b"file", &bytes[8..16]]), &bytes[16..]);
    if &bytes[..8] != HEAD_MAGIC || !authentic {
        return Err(damaged());
    }
    Ok(u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")))
}

fn database_file(dir: &Path) -> Result<File, StoreError> {
    File::open(dir.join(DATABASE)).map_err(|error| StoreError::Io(format!("{DATABASE}: {error}")))
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
        for text in
            ["DELETE FROM row WHERE tbl = ?1 AND id = ?2", "DELETE FROM latest WHERE tbl = ?1 AND id = ?2"]
        {
            step.prepare_cached(text)
                .and_then(|mut delete| delete.execute(params![table, id]))
                .map_err(io)?;
        }
        return Ok(());
    };
    let mac = row_mac(keys, table, id, body);
    mix(&mut head.digest, &term(keys, table, id, &mac));
    head.rows += 1;
    let mut put = step
        .prepare_cached("INSERT OR REPLACE INTO row (tbl, id, body, mac) VALUES (?1, ?2, ?3, ?4)")
        .map_err(io)?;
    put.execute(params![table, id, body, mac]).map_err(io)?;
    let mut latest = step
        .prepare_cached("INSERT OR REPLACE INTO latest (tbl, id, mac) VALUES (?1, ?2, ?3)")
        .map_err(io)?;
    latest.execute(params![table, id, mac]).map(|_| ()).map_err(io)
}

fn destroys(change: &Change) -> bool {
    matches!(change, Change::Delete { table: Table::Material | Table::AccessKey, .. })
}

fn row_mac(keys: &StoreKeys, table: u8, id: &str, body: &[u8]) -> Mac {
    keys.row.sign(&[&[table], &(id.len() as u32).to_le_bytes(), id.as_bytes(), body])
}

pub(super) fn term(keys: &StoreKeys, table: u8, id: &str, mac: &[u8]) -> Mac {
    keys.term.sign(&[&[table], id.as_bytes(), mac])
}

pub(super) fn head_mac(keys: &StoreKeys, head: &Head) -> Mac {
    keys.head.sign(&[b"db", &head.counter.to_le_bytes(), &head.rows.to_le_bytes(), &head.digest])
}

pub(super) fn check_mac(
    keys: &StoreKeys,
    table: u8,
    id: &str,
    body: &[u8],
    mac: &[u8],
) -> Result<(), StoreError> {
    if constant_time_eq(&row_mac(keys, table, id, body), mac) {
        return Ok(());
    }
    Err(StoreError::Tampered(format!("{} was edited", row_name(table, id))))
}

/// What messages call a row.
pub(super) fn row_name(table: u8, id: &str) -> String {
    match Table::ALL.iter().find(|known| known.number() == table) {
        Some(known) => format!("row {id:?} of table {known:?}"),
        None => format!("row {id:?} of table {table}"),
    }
}

pub(super) fn mix(digest: &mut Mac, term: &Mac) {
    for (byte, other) in digest.iter_mut().zip(term) {
        *byte ^= other;
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
pub(super) fn io(error: rusqlite::Error) -> StoreError {
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
        let attach = format!("ATTACH '{}' AS other;", scratch.0.join("kept.db").display());
        scratch.meddle(&format!("{attach} CREATE TABLE other.kept AS SELECT * FROM row WHERE id = 'b'"));
        scratch.open().unwrap().commit(&[put(Table::Key, "b", b"newer")]).unwrap();
        scratch.meddle(&format!("{attach} REPLACE INTO row SELECT * FROM other.kept"));
        let told = scratch.open().unwrap_err().to_string();
        assert!(told.contains("row \"b\" of table Key was put back to an older state"), "{told}");
        // With the note of it gone as well, only the name is lost.
        scratch.meddle("DELETE FROM latest; INSERT INTO latest SELECT tbl, id, mac FROM row");
        assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))));
    }

    #[test]
    fn a_removed_and_an_added_row_are_named() {
        let scratch = filled();
        scratch.meddle("DELETE FROM row WHERE id = 'b'");
        let told = scratch.open().unwrap_err().to_string();
        assert!(told.contains("row \"b\" of table Key was removed"), "{told}");
        let scratch = filled();
        let attach = format!("ATTACH '{}' AS other;", scratch.0.join("kept.db").display());
        scratch.meddle(&format!("{attach} CREATE TABLE other.kept AS SELECT * FROM row WHERE id = 'b'"));
        scratch.open().unwrap().commit(&[Change::Delete { table: Table::Key, id: "b".into() }]).unwrap();
        scratch.meddle(&format!("{attach} INSERT INTO row SELECT * FROM other.kept"));
        let told = scratch.open().unwrap_err().to_string();
        assert!(told.contains("row \"b\" of table Key was added"), "{told}");
    }

    fn at_rest(scratch: &Scratch) -> Result<SqliteStore, StoreError> {
        SqliteStore::open_at_rest(&scratch.0, keys(1))
    }

    /// With an image, as a daemon leaves it.
    fn resting() -> Scratch {
        let scratch = filled();
        scratch.open().unwrap().vouch(true).unwrap();
        scratch
    }

    fn sweep(store: &SqliteStore) -> Result<usize, StoreError> {
        let mut count = 0;
        store.sweep(&Table::ALL, &mut |_, rows| count += rows.len()).map(|()| count)
    }

    #[test]
    fn a_store_at_rest_is_opened_without_its_rows_and_checked_by_a_sweep() {
        let scratch = resting();
        let store = at_rest(&scratch).unwrap();
        assert!(!store.is_checked());
        assert_eq!(store.get(Table::Key, "b").unwrap().unwrap().body, b"two");
        assert_eq!(store.get(Table::Key, "z").unwrap(), None);
        assert!(matches!(store.commit(&[put(Table::Key, "b", b"new")]), Err(StoreError::Io(_))));
        assert_eq!(sweep(&store), Ok(4));
        assert!(store.is_checked());
        store.commit(&[put(Table::Key, "b", b"newer")]).unwrap();
        drop(store);
        // Killed now, it has no image of what was committed last.
        assert!(at_rest(&scratch).unwrap().is_checked());
        assert_eq!(scratch.open().unwrap().load(Table::Key).unwrap()[1].body, b"newer");
    }

    #[test]
    fn an_image_is_made_while_nothing_changes() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        store.vouch(false).unwrap();
        assert!(!scratch.0.join("image").exists(), "something may have changed a moment ago");
        store.vouch(false).unwrap();
        drop(store);
        assert!(!at_rest(&scratch).unwrap().is_checked());
    }

    #[test]
    fn every_change_of_a_store_at_rest_is_noticed_and_named_when_it_is_opened() {
        for (sql, told) in [
            ("UPDATE row SET body = x'00' WHERE id = 'b'", "row \"b\" of table Key was edited"),
            ("DELETE FROM row WHERE id = 'b'", "row \"b\" of table Key was removed"),
            ("UPDATE head SET counter = counter + 1", "rows were added, removed or put back"),
        ] {
            let scratch = resting();
            scratch.meddle(sql);
            let found = at_rest(&scratch).map(|_| ()).unwrap_err().to_string();
            assert!(found.contains(told), "{sql}: {found}");
        }
        for planted in ["store.db-wal", "store.db-journal"] {
            let scratch = resting();
            std::fs::write(scratch.0.join(planted), b"not empty").unwrap();
            assert!(at_rest(&scratch).map_or(true, |store| store.is_checked()), "{planted}");
        }
        let scratch = resting();
        let mut image = std::fs::read(scratch.0.join("image")).unwrap();
        *image.last_mut().unwrap() ^= 1;
        std::fs::write(scratch.0.join("image"), image).unwrap();
        assert!(at_rest(&scratch).unwrap().is_checked(), "a bad image says nothing");
    }

    #[test]
    fn a_row_put_back_behind_the_opening_is_named_by_the_sweep() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        let old = "SELECT body, mac FROM row WHERE id = 'b'";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?));
        let (body, mac) = store.inner.lock().database.query_row(old, [], read).unwrap();
        store.commit(&[put(Table::Key, "b", b"newer")]).unwrap();
        store.vouch(true).unwrap();
        drop(store);
        let store = at_rest(&scratch).unwrap();
        assert!(!store.is_checked());
        let back = "UPDATE row SET body = ?1, mac = ?2 WHERE id = 'b'";
        store.inner.lock().database.execute(back, params![body, mac]).unwrap();
        let told = sweep(&store).unwrap_err().to_string();
        assert!(told.contains("row \"b\" of table Key was put back to an older state"), "{told}");
        assert!(!store.is_checked());
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
        scratch.meddle("PRAGMA user_version = 3");
        assert_eq!(scratch.open().unwrap_err(), StoreError::Newer(3));
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

    #[test]
    fn planted_triggers_views_tables_and_indices_are_refused() {
        for sql in [
            "CREATE TRIGGER t AFTER UPDATE ON head BEGIN DELETE FROM row WHERE tbl = 6; END",
            "CREATE VIEW v AS SELECT * FROM row",
            "CREATE TABLE kept AS SELECT * FROM row",
            "CREATE INDEX i ON row (mac)",
            "ALTER TABLE row ADD COLUMN more TEXT",
        ] {
            let scratch = filled();
            scratch.meddle(sql);
            assert!(matches!(scratch.open(), Err(StoreError::Tampered(_))), "{sql}");
        }
    }

    /// Makes each commit fail at its very end, as a full disk does, until `BREAK_NO_MORE`.
    const BREAK_COMMITS: &str = "
        PRAGMA foreign_keys = ON;
        CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TEMP TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
        CREATE TEMP TRIGGER fail AFTER UPDATE ON main.head BEGIN INSERT INTO child VALUES (7); END;";
    const BREAK_NO_MORE: &str = "DROP TRIGGER temp.fail";

    #[test]
    fn a_commit_that_failed_is_undone_and_the_next_one_works() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        store.inner.lock().database.execute_batch(BREAK_COMMITS).unwrap();
        for _ in 0..2 {
            assert!(matches!(store.commit(&[put(Table::Key, "b", b"lost")]), Err(StoreError::Io(_))));
        }
        store.inner.lock().database.execute_batch(BREAK_NO_MORE).unwrap();
        store.commit(&[put(Table::Key, "a", b"kept")]).unwrap();
        drop(store);
        let rows = scratch.open().unwrap().load(Table::Key).unwrap();
        let bodies: Vec<_> = rows.iter().map(|row| row.body.as_slice()).collect();
        assert_eq!(bodies, [&b"kept"[..], b"two", b"three"]);
    }

    #[test]
    fn a_latch_is_lifted_only_by_the_head_of_before() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        store.inner.lock().latched = true;
        store.commit(&[put(Table::Key, "a", b"new")]).unwrap();
        let mut inner = store.inner.lock();
        inner.latched = true;
        inner.head.counter -= 1;
        drop(inner);
        assert_eq!(store.commit(&[put(Table::Key, "a", b"newer")]), Err(StoreError::Latched));
    }

    #[test]
    fn a_commit_found_on_disk_after_an_error_counts_as_done() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        let mut inner = store.inner.lock();
        let old = inner.head;
        let next = inner.write(&[put(Table::Key, "a", b"new")]).map_err(|(error, _)| error).unwrap();
        assert!(inner.settle(next) == Ok(next) && !inner.latched);
        let other = Head { counter: old.counter + 9, ..old };
        assert!(inner.settle(other) == Err(()) && inner.latched);
    }

    #[test]
    fn a_head_file_that_cannot_be_written_holds_up_the_next_change_only() {
        let scratch = filled();
        let store = scratch.open().unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut store.inner.lock().head_file, full);
        store.commit(&[put(Table::Key, "a", b"new")]).unwrap();
        assert!(matches!(store.commit(&[put(Table::Key, "a", b"newer")]), Err(StoreError::Io(_))));
        store.inner.lock().head_file = good;
        store.commit(&[put(Table::Key, "a", b"newest")]).unwrap();
        drop(store);
        assert_eq!(scratch.open().unwrap().load(Table::Key).unwrap()[0].body, b"newest");
    }
}
