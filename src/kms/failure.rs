//! Why a `kmsd` command failed: one line that says what to do, and an exit code. The one table of both.
//!
//! Made by the command line and the daemon's start.

use std::fmt;
use std::path::{Path, PathBuf};

use super::audit::AuditError;
use super::listen::ListenError;
use super::sealed::{SealKind, SealedError};
use super::state_dir::{Running, StateError};
use super::store::StoreError;
use super::tls::TlsError;

/// The exit codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the daemon refused or failed the call
  2  wrong usage
  3  the state directory is missing, not initialised, or initialised already
  4  the root key does not unseal: wrong passphrase or key file
  5  a daemon is running already, or none is
  6  cannot listen: socket directory, permission, address in use, certificate
  7  the key store or the audit log is damaged, was changed, or is of a newer version
  8  the seed file or the map file is wrong
  9  the system refused: disk, permission, memory";

/// A failure of a command.
#[derive(Debug)]
pub enum Failure {
    /// The daemon answered with an error.
    Refused(String),
    /// The command line asks for what there is not.
    Usage(String),
    /// The state directory cannot be used.
    State(PathBuf, StateError),
    /// The state directory was initialised before.
    Initialised(PathBuf),
    /// It never was.
    NotInitialised(PathBuf),
    /// The root key.
    Seal(PathBuf, SealedError),
    /// The secret that should unseal it.
    Secret(String),
    /// No daemon runs on this state directory.
    NotRunning(PathBuf),
    /// The daemon did not do as told in time.
    NotStopped(i32),
    /// No socket or port.
    Listen(ListenError),
    /// The certificate or its key.
    Tls(TlsError),
    /// The store.
    Store(StoreError),
    /// The audit log.
    Audit(AuditError),
    /// A seed or map file.
    File(PathBuf, String),
    /// The system.
    System(String, std::io::Error),
    /// A background daemon ended before it was ready, with this message and code.
    Child(String, u8),
}

impl Failure {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::State(_, StateError::Held(_)) | Self::NotRunning(_) | Self::NotStopped(_) => 5,
            Self::State(_, StateError::Io(_)) | Self::System(..) => 9,
            Self::State(..)
            | Self::Initialised(_)
            | Self::NotInitialised(_)
            | Self::Seal(_, SealedError::Missing | SealedError::Exists) => 3,
            Self::Seal(_, SealedError::Damaged | SealedError::Newer(_)) | Self::Store(_) | Self::Audit(_) => {
                7
            }
            Self::Seal(..) | Self::Secret(_) => 4,
            Self::Listen(_) | Self::Tls(_) => 6,
            Self::File(..) => 8,
            Self::Child(_, code) => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(what) | Self::Usage(what) | Self::Secret(what) | Self::Child(what, _) => {
                f.write_str(what)
            }
            Self::State(dir, error) => write_state(f, dir, error),
            Self::Initialised(dir) => write!(
                f,
                "{} is initialised already; use another directory, or serve this one with `kmsd serve --dir {0}`",
                dir.display()
            ),
            Self::NotInitialised(dir) => write!(
                f,
                "{} is not initialised; run `kmsd init --dir {0} --seal keyfile:PATH` first",
                dir.display()
            ),
            Self::Seal(dir, error) => write_seal(f, dir, error),
            Self::NotRunning(dir) => write!(f, "no kmsd is running on {}", dir.display()),
            Self::NotStopped(pid) => {
                write!(
                    f,
                    "kmsd (process {pid}) did not stop in time; look at its log, or kill it: it loses nothing"
                )
            }
            Self::Listen(error) => write_listen(f, error),
            Self::Store(error) => error.fmt(f),
            Self::Audit(error @ AuditError::Broken(_)) => {
                write!(
                    f,
                    "{error}; look at it with `kmsd audit verify`; if its oldest segments were archived, say so with `kmsd audit \
                     prune --accept-missing`; otherwise move it aside and start anew with `kmsd audit reset`"
                )
            }
            Self::Audit(error) => error.fmt(f),
            Self::File(path, what) | Self::Tls(TlsError { path, what }) => {
                write!(f, "{}: {what}", path.display())
            }
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

fn write_state(f: &mut fmt::Formatter<'_>, dir: &Path, error: &StateError) -> fmt::Result {
    let dir = dir.display();
    match error {
        StateError::Missing => {
            write!(f, "{dir} does not exist; run `kmsd init --dir {dir} --seal keyfile:PATH` first")
        }
        StateError::Held(Some(Running { pid, socket })) => write!(
            f,
            "a kmsd (process {pid}) is running on {dir} already and answers at {}; stop it with `kmsd stop --dir {dir}`",
            socket.display()
        ),
        StateError::Held(None) => {
            write!(f, "another kmsd is using {dir} at this moment; try again when it is done")
        }
        StateError::TooOpen(mode) => {
            write!(f, "{dir} has mode {mode:04o}, so others can get at it; run `chmod 0700 {dir}`")
        }
        StateError::ForeignOwner(uid) => {
            write!(f, "{dir} belongs to user {uid}; run kmsd as that user, or `chown` the directory")
        }
        StateError::Io(error) => write!(f, "{dir}: {error}"),
    }
}

fn write_seal(f: &mut fmt::Formatter<'_>, dir: &Path, error: &SealedError) -> fmt::Result {
    let dir = dir.display();
    match error {
        SealedError::Missing => {
            write!(f, "{dir} is not initialised; run `kmsd init --dir {dir} --seal keyfile:PATH` first")
        }
        SealedError::Exists => write!(f, "{dir} is initialised already"),
        SealedError::Io(error) => write!(f, "{dir}/root: {error}"),
        SealedError::Damaged => write!(f, "{dir}/root is damaged; put back a backup of it"),
        SealedError::Newer(version) => {
            write!(f, "{dir} has format {version}, which this kmsd does not know; run a newer kmsd")
        }
        SealedError::WrongSecret(SealKind::KeyFile) => {
            write!(
                f,
                "the key file does not unseal {dir}: give the one made by `kmsd init` with --seal keyfile:PATH"
            )
        }
        SealedError::WrongSecret(SealKind::Passphrase) => {
            write!(f, "the passphrase does not unseal {dir}: try again")
        }
        SealedError::OtherKind(SealKind::KeyFile) => {
            write!(f, "{dir} is sealed by a key file; give it with --seal keyfile:PATH")
        }
        SealedError::OtherKind(SealKind::Passphrase) => {
            write!(f, "{dir} is sealed by a passphrase; use --seal passphrase or --seal passphrase:FILE")
        }
    }
}

fn write_listen(f: &mut fmt::Formatter<'_>, error: &ListenError) -> fmt::Result {
    match error {
        ListenError::NoDirectory(dir) => {
            write!(
                f,
                "the directory {} of the socket does not exist; make it with `mkdir -p {0}`",
                dir.display()
            )
        }
        ListenError::NotASocket(path) => {
            write!(f, "{} exists and is not a socket; give another path with --socket", path.display())
        }
        ListenError::InUse(path) => write!(
            f,
            "another program answers at {}; stop it, or give another path with --socket",
            path.display()
        ),
        ListenError::Io(place, error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            write!(f, "{place} is in use by another program; give another port with --listen")
        }
        ListenError::Io(place, error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            write!(f, "no permission to listen at {place}; give another place with --socket or --listen")
        }
        ListenError::Io(place, error) => write!(f, "cannot listen at {place}: {error}"),
    }
}
