//! Names in the lower tree: deterministic, authenticated, one key per directory.
//!
//! `text = base64url(GCM-SIV(dir key, nonce = 0, plain = name zero-padded to 16) || tag)`. The nonce is constant on
//! purpose: GCM-SIV then is a deterministic cipher, so a name has one spelling and can be looked up. Equal names show
//! only within one directory, where there are none. A text above 255 characters goes to a sidecar:
//!
//! ```text
//! entry    .kmsfs.l.<base64url(SHA-256(text))>      the file or directory itself
//! sidecar  .kmsfs.n.<the same hash>                 a symbolic link whose target is text
//! ```
//! Our own names hold dots, which base64url has not, so they never clash with an encrypted name.

use super::text;
use crate::crypto::{DirKey, TAG_LEN, sha256};

/// Longest plaintext name, as ext4's.
pub const NAME_MAX: usize = 255;
/// Names are padded to a multiple of this, so that lengths show only roughly.
const PAD: usize = 16;
/// Longest lower name, in bytes.
pub const LOWER_NAME_MAX: usize = 255;
const LONG_PREFIX: &str = ".kmsfs.l.";
const SIDECAR_PREFIX: &str = ".kmsfs.n.";
const RESERVED_PREFIX: &[u8] = b".kmsfs.";
const FIXED_NONCE: [u8; 12] = [0; 12];

/// A plaintext name as the lower directory shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerName {
    /// The name of the entry.
    pub entry: String,
    /// For a long name, the symbolic link that must stand beside the entry.
    pub sidecar: Option<Sidecar>,
}

/// Where a long name's text is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Name of the symbolic link.
    pub name: String,
    /// Its target.
    pub target: String,
}

/// What a name in a lower directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An entry whose name is its encrypted text.
    Short,
    /// An entry whose text is in its sidecar.
    LongEntry,
    /// The sidecar of a long entry.
    Sidecar,
    /// A record of ours (directory record, volume record, log, temporary).
    Record,
    /// Not ours: tolerated, hidden, reported by the check, never deleted.
    Foreign,
}

/// Why a name cannot be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Above 255 bytes: ENAMETOOLONG.
    TooLong,
    /// Empty, or holds NUL or a slash.
    Invalid,
    /// The lower name is not one that this directory's key made.
    Forged,
}

/// The lower name of `name` in the directory of `key`.
pub fn encrypt(key: &DirKey, name: &[u8]) -> Result<LowerName, NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong);
    }
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(NameError::Invalid);
    }
    let mut sealed = name.to_vec();
    sealed.resize(name.len().next_multiple_of(PAD), 0);
    let tag = key.names.seal(&FIXED_NONCE, b"name", &mut sealed);
    sealed.extend_from_slice(&tag);
    let text = text::encode(&sealed);
    if text.len() <= LOWER_NAME_MAX {
        return Ok(LowerName { entry: text, sidecar: None });
    }
    let hash = text::encode(&sha256(text.as_bytes()));
    Ok(LowerName {
        entry: format!("{LONG_PREFIX}{hash}"),
        sidecar: Some(Sidecar { name: format!("{SIDECAR_PREFIX}{hash}"), target: text }),
    })
}

/// The plaintext name of `lower`: a short entry's name, or the target of a sidecar.
pub fn decrypt(key: &DirKey, lower: &[u8]) -> Result<Vec<u8>, NameError> {
    let sealed = text::decode(lower).ok_or(NameError::Forged)?;
    let padded_len = sealed.len().checked_sub(TAG_LEN).ok_or(NameError::Forged)?;
    if padded_len == 0 || !padded_len.is_multiple_of(PAD) || padded_len > NAME_MAX.next_multiple_of(PAD) {
        return Err(NameError::Forged);
    }
    let (body, tag) = sealed.split_at(padded_len);
    let tag = tag.try_into().map_err(|_| NameError::Forged)?;
    let mut name = vec![0; padded_len];
    key.names.open(&FIXED_NONCE, b"name", body, tag, &mut name).map_err(|_| NameError::Forged)?;
    let len = name.iter().position(|b| *b == 0).unwrap_or(padded_len);
    let canonical = len.next_multiple_of(PAD) == padded_len && name[len..].iter().all(|b| *b == 0);
    name.truncate(len);
    if !canonical
        || name.is_empty()
        || name.len() > NAME_MAX
        || name.contains(&b'/')
        || name == b"."
        || name == b".."
    {
        return Err(NameError::Forged);
    }
    Ok(name)
}

/// Whether `target`, read from the sidecar of `entry`, is the text that `entry` stands for.
pub fn sidecar_fits(entry: &str, target: &[u8]) -> bool {
    entry.strip_prefix(LONG_PREFIX) == Some(text::encode(&sha256(target)).as_str())
}

/// The sidecar's name of a long entry.
pub fn sidecar_of(entry: &str) -> Option<String> {
    entry.strip_prefix(LONG_PREFIX).map(|hash| format!("{SIDECAR_PREFIX}{hash}"))
}

/// The long entry that a sidecar belongs to.
pub fn entry_of_sidecar(sidecar: &str) -> Option<String> {
    sidecar.strip_prefix(SIDECAR_PREFIX).map(|hash| format!("{LONG_PREFIX}{hash}"))
}

/// What a name in a lower directory is, by its spelling alone.
pub fn classify(lower: &[u8]) -> Kind {
    if lower.starts_with(LONG_PREFIX.as_bytes()) {
        return Kind::LongEntry;
    }
    if lower.starts_with(SIDECAR_PREFIX.as_bytes()) {
        return Kind::Sidecar;
    }
    if lower.starts_with(RESERVED_PREFIX) {
        return Kind::Record;
    }
    let len = text::decoded_len(lower.len());
    let plausible = len > TAG_LEN && (len - TAG_LEN).is_multiple_of(PAD) && text::decode(lower).is_some();
    if plausible { Kind::Short } else { Kind::Foreign }
}

/// A temporary name for something that is renamed into place when whole.
pub fn temporary(random: [u8; 12]) -> String {
    format!("{}{}", TEMPORARY_PREFIX, text::encode(&random))
}

/// A name for what stood where one of our own files belongs, and was moved aside.
pub fn foreign(random: [u8; 12]) -> String {
    format!("{FOREIGN_PREFIX}{}", text::encode(&random))
}

/// What names of things moved aside begin with; nothing reads them, the check reports them.
pub const FOREIGN_PREFIX: &str = ".kmsfs.foreign.";

/// What temporary names begin with; leftovers of a crash may be removed once no mount uses the tree.
pub const TEMPORARY_PREFIX: &str = ".kmsfs.t.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Secret, VolumeKey};
    use proptest::prelude::*;

    fn dir_key(n: u8) -> DirKey {
        VolumeKey::new(Secret::take(&mut [7; 32])).dir_key(&[n; 16])
    }

    proptest! {
        #[test]
        fn a_name_comes_back(name in proptest::collection::vec(
            any::<u8>().prop_filter("not a name byte", |b| *b != 0 && *b != b'/'), 1..=255)
        ) {
            prop_assume!(name != b"." && name != b"..");
            let key = dir_key(1);
            let lower = encrypt(&key, &name).unwrap();
            prop_assert!(lower.entry.len() <= 255);
            let text = lower.sidecar.as_ref().map_or(&lower.entry, |s| &s.target);
            prop_assert_eq!(decrypt(&key, text.as_bytes()).unwrap(), name);
            prop_assert_eq!(decrypt(&dir_key(2), text.as_bytes()), Err(NameError::Forged));
            match &lower.sidecar {
                None => prop_assert_eq!(classify(lower.entry.as_bytes()), Kind::Short),
                Some(s) => {
                    prop_assert_eq!(classify(lower.entry.as_bytes()), Kind::LongEntry);
                    prop_assert_eq!(classify(s.name.as_bytes()), Kind::Sidecar);
                    prop_assert_eq!(sidecar_of(&lower.entry), Some(s.name.clone()));
                    prop_assert_eq!(entry_of_sidecar(&s.name), Some(lower.entry.clone()));
                    prop_assert!(sidecar_fits(&lower.entry, s.target.as_bytes()));
                }
            }
        }

        #[test]
        fn any_changed_character_is_refused(at in 0_usize..43, to in proptest::char::any()) {
            let key = dir_key(1);
            let mut text: Vec<char> = encrypt(&key, b"secret").unwrap().entry.chars().collect();
            prop_assume!(text[at] != to);
            text[at] = to;
            let text: String = text.into_iter().collect();
            prop_assert_eq!(decrypt(&key, text.as_bytes()), Err(NameError::Forged));
        }
    }

    #[test]
    fn the_golden_names_stay() {
        let key = dir_key(1);
        assert_eq!(encrypt(&key, b"hello").unwrap().entry, golden("short"));
        let long = encrypt(&key, &[b'x'; 200]).unwrap();
        assert_eq!(long.entry, golden("long entry"));
        assert_eq!(text::encode(&sha256(long.sidecar.unwrap().target.as_bytes())), golden("long target"));
    }

    fn golden(name: &str) -> String {
        let file = include_str!("../../tests/vectors/names.txt");
        let line = file.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
        line.expect("the golden name is listed").to_owned()
    }

    #[test]
    fn bad_names_are_told_apart() {
        let key = dir_key(1);
        assert_eq!(encrypt(&key, &[b'a'; 256]), Err(NameError::TooLong));
        for bad in [&b""[..], b"a/b", b"a\0b"] {
            assert_eq!(encrypt(&key, bad), Err(NameError::Invalid));
        }
        assert_eq!(classify(b"readme.txt"), Kind::Foreign);
        assert_eq!(classify(b".kmsfs.volume"), Kind::Record);
        assert_eq!(classify(b"abc"), Kind::Foreign);
    }

    #[test]
    fn a_crafted_dot_name_is_refused() {
        let key = dir_key(1);
        for name in [&b"."[..], b"..", b"a/b"] {
            let mut sealed = name.to_vec();
            sealed.resize(16, 0);
            let tag = key.names.seal(&FIXED_NONCE, b"name", &mut sealed);
            sealed.extend_from_slice(&tag);
            assert_eq!(decrypt(&key, text::encode(&sealed).as_bytes()), Err(NameError::Forged));
        }
    }
}
