//! The commands about volumes that are not mounts: init, rewrap, fsck, info.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::args::{FsckArgs, InfoArgs, InitArgs, RewrapArgs};
use super::control::{self, Answer, Request, Status};
use super::error::{CliError, Exit};
use super::named::{key_for_new, resolve};
use super::output::{facts, json as print_json, line, size, table};
use super::progress::{Shown, tell_mount};
use super::service::{self, Behalf};
use crate::client::CacheLimits;
use crate::volume::{
    self, CheckOptions, CheckReport, InitOptions, Progress, RewrapOptions, RewrapReport, Volume, VolumeError,
};

/// Threads where none are named: the key service works beside them.
pub(super) const DEFAULT_JOBS: usize = 4;
/// Failures and findings printed for people; JSON has all that were listed.
pub(super) const MAX_PRINTED: usize = 20;
/// As e2fsck(8) has them.
const FSCK_REPAIRED: u8 = 1;
const FSCK_ERRORS: u8 = 4;
const FSCK_OPERATIONAL: u8 = 8;
const FSCK_INTERRUPTED: u8 = 32;

/// `kmsfs init`
pub fn init(args: &InitArgs, kms: Option<&str>) -> Result<(), CliError> {
    let kms = service::connect(kms, Behalf::Filesystem)?;
    if let Some(sheet) = &args.restore {
        let id = volume::restore(&args.lower, sheet, &kms)?;
        return line(&format!("the record of volume {id} is restored in {}", args.lower.display()));
    }
    let key = key_for_new(args.key.as_deref())?;
    let sheet_dir = args.recovery_sheet.clone().unwrap_or_else(default_sheet_dir);
    let made = volume::init(
        &args.lower,
        &kms,
        &InitOptions { key, sheet_dir, bind_names: args.bind_names, id: None },
    )?;
    if args.json {
        let id = made.id.to_string();
        return print_json(
            &json!({ "volume_id": id, "key_arn": made.key_arn, "recovery_sheet": made.sheet, "bind_names": args.bind_names }),
        );
    }
    line(&format!("made volume {} in {}", made.id, args.lower.display()))?;
    line(&format!("key: {}", made.key_arn))?;
    line(&format!("recovery sheet: {} (keep a copy elsewhere)", made.sheet.display()))
}

/// Where recovery sheets go when no place is named.
pub fn default_sheet_dir() -> PathBuf {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let base = data.or_else(|| home().map(|home| home.join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("kmsfs/recovery")
}

/// Ends the work, not the process, on the first signal.
pub(super) fn stop_on_signals(progress: &Arc<Progress>) -> Result<(), CliError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let failed = |e: std::io::Error| CliError::failed(format!("cannot catch signals: {e}"));
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process: every state on disk is a good one.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&again)).map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(&again)).map_err(failed)?;
    }
    let progress = Arc::downgrade(progress);
    let watch = move || {
        while let Some(progress) = progress.upgrade() {
            if again.load(Ordering::Relaxed) {
                progress.stop.store(true, Ordering::Relaxed);
                return;
            }
            drop(progress);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map(|_| ()).map_err(failed)
}

/// `kmsfs rewrap`
pub fn rewrap(args: &RewrapArgs, kms: Option<&str>) -> Result<ExitCode, CliError> {
    let (lower, mount_kms) = resolve(&args.path)?;
    let kms = service::connect(service::for_volume(kms, mount_kms.as_deref()), Behalf::Filesystem)?;
    let volume = Volume::open(&lower, kms, CacheLimits::default())?;
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let jobs = args.jobs.unwrap_or(DEFAULT_JOBS);
    if args.background {
        crate::sys::priority::give_way().map_err(|e| CliError::failed(e.to_string()))?;
    }
    let options = RewrapOptions {
        to_key: args.to_key.clone(),
        jobs,
        dry_run: args.dry_run,
        rate: args.rate,
        purge: args.purge,
        is_copy: false,
    };
    if let Some(every) = args.watch {
        return watch_rotations(&volume, &lower, &options, &progress, every);
    }
    let shown = Shown::start(&progress, "rewrap", args.json);
    let _telling = mount_of(&lower).map(|status| tell_mount(&progress, "rewrap", status.mountpoint));
    if !args.json {
        volume::count_files(&volume, jobs, &progress)?;
    }
    let report = volume::rewrap(&volume, &options, &progress, || tell_mount_of(&lower));
    drop(shown);
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print_rewrap(&report)?;
    }
    let exit = if report.is_complete() { ExitCode::SUCCESS } else { Exit::Failed.into() };
    Ok(exit)
}

/// Moves the headers whenever a key of the volume has another version than last time, until it is told to end.
fn watch_rotations(
    volume: &Volume,
    lower: &Path,
    options: &RewrapOptions,
    progress: &Progress,
    every: std::time::Duration,
) -> Result<ExitCode, CliError> {
    let mut done = None;
    loop {
        let _ = volume.keys.reload_if_changed();
        let versions = volume.keys.current_versions();
        // Versions that cannot be told now are asked for again.
        if versions.as_ref().is_ok_and(|versions| done.as_ref() != Some(versions)) {
            match volume::rewrap(volume, options, progress, || tell_mount_of(lower)) {
                Ok(report) if report.is_complete() => {
                    print_rewrap(&report)?;
                    done = versions.ok();
                }
                Ok(report) => print_rewrap(&report)?,
                Err(e) => eprintln!("kmsfs: {e}; tried again in {} s", every.as_secs()),
            }
        } else if let Err(e) = versions {
            eprintln!("kmsfs: {e}; tried again in {} s", every.as_secs());
        }
        let deadline = std::time::Instant::now() + every;
        while std::time::Instant::now() < deadline {
            if progress.stop.load(Ordering::Relaxed) {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// The mount of `lower`, if it has one that we may ask.
pub(super) fn mount_of(lower: &Path) -> Option<Status> {
    control::of_lower(&std::fs::canonicalize(lower).ok()?)
}

/// Has the mount of `lower` read the volume record again. `false` where none is found or it did not.
pub(super) fn tell_mount_of(lower: &Path) -> bool {
    let told = mount_of(lower).map(|status| control::ask(&status.mountpoint, &Request::Reload));
    matches!(told, Some(Ok(Answer::Reloaded(_))))
}

fn print_rewrap(report: &RewrapReport) -> Result<(), CliError> {
    let verb = if report.dry_run { "to move" } else { "moved" };
    line(&format!(
        "{} {verb}, {} current, {} failed, {} empty ({:.1} s, {:.0} files/s)",
        report.moved,
        report.current,
        report.failed,
        report.without_header,
        report.seconds,
        report.files_per_second()
    ))?;
    if report.purged > 0 {
        line(&format!("{} wraps that no longer counted are gone", report.purged))?;
    }
    if report.foreign > 0 {
        line(&format!("{} names in the lower tree are not ours; 'kmsfs fsck' lists them", report.foreign))?;
    }
    for failure in report.failures.iter().take(MAX_PRINTED) {
        let plain = failure.path.as_ref().map(|p| format!(" ({})", p.display())).unwrap_or_default();
        eprintln!("failed: {}{plain}: {}", failure.lower_path.display(), failure.why);
    }
    if report.failed as usize > MAX_PRINTED {
        eprintln!("failed: {} more", report.failed as usize - MAX_PRINTED);
    }
    let rows: Vec<_> = report
        .versions
        .iter()
        .map(|v| {
            let material = v.material_id.as_deref().unwrap_or("unknown");
            let short = material.get(..12).unwrap_or(material).to_owned();
            let state = if v.current { "current" } else { "old" };
            vec![v.key_arn.clone(), short, v.files.to_string(), state.to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        line("key versions in use:")?;
        table(&["KEY", "VERSION", "FILES", "STATE"], &rows)?;
    }
    if let Some(why) = &report.ended_early {
        eprintln!("ended early: {why}");
    } else if !report.record_current && !report.dry_run {
        eprintln!("the volume record is still under an old version of its key");
    }
    Ok(())
}

/// `kmsfs fsck`
pub fn fsck(args: &FsckArgs, kms: Option<&str>) -> ExitCode {
    match try_fsck(args, kms) {
        Ok(report) if report.ended_early => FSCK_INTERRUPTED.into(),
        Ok(report) if report.errors > report.errors_repaired => FSCK_ERRORS.into(),
        Ok(report) if report.errors_repaired + report.remarks_repaired > 0 => FSCK_REPAIRED.into(),
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kmsfs: {e}");
            FSCK_OPERATIONAL.into()
        }
    }
}

fn try_fsck(args: &FsckArgs, kms: Option<&str>) -> Result<CheckReport, CliError> {
    let (lower, mount_kms) = resolve(&args.path)?;
    if !args.structure_only {
        // Says early, and well, when this is no volume at all.
        volume::peek(&lower)?;
    }
    let volume = if args.structure_only {
        None
    } else {
        let kms = service::connect(service::for_volume(kms, mount_kms.as_deref()), Behalf::Filesystem)?;
        let opened = Volume::open(&lower, kms, CacheLimits::default());
        let volume = opened.map_err(|e| {
            CliError::from(e).with_hint("--structure-only checks what can be checked without the key")
        })?;
        volume.bring_all(&args.customer_key, true)?;
        Some(volume)
    };
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "fsck", args.json);
    let options =
        CheckOptions { jobs: args.jobs.unwrap_or(DEFAULT_JOBS), data: !args.quick, repair: args.repair };
    let report = volume::check(&lower, volume.as_ref(), &options, &progress);
    drop(shown);
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print_check(&report, args)?;
    }
    Ok(report)
}

fn print_check(report: &CheckReport, args: &FsckArgs) -> Result<(), CliError> {
    for finding in report.findings.iter().take(MAX_PRINTED) {
        let kind = if finding.error { "error" } else { "remark" };
        let plain = finding.path.as_ref().map(|p| format!(" ({})", p.display())).unwrap_or_default();
        line(&format!("{kind}: {}{plain}: {}", finding.lower_path.display(), finding.why))?;
        if let Some(how) = &finding.repaired {
            line(&format!("  repaired: {how}"))?;
        }
    }
    let hidden = (report.errors + report.remarks) as usize;
    if hidden > MAX_PRINTED {
        line(&format!("and {} more; --json lists them", hidden - MAX_PRINTED))?;
    }
    let depth = match (report.with_key, report.with_data) {
        (false, _) => "structure only",
        (true, false) => "headers, names and records",
        (true, true) => "everything",
    };
    line(&format!(
        "{}, {} ({}), {}, {} special: checked {depth}",
        many(report.directories, "directory", "directories"),
        many(report.files, "file", "files"),
        size(report.bytes),
        many(report.links, "link", "links"),
        report.specials
    ))?;
    if report.live {
        line("a mount uses the volume: files that were being written are best checked again after umount")?;
    }
    let repaired = match report.errors_repaired + report.remarks_repaired {
        0 => String::new(),
        n => format!(", {} repaired", many(n, "thing", "things")),
    };
    let errors =
        if report.errors == 0 { "no errors".to_owned() } else { many(report.errors, "error", "errors") };
    line(&format!("{errors}{repaired}"))?;
    match report.errors - report.errors_repaired {
        0 => Ok(()),
        _ if args.structure_only => Ok(()),
        _ if !args.repair => line("'kmsfs fsck --repair' puts right what can be, and deletes nothing"),
        left => line(&format!(
            "{} left, which nothing here can put right: take back what they name from a backup",
            many(left, "error is", "errors are")
        )),
    }
}

fn many(n: u64, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// `kmsfs info`
pub fn info(args: &InfoArgs) -> Result<(), CliError> {
    if args.recursive {
        return super::defaults::tree(args);
    }
    let lower = match control::holding(&args.path) {
        Some((status, rest)) => match control::ask(&status.mountpoint, &Request::Locate { path: rest })? {
            Answer::Located(lower) => status.lower.join(lower),
            _ => return Err(CliError::failed("the mount gave an answer to another question")),
        },
        None => args.path.clone(),
    };
    let info = volume::file_info(&lower).map_err(|e| match e {
        // The path as it was asked for, not the lower one.
        VolumeError::Io(what, _, e) => VolumeError::Io(what, args.path.clone(), e),
        other => other,
    })?;
    if args.json {
        return print_json(&info);
    }
    let active = info.slots.iter().find(|slot| slot.active);
    facts(&[
        ("lower file", Some(info.lower_path.display().to_string())),
        ("size", Some(format!("{} ({} bytes)", size(info.size), info.size))),
        ("lower size", Some(format!("{} bytes, {} on disk", info.lower_size, size(info.allocated)))),
        ("key", active.map(|slot| slot.key_arn.clone())),
        ("version", active.map(|slot| slot.material_id.clone().unwrap_or_else(|| "unknown".to_owned()))),
        ("cipher", Some(format!("{}, blocks of {} bytes", info.cipher, info.block_size))),
        ("format", Some(info.format.to_string())),
        ("file id", info.file_id.clone()),
        ("volume id", info.volume_id.clone()),
    ])?;
    if info.slots.is_empty() {
        return line("empty file: it takes a key at its first write");
    }
    for slot in &info.slots {
        let state = if slot.active { "counts" } else { "older" };
        line(&format!("slot {}: generation {}, {state}, {}", slot.slot, slot.generation, slot.key_arn))?;
    }
    Ok(())
}
