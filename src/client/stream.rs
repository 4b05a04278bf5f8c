//! Connections to an endpoint: Unix socket, TCP, TLS; every wait bounded.
//!
//! Called by [`super::http`]. Knows nothing of HTTP.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::endpoint::Authority;
use super::{ClientError, Endpoint};

/// Addresses of one host name that are tried.
const MAX_ADDRESSES: usize = 8;

/// How long each step of a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Making a connection.
    pub connect: Duration,
    /// One read or write on it.
    pub io: Duration,
}

impl Timeouts {
    /// For calls that a program waits for in the middle of a file operation, to a daemon on the same machine: longer
    /// than a disk or a scheduler under load holds up a daemon that is well.
    pub const fn prompt() -> Self {
        Self { connect: Duration::from_secs(1), io: Duration::from_secs(5) }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), io: Duration::from_secs(10) }
    }
}

/// What HTTP runs over.
pub trait Stream: Read + Write + Send {
    /// Whether the peer has closed an idle connection, or spoken out of turn. Asked before a connection is reused.
    fn is_stale(&self) -> bool;
}

impl Stream for UnixStream {
    fn is_stale(&self) -> bool {
        has_input(self)
    }
}

impl Stream for TcpStream {
    fn is_stale(&self) -> bool {
        has_input(self)
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn is_stale(&self) -> bool {
        has_input(&self.sock)
    }
}

/// An idle connection has nothing to read; end of stream counts as input.
fn has_input(fd: &impl std::os::fd::AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut fds, Some(&at_once)), Ok(0))
}

/// Opens connections to one endpoint.
pub struct Connector {
    endpoint: Endpoint,
    timeouts: Timeouts,
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// Prepares connections to `endpoint`; loads the system's certificates for an https endpoint.
    pub fn new(endpoint: Endpoint, timeouts: Timeouts) -> Result<Self, ClientError> {
        let tls = match endpoint {
            Endpoint::Https(_) => Some(tls_config()?),
            Endpoint::Http(_) | Endpoint::Unix(_) => None,
        };
        Ok(Self { endpoint, timeouts, tls })
    }

    /// A new connection.
    pub fn open(&self) -> io::Result<Box<dyn Stream>> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = connect_unix(path, self.timeouts.connect)?;
                stream.set_read_timeout(Some(self.timeouts.io))?;
                stream.set_write_timeout(Some(self.timeouts.io))?;
                Ok(Box::new(stream))
            }
            Endpoint::Http(authority) => Ok(Box::new(self.open_tcp(authority)?)),
            Endpoint::Https(authority) => self.open_tls(authority),
        }
    }

    fn open_tcp(&self, authority: &Authority) -> io::Result<TcpStream> {
        let deadline = Instant::now() + self.timeouts.connect;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        for address in (authority.host.as_str(), authority.port).to_socket_addrs()?.take(MAX_ADDRESSES) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(self.timeouts.io))?;
                    stream.set_write_timeout(Some(self.timeouts.io))?;
                    return Ok(stream);
                }
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }

    fn open_tls(&self, authority: &Authority) -> io::Result<Box<dyn Stream>> {
        let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidInput, e);
        let name = ServerName::try_from(authority.host.clone()).map_err(|e| invalid(e.to_string()))?;
        let config = self.tls.as_ref().expect("new() makes a TLS configuration for https endpoints");
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(|e| invalid(e.to_string()))?;
        Ok(Box::new(StreamOwned::new(tls, self.open_tcp(authority)?)))
    }
}

/// Connects without waiting beyond `timeout` on a daemon whose backlog is full.
///
/// # Errors
/// Those of socket(2) and connect(2), and `TimedOut`.
pub fn connect_unix(path: &std::path::Path, timeout: Duration) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let address = SocketAddrUnix::new(path)?;
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(500);
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(pause),
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

pub(super) fn tls_config() -> Result<Arc<ClientConfig>, ClientError> {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        return Err(ClientError::Tls("no trusted certificates found; install ca-certificates".to_owned()));
    }
    // The one provider that is compiled in.
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}
