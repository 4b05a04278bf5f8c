//! The check (fsck): records, names, headers, keys, data. Read-only, unless it is to repair.
//!
//! Called by the command line. Without the volume's key it looks at structure alone. Must never delete or hide what it
//! does not know, and writes through `repair` alone.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, readlinkat, statat};
use rustix::io::Errno;
use serde::Serialize;

use super::check_attributes;
use super::check_file::{self, Depth, Sound};
use super::epoch::{EPOCH_FILE, Epoch};
use super::plain_path::{self, NameTrouble};
use super::record_file::{ChangeLock, LOCK_FILE};
use super::repair::{self, Mended, QUARANTINE, Repair};
use super::report::{MAX_LISTED, Progress};
use super::snapshot::{RESTORE_NOTE, SNAPSHOT_RECORD, SNAPSHOTS, finish_restore_first};
use super::stream::POSITION_PREFIX;
use super::walk::{self, Directory, Entry, Visitor};
use super::{MountLock, Volume, VolumeError, record_file};
use crate::crypto::{DirKey, VolumeKey};
use crate::format::FileId;
use crate::format::dir::{self, DIR_RECORD};
use crate::format::link;
use crate::format::name::{self, Kind, TEMPORARY_PREFIX, classify};
use crate::format::record::{VOLUME_RECORD, VOLUME_RECORD_COPY};
use crate::tree::file::{Durability, FileContext, Integrity, LOG_NAME, LastEnd};
use crate::tree::holds_nothing;
use crate::tree::{RENEWALS, is_unfinished};

/// What may lie in the lower directory itself.
const OF_ROOT: [&str; 9] = [
    VOLUME_RECORD,
    VOLUME_RECORD_COPY,
    LOCK_FILE,
    EPOCH_FILE,
    RENEWALS,
    QUARANTINE,
    SNAPSHOTS,
    SNAPSHOT_RECORD,
    RESTORE_NOTE,
];

/// Files whose identities are compared with each other: 128 MiB of memory.
const IDS_MAX: usize = 4_000_000;

/// How to check.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Threads.
    pub jobs: usize,
    /// Whether to read and verify all data, as opposed to headers, names and records only.
    pub data: bool,
    /// Whether to put right what can be; needs the volume and nobody else who uses it.
    pub repair: bool,
}

/// What kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The volume record or its copy.
    VolumeRecord,
    /// A directory record.
    DirectoryRecord,
    /// An entry's name does not open.
    Name,
    /// A long name's sidecar is missing or of another entry.
    Sidecar,
    /// A file's superblock or key slots: it does not open.
    Header,
    /// One of two superblocks or slots is torn, as a rewrap cut short leaves it; the other serves.
    TornHeader,
    /// A file's data key cannot be had.
    Key,
    /// A file's data, tags, seal or length.
    Data,
    /// Another file has the same identity: one is a copy that was made in the lower tree.
    DuplicateId,
    /// A symbolic link's target does not open.
    Link,
    /// The name or value of an extended attribute does not open.
    Attribute,
    /// Could not be read.
    Unreadable,
    /// A sidecar without an entry, or a temporary name: left by a crash, harmless.
    Leftover,
    /// Not ours.
    Foreign,
}

impl Class {
    /// Whether data or names are affected, as opposed to a remark.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::TornHeader | Self::Leftover | Self::Foreign)
    }
}

/// One thing found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What kind.
    pub class: Class,
    /// Whether it is an error, as opposed to a remark.
    pub error: bool,
    /// Lower path, relative to the lower directory.
    pub lower_path: PathBuf,
    /// Plaintext path, where the key is there and the names open.
    pub path: Option<PathBuf>,
    /// What exactly.
    pub why: String,
    /// What was done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<String>,
}

/// The outcome of a check.
#[allow(clippy::struct_excessive_bools, reason = "independent facts of the JSON report")]
#[derive(Debug, Default, Serialize)]
pub struct CheckReport {
    /// Whether keys were used; without them only structure was checked.
    pub with_key: bool,
    /// Whether data was read and verified.
    pub with_data: bool,
    /// Directories seen.
    pub directories: u64,
    /// Regular files seen.
    pub files: u64,
    /// Symbolic links seen.
    pub links: u64,
    /// Special files seen.
    pub specials: u64,
    /// Plaintext bytes of the files.
    pub bytes: u64,
    /// Errors found.
    pub errors: u64,
    /// Of these, how many were put right.
    pub errors_repaired: u64,
    /// Remarks made.
    pub remarks: u64,
    /// Of these, how many were put right.
    pub remarks_repaired: u64,
    /// Bytes of data that were read and verified.
    pub verified_bytes: u64,
    /// Whether a mount used the tree at the same time.
    pub live: bool,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// Whether the check was ended early.
    pub ended_early: bool,
}

/// Checks the lower tree at `lower`; with `volume`, names, keys and data too.
pub fn check(
    lower: &Path,
    volume: Option<&Volume>,
    options: &CheckOptions,
    progress: &Progress,
) -> Result<CheckReport, VolumeError> {
    let root = super::open::open_lower(lower)?;
    // Held until the end, so that no mount begins meanwhile; one that is there already makes the check a live one.
    let lock = MountLock::take(lower);
    let live = lock.is_err();
    let repairs = volume.filter(|_| options.repair);
    let _changes = repairs.map(|_| ChangeLock::take(root.as_fd(), lower)).transpose()?;
    let _lock = if repairs.is_some() { Ok(lock?) } else { lock };
    if !live {
        // Part of the tree lies elsewhere.
        finish_restore_first(lower)?;
    }
    match volume {
        _ if live => {}
        Some(volume) if options.repair => volume.finish_reencryption()?,
        _ if is_unfinished(&root) => return Err(VolumeError::Unfinished(lower.to_owned())),
        _ => {}
    }
    let (context, epoch) = volume.map(|v| files_of(v, repairs.is_some())).transpose()?.unzip();
    let repair =
        repairs.zip(context.clone()).map(|(volume, files)| Repair::new(volume, files)).transpose()?;
    let key = volume.map(|volume| Arc::clone(&volume.key));
    let depth = Depth { context: context.clone(), key, data: options.data, live, writable: repair.is_some() };
    let work = Check { volume, depth, repair, progress, report: Mutex::default(), ids: Mutex::default() };
    let mut worker = CheckReport::default();
    for name in [VOLUME_RECORD, VOLUME_RECORD_COPY] {
        if let Err(e) = record_file::read_one(root.as_fd(), lower, name) {
            let why = match e {
                VolumeError::NotAVolume(_) => "it is missing".to_owned(),
                other => other.in_short(),
            };
            let repaired = work.repair.as_ref().and_then(Repair::volume_records);
            worker.add(Class::VolumeRecord, PathBuf::from(name), None, why, repaired);
        }
    }
    walk::walk(root, options.jobs, &work);
    if let Some(log) = context.as_ref().and_then(|c| c.log.as_ref()).filter(|_| work.repair.is_some()) {
        if work.report.lock().errors == 0 && !progress.stopped() {
            log.settle_old();
        }
        log.close();
        epoch.flatten().filter(|_| log.ended_well()).inspect(Epoch::end);
    }
    let mut report = work.report.into_inner();
    worker.merge(report);
    report = worker;
    report.findings.sort_by(|a, b| a.lower_path.cmp(&b.lower_path));
    (report.with_key, report.with_data) = (volume.is_some(), volume.is_some() && options.data);
    (report.live, report.ended_early) = (live, progress.stopped());
    Ok(report)
}

/// What files are opened with. A repair opens them for writing, as a mount does: those that a crash left open are
/// recovered by the log, and the epoch is odd meanwhile.
fn files_of(volume: &Volume, repairs: bool) -> Result<(Arc<FileContext>, Option<Epoch>), VolumeError> {
    let epoch = Epoch::check(volume, false).ok();
    let last = epoch.as_ref().map_or(LastEnd::Unknown, Epoch::last);
    let epoch = epoch.filter(|_| repairs);
    epoch.as_ref().map(Epoch::begin).transpose()?;
    let durability = repairs.then_some(Durability::Strict);
    let files = volume.file_context(durability, Integrity::default(), last, volume.keys.clone())?;
    Ok((Arc::new(files), epoch))
}

struct Check<'a> {
    volume: Option<&'a Volume>,
    depth: Depth,
    repair: Option<Repair<'a>>,
    progress: &'a Progress,
    report: Mutex<CheckReport>,
    /// Files seen: the first half of the id, and the inode.
    ids: Mutex<HashMap<u64, u64>>,
}

impl CheckReport {
    fn add(
        &mut self,
        class: Class,
        lower_path: PathBuf,
        path: Option<PathBuf>,
        why: String,
        repaired: Option<Mended>,
    ) {
        let (found, mended) = if class.is_error() {
            (&mut self.errors, &mut self.errors_repaired)
        } else {
            (&mut self.remarks, &mut self.remarks_repaired)
        };
        *found += 1;
        *mended += u64::from(repaired.is_some());
        if self.findings.len() < MAX_LISTED {
            let repaired = repaired.map(|Mended(how)| how);
            self.findings.push(Finding { class, error: class.is_error(), lower_path, path, why, repaired });
        }
    }

    fn merge(&mut self, other: Self) {
        self.directories += other.directories;
        self.files += other.files;
        self.links += other.links;
        self.specials += other.specials;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.remarks += other.remarks;
        self.errors_repaired += other.errors_repaired;
        self.remarks_repaired += other.remarks_repaired;
        self.verified_bytes += other.verified_bytes;
        self.findings.extend(other.findings);
        self.findings.truncate(MAX_LISTED);
    }
}

impl Check<'_> {
    /// Notes a finding after doing what can be done about it.
    fn add(
        &self,
        report: &mut CheckReport,
        class: Class,
        dir: &Directory,
        name: &CStr,
        why: impl Into<String>,
    ) {
        let why = why.into();
        let path = self.plain_path(dir, name);
        let mend = |repair: &Repair<'_>| repair.mend(class, dir, name, path.as_deref(), &why);
        let repaired = self.repair.as_ref().and_then(mend);
        report.add(class, dir.path_of(name), path, why, repaired);
    }

    /// What a finding is about in the mount: the record of a directory has no name there, and stands for the directory.
    fn plain_path(&self, dir: &Directory, name: &CStr) -> Option<PathBuf> {
        let key = &self.volume?.key;
        if name.to_bytes() == DIR_RECORD.as_bytes() {
            return plain_path::of_dir(key, dir);
        }
        plain_path::of(key, dir, name)
    }

    fn dir_key(&self, dir: &Directory) -> Option<DirKey> {
        plain_path::dir_key(&self.volume?.key, dir)
    }

    /// Whether the entry has a name that opens; one that has not may be gone to the quarantine.
    fn check_name(
        &self,
        report: &mut CheckReport,
        key: Option<&DirKey>,
        dir: &Directory,
        name: &CStr,
    ) -> bool {
        let outcome = match key {
            Some(key) => plain_path::plain_name(key, dir, name).map(|_| ()),
            None if classify(name.to_bytes()) == Kind::LongEntry => {
                plain_path::sidecar_target(dir, name).map(|_| ())
            }
            None => Ok(()),
        };
        if let Err(trouble) = outcome {
            let class = match trouble {
                NameTrouble::Forged => Class::Name,
                NameTrouble::Sidecar(_) => Class::Sidecar,
                NameTrouble::Unreadable(_) => Class::Unreadable,
            };
            self.add(report, class, dir, name, trouble.to_string());
            return self.repair.is_none();
        }
        true
    }

    fn check_record(&self, report: &mut CheckReport, dir: &Directory, name: &CStr) {
        let ours = name.to_bytes();
        let known = dir.parent().is_none() && is_known_in_root(ours);
        if ours.starts_with(TEMPORARY_PREFIX.as_bytes()) {
            self.add(
                report,
                Class::Leftover,
                dir,
                name,
                "a temporary name, left by a crash or in use by a mount",
            );
        } else if !known && ours != DIR_RECORD.as_bytes() {
            self.add(report, Class::Foreign, dir, name, "a reserved name that this version does not know");
        }
    }

    fn check_sidecar(&self, report: &mut CheckReport, dir: &Directory, name: &CStr) {
        let entry = name.to_str().ok().and_then(name::entry_of_sidecar);
        let gone =
            |name: &[u8]| matches!(statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        let alone = entry.is_none_or(|entry| gone(entry.as_bytes()));
        // Its entry may have gone to the quarantine, and it with that.
        if alone && !gone(name.to_bytes()) {
            self.add(report, Class::Leftover, dir, name, "the sidecar of a long name without its entry");
        }
    }

    fn check_file(&self, report: &mut CheckReport, dir: &Arc<Directory>, name: &CStr) {
        report.files += 1;
        if let Some(torn) = check_file::torn(dir.fd(), name) {
            let why = format!("{torn} is torn; the other serves");
            self.add(report, Class::TornHeader, dir, name, why);
        }
        let place = self.volume.and_then(|volume| plain_path::place(&volume.key, dir, name).ok()).flatten();
        match check_file::check_file(dir.fd(), name, place, &self.depth) {
            Ok(Sound { size, verified, identity }) => {
                report.bytes += size;
                report.verified_bytes += verified;
                if let Some(why) = identity.and_then(|identity| self.twin(identity)) {
                    self.add(report, Class::DuplicateId, dir, name, why);
                }
            }
            // Removed or renamed meanwhile, by a live mount.
            Err((Class::Unreadable, why)) if self.depth.live && why == Errno::NOENT.to_string() => {}
            Err((class, why)) => self.add(report, class, dir, name, why),
        }
        self.progress.done.fetch_add(1, Ordering::Relaxed);
    }

    /// What is wrong where another inode has the identity of this one. Two hard links are one inode.
    fn twin(&self, (id, inode): (FileId, u64)) -> Option<String> {
        let half = u64::from_le_bytes(*id.0.first_chunk().expect("half of the id"));
        let mut ids = self.ids.lock();
        match ids.get(&half) {
            Some(other) if *other != inode => Some(format!(
                "it has the identity of another file, inode {other} of the lower tree: one is a copy of the other, \
                 and blocks of both can trade places; copy the data in the mount and remove the copy there"
            )),
            None if ids.len() < IDS_MAX => ids.insert(half, inode).and(None),
            Some(_) | None => None,
        }
    }

    fn check_link(&self, report: &mut CheckReport, dir: &Directory, name: &CStr) {
        report.links += 1;
        let Some(volume) = self.volume else { return };
        match readlinkat(dir.fd(), name, Vec::new()) {
            Ok(target) if link_opens(&volume.key, dir, name, target.as_bytes()) => {
                self.check_attributes_of_special(report, dir, name);
            }
            Ok(_) => {
                self.add(report, Class::Link, dir, name, "the link's target is damaged or of another volume");
            }
            Err(e) => self.add(report, Class::Unreadable, dir, name, e.to_string()),
        }
    }

    fn check_special(&self, report: &mut CheckReport, dir: &Directory, name: &CStr) {
        report.specials += 1;
        self.check_attributes_of_special(report, dir, name);
    }

    fn check_attributes_of_special(&self, report: &mut CheckReport, dir: &Directory, name: &CStr) {
        let Some(volume) = self.volume.filter(|_| self.depth.data) else { return };
        if let Some(why) = check_attributes::trouble_of_special(dir.fd(), name, &volume.key) {
            self.add(report, Class::Attribute, dir, name, why);
        }
    }

    fn check_attributes_of(&self, report: &mut CheckReport, dir: &Directory) {
        let Some(volume) = self.volume.filter(|_| self.depth.data) else { return };
        let (Some(keys), Some(id)) = (self.dir_key(dir), plain_path::dir_id(&volume.key, dir)) else {
            return;
        };
        if let Some(why) = check_attributes::trouble(dir.fd(), &volume.key, &keys.xattr, &id) {
            match dir.parent() {
                Some((parent, name)) => self.add(report, Class::Attribute, parent, name, why),
                None => self.add(report, Class::Attribute, dir, c".", why),
            }
        }
    }

    fn check_directory_record(&self, report: &mut CheckReport, dir: &Directory) {
        let c_name = CString::new(DIR_RECORD).expect("a constant without NUL");
        let why = match readlinkat(dir.fd(), DIR_RECORD, Vec::new()) {
            Ok(target) => {
                let Some(volume) = self.volume else { return };
                if plain_path::dir_id(&volume.key, dir).is_some() {
                    if self.repair.is_some() {
                        repair::keep_copy(&volume.key, dir);
                    }
                    return;
                }
                // Below a record that does not open, where names are bound, no place is known.
                let Ok(place) = plain_path::dir_place(&volume.key, dir) else { return };
                match dir::open(&volume.key, target.as_bytes(), place.as_ref()) {
                    Err(dir::DirRecordError::Newer(v)) => {
                        format!("it needs format version {v}; upgrade kmsfs")
                    }
                    _ if place.is_some() => "it is damaged, or of another volume or place".to_owned(),
                    _ => "it is damaged or of another volume".to_owned(),
                }
            }
            Err(Errno::NOENT) if holds_nothing(dir.fd()).unwrap_or(false) => {
                let why =
                    "it is missing, as after a removal cut short; the directory is empty and gets a new one";
                let path = self.plain_path(dir, &c_name);
                return report.add(Class::Leftover, dir.path_of(&c_name), path, why.to_owned(), None);
            }
            Err(Errno::NOENT) => "it is missing: the names below cannot be read".to_owned(),
            Err(e) => e.to_string(),
        };
        self.add(report, Class::DirectoryRecord, dir, &c_name, why);
    }
}

/// Whether a name of ours may lie in the lower directory itself.
fn is_known_in_root(name: &[u8]) -> bool {
    let begins = |beginning: &str| name.starts_with(beginning.as_bytes());
    OF_ROOT.iter().any(|known| known.as_bytes() == name) || begins(LOG_NAME) || begins(POSITION_PREFIX)
}

/// Whether the target of the link `name` opens there. Where the directory's record does not open that is the trouble.
fn link_opens(key: &VolumeKey, dir: &Directory, name: &CStr, target: &[u8]) -> bool {
    plain_path::place(key, dir, name).map_or(true, |place| link::open(key, target, place.as_ref()).is_ok())
}

impl Visitor for Check<'_> {
    type Worker = CheckReport;

    fn worker(&self) -> CheckReport {
        CheckReport::default()
    }

    fn directory(&self, report: &mut CheckReport, dir: &Arc<Directory>) {
        report.directories += 1;
        self.check_directory_record(report, dir);
        self.check_attributes_of(report, dir);
    }

    fn entries(&self, report: &mut CheckReport, dir: &Arc<Directory>, entries: &[Entry]) {
        let key = self.dir_key(dir);
        for entry in entries {
            let name = entry.name.as_c_str();
            match classify(name.to_bytes()) {
                Kind::Record => self.check_record(report, dir, name),
                Kind::Sidecar => self.check_sidecar(report, dir, name),
                Kind::Foreign => self.add(report, Class::Foreign, dir, name, "not a file of the volume"),
                Kind::Short | Kind::LongEntry => {
                    let named = self.check_name(report, key.as_ref(), dir, name);
                    match entry.kind {
                        FileType::RegularFile if named => self.check_file(report, dir, name),
                        FileType::Symlink if named => self.check_link(report, dir, name),
                        _ if named => self.check_special(report, dir, name),
                        _ => {}
                    }
                }
            }
            if self.stopped() {
                return;
            }
        }
    }

    fn descends(&self, report: &mut CheckReport, dir: &Arc<Directory>, name: &CStr) -> bool {
        match classify(name.to_bytes()) {
            Kind::Short | Kind::LongEntry => self.check_name(report, self.dir_key(dir).as_ref(), dir, name),
            Kind::Record => {
                self.check_record(report, dir, name);
                false
            }
            Kind::Sidecar | Kind::Foreign => {
                if !(dir.parent().is_none() && name.to_bytes() == b"lost+found") {
                    self.add(report, Class::Foreign, dir, name, "not a directory of the volume");
                }
                false
            }
        }
    }

    fn unreadable(&self, report: &mut CheckReport, dir: &Arc<Directory>, name: &CStr, error: Errno) {
        self.add(report, Class::Unreadable, dir, name, error.to_string());
    }

    fn finish(&self, report: CheckReport) {
        self.report.lock().merge(report);
    }

    fn stopped(&self) -> bool {
        self.progress.stopped()
    }
}
