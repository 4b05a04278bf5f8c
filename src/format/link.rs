//! Targets of symbolic links: `base64url(nonce 12 B || ciphertext || tag 16 B)` as the lower link's target.
//!
//! The length of the plain target follows from the lower length, so `lstat` needs no decryption.

use super::text;
use crate::crypto::{NONCE_LEN, TAG_LEN, VolumeKey, random_array};

const OVERHEAD: usize = NONCE_LEN + TAG_LEN;
const AAD: &[u8] = b"symlink";
/// Longest lower target (PATH_MAX less the final NUL).
const LOWER_MAX: usize = 4095;
/// Longest plain target that fits a lower one, in bytes. Longer ones answer ENAMETOOLONG.
pub const TARGET_MAX: usize = LOWER_MAX * 3 / 4 - OVERHEAD;

/// The target does not open under the volume's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkError;

/// The lower target of `target`, or `None` where it is too long or empty.
pub fn seal(key: &VolumeKey, target: &[u8]) -> Option<String> {
    if target.is_empty() || target.len() > TARGET_MAX {
        return None;
    }
    let nonce = random_array::<NONCE_LEN>();
    let mut sealed = Vec::with_capacity(target.len() + OVERHEAD);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(target);
    let tag = key.symlink.seal(&nonce, AAD, &mut sealed[NONCE_LEN..]);
    sealed.extend_from_slice(&tag);
    Some(text::encode(&sealed))
}

/// The plain target of `lower`.
pub fn open(key: &VolumeKey, lower: &[u8]) -> Result<Vec<u8>, LinkError> {
    let sealed = text::decode(lower).ok_or(LinkError)?;
    let body_end = sealed.len().checked_sub(TAG_LEN).filter(|end| *end > NONCE_LEN).ok_or(LinkError)?;
    let nonce = sealed[..NONCE_LEN].try_into().map_err(|_| LinkError)?;
    let tag = sealed[body_end..].try_into().map_err(|_| LinkError)?;
    let mut target = vec![0; body_end - NONCE_LEN];
    key.symlink.open(nonce, AAD, &sealed[NONCE_LEN..body_end], tag, &mut target).map_err(|_| LinkError)?;
    Ok(target)
}

/// Length in bytes of the plain target whose lower target is `lower_len` long.
pub fn plain_len(lower_len: u64) -> u64 {
    (text::decoded_len(lower_len as usize) as u64).saturating_sub(OVERHEAD as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    #[test]
    fn targets_come_back_and_forgeries_do_not() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        for len in [1, 2, 3, 59, 255, TARGET_MAX] {
            let target = vec![b'x'; len];
            let lower = seal(&key, &target).unwrap();
            assert!(lower.len() <= LOWER_MAX);
            assert_eq!(plain_len(lower.len() as u64), len as u64);
            assert_eq!(open(&key, lower.as_bytes()).unwrap(), target);
            let mut bad = lower.into_bytes();
            bad[20] ^= 1;
            assert_eq!(open(&key, &bad), Err(LinkError));
        }
        assert_eq!(seal(&key, &[b'x'; TARGET_MAX + 1]), None);
        assert_eq!(seal(&key, b""), None);
        assert_eq!(open(&key, b"foreign"), Err(LinkError));
    }

    #[test]
    fn equal_targets_do_not_show() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        assert_ne!(seal(&key, b"same"), seal(&key, b"same"));
    }
}
