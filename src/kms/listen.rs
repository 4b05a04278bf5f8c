//! Making the listening sockets: a Unix socket that replaces a dead daemon's and nothing else, and a TCP address.
//!
//! Called by the daemon at start. Accepts nothing.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

/// Queue of connections not yet accepted.
const BACKLOG: i32 = 1024;

/// Why a listener could not be made.
#[derive(Debug)]
pub enum ListenError {
    /// The socket's directory is missing.
    NoDirectory(PathBuf),
    /// There is something at the path that is not a socket.
    NotASocket(PathBuf),
    /// A live daemon answers at the path.
    InUse(PathBuf),
    /// The system refused, for a path or an address.
    Io(String, io::Error),
}

/// Listens on TCP.
pub(super) async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| ListenError::Io(address.to_string(), error))
}

/// Listens at `path`; the socket has `mode`.
pub(super) fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let io = |error| ListenError::Io(path.display().to_string(), error);
    remove_stale(path)?;
    // The umask keeps others out until the mode is set.
    let listener = match std::os::unix::net::UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            return Err(ListenError::NoDirectory(parent.to_owned()));
        }
        bound => bound.map_err(io)?,
    };
    rustix::net::listen(&listener, BACKLOG).map_err(|error| io(error.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    UnixListener::from_std(listener).map_err(io)
}

/// Removes the socket of a dead daemon; refuses anything else.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |error| ListenError::Io(path.display().to_string(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(facts) if !facts.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) => Err(io(error)),
    }
}
