//! The unsealed root of trust: domain keys, and the sealing of key material into exported key tokens.
//!
//! Called by the pipeline whenever material is made or first used. Key material leaves this module only as a
//! [`MaterialBytes`] or sealed.
//!
//! ```text
//! exported key token (EKT), version 1          sealed domain key, version 1 (row of table Domain, id = number)
//!  0   4  magic "EKT1"                          0   4  magic "DOM1"
//!  4   4  number of the domain key, LE          4   4  number, LE
//!  8  12  nonce                                 8  12  nonce
//! 20   n  material, encrypted                  20  32  domain key, encrypted
//! +n  16  tag                                  52  16  tag
//! ```
//! AES-256-GCM-SIV. Additional data of an EKT: `bytes 0..8 || len || key ARN || len || spec || material id`, each
//! `len` a u32 LE, so that a token cannot be moved to another key; of a domain key: `bytes 0..8`. A sealed secret
//! (of an access key) is laid out as an EKT with magic "SEC1" and any length; additional data `bytes 0..8 || owner`.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::crypto::{
    AuditKey, BackupKey, DomainKey, MaterialBytes, NONCE_LEN, Nonce, RootKey, SALT_LEN, SEALED_KEY_LEN,
    random_array,
};

use super::store::{Change, Store, StoreError, Table};

const EKT_MAGIC: &[u8; 4] = b"EKT1";
const SECRET_MAGIC: &[u8; 4] = b"SEC1";
const DOMAIN_MAGIC: &[u8; 4] = b"DOM1";
const HEAD_LEN: usize = 8;
const NONCE_AT: usize = HEAD_LEN;
const BODY_AT: usize = NONCE_AT + NONCE_LEN;
const DOMAIN_LEN: usize = BODY_AT + SEALED_KEY_LEN;
const _: () = assert!(DOMAIN_LEN == 68);

/// What an exported key token is bound to.
#[derive(Debug, Clone, Copy)]
pub struct MaterialAad<'a> {
    /// ARN of the key.
    pub key_arn: &'a str,
    /// Its spec, e.g. `SYMMETRIC_DEFAULT`.
    pub spec: &'a str,
    /// Its material id.
    pub material_id: &'a [u8; 32],
}

impl MaterialAad<'_> {
    fn bytes(&self, head: &[u8]) -> Vec<u8> {
        let mut out = head.to_vec();
        for text in [self.key_arn, self.spec] {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(self.material_id);
        out
    }
}

/// Why a sealed key did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootError {
    /// The token is not one of ours, or of a newer version.
    Malformed,
    /// The token was changed, or belongs to another key or another store.
    NotAuthentic,
    /// The token names a domain key that is not in the store.
    UnknownDomain(u32),
    /// The store failed.
    Store(StoreError),
}

impl std::fmt::Display for RootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed => f.write_str("a sealed key has an unknown form"),
            Self::NotAuthentic => f.write_str("a sealed key was changed or moved"),
            Self::UnknownDomain(number) => write!(f, "domain key {number} is missing"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RootError {}

impl From<StoreError> for RootError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The unsealed root of one store.
#[derive(Debug)]
pub struct Root {
    key: RootKey,
    domains: BTreeMap<u32, DomainKey>,
    current: u32,
}

impl Root {
    /// Opens every domain key of `store`; makes the first one in an empty store.
    pub fn open(key: RootKey, store: &dyn Store) -> Result<Self, RootError> {
        let wrap = key.domain_wrap();
        let mut domains = BTreeMap::new();
        for row in store.load(Table::Domain)? {
            let (head, nonce, sealed) = split(&row.body, *DOMAIN_MAGIC)?;
            let sealed = sealed.try_into().map_err(|_| RootError::Malformed)?;
            let opened = wrap.open(nonce, head, sealed).map_err(|_| RootError::NotAuthentic)?;
            domains.insert(number_of(head), opened);
        }
        if domains.is_empty() {
            let first = DomainKey::random();
            store.commit(&[sealed_domain(&key, 1, &first)])?;
            domains.insert(1, first);
        }
        let current = *domains.keys().next_back().expect("at least one domain key was put in above");
        Ok(Self { key, domains, current })
    }

    /// The key that signs the head of the audit log.
    pub fn audit_key(&self) -> AuditKey {
        self.key.audit_key()
    }

    /// The key that seals the backup that `salt` names.
    pub fn backup_key(&self, salt: &[u8; SALT_LEN]) -> BackupKey {
        self.key.backup_key(salt)
    }

    /// Seals key material into a token bound to `aad`.
    pub fn seal_material(&self, aad: MaterialAad<'_>, material: &MaterialBytes) -> Vec<u8> {
        let key = self.domains.get(&self.current).expect("current names one of the domain keys");
        seal_token(key, self.current, aad, material, &random_array())
    }

    /// Opens a token made by [`Root::seal_material`] for the same `aad`.
    pub fn open_material(&self, aad: MaterialAad<'_>, token: &[u8]) -> Result<MaterialBytes, RootError> {
        let (head, nonce, sealed) = split(token, *EKT_MAGIC)?;
        let number = number_of(head);
        let key = self.domains.get(&number).ok_or(RootError::UnknownDomain(number))?;
        let opened = key.open_bytes(nonce, &aad.bytes(head), sealed).map_err(|_| RootError::NotAuthentic)?;
        Ok(MaterialBytes::of_sealed(opened))
    }

    /// Seals another secret, bound to the name of its owner.
    pub fn seal_secret(&self, owner: &str, secret: &[u8]) -> Vec<u8> {
        let key = self.domains.get(&self.current).expect("current names one of the domain keys");
        let (head, nonce) = (head(*SECRET_MAGIC, self.current), random_array());
        let sealed = key.seal_bytes(&nonce, &[&head[..], owner.as_bytes()].concat(), secret);
        [&head[..], &nonce, &sealed].concat()
    }

    /// Opens what [`Root::seal_secret`] made for the same owner.
    pub fn open_secret(&self, owner: &str, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let (head, nonce, sealed) = split(token, *SECRET_MAGIC)?;
        let number = number_of(head);
        let key = self.domains.get(&number).ok_or(RootError::UnknownDomain(number))?;
        let aad = [head, owner.as_bytes()].concat();
        key.open_bytes(nonce, &aad, sealed).map_err(|_| RootError::NotAuthentic)
    }
}

fn seal_token(
    key: &DomainKey,
    number: u32,
    aad: MaterialAad<'_>,
    material: &MaterialBytes,
    nonce: &Nonce,
) -> Vec<u8> {
    let head = head(*EKT_MAGIC, number);
    let sealed = key.seal_bytes(nonce, &aad.bytes(&head), material.expose());
    [&head[..], nonce, &sealed].concat()
}

fn sealed_domain(root: &RootKey, number: u32, key: &DomainKey) -> Change {
    let (head, nonce) = (head(*DOMAIN_MAGIC, number), random_array());
    let sealed = root.domain_wrap().seal(&nonce, &head, key);
    Change::Put { table: Table::Domain, id: number.to_string(), body: [&head[..], &nonce, &sealed].concat() }
}

fn head(magic: [u8; 4], number: u32) -> [u8; HEAD_LEN] {
    let mut out = [0; HEAD_LEN];
    out[..4].copy_from_slice(&magic);
    out[4..].copy_from_slice(&number.to_le_bytes());
    out
}

fn number_of(head: &[u8]) -> u32 {
    u32::from_le_bytes(head[4..HEAD_LEN].try_into().expect("four bytes"))
}

type Parts<'a> = (&'a [u8], &'a Nonce, &'a [u8]);

fn split(token: &[u8], magic: [u8; 4]) -> Result<Parts<'_>, RootError> {
    if token.len() < BODY_AT || token[..4] != magic {
        return Err(RootError::Malformed);
    }
    let nonce = token[NONCE_AT..BODY_AT].try_into().expect("the length was checked");
    Ok((&token[..HEAD_LEN], nonce, &token[BODY_AT..]))
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;
    use crate::api::hex;

    const AAD: MaterialAad<'static> = MaterialAad {
        key_arn: "arn:aws:kms:local:000000000000:key/1",
        spec: "SYMMETRIC_DEFAULT",
        material_id: &[9; 32],
    };

    #[test]
    fn key_token_version_1_has_these_bytes() {
        let domain = DomainKey::of_bytes([2; 32]);
        let token = seal_token(&domain, 7, AAD, &MaterialBytes::take(&mut [1; 32]), &[3; 12]);
        // Computed with another library (OpenSSL) as well.
        let golden = "454b543107000000030303030303030303030303008210292312247662a0451afbd20898be4e3313a65049da\
                      f6dd85c452c092bfe642f7ad52bad38a1a67b9ec89746542";
        assert_eq!(hex(&token), golden);
    }

    #[test]
    fn a_token_opens_after_a_restart_and_for_its_own_key_only() {
        let store = MemoryStore::new();
        let root = Root::open(RootKey::of_bytes([4; 32]), &store).unwrap();
        let token = root.seal_material(AAD, &MaterialBytes::take(&mut [1; 32]));
        let again = Root::open(RootKey::of_bytes([4; 32]), &store).unwrap();
        let opened = again.open_material(AAD, &token).unwrap();
        assert_eq!(opened.expose(), [1; 32]);
        let other = MaterialAad { key_arn: "arn:aws:kms:local:000000000000:key/2", ..AAD };
        assert_eq!(again.open_material(other, &token).unwrap_err(), RootError::NotAuthentic);
        let other = MaterialAad { material_id: &[8; 32], ..AAD };
        assert_eq!(again.open_material(other, &token).unwrap_err(), RootError::NotAuthentic);
    }

    #[test]
    fn every_changed_byte_of_a_token_is_refused() {
        let root = Root::open(RootKey::random(), &MemoryStore::new()).unwrap();
        let token = root.seal_material(AAD, &MaterialBytes::take(&mut random_array()));
        for at in 0..token.len() {
            let mut bad = token.clone();
            bad[at] ^= 0x40;
            assert!(root.open_material(AAD, &bad).is_err(), "byte {at}");
        }
        assert_eq!(root.open_material(AAD, &token[..19]).unwrap_err(), RootError::Malformed);
    }

    #[test]
    fn a_sealed_secret_opens_for_its_owner_only() {
        let root = Root::open(RootKey::random(), &MemoryStore::new()).unwrap();
        let token = root.seal_secret("AKIDEXAMPLE", b"wJalr");
        assert_eq!(root.open_secret("AKIDEXAMPLE", &token).unwrap().as_slice(), b"wJalr");
        assert_eq!(root.open_secret("AKIDOTHER", &token).unwrap_err(), RootError::NotAuthentic);
        for at in 0..token.len() {
            let mut bad = token.clone();
            bad[at] ^= 1;
            assert!(root.open_secret("AKIDEXAMPLE", &bad).is_err(), "byte {at}");
            assert!(root.open_secret("AKIDEXAMPLE", &token[..at]).is_err(), "cut to {at}");
        }
    }

    #[test]
    fn another_root_key_does_not_open_the_store() {
        let store = MemoryStore::new();
        Root::open(RootKey::of_bytes([4; 32]), &store).unwrap();
        assert_eq!(Root::open(RootKey::of_bytes([5; 32]), &store).unwrap_err(), RootError::NotAuthentic);
    }
}
