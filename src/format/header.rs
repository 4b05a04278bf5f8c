//! The header page: superblock, key slots, and the places of seals, head tags and inline tail.
//!
//! ```text
//!    0  superblock      80 B   written once
//!   80  key slot A     344 B   a rewrap writes the slot that does not count
//!  424  superblock      80 B   the same bytes again
//!  504  zero             8 B
//!  512  key slot B     344 B   in the second sector: a torn write leaves one slot whole
//!  856  seal A          88 B   \
//!  944  seal B          88 B    | bytes 856..4096 are written by the mount alone,
//! 1032  MAC of head tags 16 B   | bytes 80..424 and 512..856 by a rewrap alone
//! 1048  zero             8 B    |
//! 1056  inline tail            |  from here up
//! 4096  tag entries     28 B   /  of blocks 0..96, from here down
//! ```
//! Superblock (integers little-endian):
//! ```text
//!  0  magic "KMF1"  4 B | 4  format version u16 | 6  minimum reader u16 | 8  cipher u8 | 9  log2(block) u8
//! 10  flags u16 | 12  volume id 16 B | 28  file id 16 B | 44  commitment to the DEK 32 B | 76  CRC-32C u32
//! ```
//! Key slot:
//! ```text
//!  0  generation u64 (0: empty) | 8  length of ARN u16 | 10  length of blob u16 | 12  flags u16 (1: has material id)
//! 14  zero u16 | 16  key material id 32 B | 48  ARN, then blob, then zeros 292 B | 340  CRC-32C u32
//! ```

use super::{FileId, VolumeId, WrappedKey};

/// Bytes of a superblock.
pub const SUPERBLOCK_LEN: usize = 80;
/// Bytes of a key slot.
pub const SLOT_LEN: usize = 344;
/// Offsets of the two key slots in the header page.
pub const SLOT_OFFSETS: [usize; 2] = [80, 512];
/// Offset of the second superblock.
const COPY_OFFSET: usize = 424;
/// Bytes that hold superblocks and slots; all that a rewrap reads.
pub const SLOTS_LEN: usize = 856;
/// Where the mount's own part of the header page begins.
pub const HOT_OFFSET: usize = SLOTS_LEN;

const MAGIC: [u8; 4] = *b"KMF1";
const FORMAT_VERSION: u16 = 1;
const CIPHER_AES_256_GCM_SIV: u8 = 1;
const BLOCK_LOG2: u8 = 12;
const SLOT_ROOM: usize = 292;
const SLOT_CRC: usize = SLOT_LEN - 4;
const FLAG_MATERIAL: u16 = 1;
/// Highest generation that is believed: the CRC is no MAC, and a forged one must not end the counting.
pub(super) const GENERATION_MAX: u64 = 1 << 48;
const _: () = assert!(48 + SLOT_ROOM == SLOT_CRC);
const _: () = assert!(SLOT_OFFSETS[1] + SLOT_LEN == SLOTS_LEN && SLOT_OFFSETS[0] + SLOT_LEN == COPY_OFFSET);

/// Why a header does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderError {
    /// Neither superblock is whole.
    NoSuperblock,
    /// Written by a newer version, which asks for this reader.
    Newer(u16),
    /// An unknown cipher, block size or flag.
    Unsupported(&'static str),
    /// Neither key slot is whole.
    NoSlot,
    /// The ARN and blob do not fit a slot.
    WrapTooLong(usize),
}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuperblock => write!(f, "the header is damaged or not one of ours"),
            Self::Newer(v) => write!(f, "the file needs a reader of format version {v}; upgrade kmsfs"),
            Self::Unsupported(what) => write!(f, "the header asks for an unknown {what}; upgrade kmsfs"),
            Self::NoSlot => write!(f, "both key slots are damaged"),
            Self::WrapTooLong(n) => {
                write!(f, "key ARN and wrapped key take {n} bytes, more than a slot holds")
            }
        }
    }
}

impl std::error::Error for HeaderError {}

/// What a file is, written once at its first write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The volume it belongs to.
    pub volume_id: VolumeId,
    /// Its immutable identity.
    pub file_id: FileId,
    /// Commitment to its DEK ([`crate::crypto::FileKeys::commitment`]).
    pub commitment: [u8; 32],
    /// Format version of the writer and lowest version of a reader, as stored: all 80 bytes are authenticated.
    versions: [u8; 4],
}

impl Superblock {
    /// Of a new file.
    pub fn new(volume_id: VolumeId, file_id: FileId, commitment: [u8; 32]) -> Self {
        let [low, high] = FORMAT_VERSION.to_le_bytes();
        Self { volume_id, file_id, commitment, versions: [low, high, low, high] }
    }

    /// The 80 bytes.
    pub fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut out = [0; SUPERBLOCK_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.versions);
        out[8] = CIPHER_AES_256_GCM_SIV;
        out[9] = BLOCK_LOG2;
        out[12..28].copy_from_slice(&self.volume_id.0);
        out[28..44].copy_from_slice(&self.file_id.0);
        out[44..76].copy_from_slice(&self.commitment);
        let crc = crc32c::crc32c(&out[..76]);
        out[76..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes[..4] != MAGIC || le32(bytes, 76) != crc32c::crc32c(&bytes[..76]) {
            return Err(HeaderError::NoSuperblock);
        }
        let min_reader = le16(bytes, 6);
        if min_reader > FORMAT_VERSION {
            return Err(HeaderError::Newer(min_reader));
        }
        if bytes[8] != CIPHER_AES_256_GCM_SIV {
            return Err(HeaderError::Unsupported("cipher"));
        }
        if bytes[9] != BLOCK_LOG2 {
            return Err(HeaderError::Unsupported("block size"));
        }
        if le16(bytes, 10) != 0 {
            return Err(HeaderError::Unsupported("flag"));
        }
        Ok(Self {
            volume_id: VolumeId(array(bytes, 12)),
            file_id: FileId(array(bytes, 28)),
            commitment: array(bytes, 44),
            versions: array(bytes, 4),
        })
    }
}

/// One key slot that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// The highest counts.
    pub generation: u64,
    /// The wrapped DEK.
    pub wrapped: WrappedKey,
}

impl KeySlot {
    /// The 344 bytes.
    pub fn encode(&self) -> Result<[u8; SLOT_LEN], HeaderError> {
        let (arn, blob) = (self.wrapped.key_arn.as_bytes(), &self.wrapped.blob);
        let used = arn.len() + blob.len();
        if used > SLOT_ROOM {
            return Err(HeaderError::WrapTooLong(used));
        }
        let mut out = [0; SLOT_LEN];
        out[..8].copy_from_slice(&self.generation.to_le_bytes());
        out[8..10].copy_from_slice(&(arn.len() as u16).to_le_bytes());
        out[10..12].copy_from_slice(&(blob.len() as u16).to_le_bytes());
        if let Some(id) = &self.wrapped.material_id {
            out[12..14].copy_from_slice(&FLAG_MATERIAL.to_le_bytes());
            out[16..48].copy_from_slice(id);
        }
        out[48..48 + arn.len()].copy_from_slice(arn);
        out[48 + arn.len()..48 + used].copy_from_slice(blob);
        let crc = crc32c::crc32c(&out[..SLOT_CRC]);
        out[SLOT_CRC..].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// The slot in `bytes`, or `None` where it is empty, torn or makes no sense.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let generation = u64::from_le_bytes(array(bytes, 0));
        let (arn_len, blob_len) = (le16(bytes, 8) as usize, le16(bytes, 10) as usize);
        let whole = le32(bytes, SLOT_CRC) == crc32c::crc32c(&bytes[..SLOT_CRC]);
        if generation == 0 || generation > GENERATION_MAX || !whole || arn_len + blob_len > SLOT_ROOM {
            return None;
        }
        let key_arn = std::str::from_utf8(&bytes[48..48 + arn_len]).ok()?.to_owned();
        let blob = bytes[48 + arn_len..48 + arn_len + blob_len].to_vec();
        let material_id = (le16(bytes, 12) & FLAG_MATERIAL != 0).then(|| array(bytes, 16));
        Some(Self { generation, wrapped: WrappedKey { key_arn, material_id, blob } })
    }
}

/// Superblock and slots as read from a header page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// What the file is.
    pub superblock: Superblock,
    /// Slots A and B, where whole.
    pub slots: [Option<KeySlot>; 2],
}

impl Slots {
    /// A new file's: slot A filled, slot B empty.
    pub fn new(superblock: Superblock, wrapped: WrappedKey) -> Self {
        Self { superblock, slots: [Some(KeySlot { generation: 1, wrapped }), None] }
    }

    /// The first 856 bytes of the header page.
    pub fn encode(&self) -> Result<[u8; SLOTS_LEN], HeaderError> {
        let mut out = [0; SLOTS_LEN];
        let superblock = self.superblock.encode();
        out[..SUPERBLOCK_LEN].copy_from_slice(&superblock);
        out[COPY_OFFSET..COPY_OFFSET + SUPERBLOCK_LEN].copy_from_slice(&superblock);
        for (slot, at) in self.slots.iter().zip(SLOT_OFFSETS) {
            if let Some(slot) = slot {
                out[at..at + SLOT_LEN].copy_from_slice(&slot.encode()?);
            }
        }
        Ok(out)
    }

    /// Parses the first 856 bytes of a header page.
    pub fn parse(bytes: &[u8; SLOTS_LEN]) -> Result<Self, HeaderError> {
        let superblock = Superblock::parse(&bytes[..SUPERBLOCK_LEN]).or_else(|first| {
            let second = Superblock::parse(&bytes[COPY_OFFSET..COPY_OFFSET + SUPERBLOCK_LEN]);
            second.map_err(|e| if e == HeaderError::NoSuperblock { first } else { e })
        })?;
        let slots = SLOT_OFFSETS.map(|at| KeySlot::parse(&bytes[at..at + SLOT_LEN]));
        if slots.iter().all(Option::is_none) {
            return Err(HeaderError::NoSlot);
        }
        Ok(Self { superblock, slots })
    }

    /// Index of the slot that counts: the highest generation.
    pub fn active_index(&self) -> usize {
        let generation = |i: usize| self.slots[i].as_ref().map_or(0, |s| s.generation);
        usize::from(generation(1) > generation(0))
    }

    /// The slot that counts.
    pub fn active(&self) -> &KeySlot {
        self.slots[self.active_index()].as_ref().expect("parse and new leave one slot whole")
    }

    /// What a rewrap to `wrapped` writes, in this order, each write durable before the next. Cut at any byte, one slot
    /// is whole. That is one write, unless somebody counted the generations up to their end: then the other slot
    /// is numbered anew, too.
    pub fn rewrap(&self, wrapped: WrappedKey) -> Result<Vec<SlotWrite>, HeaderError> {
        let (active, other) = (self.active_index(), 1 - self.active_index());
        let write = |index: usize, generation: u64, wrapped: WrappedKey| -> Result<SlotWrite, HeaderError> {
            let bytes = KeySlot { generation, wrapped }.encode()?;
            Ok(SlotWrite { offset: SLOT_OFFSETS[index], bytes })
        };
        let generation = self.active().generation;
        if generation < GENERATION_MAX {
            return Ok(vec![write(other, generation + 1, wrapped)?]);
        }
        Ok(vec![write(other, 2, wrapped)?, write(active, 1, self.active().wrapped.clone())?])
    }
}

impl Slots {
    /// The same bytes with what is torn written anew from what is whole, and what that was. `None` where nothing is.
    pub fn mended(bytes: &[u8; SLOTS_LEN]) -> Result<Option<([u8; SLOTS_LEN], String)>, HeaderError> {
        let slots = Self::parse(bytes)?;
        let (mut out, mut torn) = (*bytes, Vec::new());
        let superblock = slots.superblock.encode();
        for (at, which) in [(0, "first"), (COPY_OFFSET, "second")] {
            if bytes[at..at + SUPERBLOCK_LEN] != superblock {
                out[at..at + SUPERBLOCK_LEN].copy_from_slice(&superblock);
                torn.push(format!("the {which} superblock"));
            }
        }
        for ((slot, at), which) in slots.slots.iter().zip(SLOT_OFFSETS).zip(["A", "B"]) {
            let place = at..at + SLOT_LEN;
            if slot.is_none() && bytes[place.clone()].iter().any(|b| *b != 0) {
                out[place].copy_from_slice(&slots.active().encode()?);
                torn.push(format!("key slot {which}"));
            }
        }
        Ok((!torn.is_empty()).then(|| (out, torn.join(", "))))
    }

    /// The first bytes of the page with the slot that does not count in both places; `None` where there is only one.
    pub fn with_other_slot(&self) -> Result<Option<[u8; SLOTS_LEN]>, HeaderError> {
        let Some(other) = &self.slots[1 - self.active_index()] else { return Ok(None) };
        let both =
            Self { superblock: self.superblock.clone(), slots: [Some(other.clone()), Some(other.clone())] };
        both.encode().map(Some)
    }
}

/// One write to a key slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotWrite {
    /// Where in the header page.
    pub offset: usize,
    /// The slot.
    pub bytes: [u8; SLOT_LEN],
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(n: u8) -> WrappedKey {
        WrappedKey {
            key_arn: "arn:aws:kms:local:000000000000:key/01234567-89ab-cdef-0123-456789abcdef".into(),
            material_id: Some([n; 32]),
            blob: vec![n; 105],
        }
    }

    fn slots() -> Slots {
        let superblock = Superblock::new(VolumeId([1; 16]), FileId([2; 16]), [3; 32]);
        Slots::new(superblock, wrapped(4))
    }

    #[test]
    fn the_golden_header_stays() {
        let bytes = slots().encode().unwrap();
        assert_eq!(Slots::parse(&bytes).unwrap(), slots());
        let golden = include_bytes!("../../tests/vectors/header.bin");
        assert_eq!(&bytes[..], &golden[..]);
    }

    #[test]
    fn a_rewrap_cut_at_any_byte_leaves_the_old_or_the_new_wrap() {
        let mut bytes = slots().encode().unwrap();
        for round in 5..9_u8 {
            let before = Slots::parse(&bytes).unwrap();
            for write in before.rewrap(wrapped(round)).unwrap() {
                for cut in 0..=SLOT_LEN {
                    let mut torn = bytes;
                    torn[write.offset..write.offset + cut].copy_from_slice(&write.bytes[..cut]);
                    let read = Slots::parse(&torn).unwrap();
                    let old = &before.active().wrapped;
                    assert!([old, &wrapped(round)].contains(&&read.active().wrapped), "cut at {cut}");
                }
                bytes[write.offset..write.offset + SLOT_LEN].copy_from_slice(&write.bytes);
            }
            let mut read = Slots::parse(&bytes).unwrap();
            assert_eq!(read.active().wrapped, wrapped(round));
            if round == 6 {
                // Somebody counts the generations up to their end.
                let active = read.active_index();
                read.slots[active].as_mut().unwrap().generation = GENERATION_MAX;
                bytes = read.encode().unwrap();
            }
        }
    }

    #[test]
    fn either_superblock_serves_and_damage_to_both_is_told() {
        let good = slots().encode().unwrap();
        for at in [0, 10, 79] {
            let mut bytes = good;
            bytes[at] ^= 1;
            assert_eq!(Slots::parse(&bytes).unwrap(), slots());
            bytes[COPY_OFFSET + at] ^= 1;
            assert_eq!(Slots::parse(&bytes), Err(HeaderError::NoSuperblock));
        }
        let mut bytes = good;
        bytes[100] ^= 1;
        assert_eq!(Slots::parse(&bytes), Err(HeaderError::NoSlot));
    }

    #[test]
    fn what_is_newer_or_unknown_is_refused_by_name() {
        let patch = |at: usize, to: u8| {
            let mut bytes = slots().encode().unwrap();
            for base in [0, COPY_OFFSET] {
                bytes[base + at] = to;
                let crc = crc32c::crc32c(&bytes[base..base + 76]);
                bytes[base + 76..base + 80].copy_from_slice(&crc.to_le_bytes());
            }
            Slots::parse(&bytes).unwrap_err()
        };
        assert_eq!(patch(6, 9), HeaderError::Newer(9));
        assert_eq!(patch(8, 9), HeaderError::Unsupported("cipher"));
        assert_eq!(patch(9, 9), HeaderError::Unsupported("block size"));
        assert_eq!(patch(10, 9), HeaderError::Unsupported("flag"));
    }

    #[test]
    fn a_wrap_that_does_not_fit_is_refused() {
        let mut long = wrapped(1);
        long.blob = vec![0; SLOT_ROOM];
        assert!(matches!(slots().rewrap(long), Err(HeaderError::WrapTooLong(_))));
    }
}
