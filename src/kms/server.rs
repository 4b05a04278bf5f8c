//! The listeners: a Unix socket always, TCP where asked; connections, their limits and time-outs, and the way out.
//!
//! Made by the daemon. Knows HTTP and sockets, nothing of keys.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::logging::RateLimit;

use super::http::{BUSY, Front, Origin};

/// Bounds of the server; the defaults are what `kmsd` runs with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Time to the end of the next request's head: an idle connection is closed after it.
    pub head_timeout: Duration,
    /// Time to the end of a body.
    pub body_timeout: Duration,
    /// Longest head of a request.
    pub head_bytes: usize,
    /// Time that calls in flight get at the end.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head_timeout: Duration::from_mins(2),
            body_timeout: Duration::from_secs(30),
            head_bytes: 32 * 1024,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Of the connections, those that only user 0 gets: an administrator comes in when others have used theirs up.
const RESERVED_FOR_ROOT: usize = 32;
/// Of the connections, the quarter that TCP never gets.
const UNIX_SHARE: usize = 4;
/// Pause after a failed accept, so that a lack of descriptors does not make a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Queue of connections not yet accepted.
const BACKLOG: u32 = 1024;

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

/// Listening sockets, ready to serve.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
}

impl Listeners {
    /// Binds the Unix socket at `path` with `mode`, and TCP where given. A dead daemon's socket is replaced.
    pub async fn bind(path: &Path, mode: u32, tcp: Option<SocketAddr>) -> Result<Self, ListenError> {
        let tcp = match tcp {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let unix = bind_unix(path, mode)?;
        Ok(Self { unix, path: path.to_owned(), tcp })
    }

    /// The TCP address in use.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves until `stop` turns true, then lets what is in flight finish.
    pub async fn serve(self, front: Arc<Front>, limits: Limits, stop: watch::Receiver<bool>) {
        let hub = Arc::new(Hub { front, limits, open: AtomicUsize::new(0), stop: stop.clone() });
        let unix = accept_unix(Arc::clone(&hub), self.unix);
        let tcp = async {
            match self.tcp {
                Some(tcp) => accept_tcp(Arc::clone(&hub), tcp).await,
                None => std::future::pending().await,
            }
        };
        let mut stopping = stop;
        tokio::select! {
            () = unix => {}
            () = tcp => {}
            () = stopped(&mut stopping) => {}
        }
        // No new callers from here on; the old ones get their answers.
        let _ = fs::remove_file(&self.path);
        hub.drain().await;
    }
}

struct Hub {
    front: Arc<Front>,
    limits: Limits,
    open: AtomicUsize,
    stop: watch::Receiver<bool>,
}

/// One of the connections allowed; given back on drop.
struct Place(Arc<Hub>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hub {
    fn share_of(&self, origin: &Origin) -> usize {
        let all = self.limits.connections;
        match origin {
            Origin::Unix { uid: 0, .. } => all,
            Origin::Unix { .. } => all.saturating_sub(RESERVED_FOR_ROOT),
            Origin::Tcp(_) => all - all / UNIX_SHARE,
        }
    }

    fn place(self: &Arc<Self>, origin: &Origin) -> Option<Place> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        (before < self.share_of(origin)).then_some(place)
    }

    /// Starts serving one connection, or refuses it.
    fn admit<S>(self: &Arc<Self>, mut stream: S, origin: Origin)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        static LIMIT: RateLimit = RateLimit::new();
        if let Some(place) = self.place(&origin) {
            tokio::spawn(serve_connection(place, stream, origin));
            return;
        }
        if let Some(held_back) = LIMIT.admit() {
            log::warn!("too many connections: refused one from {origin:?} ({held_back} more before it)");
        }
        let timeout = self.limits.body_timeout;
        tokio::spawn(async move { tokio::time::timeout(timeout, stream.write_all(BUSY)).await });
    }

    async fn drain(&self) {
        let deadline = tokio::time::Instant::now() + self.limits.drain_timeout;
        while self.open.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = self.open.load(Ordering::Relaxed);
        if left > 0 {
            log::warn!("{left} connections did not finish in time");
        }
    }
}

async fn serve_connection<S>(place: Place, stream: S, origin: Origin)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let hub = &place.0;
    let answer = service_fn(|request| {
        let (front, origin) = (&hub.front, &origin);
        async move { Ok::<_, Infallible>(front.answer(origin, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(hub.limits.head_timeout)
        .max_header_size(hub.limits.head_bytes);
    let connection = builder.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let mut stop = hub.stop.clone();
    let outcome = tokio::select! {
        biased;
        outcome = &mut connection => outcome,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // Half a request, a reset, a time-out: the caller's affair.
        log::debug!("connection from {origin:?} ended: {error}");
    }
}

/// Waits for the sign to stop; a vanished sender is one too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept_unix(hub: Arc<Hub>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) => {
                    let pid = peer.pid().unwrap_or(0);
                    hub.admit(stream, Origin::Unix { uid: peer.uid(), gid: peer.gid(), pid });
                }
                Err(error) => log::warn!("a caller on the Unix socket cannot be told: {error}"),
            },
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn accept_tcp(hub: Arc<Hub>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                hub.admit(stream, Origin::Tcp(peer.ip()));
            }
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn accept_failed(error: &io::Error) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(held_back) = LIMIT.admit() {
        log::warn!("a connection could not be accepted: {error} ({held_back} more before it)");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let io = |error| ListenError::Io(address.to_string(), error);
    if !address.ip().is_loopback() {
        log::warn!(
            "listening on {address}, which is not a loopback address: calls are signed but not encrypted"
        );
    }
    TcpListener::bind(address).await.map_err(io)
}

fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
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
    rustix::net::listen(&listener, BACKLOG as i32).map_err(|error| io(error.into()))?;
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

#[cfg(test)]
mod tests {
    use super::super::http::{Answer, Call, Service};
    use super::super::sigv4::AccessKeySecret;
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;

    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";

    struct Echo;

    impl Service for Echo {
        fn serves(&self, region: &str) -> bool {
            region == "local"
        }

        fn call(&self, call: &Call<'_>) -> Answer {
            Answer { status: 200, body: call.body.to_vec().into(), request_id: "id".into() }
        }

        fn secret_of(&self, _: &str) -> Option<AccessKeySecret> {
            None
        }

        fn blocks(&self, _: &str) -> bool {
            false
        }
    }

    struct Running {
        path: PathBuf,
        stop: watch::Sender<bool>,
        thread: Option<JoinHandle<()>>,
    }

    impl Running {
        fn with(limits: Limits) -> Self {
            let name = format!("kmsd-server-{}", crate::api::hex(&crate::crypto::random_array::<8>()));
            let path = std::env::temp_dir().join(name);
            let (stop, stopped) = watch::channel(false);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let listeners = runtime.block_on(Listeners::bind(&path, 0o600, None)).unwrap();
            let front = Arc::new(Front::new(Arc::new(Echo), limits.body_timeout));
            let thread =
                std::thread::spawn(move || runtime.block_on(listeners.serve(front, limits, stopped)));
            Self { path, stop, thread: Some(thread) }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.send(true).unwrap();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn first_line(stream: &mut UnixStream) -> String {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn connections_beyond_the_limit_get_a_clean_refusal_and_the_place_of_one_gone_is_free() {
        // All but root leave a reserve.
        let root = rustix::process::geteuid().is_root();
        let connections = if root { 3 } else { 3 + RESERVED_FOR_ROOT };
        let server = Running::with(Limits { connections, ..Limits::default() });
        let mut held: Vec<_> = (0..3).map(|_| server.connect()).collect();
        for stream in &mut held {
            stream.write_all(REQUEST).unwrap();
            assert_eq!(first_line(stream), "HTTP/1.1 200 OK");
        }
        let mut refused = server.connect();
        assert_eq!(first_line(&mut refused), "HTTP/1.1 503 Service Unavailable");
        held.pop();
        let mut outcome = String::new();
        for _ in 0..1000 {
            let mut again = server.connect();
            let _ = again.write_all(REQUEST);
            outcome = first_line(&mut again);
            if outcome == "HTTP/1.1 200 OK" {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{outcome}");
    }

    #[test]
    fn half_a_head_is_hung_up_on_and_half_a_body_is_told() {
        let short = Duration::from_millis(200);
        let server = Running::with(Limits { head_timeout: short, body_timeout: short, ..Limits::default() });
        let mut half_head = server.connect();
        half_head.write_all(b"POST / HTTP/1.1\r\nHost").unwrap();
        let mut rest = Vec::new();
        half_head.read_to_end(&mut rest).unwrap();
        let mut half_body = server.connect();
        half_body.write_all(&REQUEST[..REQUEST.len() - 1]).unwrap();
        assert_eq!(first_line(&mut half_body), "HTTP/1.1 400 Bad Request");
    }

    #[test]
    fn a_stuck_caller_does_not_keep_the_server_from_stopping() {
        let drain_timeout = Duration::from_millis(200);
        let server = Running::with(Limits { drain_timeout, ..Limits::default() });
        let mut stuck = server.connect();
        stuck.write_all(&REQUEST[..REQUEST.len() - 1]).unwrap();
        drop(server);
        let ended = stuck.read_to_end(&mut Vec::new());
        assert!(
            ended.as_ref().map_or_else(|e| e.kind() == io::ErrorKind::ConnectionReset, |_| true),
            "{ended:?}"
        );
    }
}
