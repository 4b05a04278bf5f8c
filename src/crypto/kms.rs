//! The keys of the key daemon, one type per purpose, and their derivations.
//!
//! Called by `kms` only, and compiled with it only: the FUSE daemon contains none of this.
//!
//! ```text
//! passphrase or key file -> SealKey -> RootKey -> DomainKey -> BackingKey -> one-use AEAD key of a blob
//!                                      RootKey -> StoreKeys, AuditKey (MACs)
//! ```

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::kdf::{KbkdfCtrHmacAlgorithmId, get_kbkdf_ctr_hmac_algorithm, kbkdf_ctr_hmac};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Aead, Hmac256, Nonce, OpenError, Secret, TAG_LEN};

/// Domain separation: one label per derived key. Never reuse or change one.
mod label {
    pub const KEY_FILE: &[u8] = b"kmsd/1 seal by key file";
    pub const PASSPHRASE: &[u8] = b"kmsd/1 seal by passphrase";
    pub const DOMAIN: &[u8] = b"kmsd/1 domain key wrap";
    pub const ROW: &[u8] = b"kmsd/1 store row";
    pub const TERM: &[u8] = b"kmsd/1 store digest term";
    pub const HEAD: &[u8] = b"kmsd/1 store head";
    pub const IMAGE: &[u8] = b"kmsd/1 store image";
    pub const AUDIT: &[u8] = b"kmsd/1 audit head";
    pub const BACKUP: &[u8] = b"kmsd/1 backup";
    pub const MATERIAL_ID: &[u8] = b"kmsd/1 material id";
    pub const BLOB: &[u8] = b"kmsd/1 ciphertext blob";
}

/// Bytes of key material of a symmetric key.
pub const MATERIAL_LEN: usize = 32;
/// Bytes a sealed 256-bit key takes: ciphertext and tag.
pub const SEALED_KEY_LEN: usize = 32 + TAG_LEN;
/// Bytes of the salt of a seal.
pub const SALT_LEN: usize = 16;

fn expand(salt: Option<&[u8]>, secret: &[u8], label: &[u8], info: &[u8], out: &mut [u8; 32]) {
    let hkdf = Hkdf::<Sha256>::new(salt, secret);
    hkdf.expand_multi_info(&[label, &[0], info], out).expect("32 bytes is a valid HKDF-SHA-256 length");
}

fn derive(secret: &Secret<32>, label: &[u8]) -> Secret<32> {
    Secret::new_with(|out| expand(None, secret.expose(), label, b"", out))
}

fn seal_key(aead: &Aead, nonce: &Nonce, aad: &[u8], key: &Secret<32>) -> [u8; SEALED_KEY_LEN] {
    let mut out = [0; SEALED_KEY_LEN];
    let (body, tag) = out.split_at_mut(32);
    body.copy_from_slice(key.expose());
    let made = aead.seal(nonce, aad, body);
    tag.copy_from_slice(&made);
    out
}

fn open_key(
    aead: &Aead,
    nonce: &Nonce,
    aad: &[u8],
    sealed: &[u8; SEALED_KEY_LEN],
) -> Result<Secret<32>, OpenError> {
    let (body, tag) = sealed.split_at(32);
    let tag = tag.try_into().expect("the rest of a sealed key is its tag");
    let mut outcome = Ok(());
    let key = Secret::new_with(|out| outcome = aead.open(nonce, aad, body, tag, out));
    outcome.map(|()| key)
}

/// The cost of turning a passphrase into a key (Argon2id, RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassphraseCost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// The cost parameters were outside what this program will spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostError;

/// Seals the root key; made from a key file or a passphrase.
#[derive(Debug)]
pub struct SealKey(Aead);

impl SealKey {
    /// `HKDF-SHA-256(salt, contents, label)`. The file must hold at least 32 random bytes; the caller checks.
    pub fn from_key_file(contents: &[u8], salt: &[u8; SALT_LEN]) -> Self {
        let key = Secret::<32>::new_with(|out| expand(Some(salt), contents, label::KEY_FILE, b"", out));
        Self(Aead::new(key.expose()))
    }

    /// `HKDF-SHA-256(Argon2id(passphrase, salt, cost), label)`.
    pub fn from_passphrase(
        passphrase: &[u8],
        salt: &[u8; SALT_LEN],
        cost: PassphraseCost,
    ) -> Result<Self, CostError> {
        let params =
            Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| CostError)?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut outcome = Ok(());
        let stretched =
            Secret::<32>::new_with(|out| outcome = argon.hash_password_into(passphrase, salt, out));
        outcome.map_err(|_| CostError)?;
        let key = Secret::<32>::new_with(|out| {
            expand(None, stretched.expose(), label::PASSPHRASE, b"", out);
        });
        Ok(Self(Aead::new(key.expose())))
    }

    /// Seals the root key.
    pub fn seal(&self, nonce: &Nonce, aad: &[u8], root: &RootKey) -> [u8; SEALED_KEY_LEN] {
        seal_key(&self.0, nonce, aad, &root.0)
    }

    /// Opens the root key; fails for a wrong passphrase, a wrong file or a damaged seal alike.
    pub fn open(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8; SEALED_KEY_LEN],
    ) -> Result<RootKey, OpenError> {
        open_key(&self.0, nonce, aad, sealed).map(RootKey)
    }
}

/// The root of trust of one store.
#[derive(Debug)]
pub struct RootKey(Secret<32>);

impl RootKey {
    /// A fresh root key.
    pub fn random() -> Self {
        Self(Secret::random())
    }

    #[cfg(test)]
    pub(crate) fn of_bytes(mut bytes: [u8; 32]) -> Self {
        Self(Secret::take(&mut bytes))
    }

    /// What wraps the domain keys.
    pub fn domain_wrap(&self) -> DomainWrap {
        DomainWrap(Aead::new(derive(&self.0, label::DOMAIN).expose()))
    }

    /// What authenticates the rows of the store.
    pub fn store_keys(&self) -> StoreKeys {
        let mac = |label| Hmac256::new(derive(&self.0, label).expose());
        let image = Aead::new(derive(&self.0, label::IMAGE).expose());
        StoreKeys { row: mac(label::ROW), term: mac(label::TERM), head: mac(label::HEAD), image }
    }

    /// What seals the backup that `salt` names.
    pub fn backup_key(&self, salt: &[u8; SALT_LEN]) -> BackupKey {
        let key = Secret::<32>::new_with(|out| expand(Some(salt), self.0.expose(), label::BACKUP, b"", out));
        BackupKey(Aead::new(key.expose()))
    }

    /// What signs the head of the audit log.
    pub fn audit_key(&self) -> AuditKey {
        AuditKey(Hmac256::new(derive(&self.0, label::AUDIT).expose()))
    }
}

/// Seals one backup.
#[derive(Debug)]
pub struct BackupKey(Aead);

impl BackupKey {
    /// Seals part `number`; `is_last` ends the backup. A number must not be used twice.
    pub fn seal(&self, number: u64, is_last: bool, plain: &[u8]) -> Vec<u8> {
        let mut out = plain.to_vec();
        let tag = self.0.seal(&part_nonce(number), &[u8::from(is_last)], &mut out);
        out.extend_from_slice(&tag);
        out
    }

    /// Opens what `seal` made with the same arguments.
    pub fn open(&self, number: u64, is_last: bool, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let body_len = sealed.len().checked_sub(TAG_LEN).ok_or(OpenError)?;
        let (body, tag) = sealed.split_at(body_len);
        let tag = tag.try_into().expect("the rest of a part is its tag");
        let mut out = vec![0; body.len()];
        self.0.open(&part_nonce(number), &[u8::from(is_last)], body, tag, &mut out)?;
        Ok(out)
    }
}

fn part_nonce(number: u64) -> Nonce {
    let mut nonce = [0; super::NONCE_LEN];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

/// Authenticates the rows of the store and its head.
#[derive(Debug)]
pub struct StoreKeys {
    /// MAC of one row.
    pub row: Hmac256,
    /// The secret term of a row in the digest of the whole store.
    pub term: Hmac256,
    /// MAC of counter and digest.
    pub head: Hmac256,
    /// MAC of the parts of the whole file.
    pub image: Aead,
}

/// Signs the head of the audit log.
#[derive(Debug)]
pub struct AuditKey(Hmac256);

impl AuditKey {
    /// The tag over the concatenation of `parts`.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.0.sign(parts)
    }
}

/// Wraps domain keys under the root key.
#[derive(Debug)]
pub struct DomainWrap(Aead);

impl DomainWrap {
    /// Seals `key`.
    pub fn seal(&self, nonce: &Nonce, aad: &[u8], key: &DomainKey) -> [u8; SEALED_KEY_LEN] {
        seal_key(&self.0, nonce, aad, &key.secret)
    }

    /// Opens a sealed domain key.
    pub fn open(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8; SEALED_KEY_LEN],
    ) -> Result<DomainKey, OpenError> {
        open_key(&self.0, nonce, aad, sealed).map(DomainKey::new)
    }
}

/// Wraps key material into exported key tokens.
#[derive(Debug)]
pub struct DomainKey {
    secret: Secret<32>,
    aead: Aead,
}

impl DomainKey {
    fn new(secret: Secret<32>) -> Self {
        Self { aead: Aead::new(secret.expose()), secret }
    }

    /// A fresh domain key.
    pub fn random() -> Self {
        Self::new(Secret::random())
    }

    #[cfg(test)]
    pub(crate) fn of_bytes(mut bytes: [u8; 32]) -> Self {
        Self::new(Secret::take(&mut bytes))
    }

    /// Seals a secret of any length, such as key material or the secret of an access key: ciphertext and tag.
    pub fn seal_bytes(&self, nonce: &Nonce, aad: &[u8], secret: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(secret.len() + TAG_LEN);
        out.extend_from_slice(secret);
        let tag = self.aead.seal(nonce, aad, &mut out);
        out.extend_from_slice(&tag);
        out
    }

    /// Opens what [`DomainKey::seal_bytes`] made.
    pub fn open_bytes(
        &self,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let body_len = sealed.len().checked_sub(TAG_LEN).ok_or(OpenError)?;
        let (body, tag) = sealed.split_at(body_len);
        let tag = tag.try_into().expect("the rest of a sealed secret is its tag");
        let mut out = Zeroizing::new(vec![0; body_len]);
        self.aead.open(nonce, aad, body, tag, &mut out)?;
        Ok(out)
    }
}

/// The public name of material under key `key_id`:
/// `HKDF-SHA-256(material, "kmsd/1 material id" || 0 || key id)`. The same material imported again gets the same
/// name; the same material under another key a different one.
pub(super) fn material_id(material: &[u8], key_id: &[u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    expand(None, material, label::MATERIAL_ID, key_id, &mut out);
    out
}

/// One version of a symmetric CMK's key material. Never leaves the daemon but sealed.
#[derive(Debug)]
pub struct BackingKey(Secret<MATERIAL_LEN>);

impl BackingKey {
    /// Fresh material.
    pub fn random() -> Self {
        Self(Secret::random())
    }

    /// Takes over imported or seeded material and wipes the source.
    pub fn take(bytes: &mut [u8; MATERIAL_LEN]) -> Self {
        Self(Secret::take(bytes))
    }

    /// The key of one ciphertext blob: KBKDF in counter mode with HMAC-SHA-256 (SP 800-108), fixed input
    /// `label || 0x00 || nonce || 256 as u32 BE`.
    pub fn one_use_key(&self, nonce: &[u8; 16]) -> Aead {
        const L_BITS: [u8; 4] = 256u32.to_be_bytes();
        let mut info = [0; label::BLOB.len() + 1 + 16 + 4];
        let (head, rest) = info.split_at_mut(label::BLOB.len());
        head.copy_from_slice(label::BLOB);
        rest[1..17].copy_from_slice(nonce);
        rest[17..].copy_from_slice(&L_BITS);
        let algorithm = get_kbkdf_ctr_hmac_algorithm(KbkdfCtrHmacAlgorithmId::Sha256);
        let algorithm = algorithm.expect("the library is built with HMAC-SHA-256");
        let mut key = Zeroizing::new([0; 32]);
        kbkdf_ctr_hmac(algorithm, self.0.expose(), &info, key.as_mut_slice())
            .expect("32 bytes of output is within one block of the KDF");
        Aead::new(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::hmac_sha256;

    #[test]
    fn the_one_use_key_is_the_counter_mode_kdf_written_out() {
        let (material, nonce) = ([7; 32], [9; 16]);
        let input = [&1u32.to_be_bytes()[..], label::BLOB, &[0], &nonce, &256u32.to_be_bytes()].concat();
        let by_hand = Aead::new(&hmac_sha256(&material, &input));
        let key = BackingKey::take(&mut material.clone()).one_use_key(&nonce);
        assert_eq!(key.mac(&[1; 12], b"x"), by_hand.mac(&[1; 12], b"x"));
    }

    #[test]
    fn a_seal_opens_under_the_same_passphrase_only() {
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        let key = |text: &[u8]| SealKey::from_passphrase(text, &[3; 16], cost).unwrap();
        let root = RootKey::of_bytes([5; 32]);
        let sealed = key(b"right").seal(&[1; 12], b"aad", &root);
        assert_eq!(key(b"right").open(&[1; 12], b"aad", &sealed).unwrap().0.expose(), &[5; 32]);
        assert!(key(b"wrong").open(&[1; 12], b"aad", &sealed).is_err());
        assert!(key(b"right").open(&[1; 12], b"other", &sealed).is_err());
        let file = SealKey::from_key_file(b"right", &[3; 16]);
        assert!(file.open(&[1; 12], b"aad", &sealed).is_err());
    }

    #[test]
    fn argon2id_is_the_one_of_rfc_9106() {
        // RFC 9106 names no vector without secret and associated data; this one is the reference program's:
        // echo -n password | argon2 somesaltsomesalt -id -t 2 -m 16 -p 1 -l 32 -r
        let params = Params::new(65536, 2, 1, Some(32)).unwrap();
        let mut out = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(b"password", b"somesalt", &mut out)
            .unwrap();
        let golden = [
            0x09, 0x31, 0x61, 0x15, 0xd5, 0xcf, 0x24, 0xed, 0x5a, 0x15, 0xa3, 0x1a, 0x3b, 0xa3, 0x26, 0xe5,
            0xcf, 0x32, 0xed, 0xc2, 0x47, 0x02, 0x98, 0x7c, 0x02, 0xb6, 0x56, 0x6f, 0x61, 0x91, 0x3c, 0xf7,
        ];
        assert_eq!(out, golden);
    }
}
