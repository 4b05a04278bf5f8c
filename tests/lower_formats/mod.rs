//! What must be so of each format of the lower tree, whatever bytes lie there; used by `hostile_bytes`, which damages
//! the seeds at random, and by the targets of fuzz/, which are led by coverage.
//!
//! Each check takes bytes of which the first says how the others are meant: as they stand, with checksums made right,
//! as plaintext that is then sealed with the known key (what a holder of the key, or a bug of ours, could have
//! written), or as edits of something sealed (what anybody could do). It panics where a promise is broken: a panic of
//! the parser, something forged that is taken, something taken that does not come back.
#![allow(dead_code, clippy::unwrap_used, missing_docs)] // Each user has its own part.

mod file;
mod names;
mod pages;
mod record;

use kmsfs::crypto::{DataKey, FileKeys, Secret, VolumeKey};
use kmsfs::format::{FileId, VolumeId, WrappedKey};

pub const BLOCK: usize = 4096;
pub const FILE_ID: FileId = FileId([3; 16]);
pub const VOLUME_ID: VolumeId = VolumeId([1; 16]);

/// One format: its name, bytes that its check takes, and the check, which tells whether the parser took them.
pub struct Format {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub check: fn(&[u8]) -> bool,
}

/// Every format; scripts/fuzz has a target of each name.
pub const ALL: &[Format] = &[
    Format { name: "header_page", seeds: pages::header_seeds, check: pages::header },
    Format { name: "tag_page", seeds: pages::tag_page_seeds, check: pages::tag_page },
    Format { name: "seal", seeds: pages::seal_seeds, check: pages::seal },
    Format { name: "volume_record", seeds: record::seeds, check: record::volume_record },
    Format { name: "dir_record", seeds: names::dir_record_seeds, check: names::dir_record },
    Format { name: "names", seeds: names::seeds, check: names::names },
    Format { name: "sealed_file", seeds: file::sealed_seeds, check: file::sealed },
    Format { name: "tag_log", seeds: file::log_seeds, check: file::tag_log },
];

/// The check of the format `name`.
pub fn check_of(name: &str) -> fn(&[u8]) -> bool {
    ALL.iter().find(|format| format.name == name).unwrap().check
}

pub fn volume_key(binds_names: bool) -> VolumeKey {
    VolumeKey::new(Secret::take(&mut [7; 32])).binding_names(binds_names)
}

pub fn data_key() -> DataKey {
    DataKey::take(&mut [9; 32])
}

pub fn file_keys() -> FileKeys {
    FileKeys::derive(&data_key(), &FILE_ID.0)
}

pub fn wrapped(n: u8) -> WrappedKey {
    WrappedKey { key_arn: "arn:aws:kms:local:0:key/a".into(), material_id: Some([n; 32]), blob: vec![n; 105] }
}

/// Made-up bytes, read from the front; behind their end come zeros.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.slice(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Up to `len` bytes.
    pub fn slice(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `good` with the bytes changed that the rest of the input names: place (2 bytes), value.
    pub fn edits(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bad = good.to_vec();
        while !self.is_empty() && !bad.is_empty() {
            let at = usize::from(self.u16()) % bad.len();
            bad[at] ^= self.byte();
        }
        bad
    }
}

/// Makes the CRC-32C behind `range` right.
pub fn fix_crc(bytes: &mut [u8], range: std::ops::Range<usize>) {
    let end = range.end;
    let crc = crc32c::crc32c(&bytes[range]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
}
