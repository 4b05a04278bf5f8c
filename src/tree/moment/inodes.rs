//! A set of inode numbers. They come in runs, so a page of bits for each 4096 numbers takes little.

use std::collections::HashMap;

const WORDS: usize = 64;
const PAGE: u64 = WORDS as u64 * 64;

/// Inode numbers.
#[derive(Default)]
pub(super) struct InodeSet(HashMap<u64, Box<[u64; WORDS]>>);

impl InodeSet {
    /// Whether it holds `inode`.
    pub fn contains(&self, inode: u64) -> bool {
        let (word, bit) = place(inode);
        self.0.get(&(inode / PAGE)).is_some_and(|page| page[word] & bit != 0)
    }

    /// Adds `inode`; `false` where it was there.
    pub fn insert(&mut self, inode: u64) -> bool {
        let (word, bit) = place(inode);
        let page = self.0.entry(inode / PAGE).or_insert_with(|| Box::new([0; WORDS]));
        let new = page[word] & bit == 0;
        page[word] |= bit;
        new
    }
}

fn place(inode: u64) -> (usize, u64) {
    let within = inode % PAGE;
    ((within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_put_in_and_nothing_else() {
        let mut set = InodeSet::default();
        let inside = [0, 1, 63, 64, 4095, 4096, 4097, u64::MAX];
        assert!(inside.iter().all(|n| set.insert(*n)) && inside.iter().all(|n| !set.insert(*n)));
        assert!(inside.iter().all(|n| set.contains(*n)));
        assert!([2, 62, 65, 4094, 8192, u64::MAX - 1].iter().all(|n| !set.contains(*n)));
    }
}
