//! Syncs that are answered before everything is in its place.
#![cfg(test)]

use std::cell::Cell;

use rustix::io::Errno;

use super::lower::fault::{self, Fault};
use super::tests::{Bench, contents, pattern};
use super::{FileIo, LOG_NAME};
use crate::tree::FsError;

/// A sync, and whether it was answered before it ended.
fn synced(file: &FileIo) -> (bool, Result<(), FsError>) {
    let told = Cell::new(false);
    let done = file.sync_telling(true, &|| told.set(true));
    (told.get(), done)
}

/// A durable file of five blocks, the third of them a hole.
fn durable(bench: &Bench) -> std::sync::Arc<FileIo> {
    let file = bench.mount();
    file.write(0, &pattern(0, 8_192, 1)).unwrap();
    file.write(12_288, &pattern(12_288, 8_192, 1)).unwrap();
    file.sync(true).unwrap();
    file
}

#[test]
fn a_sync_of_overwritten_blocks_is_answered_from_the_log_and_any_other_at_its_end() {
    let bench = Bench::new();
    let file = durable(&bench);
    let before = bench.bytes();
    file.write(4_096, &pattern(4_096, 4_096, 2)).unwrap();
    let told = Cell::new(false);
    file.sync_telling(true, &|| {
        assert!(bench.bytes() == before, "it is answered before anything is put in place");
        told.set(true);
    })
    .unwrap();
    assert!(told.get() && bench.bytes() != before);
    assert!(!synced(&file).0, "there is nothing to do");
    file.write(8_192, &pattern(8_192, 4_096, 2)).unwrap();
    assert!(!synced(&file).0, "it fills a hole");
    file.write(20_480, &pattern(20_480, 4_096, 2)).unwrap();
    assert!(!synced(&file).0, "the file is longer");
}

/// What was said to be durable cannot be put in place.
#[test]
fn records_stay_until_what_they_promised_is_in_place() {
    // The record is the first change, the block the second, its tags the third.
    for changes in [1, 2] {
        let bench = Bench::new();
        let file = durable(&bench);
        file.write(0, &pattern(0, 4_096, 2)).unwrap();
        fault::after(Some((changes, Fault::Full)));
        let (told, done) = synced(&file);
        assert!(told && matches!(done, Err(FsError::Os(Errno::NOSPC))), "{changes}: {done:?}");
        assert_eq!(file.failures().0, 1, "the next sync tells");

        let log = file.context.log.as_ref().unwrap();
        assert_eq!(log.wipe().unwrap_err(), Errno::NOSPC, "the record is still needed");
        let after_cut = bench.again();
        std::fs::write(after_cut.path(), bench.bytes()).unwrap();
        std::fs::copy(bench.dir.join(LOG_NAME), after_cut.dir.join(LOG_NAME)).unwrap();
        let mut wanted = pattern(0, 20_480, 1);
        wanted[8_192..12_288].fill(0);
        wanted[..4_096].copy_from_slice(&pattern(0, 4_096, 2));
        assert!(contents(&after_cut.mount()) == wanted, "the log has it");

        file.flush().unwrap();
        log.wipe().unwrap();
        assert!(contents(&file) == wanted);
        drop(file);
    }
}

/// A file whose disk is full must not hold up the others once it has room again.
#[test]
fn a_full_log_goes_on_when_what_it_keeps_is_in_place() {
    let bench = Bench::new();
    let file = durable(&bench);
    let other = bench.beside(&file);
    other.write(0, &pattern(0, 8_192, 3)).unwrap();
    other.sync(true).unwrap();
    file.write(0, &pattern(0, 4_096, 2)).unwrap();
    fault::after(Some((1, Fault::Full)));
    let (told, done) = synced(&file);
    assert!(told && done.is_err());

    // What is written meanwhile waits its turn: the log must not fill up with what it has.
    file.write(4_096, &pattern(4_096, 4_096, 2)).unwrap();
    let log = file.context.log.as_ref().unwrap();
    log.leave_half();
    other.write(0, &pattern(0, 4_096, 4)).unwrap();
    other.sync(true).unwrap();
    log.leave_half();
    other.write(0, &pattern(0, 4_096, 5)).unwrap();
    assert!(matches!(other.sync(true), Err(FsError::Os(Errno::NOSPC))), "the record is still needed");
    fault::after(Some((0, Fault::Full)));
    assert!(matches!(file.flush(), Err(FsError::Os(Errno::NOSPC))));

    file.flush().unwrap();
    other.sync(true).unwrap();
    log.wipe().unwrap();
    let mut wanted = pattern(0, 20_480, 1);
    wanted[..8_192].copy_from_slice(&pattern(0, 8_192, 2));
    wanted[8_192..12_288].fill(0);
    assert!(contents(&file) == wanted);
}
