//! `kmsfs volume create`: a volume under its name, and what an interrupted one left.
//!
//! The name is noted first, as being made: whatever ends the command leaves nothing that the next one does not find. Must
//! never remove what another hand has put into the lower directory.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::block;
use super::error::CliError;
use super::named::{absolute, key_for_new, now, registry, remove_all};
use super::output::{json as print_json, line};
use super::service::{self, Behalf};
use super::volume_args::CreateArgs;
use super::volumes::default_sheet_dir;
use crate::client::{CacheLimits, Kms};
use crate::sys::at;
use crate::volume::registry::{self, Block, Changing, Entry, Quota, Registry, RegistryError, State};
use crate::volume::{self, InitOptions, Made, Volume, VolumeError};

/// `kmsfs volume create`
pub fn create(args: &CreateArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    registry::check_name(&args.name)?;
    if let Some(bytes) = args.block {
        block::check_tools(args.fs)?;
        block::check_size(bytes, args.fs)?;
    }
    let registry = registry();
    let changing = registry.change()?;
    let sheet_dir = sheet_dir_of(args);
    match registry.find(&args.name) {
        // Whoever was making it would hold the lock.
        Ok(left) if left.state == State::Creating => {
            block::take_back(&left)?;
            if volume::is_made(&left.lower, &left.volume_id) {
                let entry = go_on(left, args, kms, verbose)?;
                let sheet = volume::sheet_of(&entry.lower, &sheet_dir)?;
                changing.put(&entry)?;
                return tell(&entry, &sheet, args.json);
            }
            take_back(&left, &sheet_dir)?;
            changing.remove(&left.name)?;
        }
        Err(RegistryError::Unknown(_)) => {}
        found => return Err(found.map_or_else(|e| e, |entry| RegistryError::Exists(entry.name)).into()),
    }
    make_anew(args, kms, verbose, &registry, &changing)
}

/// Makes a volume of which nothing is there.
fn make_anew(
    args: &CreateArgs,
    kms: Option<&str>,
    verbose: u8,
    registry: &Registry,
    changing: &Changing<'_>,
) -> Result<(), CliError> {
    let at = args.at.clone().unwrap_or_else(|| registry.default_lower(&args.name));
    let lower = absolute(&at)?;
    let service = service::connect(kms, Behalf::Filesystem)?;
    volume::check_new(&lower)?;
    let (id, key) = (volume::new_id(), key_for_new(args.key.as_deref())?);
    let sheet_dir = sheet_dir_of(args);
    let options = InitOptions { key: key.clone(), sheet_dir, bind_names: args.bind_names, id: Some(id) };
    let begun = Entry {
        name: args.name.clone(),
        lower: at::resolved(&lower),
        volume_id: id.to_string(),
        key_arn: key,
        kms: kms.map(str::to_owned),
        created: now(),
        state: State::Creating,
        // Noted before it is set, so that the number is not taken again and the limit is found.
        quota: args.size.map(|bytes| quota_for_new(registry, bytes)).transpose()?,
        block: args.block.map(|bytes| Block { bytes, filesystem: args.fs.name().to_owned() }),
        attachment: None,
    };
    changing.add(&begun)?;
    let made = make(&begun, &options, &service).inspect_err(|_| {
        let _ = changing.remove(&begun.name);
    })?;
    let entry = Entry { key_arn: made.key_arn.clone(), ..begun };
    if entry.block.is_some() {
        block::format(&entry, kms, verbose).inspect_err(|_| {
            let _ = remove_all(&entry, changing);
            let _ = std::fs::remove_file(&made.sheet);
        })?;
    }
    let entry = Entry { state: State::Available, ..entry };
    changing.put(&entry)?;
    tell(&entry, &made.sheet, args.json)
}

fn sheet_dir_of(args: &CreateArgs) -> PathBuf {
    args.recovery_sheet.clone().unwrap_or_else(default_sheet_dir)
}

/// Ends the interrupted making of `left`, whose record is whole: it may have been used since, so nothing of it is removed.
fn go_on(left: Entry, args: &CreateArgs, kms: Option<&str>, verbose: u8) -> Result<Entry, CliError> {
    let key_arn = volume::peek(&left.lower)?.active().wrapped.key_arn.clone();
    let kms = kms.or(left.kms.as_deref());
    if let Some(option) = other_than_begun(&left, &key_arn, args, kms)? {
        let text = format!(
            "the making of volume {0} was interrupted with another {option}, or without it: 'kmsfs volume create {0}' ends \
             it as it was begun, 'kmsfs volume delete {0} --yes' takes it away with all that it holds",
            left.name
        );
        return Err(CliError::failed(text));
    }
    block::format(&left, kms, verbose)?;
    Ok(Entry { key_arn, state: State::Available, ..left })
}

/// The option of `args` that is not what `left` was begun with.
fn other_than_begun(
    left: &Entry,
    key_arn: &str,
    args: &CreateArgs,
    kms: Option<&str>,
) -> Result<Option<&'static str>, CliError> {
    let block = args.block.map(|bytes| Block { bytes, filesystem: args.fs.name().to_owned() });
    let at = args.at.as_deref().map(absolute).transpose()?.map(|at| at::resolved(&at));
    let key = args.key.as_deref();
    let differs = [
        ("--at", at.is_some_and(|at| at != left.lower)),
        ("--key", key.is_some_and(|key| key != left.key_arn && key != key_arn)),
        ("--size", args.size.is_some() && args.size != left.quota.as_ref().map(|quota| quota.bytes)),
        ("--block", block.is_some() && block != left.block),
    ];
    if let Some((option, _)) = differs.iter().find(|(_, differs)| *differs) {
        return Ok(Some(option));
    }
    if args.bind_names {
        // Only the key tells.
        let service = service::connect(kms, Behalf::Filesystem)?;
        let opened = Volume::open(&left.lower, service, CacheLimits::default())?;
        return Ok((!opened.key.binds_names()).then_some("--bind-names"));
    }
    Ok(None)
}

fn tell(entry: &Entry, sheet: &Path, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return print_json(&json!({ "volume": entry, "recovery_sheet": sheet }));
    }
    line(&format!("made volume {} ({}) in {}", entry.name, entry.volume_id, entry.lower.display()))?;
    line(&format!("key: {}", entry.key_arn))?;
    line(&format!("recovery sheet: {} (keep a copy elsewhere)", sheet.display()))
}

/// The lower directory, its limit and its records; nothing of them where one fails.
fn make(begun: &Entry, options: &InitOptions, service: &Kms) -> Result<Made, CliError> {
    let prepared = volume::prepare_lower(&begun.lower)?;
    let limited = begun
        .quota
        .iter()
        .try_for_each(|quota| volume::limit_lower(&begun.lower, quota.project, quota.bytes));
    let made = limited.and_then(|()| volume::init(&begun.lower, service, options));
    Ok(made.inspect_err(|_| {
        let _ = lift_quota(begun);
        if prepared {
            let _ = volume::remove_lower(&begun.lower);
        }
    })?)
}

/// Takes away what the interrupted making of `left` left, but for its directory, and never anything else.
fn take_back(left: &Entry, sheet_dir: &Path) -> Result<(), CliError> {
    volume::take_back(&left.lower, &left.volume_id, sheet_dir).map_err(|e| {
        let hint = format!(
            "the making of {0} was interrupted, and something else has come to be there: 'kmsfs volume forget {0}' lets go of it",
            left.name
        );
        let foreign = matches!(e, VolumeError::NotEmpty(_));
        if foreign { CliError::from(e).with_hint(&hint) } else { e.into() }
    })?;
    Ok(lift_quota(left)?)
}

fn lift_quota(entry: &Entry) -> Result<(), VolumeError> {
    entry.quota.iter().try_for_each(|quota| volume::lift_limit(&entry.lower, quota.project))
}

/// Removes the volume `left`, whose making was interrupted.
pub(super) fn remove(left: &Entry, changing: &Changing<'_>) -> Result<(), CliError> {
    block::take_back(left)?;
    if volume::is_made(&left.lower, &left.volume_id) {
        return remove_all(left, changing);
    }
    take_back(left, &default_sheet_dir())?;
    // A mount point, or what somebody has just put something into, stays.
    let _ = std::fs::remove_dir(&left.lower);
    Ok(changing.remove(&left.name)?)
}

/// A project number that no volume of the registry has, for the limit of a new one.
fn quota_for_new(registry: &Registry, bytes: u64) -> Result<Quota, CliError> {
    const FIRST_PROJECT: u32 = 0x6b6d_0000;
    let used: Vec<u32> =
        registry.list()?.into_iter().flatten().filter_map(|entry| Some(entry.quota?.project)).collect();
    let project = (FIRST_PROJECT..u32::MAX).find(|number| !used.contains(number)).unwrap_or(FIRST_PROJECT);
    Ok(Quota { bytes, project })
}
