//! Where things lie in the lower file of a regular file; pure arithmetic.
//!
//! ```text
//! page 0                  the header page (see `header`), with the tags of blocks 0..96
//! pages 1..=96            data blocks 0..96
//! then groups of 145 pages: one tag page (144 entries of 28 B, MAC, zeros), 144 data pages
//! ```
//! The lower length is always that of a file whose last block stands at its own place, so lower length and plaintext
//! size determine each other. A last partial block that fits the header page is kept there (`tail_is_inline`), and its
//! own page stays a hole: a small file takes one page on disk.

/// Bytes of a page and of a block.
pub const BLOCK: u64 = 4096;
/// The same, for slices.
pub const BLOCK_LEN: usize = 4096;
/// Blocks whose tags stand in the header page.
pub const HEAD_BLOCKS: u64 = 96;
/// Blocks of a group, whose tags share one tag page.
pub const GROUP_BLOCKS: u64 = 144;
/// Bytes of the fixed part of the header page; the inline tail begins here.
pub const HEADER_LEN: usize = 1056;
/// Bytes of one tag entry: nonce, tag.
pub const ENTRY_LEN: usize = 28;
/// Largest plaintext size, in bytes (16 TiB, ext4's limit for a file).
pub const MAX_SIZE: u64 = 1 << 44;

const FIRST_GROUP_PAGE: u64 = 1 + HEAD_BLOCKS;
const GROUP_PAGES: u64 = 1 + GROUP_BLOCKS;
const _: () = assert!(HEADER_LEN + HEAD_BLOCKS as usize * ENTRY_LEN <= BLOCK_LEN);
const _: () = assert!(GROUP_BLOCKS as usize * ENTRY_LEN + 16 <= BLOCK_LEN);

/// Lower offset of data block `block`.
pub const fn block_offset(block: u64) -> u64 {
    if block < HEAD_BLOCKS {
        return (1 + block) * BLOCK;
    }
    let (group, index) = ((block - HEAD_BLOCKS) / GROUP_BLOCKS, (block - HEAD_BLOCKS) % GROUP_BLOCKS);
    (FIRST_GROUP_PAGE + group * GROUP_PAGES + 1 + index) * BLOCK
}

/// Number of the tag page of `block`: 0 is the header page, `1 + g` that of group `g`.
pub const fn tag_page(block: u64) -> u64 {
    if block < HEAD_BLOCKS { 0 } else { 1 + (block - HEAD_BLOCKS) / GROUP_BLOCKS }
}

/// Index of `block`'s entry in its tag page.
pub const fn entry_index(block: u64) -> usize {
    (if block < HEAD_BLOCKS { block } else { (block - HEAD_BLOCKS) % GROUP_BLOCKS }) as usize
}

/// The first block of tag page `page`.
pub const fn first_block(page: u64) -> u64 {
    if page == 0 { 0 } else { HEAD_BLOCKS + (page - 1) * GROUP_BLOCKS }
}

/// Lower offset of tag page `page` (which is not the header page).
pub const fn tag_page_offset(page: u64) -> u64 {
    (FIRST_GROUP_PAGE + (page - 1) * GROUP_PAGES) * BLOCK
}

/// The block whose page holds the lower offset `offset`; for a tag page, the first block of its group.
pub const fn block_at(offset: u64) -> u64 {
    let page = offset / BLOCK;
    if page < FIRST_GROUP_PAGE {
        return page.saturating_sub(1);
    }
    let (group, index) = ((page - FIRST_GROUP_PAGE) / GROUP_PAGES, (page - FIRST_GROUP_PAGE) % GROUP_PAGES);
    HEAD_BLOCKS + group * GROUP_BLOCKS + index.saturating_sub(1)
}

/// How many blocks hold `size` bytes.
pub const fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// How many tag pages, the header page among them, a file of `size` bytes has.
pub const fn tag_page_count(size: u64) -> u64 {
    if size == 0 { 1 } else { tag_page(block_count(size) - 1) + 1 }
}

/// Bytes that `block` holds in a file of `size` bytes.
pub const fn block_len(block: u64, size: u64) -> usize {
    let start = block * BLOCK;
    if size <= start {
        0
    } else if size - start < BLOCK {
        (size - start) as usize
    } else {
        BLOCK_LEN
    }
}

/// Lower length of a file of `size` plaintext bytes that has a header.
pub const fn lower_len(size: u64) -> u64 {
    if size == 0 {
        return BLOCK;
    }
    let last = block_count(size) - 1;
    block_offset(last) + block_len(last, size) as u64
}

/// Plaintext size of a lower file of `lower_len` bytes. A length that no size has (cut inside the header page or a tag
/// page) gives the size of what stands before it; opening the file then reports it.
pub const fn plain_size(lower_len: u64) -> u64 {
    if lower_len <= BLOCK {
        return 0;
    }
    let (page, within) = ((lower_len - 1) / BLOCK, (lower_len - 1) % BLOCK + 1);
    if page < FIRST_GROUP_PAGE {
        return (page - 1) * BLOCK + within;
    }
    let (group, index) = ((page - FIRST_GROUP_PAGE) / GROUP_PAGES, (page - FIRST_GROUP_PAGE) % GROUP_PAGES);
    let before = (HEAD_BLOCKS + group * GROUP_BLOCKS) * BLOCK;
    if index == 0 { before } else { before + (index - 1) * BLOCK + within }
}

/// Whether the last block of a file of `size` bytes is partial and kept in the header page.
pub const fn tail_is_inline(size: u64) -> bool {
    let (full, tail) = (size / BLOCK, (size % BLOCK) as usize);
    tail > 0 && full < HEAD_BLOCKS && HEADER_LEN + tail + (full as usize + 1) * ENTRY_LEN <= BLOCK_LEN
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn size_and_lower_length_determine_each_other(size in 0..MAX_SIZE) {
            prop_assert_eq!(plain_size(lower_len(size)), size);
            prop_assert!(lower_len(size + 1) > lower_len(size));
        }

        #[test]
        fn no_two_blocks_or_tag_pages_share_a_page(block in 0_u64..1 << 30) {
            prop_assert!(block_offset(block + 1) > block_offset(block));
            prop_assert_eq!(block_offset(block) % BLOCK, 0);
            prop_assert_eq!(block_at(block_offset(block) + 4095), block);
            let page = tag_page(block);
            prop_assert_eq!(first_block(page) + entry_index(block) as u64, block);
            if page > 0 {
                prop_assert_eq!(block_at(tag_page_offset(page)), first_block(page));
                prop_assert!(tag_page_offset(page) < block_offset(first_block(page)));
                prop_assert!(tag_page_offset(page) > block_offset(first_block(page) - 1));
            }
        }
    }

    #[test]
    fn every_small_size_comes_back() {
        for size in 0..6_000_000 {
            assert_eq!(plain_size(lower_len(size)), size, "{size}");
        }
    }

    #[test]
    fn the_cost_in_space_stays_within_its_bounds() {
        assert_eq!(lower_len(1), 4097);
        assert!(tail_is_inline(1) && tail_is_inline(3012) && !tail_is_inline(3013));
        assert!(!tail_is_inline(4096));
        for size in [1_u64 << 30, 1 << 40] {
            assert!(lower_len(size) * 1000 < size * 1008, "at most 0.8 % more");
        }
    }
}
