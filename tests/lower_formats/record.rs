//! The volume record.

use kmsfs::crypto::{DataKey, RecordKey};
use kmsfs::format::record::{VolumeRecord, VolumeSettings};

use super::{Input, VOLUME_ID, fix_crc, volume_key, wrapped};

/// What is made right before the parser sees it: the checksums, and the sealed body, whose plaintext is given.
const CHECKSUM: u8 = 1;
const SEALED: u8 = 2;
/// Edits of a sealed record instead of a record.
const EDITED: u8 = 4;
const BODY: usize = 1024;
const CLEAR: usize = 68;

fn data_key() -> DataKey {
    DataKey::take(&mut [2; 32])
}

fn settings() -> VolumeSettings {
    VolumeSettings { default_key: "arn:k".into(), keys: vec!["arn:k".into()], created: 1, bind_names: true }
}

fn good() -> Vec<u8> {
    let record = VolumeRecord::seal(VOLUME_ID, &data_key(), wrapped(1), &volume_key(true), &settings());
    record.unwrap().encode().unwrap()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let (good, json) = (good(), serde_json::to_vec(&settings()).unwrap());
    let plain = [&good[..BODY + 12], &[5; 32], &json, &[0; 16]].concat();
    let seed = |how: u8, rest: &[u8]| [&[how][..], rest].concat();
    vec![seed(0, &good), seed(CHECKSUM | SEALED, &plain), seed(CHECKSUM, &good), seed(EDITED, &[])]
}

/// What is taken comes back, through the sheet of paper too; what opens was sealed with the key.
pub(super) fn volume_record(data: &[u8]) -> bool {
    let mut input = Input(data);
    let how = input.byte();
    let _ = VolumeRecord::from_text(&String::from_utf8_lossy(input.0));
    let good = good();
    let mut bytes = if how & EDITED != 0 { input.edits(&good) } else { input.0.to_vec() };
    if how & (EDITED | SEALED) == SEALED && bytes.len() >= BODY + 60 {
        seal(&mut bytes);
    }
    if how & CHECKSUM != 0 && bytes.len() >= BODY {
        for range in [0..CLEAR, 80..420, 512..852] {
            fix_crc(&mut bytes, range);
        }
    }
    let Ok(mut record) = VolumeRecord::parse(&bytes) else { return false };
    assert_eq!(VolumeRecord::parse(&record.encode().unwrap()).unwrap(), record);
    assert_eq!(VolumeRecord::from_text(&record.to_text().unwrap()).unwrap(), record);
    record.rewrap(wrapped(9));
    record.forget_other();
    assert_eq!(record.active().wrapped, wrapped(9));
    let Ok((key, read)) = record.open(&data_key()) else { return false };
    assert!(how & EDITED == 0 || read == settings(), "a forged record");
    assert_eq!(key.binds_names(), read.bind_names);
    record.reseal(&data_key(), &key, &read).unwrap();
    let again = VolumeRecord::parse(&record.encode().unwrap()).unwrap().open(&data_key()).unwrap();
    assert_eq!(again.1, read);
    true
}

/// Takes what stands where the sealed body does for its plaintext, and seals it.
fn seal(bytes: &mut [u8]) {
    let body = (bytes.len() - BODY) as u32;
    bytes[64..CLEAR].copy_from_slice(&body.to_le_bytes());
    let key = RecordKey::derive(&data_key(), bytes[16..32].try_into().unwrap());
    bytes[32..64].copy_from_slice(&key.commitment);
    let (clear, sealed) = bytes.split_at_mut(BODY);
    let (nonce, rest) = sealed.split_first_chunk::<12>().unwrap();
    let nonce = *nonce;
    let end = rest.len() - 16;
    let tag = key.aead.seal(&nonce, &clear[..CLEAR], &mut sealed[12..12 + end]);
    sealed[12 + end..].copy_from_slice(&tag);
}
