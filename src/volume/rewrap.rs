//! Rewrap: brings every header to the current version of its key, or under another key. Data pages are not touched.
//!
//! Called by the command line, offline or beside a live mount. Must never overwrite a slot that may be the only
//! durable one: each pass begins with a sync of the lower file system, and writes a file's inactive slot at most once.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, syncfs};
use rustix::io::Errno;
use serde::Serialize;

use super::lower_file::{self, SlotBytes, Written};
use super::plain_path;
use super::record_file::{self, ChangeLock};
use super::report::{Census, Failure, MAX_LISTED, Progress, Version};
use super::walk::{self, Directory, Entry, Visitor};
use super::{Volume, VolumeError, context, key_error};
use crate::api::EncryptionContext;
use crate::client::{ClientError, Kms, ReEncryptItem, ReEncrypted};
use crate::format::WrappedKey;
use crate::format::header::Slots;
use crate::format::name::{Kind, classify};

/// Files moved in one pipelined batch.
const BATCH: usize = 64;
/// Passes at most: one for the tree as it stands, further ones for what was renamed or created meanwhile.
const MAX_PASSES: usize = 4;

/// What to do.
#[derive(Debug, Clone)]
pub struct RewrapOptions {
    /// Another key to go under: alias, id or ARN. Otherwise each header goes to the current version of its key.
    pub to_key: Option<String>,
    /// Threads.
    pub jobs: usize,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct RewrapReport {
    /// Whether nothing was written on purpose.
    pub dry_run: bool,
    /// Headers moved, or to be moved.
    pub moved: u64,
    /// Headers that were current.
    pub current: u64,
    /// Empty files, which have no header yet.
    pub without_header: u64,
    /// Names in the lower tree that are not ours.
    pub foreign: u64,
    /// Headers that could not be moved.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
    /// Why the work was ended early.
    pub ended_early: Option<String>,
    /// Versions of keys that headers are under now.
    pub versions: Vec<Version>,
    /// Whether the volume record is current.
    pub record_current: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl RewrapReport {
    /// Headers looked at per second.
    #[allow(clippy::cast_precision_loss, reason = "a rate is shown without decimals")]
    pub fn files_per_second(&self) -> f64 {
        (self.moved + self.current) as f64 / self.seconds.max(0.001)
    }

    /// Whether every header is where it should be.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.ended_early.is_none() && (self.record_current || self.dry_run)
    }
}

/// Where headers of one key go.
#[derive(Debug, Clone)]
struct Target {
    key_arn: Arc<str>,
    material_id: Option<[u8; 32]>,
}

impl Target {
    fn find(kms: &Kms, key: &str) -> Result<Self, ClientError> {
        let facts = kms.describe_key(key)?;
        Ok(Self { material_id: facts.current_material(), key_arn: facts.arn.into() })
    }

    /// Without a version to compare, a header is never known to be current.
    fn is_met_by(&self, key_arn: &str, material_id: Option<[u8; 32]>) -> bool {
        self.key_arn.as_ref() == key_arn && self.material_id.is_some() && self.material_id == material_id
    }
}

/// Moves the headers of `volume`.
pub fn rewrap(
    volume: &Volume,
    options: &RewrapOptions,
    progress: &Progress,
) -> Result<RewrapReport, VolumeError> {
    let start = Instant::now();
    let root = volume.root()?;
    let lock = if options.dry_run { None } else { Some(ChangeLock::take(root.as_fd(), volume.path())?) };
    let to = options.to_key.as_deref().map(|key| fit_target(volume, key)).transpose()?;
    if let (Some(to), Some(_)) = (&to, &lock) {
        name_key_in_record(volume, &to.key_arn)?;
    }
    let mut report = RewrapReport { dry_run: options.dry_run, ..RewrapReport::default() };
    let targets = Targets { kms: volume.keys.kms(), to, found: Mutex::new(HashMap::new()) };
    for number in 0..if options.dry_run { 1 } else { MAX_PASSES } {
        if lock.is_some() {
            syncfs(root.as_fd()).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
        }
        let pass = Pass::new(volume, &targets, options.dry_run, progress, number == 0);
        walk::walk(volume.root()?, options.jobs, &pass);
        let moved = pass.end(&mut report, &targets);
        if moved == 0 || report.ended_early.is_some() {
            break;
        }
    }
    if lock.is_some() {
        syncfs(root.as_fd()).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
    }
    report.record_current = rewrap_record(volume, &targets, options.dry_run, &mut report)?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn fit_target(volume: &Volume, key: &str) -> Result<Target, VolumeError> {
    let kms = volume.keys.kms();
    let facts = kms.describe_key(key).map_err(|e| VolumeError::Key(key.to_owned(), key_error(&e)))?;
    let unfit = |why: &str| Err(VolumeError::UnfitKey(key.to_owned(), why.to_owned()));
    if facts.key_usage != "ENCRYPT_DECRYPT" || facts.key_spec != "SYMMETRIC_DEFAULT" {
        return unfit("it is not a symmetric encryption key");
    }
    if facts.key_state != "Enabled" {
        return unfit(&format!("its state is {}", facts.key_state));
    }
    Ok(Target { material_id: facts.current_material(), key_arn: facts.arn.into() })
}

/// Files may only name keys of the record, so the record comes before the first header. New files take the key, too.
fn name_key_in_record(volume: &Volume, key_arn: &str) -> Result<(), VolumeError> {
    let root = volume.root()?;
    let lower = volume.path();
    let mut record = record_file::read(root.as_fd(), lower)?;
    let wrapped = record.active().wrapped.clone();
    let decrypted = volume
        .keys
        .kms()
        .decrypt(&wrapped.blob, &wrapped.key_arn, &context::record(record.volume_id))
        .map_err(|e| VolumeError::Key(wrapped.key_arn.clone(), key_error(&e)))?;
    let failed = |e| VolumeError::Record(lower.to_owned(), e);
    let (volume_key, mut settings) = record.open(&decrypted.data_key).map_err(failed)?;
    let known = settings.keys.iter().any(|known| known == key_arn);
    if known && settings.default_key == key_arn {
        return Ok(());
    }
    if !known {
        settings.keys.push(key_arn.to_owned());
    }
    key_arn.clone_into(&mut settings.default_key);
    record.reseal(&decrypted.data_key, &volume_key, &settings).map_err(failed)?;
    record_file::write(root.as_fd(), lower, &record)?;
    volume.keys.reload_if_changed().map(|_| ())
}

/// The record goes the way of the files, last: until then either version opens it.
fn rewrap_record(
    volume: &Volume,
    targets: &Targets<'_>,
    dry_run: bool,
    report: &mut RewrapReport,
) -> Result<bool, VolumeError> {
    let root = volume.root()?;
    let mut record = record_file::read(root.as_fd(), volume.path())?;
    let wrapped = record.active().wrapped.clone();
    let Some(target) = report.note(targets.of(&wrapped.key_arn)) else { return Ok(false) };
    let current = target.is_met_by(&wrapped.key_arn, wrapped.material_id);
    if dry_run {
        return Ok(current);
    }
    if current {
        if !record_file::is_whole(root.as_fd(), volume.path()) {
            record_file::write(root.as_fd(), volume.path(), &record)?;
        }
        return Ok(true);
    }
    let context = context::record(record.volume_id);
    let item = ReEncryptItem {
        blob: &wrapped.blob,
        source_key: &wrapped.key_arn,
        destination_key: &target.key_arn,
        context: &context,
    };
    let moved = targets
        .kms
        .re_encrypt_many(&[item])
        .pop()
        .unwrap_or_else(|| Err(ClientError::Protocol("no answer".to_owned())));
    let Some(moved) = report.note(moved.map_err(|e| format!("the volume record: {e}"))) else {
        return Ok(false);
    };
    record.rewrap(wrapped_key(moved));
    record_file::write(root.as_fd(), volume.path(), &record)?;
    Ok(true)
}

impl RewrapReport {
    /// The value, or `None` with the error noted as the reason for an early end.
    fn note<T>(&mut self, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|why| self.ended_early.get_or_insert(why).clone()).ok()
    }
}

fn wrapped_key(moved: ReEncrypted) -> WrappedKey {
    WrappedKey { key_arn: moved.key_arn, material_id: moved.material_id, blob: moved.blob }
}

/// Where each key's headers go, asked for once a key.
struct Targets<'a> {
    kms: &'a Kms,
    to: Option<Target>,
    found: Mutex<HashMap<String, Result<Target, String>>>,
}

impl Targets<'_> {
    fn of(&self, key_arn: &str) -> Result<Target, String> {
        if let Some(to) = &self.to {
            return Ok(to.clone());
        }
        let mut found = self.found.lock();
        if let Some(known) = found.get(key_arn) {
            return known.clone();
        }
        let target = Target::find(self.kms, key_arn).map_err(|e| format!("{key_arn}: {e}"));
        found.insert(key_arn.to_owned(), target.clone());
        target
    }
}

/// One walk over the tree.
struct Pass<'a> {
    volume: &'a Volume,
    targets: &'a Targets<'a>,
    known_keys: Vec<String>,
    dry_run: bool,
    progress: &'a Progress,
    counts_progress: bool,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    moved: u64,
    /// Changed by somebody else meanwhile: the next pass looks at them again.
    changed: u64,
    current: u64,
    without_header: u64,
    foreign: u64,
    failed: u64,
    failures: Vec<Failure>,
    ended_early: Option<String>,
    census: Census,
}

/// A header that is to be moved.
struct Pending {
    file: OwnedFd,
    dir: Arc<Directory>,
    name: CString,
    bytes: SlotBytes,
    slots: Slots,
    target: Target,
    context: EncryptionContext,
}

#[derive(Default)]
struct Worker {
    pending: Vec<Pending>,
    tally: Tally,
}

enum Found {
    NoHeader,
    Current(WrappedKey),
    Old(Box<Pending>),
}

impl<'a> Pass<'a> {
    fn new(
        volume: &'a Volume,
        targets: &'a Targets<'a>,
        dry_run: bool,
        progress: &'a Progress,
        counts_progress: bool,
    ) -> Self {
        let known_keys = volume.keys.known_keys();
        Self { volume, targets, known_keys, dry_run, progress, counts_progress, tally: Mutex::default() }
    }

    /// Adds this pass to the report. Returns how many headers it moved or has to leave to another pass.
    fn end(self, report: &mut RewrapReport, targets: &Targets<'_>) -> u64 {
        let tally = self.tally.into_inner();
        // What an earlier pass moved, this one found to be current.
        report.current = tally.current.saturating_sub(report.moved);
        report.moved += tally.moved;
        (report.without_header, report.foreign) = (tally.without_header, tally.foreign);
        (report.failed, report.failures) = (tally.failed, tally.failures);
        report.ended_early = tally
            .ended_early
            .or_else(|| self.progress.stopped().then(|| "interrupted; run it again to go on".to_owned()));
        let is_current =
            |key: &str, material| targets.of(key).is_ok_and(|target| target.is_met_by(key, material));
        report.versions = tally.census.versions(is_current);
        tally.moved + tally.changed
    }

    fn examine(&self, dir: &Arc<Directory>, name: &CStr) -> Result<Found, String> {
        let file = lower_file::open(dir.fd(), name, OFlags::RDONLY).map_err(|e| e.to_string())?;
        let Some(bytes) = lower_file::read_slots(file.as_fd()).map_err(|e| e.to_string())? else {
            return Ok(Found::NoHeader);
        };
        let slots = Slots::parse(&bytes).map_err(|e| e.to_string())?;
        if slots.superblock.volume_id != self.volume.id {
            return Err(format!("it belongs to another volume, {}", slots.superblock.volume_id));
        }
        let wrapped = &slots.active().wrapped;
        if !self.known_keys.contains(&wrapped.key_arn) {
            return Err(format!("it names the key {}, which is not one of this volume's", wrapped.key_arn));
        }
        let target = self.targets.of(&wrapped.key_arn)?;
        if target.is_met_by(&wrapped.key_arn, wrapped.material_id) {
            return Ok(Found::Current(wrapped.clone()));
        }
        let context = context::file(self.volume.id, slots.superblock.file_id);
        let (dir, name) = (Arc::clone(dir), name.to_owned());
        Ok(Found::Old(Box::new(Pending { file, dir, name, bytes, slots, target, context })))
    }

    /// Moves what is pending: one round trip to the service for all of it.
    fn flush(&self, worker: &mut Worker) {
        let pending = std::mem::take(&mut worker.pending);
        let items: Vec<_> = pending.iter().map(Pending::item).collect();
        let outcomes = self.targets.kms.re_encrypt_many(&items);
        for (file, outcome) in pending.iter().zip(outcomes) {
            let old = &file.slots.active().wrapped;
            match outcome {
                Ok(moved) => match file.write(wrapped_key(moved)) {
                    Ok(Some(new)) => {
                        worker.tally.moved += 1;
                        worker.tally.census.count(&new.key_arn, new.material_id);
                    }
                    Ok(None) => worker.tally.changed += 1,
                    Err(why) => worker.tally.fail(self.volume, &file.dir, &file.name, why),
                },
                Err(e) => {
                    worker.tally.census.count(&old.key_arn, old.material_id);
                    if e.is_unavailable() {
                        worker.tally.ended_early.get_or_insert_with(|| e.to_string());
                        self.progress.stop.store(true, Ordering::Relaxed);
                    }
                    worker.tally.fail(self.volume, &file.dir, &file.name, e.to_string());
                }
            }
        }
    }
}

impl Pending {
    fn item(&self) -> ReEncryptItem<'_> {
        let wrapped = &self.slots.active().wrapped;
        ReEncryptItem {
            blob: &wrapped.blob,
            source_key: &wrapped.key_arn,
            destination_key: &self.target.key_arn,
            context: &self.context,
        }
    }

    /// Writes the slot; `None` when the header is no longer the one that was read.
    fn write(&self, new: WrappedKey) -> Result<Option<WrappedKey>, String> {
        if new.key_arn != *self.target.key_arn {
            return Err(format!("the service answered with another key, {}", new.key_arn));
        }
        let (offset, slot) = self.slots.rewrap(new.clone()).map_err(|e| e.to_string())?;
        let file = match lower_file::reopen_for_writing(self.dir.fd(), &self.name, &self.file) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        match lower_file::write_slot(file.as_fd(), &self.bytes, offset, &slot) {
            Ok(Written::Yes) => Ok(Some(new)),
            Ok(Written::Changed) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

impl Tally {
    fn fail(&mut self, volume: &Volume, dir: &Directory, name: &CStr, why: String) {
        self.failed += 1;
        if self.failures.len() < MAX_LISTED {
            let path = plain_path::of(&volume.key, dir, name);
            self.failures.push(Failure { lower_path: dir.path_of(name), path, why });
        }
    }

    fn merge(&mut self, other: Self) {
        self.moved += other.moved;
        self.changed += other.changed;
        self.current += other.current;
        self.without_header += other.without_header;
        self.foreign += other.foreign;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(MAX_LISTED);
        self.ended_early = self.ended_early.take().or(other.ended_early);
        self.census.merge(other.census);
    }
}

impl Visitor for Pass<'_> {
    type Worker = Worker;

    fn worker(&self) -> Worker {
        Worker::default()
    }

    fn directory(&self, _: &mut Worker, _: &Arc<Directory>) {}

    fn entries(&self, worker: &mut Worker, dir: &Arc<Directory>, entries: &[Entry]) {
        for entry in entries {
            let kind = classify(entry.name.to_bytes());
            match (kind, entry.kind) {
                (Kind::Foreign, _) => worker.tally.foreign += 1,
                (Kind::Short | Kind::LongEntry, FileType::RegularFile) => {
                    self.visit(worker, dir, &entry.name);
                }
                // Links and special files have no header; records are not files.
                (Kind::Short | Kind::LongEntry | Kind::Sidecar | Kind::Record, _) => {}
            }
        }
    }

    fn descends(&self, worker: &mut Worker, _: &Arc<Directory>, name: &CStr) -> bool {
        match classify(name.to_bytes()) {
            Kind::Short | Kind::LongEntry => true,
            Kind::Record | Kind::Sidecar => false,
            Kind::Foreign => {
                worker.tally.foreign += 1;
                false
            }
        }
    }

    fn unreadable(&self, worker: &mut Worker, dir: &Arc<Directory>, name: &CStr, error: Errno) {
        worker.tally.fail(self.volume, dir, name, error.to_string());
    }

    fn finish(&self, mut worker: Worker) {
        self.flush(&mut worker);
        self.tally.lock().merge(worker.tally);
    }

    fn stopped(&self) -> bool {
        self.progress.stopped()
    }
}

impl Pass<'_> {
    fn visit(&self, worker: &mut Worker, dir: &Arc<Directory>, name: &CStr) {
        match self.examine(dir, name) {
            Ok(Found::NoHeader) => worker.tally.without_header += 1,
            Ok(Found::Current(wrapped)) => {
                worker.tally.current += 1;
                worker.tally.census.count(&wrapped.key_arn, wrapped.material_id);
            }
            Ok(Found::Old(pending)) if self.dry_run => {
                let wrapped = &pending.slots.active().wrapped;
                worker.tally.moved += 1;
                worker.tally.census.count(&wrapped.key_arn, wrapped.material_id);
            }
            Ok(Found::Old(pending)) => {
                worker.pending.push(*pending);
                if worker.pending.len() >= BATCH {
                    self.flush(worker);
                }
            }
            Err(why) => worker.tally.fail(self.volume, dir, name, why),
        }
        if self.counts_progress {
            self.progress.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}
