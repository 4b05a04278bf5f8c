//! What the end of a mount leaves to the next one, when the power is cut after it.
#![cfg(test)]

use super::LOG_NAME;
use super::lower::trace::{self, Change};
use super::tests::*;

#[test]
fn a_file_that_was_left_unrepaired_is_still_repaired_after_a_cut_behind_a_good_end() {
    let bench = Bench::new();
    let file = bench.mount();
    file.write(0, &pattern(0, 12_288, 1)).unwrap();
    file.sync(true).unwrap();
    drop(file);
    // A mount that ends well, and in which nobody looks at the file.
    let idle = bench.mount();
    let path = bench.dir.join(LOG_NAME);
    let before = std::fs::read(&path).unwrap();
    trace::start();
    idle.context.log.as_ref().unwrap().close();
    let changes = trace::stop();
    drop(idle);
    assert!(!changes.is_empty(), "the log keeps nothing of the unclean end");
    if !matches!(changes.last(), Some((_, Change::Sync))) {
        // It did not reach the disk, and the key service knows of the end all the same.
        std::fs::write(&path, before).unwrap();
    }
    assert!(contents(&bench.mount_after_end()) == pattern(0, 12_288, 1));
}
