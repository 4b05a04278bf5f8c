//! Files of more tag pages than memory keeps, and what `Integrity::File` makes of one that is put back meanwhile.
#![cfg(test)]

use std::os::unix::fs::FileExt;

use super::tests::{Bench, contents, pattern, unmount};
use super::{Allocate, Inner, Integrity};
use crate::format::layout::{self, BLOCK};
use crate::tree::FsError;

fn group(page_no: u64) -> u64 {
    layout::first_block(page_no) * BLOCK
}

fn bench(integrity: Integrity) -> Bench {
    let mut bench = Bench::new();
    bench.integrity = integrity;
    bench
}

#[test]
fn a_file_of_more_tag_pages_than_memory_keeps_is_written_in_sequence() {
    let bench = Bench::new();
    let file = bench.mount();
    let whole = pattern(0, 12 << 20, 3);
    for (n, part) in whole.chunks(1 << 20).enumerate() {
        file.write((n as u64) << 20, part).unwrap();
    }
    file.seal().unwrap();
    drop(file);
    let file = bench.mount();
    assert!(contents(&file) == whole);
    assert!(file.verify().unwrap().problems.is_empty());
}

/// A group of a file that is open is put back to what it was, behind the back of the mount.
#[test]
fn what_is_read_again_must_be_the_newest_where_files_are_checked_whole() {
    for integrity in [Integrity::File, Integrity::Block] {
        let mut bench = bench(integrity);
        let file = bench.mount();
        file.write(0, &pattern(0, group(6) as usize, 1)).unwrap();
        unmount(&file);
        let old = bench.bytes();
        let file = bench.mount();
        file.write(group(2), &[7; 4096]).unwrap();
        file.flush().unwrap();
        // As if the pages of other groups had driven this one out.
        if let Inner::Loaded(body) = &*file.inner.read() {
            body.pages.lock().clear();
        }
        let (from, to) = (layout::tag_page_offset(2), layout::tag_page_offset(3));
        let lower = std::fs::File::options().write(true).open(bench.path()).unwrap();
        lower.write_all_at(&old[from as usize..to as usize], from).unwrap();
        let mut out = Vec::new();
        let read = file.read(group(2), 4096, &mut out);
        match integrity {
            Integrity::File => assert!(matches!(read, Err(FsError::Corrupt(_))), "{read:?}"),
            _ => assert!(read.is_ok() && out == pattern(group(2), 4096, 1), "an older version of this block"),
        }
        unmount(&file);
        // Whoever compares the root sees it, either way.
        bench.integrity = Integrity::File;
        assert!(matches!(bench.mount().ensure_keys(), Err(FsError::Corrupt(_))));
    }
}

#[test]
fn pinned_pages_follow_writes_cuts_and_growth() {
    let bench = bench(Integrity::File);
    let mut whole = pattern(0, group(7) as usize, 1);
    let file = bench.mount();
    file.write(0, &whole).unwrap();
    unmount(&file);
    let file = bench.mount();
    for (at, len) in [(group(3) - 5, 9000), (group(6) + 1, 20), (group(1), 4096)] {
        let data = pattern(0, len, 9);
        file.write(at, &data).unwrap();
        whole[at as usize..at as usize + len].copy_from_slice(&data);
    }
    file.truncate(group(4) + 100).unwrap();
    file.truncate(group(6)).unwrap();
    whole.truncate(group(4) as usize + 100);
    whole.resize(group(6) as usize, 0);
    file.allocate(Allocate::Punch, group(2), group(3) - group(2)).unwrap();
    whole[group(2) as usize..group(3) as usize].fill(0);
    assert!(contents(&file) == whole);
    unmount(&file);
    assert!(contents(&bench.mount()) == whole);
}
