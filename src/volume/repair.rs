//! Putting right what the check found: from what is stored twice, or else out of the way into a quarantine.
//!
//! Called by `check` on a tree that nobody has mounted. Must never delete anything of the lower tree, and never
//! replace what still serves.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, RenameFlags, mkdirat, openat, readlinkat, renameat_with, symlinkat};
use rustix::io::{Errno, pwrite};
use serde_json::json;

use super::check::Class;
use super::walk::Directory;
use super::{Volume, VolumeError, lower_file, plain_path, record_file};
use crate::crypto::{VolumeKey, random_array};
use crate::format::dir::{self, DIR_RECORD, DIR_RECORD_COPY};
use crate::format::header::Slots;
use crate::format::name;
use crate::sys::at;
use crate::tree::file::{FileContext, FileIo};

/// In the lower root; holds a directory for each repair that moved something.
pub const QUARANTINE: &str = ".kmsfs.quarantine";
/// One line of JSON for each thing moved, in the repair's directory.
const LIST: &str = "list.jsonl";

/// What can be done about one finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended(pub String);

/// One repair of a volume.
pub struct Repair<'a> {
    volume: &'a Volume,
    root: OwnedFd,
    files: Arc<FileContext>,
    quarantine: Mutex<Option<Quarantine>>,
}

/// Where this repair moves things.
struct Quarantine {
    dir: OwnedFd,
    list: File,
    path: PathBuf,
    moved: u64,
}

impl<'a> Repair<'a> {
    /// The caller holds the volume exclusively.
    pub fn new(volume: &'a Volume, files: Arc<FileContext>) -> Result<Self, VolumeError> {
        Ok(Self { volume, root: volume.root()?, files, quarantine: Mutex::new(None) })
    }

    /// Restores a volume record from its copy, or the copy from the record.
    pub fn volume_records(&self) -> Option<Mended> {
        let root = self.root.as_fd();
        let record = record_file::read(root, self.volume.path()).ok()?;
        let written = record_file::write(root, self.volume.path(), &record);
        told(written, "the record and its copy are written anew")
    }

    /// Does what can be done about the entry `name` of `dir`.
    pub fn mend(
        &self,
        class: Class,
        dir: &Directory,
        name: &CStr,
        plain: Option<&Path>,
        why: &str,
    ) -> Option<Mended> {
        match class {
            Class::Name | Class::Sidecar | Class::Link | Class::Leftover | Class::Header => {
                self.move_away(class, dir, name, plain, why)
            }
            Class::DirectoryRecord => self.directory_record(dir, plain),
            Class::TornHeader => mend_header(dir, name),
            Class::Key => self.other_slot(dir, name),
            Class::Data => self.surplus(dir, name),
            Class::VolumeRecord
            | Class::Attribute
            | Class::Unreadable
            | Class::Foreign
            | Class::DuplicateId => None,
        }
    }

    fn move_away(
        &self,
        class: Class,
        dir: &Directory,
        name: &CStr,
        plain: Option<&Path>,
        why: &str,
    ) -> Option<Mended> {
        let lower = dir.path_of(name);
        let sidecar = sidecar_beside(dir.fd(), name);
        let note = |to: &Path| {
            json!({
                "class": class, "lower_path": lower, "path": plain, "why": why, "moved_to": to.join(file_name(name)),
                "sidecar_moved_to": sidecar.as_deref().map(|sidecar| to.join(file_name(sidecar))),
            })
        };
        let names: Vec<&CStr> = sidecar.as_deref().into_iter().chain([name]).collect();
        match self.quarantine(dir.fd(), &names, note) {
            Ok(to) => Some(Mended(format!("moved to {}", to.display()))),
            Err(e) => {
                log::warn!("{} cannot be moved to the quarantine: {e}", lower.display());
                None
            }
        }
    }

    /// Moves an entry out of the tree, behind its sidecar if it has one, and notes it first: what is moved is always on the
    /// list. Gives where the entry is, the last of `names`.
    fn quarantine(
        &self,
        dir: BorrowedFd<'_>,
        names: &[&CStr],
        note: impl FnOnce(&Path) -> serde_json::Value,
    ) -> io::Result<PathBuf> {
        let mut slot = self.quarantine.lock();
        if slot.is_none() {
            *slot = Some(Quarantine::make(&self.root)?);
        }
        let Some(place) = slot.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        place.moved += 1;
        let number = place.moved.to_string();
        mkdirat(&place.dir, &*number, Mode::RWXU)?;
        let to = place.path.join(&number);
        let mut line = serde_json::to_vec(&note(&to))?;
        line.push(b'\n');
        place.list.write_all(&line)?;
        let into = at::open_dir(&place.dir, number.as_bytes())?;
        for (moved, name) in names.iter().enumerate() {
            let outcome = renameat_with(dir, *name, &into, *name, RenameFlags::NOREPLACE);
            if let Err(e) = outcome {
                for name in &names[..moved] {
                    let _ = renameat_with(&into, *name, dir, *name, RenameFlags::NOREPLACE);
                }
                return Err(e.into());
            }
        }
        Ok(names.last().map_or_else(|| to.clone(), |name| to.join(file_name(name))))
    }

    /// Puts the copy in the place of a record that is lost or forged.
    fn directory_record(&self, dir: &Directory, plain: Option<&Path>) -> Option<Mended> {
        let copy = at::xattr(dir.fd(), DIR_RECORD_COPY.as_bytes()).ok()?;
        let place = plain_path::dir_place(&self.volume.key, dir).ok()?;
        dir::open(&self.volume.key, &copy, place.as_ref()).ok()?;
        let name = CString::new(DIR_RECORD).ok()?;
        if readlinkat(dir.fd(), &*name, Vec::new()).is_ok() {
            self.move_away(Class::DirectoryRecord, dir, &name, plain, "it is not of this volume")?;
        }
        told(symlinkat(&*copy, dir.fd(), DIR_RECORD), "restored from its copy")
    }

    /// A wrapped key that does not open gives way to the other slot's, if that one does.
    fn other_slot(&self, dir: &Directory, name: &CStr) -> Option<Mended> {
        let file = lower_file::open(dir.fd(), name, OFlags::RDWR).ok()?;
        let bytes = lower_file::read_slots(file.as_fd()).ok()??;
        let swapped = Slots::parse(&bytes).ok()?.with_other_slot().ok()??;
        // Only what opens the file replaces what does not.
        write_back(&file, &swapped).ok()?;
        let io = self.file(file.try_clone().ok()?, dir, name);
        if io.ensure_keys().is_ok() {
            return Some(Mended("the other key slot opens it and counts now".to_owned()));
        }
        if let Err(e) = write_back(&file, &bytes) {
            log::error!("{}: its key slots could not be put back: {e}", dir.path_of(name).display());
        }
        None
    }

    fn file(&self, fd: OwnedFd, dir: &Directory, name: &CStr) -> Arc<FileIo> {
        let place = plain_path::place(&self.volume.key, dir, name).ok().flatten();
        FileIo::new(fd, Arc::clone(&self.files), place)
    }

    /// Cuts off what was added behind the end of a file that was closed.
    fn surplus(&self, dir: &Directory, name: &CStr) -> Option<Mended> {
        let file = lower_file::open(dir.fd(), name, OFlags::RDWR).ok()?;
        let io = self.file(file, dir, name);
        let cut = io.cut_surplus().ok()?;
        (cut > 0 && io.verify().is_ok_and(|found| found.problems.is_empty()))
            .then(|| Mended(format!("{cut} bytes behind its end were cut off")))
    }
}

/// Opens what holds the repairs' directories. What is no directory, such as a link that leads out of the volume, was
/// planted there and is moved aside.
fn open_outer(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    let make = || match mkdirat(root, QUARANTINE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => at::open_dir(root, QUARANTINE.as_bytes()),
        Err(e) => Err(e),
    };
    match make() {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let aside = name::foreign(random_array());
            log::warn!("{QUARANTINE} is not a directory; it was not put there by kmsfs and is now {aside}");
            renameat_with(root, QUARANTINE, root, &*aside, RenameFlags::NOREPLACE)?;
            make()
        }
        made => made,
    }
}

/// A lower name as a part of a path; lower names of ours are plain text.
fn file_name(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// The sidecar of a long entry, where there is one.
fn sidecar_beside(dir: BorrowedFd<'_>, entry: &CStr) -> Option<CString> {
    let sidecar = CString::new(name::sidecar_of(entry.to_str().ok()?)?).ok()?;
    at::stat(dir, sidecar.to_bytes()).ok().map(|_| sidecar)
}

impl Quarantine {
    fn make(root: &OwnedFd) -> io::Result<Self> {
        let outer = open_outer(root)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let free = (0..u32::MAX).map(|n| if n == 0 { now.to_string() } else { format!("{now}.{n}") });
        for name in free {
            match mkdirat(&outer, &*name, Mode::RWXU) {
                Ok(()) => {
                    let dir = at::open_dir(&outer, name.as_bytes())?;
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let list = File::from(openat(&dir, LIST, flags, Mode::RUSR | Mode::WUSR)?);
                    return Ok(Self { dir, list, path: Path::new(QUARANTINE).join(name), moved: 0 });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Gives a directory that opens a record and a copy for its place: directories of older versions have no copy, and a
/// rename cut short leaves one of the two behind.
pub fn keep_copy(key: &VolumeKey, dir: &Directory) {
    let (Some(id), Ok(place)) = (plain_path::dir_id(key, dir), plain_path::dir_place(key, dir)) else {
        return;
    };
    let (copy_name, record) = (DIR_RECORD_COPY.as_bytes(), dir::seal(key, &id, place.as_ref()));
    if !at::xattr(dir.fd(), copy_name).is_ok_and(|copy| copy == record.as_bytes()) {
        let kept = at::set_xattr(dir.fd(), copy_name, record.as_bytes(), rustix::fs::XattrFlags::empty());
        kept.unwrap_or_else(|e| log::debug!("a directory record has no copy: {e}"));
    }
    if !readlinkat(dir.fd(), DIR_RECORD, Vec::new())
        .is_ok_and(|target| target.as_bytes() == record.as_bytes())
        && let Err(e) = replace_record(dir, &record)
    {
        log::warn!("a directory record could not be written anew: {e}");
    }
}

fn replace_record(dir: &Directory, record: &str) -> Result<(), Errno> {
    let temporary = name::temporary(random_array());
    symlinkat(record, dir.fd(), &*temporary)?;
    rustix::fs::renameat(dir.fd(), &*temporary, dir.fd(), DIR_RECORD)
}

/// Writes superblock and slots that are torn anew from those that are whole.
fn mend_header(dir: &Directory, name: &CStr) -> Option<Mended> {
    let file = lower_file::open(dir.fd(), name, OFlags::RDWR).ok()?;
    let bytes = lower_file::read_slots(file.as_fd()).ok()??;
    let (mended, _) = Slots::mended(&bytes).ok()??;
    told(write_back(&file, &mended), "written anew from the part that is whole")
}

fn write_back(file: &OwnedFd, bytes: &lower_file::SlotBytes) -> Result<(), Errno> {
    if pwrite(file, bytes, 0)? != bytes.len() {
        return Err(Errno::IO);
    }
    rustix::fs::fdatasync(file)
}

fn told<E: std::fmt::Display>(outcome: Result<(), E>, how: &str) -> Option<Mended> {
    match outcome {
        Ok(()) => Some(Mended(how.to_owned())),
        Err(e) => {
            log::warn!("a repair failed: {e}");
            None
        }
    }
}
