//! `kmsfs volume`: volumes of this host by name.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::MountArgs;
use super::block;
use super::control::{self, Status};
use super::error::{CliError, Exit};
use super::mount;
use super::mount_plan::mount_table;
use super::mounts;
use super::output::{facts, json as print_json, line, size};
use super::service;
use super::volume_args::{
    AddArgs, AttachArgs, DefaultsArgs, DeleteArgs, DetachArgs, GcArgs, NameArgs, ResizeArgs, VolumeCommand,
};
use super::volume_create;
use super::volume_state::{self, Standing};
use crate::volume::registry::{self, Block, Changing, Defaults, Entry, Quota, Registry, State};
use crate::volume::{self, MountLock, SERVICE_KEY, VolumeError};

/// Runs a `kmsfs volume` command.
pub fn run(command: &VolumeCommand, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    match command {
        VolumeCommand::Create(args) => volume_create::create(args, kms, verbose),
        VolumeCommand::Attach(args) => attach(args, kms, verbose),
        VolumeCommand::Detach(args) => detach(args),
        VolumeCommand::List(args) => volume_state::list(args),
        VolumeCommand::Describe(args) => volume_state::describe(args),
        VolumeCommand::Resize(args) => resize(args, kms, verbose),
        VolumeCommand::Delete(args) => delete(args),
        VolumeCommand::Add(args) => add(args, kms, verbose),
        VolumeCommand::Forget(args) => forget(args),
        VolumeCommand::Gc(args) => gc(args),
        VolumeCommand::Defaults(args) => defaults(args),
    }
}

/// The registry of this user, or of the system for root.
pub fn registry() -> Registry {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    if let Some(dir) = absolute("KMSFS_STATE_DIR") {
        return Registry::at(dir);
    }
    if rustix::process::geteuid().is_root() {
        return Registry::at("/var/lib/kmsfs".into());
    }
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    Registry::at(state.unwrap_or_else(|| "/var/lib".into()).join("kmsfs"))
}

/// The key that a new volume takes: the one named, the host's, or the service's own.
pub fn key_for_new(named: Option<&str>) -> Result<String, CliError> {
    if let Some(key) = named {
        return Ok(key.to_owned());
    }
    Ok(registry().defaults()?.default_key.unwrap_or_else(|| SERVICE_KEY.to_owned()))
}

/// The lower directory that a command means by a volume's name, a lower directory or a mount point, and the key
/// service that goes with it.
pub fn resolve(place: &Path) -> Result<(PathBuf, Option<String>), CliError> {
    if let Some((status, rest)) = control::holding(place)
        && rest.as_os_str().is_empty()
    {
        return Ok((status.lower, Some(status.kms)));
    }
    let name = place.to_str().filter(|name| registry::check_name(name).is_ok() && !place.exists());
    if let Some(entry) = name.is_none().then(|| block_mounted_at(place)).flatten() {
        return Ok((entry.lower, entry.kms));
    }
    match name {
        Some(name) => registry().find(name).map(|entry| (entry.lower, entry.kms)).map_err(CliError::from),
        None => Ok((place.to_owned(), None)),
    }
}

/// The block volume whose filesystem is mounted at `place`.
fn block_mounted_at(place: &Path) -> Option<Entry> {
    let place = std::fs::canonicalize(place).ok()?;
    if volume::peek(&place).is_ok() {
        return None;
    }
    let blocks = registry().list().ok()?.into_iter().flatten().filter(|entry| entry.block.is_some());
    blocks.into_iter().find(|entry| matches!(block::standing(entry), block::Standing::At(at) if at == place))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|e| CliError::failed(format!("{}: {e}", path.display())))
}

/// The mount of a volume, if it has one that we may ask.
pub(super) fn mount_of(entry: &Entry) -> Option<Status> {
    control::of_lower(&entry.lower)
}

fn attach(args: &AttachArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let entry = registry().find(&args.name)?;
    let standing = Standing::of(&entry);
    match standing {
        Standing::MountGone(_) if entry.block.is_some() => block::detach(&entry, false)?,
        Standing::MountGone(_) => detach_remains(&entry)?,
        _ if standing.may_be_attached() => {}
        _ => return Err(standing.refusal(&entry)),
    }
    let kms = kms.or(entry.kms.as_deref());
    if entry.block.is_some() {
        return block::attach(&entry, args, kms, verbose);
    }
    let Some(mountpoint) = &args.mountpoint else {
        return Err(CliError::new(Exit::Usage, "name a mount point: an empty directory"));
    };
    let plan = MountArgs {
        options: args.options.clone(),
        allow_other: args.allow_other,
        customer_key: args.customer_key.clone(),
        read_only: args.read_only,
        idle: args.idle,
        attach: args.granted_name(),
        ..MountArgs::of(entry.lower.clone(), mountpoint.clone())
    };
    mount::mount(&plan, kms, verbose)
}

fn detach(args: &DetachArgs) -> Result<(), CliError> {
    let entry = registry().find(&args.name)?;
    if entry.block.is_some() {
        return block::detach(&entry, args.lazy);
    }
    match mount_of(&entry) {
        Some(status) => mounts::unmount(&status.mountpoint, args.lazy),
        None => detach_remains(&entry),
    }
}

/// Takes away the mounts of a volume whose daemons are gone.
fn detach_remains(entry: &Entry) -> Result<(), CliError> {
    let left: Vec<_> = mount_table().into_iter().filter(|(_, lower)| *lower == entry.lower).collect();
    if left.is_empty() {
        return Err(CliError::failed(format!("volume {} is not attached", entry.name)));
    }
    // One that only does not answer is left alone.
    drop(MountLock::take(&entry.lower)?);
    left.iter().try_for_each(|(place, _)| mounts::unmount(place, true))?;
    block::tell_remains(entry);
    Ok(())
}

fn resize(args: &ResizeArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let registry = registry();
    let changing = registry.change()?;
    let mut entry = registry.find(&args.name)?;
    if entry.state != State::Available {
        return Err(Standing::of(&entry).refusal(&entry));
    }
    if let Some(block) = &entry.block {
        let old = block.bytes;
        block::grow(&entry, args.size, kms, verbose)?;
        entry.block = entry.block.map(|block| Block { bytes: args.size, ..block });
        changing.put(&entry)?;
        return line(&format!("{}: {} instead of {}", entry.name, size(args.size), size(old)));
    }
    let Some(quota) = &entry.quota else {
        let text = format!("volume {} has neither a quota nor a block device to resize", entry.name);
        return Err(CliError::failed(text));
    };
    volume::change_limit(&entry.lower, quota.project, args.size)?;
    entry.quota = Some(Quota { bytes: args.size, project: quota.project });
    Ok(changing.put(&entry)?)
}

fn delete(args: &DeleteArgs) -> Result<(), CliError> {
    let registry = registry();
    if args.yes {
        retire_left(&registry, &args.name)?;
    }
    let changing = registry.change()?;
    let entry = registry.find(&args.name)?;
    let standing = Standing::of(&entry);
    if standing.is_mounted() {
        return Err(standing.refusal(&entry));
    }
    if !args.yes {
        let text = format!(
            "this would remove {} with all that it holds, snapshots too; --yes does it",
            entry.lower.display()
        );
        return Err(CliError::new(Exit::Usage, text));
    }
    if entry.state == State::Creating {
        volume_create::remove(&entry, &changing)?;
    } else {
        remove_all(&entry, &changing)?;
    }
    line(&format!("volume {} is gone; its key is not touched", entry.name))
}

/// Removes lower directory and entry; what a crash interrupts is gone on with by the next deletion.
pub(super) fn remove_all(entry: &Entry, changing: &Changing<'_>) -> Result<(), CliError> {
    let _lock = match MountLock::take(&entry.lower) {
        Ok(lock) => Some(lock),
        Err(e @ VolumeError::InUse(..)) => return Err(e.into()),
        Err(_) => None,
    };
    // Another volume may have been put in its place.
    if let Ok(record) = volume::peek(&entry.lower)
        && record.volume_id.to_string() != entry.volume_id
    {
        let text = format!("{} holds another volume, {}", entry.lower.display(), record.volume_id);
        return Err(CliError::new(Exit::Volume, text));
    }
    changing.put(&Entry { state: State::Deleting, ..entry.clone() })?;
    volume::remove_lower(&entry.lower)?;
    Ok(changing.remove(&entry.name)?)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn add(args: &AddArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let registry = registry();
    let changing = registry.change()?;
    let record = volume::peek(&args.lower)?;
    let lower = std::fs::canonicalize(&args.lower)
        .map_err(|e| CliError::failed(format!("{}: {e}", args.lower.display())))?;
    if let Some(known) = registry.list()?.into_iter().flatten().find(|entry| entry.lower == lower) {
        let text = format!("{} is the volume '{}' already", lower.display(), known.name);
        return Err(CliError::failed(text));
    }
    let mut entry = Entry {
        name: args.name.clone(),
        lower,
        volume_id: record.volume_id.to_string(),
        key_arn: record.active().wrapped.key_arn.clone(),
        kms: kms.map(str::to_owned),
        created: now(),
        state: State::Available,
        quota: None,
        block: None,
        attachment: None,
    };
    registry::check_name(&entry.name)?;
    if args.block {
        entry.block = Some(block::found(&entry, kms, verbose)?);
    }
    Ok(changing.add(&entry)?)
}

fn forget(args: &NameArgs) -> Result<(), CliError> {
    let registry = registry();
    retire_left(&registry, &args.name)?;
    let changing = registry.change()?;
    let entry = registry.find(&args.name)?;
    // The grants of its mount would be known to nobody.
    let standing = Standing::of(&entry);
    if standing.is_mounted() {
        return Err(standing.refusal(&entry));
    }
    changing.remove(&entry.name)?;
    let again = if entry.block.is_some() { "volume add --block" } else { "volume add" };
    line(&format!("{} stays where it is; 'kmsfs {again}' takes it up again", entry.lower.display()))
}

/// Retires what mounts left that were killed. One that cannot be retired now does not keep the others.
fn gc(args: &GcArgs) -> Result<(), CliError> {
    let registry = registry();
    let (mut retired, mut failed) = (0, 0);
    for entry in registry.list()?.into_iter().flatten().filter(|entry| entry.attachment.is_some()) {
        match collect_grants(&registry, &entry) {
            Ok(number) => retired += number,
            Err(e) => {
                failed += 1;
                eprintln!("kmsfs: volume {}: {e}", entry.name);
            }
        }
    }
    if args.json {
        print_json(&json!({ "retired": retired, "failed": failed }))?;
    } else {
        line(&format!("{retired} grants of ended mounts retired"))?;
    }
    if failed == 0 { Ok(()) } else { Err(CliError::failed(format!("{failed} volumes have some left"))) }
}

/// Retires what ended mounts of a volume left; nothing while it is mounted.
fn collect_grants(registry: &Registry, entry: &Entry) -> Result<usize, CliError> {
    // A lower directory that is gone has no mount either.
    let _lock = match MountLock::take(&entry.lower) {
        Err(VolumeError::InUse(..)) => return Ok(0),
        other => other.ok(),
    };
    // As it stands under the lock.
    let entry = registry.find(&entry.name)?;
    Ok(volume::collect_grants(registry, &entry, &service::connect_mount)?)
}

/// The same for a volume that goes out of the registry, which would forget them.
fn retire_left(registry: &Registry, name: &str) -> Result<(), CliError> {
    let entry = registry.find(name)?;
    if let (Err(e), Some(left)) = (collect_grants(registry, &entry), &entry.attachment) {
        eprintln!("kmsfs: {e}; its grants are those to {}", left.principal);
    }
    Ok(())
}

fn defaults(args: &DefaultsArgs) -> Result<(), CliError> {
    let registry = registry();
    if args.key.is_some() || args.no_key {
        registry.change()?.set_defaults(&Defaults { default_key: args.key.clone() })?;
    }
    let defaults = registry.defaults()?;
    if args.json {
        return print_json(&defaults);
    }
    let key = defaults.default_key.unwrap_or_else(|| format!("{SERVICE_KEY} (service-managed)"));
    facts(&[("encryption", Some("always".to_owned())), ("key for new volumes", Some(key))])
}
