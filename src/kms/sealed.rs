//! The sealed root file: the root key, once for each way to unseal it.
//!
//! Called by `init` and `serve`. A file is written whole under a temporary name and renamed into place.
//!
//! ```text
//! header                                     slot (512 B each)
//!  0   8  magic "KMSDROOT"                    0   4  kind: 1 key file, 2 passphrase, LE
//!  8   2  format version, 1, LE               4   4  Argon2id memory, KiB, LE
//! 10   2  number of slots, LE                 8   4  Argon2id passes, LE
//! 12   4  zero                               12   4  Argon2id lanes, LE
//! 16  16  store id                           16  16  salt
//! 32   -  slots                              32  12  nonce
//!                                            44  32  root key, encrypted
//!                                            76  16  tag
//!                                            92   4  length of the hint, LE
//!                                            96 416  hint: path of the key file, not authenticated
//! ```
//! AES-256-GCM-SIV; additional data `header 0..10 || store id || slot 0..32`. The number of slots is left out so that
//! a slot can be added or removed without the other secrets; the hint because it only saves typing.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::crypto::{NONCE_LEN, PassphraseCost, RootKey, SALT_LEN, SEALED_KEY_LEN, SealKey, random_array};

const MAGIC: &[u8; 8] = b"KMSDROOT";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 32;
const SLOT_LEN: usize = 512;
const NONCE_AT: usize = 32;
const SEALED_AT: usize = NONCE_AT + NONCE_LEN;
const HINT_LEN_AT: usize = SEALED_AT + SEALED_KEY_LEN;
const HINT_AT: usize = HINT_LEN_AT + 4;
const MAX_HINT: usize = SLOT_LEN - HINT_AT;
const MAX_SLOTS: usize = 16;
const _: () = assert!(HINT_AT == 96);

/// What a passphrase costs at init: 64 MiB, 3 passes (RFC 9106, second recommended choice, one lane).
pub const DEFAULT_COST: PassphraseCost = PassphraseCost { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
/// The most a root file may ask us to spend.
const MAX_COST: PassphraseCost = PassphraseCost { memory_kib: 4 * 1024 * 1024, passes: 64, lanes: 64 };

/// How a slot is unsealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SealKind {
    /// By the contents of a file.
    KeyFile = 1,
    /// By a passphrase.
    Passphrase = 2,
}

/// A secret to seal or unseal with.
pub struct SealSecret<'a> {
    /// Of what kind.
    pub kind: SealKind,
    /// The contents of the key file, or the passphrase.
    pub bytes: &'a [u8],
    /// Where the key file lies, to be found there next time.
    pub hint: &'a str,
}

/// Why the root did not unseal.
#[derive(Debug)]
pub enum SealedError {
    /// No root file: the state directory was never initialised.
    Missing,
    /// There is a root file already.
    Exists,
    /// The file cannot be read or written.
    Io(io::Error),
    /// Not a root file, or cut short.
    Damaged,
    /// Written by a newer version.
    Newer(u16),
    /// The secret opens no slot: wrong, or the file was changed.
    WrongSecret(SealKind),
    /// The store is sealed in another way only.
    OtherKind(SealKind),
}

/// What can be read of a root file without a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealInfo {
    /// How.
    pub kind: SealKind,
    /// Path of the key file as given at init; empty for a passphrase.
    pub hint: String,
}

/// Writes a new root file at `path` with one slot.
pub fn create(path: &Path, root: &RootKey, secret: &SealSecret<'_>) -> Result<(), SealedError> {
    if path.exists() {
        return Err(SealedError::Exists);
    }
    let header = header(&random_array());
    let slot = seal_slot(&header, root, secret, DEFAULT_COST, &random_array(), &random_array())?;
    write_whole(path, &[&header[..], &slot].concat()).map_err(SealedError::Io)
}

/// Opens the root key with `secret`.
pub fn open(path: &Path, secret: &SealSecret<'_>) -> Result<RootKey, SealedError> {
    let bytes = read_whole(path)?;
    let (header, slots) = parse(&bytes)?;
    let mut tried = false;
    for slot in slots.chunks_exact(SLOT_LEN).filter(|slot| kind_of(slot) == Some(secret.kind)) {
        tried = true;
        if let Some(root) = open_slot(header, slot, secret)? {
            return Ok(root);
        }
    }
    if tried {
        return Err(SealedError::WrongSecret(secret.kind));
    }
    let other = slots.chunks_exact(SLOT_LEN).find_map(kind_of).ok_or(SealedError::Damaged)?;
    Err(SealedError::OtherKind(other))
}

/// How the store at `path` is sealed: its first slot.
pub fn inspect(path: &Path) -> Result<SealInfo, SealedError> {
    let bytes = read_whole(path)?;
    let (_, slots) = parse(&bytes)?;
    let slot = &slots[..SLOT_LEN];
    let kind = kind_of(slot).ok_or(SealedError::Damaged)?;
    let hint_len = (number(slot, HINT_LEN_AT) as usize).min(MAX_HINT);
    let hint = String::from_utf8_lossy(&slot[HINT_AT..HINT_AT + hint_len]).into_owned();
    Ok(SealInfo { kind, hint })
}

fn header(store_id: &[u8; 16]) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10..12].copy_from_slice(&1u16.to_le_bytes());
    out[16..].copy_from_slice(store_id);
    out
}

fn seal_slot(
    header: &[u8; HEADER_LEN],
    root: &RootKey,
    secret: &SealSecret<'_>,
    cost: PassphraseCost,
    salt: &[u8; SALT_LEN],
    nonce: &[u8; NONCE_LEN],
) -> Result<[u8; SLOT_LEN], SealedError> {
    let mut slot = [0; SLOT_LEN];
    slot[..4].copy_from_slice(&(secret.kind as u32).to_le_bytes());
    if secret.kind == SealKind::Passphrase {
        slot[4..8].copy_from_slice(&cost.memory_kib.to_le_bytes());
        slot[8..12].copy_from_slice(&cost.passes.to_le_bytes());
        slot[12..16].copy_from_slice(&cost.lanes.to_le_bytes());
    }
    slot[16..32].copy_from_slice(salt);
    slot[NONCE_AT..SEALED_AT].copy_from_slice(nonce);
    let key = seal_key(secret, salt, cost)?;
    let sealed = key.seal(nonce, &additional_data(header, &slot), root);
    slot[SEALED_AT..HINT_LEN_AT].copy_from_slice(&sealed);
    if secret.hint.len() <= MAX_HINT {
        slot[HINT_LEN_AT..HINT_AT].copy_from_slice(&(secret.hint.len() as u32).to_le_bytes());
        slot[HINT_AT..HINT_AT + secret.hint.len()].copy_from_slice(secret.hint.as_bytes());
    }
    Ok(slot)
}

fn open_slot(header: &[u8], slot: &[u8], secret: &SealSecret<'_>) -> Result<Option<RootKey>, SealedError> {
    let cost =
        PassphraseCost { memory_kib: number(slot, 4), passes: number(slot, 8), lanes: number(slot, 12) };
    let salt = slot[16..32].try_into().expect("16 bytes");
    let nonce = slot[NONCE_AT..SEALED_AT].try_into().expect("12 bytes");
    let sealed = slot[SEALED_AT..HINT_LEN_AT].try_into().expect("48 bytes");
    let key = seal_key(secret, salt, cost)?;
    Ok(key.open(nonce, &additional_data(header, slot), sealed).ok())
}

fn seal_key(
    secret: &SealSecret<'_>,
    salt: &[u8; SALT_LEN],
    cost: PassphraseCost,
) -> Result<SealKey, SealedError> {
    match secret.kind {
        SealKind::KeyFile => Ok(SealKey::from_key_file(secret.bytes, salt)),
        SealKind::Passphrase => {
            let bounded = cost.memory_kib <= MAX_COST.memory_kib
                && cost.passes <= MAX_COST.passes
                && cost.lanes <= MAX_COST.lanes;
            let key = bounded.then(|| SealKey::from_passphrase(secret.bytes, salt, cost));
            key.and_then(Result::ok).ok_or(SealedError::Damaged)
        }
    }
}

fn additional_data(header: &[u8], slot: &[u8]) -> Vec<u8> {
    [&header[..10], &header[16..32], &slot[..32]].concat()
}

fn parse(bytes: &[u8]) -> Result<(&[u8], &[u8]), SealedError> {
    if bytes.len() < HEADER_LEN || &bytes[..8] != MAGIC {
        return Err(SealedError::Damaged);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version > VERSION {
        return Err(SealedError::Newer(version));
    }
    let count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    let whole = bytes.len() == HEADER_LEN + count * SLOT_LEN;
    if version != VERSION || count == 0 || count > MAX_SLOTS || !whole {
        return Err(SealedError::Damaged);
    }
    Ok(bytes.split_at(HEADER_LEN))
}

fn kind_of(slot: &[u8]) -> Option<SealKind> {
    match number(slot, 0) {
        1 => Some(SealKind::KeyFile),
        2 => Some(SealKind::Passphrase),
        _ => None,
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_whole(path: &Path) -> Result<Vec<u8>, SealedError> {
    let file = fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SealedError::Missing,
        _ => SealedError::Io(error),
    })?;
    let mut bytes = Vec::new();
    file.take((HEADER_LEN + MAX_SLOTS * SLOT_LEN + 1) as u64)
        .read_to_end(&mut bytes)
        .map_err(SealedError::Io)?;
    Ok(bytes)
}

/// Writes `bytes` under a temporary name, makes them durable, and renames them into place.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hex;

    const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };

    fn secret(kind: SealKind, bytes: &[u8]) -> SealSecret<'_> {
        SealSecret { kind, bytes, hint: "/k" }
    }

    fn file_with(kind: SealKind, bytes: &[u8]) -> (Vec<u8>, std::path::PathBuf) {
        let header = header(&[1; 16]);
        let root = RootKey::of_bytes([2; 32]);
        let slot = seal_slot(&header, &root, &secret(kind, bytes), CHEAP, &[3; 16], &[4; 12]).unwrap();
        let name = format!("kmsd-root-{}-{}", std::process::id(), hex(&random_array::<8>()));
        let path = std::env::temp_dir().join(name);
        let whole = [&header[..], &slot].concat();
        fs::write(&path, &whole).unwrap();
        (whole, path)
    }

    #[test]
    fn sealed_root_version_1_has_these_bytes() {
        let (bytes, path) = file_with(SealKind::KeyFile, &[5; 32]);
        fs::remove_file(path).unwrap();
        assert_eq!(bytes.len(), 544);
        // The encrypted part was computed with another library (OpenSSL) as well.
        let golden = "4b4d5344524f4f5401000100000000000101010101010101010101010101010101000000000000000000\
                      0000000000000303030303030303030303030303030304040404040404040404040413e82dadcf024dc8\
                      fa0ca6af322ac9526c427f62814ebff744fabe7a2afb62bc0a4a45e71dffdcee5aae2f510c0f866b0200\
                      00002f6b";
        assert_eq!(hex(&bytes[..HEADER_LEN + HINT_AT + 2]), golden);
        assert!(bytes[HEADER_LEN + HINT_AT + 2..].iter().all(|b| *b == 0));
    }

    #[test]
    fn the_right_secret_opens_and_a_wrong_one_says_so() {
        for kind in [SealKind::KeyFile, SealKind::Passphrase] {
            let (_, path) = file_with(kind, &[5; 32]);
            assert!(open(&path, &secret(kind, &[5; 32])).is_ok());
            let wrong = open(&path, &secret(kind, &[6; 32])).unwrap_err();
            assert!(matches!(wrong, SealedError::WrongSecret(k) if k == kind));
            assert_eq!(inspect(&path).unwrap(), SealInfo { kind, hint: "/k".into() });
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn the_other_kind_of_secret_is_asked_for() {
        let (_, path) = file_with(SealKind::KeyFile, &[5; 32]);
        let error = open(&path, &secret(SealKind::Passphrase, b"x")).unwrap_err();
        assert!(matches!(error, SealedError::OtherKind(SealKind::KeyFile)));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn every_changed_authenticated_byte_and_every_cut_is_refused() {
        let (bytes, path) = file_with(SealKind::KeyFile, &[5; 32]);
        let authenticated = (0..12).chain(16..HEADER_LEN + HINT_LEN_AT);
        for at in authenticated {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(open(&path, &secret(SealKind::KeyFile, &[5; 32])).is_err(), "byte {at}");
        }
        for keep in [0, 7, 31, 32, 200, 543] {
            fs::write(&path, &bytes[..keep]).unwrap();
            assert!(matches!(inspect(&path), Err(SealedError::Damaged)), "cut to {keep}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_newer_file_is_told_apart_from_a_damaged_one() {
        let (mut bytes, path) = file_with(SealKind::KeyFile, &[5; 32]);
        bytes[8] = 2;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(inspect(&path), Err(SealedError::Newer(2))));
        fs::remove_file(path).unwrap();
    }
}
