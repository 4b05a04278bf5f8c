//! GCM-SIV does not commit to its key: a block that opens under two keys, to two texts, is made here by solving two
//! equations. The commitment in the superblock is what refuses it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use kmsfs::crypto::{DataKey, FileKeys};
use kmsfs::format::header::{SUPERBLOCK_LEN, Superblock};
use kmsfs::format::layout;
use kmsfs::format::seal::{HEAD_MAC_OFFSET, Seal, State};
use kmsfs::format::tags::{TagPage, open_block};
use kmsfs::format::{FileId, VolumeId, WrappedKey};
use kmsfs::tree::{FileContext, FileIo, FreshKey, FsError, Integrity, KeyError, KeySource, KeyUser, Stage};

const ID: FileId = FileId([3; 16]);
const NONCE: [u8; 12] = [5; 12];
const BLOCKS: usize = layout::BLOCK_LEN / 16;

/// Multiplication in the field of POLYVAL (RFC 8452, section 3): a * b * x^-128.
fn dot(a: u128, b: u128) -> u128 {
    const REDUCE: u128 = (1 << 127) | (1 << 126) | (1 << 125) | (1 << 120);
    let mut sum = 0;
    for bit in 0..128 {
        if (b >> bit) & 1 == 1 {
            sum ^= a;
        }
        sum = if sum & 1 == 1 { (sum >> 1) ^ REDUCE } else { sum >> 1 };
    }
    sum
}

/// What multiplies to `dot`'s identity with `a`.
fn inverse(a: u128) -> u128 {
    // a^(2^128 - 2), by squaring: every bit but the lowest.
    let (mut power, mut result) = (a, None);
    for _ in 1..128 {
        power = dot(power, power);
        result = Some(result.map_or(power, |r| dot(r, power)));
    }
    result.unwrap()
}

/// The two keys that RFC 8452 derives for a nonce: of the hash, and of the encryption.
struct Derived {
    hash: u128,
    cipher: Aes256,
}

impl Derived {
    fn of(key: &[u8; 32]) -> Self {
        let generator = Aes256::new(&Array::from(*key));
        let mut bytes = Vec::new();
        for counter in 0..6_u32 {
            let mut block = [0; 16];
            block[..4].copy_from_slice(&counter.to_le_bytes());
            block[4..].copy_from_slice(&NONCE);
            let mut block = Array::from(block);
            generator.encrypt_block(&mut block);
            bytes.extend_from_slice(&block[..8]);
        }
        let hash = u128::from_le_bytes(bytes[..16].try_into().unwrap());
        let cipher: [u8; 32] = bytes[16..].try_into().unwrap();
        Self { hash, cipher: Aes256::new(&Array::from(cipher)) }
    }

    fn crypt(&self, tag: u128) -> Option<u128> {
        let mut block = Array::from(tag.to_le_bytes());
        self.cipher.decrypt_block(&mut block);
        let plain = u128::from_le_bytes(block.into());
        // The hash is encrypted with its highest bit cleared.
        (plain >> 127 == 0).then_some(plain)
    }

    fn keystream(&self, tag: u128, index: usize) -> u128 {
        let start = tag | (1 << 127);
        let counter = (start as u32).wrapping_add(index as u32);
        let mut block = Array::from((((start >> 32) << 32) | u128::from(counter)).to_le_bytes());
        self.cipher.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }

    /// The hash of additional data, `text` and lengths; and what a change of text block 0 and 1 adds to it.
    fn hash(&self, aad: &[u8], text: &[u128]) -> (u128, u128, u128) {
        let mut padded = aad.to_vec();
        padded.resize(aad.len().next_multiple_of(16), 0);
        let lengths = ((text.len() as u128 * 128) << 64) | (aad.len() as u128 * 8);
        let head = padded.as_chunks::<16>().0.iter().map(|b| u128::from_le_bytes(*b));
        let mut sum = 0;
        for word in head.chain(text.iter().copied()).chain([lengths]) {
            sum = dot(sum ^ word, self.hash);
        }
        let mut weight = self.hash;
        for _ in 0..text.len() - 1 {
            weight = dot(weight, self.hash);
        }
        (sum, dot(weight, self.hash), weight)
    }
}

/// Ciphertext and tag that open under both keys with `aad`.
fn collide(keys: [&[u8; 32]; 2], aad: &[u8]) -> (Vec<u8>, [u8; 16]) {
    let derived = keys.map(Derived::of);
    let nonce = u128::from_le_bytes([&NONCE[..], &[0; 4]].concat().try_into().unwrap());
    let (tag, wanted) = (1_u128..)
        .find_map(|tag| Some((tag, [derived[0].crypt(tag)? ^ nonce, derived[1].crypt(tag)? ^ nonce])))
        .unwrap();
    // All ciphertext blocks are zero but two, which are unknown: two linear equations, one for each key.
    let equations: Vec<(u128, u128, u128)> = derived
        .iter()
        .zip(wanted)
        .map(|(key, wanted)| {
            let text: Vec<u128> = (0..BLOCKS).map(|index| key.keystream(tag, index)).collect();
            let (sum, first, second) = key.hash(aad, &text);
            (first, second, sum ^ wanted)
        })
        .collect();
    let ((a1, b1, r1), (a2, b2, r2)) = (equations[0], equations[1]);
    let determinant = inverse(dot(a1, b2) ^ dot(a2, b1));
    let mut ciphertext = vec![0; layout::BLOCK_LEN];
    let solved = [dot(dot(r1, b2) ^ dot(r2, b1), determinant), dot(dot(a1, r2) ^ dot(a2, r1), determinant)];
    for (index, block) in solved.iter().enumerate() {
        ciphertext[index * 16..][..16].copy_from_slice(&block.to_le_bytes());
    }
    (ciphertext, tag.to_le_bytes())
}

/// Hands out one key, whatever is asked for: a key service that the attacker steers.
struct Steered(u8);

impl KeySource for Steered {
    fn fresh(&self, _key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let wrapped = WrappedKey { key_arn: "arn:test".into(), material_id: None, blob: vec![1] };
        Ok(FreshKey { user, file_id: ID, data_key: data_key(self.0), wrapped })
    }

    fn unwrap(&self, _file_id: FileId, _wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        Ok(data_key(self.0))
    }
}

fn data_key(n: u8) -> DataKey {
    DataKey::take(&mut [n; 32])
}

/// The content key as `crypto::keys` derives it.
fn content_key(n: u8) -> [u8; 32] {
    let mut out = [0; 32];
    let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(None, &[n; 32]);
    hkdf.expand_multi_info(&[b"kmsfs/1 file content", &[0], &ID.0], &mut out).unwrap();
    out
}

fn open(path: &std::path::Path, key: u8) -> Arc<FileIo> {
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
    let (volume_id, keys) = (VolumeId([1; 16]), Arc::new(Steered(key)));
    let context = FileContext {
        volume_id,
        keys,
        read_only: false,
        log: None,
        stage: Stage::default(),
        integrity: Integrity::Auto,
    };
    FileIo::new(file.unwrap().into(), Arc::new(context), None)
}

/// Puts the crafted block 0 into the file and does all that a holder of the first key can do to make it fit.
fn plant(path: &std::path::Path, ciphertext: &[u8], entry: [u8; 28]) {
    let keys = FileKeys::derive(&data_key(1), &ID.0);
    let mut bytes = std::fs::read(path).unwrap();
    bytes[4096..8192].copy_from_slice(ciphertext);
    let superblock: [u8; SUPERBLOCK_LEN] = bytes[..SUPERBLOCK_LEN].try_into().unwrap();
    let mut head = TagPage::parse_head(&keys, &bytes[..4096], 2).unwrap();
    head.set(0, entry);
    let mac = head.mac(&keys, 0);
    let (root, seal) = (head.root_term(&keys, 0, &mac), Seal::latest(&keys, &superblock, &bytes).unwrap());
    let mut page: [u8; 4096] = bytes[..4096].try_into().unwrap();
    head.encode_head(&mac, 2, &mut page);
    assert_eq!(page[HEAD_MAC_OFFSET..HEAD_MAC_OFFSET + 16], mac);
    let seal = Seal { epoch: seal.epoch + 1, root, state: State::Clean, ..seal };
    let at = seal.offset();
    page[at..at + 88].copy_from_slice(&seal.encode(&keys, &superblock));
    bytes[..4096].copy_from_slice(&page);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_block_made_to_open_under_two_keys_opens_under_the_committed_one_alone() {
    let aad = [&ID.0[..], &0_u64.to_le_bytes()].concat();
    let (ciphertext, tag) = collide([&content_key(1), &content_key(2)], &aad);
    let entry: [u8; 28] = [&NONCE[..], &tag].concat().try_into().unwrap();
    // The attack is real: the cipher takes it under both keys, and gives two texts.
    let texts = [1, 2].map(|n| {
        let (keys, mut text) = (FileKeys::derive(&data_key(n), &ID.0), vec![0; 4096]);
        open_block(&keys, ID, 0, &entry, &ciphertext, &mut text).unwrap();
        text
    });
    assert_ne!(texts[0], texts[1]);

    let path = std::env::temp_dir().join(format!("kmsfs-commitment-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let file = open(&path, 1);
    file.write(0, &[9; 8192]).unwrap();
    file.seal().unwrap();
    drop(file);
    plant(&path, &ciphertext, entry);
    let mut read = Vec::new();
    open(&path, 1).read(0, 4096, &mut read).unwrap();
    assert_eq!(read, texts[0]);
    let refused = |key| {
        let file = open(&path, key);
        let mut out = Vec::new();
        let answer = file.read(0, 4096, &mut out);
        assert!(out.iter().all(|byte| *byte == 0), "nothing is released");
        matches!(answer, Err(FsError::Key(KeyError::Invalid(_))))
    };
    assert!(refused(2), "the second key is not the one that the superblock commits to");
    // A superblock that commits to the second key shuts the first one out.
    let other = Superblock::new(VolumeId([1; 16]), ID, *FileKeys::derive(&data_key(2), &ID.0).commitment());
    let mut bytes = std::fs::read(&path).unwrap();
    for at in [0, 424] {
        bytes[at..at + SUPERBLOCK_LEN].copy_from_slice(&other.encode());
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(refused(1));
    std::fs::remove_file(&path).unwrap();
}
