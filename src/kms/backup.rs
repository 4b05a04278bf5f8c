//! A backup of a store in one file, sealed under the root key, and the way back.
//!
//! Written by a running daemon between two changes, or by `kmsd backup` when none runs. The root key itself is in it
//! as in the state directory: sealed by the key file or the passphrase. The audit log is not in it.
//!
//! ```text
//!  0   8  magic "KMSDBAK1"
//!  8  16  salt: the backup key is HKDF-SHA-256(salt, root key, "kmsd/1 backup")
//! 24   4  length of the root file, LE
//! 28   -  the root file
//!      -  parts: length LE u32 (its top bit: the last part) || AES-256-GCM-SIV(part), nonce = number of the part,
//!         additional data = 1 for the last part, 0 for the others
//! ```
//! The parts together are rows, `table u8 || length of id u32 LE || id || length of body u32 LE || body` each.

use std::path::Path;

use crate::crypto::{BackupKey, RootKey, SALT_LEN, random_array};

use super::root::Root;
use super::sealed::{self, SealSecret, SealedError};
use super::store::{Change, Store, StoreError, Table};

const MAGIC: &[u8; 8] = b"KMSDBAK1";
const SALT_AT: usize = 8;
const ROOT_LEN_AT: usize = SALT_AT + SALT_LEN;
const ROOT_AT: usize = ROOT_LEN_AT + 4;
/// Bytes of a part before it is sealed.
const PART: usize = 1024 * 1024;
const LAST: u32 = 1 << 31;
/// Longest backup.
pub(super) const MAX_BACKUP: u64 = 8 * 1024 * 1024 * 1024;
/// Rows of one commit on the way back.
const ROWS_A_COMMIT: usize = 10_000;

/// Why a backup cannot be read.
#[derive(Debug)]
pub enum BackupError {
    /// Not a backup, cut short, or changed.
    Damaged,
    /// The secret does not open it.
    Seal(SealedError),
}

/// Everything in `store`, sealed.
pub(super) fn write(store: &dyn Store, root: &Root, root_file: &[u8]) -> Result<Vec<u8>, StoreError> {
    let salt = random_array();
    let mut out = [&MAGIC[..], &salt, &(root_file.len() as u32).to_le_bytes(), root_file].concat();
    let mut parts = Parts { key: root.backup_key(&salt), number: 0, pending: Vec::with_capacity(PART) };
    for table in Table::ALL {
        for row in store.load(table)? {
            parts.pending.push(table.number());
            for bytes in [row.id.as_bytes(), &row.body] {
                parts.pending.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                parts.pending.extend_from_slice(bytes);
            }
            while parts.pending.len() > PART {
                let rest = parts.pending.split_off(PART);
                parts.seal(false, &mut out);
                parts.pending = rest;
            }
        }
    }
    parts.seal(true, &mut out);
    Ok(out)
}

struct Parts {
    key: BackupKey,
    number: u64,
    pending: Vec<u8>,
}

impl Parts {
    fn seal(&mut self, is_last: bool, out: &mut Vec<u8>) {
        let sealed = self.key.seal(self.number, is_last, &self.pending);
        let flag = if is_last { LAST } else { 0 };
        out.extend_from_slice(&(sealed.len() as u32 | flag).to_le_bytes());
        out.extend_from_slice(&sealed);
        self.number += 1;
    }
}

/// The sealed root file in a backup.
pub(super) fn root_file(backup: &[u8]) -> Result<&[u8], BackupError> {
    let head = backup.get(..ROOT_AT).filter(|head| head.starts_with(MAGIC)).ok_or(BackupError::Damaged)?;
    let len = u32::from_le_bytes(head[ROOT_LEN_AT..].try_into().expect("four bytes")) as usize;
    backup.get(ROOT_AT..ROOT_AT + len).ok_or(BackupError::Damaged)
}

/// Opens a backup: its root key and all its rows. `root_path` holds the backup's root file.
pub(super) fn open(
    backup: &[u8],
    root_path: &Path,
    secret: &SealSecret<'_>,
) -> Result<(RootKey, Vec<Change>), BackupError> {
    let root = sealed::open(root_path, secret).map_err(BackupError::Seal)?;
    let salt = backup[SALT_AT..ROOT_LEN_AT].try_into().expect("the root file stands behind it");
    let sealed = &backup[ROOT_AT + root_file(backup)?.len()..];
    let plain = open_parts(&root.backup_key(salt), sealed).ok_or(BackupError::Damaged)?;
    let rows = rows(&plain).ok_or(BackupError::Damaged)?;
    Ok((root, rows))
}

fn open_parts(key: &BackupKey, mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(rest.len());
    for number in 0.. {
        let (word, behind) = rest.split_at_checked(4)?;
        let word = u32::from_le_bytes(word.try_into().ok()?);
        let (sealed, behind) = behind.split_at_checked((word & !LAST) as usize)?;
        let is_last = word & LAST != 0;
        plain.extend(key.open(number, is_last, sealed).ok()?);
        if is_last {
            return behind.is_empty().then_some(plain);
        }
        rest = behind;
    }
    None
}

fn rows(mut rest: &[u8]) -> Option<Vec<Change>> {
    let mut out = Vec::new();
    while let Some((number, behind)) = rest.split_first() {
        let table = *Table::ALL.iter().find(|table| table.number() == *number)?;
        let (id, behind) = field(behind)?;
        let (body, behind) = field(behind)?;
        out.push(Change::Put { table, id: String::from_utf8(id.to_vec()).ok()?, body: body.to_vec() });
        rest = behind;
    }
    Some(out)
}

fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_at_checked(4)?;
    rest.split_at_checked(u32::from_le_bytes(len.try_into().ok()?) as usize)
}

/// Puts `rows` into a new, empty `store`.
pub(super) fn fill(store: &dyn Store, rows: &[Change]) -> Result<(), StoreError> {
    rows.chunks(ROWS_A_COMMIT).try_for_each(|some| store.commit(some))
}

#[cfg(test)]
mod tests {
    use super::super::sealed::SealKind;
    use super::super::store::MemoryStore;
    use super::*;
    use crate::api::hex;

    #[test]
    fn a_backup_opens_whole_and_every_changed_or_missing_byte_is_noticed() {
        let path = std::env::temp_dir().join(format!("kmsd-backup-{}", hex(&random_array::<8>())));
        let secret = SealSecret { kind: SealKind::KeyFile, bytes: &[5; 32], hint: "" };
        let key = RootKey::random();
        sealed::create(&path, &key, &secret).unwrap();
        let root_bytes = std::fs::read(&path).unwrap();
        let store = MemoryStore::new();
        let root = Root::open(key, &store).unwrap();
        let put = |id: &str, len| Change::Put { table: Table::Key, id: id.into(), body: vec![7; len] };
        store.commit(&[put("a", 3), put("b", 3 * PART), put("c", 0)]).unwrap();
        let backup = write(&store, &root, &root_bytes).unwrap();
        let (_, rows) = open(&backup, &path, &secret).unwrap();
        let other = MemoryStore::new();
        fill(&other, &rows).unwrap();
        for table in Table::ALL {
            assert_eq!(other.load(table).unwrap(), store.load(table).unwrap());
        }
        let sealed_from = ROOT_AT + root_bytes.len();
        let places = (sealed_from..backup.len()).step_by(40_009).chain([0, SALT_AT, backup.len() - 1]);
        for at in places {
            let mut bad = backup.clone();
            bad[at] ^= 1;
            assert!(root_file(&bad).is_err() || open(&bad, &path, &secret).is_err(), "byte {at}");
            assert!(root_file(&backup[..at]).is_err() || open(&backup[..at], &path, &secret).is_err());
        }
        std::fs::remove_file(path).unwrap();
    }
}
