//! A type per key purpose, and every derivation with its label.
//!
//! `derive(secret, label, info) = HKDF-SHA-256(salt = none, ikm = secret, info = label || 0x00 || info)` (RFC 5869).

use hkdf::Hkdf;
use sha2::Sha256;

use zeroize::Zeroizing;

use super::{Aead, NONCE_LEN, Secret, TAG_LEN, Tag, random_array};

/// Domain separation: one label per derived key. Never reuse or change one.
mod label {
    pub const CONTENT: &[u8] = b"kmsfs/1 file content";
    pub const SEAL: &[u8] = b"kmsfs/1 file seal";
    pub const PAGE: &[u8] = b"kmsfs/1 file tag page";
    pub const ROOT: &[u8] = b"kmsfs/1 file root term";
    pub const XATTR: &[u8] = b"kmsfs/1 file xattr";
    pub const COMMIT: &[u8] = b"kmsfs/1 file key commitment";
    pub const RECORD: &[u8] = b"kmsfs/1 volume record";
    pub const RECORD_COMMIT: &[u8] = b"kmsfs/1 volume record commitment";
    pub const DIR_NAMES: &[u8] = b"kmsfs/1 dir names";
    pub const DIR_XATTR: &[u8] = b"kmsfs/1 dir xattr";
    pub const DIR_RECORD: &[u8] = b"kmsfs/1 dir record";
    pub const SYMLINK: &[u8] = b"kmsfs/1 symlink target";
    pub const XATTR_NAME: &[u8] = b"kmsfs/1 xattr name";
    pub const SPECIAL_XATTR: &[u8] = b"kmsfs/1 special file xattr";
    pub const LOG: &[u8] = b"kmsfs/1 tag log";
    pub const PLACE: &[u8] = b"kmsfs/1 place";
    pub const CUSTOMER_WRAP: &[u8] = b"kmsfs/1 customer key wrap";
    pub const CUSTOMER_CHECK: &[u8] = b"kmsfs/1 customer key check";
}

/// A secret from which several keys are derived; what they have in common is computed once.
struct Source(Hkdf<Sha256>);

impl Source {
    fn new(secret: &Secret<32>) -> Self {
        Self(Hkdf::new(None, secret.expose()))
    }

    fn derive_into(&self, label: &[u8], info: &[u8], out: &mut [u8; 32]) {
        let expanded = self.0.expand_multi_info(&[label, &[0], info], out);
        expanded.expect("32 bytes is a valid HKDF-SHA-256 length");
    }

    fn aead(&self, label: &[u8], info: &[u8]) -> Aead {
        Aead::new(Secret::new_with(|out| self.derive_into(label, info, out)).expose())
    }

    /// A public value derived from the secret, which tells keys apart and gives nothing of them away.
    fn commitment(&self, label: &[u8], info: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        self.derive_into(label, info, &mut out);
        out
    }
}

/// The data key (DEK) of one file, or of the volume record.
#[derive(Debug)]
pub struct DataKey(Secret<32>);

impl DataKey {
    /// Takes the key bytes and wipes the source.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        Self(Secret::take(bytes))
    }

    /// A second holder of the same key, for the one cache that hands keys out.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(Secret::new_with(|out| out.copy_from_slice(self.0.expose())))
    }

    /// A random key, for tests and for callers that wrap it themselves.
    pub fn random() -> Self {
        Self(Secret::random())
    }
}

/// A key that its owner brings along instead of one that a key service holds.
#[derive(Debug)]
pub struct CustomerKey {
    secret: Secret<32>,
    wrap: Aead,
}

impl CustomerKey {
    /// Takes the key bytes and wipes the source.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let secret = Secret::take(bytes);
        Self { wrap: Source::new(&secret).aead(label::CUSTOMER_WRAP, b""), secret }
    }

    /// What tells this key from others, with a salt.
    pub fn check(&self, salt: &[u8]) -> [u8; 32] {
        Source::new(&self.secret).commitment(label::CUSTOMER_CHECK, salt)
    }

    /// The wrap of a data key, bound to `context`: nonce 12 B || ciphertext 32 B || tag 16 B.
    pub fn wrap(&self, data_key: &DataKey, context: &[u8]) -> Vec<u8> {
        let nonce = random_array::<NONCE_LEN>();
        let mut wrapped = [&nonce[..], data_key.0.expose()].concat();
        let tag = self.wrap.seal(&nonce, context, &mut wrapped[NONCE_LEN..]);
        wrapped.extend_from_slice(&tag);
        wrapped
    }

    /// The data key of a wrap; `None` where it is another key's, of another context, or was changed.
    pub fn unwrap(&self, wrapped: &[u8], context: &[u8]) -> Option<DataKey> {
        let (nonce, rest) = wrapped.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        let mut plain = Zeroizing::new([0; 32]);
        if sealed.len() != plain.len() {
            return None;
        }
        self.wrap.open(nonce, context, sealed, tag, &mut plain[..]).ok()?;
        Some(DataKey::take(&mut plain))
    }
}

/// The working keys of one file, all derived from its DEK and bound to its id.
#[derive(Debug)]
pub struct FileKeys {
    /// Data blocks.
    pub content: Aead,
    /// The seals of the header.
    pub seal: Aead,
    /// MAC of a tag page.
    pub page: Aead,
    /// Values of extended attributes.
    pub xattr: Aead,
    root: Aead,
    commitment: [u8; 32],
}

impl FileKeys {
    /// Derives all keys of the file `file_id`.
    pub fn derive(dek: &DataKey, file_id: &[u8; 16]) -> Self {
        let from = Source::new(&dek.0);
        let key = |label| from.aead(label, file_id);
        Self {
            content: key(label::CONTENT),
            seal: key(label::SEAL),
            page: key(label::PAGE),
            xattr: key(label::XATTR),
            root: key(label::ROOT),
            commitment: from.commitment(label::COMMIT, file_id),
        }
    }

    /// The commitment to the DEK that the superblock carries (GCM-SIV alone does not commit to its key).
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    /// The secret term of tag page `page_no` with MAC `mac` in the root: PRF(page_no, mac).
    pub fn root_term(&self, page_no: u64, mac: &Tag) -> Tag {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&page_no.to_le_bytes());
        self.root.mac(&nonce, mac)
    }
}

/// Seals the volume record; derived from the record's own DEK.
#[derive(Debug)]
pub struct RecordKey {
    /// The cipher of the sealed part.
    pub aead: Aead,
    /// The commitment stored in clear.
    pub commitment: [u8; 32],
}

impl RecordKey {
    /// Derives the record key of volume `volume_id`.
    pub fn derive(dek: &DataKey, volume_id: &[u8; 16]) -> Self {
        let from = Source::new(&dek.0);
        Self {
            aead: from.aead(label::RECORD, volume_id),
            commitment: from.commitment(label::RECORD_COMMIT, volume_id),
        }
    }
}

/// The volume's own secret, kept sealed in the volume record: names, links and directory records hang on it.
#[derive(Debug)]
pub struct VolumeKey {
    secret: Secret<32>,
    /// Seals directory records.
    pub dir_record: Aead,
    /// Targets of symbolic links.
    pub symlink: Aead,
    /// Names of extended attributes (deterministic).
    pub xattr_name: Aead,
    /// Extended attributes of symbolic links and special files, which have no key of their own.
    pub special_xattr: Aead,
    /// The first page of the tag log.
    pub log: Aead,
    /// Places, on a volume that binds names.
    place: Option<Aead>,
}

/// Where an entry stands: a value of directory and lower name that nobody without the volume key can make.
pub type Place = Tag;

impl VolumeKey {
    /// Takes over the secret. Names are not bound; see [`VolumeKey::binding_names`].
    pub fn new(secret: Secret<32>) -> Self {
        let from = Source::new(&secret);
        Self {
            dir_record: from.aead(label::DIR_RECORD, b""),
            symlink: from.aead(label::SYMLINK, b""),
            xattr_name: from.aead(label::XATTR_NAME, b""),
            special_xattr: from.aead(label::SPECIAL_XATTR, b""),
            log: from.aead(label::LOG, b""),
            place: None,
            secret,
        }
    }

    /// The key of a volume whose entries are bound to their places, or not.
    #[must_use]
    pub fn binding_names(mut self, binds: bool) -> Self {
        self.place = binds.then(|| Source::new(&self.secret).aead(label::PLACE, b""));
        self
    }

    /// Whether entries are bound to their places.
    pub fn binds_names(&self) -> bool {
        self.place.is_some()
    }

    /// The place of the lower name `entry` in the directory `dir_id`; `None` where names are not bound.
    pub fn place(&self, dir_id: &[u8; 16], entry: &[u8]) -> Option<Place> {
        let key = self.place.as_ref()?;
        Some(key.mac(&[0; 12], &[&dir_id[..], entry].concat()))
    }

    /// The place of the volume's root, which no entry has.
    pub fn root_place(&self) -> Option<Place> {
        self.place.as_ref().map(|key| key.mac(&[0; 12], b""))
    }

    /// The secret itself, for the one caller that seals it into the volume record.
    pub fn expose_for_record(&self) -> &[u8; 32] {
        self.secret.expose()
    }

    /// The keys of the directory `dir_id`.
    pub fn dir_key(&self, dir_id: &[u8; 16]) -> DirKey {
        let from = Source::new(&self.secret);
        DirKey { names: from.aead(label::DIR_NAMES, dir_id), xattr: from.aead(label::DIR_XATTR, dir_id) }
    }
}

/// The keys of one directory, derived from the volume key and the directory id.
#[derive(Debug)]
pub struct DirKey {
    /// Names of the entries (deterministic).
    pub names: Aead,
    /// Values of the directory's own extended attributes.
    pub xattr: Aead,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each key makes another tag of the same message, though secret and id are the same for all.
    #[test]
    fn a11_no_two_purposes_share_a_key() {
        let secret = || Secret::<32>::take(&mut [7; 32]);
        let dek = DataKey::take(&mut [7; 32]);
        let (file, record) = (FileKeys::derive(&dek, &[2; 16]), RecordKey::derive(&dek, &[2; 16]));
        let volume = VolumeKey::new(secret()).binding_names(true);
        let dir = volume.dir_key(&[2; 16]);
        let aeads = [
            &file.content,
            &file.seal,
            &file.page,
            &file.xattr,
            &file.root,
            &record.aead,
            &volume.dir_record,
            &volume.symlink,
            &volume.xattr_name,
            &volume.special_xattr,
            &volume.log,
            volume.place.as_ref().unwrap(),
            &dir.names,
            &dir.xattr,
        ];
        let tags: BTreeSet<Tag> = aeads.iter().map(|key| key.mac(&[0; 12], b"message")).collect();
        assert_eq!(tags.len(), aeads.len());
        assert_ne!(file.commitment, record.commitment);
    }

    #[test]
    fn places_differ_by_directory_and_name_and_the_root_has_its_own() {
        let key = VolumeKey::new(Secret::take(&mut [7; 32]));
        assert_eq!((key.place(&[1; 16], b"a"), key.root_place()), (None, None));
        let key = key.binding_names(true);
        let places = [
            key.place(&[1; 16], b"a"),
            key.place(&[2; 16], b"a"),
            key.place(&[1; 16], b"b"),
            key.root_place(),
        ];
        assert_eq!(places.iter().flatten().collect::<BTreeSet<_>>().len(), 4);
    }
}
