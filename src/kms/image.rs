//! The image of a store that was at rest: one MAC over its whole file, by which a start knows that nobody touched it.
//!
//! Made by `sqlite` at the end of a daemon and while nothing changes; looked at when a store is opened. An image that
//! is missing or does not fit says nothing at all: then every row is read, and the one that was changed is named.
//!
//! ```text
//!  0   8  magic "KMSDIMG1"
//!  8   8  counter of the head, LE
//! 16   8  length of store.db, LE
//! 24  32  HMAC(head key, "image" || bytes 8..24 || tag of each part)
//! ```
//! A part is 1 MiB of the file, the last one less; its tag is the AES-256-GCM-SIV tag (image key, nonce = number of the
//! part) of an empty message with the part as additional data: twenty times as fast as HMAC.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::crypto::{NONCE_LEN, StoreKeys, TAG_LEN, Tag, constant_time_eq};

use super::sealed::write_whole;

const NAME: &str = "image";
const MAGIC: &[u8; 8] = b"KMSDIMG1";
const MAC_AT: usize = 24;
const LEN: usize = MAC_AT + 32;
const PART: usize = 1024 * 1024;
/// Parts that are worth a thread of their own.
const PARTS_A_THREAD: u64 = 16;
/// Most threads: what a start may take of a machine for a moment.
const MAX_THREADS: usize = 8;
/// What SQLite would take into account beside the file itself, were it there.
const COMPANIONS: [&str; 2] = ["store.db-wal", "store.db-journal"];

/// Writes the image of `database`, in which everything up to `counter` stands.
pub(super) fn take(dir: &Path, keys: &StoreKeys, database: &File, counter: u64) -> io::Result<()> {
    write_whole(&dir.join(NAME), &compose(keys, database, counter)?)
}

/// Whether `database` is, byte for byte, what it was at `counter`, and nothing stands beside it.
pub(super) fn vouches(dir: &Path, keys: &StoreKeys, database: &File, counter: u64) -> bool {
    let Ok(known) = fs::read(dir.join(NAME)) else { return false };
    let lonely = COMPANIONS.iter().all(|name| match fs::metadata(dir.join(name)) {
        Ok(found) => found.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    });
    // Cheap before dear: most images that do not fit are of another counter.
    let of_counter = known.len() == LEN && known[8..16] == counter.to_le_bytes();
    lonely && of_counter && compose(keys, database, counter).is_ok_and(|now| constant_time_eq(&known, &now))
}

fn compose(keys: &StoreKeys, database: &File, counter: u64) -> io::Result<[u8; LEN]> {
    let length = database.metadata()?.len();
    let mut out = [0; LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&counter.to_le_bytes());
    out[16..MAC_AT].copy_from_slice(&length.to_le_bytes());
    let tags = tags(keys, database, length)?;
    let mac = keys.head.sign(&[b"image", &out[8..MAC_AT], tags.as_flattened()]);
    out[MAC_AT..].copy_from_slice(&mac);
    Ok(out)
}

/// The tag of each part, by several threads where there are many.
fn tags(keys: &StoreKeys, database: &File, length: u64) -> io::Result<Vec<Tag>> {
    let parts = length.div_ceil(PART as u64);
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS) as u64;
    let threads = parts.div_ceil(PARTS_A_THREAD).clamp(1, processors);
    let share = parts.div_ceil(threads);
    std::thread::scope(|scope| {
        let range = |number: u64| number * share..((number + 1) * share).min(parts);
        let started: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || tags_of(keys, database, length, range(number))))
            .collect();
        let mut all = Vec::with_capacity(parts as usize);
        for thread in started {
            all.extend(thread.join().map_err(|_| io::Error::other("a thread died"))??);
        }
        Ok(all)
    })
}

fn tags_of(
    keys: &StoreKeys,
    database: &File,
    length: u64,
    parts: std::ops::Range<u64>,
) -> io::Result<Vec<Tag>> {
    let mut buffer = vec![0; PART];
    let mut tags = Vec::with_capacity(TAG_LEN);
    for part in parts {
        let at = part * PART as u64;
        let bytes = &mut buffer[..(length - at).min(PART as u64) as usize];
        database.read_exact_at(bytes, at)?;
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&part.to_le_bytes());
        tags.push(keys.image.mac(&nonce, bytes));
    }
    Ok(tags)
}
