//! Targets of symbolic links: `base64url(nonce 12 B || ciphertext || tag 16 B)` as the lower link's target.
//!
//! On a volume that binds names two places stand before the target, under the encryption, and the link opens at these
//! alone: two, so that a rename can make it ready for the new one before it leaves the old.
//!
//! The length of the plain target follows from the lower length, so `lstat` needs no decryption.

use super::text;
use crate::crypto::{NONCE_LEN, Place, TAG_LEN, VolumeKey, constant_time_eq, random_array};

const OVERHEAD: usize = NONCE_LEN + TAG_LEN;
const AAD: &[u8] = b"symlink";
const AAD_PLACED: &[u8] = b"symlink at";
/// Bytes of the places before the target.
const PLACES_LEN: usize = 32;
/// Longest lower target (PATH_MAX less the final NUL).
const LOWER_MAX: usize = 4095;
/// Longest plain target that fits a lower one, in bytes. Longer ones answer ENAMETOOLONG.
pub const TARGET_MAX: usize = LOWER_MAX * 3 / 4 - OVERHEAD;
/// The same on a volume that binds names.
pub const TARGET_MAX_PLACED: usize = TARGET_MAX - PLACES_LEN;

/// The target does not open under the volume's key, or not at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkError;

/// The lower target of `target`, or `None` where it is too long or empty.
pub fn seal(key: &VolumeKey, target: &[u8], places: Option<[Place; 2]>) -> Option<String> {
    let (most, aad) = if places.is_some() { (TARGET_MAX_PLACED, AAD_PLACED) } else { (TARGET_MAX, AAD) };
    if target.is_empty() || target.len() > most {
        return None;
    }
    let nonce = random_array::<NONCE_LEN>();
    let mut sealed = Vec::with_capacity(target.len() + OVERHEAD + PLACES_LEN);
    sealed.extend_from_slice(&nonce);
    sealed.extend(places.iter().flatten().flatten());
    sealed.extend_from_slice(target);
    let tag = key.symlink.seal(&nonce, aad, &mut sealed[NONCE_LEN..]);
    sealed.extend_from_slice(&tag);
    Some(text::encode(&sealed))
}

/// The plain target of `lower`, which stands at `place` where names are bound.
pub fn open(key: &VolumeKey, lower: &[u8], place: Option<&Place>) -> Result<Vec<u8>, LinkError> {
    let aad = if place.is_some() { AAD_PLACED } else { AAD };
    let sealed = text::decode(lower).ok_or(LinkError)?;
    let body_end = sealed.len().checked_sub(TAG_LEN).filter(|end| *end > NONCE_LEN).ok_or(LinkError)?;
    let nonce = sealed[..NONCE_LEN].try_into().map_err(|_| LinkError)?;
    let tag = sealed[body_end..].try_into().map_err(|_| LinkError)?;
    let mut target = vec![0; body_end - NONCE_LEN];
    key.symlink.open(nonce, aad, &sealed[NONCE_LEN..body_end], tag, &mut target).map_err(|_| LinkError)?;
    let Some(place) = place else { return Ok(target) };
    let (places, plain) = target.split_at_checked(PLACES_LEN).ok_or(LinkError)?;
    let here = places.chunks_exact(PLACES_LEN / 2).any(|one| constant_time_eq(one, place));
    if here { Ok(plain.to_vec()) } else { Err(LinkError) }
}

/// Length in bytes of the plain target whose lower target is `lower_len` long, on a volume of `key`.
pub fn plain_len(key: &VolumeKey, lower_len: u64) -> u64 {
    let overhead = if key.binds_names() { OVERHEAD + PLACES_LEN } else { OVERHEAD };
    (text::decoded_len(lower_len as usize) as u64).saturating_sub(overhead as u64)
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
            let lower = seal(&key, &target, None).unwrap();
            assert!(lower.len() <= LOWER_MAX);
            assert_eq!(plain_len(&key, lower.len() as u64), len as u64);
            assert_eq!(open(&key, lower.as_bytes(), None).unwrap(), target);
            let mut bad = lower.into_bytes();
            bad[20] ^= 1;
            assert_eq!(open(&key, &bad, None), Err(LinkError));
        }
        assert_eq!(seal(&key, &[b'x'; TARGET_MAX + 1], None), None);
        assert_eq!(seal(&key, b"", None), None);
        assert_eq!(open(&key, b"foreign", None), Err(LinkError));
    }

    #[test]
    fn a_bound_target_opens_at_its_places_only() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32])).binding_names(true);
        let place = |name: &[u8]| key.place(&[1; 16], name).unwrap();
        let target = vec![b'x'; TARGET_MAX_PLACED];
        let lower = seal(&key, &target, Some([place(b"a"), place(b"b")])).unwrap();
        assert!(lower.len() <= LOWER_MAX);
        assert_eq!(plain_len(&key, lower.len() as u64), target.len() as u64);
        for name in [b"a", b"b"] {
            assert_eq!(open(&key, lower.as_bytes(), Some(&place(name))).unwrap(), target);
        }
        assert_eq!(open(&key, lower.as_bytes(), Some(&place(b"c"))), Err(LinkError));
        assert_eq!(open(&key, lower.as_bytes(), None), Err(LinkError));
        let free = seal(&key, b"target", None).unwrap();
        assert_eq!(open(&key, free.as_bytes(), Some(&place(b"a"))), Err(LinkError));
    }

    #[test]
    fn equal_targets_do_not_show() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        assert_ne!(seal(&key, b"same", None), seal(&key, b"same", None));
    }
}
