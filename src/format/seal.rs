//! The seal: size, state and root of a file under its seal key. Two in the header page; the highest epoch counts.
//!
//! ```text
//!  0  nonce 12 B | 12  ciphertext 60 B | 72  tag 16 B
//! plaintext:  0  epoch u64 | 8  size u64 | 16  root 16 B | 32  state u8 | 33  firm u56 | 40  session u32 | 44  place 16 B
//! aad = the superblock's 80 bytes
//! ```
//! root = XOR over the tag pages p that hold an entry of PRF(root key; p, MAC of p). Since the sum is kept under
//! encryption and the PRF's key is secret, nobody without the DEK can see, set or aim at it.

use super::header::{HOT_OFFSET, SUPERBLOCK_LEN, array};
use super::layout::{HEADER_LEN, MAX_SIZE};
use crate::crypto::{FileKeys, Place, Tag, random_array};

/// Bytes of one seal.
pub const SEAL_LEN: usize = 88;
/// Offsets of the two seals in the header page.
pub const SEAL_OFFSETS: [usize; 2] = [HOT_OFFSET, HOT_OFFSET + SEAL_LEN];
/// Offset of the MAC of the head tags.
pub const HEAD_MAC_OFFSET: usize = HOT_OFFSET + 2 * SEAL_LEN;
/// Highest epoch that is believed, so that counting on never ends.
const EPOCH_MAX: u64 = 1 << 62;
const BODY_LEN: usize = 60;
const TAG_OFFSET: usize = 12 + BODY_LEN;
const _: () = assert!(HEAD_MAC_OFFSET + 16 <= HEADER_LEN && TAG_OFFSET + 16 == SEAL_LEN);

/// What the file was doing when the seal was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Closed: size and root are exact.
    Clean,
    /// Being written: the size is a promise kept by fsync, the root says nothing.
    Dirty,
    /// Being cut to the sealed size: whoever opens it next completes the cut.
    Cutting,
}

/// The sealed facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Grows by one with each seal written.
    pub epoch: u64,
    /// Plaintext size in bytes.
    pub size: u64,
    /// Sum of the root terms.
    pub root: Tag,
    /// See [`State`].
    pub state: State,
    /// The size up to which the file was on stable storage before this seal was written: what is below and does not
    /// verify is damage; what is above may be missing after a power cut in `session`.
    pub firm: u64,
    /// The mount that wrote the seal.
    pub session: u32,
    /// Where the file stood when the seal was written; zero where names are not bound.
    pub place: Place,
}

impl Seal {
    /// Offset in the header page where this seal goes; it leaves the one before it alone.
    pub fn offset(&self) -> usize {
        SEAL_OFFSETS[(self.epoch % 2) as usize]
    }

    /// The 88 bytes.
    pub fn encode(&self, keys: &FileKeys, superblock: &[u8; SUPERBLOCK_LEN]) -> [u8; SEAL_LEN] {
        let mut out = [0; SEAL_LEN];
        let nonce = random_array::<12>();
        out[..12].copy_from_slice(&nonce);
        out[12..20].copy_from_slice(&self.epoch.to_le_bytes());
        out[20..28].copy_from_slice(&self.size.to_le_bytes());
        out[28..44].copy_from_slice(&self.root);
        out[44] = match self.state {
            State::Clean => 0,
            State::Dirty => 1,
            State::Cutting => 2,
        };
        out[45..52].copy_from_slice(&self.firm.to_le_bytes()[..7]);
        out[52..56].copy_from_slice(&self.session.to_le_bytes());
        out[56..72].copy_from_slice(&self.place);
        let tag = keys.seal.seal(&nonce, superblock, &mut out[12..12 + BODY_LEN]);
        out[TAG_OFFSET..].copy_from_slice(&tag);
        out
    }

    /// Opens one seal. What no file can be is none, whoever sealed it.
    pub fn parse(keys: &FileKeys, superblock: &[u8; SUPERBLOCK_LEN], bytes: &[u8]) -> Option<Self> {
        let mut body = [0; BODY_LEN];
        let (nonce, tag) = (array(bytes, 0), array(bytes, TAG_OFFSET));
        keys.seal.open(&nonce, superblock, &bytes[12..TAG_OFFSET], &tag, &mut body).ok()?;
        let state = match body[32] {
            0 => State::Clean,
            1 => State::Dirty,
            2 => State::Cutting,
            _ => return None,
        };
        let mut firm = [0; 8];
        firm[..7].copy_from_slice(&body[33..40]);
        let seal = Self {
            epoch: u64::from_le_bytes(array(&body, 0)),
            size: u64::from_le_bytes(array(&body, 8)),
            root: array(&body, 16),
            state,
            firm: u64::from_le_bytes(firm),
            session: u32::from_le_bytes(array(&body, 40)),
            place: array(&body, 44),
        };
        (seal.epoch <= EPOCH_MAX && seal.size <= MAX_SIZE && seal.firm <= MAX_SIZE).then_some(seal)
    }

    /// The seal that counts in a header page, or `None` where neither opens.
    pub fn latest(keys: &FileKeys, superblock: &[u8; SUPERBLOCK_LEN], page: &[u8]) -> Option<Self> {
        let both = SEAL_OFFSETS.map(|at| Self::parse(keys, superblock, &page[at..at + SEAL_LEN]));
        both.into_iter().flatten().max_by_key(|seal| seal.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DataKey;

    #[test]
    fn the_highest_epoch_counts_and_a_torn_seal_leaves_the_other() {
        let keys = FileKeys::derive(&DataKey::take(&mut [7; 32]), &[2; 16]);
        let superblock = [9; SUPERBLOCK_LEN];
        let mut page = vec![0; 4096];
        assert_eq!(Seal::latest(&keys, &superblock, &page), None);
        let mut last = None;
        for epoch in 1..6 {
            let seal = Seal {
                epoch,
                size: epoch * 1000,
                root: [epoch as u8; 16],
                state: State::Dirty,
                firm: epoch,
                session: 7,
                place: [8; 16],
            };
            let bytes = seal.encode(&keys, &superblock);
            for cut in 0..SEAL_LEN {
                let mut torn = page.clone();
                torn[seal.offset()..seal.offset() + cut].copy_from_slice(&bytes[..cut]);
                // One time in 256 the last byte is already there: nothing is torn then.
                if torn[seal.offset()..seal.offset() + SEAL_LEN] == bytes {
                    continue;
                }
                assert_eq!(Seal::latest(&keys, &superblock, &torn), last, "epoch {epoch} cut at {cut}");
            }
            page[seal.offset()..seal.offset() + SEAL_LEN].copy_from_slice(&bytes);
            last = Some(seal);
            assert_eq!(Seal::latest(&keys, &superblock, &page), last);
        }
        assert_eq!(Seal::latest(&keys, &[8; SUPERBLOCK_LEN], &page), None, "bound to the superblock");
        let other = FileKeys::derive(&DataKey::take(&mut [7; 32]), &[3; 16]);
        assert_eq!(Seal::latest(&other, &superblock, &page), None, "bound to the file");
    }

    #[test]
    fn a_golden_seal_opens() {
        let keys = FileKeys::derive(&DataKey::take(&mut [7; 32]), &[2; 16]);
        let golden = include_bytes!("../../tests/vectors/seal.bin");
        let mut page = vec![0; 4096];
        page[SEAL_OFFSETS[1]..SEAL_OFFSETS[1] + SEAL_LEN].copy_from_slice(golden);
        let seal = Seal {
            epoch: 5,
            size: 123_456,
            root: [6; 16],
            state: State::Cutting,
            firm: 0x0012_3456_789a,
            session: 0xfeed_beef,
            place: [8; 16],
        };
        assert_eq!(Seal::latest(&keys, &[9; SUPERBLOCK_LEN], &page), Some(seal));
    }
}
