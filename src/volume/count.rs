//! Counting the files of a volume, so that long work can say how much is left.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::report::Progress;
use super::walk::{self, Directory, Entry, Visitor};
use super::{Volume, VolumeError};
use crate::format::name::{Kind, classify};

/// Sets the total of `progress` to the number of regular files in the lower tree. Reads directories only.
pub fn count_files(volume: &Volume, jobs: usize, progress: &Progress) -> Result<(), VolumeError> {
    walk::walk(volume.root()?, jobs, &Count(progress));
    Ok(())
}

struct Count<'a>(&'a Progress);

impl Visitor for Count<'_> {
    type Worker = ();

    fn worker(&self) {}

    fn directory(&self, (): &mut (), _: &Arc<Directory>) {}

    fn entries(&self, (): &mut (), _: &Arc<Directory>, entries: &[Entry]) {
        let is_file = |entry: &&Entry| {
            entry.kind == FileType::RegularFile
                && matches!(classify(entry.name.to_bytes()), Kind::Short | Kind::LongEntry)
        };
        self.0.total.fetch_add(entries.iter().filter(is_file).count() as u64, Ordering::Relaxed);
    }

    fn descends(&self, (): &mut (), _: &Arc<Directory>, name: &CStr) -> bool {
        matches!(classify(name.to_bytes()), Kind::Short | Kind::LongEntry)
    }

    // The work itself meets the same trouble and reports it.
    fn unreadable(&self, (): &mut (), _: &Arc<Directory>, _: &CStr, _: Errno) {}

    fn finish(&self, (): ()) {}

    fn stopped(&self) -> bool {
        self.0.stopped()
    }
}
