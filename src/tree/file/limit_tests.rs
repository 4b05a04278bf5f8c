//! Tests of lengths that the lower filesystem refuses: the file stays as it was, and goes on.
#![cfg(test)]

use rustix::io::Errno;

use super::lower::fault;
use super::tests::{Bench, contents};
use super::{Allocate, FileIo};
use crate::tree::FsError;

const LONGEST: u64 = 1 << 30;
const FAR: u64 = 3 << 30;

/// Something that makes the file longer by far.
type Growth = fn(&FileIo) -> Result<(), FsError>;

const GROWTHS: [(&str, Growth); 3] = [
    ("truncate", |file| file.truncate(FAR)),
    ("write", |file| file.write(FAR, b"far")),
    ("zero", |file| file.allocate(Allocate::Zero { keep_size: false }, u64::MAX >> 20, 4096)),
];

#[test]
fn a_length_that_the_lower_filesystem_refuses_changes_nothing() {
    for (old_len, synced) in
        [0, 1, 100, 3_500, 4_096, 9_000, 400_000].map(|len| [(len, false), (len, true)]).concat()
    {
        for (name, grow) in GROWTHS {
            let (bench, old) = (Bench::new(), vec![7; old_len]);
            let file = bench.mount();
            file.write(0, &old).unwrap();
            if synced {
                file.sync(true).unwrap();
            }
            fault::longest(LONGEST);
            let what = format!("{name} of {old_len} bytes, synced: {synced}");
            let refused = grow(&file);
            assert!(matches!(refused, Err(FsError::Os(Errno::FBIG))), "{what}: {refused:?}");
            assert_eq!(file.size().unwrap(), old.len() as u64, "{what}");
            assert!(contents(&file) == old, "{what}");
            check_goes_on(&bench, &file, &old, &what);
            fault::clear();
        }
    }
}

fn check_goes_on(bench: &Bench, file: &FileIo, old: &[u8], what: &str) {
    file.sync(true).unwrap();
    file.truncate(5_000).unwrap();
    file.write(4_000, b"after").unwrap();
    file.sync(false).unwrap();
    file.seal().unwrap();
    let mut new = old.to_vec();
    new.resize(5_000, 0);
    new[4_000..4_005].copy_from_slice(b"after");
    assert!(contents(&bench.mount()) == new, "{what}");
}
