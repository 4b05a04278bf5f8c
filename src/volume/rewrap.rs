//! Rewrap: brings every header to the current version of its key, or under another key. Data pages are not touched.
//!
//! Called by the command line, offline or beside a live mount. Must never overwrite a slot that may be the only
//! durable one: each pass begins with a sync of the lower file system, and writes a file's inactive slot at most once.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::copy::purge;
use super::open::{is_mounted, unwrap_record};
use super::record_file::{self, ChangeLock};
use super::report::{Failure, Progress, Version};
use super::rewrap_pass::Pass;
use super::walk;
use super::{Epoch, Volume, VolumeError, context, key_error, snapshot};
use crate::client::{ClientError, Kms, ReEncryptItem, ReEncrypted};
use crate::format::WrappedKey;
use crate::sys::at;

/// Passes at most: one for the tree as it stands, further ones for what was renamed or created meanwhile.
const MAX_PASSES: usize = 16;
/// A mount that was not told in person has seen the new record by then ([`super::watch`] looks more often).
const NOTICE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone, Default)]
pub struct RewrapOptions {
    /// Another key to go under: alias, id or ARN. Otherwise each header goes to the current version of its key.
    pub to_key: Option<String>,
    /// Threads.
    pub jobs: usize,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Files a second at most.
    pub rate: Option<u32>,
    /// Take away the wraps that no longer count, once those that do are durable.
    pub purge: bool,
    /// It is a copy: the volume that it was made of goes on under its own key.
    pub is_copy: bool,
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
    /// Wraps that no longer counted and were taken away.
    pub purged: u64,
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
pub(super) struct Target {
    pub(super) key_arn: Arc<str>,
    pub(super) material_id: Option<[u8; 32]>,
}

impl Target {
    fn find(kms: &Kms, key: &str) -> Result<Self, ClientError> {
        let facts = kms.describe_key(key)?;
        Ok(Self { material_id: facts.current_material(), key_arn: facts.arn.into() })
    }

    /// Without a version to compare, a header is never known to be current.
    pub(super) fn is_met_by(&self, key_arn: &str, material_id: Option<[u8; 32]>) -> bool {
        self.key_arn.as_ref() == key_arn && self.material_id.is_some() && self.material_id == material_id
    }
}

/// Moves the headers of `volume`. `tell_mount` tells a mount of it, if it can find one, that the record was replaced, and
/// says whether that was acted on.
pub fn rewrap(
    volume: &Volume,
    options: &RewrapOptions,
    progress: &Progress,
    tell_mount: impl Fn() -> bool,
) -> Result<RewrapReport, VolumeError> {
    let start = Instant::now();
    let root = volume.root()?;
    volume.finish_reencryption_if_free()?;
    let lock = if options.dry_run { None } else { Some(ChangeLock::take(root.as_fd(), volume.path())?) };
    if lock.is_some() {
        // Most of what it is to reach would lie elsewhere.
        snapshot::finish_restore_first(volume.path())?;
    }
    let to = options.to_key.as_deref().map(|key| fit_target(volume, key)).transpose()?;
    if let Some(to) = &to {
        check_one_service(volume, &to.key_arn)?;
    }
    let mut epoch = None;
    if let (Some(to), Some(_)) = (&to, &lock) {
        epoch = if options.is_copy { None } else { epoch_of_move(volume, to)? };
        name_key_in_record(volume, &to.key_arn, true)?;
    }
    let mut report = RewrapReport { dry_run: options.dry_run, ..RewrapReport::default() };
    let targets = Targets { kms: volume.keys.kms(), to, found: Mutex::new(HashMap::new()) };
    let mounted = lock.is_some() && is_mounted(volume.path())?;
    report.record_current =
        rewrap_record(volume, &targets, options.dry_run, mounted, epoch.as_ref(), &mut report)?;
    if mounted && !tell_mount() {
        std::thread::sleep(NOTICE);
    }
    for number in 0..if options.dry_run { 1 } else { MAX_PASSES } {
        if lock.is_some() {
            at::sync_filesystem(&root).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
        }
        let pass = Pass::new(volume, &targets, options, progress, number == 0);
        walk::walk(volume.root()?, options.jobs, &pass);
        let unsettled = pass.end(&mut report, &targets);
        // A mount may have been about to write a header with the key it took before it was told.
        if report.ended_early.is_some() || unsettled == 0 && (number > 0 || !mounted) {
            break;
        }
        if number + 1 == MAX_PASSES {
            report.ended_early = Some("the tree changes faster than it is read; run it again".to_owned());
        }
    }
    if lock.is_some() {
        settle_record(volume, &targets, epoch.as_ref(), &mut report)?;
        at::sync_filesystem(&root).map_err(|e| VolumeError::io("sync", volume.path(), e))?;
    }
    if options.purge && !options.dry_run && report.is_complete() {
        report.purged = purge(volume, options.jobs)?;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// A host that shares no lock with this one may have written the record as it had read it before: what this rewrap put there
/// is put there once more, or headers would name a key that the record does not.
fn settle_record(
    volume: &Volume,
    targets: &Targets<'_>,
    epoch: Option<&Epoch>,
    report: &mut RewrapReport,
) -> Result<(), VolumeError> {
    if report.ended_early.is_some() {
        return Ok(());
    }
    if let Some(to) = &targets.to {
        name_key_in_record(volume, &to.key_arn, true)?;
    }
    report.record_current = rewrap_record(volume, targets, false, false, epoch, report)?;
    Ok(())
}

/// The record, without which nothing opens, must be able to go along.
fn check_one_service(volume: &Volume, to_key: &str) -> Result<(), VolumeError> {
    let record = record_file::read(volume.root()?.as_fd(), volume.path())?;
    Ok(volume.keys.kms().check_both(&record.active().wrapped.key_arn, to_key)?)
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

/// Lets files of `volume` be under `key`: puts it into the record. Gives its ARN.
pub fn admit_key(volume: &Volume, key: &str) -> Result<String, VolumeError> {
    let target = fit_target(volume, key)?;
    let root = volume.root()?;
    let _lock = ChangeLock::take(root.as_fd(), volume.path())?;
    name_key_in_record(volume, &target.key_arn, false)?;
    Ok(target.key_arn.to_string())
}

/// Puts the customer key `id` into the record.
pub(super) fn name_key(volume: &Volume, id: &str) -> Result<(), VolumeError> {
    let root = volume.root()?;
    let _lock = ChangeLock::take(root.as_fd(), volume.path())?;
    name_key_in_record(volume, id, false)
}

/// Files may only name keys of the record, so the record comes before the first header. With `take_it` new files take
/// the key, too.
fn name_key_in_record(volume: &Volume, key_arn: &str, take_it: bool) -> Result<(), VolumeError> {
    let root = volume.root()?;
    let lower = volume.path();
    let mut record = record_file::read(root.as_fd(), lower)?;
    let decrypted = unwrap_record(volume.keys.kms(), &record)?;
    let failed = |e| VolumeError::Record(lower.to_owned(), e);
    let (volume_key, mut settings) = record.open(&decrypted.data_key).map_err(failed)?;
    let known = settings.keys.iter().any(|known| known == key_arn);
    if known && (!take_it || settings.default_key == key_arn) {
        return Ok(());
    }
    if !known {
        settings.keys.push(key_arn.to_owned());
    }
    if take_it {
        key_arn.clone_into(&mut settings.default_key);
    }
    record.reseal(&decrypted.data_key, &volume_key, &settings).map_err(failed)?;
    record_file::write(root.as_fd(), lower, &record)?;
    volume.keys.reload_if_changed().map(|_| ())
}

/// The record goes the way of the files, and first: a mount that sees a new record drops the data keys that it has in
/// stock, so that files made from then on are under the new version too. Therefore `renew` writes also a current one.
fn rewrap_record(
    volume: &Volume,
    targets: &Targets<'_>,
    dry_run: bool,
    renew: bool,
    epoch: Option<&Epoch>,
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
        if renew || !record_file::is_whole(root.as_fd(), volume.path()) {
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
    let moved = wrapped_key(moved);
    let counted = epoch.filter(|_| moved.key_arn != wrapped.key_arn).map_or(Ok(()), |e| e.move_to(&moved));
    let Some(()) = report.note(counted.map_err(|e| e.to_string())) else { return Ok(false) };
    // What another host put there while the service was asked, keys that it named, stays.
    record = record_file::read(root.as_fd(), volume.path())?;
    if record.active().wrapped != wrapped {
        return Ok(false);
    }
    record.rewrap(moved);
    record_file::write(root.as_fd(), volume.path(), &record)?;
    Ok(true)
}

/// What is counted on when the record goes to `to`: an older state of the volume must not pass under either key, nor be
/// taken along. A snapshot is one by its nature; no mount of it asks.
fn epoch_of_move(volume: &Volume, to: &Target) -> Result<Option<Epoch>, VolumeError> {
    let record = record_file::read(volume.root()?.as_fd(), volume.path())?;
    if record.active().wrapped.key_arn == *to.key_arn || snapshot::of_volume(volume)?.is_some() {
        return Ok(None);
    }
    Epoch::check(volume, false).map(Some)
}

impl RewrapReport {
    /// The value, or `None` with the error noted as the reason for an early end.
    fn note<T>(&mut self, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|why| self.ended_early.get_or_insert(why).clone()).ok()
    }
}

pub(super) fn wrapped_key(moved: ReEncrypted) -> WrappedKey {
    WrappedKey { key_arn: moved.key_arn, material_id: moved.material_id, blob: moved.blob }
}

/// Where each key's headers go, asked for once a key.
pub(super) struct Targets<'a> {
    pub(super) kms: &'a Kms,
    to: Option<Target>,
    found: Mutex<HashMap<String, Result<Target, String>>>,
}

impl Targets<'_> {
    pub(super) fn of(&self, key_arn: &str) -> Result<Target, String> {
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
