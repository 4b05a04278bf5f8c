//! `kmsfs reencrypt`: by the mount where there is one, else in this process.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::args::ReencryptArgs;
use super::control::{self, Answer, Request, Status};
use super::error::{CliError, Exit};
use super::follow::Followed;
use super::named::resolve;
use super::output::{json as print_json, line, size, time_of};
use super::progress::{Shown, tell_mount};
use super::service::{self, Behalf};
use super::volumes::{DEFAULT_JOBS, MAX_PRINTED, mount_of, stop_on_signals, tell_mount_of};
use crate::client::CacheLimits;
use crate::volume::{self, Progress, ReencryptOptions, ReencryptReport, Volume};

/// What is to be re-encrypted.
struct Place {
    lower: PathBuf,
    /// Lower path below it; empty for the whole volume.
    path: PathBuf,
    kms: Option<String>,
    mount: Option<Status>,
}

/// `kmsfs reencrypt`
pub fn reencrypt(args: &ReencryptArgs, kms: Option<&str>) -> Result<ExitCode, CliError> {
    let place = place_of(&args.path)?;
    let service = service::connect(service::for_volume(kms, place.kms.as_deref()), Behalf::Filesystem)?;
    let volume = Volume::open(&place.lower, service, CacheLimits::default())?;
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let key = args.key.as_deref().map(|key| volume::admit_key(&volume, key)).transpose()?;
    if key.is_some() && place.mount.is_some() && !tell_mount_of(&place.lower) {
        return Err(CliError::failed("the mount does not take up the key"));
    }
    let options = ReencryptOptions {
        path: place.path.clone(),
        key,
        dry_run: args.dry_run,
        restart: args.restart,
        rate: args.rate,
        background: args.background,
    };
    let shown = Shown::start(&progress, "reencrypt", args.json);
    if !args.json && place.path.as_os_str().is_empty() {
        volume::count_files(&volume, DEFAULT_JOBS, &progress)?;
    }
    let done = match &place.mount {
        Some(status) => by_mount(status, options, &progress),
        None => by_ourselves(&volume, &options, &progress),
    };
    drop(shown);
    let report = done?;
    if args.json {
        print_json(&report)?;
    } else {
        print_report(&report)?;
    }
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { Exit::Failed.into() })
}

/// A path in a mount, a volume by its name or mount point, a lower directory, or a path below one.
fn place_of(path: &Path) -> Result<Place, CliError> {
    if let Some((status, rest)) = control::holding(path)
        && !rest.as_os_str().is_empty()
    {
        let Answer::Located(below) = control::ask(&status.mountpoint, &Request::Locate { path: rest })?
        else {
            return Err(CliError::failed("the mount gave an answer to another question"));
        };
        return Ok(Place {
            lower: status.lower.clone(),
            path: below,
            kms: Some(status.kms.clone()),
            mount: Some(status),
        });
    }
    let (named, kms) = resolve(path)?;
    let (lower, below) = volume::split_lower(&named);
    let mount = mount_of(&lower);
    Ok(Place { kms: mount.as_ref().map(|status| status.kms.clone()).or(kms), lower, path: below, mount })
}

fn by_ourselves(
    volume: &Volume,
    options: &ReencryptOptions,
    progress: &Progress,
) -> Result<ReencryptReport, CliError> {
    if options.background {
        crate::sys::priority::give_way().map_err(|e| CliError::failed(e.to_string()))?;
    }
    Ok(volume::reencrypt_offline(volume, options, progress)?)
}

/// Has the mount do it, and follows.
fn by_mount(
    status: &Status,
    options: ReencryptOptions,
    progress: &Arc<Progress>,
) -> Result<ReencryptReport, CliError> {
    let mountpoint = &status.mountpoint;
    control::ask(mountpoint, &Request::Reencrypt(options))?;
    let _telling = tell_mount(progress, "reencrypt", mountpoint.clone());
    let followed = Followed {
        mountpoint,
        what: "the re-encryption",
        state: Request::ReencryptState,
        cancel: Request::ReencryptCancel,
    };
    followed.to_the_end(progress, |answer| {
        let Answer::Reencrypt(state) = answer else { return None };
        Some((state.files, state.failed.map(Err).or(state.report.map(Ok))))
    })
}

fn print_report(report: &ReencryptReport) -> Result<(), CliError> {
    if let Some(begun) = report.begun {
        line(&format!(
            "{} files were done by the run of {}, which this one goes on with; --restart does them again",
            report.done_before,
            time_of(begun)
        ))?;
    }
    let verb = if report.dry_run { "to re-encrypt" } else { "re-encrypted" };
    line(&format!(
        "{} {verb} ({}), {} failed, {} empty ({:.1} s)",
        report.done,
        size(report.bytes),
        report.failed,
        report.without_header,
        report.seconds
    ))?;
    if report.snapshots > 0 && !report.dry_run {
        line(&format!(
            "{} snapshots hold the ciphertext under the old data keys; 'kmsfs snapshot delete' takes one away",
            report.snapshots
        ))?;
    }
    for failure in report.failures.iter().take(MAX_PRINTED) {
        let path = failure.path.as_deref().unwrap_or(&failure.lower_path);
        eprintln!("failed: {}: {}", path.display(), failure.why);
    }
    if report.failed as usize > MAX_PRINTED {
        eprintln!("failed: {} more", report.failed as usize - MAX_PRINTED);
    }
    if let Some(why) = &report.ended_early {
        eprintln!("ended early: {why}");
    }
    Ok(())
}
