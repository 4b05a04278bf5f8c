//! `kmsfs key versions` and `kmsfs key retire-version`: which versions of a key the volumes of this host use, and the end
//! of one that none uses.
//!
//! Called by `keys`. Must never have a version destroyed while a volume that is known uses it or cannot be looked at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::control::{self, Request, Status};
use super::error::{CliError, Exit};
use super::key_args::{RetireArgs, VersionsArgs};
use super::mount_plan::mount_table;
use super::named::registry;
use super::output::{json as print_json, line, table, text, time};
use super::service::services;
use super::volumes::DEFAULT_JOBS;
use crate::api::Operation;
use crate::client::{Endpoint, Kms};
use crate::sys::at;
use crate::volume::{Version, is_mounted, snapshot, versions_in_use};

/// Most versions that are listed; a key has fewer.
const LISTED: usize = 1000;
/// Least digits by which a version is named.
const SHORTEST: usize = 8;
/// Digits shown to people.
const SHOWN: usize = 12;

/// A lower tree to look at: what people call it, and where it is.
struct Place {
    name: String,
    lower: PathBuf,
    /// Whether it counts that it cannot be read: not for a mount with another key service.
    matters: bool,
}

/// One version of the key.
#[derive(Serialize)]
struct VersionUse {
    id: String,
    state: &'static str,
    since: Option<String>,
    /// Headers and records under it, by place.
    uses: BTreeMap<String, u64>,
}

/// `kmsfs key versions`
pub fn versions(kms: &Kms, args: &VersionsArgs) -> Result<(), CliError> {
    let (key_arn, mut known) = listed(kms, &args.key)?;
    let unread =
        count(&mut known, &key_arn, &places(kms.endpoint_of(&key_arn), &args.also, &control::mounts()));
    if args.json {
        return print_json(&json!({ "key": key_arn, "versions": known, "unread": unread }));
    }
    let rows: Vec<_> = known
        .iter()
        .map(|version| {
            let uses: Vec<String> =
                version.uses.iter().map(|(place, count)| format!("{place} ({count})")).collect();
            let since = version.since.clone().unwrap_or_default();
            let uses = if uses.is_empty() { "-".to_owned() } else { uses.join(", ") };
            vec![version.id.chars().take(SHOWN).collect(), version.state.to_owned(), since, uses]
        })
        .collect();
    table(&["VERSION", "STATE", "SINCE", "USED BY (FILES AND RECORDS)"], &rows)?;
    for why in &unread {
        eprintln!("kmsfs: {why}");
    }
    Ok(())
}

/// `kmsfs key retire-version`
pub fn retire(kms: &Kms, args: &RetireArgs) -> Result<(), CliError> {
    let (key_arn, mut known) = listed(kms, &args.key)?;
    let wanted = args.version.to_ascii_lowercase();
    let mut named = known.iter().filter(|version| version.id.starts_with(&wanted));
    let id = match (named.next(), named.next()) {
        (Some(version), None) if wanted.len() >= SHORTEST => version.id.clone(),
        _ => {
            let text = format!(
                "{key_arn} has no version '{wanted}', or several; 'kmsfs key versions' lists them, and {SHORTEST} digits name one"
            );
            return Err(CliError::new(Exit::Usage, text));
        }
    };
    let request = |dry: bool| json!({ "KeyId": key_arn, "KeyMaterialId": id, "DryRun": dry });
    // The service's own reasons come first: it is the current one, nobody may.
    match kms.call_json(Operation::RetireVersion, &request(true)) {
        Err(e) if e.code() != Some(crate::api::ErrorCode::DryRunOperationException) => return Err(e.into()),
        _ => {}
    }
    let renewed = renew(&key_arn);
    let places = places(kms.endpoint_of(&key_arn), &args.also, &renewed);
    check_renewed(&key_arn, &places, &renewed)?;
    let unread = count(&mut known, &key_arn, &places);
    if let Some(why) = unread.first() {
        let text = format!("{why}; nothing was destroyed (a volume that is gone: 'kmsfs volume forget')");
        return Err(CliError::new(Exit::Volume, text));
    }
    let uses =
        known.into_iter().find(|version| version.id == id).map(|version| version.uses).unwrap_or_default();
    if !uses.is_empty() {
        let list: Vec<String> = uses.iter().map(|(place, count)| format!("{place} ({count})")).collect();
        let text = format!(
            "version {id} is in use by {}; 'kmsfs rewrap' moves a volume off it, and a snapshot or a copy that is under it must go first",
            list.join(", ")
        );
        return Err(CliError::new(Exit::Busy, text));
    }
    if !args.yes {
        let text = format!(
            "no volume that is known here uses version {id}; --yes destroys it for good. Backups, copies and streams that lie elsewhere \
             and were not rewrapped can never be opened again"
        );
        return Err(CliError::new(Exit::Usage, text));
    }
    kms.call_json(Operation::RetireVersion, &request(false))?;
    line(&format!("version {id} of {key_arn} is destroyed"))
}

/// The key's ARN, and its versions as the service tells them, the newest first.
fn listed(kms: &Kms, key: &str) -> Result<(String, Vec<VersionUse>), CliError> {
    let facts = kms.describe_key(key)?;
    let request = json!({ "KeyId": facts.arn, "IncludeKeyMaterial": "ALL_KEY_MATERIAL", "Limit": LISTED });
    let answer = kms.call_json(Operation::ListKeyRotations, &request)?;
    let current = facts.current_key_material_id.as_deref();
    let entries = answer.get("Rotations").and_then(Value::as_array).into_iter().flatten();
    let version = |entry: &Value| {
        let id = text(entry, "KeyMaterialId")?;
        let state = if Some(id.as_str()) == current { "current" } else { "old" };
        Some(VersionUse { state, since: time(entry, "RotationDate"), uses: BTreeMap::new(), id })
    };
    Ok((facts.arn, entries.filter_map(version).collect()))
}

/// Has each mount drop its keys under `key_arn`, so that what it writes from now on is under the current version: keys are
/// fetched ahead of need, and that of a file that is empty still is in no header. The mounts that did.
fn renew(key_arn: &str) -> Vec<Status> {
    control::ask_all(&Request::Lock { key: Some(key_arn.to_owned()), once: true })
}

/// Refuses where a place is mounted, has something under the key, and its mount is none of those that did as they were asked.
fn check_renewed(
    key_arn: &str,
    places: &[Result<Place, String>],
    renewed: &[Status],
) -> Result<(), CliError> {
    let renewed: Vec<PathBuf> = renewed.iter().map(|status| at::resolved(&status.lower)).collect();
    let is_under = |used: Vec<Version>| used.iter().any(|version| version.key_arn == key_arn);
    for place in places.iter().flatten().filter(|place| !renewed.contains(&place.lower)) {
        if is_mounted(&place.lower).unwrap_or(false)
            && versions_in_use(&place.lower, DEFAULT_JOBS).is_ok_and(is_under)
        {
            let text = format!("the mount of {} does not answer; nothing was destroyed", place.name);
            return Err(CliError::new(Exit::Volume, text));
        }
    }
    Ok(())
}

/// Every lower tree that this host knows of: volumes by name, mounts, their snapshots, and those named. Mounts that call no
/// service at `own` do not matter.
fn places(own: &Endpoint, also: &[PathBuf], answering: &[Status]) -> Vec<Result<Place, String>> {
    let mut found: Vec<Result<Place, String>> = Vec::new();
    let entries = match registry().list() {
        Ok(entries) => entries,
        Err(e) => return vec![Err(e.to_string())],
    };
    for entry in entries {
        found.push(match entry {
            Ok(entry) => Ok(Place { name: entry.name, lower: entry.lower, matters: true }),
            Err(e) => Err(e.to_string()),
        });
    }
    let shown = |path: &Path| path.display().to_string();
    let mounted = answering.iter().map(|status| Place {
        name: shown(&status.mountpoint),
        matters: services(Some(&status.kms)).map_or(true, |services| services.name(own)),
        lower: status.lower.clone(),
    });
    let named = also.iter().map(|lower| Place { name: shown(lower), lower: lower.clone(), matters: true });
    // Mounts that do not answer, and so do not tell their key service.
    let mute = mount_table().into_iter().map(|(mountpoint, lower)| Place {
        name: shown(&mountpoint),
        matters: false,
        lower,
    });
    for place in mounted.chain(named).chain(mute) {
        let lower = at::resolved(&place.lower);
        if !found.iter().flatten().any(|known| known.lower == lower) {
            found.push(Ok(Place { lower, ..place }));
        }
    }
    let volumes: Vec<(String, PathBuf, bool)> = found
        .iter()
        .flatten()
        .map(|place| (place.name.clone(), place.lower.clone(), place.matters))
        .collect();
    for (name, lower, matters) in volumes {
        match snapshot::paths(&lower) {
            Ok(paths) => {
                let place = |(snapshot, lower)| Place { name: format!("{name}@{snapshot}"), lower, matters };
                found.extend(paths.into_iter().map(|path| Ok(place(path))));
            }
            Err(e) if matters => found.push(Err(format!("the snapshots of {name} cannot be looked at: {e}"))),
            Err(_) => {}
        }
    }
    found
}

/// Counts what each place has under each version. What could not be looked at.
fn count(known: &mut [VersionUse], key_arn: &str, places: &[Result<Place, String>]) -> Vec<String> {
    let mut unread = Vec::new();
    for place in places {
        let place = match place {
            Ok(place) => place,
            Err(why) => {
                unread.push(why.clone());
                continue;
            }
        };
        match versions_in_use(&place.lower, DEFAULT_JOBS) {
            Ok(used) => {
                for version in used.iter().filter(|version| version.key_arn == key_arn) {
                    let id = version.material_id.as_deref().unwrap_or_default();
                    if let Some(known) = known.iter_mut().find(|known| known.id == id) {
                        known.uses.insert(place.name.clone(), version.files);
                    }
                }
            }
            Err(e) if place.matters => unread.push(format!("{} cannot be looked at: {e}", place.name)),
            Err(_) => {}
        }
    }
    unread
}
