//! One record of the tag log: the changes of some blocks of one file, before they are made.
//!
//! Called by `stage`, `write` and `resize`, which write records, and by `old_logs` and `recover`, which read them. Holds
//! nothing secret: data is ciphertext. The MAC is under the file's key, since a record may say that a block was a hole.
//!
//! ```text
//!  0  magic "KML3" 4 B | 4  CRC-32C of 8..end u32 | 8  file id 16 B | 24  sequence u64 | 32  bytes to the end u32
//! 36  blocks u32 | 40  flags u32 (bit 0: seal, bit 1: time) | 44  time, nanoseconds u32 | 48  time, seconds i64
//! 56  seal 88 B | then per block 72 B:
//!      0  block u64 | 8  old length u16 | 10  new length u16 | 12  flags u32 (bit 0: data) | 16  old entry | 44  new entry
//! then the data of the blocks that have it | MAC 16 B (page key; nonce = 8 zero bytes || "log\0"; CRC as zero)
//! ```

use crate::crypto::{FileKeys, TAG_LEN, constant_time_eq};
use crate::format::FileId;
use crate::format::layout::{BLOCK_LEN, ENTRY_LEN, MAX_SIZE, block_count};
use crate::format::seal::SEAL_LEN;
use crate::format::tags::Entry;

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 64;
/// Longest record.
pub(super) const RECORD_MAX: usize = 512 * 1024;
const MAGIC: [u8; 4] = *b"KML3";
const SEAL_AT: usize = 56;
const BLOCKS_AT: usize = SEAL_AT + SEAL_LEN;
const BLOCK_FIELDS: usize = 16 + 2 * ENTRY_LEN;
const HAS_SEAL: u32 = 1;
const HAS_TIME: u32 = 2;
const HAS_DATA: u32 = 1;
/// Nanoseconds of a second.
const NANOS: u32 = 1_000_000_000;
const MAC_NONCE: [u8; 12] = *b"\0\0\0\0\0\0\0\0log\0";

/// What a record says of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logged<D> {
    pub(super) block: u64,
    pub(super) old: Entry,
    pub(super) old_len: usize,
    pub(super) new: Entry,
    pub(super) new_len: usize,
    /// The ciphertext after the change.
    pub(super) data: Option<D>,
}

impl<D: AsRef<[u8]>> Logged<D> {
    fn len(&self) -> usize {
        BLOCK_FIELDS + self.data.as_ref().map_or(0, |data| data.as_ref().len())
    }
}

/// A record: what a change makes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record<D> {
    pub(super) sequence: u64,
    /// The seal that the file is to have, where that changes.
    pub(super) seal: Option<[u8; SEAL_LEN]>,
    /// Modification time, where the record stands for a sync.
    pub(super) modified: Option<(i64, u32)>,
    pub(super) blocks: Vec<Logged<D>>,
}

/// How many of `blocks` fit one record.
pub(super) fn fitting<D: AsRef<[u8]>>(blocks: &[Logged<D>]) -> usize {
    let mut len = BLOCKS_AT + TAG_LEN;
    let fits = |block: &&Logged<D>| {
        len += block.len();
        len <= RECORD_MAX
    };
    blocks.iter().take_while(fits).count()
}

impl<D: AsRef<[u8]>> Record<D> {
    /// The bytes of the record.
    pub(super) fn encode(&self, keys: &FileKeys, file_id: FileId) -> Vec<u8> {
        let len = BLOCKS_AT + self.blocks.iter().map(Logged::len).sum::<usize>() + TAG_LEN;
        // The log fills the last page up.
        let mut out = Vec::with_capacity(len + BLOCK_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&file_id.0);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        let seal_flag = if self.seal.is_some() { HAS_SEAL } else { 0 };
        let time_flag = if self.modified.is_some() { HAS_TIME } else { 0 };
        out.extend_from_slice(&(seal_flag | time_flag).to_le_bytes());
        let (seconds, nanos) = self.modified.unwrap_or((0, 0));
        out.extend_from_slice(&nanos.to_le_bytes());
        out.extend_from_slice(&seconds.to_le_bytes());
        out.extend_from_slice(&self.seal.unwrap_or([0; SEAL_LEN]));
        for block in &self.blocks {
            out.extend_from_slice(&block.block.to_le_bytes());
            out.extend_from_slice(&(block.old_len as u16).to_le_bytes());
            out.extend_from_slice(&(block.new_len as u16).to_le_bytes());
            out.extend_from_slice(&(if block.data.is_some() { HAS_DATA } else { 0 }).to_le_bytes());
            out.extend_from_slice(&block.old);
            out.extend_from_slice(&block.new);
        }
        for data in self.blocks.iter().filter_map(|block| block.data.as_ref()) {
            out.extend_from_slice(data.as_ref());
        }
        let mac = keys.page.mac(&MAC_NONCE, &out);
        out.extend_from_slice(&mac);
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// A record that stands there whole; nobody vouches for it yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) file_id: FileId,
    pub(super) sequence: u64,
    pub(super) len: usize,
}

/// The record that `bytes` begin with, if one stands there whole.
pub(super) fn whole(bytes: &[u8]) -> Option<Whole> {
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    let len = u32_at(bytes, 32)? as usize;
    let record = (BLOCKS_AT + TAG_LEN..=RECORD_MAX).contains(&len).then(|| bytes.get(..len)).flatten()?;
    let whole = u32_at(bytes, 4)? == crc32c::crc32c(&record[8..]);
    whole.then(|| Whole {
        file_id: FileId(record[8..24].try_into().expect("16 bytes")),
        sequence: u64::from_le_bytes(record[24..32].try_into().expect("8 bytes")),
        len,
    })
}

/// Parses a whole record; `None` where the file's key does not vouch for it, or it says what cannot be.
pub(super) fn parse(keys: &FileKeys, record: &[u8]) -> Option<Record<Vec<u8>>> {
    let (body, mac) = record.split_at(record.len() - TAG_LEN);
    let mut zeroed = body.to_vec();
    zeroed[4..8].fill(0);
    if !constant_time_eq(&keys.page.mac(&MAC_NONCE, &zeroed), mac) {
        return None;
    }
    let (count, flags) = (u32_at(body, 36)? as usize, u32_at(body, 40)?);
    let fields = body.get(BLOCKS_AT..BLOCKS_AT + count.checked_mul(BLOCK_FIELDS)?)?;
    let mut data = &body[BLOCKS_AT + fields.len()..];
    let mut blocks = Vec::with_capacity(count);
    for field in fields.chunks_exact(BLOCK_FIELDS) {
        blocks.push(parse_block(field, &mut data)?);
    }
    let (seconds, nanos) = (i64::from_le_bytes(body[48..56].try_into().ok()?), u32_at(body, 44)?);
    if flags & HAS_TIME != 0 && nanos >= NANOS {
        return None;
    }
    Some(Record {
        sequence: u64::from_le_bytes(body[24..32].try_into().ok()?),
        seal: (flags & HAS_SEAL != 0).then(|| body[SEAL_AT..BLOCKS_AT].try_into().expect("88 bytes")),
        modified: (flags & HAS_TIME != 0).then_some((seconds, nanos)),
        blocks,
    })
}

fn parse_block(field: &[u8], data: &mut &[u8]) -> Option<Logged<Vec<u8>>> {
    let length = |at: usize| u16::from_le_bytes([field[at], field[at + 1]]) as usize;
    let (old_len, new_len) = (length(8), length(10));
    let block = u64::from_le_bytes(field[..8].try_into().ok()?);
    if old_len > BLOCK_LEN || new_len > BLOCK_LEN || block >= block_count(MAX_SIZE) {
        return None;
    }
    let held = if u32_at(field, 12)? & HAS_DATA != 0 {
        let (held, rest) = data.split_at_checked(new_len)?;
        *data = rest;
        Some(held.to_vec())
    } else {
        None
    };
    Some(Logged {
        block,
        old: field[16..16 + ENTRY_LEN].try_into().ok()?,
        old_len,
        new: field[16 + ENTRY_LEN..].try_into().ok()?,
        new_len,
        data: held,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DataKey;

    fn keys() -> FileKeys {
        FileKeys::derive(&DataKey::take(&mut [7; 32]), &[2; 16])
    }

    fn record() -> Record<Vec<u8>> {
        let plain = Logged { block: 9, old: [1; 28], old_len: 4096, new: [2; 28], new_len: 4096, data: None };
        let full = Logged { block: 70, new_len: 5, data: Some(vec![3; 5]), ..plain.clone() };
        Record { sequence: 77, seal: Some([4; SEAL_LEN]), modified: Some((-5, 6)), blocks: vec![plain, full] }
    }

    #[test]
    fn a_record_comes_back_and_any_change_or_cut_shows() {
        let bytes = record().encode(&keys(), FileId([2; 16]));
        assert_eq!(whole(&bytes), Some(Whole { file_id: FileId([2; 16]), sequence: 77, len: bytes.len() }));
        assert_eq!(parse(&keys(), &bytes), Some(record()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(whole(&bad), None, "byte {at}");
            assert_eq!(whole(&bytes[..at]), None, "cut at {at}");
            let crc = crc32c::crc32c(&bad[8..]);
            bad[4..8].copy_from_slice(&crc.to_le_bytes());
            assert!((4..8).contains(&at) || parse(&keys(), &bad).is_none(), "forged byte {at}");
        }
        let other = FileKeys::derive(&DataKey::take(&mut [7; 32]), &[3; 16]);
        assert_eq!(parse(&other, &bytes), None, "bound to the file");
    }

    #[test]
    fn a_long_list_is_cut_into_records() {
        let block = Logged {
            block: 0,
            old: [1; 28],
            old_len: 0,
            new: [2; 28],
            new_len: 4096,
            data: Some(vec![0; 4096]),
        };
        let blocks = vec![block; 200];
        let fit = fitting(&blocks);
        assert!(fit < 200);
        let one = Record { sequence: 0, seal: None, modified: None, blocks: blocks[..fit].to_vec() };
        let len = one.encode(&keys(), FileId([0; 16])).len();
        assert!(len <= RECORD_MAX && len + 4096 + BLOCK_FIELDS > RECORD_MAX);
    }
}
