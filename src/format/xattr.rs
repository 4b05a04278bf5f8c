//! Extended attributes: names deterministic under the volume key, values bound to their owner and name.
//!
//! ```text
//! lower name   user.kmsfs.<base64url(GCM-SIV(name key, nonce = 0, plain name) || tag)>
//! lower value  nonce 12 B || ciphertext || tag 16 B,   aad = "xattr" || owner 16 B || plain name
//! ```
//! The owner is the file id, the directory id, or zero for special files.

use super::text;
use crate::crypto::{Aead, NONCE_LEN, TAG_LEN, VolumeKey, random_array};

/// What lower names begin with on files and directories.
pub const PREFIX: &str = "user.kmsfs.";
/// What they begin with on symbolic links and special files, where `user.` is not allowed (root only).
pub const SPECIAL_PREFIX: &str = "trusted.kmsfs.";
/// The owner there: special files have no identity of their own to bind a value to.
pub const NO_OWNER: [u8; 16] = [0; 16];
/// Bytes that a value grows by.
pub const VALUE_OVERHEAD: usize = NONCE_LEN + TAG_LEN;
/// Longest lower attribute name (XATTR_NAME_MAX, xattr(7)).
const LOWER_NAME_MAX: usize = 255;
const FIXED_NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];

/// The attribute's name or value does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrError;

/// The lower name of `name` behind `prefix`; `None` where it would be longer than the kernel allows.
pub fn lower_name(key: &VolumeKey, prefix: &str, name: &[u8]) -> Option<String> {
    let mut sealed = name.to_vec();
    let tag = key.xattr_name.seal(&FIXED_NONCE, b"xattr name", &mut sealed);
    sealed.extend_from_slice(&tag);
    let lower = format!("{prefix}{}", text::encode(&sealed));
    (lower.len() <= LOWER_NAME_MAX).then_some(lower)
}

/// The plain name of `lower`; `None` for an attribute that is not ours.
pub fn plain_name(key: &VolumeKey, prefix: &str, lower: &[u8]) -> Option<Result<Vec<u8>, XattrError>> {
    let sealed = lower.strip_prefix(prefix.as_bytes())?;
    Some(open_name(key, sealed))
}

fn open_name(key: &VolumeKey, encoded: &[u8]) -> Result<Vec<u8>, XattrError> {
    let sealed = text::decode(encoded).ok_or(XattrError)?;
    let end = sealed.len().checked_sub(TAG_LEN).ok_or(XattrError)?;
    let tag = sealed[end..].try_into().map_err(|_| XattrError)?;
    let mut name = vec![0; end];
    let opened = key.xattr_name.open(&FIXED_NONCE, b"xattr name", &sealed[..end], tag, &mut name);
    opened.map_err(|_| XattrError)?;
    Ok(name)
}

fn aad(owner: &[u8; 16], name: &[u8]) -> Vec<u8> {
    [b"xattr", owner.as_slice(), name].concat()
}

/// The lower value of `value`.
pub fn seal_value(key: &Aead, owner: &[u8; 16], name: &[u8], value: &[u8]) -> Vec<u8> {
    let nonce = random_array::<NONCE_LEN>();
    let mut sealed = Vec::with_capacity(value.len() + VALUE_OVERHEAD);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(value);
    let tag = key.seal(&nonce, &aad(owner, name), &mut sealed[NONCE_LEN..]);
    sealed.extend_from_slice(&tag);
    sealed
}

/// The plain value of `lower`.
pub fn open_value(key: &Aead, owner: &[u8; 16], name: &[u8], lower: &[u8]) -> Result<Vec<u8>, XattrError> {
    let end = lower.len().checked_sub(TAG_LEN).filter(|end| *end >= NONCE_LEN).ok_or(XattrError)?;
    let nonce = lower[..NONCE_LEN].try_into().map_err(|_| XattrError)?;
    let tag = lower[end..].try_into().map_err(|_| XattrError)?;
    let mut value = vec![0; end - NONCE_LEN];
    let opened = key.open(nonce, &aad(owner, name), &lower[NONCE_LEN..end], tag, &mut value);
    opened.map_err(|_| XattrError)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    #[test]
    fn values_are_bound_to_owner_and_name() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        let sealed = seal_value(&key.special_xattr, &[1; 16], b"user.a", b"value");
        assert_eq!(open_value(&key.special_xattr, &[1; 16], b"user.a", &sealed).unwrap(), b"value");
        assert!(open_value(&key.special_xattr, &[2; 16], b"user.a", &sealed).is_err());
        assert!(open_value(&key.special_xattr, &[1; 16], b"user.b", &sealed).is_err());
        let empty = seal_value(&key.special_xattr, &[1; 16], b"user.a", b"");
        assert_eq!(empty.len(), VALUE_OVERHEAD);
        assert_eq!(open_value(&key.special_xattr, &[1; 16], b"user.a", &empty).unwrap(), b"");
        assert!(open_value(&key.special_xattr, &[1; 16], b"user.a", &empty[1..]).is_err());
    }

    #[test]
    fn names_come_back_and_foreign_ones_are_left_alone() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        let lower = lower_name(&key, PREFIX, b"user.comment").unwrap();
        assert_eq!(plain_name(&key, PREFIX, lower.as_bytes()), Some(Ok(b"user.comment".to_vec())));
        assert_eq!(plain_name(&key, PREFIX, b"user.other"), None);
        assert_eq!(plain_name(&key, PREFIX, b"user.kmsfs.AAAA"), Some(Err(XattrError)));
        assert_eq!(lower_name(&key, PREFIX, &[b'x'; 200]), None);
    }
}
