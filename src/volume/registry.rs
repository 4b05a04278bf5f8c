//! The volumes of this host by name, and the host's defaults: small JSON files in the state directory.
//!
//! Called by the command line. Must never hold a key, nor leave half an entry behind: each is replaced whole, and all
//! changes are made under one lock.
//!
//! ```text
//! STATE (0700)/lock            locked by whoever changes something
//! STATE/defaults.json          {"default_key": KEY}
//! STATE/volumes/NAME.json      an Entry
//! STATE/data/NAME              lower directory of a volume that was not given another place
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::record_file::replace;

/// Longest name of a volume.
const NAME_MAX: usize = 64;
/// Longest entry read.
const ENTRY_MAX: u64 = 64 * 1024;
/// Volumes of a host.
const VOLUMES_MAX: usize = 100_000;
/// How long a command waits for another one's change.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);
const DEFAULTS: &str = "defaults.json";

/// Why the registry cannot do what it is asked.
#[derive(Debug)]
pub enum RegistryError {
    /// The name cannot be one of a volume.
    BadName(String),
    /// There is no volume of this name.
    Unknown(String),
    /// There is one already.
    Exists(String),
    /// An entry is not what this version writes.
    Damaged(PathBuf, String),
    /// Another command holds the lock.
    Busy(PathBuf),
    /// The state directory is somebody else's, or open to others.
    Unsafe(PathBuf),
    /// The file system said no.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for RegistryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BadName(name) => write!(
                f,
                "the name '{name}' cannot be taken: letters, digits, '.', '_' and '-', at most {NAME_MAX}, no '.' or '-' first"
            ),
            Self::Unknown(name) => {
                write!(
                    f,
                    "there is no volume '{name}' on this host; 'kmsfs volume list' names those there are"
                )
            }
            Self::Exists(name) => write!(f, "there is a volume '{name}' already; choose another name"),
            Self::Damaged(path, why) => write!(
                f,
                "{} cannot be read ({why}); the volume itself is not touched: remove the file and run 'kmsfs volume add'",
                path.display()
            ),
            Self::Busy(path) => write!(f, "another command holds {}; try again", path.display()),
            Self::Unsafe(path) => {
                write!(f, "{} belongs to somebody else, or others can write there", path.display())
            }
            Self::Io(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

impl std::error::Error for RegistryError {}

/// How far a volume's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It can be attached.
    #[default]
    Available,
    /// It is being made; whoever meets this under the lock knows that its making was interrupted.
    Creating,
    /// Its deletion has begun; deleting it again goes on with that.
    Deleting,
}

/// A limit on what the lower directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes of the lower filesystem.
    pub bytes: u64,
    /// Project number on the lower filesystem.
    pub project: u32,
}

/// What makes a volume a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Bytes of the device.
    pub bytes: u64,
    /// The filesystem on it: ext4, xfs or none.
    pub filesystem: String,
}

/// A grant by which a mount uses a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// ARN of the key.
    pub key_arn: String,
    /// The grant; unknown while it is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
}

/// What the mount of an attached volume has at the key service, to be given up when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The key service that made them.
    pub kms: String,
    /// ARN of the principal that the mount calls as.
    pub principal: String,
    /// Its grants.
    pub grants: Vec<Given>,
}

/// A volume of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its lower directory, absolute.
    pub lower: PathBuf,
    /// Identity of the volume there.
    pub volume_id: String,
    /// ARN of the key that it was made with.
    pub key_arn: String,
    /// The key service that it was made with, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// How far it is.
    #[serde(default)]
    pub state: State,
    /// A limit on its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Present where it is a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Block>,
    /// Grants of the mount that has it, or of one that ended without giving them up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
}

/// What holds for new volumes of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// The key that they take where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_key: Option<String>,
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// The right to change the registry; given back on drop.
pub struct Changing<'a> {
    registry: &'a Registry,
    _lock: File,
}

impl Registry {
    /// The registry below `dir`, which need not exist yet.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where a volume's lower directory goes when no other place is named.
    pub fn default_lower(&self, name: &str) -> PathBuf {
        self.dir.join("data").join(name)
    }

    fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    fn path_of(&self, name: &str) -> Result<PathBuf, RegistryError> {
        check_name(name)?;
        Ok(self.volumes().join(format!("{name}.json")))
    }

    /// The volume `name`.
    pub fn find(&self, name: &str) -> Result<Entry, RegistryError> {
        let path = self.path_of(name)?;
        read_json(&path)?.ok_or_else(|| RegistryError::Unknown(name.to_owned()))
    }

    /// Every volume, by name; entries that cannot be read are given as errors.
    pub fn list(&self) -> Result<Vec<Result<Entry, RegistryError>>, RegistryError> {
        let dir = self.volumes();
        let listing = match std::fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(RegistryError::Io(dir, e)),
        };
        let mut names: Vec<String> = listing
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .filter(|name| check_name(name).is_ok())
            .take(VOLUMES_MAX)
            .collect();
        names.sort();
        Ok(names.iter().map(|name| self.find(name)).collect())
    }

    /// What holds for new volumes.
    pub fn defaults(&self) -> Result<Defaults, RegistryError> {
        Ok(read_json(&self.dir.join(DEFAULTS))?.unwrap_or_default())
    }

    /// Takes the right to change it, making the state directory where there is none.
    pub fn change(&self) -> Result<Changing<'_>, RegistryError> {
        for dir in [self.dir.clone(), self.volumes(), self.dir.join("data")] {
            let failed = |e: io::Error| RegistryError::Io(dir.clone(), e);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
            let stat = std::fs::symlink_metadata(&dir).map_err(failed)?;
            let own = stat.uid() == rustix::process::geteuid().as_raw();
            if !stat.is_dir() || !own || stat.mode() & 0o077 != 0 {
                return Err(RegistryError::Unsafe(dir));
            }
        }
        let path = self.dir.join("lock");
        let failed = |e: io::Error| RegistryError::Io(path.clone(), e);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock =
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        while let Err(e) = flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            if e != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(e.into()));
            }
            if Instant::now() > deadline {
                return Err(RegistryError::Busy(path));
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(Changing { registry: self, _lock: lock.into() })
    }
}

impl Changing<'_> {
    /// Adds a volume.
    pub fn add(&self, entry: &Entry) -> Result<(), RegistryError> {
        if self.registry.path_of(&entry.name)?.exists() {
            return Err(RegistryError::Exists(entry.name.clone()));
        }
        self.put(entry)
    }

    /// Writes an entry anew.
    pub fn put(&self, entry: &Entry) -> Result<(), RegistryError> {
        let path = self.registry.path_of(&entry.name)?;
        write_json(&path, entry)
    }

    /// Forgets a volume.
    pub fn remove(&self, name: &str) -> Result<(), RegistryError> {
        let path = self.registry.path_of(name)?;
        std::fs::remove_file(&path)
            .and_then(|()| File::open(self.registry.volumes())?.sync_all())
            .map_err(|e| RegistryError::Io(path, e))
    }

    /// Sets what holds for new volumes.
    pub fn set_defaults(&self, defaults: &Defaults) -> Result<(), RegistryError> {
        write_json(&self.registry.dir.join(DEFAULTS), defaults)
    }
}

/// Whether `name` can name a volume.
pub fn check_name(name: &str) -> Result<(), RegistryError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(fits)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if good { Ok(()) } else { Err(RegistryError::BadName(name.to_owned())) }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RegistryError> {
    use std::io::Read;
    let failed = |e| RegistryError::Io(path.to_owned(), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    file.take(ENTRY_MAX).read_to_string(&mut text).map_err(failed)?;
    let damaged = |e: serde_json::Error| RegistryError::Damaged(path.to_owned(), e.to_string());
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RegistryError> {
    let failed = |e: io::Error| RegistryError::Io(path.to_owned(), e);
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    let (dir, name) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
    let (Some(dir), Some(name)) = (dir, name) else { return Err(failed(io::ErrorKind::InvalidInput.into())) };
    let dir = File::open(dir).map_err(failed)?;
    replace(dir.as_fd(), name, &text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.into(),
            lower: "/srv/x".into(),
            volume_id: "00".into(),
            key_arn: "arn".into(),
            kms: None,
            created: 1,
            state: State::Available,
            quota: None,
            block: None,
            attachment: None,
        }
    }

    #[test]
    fn entries_are_added_once_listed_and_removed() {
        let dir = std::env::temp_dir().join(format!("kmsfs-registry-{}", std::process::id()));
        let registry = Registry::at(dir.clone());
        assert!(registry.list().unwrap().is_empty() && registry.defaults().unwrap() == Defaults::default());
        let changing = registry.change().unwrap();
        changing.add(&entry("b")).unwrap();
        changing.add(&entry("a")).unwrap();
        assert!(matches!(changing.add(&entry("a")), Err(RegistryError::Exists(_))));
        changing.set_defaults(&Defaults { default_key: Some("alias/x".into()) }).unwrap();
        drop(changing);
        let names: Vec<String> = registry.list().unwrap().into_iter().map(|e| e.unwrap().name).collect();
        assert_eq!(names, ["a", "b"]);
        std::fs::write(dir.join("volumes/a.json"), "{").unwrap();
        assert!(matches!(registry.list().unwrap()[0], Err(RegistryError::Damaged(..))));
        registry.change().unwrap().remove("b").unwrap();
        assert!(matches!(registry.find("b"), Err(RegistryError::Unknown(_))));
        assert_eq!(registry.defaults().unwrap().default_key.as_deref(), Some("alias/x"));
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", ".x", "a b", &"x".repeat(65), "ä"] {
            assert!(matches!(check_name(bad), Err(RegistryError::BadName(_))), "{bad}");
        }
        assert!(check_name("db-1.data_x").is_ok());
    }
}
