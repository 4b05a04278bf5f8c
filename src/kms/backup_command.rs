//! `kmsd backup` and `kmsd restore`.
//!
//! Called by the command line. A backup of a running daemon is made by that daemon; what is written here is sealed.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::admin_socket;
use super::audit_log;
use super::backup::{self, BackupError, MAX_BACKUP};
use super::daemon::{harden, root_failure, seal_failure, unseal};
use super::failure::Failure;
use super::root::Root;
use super::seal_source::SealSource;
use super::sealed;
use super::sqlite::SqliteStore;
use super::state_dir::{StateDir, StateError};

/// Writes a backup of the store of `state` to the new file `to`.
pub fn backup(state: &StateDir, to: &Path, seal: Option<&SealSource>) -> Result<(), Failure> {
    harden()?;
    let of_state = |error| Failure::State(state.path().to_owned(), error);
    let bytes = match state.lock() {
        Ok(_lock) => offline(state, seal)?,
        Err(StateError::Held(Some(_))) => from_daemon(state)?,
        Err(error) => return Err(of_state(error)),
    };
    write_new(to, &bytes).map_err(|error| Failure::System(to.display().to_string(), error))?;
    println!("{} bytes in {}", bytes.len(), to.display());
    Ok(())
}

fn from_daemon(state: &StateDir) -> Result<Vec<u8>, Failure> {
    let path = state.admin_socket();
    let answer = admin_socket::ask(&path, "POST", "backup");
    let (status, body) = answer.map_err(|error| Failure::System(path.display().to_string(), error))?;
    if status == 200 { Ok(body) } else { Err(Failure::Refused(String::from_utf8_lossy(&body).into_owned())) }
}

fn offline(state: &StateDir, seal: Option<&SealSource>) -> Result<Vec<u8>, Failure> {
    let path = state.root_file();
    if !path.exists() {
        return Err(Failure::NotInitialised(state.path().to_owned()));
    }
    let key = unseal(state, seal)?;
    let store = SqliteStore::open(state.path(), key.store_keys()).map_err(Failure::Store)?;
    let root = Root::open(key, &store).map_err(root_failure)?;
    let root_file = fs::read(&path).map_err(|error| Failure::System(path.display().to_string(), error))?;
    backup::write(&store, &root, &root_file).map_err(Failure::Store)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            io::Error::new(error.kind(), "it exists, and a backup overwrites nothing; name a new file")
        }
        _ => error,
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
        // Half a backup is none.
        let _ = fs::remove_file(path);
    })
}

/// Makes the state directory `state` from the backup `from`.
pub fn restore(state: &StateDir, from: &Path, seal: Option<&SealSource>) -> Result<(), Failure> {
    harden()?;
    let of_state = |error| Failure::State(state.path().to_owned(), error);
    let backup = read(from).map_err(|error| Failure::System(from.display().to_string(), error))?;
    let damaged = || Failure::File(from.to_owned(), "not a backup of kmsd, cut short, or changed".into());
    let root_file = backup::root_file(&backup).map_err(|_| damaged())?;
    state.create().map_err(of_state)?;
    let _lock = state.lock().map_err(of_state)?;
    if state.root_file().exists() {
        return Err(Failure::Initialised(state.path().to_owned()));
    }
    // Under another name until all is there: what has a root file is whole.
    let held = state.path().join("root.restored");
    let path_failed = |error| Failure::System(held.display().to_string(), error);
    sealed::write_whole(&held, root_file).map_err(path_failed)?;
    let info = sealed::inspect(&held).map_err(|error| seal_failure(state, error))?;
    let secret = seal.cloned().unwrap_or_else(|| SealSource::from_info(&info)).read()?;
    let (key, rows) = backup::open(&backup, &held, &secret.as_seal()).map_err(|error| match error {
        BackupError::Damaged => damaged(),
        BackupError::Seal(error) => seal_failure(state, error),
    })?;
    super::daemon::forget_unfinished(state)?;
    let store = SqliteStore::create(state.path(), key.store_keys()).map_err(Failure::Store)?;
    backup::fill(&store, &rows).map_err(Failure::Store)?;
    audit_log::create(&state.audit_dir(), &key.audit_key()).map_err(Failure::Audit)?;
    fs::rename(&held, state.root_file()).map_err(path_failed)?;
    println!("{} is restored, with a new audit log", state.path().display());
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BACKUP).read_to_end(&mut bytes)?;
    Ok(bytes)
}
