//! The signed head of the audit log: how far the log reaches, and from where on it is kept.
//!
//! Used by the log, by the checks and by `kmsd audit`. Written in place, which the disk does whole: it fits a sector.
//!
//! ```text
//! audit/head    0 8 magic "KMSDAUD2" | 8 8 seq LE | 16 32 hash of that record
//!              48 8 seq LE of the last record no longer kept, 0 for none | 56 32 its hash
//!              88 32 HMAC(audit key, bytes 0..88)
//! version 1:    0 8 magic "KMSDAUDT" | 8 8 seq LE | 16 32 hash | 48 32 HMAC(audit key, bytes 0..48); everything is kept
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::crypto::{AuditKey, constant_time_eq};

use super::audit::AuditError;
use super::audit_chain::Link;

const HEAD_FILE: &str = "head";
const MAGIC: &[u8; 8] = b"KMSDAUD2";
const SIGNED: usize = 88;
const LEN: usize = SIGNED + 32;
const OLD_MAGIC: &[u8; 8] = b"KMSDAUDT";
const OLD_SIGNED: usize = 48;
const OLD_LEN: usize = OLD_SIGNED + 32;

/// What the head names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last record known to be on disk.
    pub last: Link,
    /// The record before the first one that is kept.
    pub base: Link,
}

impl Head {
    /// Of a new log.
    pub const START: Self = Self { last: Link::START, base: Link::START };
}

/// The head's file, open.
#[derive(Debug)]
pub(super) struct HeadFile(File);

impl HeadFile {
    /// Opens the head of the log in `dir`; makes the file where `create`.
    pub(super) fn open(dir: &Path, create: bool) -> Result<Self, AuditError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(create).mode(0o600).open(dir.join(HEAD_FILE));
        file.map(Self).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => AuditError::Broken("its head file is missing".into()),
            _ => AuditError::Io(error.to_string()),
        })
    }

    /// Writes and syncs.
    pub(super) fn write(&self, key: &AuditKey, head: Head) -> Result<(), AuditError> {
        let bytes = encode(key, head);
        let written = self.0.write_all_at(&bytes, 0).and_then(|()| self.0.sync_data());
        written.map_err(|error| AuditError::Io(error.to_string()))
    }

    /// Reads and checks.
    pub(super) fn read(&self, key: &AuditKey) -> Result<Head, AuditError> {
        let mut bytes = [0; LEN];
        let read = self.0.read_at(&mut bytes, 0).unwrap_or(0);
        let old = read >= OLD_LEN && &bytes[..8] == OLD_MAGIC;
        let (signed, whole) =
            if old { (OLD_SIGNED, true) } else { (SIGNED, read == LEN && &bytes[..8] == MAGIC) };
        let mac = &bytes[signed..(signed + 32).min(LEN)];
        if !whole || !constant_time_eq(&key.sign(&[&bytes[..signed]]), mac) {
            return Err(AuditError::Broken("its head file does not belong to this store".into()));
        }
        let base = if old { Link::START } else { link(&bytes[48..SIGNED]) };
        Ok(Head { last: link(&bytes[8..48]), base })
    }
}

fn encode(key: &AuditKey, head: Head) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(MAGIC);
    for (at, link) in [(8, head.last), (48, head.base)] {
        bytes[at..at + 8].copy_from_slice(&link.seq.to_le_bytes());
        bytes[at + 8..at + 40].copy_from_slice(&link.hash);
    }
    let mac = key.sign(&[&bytes[..SIGNED]]);
    bytes[SIGNED..].copy_from_slice(&mac);
    bytes
}

fn link(bytes: &[u8]) -> Link {
    let mut link = Link::START;
    link.seq = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    link.hash.copy_from_slice(&bytes[8..40]);
    link
}

/// Reads what the signed head of the log in `dir` names.
pub fn signed_head(dir: &Path, key: &AuditKey) -> Result<Head, AuditError> {
    HeadFile::open(dir, false)?.read(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hex;
    use crate::crypto::{RootKey, random_array};

    fn scratch() -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("kmsd-head-{}", hex(&random_array::<8>())));
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    fn key() -> AuditKey {
        RootKey::of_bytes([7; 32]).audit_key()
    }

    const HEAD: Head = Head { last: Link { seq: 9, hash: [1; 32] }, base: Link { seq: 4, hash: [2; 32] } };

    #[test]
    fn every_changed_byte_of_a_head_is_refused() {
        let dir = scratch();
        let file = HeadFile::open(&dir, true).unwrap();
        file.write(&key(), HEAD).unwrap();
        assert_eq!(signed_head(&dir, &key()).unwrap(), HEAD);
        let good = std::fs::read(dir.join(HEAD_FILE)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(dir.join(HEAD_FILE), &bad).unwrap();
            assert!(signed_head(&dir, &key()).is_err(), "byte {at}");
            std::fs::write(dir.join(HEAD_FILE), &good[..at]).unwrap();
            assert!(signed_head(&dir, &key()).is_err(), "cut to {at}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_head_of_version_1_keeps_everything() {
        let dir = scratch();
        let mut bytes = [&OLD_MAGIC[..], &9u64.to_le_bytes(), &[1; 32]].concat();
        let mac = key().sign(&[&bytes]);
        bytes.extend(mac);
        std::fs::write(dir.join(HEAD_FILE), &bytes).unwrap();
        assert_eq!(signed_head(&dir, &key()).unwrap(), Head { base: Link::START, ..HEAD });
        HeadFile::open(&dir, false).unwrap().write(&key(), HEAD).unwrap();
        assert_eq!(signed_head(&dir, &key()).unwrap(), HEAD);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
