//! What is checked when the store is opened: that the database is ours, holds our tables only, and every row's MAC.
//!
//! Called by `sqlite` alone. Reads only, but for the step from an older format, which comes after the checks.

use rusqlite::{Connection, OptionalExtension};

use crate::crypto::{StoreKeys, constant_time_eq};

use super::sqlite::{
    APPLICATION_ID, FORMAT, Head, SCHEMA, SCHEMA_LATEST, check_mac, head_mac, io, mix, row_name, term,
};
use super::store::StoreError;

/// Most rows that are read into memory at once.
const MAX_ROWS: u64 = 10_000_000;

/// Refuses a file that is not a key store, or a newer one. Returns its format.
pub(super) fn check_identity(database: &Connection) -> Result<u32, StoreError> {
    let number = |name| database.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(io);
    if number("application_id")? != APPLICATION_ID {
        return Err(StoreError::Tampered("store.db is not a key store".into()));
    }
    match number("user_version")? as u32 {
        version @ 1..=FORMAT => Ok(version),
        version if version > FORMAT => Err(StoreError::Newer(version)),
        version => Err(StoreError::Tampered(format!("store.db claims format {version}"))),
    }
}

/// Refuses triggers, views, indices and tables that somebody else put in.
pub(super) fn check_schema(database: &Connection, format: u32) -> Result<(), StoreError> {
    let fresh = Connection::open_in_memory().map_err(io)?;
    fresh.execute_batch(SCHEMA).map_err(io)?;
    if format >= 2 {
        fresh.execute_batch(SCHEMA_LATEST).map_err(io)?;
    }
    if objects(database)? != objects(&fresh)? {
        return Err(StoreError::Tampered(
            "store.db holds tables, triggers or views that are not ours".into(),
        ));
    }
    Ok(())
}

/// Type, name, table and definition of what is in a database, up to one more than ours has.
fn objects(database: &Connection) -> Result<Vec<[Option<String>; 4]>, StoreError> {
    let text = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name LIMIT 4";
    let mut query = database.prepare(text).map_err(io)?;
    let object = |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]);
    let found = query.query_map([], object).map_err(io)?;
    found.collect::<Result<_, _>>().map_err(io)
}

/// Checks every row and the head over all of them.
pub(super) fn check_rows(database: &Connection, keys: &StoreKeys, format: u32) -> Result<Head, StoreError> {
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
    check_head(database, keys, format, head)
}

/// Counter, number of rows and MAC of the head in the database.
pub(super) fn stored_head(database: &Connection) -> Result<(u64, u64, Vec<u8>), StoreError> {
    let numbers = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?));
    let stored = database.query_row("SELECT counter, rows, mac FROM head WHERE one = 1", [], numbers);
    let (counter, rows, mac) = stored
        .optional()
        .map_err(io)?
        .ok_or_else(|| StoreError::Tampered("the head of store.db is missing".into()))?;
    Ok((counter as u64, rows as u64, mac))
}

/// Holds the rows that were found, with their digest, against the head.
pub(super) fn check_head(
    database: &Connection,
    keys: &StoreKeys,
    format: u32,
    found: Head,
) -> Result<Head, StoreError> {
    let (counter, rows, mac) = stored_head(database)?;
    let head = Head { counter, ..found };
    // Rows of a table that nobody reads count too.
    let all: i64 = database.query_row("SELECT count(*) FROM row", [], |row| row.get(0)).map_err(io)?;
    let is_whole = rows == head.rows && all as u64 == head.rows;
    if !is_whole || !constant_time_eq(&head_mac(keys, &head), &mac) {
        let named = if format >= 2 { name_change(database)? } else { None };
        let what = named.unwrap_or_else(|| "rows were added, removed or put back".into());
        return Err(StoreError::Tampered(what));
    }
    Ok(head)
}

/// The first row that is not as the daemon last wrote it.
fn name_change(database: &Connection) -> Result<Option<String>, StoreError> {
    let text = "SELECT r.tbl, r.id, CASE WHEN l.id IS NULL THEN 'was added' ELSE 'was put back to an older state' END
                FROM row r LEFT JOIN latest l ON l.tbl = r.tbl AND l.id = r.id WHERE l.mac IS NOT r.mac
                UNION ALL
                SELECT l.tbl, l.id, 'was removed'
                FROM latest l LEFT JOIN row r ON r.tbl = l.tbl AND r.id = l.id WHERE r.id IS NULL
                LIMIT 1";
    let found = database.query_row(text, [], |row| {
        let (table, id, what): (u8, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!("{} {what}", row_name(table, &id)))
    });
    found.optional().map_err(io)
}

/// Brings a store of an older format to the current one, after it was checked.
pub(super) fn migrate(database: &Connection, format: u32) -> Result<(), StoreError> {
    if format >= FORMAT {
        return Ok(());
    }
    let steps = format!(
        "BEGIN; {SCHEMA_LATEST} INSERT INTO latest SELECT tbl, id, mac FROM row; PRAGMA user_version = {FORMAT}; COMMIT;"
    );
    database.execute_batch(&steps).map_err(io)?;
    log::info!("the key store was brought from format {format} to {FORMAT}");
    Ok(())
}
