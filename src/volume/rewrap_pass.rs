//! One pass of a rewrap: a walk that moves what it finds under an old version. Called by `rewrap`.
//!
//! Must never write a slot over a header that is not the one it read. What goes away or changes while it looks belongs
//! to somebody who works in the mount: it is left to the next pass, and is no failure.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use super::lower_file::{self, SlotBytes, Written};
use super::pace::Pace;
use super::report::{Census, Failure, MAX_LISTED, Progress};
use super::rewrap::{RewrapOptions, RewrapReport, Target, Targets, wrapped_key};
use super::walk::{Directory, Entry, Visitor};
use super::{Volume, context, plain_path};
use crate::api::EncryptionContext;
use crate::client::ReEncryptItem;
use crate::format::WrappedKey;
use crate::format::customer;
use crate::format::header::Slots;
use crate::format::name::{Kind, classify};

/// Files moved in one pipelined batch.
const BATCH: usize = 64;
/// Inodes remembered to count a file once that has several names; beyond it, each name counts.
const SEEN_MAX: usize = 4 << 20;

/// One walk over the tree.
pub(super) struct Pass<'a> {
    volume: &'a Volume,
    targets: &'a Targets<'a>,
    known_keys: Vec<String>,
    dry_run: bool,
    pace: Option<Pace>,
    progress: &'a Progress,
    counts_progress: bool,
    seen: Mutex<HashSet<u64>>,
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
pub(super) struct Worker {
    pending: Vec<Pending>,
    tally: Tally,
}

enum Found {
    /// Gone, or met under another name already.
    Nothing,
    NoHeader,
    Current(WrappedKey),
    Old(Box<Pending>),
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        volume: &'a Volume,
        targets: &'a Targets<'a>,
        options: &RewrapOptions,
        progress: &'a Progress,
        counts_progress: bool,
    ) -> Self {
        let (dry_run, pace) = (options.dry_run, Pace::new(options.rate));
        let known_keys = volume.keys.known_keys();
        let (seen, tally) = (Mutex::default(), Mutex::default());
        Self { volume, targets, known_keys, dry_run, pace, progress, counts_progress, seen, tally }
    }

    /// Adds this pass to the report. Returns how many headers it moved or has to leave to another pass.
    pub(super) fn end(self, report: &mut RewrapReport, targets: &Targets<'_>) -> u64 {
        let tally = self.tally.into_inner();
        // What an earlier pass moved, this one found to be current.
        report.current = tally.current.saturating_sub(report.moved);
        report.moved += tally.moved;
        (report.without_header, report.foreign) = (tally.without_header, tally.foreign);
        (report.failed, report.failures) = (tally.failed, tally.failures);
        report.ended_early = tally
            .ended_early
            .or_else(|| self.progress.stopped().then(|| "interrupted; run it again to go on".to_owned()));
        let is_current = |key: &str, material| {
            customer::is_customer(key) || targets.of(key).is_ok_and(|target| target.is_met_by(key, material))
        };
        report.versions = tally.census.versions(is_current);
        tally.moved + tally.changed
    }

    fn examine(&self, dir: &Arc<Directory>, name: &CStr) -> Result<Found, String> {
        let file = match lower_file::open(dir.fd(), name, OFlags::RDONLY) {
            Err(e) if is_gone(e) => return Ok(Found::Nothing),
            other => other.map_err(|e| e.to_string())?,
        };
        let stat = fstat(&file).map_err(|e| e.to_string())?;
        if stat.st_nlink > 1 {
            let mut seen = self.seen.lock();
            if seen.len() < SEEN_MAX && !seen.insert(stat.st_ino) {
                return Ok(Found::Nothing);
            }
        }
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
        if customer::is_customer(&wrapped.key_arn) {
            // It has no versions, and no service could move it.
            return Ok(Found::Current(wrapped.clone()));
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
        let writes = self.slots.rewrap(new.clone()).map_err(|e| e.to_string())?;
        let file = match lower_file::reopen_for_writing(self.dir.fd(), &self.name, &self.file) {
            Err(e) if is_gone(e) => return Ok(None),
            other => other.map_err(|e| e.to_string())?,
        };
        match lower_file::write_slots(file.as_fd(), &self.bytes, &writes).map_err(|e| e.to_string())? {
            Written::Changed => return Ok(None),
            Written::Yes => {}
        }
        // What was written must be what a reader takes.
        let stored = lower_file::read_slots(file.as_fd()).map_err(|e| e.to_string())?;
        let stored = stored.and_then(|bytes| Slots::parse(&bytes).ok());
        match stored {
            Some(slots) if slots.active().wrapped == new => Ok(Some(new)),
            _ => Err("the slot that was written does not count; 'kmsfs fsck' tells more".to_owned()),
        }
    }
}

/// What a file that was renamed, removed or replaced answers.
fn is_gone(e: Errno) -> bool {
    matches!(e, Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP | Errno::NXIO)
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
        if is_gone(error) {
            worker.tally.changed += 1;
        } else {
            worker.tally.fail(self.volume, dir, name, error.to_string());
        }
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
        if let Some(pace) = &self.pace {
            pace.wait();
        }
        match self.examine(dir, name) {
            Ok(Found::Nothing) => {}
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
