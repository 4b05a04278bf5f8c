//! The volume record: what a volume is, sealed under a DEK of its own that the CMK wraps.
//!
//! Stored as `.kmsfs.volume` and `.kmsfs.volume.bak` in the lower root, and as text on the recovery sheet.
//!
//! ```text
//!    0  magic "KMV1" 4 B | 4  format version u16 | 6  minimum reader u16 | 8  flags u64
//!   16  volume id 16 B | 32  commitment to the DEK 32 B | 64  length of the sealed body u32 | 68  CRC-32C of 0..68 u32
//!   72  zero 8 B
//!   80  key slot A 344 B | 424  zero 88 B | 512  key slot B 344 B | 856  zero 168 B
//! 1024  nonce 12 B | 1036  sealed body | tag 16 B            aad = bytes 0..68
//! body:  0  volume key 32 B | 32  JSON { "default_key": ARN, "keys": [ARN], "created": seconds }
//! ```
//! Every flag stands in the authenticated part; an unknown flag or an unknown member of the body refuses to open.
//! `keys` pins the CMKs under which files of this volume may be wrapped: a file that names another one does not open.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::header::{GENERATION_MAX, KeySlot, SLOT_LEN, SLOT_OFFSETS, array, le16, le32};
use super::{VolumeId, WrappedKey, text};
use crate::crypto::{
    DataKey, NONCE_LEN, RecordKey, Secret, TAG_LEN, VolumeKey, constant_time_eq, random_array,
};

/// Name of the record in the lower root.
pub const VOLUME_RECORD: &str = ".kmsfs.volume";
/// Name of its second copy.
pub const VOLUME_RECORD_COPY: &str = ".kmsfs.volume.bak";
/// Largest record in bytes.
pub const RECORD_MAX: usize = 64 * 1024;
/// Most CMKs that one volume may name.
pub const KEYS_MAX: usize = 100;

const MAGIC: [u8; 4] = *b"KMV1";
const VERSION: u16 = 1;
const CLEAR_LEN: usize = 68;
const BODY_OFFSET: usize = 1024;
const KEY_LEN: usize = 32;
const SEALED_MIN: usize = NONCE_LEN + KEY_LEN + TAG_LEN;

/// Why a volume record does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// Not a volume record, or damaged.
    NotARecord,
    /// Written by a newer version, which asks for this reader.
    Newer(u16),
    /// Holds these flags, which this version does not know.
    UnknownFlags(u64),
    /// Both key slots are damaged.
    NoSlot,
    /// The data key is not this record's, or the record was changed.
    Forged,
    /// The sealed body does not parse: written by a newer version.
    Body(String),
    /// The wrapped key does not fit its slot, or the body its place.
    TooLong,
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotARecord => write!(f, "the volume record is damaged"),
            Self::Newer(v) => write!(f, "the volume needs a reader of format version {v}; upgrade kmsfs"),
            Self::UnknownFlags(bits) => {
                write!(
                    f,
                    "the volume uses features this version does not know (flags {bits:#x}); upgrade kmsfs"
                )
            }
            Self::NoSlot => write!(f, "both key slots of the volume record are damaged"),
            Self::Forged => write!(f, "the volume record was changed, or belongs to another key"),
            Self::Body(why) => write!(f, "the volume record cannot be read: {why}; upgrade kmsfs"),
            Self::TooLong => write!(f, "the volume record outgrew its place"),
        }
    }
}

impl std::error::Error for RecordError {}

/// The sealed part of a record, less the volume key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSettings {
    /// ARN of the CMK for new files.
    pub default_key: String,
    /// ARNs of all CMKs that files of this volume may be wrapped under.
    pub keys: Vec<String>,
    /// When the volume was made, in seconds since 1970.
    pub created: u64,
    /// Whether files, directories and links are bound to their directory and name. Chosen when the volume is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bind_names: bool,
}

/// A record that was parsed but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// The volume's identity.
    pub volume_id: VolumeId,
    commitment: [u8; 32],
    /// Format version and lowest reader, as stored: they are authenticated.
    versions: [u8; 4],
    slots: [Option<KeySlot>; 2],
    sealed: Vec<u8>,
}

impl VolumeRecord {
    /// A new record.
    pub fn seal(
        volume_id: VolumeId,
        data_key: &DataKey,
        wrapped: WrappedKey,
        volume_key: &VolumeKey,
        settings: &VolumeSettings,
    ) -> Result<Self, RecordError> {
        let slot = KeySlot { generation: 1, wrapped };
        let key = RecordKey::derive(data_key, &volume_id.0);
        let [low, high] = VERSION.to_le_bytes();
        let mut record = Self {
            volume_id,
            commitment: key.commitment,
            versions: [low, high, low, high],
            slots: [Some(slot), None],
            sealed: Vec::new(),
        };
        record.reseal(data_key, volume_key, settings)?;
        Ok(record)
    }

    /// Replaces the sealed settings.
    pub fn reseal(
        &mut self,
        data_key: &DataKey,
        volume_key: &VolumeKey,
        settings: &VolumeSettings,
    ) -> Result<(), RecordError> {
        let json = serde_json::to_vec(settings).map_err(|e| RecordError::Body(e.to_string()))?;
        let end = NONCE_LEN + KEY_LEN + json.len();
        if BODY_OFFSET + end + TAG_LEN > RECORD_MAX {
            return Err(RecordError::TooLong);
        }
        let nonce = random_array::<NONCE_LEN>();
        // At its full size from the start, so that the key is never left behind in a buffer that moved.
        let mut sealed = Vec::with_capacity(end + TAG_LEN);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(volume_key.expose_for_record());
        sealed.extend_from_slice(&json);
        sealed.resize(end + TAG_LEN, 0);
        self.sealed = vec![0; sealed.len()];
        let key = RecordKey::derive(data_key, &self.volume_id.0);
        let tag = key.aead.seal(&nonce, &self.clear(), &mut sealed[NONCE_LEN..end]);
        sealed[end..].copy_from_slice(&tag);
        self.sealed = sealed;
        Ok(())
    }

    /// Opens the sealed part.
    pub fn open(&self, data_key: &DataKey) -> Result<(VolumeKey, VolumeSettings), RecordError> {
        let key = RecordKey::derive(data_key, &self.volume_id.0);
        if !constant_time_eq(&key.commitment, &self.commitment) {
            return Err(RecordError::Forged);
        }
        let end = self.sealed.len() - TAG_LEN;
        let mut plain = Zeroizing::new(vec![0; end - NONCE_LEN]);
        let (nonce, tag) = (array(&self.sealed, 0), array(&self.sealed, end));
        let opened = key.aead.open(&nonce, &self.clear(), &self.sealed[NONCE_LEN..end], &tag, &mut plain);
        opened.map_err(|_| RecordError::Forged)?;
        let (secret, json) = plain.split_at(KEY_LEN);
        let settings: VolumeSettings =
            serde_json::from_slice(json).map_err(|e| RecordError::Body(e.to_string()))?;
        let secret = Secret::new_with(|out| out.copy_from_slice(secret));
        Ok((VolumeKey::new(secret).binding_names(settings.bind_names), settings))
    }

    /// The key slot that counts.
    pub fn active(&self) -> &KeySlot {
        let newest = self.slots.iter().flatten().max_by_key(|slot| slot.generation);
        newest.expect("seal and parse leave one slot whole")
    }

    /// Puts `wrapped` into the slot that does not count; the other keeps its wrap. Where somebody counted
    /// the generations up to their end both are numbered anew: a record is replaced as a whole.
    pub fn rewrap(&mut self, wrapped: WrappedKey) {
        let generation = self.active().generation;
        let active = usize::from(self.slots[0].as_ref().is_none_or(|s| s.generation != generation));
        let next = if generation < GENERATION_MAX { generation } else { 1 };
        if let Some(slot) = &mut self.slots[active] {
            slot.generation = next;
        }
        self.slots[1 - active] = Some(KeySlot { generation: next + 1, wrapped });
    }

    /// Takes away the wrap that does not count.
    pub fn forget_other(&mut self) {
        let generation = self.active().generation;
        for slot in &mut self.slots {
            slot.take_if(|slot| slot.generation != generation);
        }
    }

    fn clear(&self) -> [u8; CLEAR_LEN] {
        let mut out = [0; CLEAR_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.versions);
        out[16..32].copy_from_slice(&self.volume_id.0);
        out[32..64].copy_from_slice(&self.commitment);
        out[64..68].copy_from_slice(&(self.sealed.len() as u32).to_le_bytes());
        out
    }

    /// The bytes to store.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut out = vec![0; BODY_OFFSET];
        let clear = self.clear();
        out[..CLEAR_LEN].copy_from_slice(&clear);
        out[68..72].copy_from_slice(&crc32c::crc32c(&clear).to_le_bytes());
        for (slot, at) in self.slots.iter().zip(SLOT_OFFSETS) {
            if let Some(slot) = slot {
                out[at..at + SLOT_LEN].copy_from_slice(&slot.encode().map_err(|_| RecordError::TooLong)?);
            }
        }
        out.extend_from_slice(&self.sealed);
        Ok(out)
    }

    /// Parses stored bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let whole = bytes.len() >= BODY_OFFSET + SEALED_MIN && bytes[..4] == MAGIC;
        if !whole || le32(bytes, 68) != crc32c::crc32c(&bytes[..CLEAR_LEN]) {
            return Err(RecordError::NotARecord);
        }
        if le16(bytes, 6) > VERSION {
            return Err(RecordError::Newer(le16(bytes, 6)));
        }
        let flags = u64::from_le_bytes(array(bytes, 8));
        if flags != 0 {
            return Err(RecordError::UnknownFlags(flags));
        }
        if le32(bytes, 64) as usize != bytes.len() - BODY_OFFSET {
            return Err(RecordError::NotARecord);
        }
        let slots = SLOT_OFFSETS.map(|at| KeySlot::parse(&bytes[at..at + SLOT_LEN]));
        if slots.iter().all(Option::is_none) {
            return Err(RecordError::NoSlot);
        }
        Ok(Self {
            volume_id: VolumeId(array(bytes, 16)),
            commitment: array(bytes, 32),
            versions: array(bytes, 4),
            slots,
            sealed: bytes[BODY_OFFSET..].to_vec(),
        })
    }

    /// The record as text for the recovery sheet, in lines of 64 characters.
    pub fn to_text(&self) -> Result<String, RecordError> {
        let encoded = text::encode(&self.encode()?);
        let lines: Vec<&str> =
            encoded.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap_or_default()).collect();
        Ok(lines.join("\n"))
    }

    /// The record from the text of a recovery sheet; white space does not matter.
    pub fn from_text(sheet: &str) -> Result<Self, RecordError> {
        let packed: String = sheet.split_whitespace().collect();
        Self::parse(&text::decode(packed.as_bytes()).ok_or(RecordError::NotARecord)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(n: u8) -> WrappedKey {
        WrappedKey { key_arn: "arn:aws:kms:local:0:key/a".into(), material_id: None, blob: vec![n; 105] }
    }

    fn settings() -> VolumeSettings {
        VolumeSettings {
            default_key: "arn:k".into(),
            keys: vec!["arn:k".into()],
            created: 1,
            bind_names: false,
        }
    }

    fn record(dek: &DataKey) -> VolumeRecord {
        let key = VolumeKey::new(Secret::take(&mut [5; 32]));
        VolumeRecord::seal(VolumeId([1; 16]), dek, wrapped(1), &key, &settings()).unwrap()
    }

    #[test]
    fn a_record_comes_back_from_bytes_and_from_the_sheet() {
        let dek = DataKey::take(&mut [7; 32]);
        let record = record(&dek);
        let read = VolumeRecord::parse(&record.encode().unwrap()).unwrap();
        assert_eq!(VolumeRecord::from_text(&record.to_text().unwrap()).unwrap(), read);
        let (key, got) = read.open(&dek).unwrap();
        assert_eq!((key.expose_for_record(), got), (&[5; 32], settings()));
        assert_eq!(read.open(&DataKey::take(&mut [8; 32])).unwrap_err(), RecordError::Forged);
    }

    #[test]
    fn any_changed_byte_shows() {
        let dek = DataKey::take(&mut [7; 32]);
        let good = record(&dek).encode().unwrap();
        for at in (0..72).chain(BODY_OFFSET..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(VolumeRecord::parse(&bad).and_then(|r| r.open(&dek).map(|_| ())).is_err(), "byte {at}");
        }
        for len in [0, 100, good.len() - 1] {
            assert!(VolumeRecord::parse(&good[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_rewrap_keeps_the_other_slot() {
        let dek = DataKey::take(&mut [7; 32]);
        let mut record = record(&dek);
        for n in 2..5 {
            record.rewrap(wrapped(n));
            let read = VolumeRecord::parse(&record.encode().unwrap()).unwrap();
            assert_eq!(read.active().wrapped, wrapped(n));
            assert!(read.slots.iter().flatten().any(|s| s.wrapped == wrapped(n - 1)));
            read.open(&dek).unwrap();
            if n == 3 {
                let slot = record.slots.iter_mut().flatten().find(|slot| slot.wrapped == wrapped(3));
                slot.unwrap().generation = GENERATION_MAX;
            }
        }
    }

    #[test]
    fn newer_records_and_unknown_flags_are_refused_by_name() {
        let patch = |at: usize| {
            let mut bytes = record(&DataKey::random()).encode().unwrap();
            bytes[at] = 9;
            let crc = crc32c::crc32c(&bytes[..CLEAR_LEN]);
            bytes[68..72].copy_from_slice(&crc.to_le_bytes());
            VolumeRecord::parse(&bytes).unwrap_err()
        };
        assert_eq!(patch(6), RecordError::Newer(9));
        assert_eq!(patch(8), RecordError::UnknownFlags(9));
    }

    #[test]
    fn whether_names_are_bound_is_sealed_and_comes_back() {
        let dek = DataKey::take(&mut [7; 32]);
        let key = VolumeKey::new(Secret::take(&mut [5; 32]));
        let bound = VolumeSettings { bind_names: true, ..settings() };
        let record = VolumeRecord::seal(VolumeId([1; 16]), &dek, wrapped(1), &key, &bound).unwrap();
        let (key, got) = record.open(&dek).unwrap();
        assert!(key.binds_names() && got == bound);
    }

    #[test]
    fn the_golden_record_opens() {
        let golden = include_bytes!("../../tests/vectors/volume.bin");
        let (key, got) = VolumeRecord::parse(golden).unwrap().open(&DataKey::take(&mut [7; 32])).unwrap();
        assert_eq!((key.expose_for_record(), got), (&[5; 32], settings()));
    }
}
