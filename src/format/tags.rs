//! Tag entries and tag pages, and the sealing of data blocks.
//!
//! ```text
//! entry (28 B):   0  nonce 12 B | 12  tag 16 B          all zero: a hole
//! tag page:       0  entries 144 x 28 B | 4032  MAC 16 B | 4048  zero 48 B
//! block:          GCM-SIV(content key; nonce; aad = file id || block number u64; plaintext)
//! page MAC:       GCM-SIV tag(page key; nonce = page number; aad = the entries up to the last one present)
//! ```
//! The ciphertext is as long as the plaintext; a partial last block is shorter than a page.

use super::FileId;
use super::layout::{BLOCK_LEN, ENTRY_LEN, GROUP_BLOCKS, HEAD_BLOCKS, HEADER_LEN};
use super::seal::HEAD_MAC_OFFSET;
use crate::crypto::{FileKeys, Nonce, OpenError, Tag, constant_time_eq};

/// A tag entry: nonce and tag of one block.
pub type Entry = [u8; ENTRY_LEN];
/// The entry of a hole.
pub const HOLE: Entry = [0; ENTRY_LEN];
const MAC_OFFSET: usize = GROUP_BLOCKS as usize * ENTRY_LEN;

/// The entries of one tag page, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    entries: Vec<Entry>,
}

impl TagPage {
    /// Page `page_no` with holes only.
    pub fn empty(page_no: u64) -> Self {
        let count = if page_no == 0 { HEAD_BLOCKS } else { GROUP_BLOCKS };
        Self { entries: vec![HOLE; count as usize] }
    }

    /// The entry at `index`.
    pub fn entry(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    /// Replaces the entry at `index`.
    pub fn set(&mut self, index: usize, entry: Entry) {
        self.entries[index] = entry;
    }

    /// All entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn used(&self) -> &[Entry] {
        let end = self.entries.iter().rposition(|e| *e != HOLE).map_or(0, |last| last + 1);
        &self.entries[..end]
    }

    /// The page's MAC; zero for a page of holes only, which is not stored at all.
    pub fn mac(&self, keys: &FileKeys, page_no: u64) -> Tag {
        let used = self.used();
        if used.is_empty() {
            return [0; 16];
        }
        keys.page.mac(&page_nonce(page_no), used.as_flattened())
    }

    /// What page `page_no` with MAC `mac` adds to the root; zero for a page of holes only.
    pub fn root_term(&self, keys: &FileKeys, page_no: u64, mac: &Tag) -> Tag {
        if self.used().is_empty() { [0; 16] } else { keys.root_term(page_no, mac) }
    }

    /// The 4096 bytes of a group's tag page.
    pub fn encode(&self, mac: &Tag) -> Box<[u8; BLOCK_LEN]> {
        let mut out = Box::new([0; BLOCK_LEN]);
        out[..MAC_OFFSET].copy_from_slice(self.entries.as_flattened());
        out[MAC_OFFSET..MAC_OFFSET + 16].copy_from_slice(mac);
        out
    }

    /// Parses and checks a group's tag page. All zero is a page of holes, which only the root can vouch for.
    pub fn parse(keys: &FileKeys, page_no: u64, bytes: &[u8]) -> Result<Self, OpenError> {
        let page = Self { entries: bytes[..MAC_OFFSET].as_chunks().0.to_vec() };
        let zero_rest = bytes[MAC_OFFSET + 16..].iter().all(|b| *b == 0);
        page.checked(keys, page_no, &bytes[MAC_OFFSET..MAC_OFFSET + 16], zero_rest)
    }

    /// The MAC that a tag page was stored with.
    pub fn stored_mac(bytes: &[u8; BLOCK_LEN]) -> Tag {
        *bytes[MAC_OFFSET..].first_chunk().expect("inside the page")
    }

    /// The MAC that the head tags in the header page were stored with.
    pub fn stored_head_mac(page: &[u8; BLOCK_LEN]) -> Tag {
        *page[HEAD_MAC_OFFSET..].first_chunk().expect("inside the page")
    }

    /// Writes the head tags of a file of `blocks` blocks and their MAC into the header page.
    pub fn encode_head(&self, mac: &Tag, blocks: u64, page: &mut [u8; BLOCK_LEN]) {
        page[HEAD_MAC_OFFSET..HEAD_MAC_OFFSET + 16].copy_from_slice(mac);
        for (index, entry) in self.entries.iter().enumerate().take(blocks as usize) {
            let end = BLOCK_LEN - index * ENTRY_LEN;
            page[end - ENTRY_LEN..end].copy_from_slice(entry);
        }
    }

    /// Parses and checks the head tags of a file of `blocks` blocks; what lies below them belongs to the inline tail.
    pub fn parse_head(keys: &FileKeys, page: &[u8], blocks: u64) -> Result<Self, OpenError> {
        let mut head = Self::empty(0);
        for index in 0..blocks.min(HEAD_BLOCKS) as usize {
            let end = BLOCK_LEN - index * ENTRY_LEN;
            head.entries[index].copy_from_slice(&page[end - ENTRY_LEN..end]);
        }
        head.checked(keys, 0, &page[HEAD_MAC_OFFSET..HEAD_MAC_OFFSET + 16], true)
    }

    fn checked(self, keys: &FileKeys, page_no: u64, mac: &[u8], rest_ok: bool) -> Result<Self, OpenError> {
        let right = constant_time_eq(&self.mac(keys, page_no), mac);
        if right && rest_ok { Ok(self) } else { Err(OpenError) }
    }
}

/// Bytes of the header page that hold the inline tail of `len` bytes.
pub fn tail_range(len: usize) -> std::ops::Range<usize> {
    HEADER_LEN..HEADER_LEN + len
}

fn page_nonce(page_no: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&page_no.to_le_bytes());
    nonce
}

fn block_aad(file_id: FileId, block: u64) -> [u8; 24] {
    let mut aad = [0; 24];
    aad[..16].copy_from_slice(&file_id.0);
    aad[16..].copy_from_slice(&block.to_le_bytes());
    aad
}

/// Encrypts block number `block` in place under a fresh `nonce`; returns its entry.
pub fn seal_block(keys: &FileKeys, file_id: FileId, block: u64, nonce: &Nonce, data: &mut [u8]) -> Entry {
    let tag = keys.content.seal(nonce, &block_aad(file_id, block), data);
    let mut entry = HOLE;
    entry[..12].copy_from_slice(nonce);
    entry[12..].copy_from_slice(&tag);
    entry
}

/// Decrypts block number `block` into `out`, which is as long as `source`; nothing is released on a mismatch.
pub fn open_block(
    keys: &FileKeys,
    file_id: FileId,
    block: u64,
    entry: &Entry,
    source: &[u8],
    out: &mut [u8],
) -> Result<(), OpenError> {
    let (nonce, tag) = entry.split_at(12);
    let nonce = nonce.try_into().map_err(|_| OpenError)?;
    let tag = tag.try_into().map_err(|_| OpenError)?;
    keys.content.open(nonce, &block_aad(file_id, block), source, tag, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DataKey;
    use proptest::prelude::*;

    fn keys() -> FileKeys {
        FileKeys::derive(&DataKey::take(&mut [7; 32]), &[2; 16])
    }

    #[test]
    fn a_block_opens_at_its_place_only() {
        let (keys, id) = (keys(), FileId([2; 16]));
        let mut data = [5; 4096];
        let entry = seal_block(&keys, id, 9, &[1; 12], &mut data);
        let mut out = [0; 4096];
        open_block(&keys, id, 9, &entry, &data, &mut out).unwrap();
        assert_eq!(out, [5; 4096]);
        assert!(open_block(&keys, id, 8, &entry, &data, &mut out).is_err(), "another index");
        assert!(open_block(&keys, FileId([3; 16]), 9, &entry, &data, &mut out).is_err(), "another file");
        assert!(open_block(&keys, id, 9, &entry, &data[..4095], &mut out[..4095]).is_err(), "cut");
        assert!(open_block(&keys, id, 9, &entry, &[0; 4096], &mut out).is_err(), "zeroed");
        assert!(open_block(&keys, id, 9, &HOLE, &data, &mut out).is_err());
    }

    #[test]
    fn the_golden_block_and_page_stay() {
        let keys = keys();
        let mut data = *b"plaintext of a block";
        let entry = seal_block(&keys, FileId([2; 16]), 9, &[1; 12], &mut data);
        let mut page = TagPage::empty(1);
        page.set(3, entry);
        let mac = page.mac(&keys, 1);
        let root = page.root_term(&keys, 1, &mac);
        let golden = include_bytes!("../../tests/vectors/block.bin");
        assert_eq!([&entry[..], &data[..], &mac[..], &root[..]].concat(), golden);
    }

    proptest! {
        #[test]
        fn a_tag_page_comes_back_and_any_flipped_bit_shows(
            picks in proptest::collection::vec((0_usize..144, any::<[u8; 28]>()), 1..20), bit in 0_usize..4096 * 8,
        ) {
            let keys = keys();
            let mut page = TagPage::empty(5);
            for (index, entry) in &picks { page.set(*index, *entry); }
            let mac = page.mac(&keys, 5);
            let mut bytes = page.encode(&mac);
            prop_assert_eq!(TagPage::parse(&keys, 5, &bytes[..]).unwrap(), page);
            prop_assert!(TagPage::parse(&keys, 6, &bytes[..]).is_err(), "another place");
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(TagPage::parse(&keys, 5, &bytes[..]).is_err());
        }
    }

    #[test]
    fn head_tags_leave_room_for_the_tail() {
        let keys = keys();
        let mut head = TagPage::empty(0);
        head.set(0, [1; 28]);
        head.set(1, [2; 28]);
        let mac = head.mac(&keys, 0);
        let mut page = [0xee; BLOCK_LEN];
        head.encode_head(&mac, 2, &mut page);
        assert_eq!(page[BLOCK_LEN - 2 * ENTRY_LEN - 1], 0xee);
        assert_eq!(TagPage::parse_head(&keys, &page, 2).unwrap(), head);
        page[BLOCK_LEN - 1] ^= 1;
        assert!(TagPage::parse_head(&keys, &page, 2).is_err());
        assert_eq!(TagPage::parse_head(&keys, &[0; BLOCK_LEN], 0).unwrap(), TagPage::empty(0));
    }
}
