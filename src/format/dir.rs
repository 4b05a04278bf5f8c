//! The directory record: the identity of a directory, from which the keys of its names derive.
//!
//! It is a symbolic link `.kmsfs.dir` in the lower directory. A symbolic link is made whole or not at all, is journalled
//! as metadata, and takes no data block on ext4, xfs and btrfs; tar, cp and rsync keep it. Its target:
//!
//! ```text
//! base64url of  0  version (1 B) | 1  dir id (16 B) | 17  tag (16 B)
//! version 1: tag = GCM-SIV(directory record key, nonce = 0, aad = "dir" || version || dir id, empty message)
//! version 2: aad = "dir" || version || dir id || place (16 B), on a volume that binds names, and there alone
//! ```

use super::text;
use crate::crypto::{Place, VolumeKey, constant_time_eq};

/// Name of the record in each lower directory.
pub const DIR_RECORD: &str = ".kmsfs.dir";
/// Name of the extended attribute of the lower directory that holds a copy. It has not the prefix of encrypted ones.
pub const DIR_RECORD_COPY: &str = "user.kmsfs-dir";
const VERSION: u8 = 1;
const VERSION_PLACED: u8 = 2;
const RECORD_LEN: usize = 33;

/// Identity of one directory: random, kept through renames.
pub type DirId = [u8; 16];

/// Why a directory record does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirRecordError {
    /// Not a record, damaged, or of another volume or place.
    Forged,
    /// Written by a newer version of this program.
    Newer(u8),
}

fn version_of(place: Option<&Place>) -> u8 {
    if place.is_some() { VERSION_PLACED } else { VERSION }
}

fn tag(key: &VolumeKey, id: &DirId, place: Option<&Place>) -> [u8; 16] {
    let mut aad = Vec::with_capacity(36);
    aad.extend_from_slice(b"dir");
    aad.push(version_of(place));
    aad.extend_from_slice(id);
    aad.extend(place.into_iter().flatten());
    key.dir_record.mac(&[0; 12], &aad)
}

/// The target of the record's symbolic link; of a directory at `place`, where names are bound.
pub fn seal(key: &VolumeKey, id: &DirId, place: Option<&Place>) -> String {
    let mut record = [0; RECORD_LEN];
    record[0] = version_of(place);
    record[1..17].copy_from_slice(id);
    record[17..].copy_from_slice(&tag(key, id, place));
    text::encode(&record)
}

/// Checks a record and gives the directory's identity. Where names are bound it must be of `place`.
pub fn open(key: &VolumeKey, target: &[u8], place: Option<&Place>) -> Result<DirId, DirRecordError> {
    let record = text::decode(target).ok_or(DirRecordError::Forged)?;
    let record: &[u8; RECORD_LEN] = record.as_slice().try_into().map_err(|_| DirRecordError::Forged)?;
    if record[0] > VERSION_PLACED {
        return Err(DirRecordError::Newer(record[0]));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&record[1..17]);
    if record[0] != version_of(place) || !constant_time_eq(&record[17..], &tag(key, &id, place)) {
        return Err(DirRecordError::Forged);
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn volume_key(n: u8) -> VolumeKey {
        VolumeKey::new(Secret::take(&mut [n; 32]))
    }

    #[test]
    fn a_record_opens_under_its_volume_only_and_in_one_spelling() {
        let key = volume_key(7);
        let record = seal(&key, &[3; 16], None);
        assert!(record.len() < 60, "must fit an inode");
        assert_eq!(record, "AQMDAwMDAwMDAwMDAwMDAwO0O75t7GAiXCUCczMVjht5");
        assert_eq!(open(&key, record.as_bytes(), None), Ok([3; 16]));
        assert_eq!(open(&volume_key(8), record.as_bytes(), None), Err(DirRecordError::Forged));
        for at in 0..record.len() {
            let mut bad = record.clone().into_bytes();
            bad[at] = if bad[at] == b'B' { b'C' } else { b'B' };
            assert!(open(&key, &bad, None).is_err(), "character {at}");
        }
        assert_eq!(open(&key, &record.as_bytes()[..43], None), Err(DirRecordError::Forged));
        assert_eq!(open(&key, b"", None), Err(DirRecordError::Forged));
    }

    #[test]
    fn a_placed_record_opens_at_its_place_only_and_the_kinds_do_not_mix() {
        let key = volume_key(7).binding_names(true);
        let (here, there) = (key.place(&[1; 16], b"a"), key.place(&[1; 16], b"b"));
        let record = seal(&key, &[3; 16], here.as_ref());
        assert!(record.len() < 60, "must fit an inode");
        assert_eq!(open(&key, record.as_bytes(), here.as_ref()), Ok([3; 16]));
        for other in [there, key.place(&[2; 16], b"a"), key.root_place(), None] {
            assert_eq!(open(&key, record.as_bytes(), other.as_ref()), Err(DirRecordError::Forged));
        }
        let free = seal(&key, &[3; 16], None);
        assert_eq!(open(&key, free.as_bytes(), here.as_ref()), Err(DirRecordError::Forged));
    }
}
