//! Header page, tag page and seal.

use kmsfs::format::header::{KeySlot, SLOTS_LEN, SUPERBLOCK_LEN, Slots, Superblock};
use kmsfs::format::layout::MAX_SIZE;
use kmsfs::format::seal::{SEAL_LEN, Seal, State};
use kmsfs::format::tags::{TagPage, open_block, seal_block};

use super::{BLOCK, FILE_ID, Input, VOLUME_ID, file_keys, fix_crc, wrapped};

/// What is made right before the parser sees it.
const CHECKSUMS: u8 = 1;
const SEALED: u8 = 1;
const EDITED: u8 = 2;

fn good_slots() -> Slots {
    let mut slots = Slots::new(Superblock::new(VOLUME_ID, FILE_ID, *file_keys().commitment()), wrapped(1));
    slots.slots[1] = Some(KeySlot { generation: 2, wrapped: wrapped(2) });
    slots
}

pub(super) fn header_seeds() -> Vec<Vec<u8>> {
    let both = good_slots().encode().unwrap();
    let mut one = good_slots();
    one.slots[0] = None;
    let one = one.encode().unwrap();
    [0, CHECKSUMS].iter().flat_map(|how| [&both, &one].map(|page| [&[*how][..], page].concat())).collect()
}

/// Superblocks and slots. What is taken can be written, read back, rewrapped and mended, whatever it says.
pub(super) fn header(data: &[u8]) -> bool {
    let mut input = Input(data);
    let how = input.byte();
    let mut page: [u8; SLOTS_LEN] = input.array();
    if how & CHECKSUMS != 0 {
        for range in [0..76, 424..500, 80..420, 512..852] {
            fix_crc(&mut page, range);
        }
    }
    let Ok(read) = Slots::parse(&page) else { return false };
    assert_eq!(Slots::parse(&read.encode().unwrap()).unwrap(), read);
    let mut moved = page;
    for write in read.rewrap(wrapped(9)).unwrap() {
        moved[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    assert_eq!(&Slots::parse(&moved).unwrap().active().wrapped, &wrapped(9));
    if let Some((mended, _)) = Slots::mended(&page).unwrap() {
        let whole = Slots::parse(&mended).unwrap();
        assert_eq!(&whole.active().wrapped, &read.active().wrapped);
        assert!(Slots::mended(&mended).unwrap().is_none());
    }
    read.with_other_slot().unwrap();
    true
}

fn good_tag_page() -> TagPage {
    let mut page = TagPage::empty(1);
    for index in [0, 5, 100] {
        page.set(index, seal_block(&file_keys(), FILE_ID, index as u64, &[8; 12], &mut [4; 64]));
    }
    page
}

pub(super) fn tag_page_seeds() -> Vec<Vec<u8>> {
    let page = good_tag_page();
    let bytes = page.encode(&page.mac(&file_keys(), 1));
    let seed = |how: u8, rest: &[u8]| [&[how, 1][..], rest].concat();
    vec![seed(0, &bytes[..]), seed(SEALED, &bytes[..]), seed(SEALED, &bytes[..200]), seed(EDITED, &[])]
}

/// A tag page: `how`, its number, then the page, or edits of a sealed one. It opens at its own place alone, and what
/// opens is stored as the same bytes again; the head tags of a header page likewise, and a block under its entry.
pub(super) fn tag_page(data: &[u8]) -> bool {
    let (mut input, keys) = (Input(data), file_keys());
    let (how, page_no) = (input.byte(), u64::from(input.byte()));
    let good = good_tag_page();
    let sealed = good.encode(&good.mac(&keys, page_no));
    let bytes: [u8; BLOCK] = match how & (SEALED | EDITED) {
        EDITED => input.edits(&sealed[..]).try_into().unwrap(),
        SEALED => {
            let mut page = TagPage::empty(1);
            let entries: [u8; BLOCK] = input.array();
            let entries = entries.as_chunks::<28>().0;
            (0..page.entries().len()).for_each(|index| page.set(index, entries[index]));
            *page.encode(&page.mac(&keys, page_no))
        }
        _ => input.array(),
    };
    head_tags(&bytes, page_no);
    let Ok(read) = TagPage::parse(&keys, page_no, &bytes) else { return false };
    assert_eq!(read.encode(&read.mac(&keys, page_no))[..], bytes[..], "two pages say the same");
    let empty = bytes.iter().all(|b| *b == 0);
    assert!(how & EDITED == 0 || how & SEALED != 0 || bytes == *sealed || empty, "a forged page");
    assert!(empty || TagPage::parse(&keys, page_no + 1, &bytes).is_err(), "at another place");
    assert_eq!(read.root_term(&keys, page_no, &[1; 16]) == [0; 16], empty);
    let mut out = [0; 64];
    for (index, entry) in read.entries().iter().enumerate().take(8) {
        let opens = open_block(&keys, FILE_ID, index as u64, entry, &bytes[..64], &mut out).is_ok();
        assert!(!opens || entry == good.entry(index), "a made-up entry opens");
    }
    true
}

/// The same bytes as a header page of `blocks` blocks.
fn head_tags(page: &[u8; BLOCK], blocks: u64) {
    let keys = file_keys();
    let mut copy = *page;
    let mut head = TagPage::empty(0);
    for index in 0..blocks.min(96) as usize {
        let end = BLOCK - index * 28;
        head.set(index, page[end - 28..end].try_into().unwrap());
    }
    head.encode_head(&head.mac(&keys, 0), blocks.min(96), &mut copy);
    assert_eq!(TagPage::parse_head(&keys, &copy, blocks).unwrap(), head);
    let _ = TagPage::parse_head(&keys, page, blocks);
}

fn good_seal() -> Seal {
    Seal { epoch: 5, size: 70_000, root: [4; 16], state: State::Clean, firm: 5, session: 6, place: [7; 16] }
}

pub(super) fn seal_seeds() -> Vec<Vec<u8>> {
    let plain = |epoch: u64, size: u64, state: u8| {
        [&[SEALED][..], &epoch.to_le_bytes(), &size.to_le_bytes(), &[4; 16], &[state, 5, 0], &[0; 25]]
            .concat()
    };
    vec![
        plain(1, 70_000, 0),
        plain(2, 0, 1),
        plain(3, 5 << 30, 2),
        plain(u64::MAX, u64::MAX, 0),
        vec![EDITED],
    ]
}

/// A seal: its plaintext, or edits of a page with a sealed one. What opens says nothing that a file cannot be.
pub(super) fn seal(data: &[u8]) -> bool {
    let (mut input, keys, superblock) = (Input(data), file_keys(), [5; SUPERBLOCK_LEN]);
    let (how, good) = (input.byte(), good_seal());
    let mut page = vec![0; BLOCK];
    if how & SEALED != 0 {
        let epoch = input.0.first().map_or(0, |byte| u64::from(*byte));
        let at = Seal { epoch, ..good }.offset();
        page[at..at + SEAL_LEN].copy_from_slice(&sealed_plain(&superblock, input.array()));
    } else {
        let at = good.offset();
        page[at..at + SEAL_LEN].copy_from_slice(&good.encode(&keys, &superblock));
        page = input.edits(&page);
    }
    assert!(Seal::latest(&keys, &[6; SUPERBLOCK_LEN], &page).is_none(), "under another superblock");
    let Some(read) = Seal::latest(&keys, &superblock, &page) else { return false };
    assert!(how & SEALED != 0 || read == good, "a forged seal");
    assert!(read.size <= MAX_SIZE && read.firm <= MAX_SIZE, "no file is that large");
    let mut again = vec![0; BLOCK];
    again[read.offset()..read.offset() + SEAL_LEN].copy_from_slice(&read.encode(&keys, &superblock));
    assert_eq!(Seal::latest(&keys, &superblock, &again), Some(read));
    true
}

/// The seal whose plaintext is `plain`.
pub(super) fn sealed_plain(superblock: &[u8; SUPERBLOCK_LEN], plain: [u8; 60]) -> [u8; SEAL_LEN] {
    let mut out = [0; SEAL_LEN];
    out[..12].fill(8);
    out[12..72].copy_from_slice(&plain);
    let tag = file_keys().seal.seal(&[8; 12], superblock, &mut out[12..72]);
    out[72..].copy_from_slice(&tag);
    out
}
