//! What stands in directories: directory records, names and sidecars, targets of links, names of attributes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kmsfs::crypto::{DirKey, VolumeKey};
use kmsfs::format::dir::{self, DirRecordError};
use kmsfs::format::name::{self, Kind};
use kmsfs::format::{link, xattr};

use super::{Input, volume_key};

/// The bytes are plaintext, sealed here; or edits of something sealed; else the text as it is found.
const SEALED: u8 = 1;
const EDITED: u8 = 2;
/// The volume binds names.
const BOUND: u8 = 4;
const NONCE: [u8; 12] = [0; 12];

fn text(bytes: &[u8]) -> Vec<u8> {
    URL_SAFE_NO_PAD.encode(bytes).into_bytes()
}

pub(super) fn dir_record_seeds() -> Vec<Vec<u8>> {
    let record = dir::seal(&volume_key(false), &[1; 16], None).into_bytes();
    let sealed = |how: u8, version: u8| [&[how, version][..], &[1; 16]].concat();
    vec![[&[0][..], &record].concat(), sealed(SEALED, 1), sealed(SEALED | BOUND, 2), vec![EDITED]]
}

/// A directory record: found text, or version and identity to be sealed. One record has one spelling.
pub(super) fn dir_record(data: &[u8]) -> bool {
    let mut input = Input(data);
    let how = input.byte();
    let key = volume_key(how & BOUND != 0);
    let place = key.place(&[1; 16], b"entry");
    let good = dir::seal(&key, &[1; 16], place.as_ref()).into_bytes();
    let target = match how & (SEALED | EDITED) {
        EDITED => input.edits(&good),
        SEALED => {
            let (version, id) = (input.byte(), input.array::<16>());
            let bound = place.as_ref().map_or(&[][..], |place| &place[..]);
            let aad = [&b"dir"[..], &[version], &id, bound].concat();
            let tag = key.dir_record.mac(&NONCE, &aad);
            text(&[&[version][..], &id, &tag].concat())
        }
        _ => input.0.to_vec(),
    };
    let other = key.place(&[2; 16], b"entry");
    assert!(place.is_none() || dir::open(&key, &target, other.as_ref()).is_err(), "at another place");
    let id = match dir::open(&key, &target, place.as_ref()) {
        Ok(id) => id,
        Err(e) => {
            assert!(how & EDITED == 0 || target != good || e == DirRecordError::Forged);
            return false;
        }
    };
    assert_eq!(dir::seal(&key, &id, place.as_ref()).into_bytes(), target, "a second spelling");
    assert!(how & SEALED != 0 || how & EDITED == 0 || target == good, "a forged record");
    true
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let key = volume_key(false);
    let mut seeds = Vec::new();
    let mut long = [b'x'; 208];
    long[201..].fill(0);
    let plain =
        [(0, &b"a name\0\0\0\0\0\0\0\0\0\0"[..]), (0, &long), (1, b"../target"), (2, b"user.attribute")];
    // One byte longer than a name may be.
    seeds.push([&[0, SEALED][..], &[b'y'; 256]].concat());
    for (kind, plain) in plain {
        seeds.extend([SEALED, SEALED | BOUND].map(|how| [&[kind, how][..], plain].concat()));
        seeds.push(vec![kind, EDITED]);
    }
    let entry = name::encrypt(&key.dir_key(&[1; 16]), b"hello").unwrap().entry;
    seeds.push([&[0, 0][..], entry.as_bytes()].concat());
    seeds
}

/// The first byte chooses: a name, the target of a link, the name of an attribute.
pub(super) fn names(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (kind, how) = (input.byte(), input.byte());
    let key = volume_key(how & BOUND != 0);
    match kind % 3 {
        0 => entry_name(&key, how, input),
        1 => link_target(&key, how, input),
        _ => attribute_name(&key, how, input),
    }
}

fn entry_name(key: &VolumeKey, how: u8, mut input: Input) -> bool {
    let dir_key = key.dir_key(&[1; 16]);
    let found = match how & (SEALED | EDITED) {
        EDITED => {
            let lower = name::encrypt(&dir_key, &[b'n'; 40]).unwrap().entry.into_bytes();
            let bad = input.edits(&lower);
            assert_eq!(name::decrypt(&dir_key, &bad).is_ok(), bad == lower, "a forged name");
            bad
        }
        SEALED => {
            // Padded or not, empty, "..", with a slash.
            let mut sealed = input.0.to_vec();
            let tag = dir_key.names.seal(&NONCE, b"name", &mut sealed);
            sealed.extend_from_slice(&tag);
            text(&sealed)
        }
        _ => input.0.to_vec(),
    };
    let spelled = std::str::from_utf8(&found).unwrap_or_default();
    assert_eq!(name::sidecar_of(spelled).is_some(), name::classify(spelled.as_bytes()) == Kind::LongEntry);
    if let Some(entry) = name::entry_of_sidecar(spelled) {
        assert_eq!(name::sidecar_of(&entry).as_deref(), Some(spelled));
    }
    upper_name(&dir_key, input.0);
    let Ok(plain) = name::decrypt(&dir_key, &found) else { return false };
    assert!(
        !plain.is_empty() && plain != b"." && plain != b".." && !plain.contains(&b'/') && !plain.contains(&0)
    );
    let lower = name::encrypt(&dir_key, &plain);
    let lower = lower.unwrap_or_else(|e| panic!("a name that cannot be made: {e:?}"));
    let text = lower.sidecar.as_ref().map_or(&lower.entry, |sidecar| &sidecar.target);
    assert_eq!(text.as_bytes(), found, "a second spelling");
    assert!(name::decrypt(&key.dir_key(&[2; 16]), &found).is_err(), "in another directory");
    true
}

/// A name as a program gives it.
fn upper_name(dir_key: &DirKey, plain: &[u8]) {
    let Ok(lower) = name::encrypt(dir_key, plain) else { return };
    assert!(lower.entry.len() <= name::LOWER_NAME_MAX);
    if let Some(sidecar) = &lower.sidecar {
        assert!(sidecar.name.len() <= name::LOWER_NAME_MAX);
        assert!(name::sidecar_fits(&lower.entry, sidecar.target.as_bytes()));
        assert!(!name::sidecar_fits(&lower.entry, b"another"));
        assert_eq!(name::classify(sidecar.name.as_bytes()), Kind::Sidecar);
    } else {
        assert_eq!(name::classify(lower.entry.as_bytes()), Kind::Short);
    }
}

fn link_target(key: &VolumeKey, how: u8, mut input: Input) -> bool {
    let place = key.place(&[1; 16], b"entry");
    let places = place.map(|place| [place, key.root_place().unwrap()]);
    let found = match how & (SEALED | EDITED) {
        EDITED => {
            let lower = link::seal(key, b"the target", places).unwrap().into_bytes();
            let bad = input.edits(&lower);
            assert_eq!(link::open(key, &bad, place.as_ref()).is_ok(), bad == lower, "a forged target");
            bad
        }
        SEALED => {
            let aad: &[u8] = if place.is_some() { b"symlink at" } else { b"symlink" };
            let mut sealed = [&places.unwrap_or_default().concat()[..], input.0].concat();
            if place.is_none() {
                sealed = input.0.to_vec();
            }
            let tag = key.symlink.seal(&NONCE, aad, &mut sealed);
            text(&[&NONCE[..], &sealed, &tag].concat())
        }
        _ => input.0.to_vec(),
    };
    let Ok(plain) = link::open(key, &found, place.as_ref()) else { return false };
    assert_eq!(link::plain_len(key, found.len() as u64), plain.len() as u64);
    if let Some(again) = link::seal(key, &plain, places) {
        assert_eq!(again.len(), found.len());
        assert_eq!(link::open(key, again.as_bytes(), place.as_ref()).unwrap(), plain);
    }
    true
}

fn attribute_name(key: &VolumeKey, how: u8, mut input: Input) -> bool {
    let found = match how & (SEALED | EDITED) {
        EDITED => {
            let lower = xattr::lower_name(key, "", b"user.name").unwrap().into_bytes();
            let bad = input.edits(&lower);
            assert_eq!(xattr::plain_name(key, "", &bad).unwrap().is_ok(), bad == lower, "a forged name");
            bad
        }
        SEALED => {
            let mut sealed = input.0.to_vec();
            let tag = key.xattr_name.seal(&NONCE, b"xattr name", &mut sealed);
            sealed.extend_from_slice(&tag);
            text(&sealed)
        }
        _ => input.0.to_vec(),
    };
    let value = xattr::open_value(&key.special_xattr, &[1; 16], b"user.name", input.0);
    assert!(value.is_err(), "a made-up value opens");
    let Some(Ok(plain)) = xattr::plain_name(key, "", &found) else { return false };
    if let Some(lower) = xattr::lower_name(key, "", &plain) {
        assert_eq!(lower.as_bytes(), found, "a second spelling");
    }
    true
}
