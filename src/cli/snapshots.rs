//! `kmsfs snapshot`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::json;

use super::args;
use super::block;
use super::control::{self, Answer, Request};
use super::error::CliError;
use super::follow::Followed;
use super::mount;
use super::named::resolve;
use super::output::{json as print_json, line, size, table, time_of};
use super::progress::Shown;
use super::service::{self, Behalf};
use super::snapshot_args::{
    CreateArgs, DeleteArgs, DiffArgs, ListArgs, MountArgs, RestoreArgs, SnapshotCommand,
};
use super::volumes::{DEFAULT_JOBS, mount_of, stop_on_signals};
use crate::client::CacheLimits;
use crate::volume::snapshot::{self, Changed, SnapshotRecord};
use crate::volume::{self, CopyOptions, Moment, MountLock, Progress, Volume};

/// How often it is looked how far a copy is.
const POLL: Duration = Duration::from_millis(50);

/// Runs a `kmsfs snapshot` command.
pub fn run(command: &SnapshotCommand, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    match command {
        SnapshotCommand::Create(args) => create(args, kms),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Mount(args) => mount_one(args, kms, verbose),
        SnapshotCommand::Diff(args) => diff(args, kms),
        SnapshotCommand::Restore(args) => restore(args, kms),
        SnapshotCommand::Delete(args) => delete(args),
    }
}

pub(super) fn open(lower: &Path, kms: Option<&str>) -> Result<Volume, CliError> {
    let kms = service::connect(kms, Behalf::Filesystem)?;
    Ok(Volume::open(lower, kms, CacheLimits::default())?)
}

fn create(args: &CreateArgs, kms: Option<&str>) -> Result<(), CliError> {
    let (lower, volume_kms) = resolve(&args.volume)?;
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "snapshot", args.json);
    let made = match mount_of(&lower) {
        Some(status) => block::flush(&status.mountpoint)
            .and_then(|()| of_mount(&status.mountpoint, &args.name, &progress)),
        None => open(&lower, service::for_volume(kms, volume_kms.as_deref())).and_then(|volume| {
            watched(&progress, |moment| Ok(snapshot::make_offline(&volume, &args.name, moment)?))
        }),
    };
    drop(shown);
    let record = made?;
    if args.json {
        return print_json(&record);
    }
    let files = record.files.map(|files| format!(", {files} files")).unwrap_or_default();
    let milliseconds = Duration::from_micros(record.held_us).as_secs_f64() * 1000.0;
    let held =
        if record.live { format!(", changes held up for {milliseconds:.1} ms") } else { String::new() };
    line(&format!("snapshot {}{files}, {} copied{held}", record.name, size(record.copied_bytes)))
}

/// Has the mount make it, and follows.
fn of_mount(mountpoint: &Path, name: &str, progress: &Progress) -> Result<SnapshotRecord, CliError> {
    control::ask(mountpoint, &Request::Snapshot { name: name.to_owned() })?;
    let followed = Followed {
        mountpoint,
        what: "the snapshot",
        state: Request::SnapshotState,
        cancel: Request::SnapshotCancel,
    };
    followed.to_the_end(progress, |answer| {
        let Answer::Snapshot(state) = answer else { return None };
        Some((state.files, state.failed.map(Err).or(state.made.map(Ok))))
    })
}

/// Runs `work`, which copies, and tells `progress` how far it is; a stop ends the copy.
pub(super) fn watched<R>(
    progress: &Progress,
    work: impl FnOnce(&Mutex<Option<Arc<Moment>>>) -> Result<R, CliError>,
) -> Result<R, CliError> {
    let moment = Mutex::new(None);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let current: Option<Arc<Moment>> = moment.lock().clone();
                if let Some(current) = current {
                    progress.done.store(current.progress().0, Ordering::Relaxed);
                    if progress.stop.load(Ordering::Relaxed) {
                        current.cancel();
                    }
                }
                std::thread::sleep(POLL);
            }
        });
        let done = work(&moment);
        over.store(true, Ordering::Relaxed);
        done
    })
}

fn list(args: &ListArgs) -> Result<(), CliError> {
    let (lower, _) = resolve(&args.volume)?;
    let found = snapshot::list(&lower)?;
    if args.json {
        return print_json(&found);
    }
    if found.is_empty() {
        return line("no snapshots");
    }
    let row = |record: &SnapshotRecord| {
        let files = record.files.map_or_else(|| "-".to_owned(), |files| files.to_string());
        vec![record.name.clone(), time_of(record.created / 1000), files, size(record.copied_bytes)]
    };
    table(&["NAME", "MADE", "FILES", "COPIED"], &found.iter().map(row).collect::<Vec<_>>())
}

fn mount_one(args: &MountArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let (lower, volume_kms) = resolve(&args.volume)?;
    let place = snapshot::path_of(&lower, &args.name)?;
    let plan = args::MountArgs {
        read_only: true,
        allow_other: args.allow_other,
        customer_key: args.customer_key.clone(),
        options: vec!["snapshot".to_owned()],
        ..args::MountArgs::of(place, args.mountpoint.clone())
    };
    mount::mount(&plan, service::for_volume(kms, volume_kms.as_deref()), verbose)
}

fn diff(args: &DiffArgs, kms: Option<&str>) -> Result<(), CliError> {
    let (lower, volume_kms) = resolve(&args.volume)?;
    let volume = open(&lower, service::for_volume(kms, volume_kms.as_deref()))?;
    let from = snapshot::path_of(&lower, &args.from)?;
    let to = args.to.as_ref().map_or(Ok(lower.clone()), |to| snapshot::path_of(&lower, to))?;
    let (found, total) = snapshot::diff(&volume, &from, &to)?;
    if args.json {
        return print_json(&json!({ "differences": found, "total": total }));
    }
    for difference in &found {
        let sign = match difference.changed {
            Changed::Added => '+',
            Changed::Removed => '-',
            Changed::Content => 'M',
            Changed::Attributes => 'a',
        };
        line(&format!("{sign} {}", difference.path.display()))?;
    }
    if total > found.len() as u64 {
        line(&format!("and {} more", total - found.len() as u64))
    } else {
        Ok(())
    }
}

fn restore(args: &RestoreArgs, kms: Option<&str>) -> Result<(), CliError> {
    let (lower, volume_kms) = resolve(&args.volume)?;
    if let Some(status) = mount_of(&lower) {
        let text = format!("the volume is mounted at {}; unmount it first", status.mountpoint.display());
        return Err(CliError::new(super::error::Exit::Busy, text));
    }
    let volume = open(&lower, service::for_volume(kms, volume_kms.as_deref()))?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let kept = SnapshotRecord {
        name: format!("before-{}-{}", args.name.chars().take(30).collect::<String>(), created),
        volume_id: volume.id.to_string(),
        created,
        live: false,
        held_us: 0,
        files: None,
        copied_bytes: 0,
    };
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "restore", false);
    let kept = watched(&progress, |moment| Ok(snapshot::restore(&volume, &args.name, kept, moment)?));
    drop(shown);
    line(&format!("the volume is as it was at '{}'; the state before is the snapshot '{}'", args.name, kept?))
}

/// The lower directory of `VOLUME@SNAPSHOT` or of a volume, and its key service.
pub(super) fn source_of(text: &str) -> Result<(PathBuf, Option<String>), CliError> {
    match text.rsplit_once('@') {
        Some((volume, name)) if !Path::new(text).exists() => {
            let (lower, kms) = resolve(Path::new(volume))?;
            Ok((snapshot::path_of(&lower, name)?, kms))
        }
        _ => resolve(Path::new(text)),
    }
}

/// `kmsfs copy`
pub fn copy(args: &args::CopyArgs, kms: Option<&str>) -> Result<(), CliError> {
    let (source, volume_kms) = source_of(&args.source)?;
    volume::peek(&source)?;
    let to = std::path::absolute(&args.to).map_err(|e| CliError::failed(e.to_string()))?;
    let kms = service::connect(service::for_volume(kms, volume_kms.as_deref()), Behalf::Filesystem)?;
    // Nobody changes the source meanwhile.
    let _unmounted = MountLock::take(&source).map_err(|e| {
        CliError::from(e).with_hint("a volume in use is copied from a snapshot: VOLUME@SNAPSHOT")
    })?;
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "copy", args.json);
    let options = CopyOptions { key: args.key.clone(), jobs: args.jobs.unwrap_or(DEFAULT_JOBS) };
    let copied =
        watched(&progress, |moment| Ok(volume::copy(&source, &to, &kms, &options, &progress, moment)?));
    drop(shown);
    let report = copied?;
    if args.json {
        return print_json(&report);
    }
    line(&format!("{} files, {} copied, in {}", report.files, size(report.copied_bytes), to.display()))?;
    match &args.key {
        Some(key) => line(&format!("the copy is under {key} alone")),
        None => line("the copy is the same volume in an older state: mount it once with --accept-older"),
    }
}

fn delete(args: &DeleteArgs) -> Result<(), CliError> {
    let (lower, _): (PathBuf, _) = resolve(&args.volume)?;
    Ok(snapshot::delete(&lower, &args.name)?)
}
