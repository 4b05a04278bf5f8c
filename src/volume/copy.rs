//! A copy of a volume or a snapshot at another place: as it is, or with every wrap under another key.
//!
//! Called by `kmsfs copy`. Must never leave half a copy under the name that was asked for, nor a wrap under the old key in
//! a copy that is for another one.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, OFlags, fsync, renameat, unlinkat};
use rustix::io::Errno;

use super::lower_dir::{empty, prepare_lower, remove_lower, remove_tree};
use super::lower_file::{self, Written};
use super::open::{open_lower, unwrap_record};
use super::report::Progress;
use super::rewrap::{RewrapOptions, RewrapReport, rewrap};
use super::snapshot::{SNAPSHOT_RECORD, finish_restore_first, walk_offline};
use super::walk::{self, Directory, Entry, Visitor};
use super::{Epoch, KEY_ATTRIBUTE, Volume, VolumeError, key_error, plain_path, record_file};
use crate::client::{CacheLimits, Kms};
use crate::crypto::VolumeKey;
use crate::format::header::{SLOT_LEN, SLOT_OFFSETS, SlotWrite, Slots};
use crate::format::name::{Kind, classify};
use crate::format::{customer, xattr};
use crate::sys::at;
use crate::tree::{Moment, is_unfinished};

/// What the directory of an unfinished copy is called, after the name that was asked for.
const PARTIAL: &str = ".kmsfs-partial";

/// How to copy.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The key that the copy goes under; as it is without one.
    pub key: Option<String>,
    /// Threads of the rewrap.
    pub jobs: usize,
}

/// What was copied.
#[derive(Debug, serde::Serialize)]
pub struct CopyReport {
    /// Files.
    pub files: u64,
    /// Bytes that could not be shared.
    pub copied_bytes: u64,
    /// Headers that were moved, where a key was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrapped: Option<RewrapReport>,
}

/// Copies the lower tree `source`, which nobody changes, to `to`: empty, or made.
pub fn copy(
    source: &Path,
    to: &Path,
    kms: &Arc<Kms>,
    options: &CopyOptions,
    progress: &Progress,
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<CopyReport, VolumeError> {
    let io = |e: Errno| VolumeError::io("copy to", to, e);
    check_key(source, options.key.as_deref(), kms)?;
    finish_restore_first(source)?;
    if is_unfinished(open_lower(source)?) {
        return Err(VolumeError::Unfinished(source.to_owned()));
    }
    if std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(VolumeError::NotEmpty(to.to_owned()));
    }
    let partial = partial_path(to);
    prepare_lower(&partial)?;
    let stage = open_lower(&partial)?;
    // From a copy that was interrupted.
    empty(&stage).map_err(io)?;
    let made = lay_down(source, &stage, moment).map_err(io).and_then(|copied| {
        if let Some(e) = copied.failure() {
            return Err(VolumeError::io("copy to", to, e));
        }
        copied.assemble().map_err(io)?;
        let made = copied.stage_root().map_err(io)?;
        match unlinkat(&made, SNAPSHOT_RECORD, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(io(e)),
        }
        let rewrapped = options
            .key
            .as_ref()
            .map(|key| put_under(&partial.join(copied.root_name()), key, kms, options.jobs, progress));
        let (files, copied_bytes) = copied.progress();
        let report = CopyReport { files, copied_bytes, rewrapped: rewrapped.transpose()? };
        publish(&stage, &copied, &made, to).map_err(io)?;
        Ok(report)
    });
    let ended = remove_lower(&partial);
    made.and_then(|report| ended.map(|()| report))
}

fn partial_path(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(PARTIAL);
    to.with_file_name(name)
}

/// A copy under the same key would share its mark with the source: the one that is mounted less would be refused.
fn check_key(source: &Path, key: Option<&str>, kms: &Kms) -> Result<(), VolumeError> {
    let Some(key) = key else { return Ok(()) };
    let facts = kms.describe_key(key).map_err(|e| VolumeError::Key(key.to_owned(), key_error(&e)))?;
    let record = record_file::read(open_lower(source)?.as_fd(), source)?;
    if facts.arn == record.active().wrapped.key_arn {
        return Err(VolumeError::UnfitKey(
            key.to_owned(),
            "the source is under it already; leave out --key, or name another one".to_owned(),
        ));
    }
    Ok(kms.check_both(&record.active().wrapped.key_arn, &facts.arn)?)
}

fn lay_down(
    source: &Path,
    stage: &OwnedFd,
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<Arc<Moment>, Errno> {
    let as_errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    let root = walk::open_root(source).map_err(as_errno)?;
    let copied = Arc::new(Moment::new(&root, stage.try_clone().map_err(as_errno)?)?);
    *moment.lock() = Some(Arc::clone(&copied));
    walk_offline(&copied, &root)?;
    Ok(copied)
}

/// Gives the copy its name: whole and durable before.
fn publish(stage: &OwnedFd, copied: &Moment, made: &OwnedFd, to: &Path) -> Result<(), Errno> {
    at::sync_filesystem(made)?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY, rustix::fs::Mode::empty())?;
    let name = to.file_name().ok_or(Errno::INVAL)?;
    let own = copied.root_name();
    match renameat(stage, &*own, &parent, name) {
        // From one subvolume of btrfs to another it does not go: the partial one takes the name.
        Err(Errno::XDEV) => {
            for entry in rustix::fs::Dir::read_from(made)? {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    renameat(made, entry.file_name(), stage, entry.file_name())?;
                }
            }
            remove_tree(stage, own.as_bytes())?;
            renameat(&parent, partial_path(to).file_name().ok_or(Errno::INVAL)?, &parent, name)?;
        }
        other => other?,
    }
    fsync(&parent)
}

/// Moves every wrap of the copy under `key` and takes away all others.
fn put_under(
    lower: &Path,
    key: &str,
    kms: &Arc<Kms>,
    jobs: usize,
    progress: &Progress,
) -> Result<RewrapReport, VolumeError> {
    let volume = Volume::open(lower, Arc::clone(kms), CacheLimits::default())?;
    let options =
        RewrapOptions { to_key: Some(key.to_owned()), jobs, is_copy: true, ..RewrapOptions::default() };
    let report = rewrap(&volume, &options, progress, || false)?;
    if !report.is_complete() {
        let first = report.failures.first().map(|failure| failure.why.clone());
        let why = report.ended_early.clone().or(first).unwrap_or_else(|| "not every header".to_owned());
        return Err(VolumeError::io("put under another key", lower, std::io::Error::other(why)));
    }
    purge_all(&volume, jobs, true)?;
    keep_one_key(&volume)?;
    Epoch::begin_copy(&volume)?;
    Ok(report)
}

/// The record of the copy names the new key, and the customer keys, which no service could have moved.
fn keep_one_key(volume: &Volume) -> Result<(), VolumeError> {
    let (root, lower) = (volume.root()?, volume.path());
    let mut record = record_file::read(root.as_fd(), lower)?;
    let wrapped = record.active().wrapped.clone();
    let decrypted = unwrap_record(volume.keys.kms(), &record)?;
    let failed = |e| VolumeError::Record(lower.to_owned(), e);
    let (volume_key, mut settings) = record.open(&decrypted.data_key).map_err(failed)?;
    settings.keys.retain(|key| customer::is_customer(key));
    settings.keys.insert(0, wrapped.key_arn.clone());
    settings.default_key = wrapped.key_arn;
    record.reseal(&decrypted.data_key, &volume_key, &settings).map_err(failed)?;
    record.forget_other();
    record_file::write(root.as_fd(), lower, &record)
}

/// Takes away the wraps that do not count any more from every header, once those that do are durable. Returns how many.
pub fn purge(volume: &Volume, jobs: usize) -> Result<u64, VolumeError> {
    purge_all(volume, jobs, false)
}

/// The same; with `choices` also what directories chose, unless it is a customer key: the copy's record will not name it.
fn purge_all(volume: &Volume, jobs: usize, choices: bool) -> Result<u64, VolumeError> {
    let root = volume.root()?;
    at::sync_filesystem(&root).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
    let choices_of = choices.then(|| Arc::clone(&volume.key));
    let purge = Purge { failed: Mutex::new(None), purged: 0.into(), choices_of };
    walk::walk(volume.root()?, jobs, &purge);
    at::sync_filesystem(&root).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
    match purge.failed.into_inner() {
        Some((path, e)) => Err(VolumeError::io("purge", &volume.path().join(path), e)),
        None => Ok(purge.purged.into_inner()),
    }
}

struct Purge {
    failed: Mutex<Option<(PathBuf, Errno)>>,
    purged: std::sync::atomic::AtomicU64,
    /// The volume's key, where choices of directories go, too.
    choices_of: Option<Arc<VolumeKey>>,
}

impl Purge {
    fn one(&self, dir: &Directory, name: &CStr) -> Result<(), Errno> {
        let file = lower_file::open(dir.fd(), name, OFlags::RDWR)?;
        let Some(bytes) = lower_file::read_slots(file.as_fd())? else { return Ok(()) };
        // What does not parse is no slot that counts: the check tells of it.
        let Ok(slots) = Slots::parse(&bytes) else { return Ok(()) };
        let at = SLOT_OFFSETS[1 - slots.active_index()];
        if bytes[at..at + SLOT_LEN].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let blank = [SlotWrite { offset: at, bytes: [0; SLOT_LEN] }];
        match lower_file::write_slots(file.as_fd(), &bytes, &blank)? {
            Written::Yes => {
                self.purged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
            Written::Changed => Err(Errno::BUSY),
        }
    }

    fn forget_choice(&self, dir: &Directory) -> Result<(), Errno> {
        let Some(key) = &self.choices_of else { return Ok(()) };
        let Some(name) = xattr::lower_name(key, xattr::PREFIX, KEY_ATTRIBUTE.as_bytes()) else {
            return Ok(());
        };
        let sealed = match at::xattr(dir.fd(), name.as_bytes()) {
            Ok(sealed) => sealed,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
            Err(e) => return Err(e),
        };
        let chosen = plain_path::dir_id(key, dir).and_then(|id| {
            xattr::open_value(&key.dir_key(&id).xattr, &id, KEY_ATTRIBUTE.as_bytes(), &sealed).ok()
        });
        // What does not open is damage, which the check tells of.
        let Some(chosen) = chosen else { return Ok(()) };
        if std::str::from_utf8(&chosen).is_ok_and(customer::is_customer) {
            return Ok(());
        }
        at::remove_xattr(dir.fd(), name.as_bytes())
    }

    fn fail(&self, dir: &Directory, name: &CStr, e: Errno) {
        self.failed.lock().get_or_insert_with(|| (dir.path_of(name), e));
    }
}

impl Visitor for Purge {
    type Worker = ();

    fn worker(&self) {}

    fn directory(&self, (): &mut (), dir: &Arc<Directory>) {
        if let Err(e) = self.forget_choice(dir) {
            self.fail(dir, c"", e);
        }
    }

    fn entries(&self, (): &mut (), dir: &Arc<Directory>, entries: &[Entry]) {
        for entry in entries {
            let ours = matches!(classify(entry.name.to_bytes()), Kind::Short | Kind::LongEntry);
            if !ours || entry.kind != FileType::RegularFile {
                continue;
            }
            match self.one(dir, &entry.name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => self.fail(dir, &entry.name, e),
            }
        }
    }

    fn descends(&self, (): &mut (), _: &Arc<Directory>, name: &CStr) -> bool {
        matches!(classify(name.to_bytes()), Kind::Short | Kind::LongEntry)
    }

    fn unreadable(&self, (): &mut (), dir: &Arc<Directory>, name: &CStr, error: Errno) {
        self.fail(dir, name, error);
    }

    fn finish(&self, (): ()) {}

    fn stopped(&self) -> bool {
        self.failed.lock().is_some()
    }
}
