//! The state directory: where its files lie, and the lock that lets one daemon at a time have it.
//!
//! Called by every subcommand of `kmsd`. The lock is the kernel's (flock): that of a dead daemon is gone with it,
//! that of a live one is never taken.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags};

const LOCK: &str = "kmsd.lock";
/// Longest text in the lock file: process id and socket path.
const MAX_LOCK_TEXT: u64 = 8192;
/// How long a lock without a daemon's name on it is waited for.
const GLANCE: Duration = Duration::from_secs(2);
const GLANCE_PAUSE: Duration = Duration::from_millis(5);

/// Paths in a state directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// What a live daemon wrote of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: i32,
    /// Its Unix socket.
    pub socket: PathBuf,
}

/// Why the directory cannot be used.
#[derive(Debug)]
pub enum StateError {
    /// It does not exist.
    Missing,
    /// A live daemon has it.
    Held(Option<Running>),
    /// Others may read it.
    TooOpen(u32),
    /// Somebody else owns it.
    ForeignOwner(u32),
    /// The system refused.
    Io(io::Error),
}

/// Held by the daemon as long as it lives.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

impl StateDir {
    /// Names a directory; nothing is touched.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The sealed root file.
    pub fn root_file(&self) -> PathBuf {
        self.0.join("root")
    }

    /// The directory of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.0.join("audit")
    }

    /// The operator's socket of a running daemon.
    pub fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// Where a background daemon logs.
    pub fn log_file(&self) -> PathBuf {
        self.0.join("kmsd.log")
    }

    /// Makes the directory if it is missing, for us alone.
    pub fn create(&self) -> Result<(), StateError> {
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StateError::Io(error)),
            _ => self.check(),
        }
    }

    /// Refuses a directory that others can get at.
    pub fn check(&self) -> Result<(), StateError> {
        let facts = fs::metadata(&self.0).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StateError::Missing,
            _ => StateError::Io(error),
        })?;
        if facts.uid() != rustix::process::geteuid().as_raw() {
            return Err(StateError::ForeignOwner(facts.uid()));
        }
        if facts.mode() & 0o077 != 0 {
            return Err(StateError::TooOpen(facts.mode() & 0o777));
        }
        Ok(())
    }

    /// Takes the directory for this process.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        self.check()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(self.0.join(LOCK)).map_err(StateError::Io)?;
        let deadline = Instant::now() + GLANCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(StateLock { file }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(StateError::Io(error.into())),
            }
            // A daemon stays; a command that looks whether one runs is gone in a moment.
            let running = read_running(&mut file);
            if running.is_some() || Instant::now() > deadline {
                return Err(StateError::Held(running));
            }
            std::thread::sleep(GLANCE_PAUSE);
        }
    }

    /// The live daemon of this directory, if there is one.
    pub fn running(&self) -> Result<Option<Running>, StateError> {
        match self.lock() {
            Ok(_) => Ok(None),
            Err(StateError::Held(running)) => Ok(running),
            Err(error) => Err(error),
        }
    }
}

impl StateLock {
    /// Writes down who holds the lock and where it answers.
    pub fn announce(&mut self, socket: &Path) -> io::Result<()> {
        let text = format!("{}\n{}\n", std::process::id(), socket.display());
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())
    }
}

/// What the holder wrote of itself, if it wrote and is alive: what a dead one left says nothing.
fn read_running(file: &mut File) -> Option<Running> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(MAX_LOCK_TEXT).read_to_string(&mut text).ok()?;
    let (pid, socket) = text.trim_end().split_once('\n')?;
    let pid: i32 = pid.parse().ok()?;
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    Some(Running { pid, socket: PathBuf::from(socket) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hex;
    use crate::crypto::random_array;
    use std::os::unix::fs::PermissionsExt;

    fn scratch() -> StateDir {
        StateDir::new(&std::env::temp_dir().join(format!("kmsd-state-{}", hex(&random_array::<8>()))))
    }

    #[test]
    fn a_lock_is_held_until_its_holder_is_gone() {
        let dir = scratch();
        assert!(matches!(dir.lock(), Err(StateError::Missing)));
        dir.create().unwrap();
        let mut lock = dir.lock().unwrap();
        lock.announce(Path::new("/run/x y")).unwrap();
        let running = Running { pid: std::process::id() as i32, socket: "/run/x y".into() };
        assert!(matches!(dir.lock(), Err(StateError::Held(Some(r))) if r == running));
        drop(lock);
        // The text of the dead holder is still there and means nothing.
        assert_eq!(dir.running().unwrap(), None);
        fs::remove_dir_all(dir.path()).unwrap();
    }

    #[test]
    fn a_command_that_only_looks_does_not_stop_a_start() {
        let dir = scratch();
        dir.create().unwrap();
        let glance = dir.lock().unwrap();
        let start = std::thread::spawn({
            let dir = dir.clone();
            move || dir.lock().map(drop)
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(glance);
        assert!(start.join().unwrap().is_ok());
        fs::remove_dir_all(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = scratch();
        dir.create().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(dir.lock(), Err(StateError::TooOpen(0o750))));
        fs::remove_dir_all(dir.path()).unwrap();
    }
}
