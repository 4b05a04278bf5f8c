//! `kmsfs volume create`: a volume under its name, and what an interrupted one left.
//!
//! The name is noted first, as being made: whatever ends the command leaves nothing that the next one does not find. Must
//! never remove what another hand has put into the lower directory.

use std::path::Path;

use serde_json::json;

use super::block;
use super::error::CliError;
use super::named::{absolute, key_for_new, now, registry, remove_all};
use super::output::{json as print_json, line};
use super::service::{self, Behalf};
use super::volume_args::CreateArgs;
use super::volumes::default_sheet_dir;
use crate::client::Kms;
use crate::sys::at;
use crate::volume::registry::{self, Block, Changing, Entry, Quota, Registry, RegistryError, State};
use crate::volume::{self, InitOptions, Made, VolumeError};

/// `kmsfs volume create`
pub fn create(args: &CreateArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    registry::check_name(&args.name)?;
    if let Some(bytes) = args.block {
        block::check_tools(args.fs)?;
        block::check_size(bytes, args.fs)?;
    }
    let registry = registry();
    let changing = registry.change()?;
    let sheet_dir = args.recovery_sheet.clone().unwrap_or_else(default_sheet_dir);
    match registry.find(&args.name) {
        // Whoever was making it would hold the lock.
        Ok(left) if left.state == State::Creating => take_back(&left, &sheet_dir, &changing)?,
        Err(RegistryError::Unknown(_)) => {}
        found => return Err(found.map_or_else(|e| e, |entry| RegistryError::Exists(entry.name)).into()),
    }
    let at = args.at.clone().unwrap_or_else(|| registry.default_lower(&args.name));
    let lower = absolute(&at)?;
    let service = service::connect(kms, Behalf::Filesystem)?;
    volume::check_new(&lower)?;
    let (id, key) = (volume::new_id(), key_for_new(args.key.as_deref())?);
    let options = InitOptions { key: key.clone(), sheet_dir, bind_names: args.bind_names, id: Some(id) };
    let begun = Entry {
        name: args.name.clone(),
        lower: at::resolved(&lower),
        volume_id: id.to_string(),
        key_arn: key,
        kms: kms.map(str::to_owned),
        created: now(),
        state: State::Creating,
        quota: None,
        block: args.block.map(|bytes| Block { bytes, filesystem: args.fs.name().to_owned() }),
        attachment: None,
    };
    changing.add(&begun)?;
    let (quota, made) = make(&begun.lower, args.size, &options, &registry, &service).inspect_err(|_| {
        let _ = changing.remove(&begun.name);
    })?;
    let entry = Entry { key_arn: made.key_arn.clone(), quota, ..begun };
    if entry.block.is_some() {
        block::format(&entry, kms, verbose).inspect_err(|_| {
            let _ = remove_all(&entry, &changing);
            let _ = std::fs::remove_file(&made.sheet);
        })?;
    }
    let entry = Entry { state: State::Available, ..entry };
    changing.put(&entry)?;
    tell(&entry, &made.sheet, args.json)
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
fn make(
    lower: &Path,
    size: Option<u64>,
    options: &InitOptions,
    registry: &Registry,
    service: &Kms,
) -> Result<(Option<Quota>, Made), CliError> {
    let prepared = volume::prepare_lower(lower)?;
    let quota = size.map(|bytes| set_quota(lower, registry, bytes)).transpose();
    let made = quota.and_then(|quota| Ok((quota, volume::init(lower, service, options)?)));
    made.inspect_err(|_| {
        if prepared {
            let _ = volume::remove_lower(lower);
        }
    })
}

/// Takes away what the interrupted making of `left` left.
fn take_back(left: &Entry, sheet_dir: &Path, changing: &Changing<'_>) -> Result<(), CliError> {
    block::take_back(left)?;
    volume::take_back(&left.lower, &left.volume_id, sheet_dir).map_err(|e| {
        let hint = format!(
            "the making of {0} was interrupted, and something else has come to be there: 'kmsfs volume forget {0}' lets go of it",
            left.name
        );
        let foreign = matches!(e, VolumeError::NotEmpty(_));
        if foreign { CliError::from(e).with_hint(&hint) } else { e.into() }
    })?;
    Ok(changing.remove(&left.name)?)
}

/// A project number that no volume of the registry has, and the limit under it.
fn set_quota(lower: &Path, registry: &Registry, bytes: u64) -> Result<Quota, CliError> {
    const FIRST_PROJECT: u32 = 0x6b6d_0000;
    let used: Vec<u32> =
        registry.list()?.into_iter().flatten().filter_map(|entry| Some(entry.quota?.project)).collect();
    let project = (FIRST_PROJECT..u32::MAX).find(|number| !used.contains(number)).unwrap_or(FIRST_PROJECT);
    volume::limit_lower(lower, project, bytes)?;
    Ok(Quota { bytes, project })
}
