//! Content that tells what it is, and random numbers.

use crate::Outcome;

/// The smallest thing that is written: half of a 4 KiB block changes where a write begins or ends in it.
pub const CELL: usize = 512;
const MAGIC: u64 = 0x5f63_7574_5f63_656c;

/// A sequence that its seed determines.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        mix(self.0)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn words(out: &mut [u8], mut word: impl FnMut(u64) -> u64) {
    for (number, place) in out.chunks_mut(8).enumerate() {
        place.copy_from_slice(&word(number as u64).to_le_bytes()[..place.len()]);
    }
}

/// The cell number `cell` of `file` in `version`; version 0 is all zeros.
pub fn cell(file: u32, cell: u32, version: u32) -> [u8; CELL] {
    let mut out = [0; CELL];
    if version == 0 {
        return out;
    }
    let place = u64::from(file) << 32 | u64::from(cell);
    words(&mut out, |number| match number {
        0 => MAGIC,
        1 => place,
        2 => u64::from(version),
        _ => mix(place ^ u64::from(version) << 17 ^ number << 48),
    });
    out
}

/// The version of what stands in the place of a cell, checked to the last byte.
pub fn version_of(found: &[u8], file: u32, number: u32) -> Outcome<u32> {
    if found.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word =
        |at: usize| found.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight")));
    let version = word(16) as u32;
    if version != 0 && cell(file, number, version)[..found.len()] == *found {
        return Ok(version);
    }
    if word(0) == MAGIC {
        return Err(format!(
            "cell {number} of file {file} holds a part of cell {} of file {}, version {version}",
            word(8) as u32,
            word(8) >> 32
        )
        .into());
    }
    Err(format!("cell {number} of file {file} holds garbage").into())
}

/// Bytes of the endless text `text` from `at` on; none of them is zero.
pub fn text(text: u64, at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64)
        .map(|at| (mix(text ^ (at / 8) << 20).to_le_bytes()[(at % 8) as usize]) | 1)
        .collect()
}
