//! Write-back of the lower files, all the time and in no order: parts of them go to the disk long before the kernel
//! would write them, and their neighbours do not. Confined to the filesystem under test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::Advice;

use crate::bytes::Random;
use crate::ledger::Record;
use crate::{Load, Outcome};

/// Directories are entered so deep.
const DEPTH: usize = 4;
const PAGE: usize = 4096;
/// Most pages that are written at a time.
const PAGES_MAX: usize = 24;
/// Most milliseconds between two.
const REST: usize = 12;

pub struct WriteBack {
    lower: PathBuf,
}

impl WriteBack {
    pub fn new(lower: &Path) -> Self {
        Self { lower: lower.to_owned() }
    }

    /// Some regular file of the lower tree. Names come and go meanwhile.
    fn somewhere(&self, random: &mut Random) -> Option<File> {
        let mut dir = self.lower.clone();
        for _ in 0..DEPTH {
            let names: Vec<OsString> = fs::read_dir(&dir).ok()?.flatten().map(|e| e.file_name()).collect();
            let path = dir.join(names.get(random.below(names.len()))?);
            let kind = fs::symlink_metadata(&path).ok()?.file_type();
            if kind.is_file() {
                return File::open(path).ok();
            }
            if !kind.is_dir() {
                return None;
            }
            dir = path;
        }
        None
    }
}

impl Load for WriteBack {
    fn step(&mut self, random: &mut Random) -> Outcome<()> {
        sleep(Duration::from_millis(random.below(REST) as u64));
        let Some(file) = self.somewhere(random) else { return Ok(()) };
        let pages = file.metadata().map_or(0, |data| data.len() as usize).div_ceil(PAGE);
        let at = if random.once_in(3) { 0 } else { random.below(pages) };
        let count = 1 + random.below(PAGES_MAX);
        // What is not needed any longer is written first; nobody waits for it.
        let len = std::num::NonZeroU64::new((count * PAGE) as u64);
        let _ = rustix::fs::fadvise(&file, (at * PAGE) as u64, len, Advice::DontNeed);
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        Vec::new()
    }
}
