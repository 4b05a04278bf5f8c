//! The commands that choose keys for files and show the choice: default, cp, info --recursive.
//!
//! A choice is made through the mount, by an extended attribute that no listing shows; the key must stand in the volume
//! record first.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;
use serde_json::json;

use super::args::{CpArgs, DefaultArgs, InfoArgs};
use super::control::{self, Request, Status};
use super::error::{CliError, Exit};
use super::output::{json as print_json, line, size, table};
use super::service::{self, Behalf};
use crate::client::CacheLimits;
use crate::volume::{self, KEY_ATTRIBUTE, SERVICE_KEY, Volume};

/// Longest ARN of a key.
const ARN_MAX: usize = 2048;
/// Failures listed.
const MAX_FAILURES: usize = 100;

/// `kmsfs default`
pub fn default(args: &DefaultArgs) -> Result<(), CliError> {
    let shown = args.dir.display();
    let dir = File::open(&args.dir).map_err(|e| CliError::failed(format!("{shown}: {e}")))?;
    let status = mount_of(&args.dir)?;
    if !dir.metadata().is_ok_and(|stat| stat.is_dir()) {
        return Err(CliError::new(Exit::Usage, format!("{shown} is not a directory; a file keeps its key")));
    }
    if args.none {
        return match rustix::fs::fremovexattr(&dir, KEY_ATTRIBUTE) {
            Ok(()) | Err(Errno::NODATA) => {
                line(&format!("new files in {shown} take the volume's default key"))
            }
            Err(e) => Err(CliError::failed(format!("{shown}: {e}"))),
        };
    }
    let key = if args.service_managed { Some(SERVICE_KEY) } else { args.key.as_deref() };
    if let Some(arn) = wanted(&status, key, args.customer_key.as_deref())? {
        choose(dir.as_fd(), &args.dir, &arn)?;
        return line(&format!("new files and directories in {shown} take {arn}"));
    }
    let own = chosen(&args.dir).map_err(|e| CliError::failed(format!("{shown}: {e}")))?;
    let key = own.clone().unwrap_or(status.default_key);
    if args.json {
        return print_json(&json!({ "key_arn": key, "of_volume": own.is_none() }));
    }
    line(&format!("{key}{}", if own.is_none() { " (the volume's default)" } else { "" }))
}

/// `kmsfs cp`
pub fn copy(args: &CpArgs) -> Result<(), CliError> {
    let failed = |path: &Path, e: std::io::Error| CliError::failed(format!("{}: {e}", path.display()));
    let mut from = File::open(&args.from).map_err(|e| failed(&args.from, e))?;
    let to = match (args.to.is_dir(), args.from.file_name()) {
        (true, Some(name)) => args.to.join(name),
        _ => args.to.clone(),
    };
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let status = mount_of(parent)?;
    let arn = wanted(&status, args.key.as_deref(), args.customer_key.as_deref())?;
    let mut made = File::options().write(true).create_new(true).open(&to).map_err(|e| failed(&to, e))?;
    let copied = match &arn {
        Some(arn) => choose(made.as_fd(), &to, arn),
        None => Ok(()),
    };
    let copied = copied.and_then(|()| {
        let moved = std::io::copy(&mut from, &mut made).and_then(|_| {
            let mode = from.metadata()?.permissions();
            made.set_permissions(mode)?;
            made.sync_all()
        });
        moved.map_err(|e| failed(&to, e))
    });
    if copied.is_err() {
        let _ = std::fs::remove_file(&to);
    }
    copied
}

/// What files of one master key there are.
#[derive(Debug, Default, Serialize)]
struct Share {
    files: u64,
    bytes: u64,
}

/// The keys of a tree.
#[derive(Debug, Default, Serialize)]
struct Keys {
    /// By ARN of the master key.
    #[serde(rename = "keys")]
    shares: BTreeMap<String, Share>,
    /// Empty files, which have none yet.
    empty: u64,
    /// Directories whose files take a key of their own choice, and which.
    defaults: BTreeMap<PathBuf, String>,
    /// What could not be looked at, and why.
    failures: Vec<String>,
}

/// `kmsfs info --recursive`
pub fn tree(args: &InfoArgs) -> Result<(), CliError> {
    mount_of(&args.path)?;
    let mut keys = Keys::default();
    let mut dirs = vec![args.path.clone()];
    while let Some(dir) = dirs.pop() {
        if let Err(e) = look_at(&dir, &mut dirs, &mut keys) {
            keys.failed(&dir, &e.into());
        }
    }
    if args.json {
        return print_json(&keys);
    }
    let row = |(key, share): (&String, &Share)| vec![key.clone(), share.files.to_string(), size(share.bytes)];
    table(&["KEY", "FILES", "SIZE"], &keys.shares.iter().map(row).collect::<Vec<_>>())?;
    if keys.empty > 0 {
        line(&format!("{} empty files, which take a key with their first byte", keys.empty))?;
    }
    for (dir, key) in &keys.defaults {
        line(&format!("new files in {} take {key}", dir.display()))?;
    }
    for failure in &keys.failures {
        eprintln!("failed: {failure}");
    }
    if keys.failures.is_empty() { Ok(()) } else { Err(CliError::failed("not everything could be looked at")) }
}

impl Keys {
    fn failed(&mut self, path: &Path, why: &std::io::Error) {
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(format!("{}: {why}", path.display()));
        }
    }
}

fn look_at(dir: &Path, dirs: &mut Vec<PathBuf>, keys: &mut Keys) -> Result<(), Errno> {
    if let Some(key) = chosen(dir)? {
        keys.defaults.insert(dir.to_owned(), key);
    }
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    for entry in std::fs::read_dir(dir).map_err(errno)? {
        let path = entry.map_err(errno)?.path();
        match std::fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_dir() => dirs.push(path),
            Ok(stat) if stat.is_file() => match chosen(&path) {
                Ok(Some(key)) => {
                    let share = keys.shares.entry(key).or_default();
                    (share.files, share.bytes) = (share.files + 1, share.bytes + stat.len());
                }
                Ok(None) => keys.empty += 1,
                Err(e) => keys.failed(&path, &e.into()),
            },
            Ok(_) => {}
            Err(e) => keys.failed(&path, &e),
        }
    }
    Ok(())
}

/// The mount that holds `path`.
fn mount_of(path: &Path) -> Result<Status, CliError> {
    let found = control::holding(path).map(|(status, _)| status);
    found.ok_or_else(|| {
        let text = format!("{} is in no mount of kmsfs that you may ask", path.display());
        CliError::new(Exit::Failed, text)
    })
}

/// The ARN of `key`, under which files of the mounted volume may be from now on, or the id of the customer key `customer`.
fn wanted(status: &Status, key: Option<&str>, customer: Option<&str>) -> Result<Option<String>, CliError> {
    if key.is_none() && customer.is_none() {
        return Ok(None);
    }
    let kms = service::connect(Some(&status.kms), Behalf::Filesystem)?;
    let volume = Volume::open(&status.lower, kms, CacheLimits::default())?;
    if let Some(name) = customer {
        let unknown = || {
            let how = format!("bring it along once: kmsfs mount --customer-key {name}=FILE ...");
            CliError::new(Exit::Key, format!("the volume knows no customer key '{name}'; {how}"))
        };
        return volume.customer_key(name).ok_or_else(unknown).map(Some);
    }
    let arn = volume::admit_key(&volume, key.unwrap_or_default())?;
    control::ask(&status.mountpoint, &Request::Reload)?;
    Ok(Some(arn))
}

fn choose(of: BorrowedFd<'_>, path: &Path, arn: &str) -> Result<(), CliError> {
    let set = rustix::fs::fsetxattr(of, KEY_ATTRIBUTE, arn.as_bytes(), XattrFlags::empty());
    let (exit, why) = match set {
        Ok(()) => return Ok(()),
        Err(Errno::ACCESS) => (Exit::Key, format!("you may not make files under {arn}")),
        Err(Errno::NOKEY) => (Exit::Key, format!("the key {arn} cannot be used now")),
        Err(e) => (Exit::Failed, e.to_string()),
    };
    Err(CliError::new(exit, format!("{}: {why}", path.display())))
}

/// The key that was chosen for a directory, or that a file is under.
fn chosen(path: &Path) -> Result<Option<String>, Errno> {
    let mut value = vec![0; ARN_MAX];
    match rustix::fs::lgetxattr(path, KEY_ATTRIBUTE, &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(String::from_utf8(value).ok())
        }
        Err(Errno::NODATA) => Ok(None),
        Err(e) => Err(e),
    }
}
