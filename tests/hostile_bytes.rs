//! Whatever bytes lie in the lower tree, the parsers answer: no panic, no memory out of proportion, no accepted forgery.
//! `PROPTEST_CASES` asks for a long run (`scripts/fuzz`).
#![allow(clippy::unwrap_used, missing_docs)]

use kmsfs::crypto::{DataKey, FileKeys, Secret, VolumeKey};
use kmsfs::format::header::{KeySlot, SLOTS_LEN, Slots, Superblock};
use kmsfs::format::record::{VolumeRecord, VolumeSettings};
use kmsfs::format::seal::{SEAL_OFFSETS, Seal, State};
use kmsfs::format::tags::{TagPage, open_block, seal_block};
use kmsfs::format::{FileId, VolumeId, WrappedKey, dir, link, name, xattr};
use proptest::prelude::*;

const BLOCK: usize = 4096;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    if asked { ProptestConfig::default() } else { ProptestConfig::with_cases(300) }
}

fn volume_key() -> VolumeKey {
    VolumeKey::new(Secret::take(&mut [7; 32]))
}

fn file_keys() -> FileKeys {
    FileKeys::derive(&DataKey::take(&mut [9; 32]), &[3; 16])
}

fn wrapped(n: u8) -> WrappedKey {
    WrappedKey { key_arn: "arn:aws:kms:local:0:key/a".into(), material_id: Some([n; 32]), blob: vec![n; 105] }
}

/// Some bytes changed at a few places: what passes magic numbers and lengths, and goes wrong behind them.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
}

fn damaged(good: &[u8], damage: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (at, byte) in damage {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn header_pages(raw in proptest::collection::vec(any::<u8>(), SLOTS_LEN), edits in damage(), fix_crc: bool) {
        let _ = Slots::parse(raw.as_slice().try_into().unwrap());
        let superblock = Superblock::new(VolumeId([1; 16]), FileId([3; 16]), *file_keys().commitment());
        let mut slots = Slots::new(superblock, wrapped(1));
        slots.slots[1] = Some(KeySlot { generation: 2, wrapped: wrapped(2) });
        let mut bytes = damaged(&slots.encode().unwrap(), &edits);
        if fix_crc {
            for (start, end) in [(0, 76), (424, 500), (80, 420), (512, 852)] {
                let crc = crc32c::crc32c(&bytes[start..end]);
                bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let bytes: [u8; SLOTS_LEN] = bytes.try_into().unwrap();
        let Ok(read) = Slots::parse(&bytes) else { return Ok(()) };
        // What is taken can be written, read back and rewrapped, whatever it says.
        let again = Slots::parse(&read.encode().unwrap()).unwrap();
        prop_assert_eq!(&again, &read);
        let mut page = bytes;
        for write in read.rewrap(wrapped(9)).unwrap() {
            page[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        let moved = Slots::parse(&page).unwrap();
        prop_assert_eq!(&moved.active().wrapped, &wrapped(9));
        if let Some((mended, _)) = Slots::mended(&bytes).unwrap() {
            let whole = Slots::parse(&mended).unwrap();
            prop_assert_eq!(&whole.active().wrapped, &read.active().wrapped);
            prop_assert!(Slots::mended(&mended).unwrap().is_none());
        }
        read.with_other_slot().unwrap();
    }

    #[test]
    fn seals(edits in damage(), epoch in 1..u64::MAX, size in any::<u64>()) {
        let (keys, superblock) = (file_keys(), [5; 80]);
        let seal = Seal { epoch, size, root: [4; 16], state: State::Clean, firm: 5, session: 6, place: [7; 16] };
        let mut page = [0; BLOCK];
        let at = seal.offset();
        let bytes = seal.encode(&keys, &superblock);
        page[at..at + bytes.len()].copy_from_slice(&bytes);
        prop_assert!(SEAL_OFFSETS.contains(&at));
        let bad: [u8; BLOCK] = damaged(&page, &edits).try_into().unwrap();
        if let Some(read) = Seal::latest(&keys, &superblock, &bad) {
            prop_assert_eq!((read.epoch, read.size, read.root), (epoch, size, [4; 16]));
        }
        prop_assert!(Seal::latest(&keys, &[6; 80], &page).is_none());
    }

    #[test]
    fn tag_pages_and_blocks(
        raw in proptest::collection::vec(any::<u8>(), BLOCK), edits in damage(), page_no in 1..u64::MAX / 200,
        data in proptest::collection::vec(any::<u8>(), 1..BLOCK), block in any::<u64>(),
    ) {
        let keys = file_keys();
        prop_assert!(TagPage::parse(&keys, page_no, raw.as_slice()).is_err() || raw.iter().all(|b| *b == 0));
        let mut sealed = data.clone();
        let entry = seal_block(&keys, FileId([3; 16]), block, &[8; 12], &mut sealed);
        let mut page = TagPage::empty(page_no);
        page.set(5, entry);
        let good = page.encode(&page.mac(&keys, page_no));
        let bad: [u8; BLOCK] = damaged(&good[..], &edits).try_into().unwrap();
        if let Ok(read) = TagPage::parse(&keys, page_no, &bad) {
            prop_assert!(bad.iter().all(|b| *b == 0) || read.entries() == page.entries());
        }
        prop_assert!(TagPage::parse(&keys, page_no + 1, &good[..]).is_err());
        let mut out = vec![0; data.len()];
        open_block(&keys, FileId([3; 16]), block, &entry, &sealed, &mut out).unwrap();
        prop_assert_eq!(&out, &data);
        let wrong = damaged(&sealed, &edits);
        let opened = open_block(&keys, FileId([3; 16]), block, &entry, &wrong, &mut out);
        prop_assert_eq!(opened.is_ok(), wrong == sealed);
        prop_assert!(open_block(&keys, FileId([3; 16]), block ^ 1, &entry, &sealed, &mut out).is_err());
        prop_assert!(open_block(&keys, FileId([4; 16]), block, &entry, &sealed, &mut out).is_err());
    }

    #[test]
    fn volume_records(raw in proptest::collection::vec(any::<u8>(), 0..3000), edits in damage(), cut in 0..2000_usize) {
        let _ = VolumeRecord::parse(&raw);
        let _ = VolumeRecord::from_text(&String::from_utf8_lossy(&raw));
        let dek = DataKey::take(&mut [2; 32]);
        let settings = VolumeSettings { default_key: "arn:k".into(), keys: vec!["arn:k".into()], created: 1, bind_names: false };
        let record = VolumeRecord::seal(VolumeId([1; 16]), &dek, wrapped(1), &volume_key(), &settings).unwrap();
        let good = record.encode().unwrap();
        let _ = VolumeRecord::parse(&good[..cut.min(good.len())]);
        let mut bad = damaged(&good, &edits);
        let crc = crc32c::crc32c(&bad[..68]);
        bad[68..72].copy_from_slice(&crc.to_le_bytes());
        if let Ok((_, read)) = VolumeRecord::parse(&bad).and_then(|record| record.open(&dek)) {
            prop_assert_eq!(read, settings);
        }
    }

    #[test]
    fn names_links_and_records(raw in proptest::collection::vec(any::<u8>(), 0..400), plain in "[^/\0]{1,60}", edits in damage()) {
        let key = volume_key();
        let dir_key = key.dir_key(&[1; 16]);
        let _ = name::classify(&raw);
        let _ = (name::decrypt(&dir_key, &raw), dir::open(&key, &raw, None), link::open(&key, &raw, None));
        let _ = xattr::plain_name(&key, "user.kmsfs.", &raw);
        let lower = name::encrypt(&dir_key, plain.as_bytes());
        prop_assume!(plain != "." && plain != "..");
        prop_assume!(lower.is_ok());
        let lower = lower.unwrap();
        let text = lower.sidecar.map_or(lower.entry, |sidecar| sidecar.target);
        prop_assert_eq!(name::decrypt(&dir_key, text.as_bytes()).unwrap(), plain.as_bytes());
        let bad = damaged(text.as_bytes(), &edits);
        prop_assert_eq!(name::decrypt(&dir_key, &bad).is_ok(), bad == text.as_bytes());
        prop_assert!(name::decrypt(&key.dir_key(&[2; 16]), text.as_bytes()).is_err());
        let record = dir::seal(&key, &[1; 16], None);
        let bad = damaged(record.as_bytes(), &edits);
        prop_assert_eq!(dir::open(&key, &bad, None).is_ok(), bad == record.as_bytes());
        let target = link::seal(&key, plain.as_bytes(), None).unwrap();
        let bad = damaged(target.as_bytes(), &edits);
        prop_assert_eq!(link::open(&key, &bad, None).is_ok(), bad == target.as_bytes());
    }
}
