//! Which versions of master keys a lower tree is under, told by its headers and its record alone.
//!
//! Called before a version is destroyed. Takes no key and no key service; must never pass over a header that it cannot
//! read as if there were none.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::open::{open_lower, peek};
use super::report::{Census, Version};
use super::snapshot::finish_restore_first;
use super::walk::{self, Directory, Entry, Visitor};
use super::{VolumeError, lower_file};
use crate::format::header::Slots;
use crate::format::name::{Kind, classify};
use crate::tree::is_unfinished;

/// The versions that headers and the record of the volume in `lower` are under. [`Version::current`] is not told.
pub fn versions_in_use(lower: &Path, jobs: usize) -> Result<Vec<Version>, VolumeError> {
    let record = peek(lower)?;
    finish_restore_first(lower)?;
    if is_unfinished(open_lower(lower)?) {
        return Err(VolumeError::Unfinished(lower.to_owned()));
    }
    let look = Look::default();
    walk::walk(open_lower(lower)?, jobs, &look);
    if let Some((path, why)) = look.unread.into_inner() {
        return Err(VolumeError::Unread(lower.join(path), why));
    }
    let mut census = look.census.into_inner();
    let wrapped = &record.active().wrapped;
    census.count(&wrapped.key_arn, wrapped.material_id);
    Ok(census.versions(|_, _| false))
}

#[derive(Default)]
struct Look {
    census: Mutex<Census>,
    /// The first file that could not be read, and why; one is enough.
    unread: Mutex<Option<(std::path::PathBuf, String)>>,
    over: AtomicBool,
}

impl Look {
    fn give_up(&self, dir: &Directory, name: &CStr, why: String) {
        self.unread.lock().get_or_insert_with(|| (dir.path_of(name), why));
        self.over.store(true, Ordering::Relaxed);
    }

    fn examine(dir: &Directory, name: &CStr, census: &mut Census) -> Result<(), String> {
        let file = match lower_file::open(dir.fd(), name, OFlags::RDONLY) {
            // Removed or renamed meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|e| e.to_string())?,
        };
        let Some(bytes) = lower_file::read_slots(file.as_fd()).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let slots = Slots::parse(&bytes).map_err(|e| e.to_string())?;
        let wrapped = &slots.active().wrapped;
        census.count(&wrapped.key_arn, wrapped.material_id);
        Ok(())
    }
}

impl Visitor for Look {
    type Worker = Census;

    fn worker(&self) -> Census {
        Census::default()
    }

    fn directory(&self, _: &mut Census, _: &Arc<Directory>) {}

    fn entries(&self, census: &mut Census, dir: &Arc<Directory>, entries: &[Entry]) {
        for entry in entries {
            let is_file = matches!(classify(entry.name.to_bytes()), Kind::Short | Kind::LongEntry);
            if is_file
                && entry.kind == FileType::RegularFile
                && let Err(why) = Self::examine(dir, &entry.name, census)
            {
                self.give_up(dir, &entry.name, why);
            }
        }
    }

    fn descends(&self, _: &mut Census, _: &Arc<Directory>, name: &CStr) -> bool {
        matches!(classify(name.to_bytes()), Kind::Short | Kind::LongEntry)
    }

    fn unreadable(&self, _: &mut Census, dir: &Arc<Directory>, name: &CStr, error: Errno) {
        if error != Errno::NOENT {
            self.give_up(dir, name, error.to_string());
        }
    }

    fn finish(&self, census: Census) {
        self.census.lock().merge(census);
    }

    fn stopped(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
