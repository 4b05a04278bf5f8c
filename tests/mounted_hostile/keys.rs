//! Rows of the attack table about keys and nonces, which are looked at with the data key in hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use kmsfs::crypto::{Aead, DataKey, FileKeys};
use kmsfs::format::header::{SLOTS_LEN, SUPERBLOCK_LEN, Slots};
use kmsfs::format::layout;
use kmsfs::format::seal::{HEAD_MAC_OFFSET, SEAL_LEN, SEAL_OFFSETS};
use kmsfs::format::tags::{HOLE, TagPage};

use super::victim::{FILES, Victim, block, contents, entry};

fn slots(bytes: &[u8]) -> Slots {
    Slots::parse(bytes[..SLOTS_LEN].try_into().unwrap()).unwrap()
}

/// The keys of a file, as its owner may have them.
fn keys_of(victim: &Victim, name: &str) -> FileKeys {
    let slots = slots(&victim.bytes(name));
    let (volume, file) = (slots.superblock.volume_id, slots.superblock.file_id);
    fs::write(victim.desk.path("blob"), &slots.active().wrapped.blob).unwrap();
    let context = format!(
        "--context kmsfs:volume={volume} --context kmsfs:file={file} --context kmsfs:purpose=file-data \
         --context kmsfs:format=1"
    );
    victim.desk.kmsfs(&format!("key decrypt --in {{blob}} --out {{dek}} {context}")).ok();
    let mut dek: [u8; 32] = fs::read(victim.desk.path("dek")).unwrap().try_into().unwrap();
    FileKeys::derive(&DataKey::take(&mut dek), &file.0)
}

#[test]
fn a11_each_part_of_a_file_opens_under_the_key_of_its_purpose_alone() {
    let victim = Victim::new("a11");
    let (bytes, keys) = (victim.bytes("middle"), keys_of(&victim, "middle"));
    let all =
        [("content", &keys.content), ("seal", &keys.seal), ("page", &keys.page), ("xattr", &keys.xattr)];
    let opens = |key: &Aead, aad: &[u8], nonce: &[u8], text: &[u8], tag: &[u8]| {
        let mut out = vec![0; text.len()];
        key.open(nonce.try_into().unwrap(), aad, text, tag.try_into().unwrap(), &mut out).is_ok()
    };
    let under = |aad: &[u8], nonce: &[u8], text: &[u8], tag: &[u8]| {
        let right = all.iter().filter(|(_, key)| opens(key, aad, nonce, text, tag));
        right.map(|(purpose, _)| *purpose).collect::<Vec<_>>()
    };
    let seal = SEAL_OFFSETS.map(|at| &bytes[at..at + SEAL_LEN]);
    for seal in seal.iter().filter(|seal| seal.iter().any(|byte| *byte != 0)) {
        let (head, tag) = seal.split_at(SEAL_LEN - 16);
        assert_eq!(under(&bytes[..SUPERBLOCK_LEN], &head[..12], &head[12..], tag), ["seal"]);
    }
    let (tags, id) = (&bytes[entry(2)], slots(&bytes).superblock.file_id);
    let aad = [&id.0[..], &2_u64.to_le_bytes()].concat();
    assert_eq!(under(&aad, &tags[..12], &bytes[block(2)], &tags[12..]), ["content"]);
    let count = layout::block_count(contents("middle", 1).len() as u64);
    let head = TagPage::parse_head(&keys, &bytes[..4096], count).unwrap();
    let used = head.entries()[..count as usize].as_flattened();
    assert_eq!(under(used, &[0; 12], &[], &bytes[HEAD_MAC_OFFSET..HEAD_MAC_OFFSET + 16]), ["page"]);
}

/// The nonces in a lower file: of its blocks and its seals.
fn nonces(bytes: &[u8]) -> Vec<[u8; 12]> {
    let blocks = layout::block_count(layout::plain_size(bytes.len() as u64));
    let entries = (0..blocks).map(entry).filter(|at| bytes[at.clone()] != HOLE);
    let places = entries.map(|at| at.start).chain(SEAL_OFFSETS);
    places.map(|at| bytes[at..at + 12].try_into().unwrap()).collect()
}

#[test]
fn a12_no_nonce_and_no_data_key_comes_twice() {
    let victim = Victim::new("a12");
    let (mut seen, mut places) = (BTreeSet::new(), 0);
    let mut last = BTreeMap::new();
    for version in 1..8 {
        for (name, _) in FILES {
            if version > 1 {
                victim.update(name, version);
            }
            let now = nonces(&victim.bytes(name));
            // One of the two seals may be as it was.
            let before: Vec<[u8; 12]> = last.insert(name, now.clone()).unwrap_or_default();
            let fresh: Vec<_> = now.into_iter().filter(|nonce| !before.contains(nonce)).collect();
            assert!(fresh.len() + 1 >= before.len(), "{name}: every block has a new nonce");
            places += fresh.len();
            seen.extend(fresh);
        }
    }
    assert!(places > 1500, "{places}");
    assert_eq!(seen.len(), places, "a nonce came twice");
    let commitments: BTreeSet<_> =
        FILES.iter().map(|(name, _)| slots(&victim.bytes(name)).superblock.commitment).collect();
    assert_eq!(commitments.len(), FILES.len(), "each file has a key of its own");
}

#[test]
fn a17_the_lower_length_shows_the_size_to_the_byte() {
    // What falls, and how far: documented, not resisted.
    let victim = Victim::new("a17");
    for (name, size) in FILES {
        let lower = fs::metadata(&victim.lower[name]).unwrap();
        assert_eq!(layout::plain_size(lower.size()), size as u64, "{name}");
    }
}
