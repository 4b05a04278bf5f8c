//! The ciphertext blob of a symmetric key, version 1. Pure: bytes in, bytes out.
//!
//! Called by the Encrypt family of operations. Carries nothing secret in clear, and never a path or a name.
//!
//! ```text
//!  0   2  magic "KB"
//!  2   1  version, 1
//!  3   1  flags: bit 0 multi-Region key; other bits must be zero
//!  4  16  key id
//! 20   8  material id, its first 8 bytes
//! 28  16  nonce N of the one-use key
//! 44  12  IV
//! 56   n  ciphertext
//! 56+n 16 tag
//! ```
//! `key = KBKDF-CTR-HMAC-SHA256(material, N)` ([`BackingKey::one_use_key`]), AES-256-GCM-SIV (RFC 8452) with
//! additional data `bytes 0..44 || canonical encryption context`.

use zeroize::Zeroizing;

use crate::crypto::{BackingKey, NONCE_LEN, TAG_LEN, fill_random};

const MAGIC: &[u8; 2] = b"KB";
const VERSION: u8 = 1;
const FLAG_MULTI_REGION: u8 = 1;
const KEY_AT: usize = 4;
const MATERIAL_AT: usize = 20;
const N_AT: usize = 28;
const IV_AT: usize = 44;
const BODY_AT: usize = IV_AT + NONCE_LEN;

/// Bytes a blob is longer than its plaintext.
pub const OVERHEAD: usize = BODY_AT + TAG_LEN;
const _: () = assert!(OVERHEAD == 72);

/// What a blob says of itself: which key and which version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHeader {
    /// The key id is one of a multi-Region key (`mrk-...`).
    pub multi_region: bool,
    /// The 128 bits of the key id.
    pub key_id: [u8; 16],
    /// The first 8 bytes of the material id.
    pub material: [u8; 8],
}

/// Why a blob did not open. A caller is told no more than "invalid ciphertext".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobError {
    /// Not a blob of this daemon, or of a version it does not know.
    Malformed,
    /// Changed, of other material, or with another encryption context.
    NotAuthentic,
}

/// Encrypts `plaintext` under a fresh one-use key of `key`. `context` is the canonical encryption context.
pub fn seal(key: &BackingKey, header: &BlobHeader, context: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut random = [0; 16 + NONCE_LEN];
    fill_random(&mut random);
    seal_with(key, header, context, plaintext, &random)
}

fn seal_with(
    key: &BackingKey,
    header: &BlobHeader,
    context: &[u8],
    plaintext: &[u8],
    random: &[u8; 16 + NONCE_LEN],
) -> Vec<u8> {
    let mut blob = Vec::with_capacity(plaintext.len() + OVERHEAD);
    blob.extend_from_slice(MAGIC);
    blob.push(VERSION);
    blob.push(if header.multi_region { FLAG_MULTI_REGION } else { 0 });
    blob.extend_from_slice(&header.key_id);
    blob.extend_from_slice(&header.material);
    blob.extend_from_slice(random);
    blob.extend_from_slice(plaintext);
    let aad = additional_data(&blob, context);
    let (head, body) = blob.split_at_mut(BODY_AT);
    let tag = key.one_use_key(field(head, N_AT)).seal(field(head, IV_AT), &aad, body);
    blob.extend_from_slice(&tag);
    blob
}

/// Reads the header of a blob; `None` for anything this daemon did not make.
pub fn parse(blob: &[u8]) -> Option<BlobHeader> {
    let flags = *blob.get(3)?;
    let known = blob.len() >= OVERHEAD && &blob[..2] == MAGIC && blob[2] == VERSION;
    if !known || flags & !FLAG_MULTI_REGION != 0 {
        return None;
    }
    Some(BlobHeader {
        multi_region: flags & FLAG_MULTI_REGION != 0,
        key_id: *field(blob, KEY_AT),
        material: *field(blob, MATERIAL_AT),
    })
}

/// Decrypts a blob with the material its header names.
pub fn open(key: &BackingKey, blob: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, BlobError> {
    parse(blob).ok_or(BlobError::Malformed)?;
    let (head, rest) = blob.split_at(BODY_AT);
    let (body, tag) = rest.split_at(rest.len() - TAG_LEN);
    let mut plaintext = Zeroizing::new(vec![0; body.len()]);
    key.one_use_key(field(head, N_AT))
        .open(field(head, IV_AT), &additional_data(head, context), body, field(tag, 0), &mut plaintext)
        .map_err(|_| BlobError::NotAuthentic)?;
    Ok(plaintext)
}

fn additional_data(blob: &[u8], context: &[u8]) -> Vec<u8> {
    [&blob[..IV_AT], context].concat()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N].try_into().expect("the slice is N long")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hex;
    use proptest::prelude::*;

    const HEADER: BlobHeader = BlobHeader { multi_region: true, key_id: [0x11; 16], material: [0x22; 8] };

    fn key() -> BackingKey {
        BackingKey::take(&mut [0x42; 32])
    }

    #[test]
    fn blob_version_1_has_these_bytes() {
        let blob = seal_with(&key(), &HEADER, b"context", b"data key", &[0x33; 28]);
        // Computed with another library (OpenSSL) as well.
        let golden = "4b4201011111111111111111111111111111111122222222222222223333333333333333333333333333\
                      33333333333333333333333333336368ea19b7d0c258eeb7c2aa49d25c3fed8bde887fe9cb67";
        assert_eq!(hex(&blob), golden);
        assert_eq!(open(&key(), &blob, b"context").unwrap().as_slice(), b"data key");
    }

    #[test]
    fn two_blobs_of_the_same_plaintext_have_nothing_random_in_common() {
        let (a, b) = (seal(&key(), &HEADER, b"", b"same"), seal(&key(), &HEADER, b"", b"same"));
        assert_eq!(a[..N_AT], b[..N_AT]);
        assert_ne!(a[N_AT..IV_AT], b[N_AT..IV_AT]);
        assert_ne!(a[BODY_AT..], b[BODY_AT..]);
    }

    #[test]
    fn another_context_or_another_key_does_not_open_it() {
        let blob = seal(&key(), &HEADER, b"a", b"secret");
        assert_eq!(open(&key(), &blob, b"b"), Err(BlobError::NotAuthentic));
        assert_eq!(open(&BackingKey::random(), &blob, b"a"), Err(BlobError::NotAuthentic));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_or_cut_is_refused(bit in 0usize..(72 + 20) * 8, keep in 0usize..72 + 20) {
            let blob = seal(&key(), &HEADER, b"ctx", &[7; 20]);
            let mut flipped = blob.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&key(), &flipped, b"ctx").is_err());
            prop_assert!(open(&key(), &blob[..keep], b"ctx").is_err());
        }

        #[test]
        fn what_was_sealed_is_opened(plain in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let blob = seal(&key(), &HEADER, b"ctx", &plain);
            prop_assert_eq!(blob.len(), plain.len() + OVERHEAD);
            prop_assert_eq!(parse(&blob), Some(HEADER));
            let opened = open(&key(), &blob, b"ctx").unwrap();
            prop_assert_eq!(opened.as_slice(), plain.as_slice());
        }
    }
}
