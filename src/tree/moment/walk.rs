//! The walker of a moment: copies everything that nobody is about to change.

use std::os::fd::{AsFd, OwnedFd};

use parking_lot::RwLock;
use rustix::fs::{Dir, FileType, OFlags};
use rustix::io::Errno;

use super::{Claim, Moment, NAMELESS};
use crate::format::dir::DIR_RECORD;
use crate::format::name::{self, Kind, TEMPORARY_PREFIX};
use crate::format::record::{VOLUME_RECORD, VOLUME_RECORD_COPY};
use crate::sys::at;

/// A directory that is being read.
struct Level {
    listing: Dir,
    fd: OwnedFd,
    inode: u64,
}

impl Level {
    fn open(inode: u64, fd: OwnedFd) -> Result<Self, Errno> {
        Ok(Self { listing: Dir::read_from(&fd)?, fd, inode })
    }
}

impl Moment {
    /// Copies all that is not copied yet below `root`. `names` is held for reading by whoever changes names.
    pub fn walk(&self, root: OwnedFd, names: &RwLock<()>) {
        let walked = Level::open(self.root_inode, root).and_then(|level| self.walk_from(level, names));
        self.guard("the tree", || walked);
        loop {
            let moved = self.state.lock().moved.pop();
            let Some((inode, fd)) = moved else { break };
            let walked = Level::open(inode, fd).and_then(|level| self.walk_from(level, names));
            self.guard("a directory that was moved", || walked);
        }
    }

    fn walk_from(&self, level: Level, names: &RwLock<()>) -> Result<(), Errno> {
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            if self.is_over() {
                return Ok(());
            }
            let Some(entry) = level.listing.next() else {
                levels.pop();
                continue;
            };
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !self.is_ours(level.inode, name) {
                continue;
            }
            let below = self.visit(level.inode, &level.fd, name, names)?;
            levels.extend(below);
        }
        Ok(())
    }

    /// What belongs to the volume; in the root also its records.
    fn is_ours(&self, dir_inode: u64, entry: &[u8]) -> bool {
        let is_record = [VOLUME_RECORD, VOLUME_RECORD_COPY].iter().any(|record| record.as_bytes() == entry);
        match name::classify(entry) {
            _ if matches!(entry, b"." | b"..") || entry == DIR_RECORD.as_bytes() => false,
            Kind::Short | Kind::LongEntry | Kind::Sidecar => true,
            Kind::Record => {
                dir_inode == self.root_inode && is_record && !entry.starts_with(TEMPORARY_PREFIX.as_bytes())
            }
            Kind::Foreign => false,
        }
    }

    fn visit(
        &self,
        dir_inode: u64,
        dir: &OwnedFd,
        name: &[u8],
        names: &RwLock<()>,
    ) -> Result<Option<Level>, Errno> {
        loop {
            let nobody_changes_names = names.write();
            let stat = match at::stat(dir, name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(e),
            };
            if stat.st_dev != self.device {
                return Ok(None);
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let fd = open_readable(dir, name, stat.st_mode)?;
                let new = self.enter(dir_inode, name, stat.st_ino, &fd)?;
                return if new { Level::open(stat.st_ino, fd).map(Some) } else { Ok(None) };
            }
            match self.claim(stat.st_ino) {
                Claim::Mine => {
                    // From here on whoever changes the file, or its name, waits for the copy.
                    drop(nobody_changes_names);
                    return self.copy_claimed(dir, dir_inode, name, &stat).map(|()| None);
                }
                Claim::Done => return self.link_copy(dir_inode, name, stat.st_ino).map(|()| None),
                Claim::Busy => {
                    drop(nobody_changes_names);
                    self.wait_while_busy(stat.st_ino);
                }
            }
        }
    }

    /// A further name of an inode whose copy is there.
    fn link_copy(&self, dir_inode: u64, name: &[u8], inode: u64) -> Result<(), Errno> {
        let place = {
            let state = self.state.lock();
            if state.late_names.contains(&(dir_inode, name.into())) {
                return Ok(());
            }
            let Some((from, entry)) = state.places.get(&inode) else { return Ok(()) };
            if *from == dir_inode && **entry == *name {
                return Ok(());
            }
            (*from, entry.clone())
        };
        let from = if place.0 == 0 {
            at::open_dir(&self.stage, NAMELESS.as_bytes())?
        } else {
            self.stage_dir(place.0)?
        };
        let to = self.stage_dir(dir_inode)?;
        match at::link_entry(&from, &place.1, &to, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A directory for reading, also where its mode denies that to its owner.
fn open_readable(dir: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match at::open(&dir, name, flags, 0) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let path = at::open_dir(&dir, name)?;
    at::set_mode(&path, (mode & 0o7777) | 0o500)?;
    let opened = at::reopen(&path, flags);
    at::set_mode(&path, mode & 0o7777)?;
    opened
}
