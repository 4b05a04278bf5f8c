//! The connections: accepted in one place, served by one event loop per processor, bounded in number and in time.
//!
//! Made by the daemon. Knows HTTP and sockets, nothing of keys. A connection stays with its loop, so that a call is
//! read, answered and written by one thread; calls that wait for a disk go to a pool beside it.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::logging::RateLimit;

use super::alert::Alert;
use super::guarded::Guarded;
use super::http::{BUSY, Front, Origin};
use super::listen::{ListenError, bind_tcp, bind_unix};
use super::places::{Place, Places};
use super::tls::Tls;

/// Bounds of the server; the defaults are what `kmsd` runs with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Time to the end of the next request's head: an idle connection is closed after it.
    pub head_timeout: Duration,
    /// Time to the end of a body.
    pub body_timeout: Duration,
    /// Time in which a peer has to take a part of its answer.
    pub write_timeout: Duration,
    /// Time to the end of a TLS handshake.
    pub handshake_timeout: Duration,
    /// Longest head of a request.
    pub head_bytes: usize,
    /// Time that calls in flight get at the end.
    pub drain_timeout: Duration,
    /// Event loops.
    pub loops: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head_timeout: Duration::from_mins(2),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            head_bytes: 32 * 1024,
            drain_timeout: Duration::from_secs(10),
            loops: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Pause after a failed accept, so that a lack of descriptors does not make a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Threads beside each loop for calls that wait for a disk or calculate for long.
const BLOCKING_THREADS: usize = 16;

/// Listening sockets, ready to serve.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
}

impl Listeners {
    /// Binds the Unix socket at `path` with `mode`, and TCP where given, with TLS where given. A dead daemon's socket
    /// is replaced.
    pub async fn bind(
        path: &Path,
        mode: u32,
        tcp: Option<SocketAddr>,
        tls: Option<Arc<Tls>>,
    ) -> Result<Self, ListenError> {
        let tcp = match tcp {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let unix = bind_unix(path, mode)?;
        Ok(Self { unix, path: path.to_owned(), tcp, tls })
    }

    /// The TCP address in use.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves until `stop` turns true, then lets what is in flight finish. Connections are counted in `places`.
    pub async fn serve(
        self,
        front: Arc<Front>,
        places: Arc<Places>,
        limits: Limits,
        stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (end, ended) = watch::channel(false);
        let hub = Arc::new(Hub { front, limits, stop: stop.clone(), ended, tls: self.tls });
        let loops = Loops::start(&hub)?;
        let gate = Gate { places: Arc::clone(&places), loops: &loops, limits, is_tls: hub.tls.is_some() };
        let tcp = async {
            match &self.tcp {
                Some(tcp) => gate.accept_tcp(tcp).await,
                None => std::future::pending().await,
            }
        };
        let mut stopping = stop;
        tokio::select! {
            () = gate.accept_unix(&self.unix) => {}
            () = tcp => {}
            () = stopped(&mut stopping) => {}
        }
        // No new callers from here on; the old ones get their answers.
        let _ = fs::remove_file(&self.path);
        drain(&places, limits.drain_timeout).await;
        let _ = end.send(true);
        tokio::task::spawn_blocking(move || loops.join()).await.map_err(io::Error::other)
    }
}

async fn drain(places: &Places, patience: Duration) {
    let deadline = tokio::time::Instant::now() + patience;
    while places.in_use() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = places.in_use();
    if left > 0 {
        log::warn!("{left} connections did not finish in time");
    }
}

/// What all connections share.
struct Hub {
    front: Arc<Front>,
    limits: Limits,
    stop: watch::Receiver<bool>,
    /// True when there is nothing more to wait for.
    ended: watch::Receiver<bool>,
    tls: Option<Arc<Tls>>,
}

/// An accepted connection on its way to a loop.
struct Accepted {
    stream: Stream,
    origin: Origin,
    place: Place,
}

enum Stream {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// The event loops, each a thread.
struct Loops(Vec<Loop>);

struct Loop {
    inbox: mpsc::UnboundedSender<Accepted>,
    /// Connections it has or is about to have.
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Loops {
    fn start(hub: &Arc<Hub>) -> io::Result<Self> {
        (0..hub.limits.loops.max(1))
            .map(|number| Loop::start(number, Arc::clone(hub)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Hands a connection to the loop that has the fewest.
    fn give(&self, accepted: Accepted) {
        if let Some(idlest) = self.0.iter().min_by_key(|each| each.load.load(Ordering::Relaxed)) {
            idlest.load.fetch_add(1, Ordering::Relaxed);
            // A loop that is gone drops the connection, and its place with it.
            let _ = idlest.inbox.send(accepted);
        }
    }

    fn join(self) {
        for each in self.0 {
            drop(each.inbox);
            if each.thread.join().is_err() {
                log::error!("an event loop died");
            }
        }
    }
}

impl Loop {
    fn start(number: usize, hub: Arc<Hub>) -> io::Result<Self> {
        let (inbox, arriving) = mpsc::unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()?;
        let counted = Arc::clone(&load);
        let run = move || {
            runtime.block_on(serve_arriving(&hub, arriving, &counted));
            // Whoever is stuck in a call has had its time.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(format!("kmsd-loop-{number}")).spawn(run)?;
        Ok(Self { inbox, load, thread })
    }
}

async fn serve_arriving(
    hub: &Arc<Hub>,
    mut arriving: mpsc::UnboundedReceiver<Accepted>,
    load: &Arc<AtomicUsize>,
) {
    let mut ended = hub.ended.clone();
    let alert = Arc::new(Alert::new());
    let (looks, connections) = (Arc::clone(&alert), Arc::clone(load));
    tokio::spawn(async move { looks.keep(&connections).await });
    loop {
        tokio::select! {
            Some(accepted) = arriving.recv() => {
                let (hub, load, alert) = (Arc::clone(hub), Arc::clone(load), Arc::clone(&alert));
                tokio::spawn(async move {
                    serve_accepted(&hub, accepted, &alert).await;
                    load.fetch_sub(1, Ordering::Relaxed);
                });
            }
            () = stopped(&mut ended) => return,
        }
    }
}

async fn serve_accepted(hub: &Hub, accepted: Accepted, alert: &Alert) {
    let Accepted { stream, origin, place } = accepted;
    let served = match stream {
        Stream::Unix(stream) => match UnixStream::from_std(stream) {
            Ok(stream) => serve_connection(hub, stream, &origin, alert).await,
            Err(error) => Err(error.to_string()),
        },
        Stream::Tcp(stream) => match (TcpStream::from_std(stream), &hub.tls) {
            (Ok(stream), None) => serve_connection(hub, stream, &origin, alert).await,
            (Ok(stream), Some(tls)) => serve_tls(hub, tls, stream, &origin, alert).await,
            (Err(error), _) => Err(error.to_string()),
        },
    };
    if let Err(error) = served {
        // Half a request, a reset, a time-out: the caller's affair.
        log::debug!("connection from {origin} ended: {error}");
    }
    drop(place);
}

async fn serve_tls(
    hub: &Hub,
    tls: &Tls,
    stream: TcpStream,
    origin: &Origin,
    alert: &Alert,
) -> Result<(), String> {
    let handshake = tokio::time::timeout(hub.limits.handshake_timeout, tls.acceptor().accept(stream)).await;
    let stream =
        handshake.map_err(|_| "the TLS handshake took too long")?.map_err(|error| error.to_string())?;
    serve_connection(hub, stream, origin, alert).await
}

async fn serve_connection<S>(hub: &Hub, stream: S, origin: &Origin, alert: &Alert) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answer = service_fn(|request| async move {
        let answer = hub.front.answer(origin, request).await;
        alert.answered();
        Ok::<_, Infallible>(answer)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(hub.limits.head_timeout)
        .max_header_size(hub.limits.head_bytes);
    let stream = Guarded::new(stream, hub.limits.write_timeout, hub.stop.clone());
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
    outcome.map_err(|error| error.to_string())
}

/// Waits for the sign to stop; a vanished sender is one too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Where connections come in.
struct Gate<'a> {
    places: Arc<Places>,
    loops: &'a Loops,
    limits: Limits,
    is_tls: bool,
}

impl Gate<'_> {
    async fn accept_unix(&self, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) => {
                        let pid = peer.pid().unwrap_or(0);
                        self.admit_unix(stream, Origin::Unix { uid: peer.uid(), gid: peer.gid(), pid });
                    }
                    Err(error) => log::warn!("a caller on the Unix socket cannot be told: {error}"),
                },
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    fn admit_unix(&self, stream: UnixStream, origin: Origin) {
        match (self.places.take(&origin), stream) {
            (Some(place), stream) => {
                if let Ok(stream) = stream.into_std() {
                    self.loops.give(Accepted { stream: Stream::Unix(stream), origin, place });
                }
            }
            (None, stream) => self.refuse(stream, &origin),
        }
    }

    async fn accept_tcp(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    self.admit_tcp(stream, Origin::Tcp { address: peer_address(peer), is_tls: self.is_tls });
                }
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    fn admit_tcp(&self, stream: TcpStream, origin: Origin) {
        match (self.places.take(&origin), stream) {
            (Some(place), stream) => {
                if let Ok(stream) = stream.into_std() {
                    self.loops.give(Accepted { stream: Stream::Tcp(stream), origin, place });
                }
            }
            // Nothing can be said before a handshake.
            (None, stream) if self.is_tls => drop(stream),
            (None, stream) => self.refuse(stream, &origin),
        }
    }

    fn refuse<S: AsyncWrite + Send + Unpin + 'static>(&self, mut stream: S, origin: &Origin) {
        static LIMIT: RateLimit = RateLimit::new();
        if let Some(held_back) = LIMIT.admit() {
            log::warn!("too many connections: refused one from {origin} ({held_back} more before it)");
        }
        let timeout = self.limits.write_timeout;
        tokio::spawn(async move { tokio::time::timeout(timeout, stream.write_all(BUSY)).await });
    }
}

/// The address of a peer as policies mean it: a socket for both families shows those of IPv4 as some of IPv6.
fn peer_address(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

async fn accept_failed(error: &io::Error) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(held_back) = LIMIT.admit() {
        log::warn!("a connection could not be accepted: {error} ({held_back} more before it)");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_of_ipv4_is_one_on_a_socket_for_both_families() {
        let seen = |text: &str| super::peer_address(text.parse().unwrap()).to_string();
        assert_eq!(seen("[::ffff:10.1.2.3]:80"), "10.1.2.3");
        assert_eq!((seen("10.1.2.3:80"), seen("[::1]:80")), ("10.1.2.3".into(), "::1".into()));
    }

    use super::super::http::{Answer, Call, Service};
    use super::super::places::RESERVED_FOR_ROOT;
    use super::super::sigv4::{AccessKeySecret, SignatureError};
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

        fn secret_of(&self, _: &str, _: Option<&str>) -> Result<AccessKeySecret, SignatureError> {
            Err(SignatureError::UnknownKey)
        }

        fn blocks(&self, _: &str) -> bool {
            false
        }

        fn changes(&self) -> super::super::changes::Watch {
            super::super::changes::Changes::default().watch()
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
            let listeners = runtime.block_on(Listeners::bind(&path, 0o600, None, None)).unwrap();
            let front = Arc::new(Front::new(Arc::new(Echo), limits.body_timeout));
            let thread = std::thread::spawn(move || {
                runtime
                    .block_on(listeners.serve(front, Places::new(limits.connections), limits, stopped))
                    .unwrap();
            });
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
        let connections = if root { 3 } else { 3 * 4 + RESERVED_FOR_ROOT };
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
        let server = Running::with(Limits { head_timeout: short, ..Limits::default() });
        let mut half_head = server.connect();
        // Where this thread stands still for so long, the hanging up comes first.
        let _ = half_head.write_all(b"POST / HTTP/1.1\r\nHost");
        assert_hung_up_on(&mut half_head);
        let server = Running::with(Limits { body_timeout: short, ..Limits::default() });
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
        assert_hung_up_on(&mut stuck);
    }

    #[track_caller]
    fn assert_hung_up_on(stream: &mut UnixStream) {
        let ended = stream.read_to_end(&mut Vec::new());
        // A reset, where something that was sent was not read before the end.
        let kind = ended.as_ref().err().map(io::Error::kind);
        assert!(matches!(kind, None | Some(io::ErrorKind::ConnectionReset)), "{ended:?}");
    }

    #[test]
    fn a_peer_that_never_reads_is_hung_up_on() {
        let server = Running::with(Limits { write_timeout: Duration::from_millis(200), ..Limits::default() });
        let mut deaf = server.connect();
        let body = vec![b'x'; 60_000];
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let whole = [head.as_bytes(), &body].concat();
        // The answers fill the socket, then the daemon stops reading, then it hangs up: a write fails.
        deaf.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        let refused = (0..1000).find_map(|_| deaf.write_all(&whole).err()).expect("it hangs up");
        assert!(
            matches!(refused.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
            "{refused}"
        );
    }
}
