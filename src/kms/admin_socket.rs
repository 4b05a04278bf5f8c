//! The operator's own socket in the state directory: health, metrics and backups over plain HTTP, for the daemon's user
//! alone.
//!
//! Served by the daemon beside its callers; health and metrics also on a TCP address where asked, since scrapers dial
//! nothing else. Changes nothing; what leaves tells no names of keys, or is sealed.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::backup::MAX_BACKUP;
use super::keeper::Keeper;
use super::listen::{ListenError, bind_unix};
use super::metrics;
use super::places::Places;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 32;
/// Time for a request, and for an idle connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a backup has to be made and taken.
const BACKUP_TIMEOUT: Duration = Duration::from_mins(10);
/// Only the daemon's own user.
const MODE: u32 = 0o600;

/// What operators ask about.
pub struct AdminDesk {
    keeper: Arc<Keeper>,
    root_file: PathBuf,
    places: Arc<Places>,
    seats: Semaphore,
}

impl std::fmt::Debug for AdminDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminDesk(..)")
    }
}

impl AdminDesk {
    /// Over a running daemon's parts.
    pub fn new(keeper: Arc<Keeper>, root_file: PathBuf, places: Arc<Places>) -> Arc<Self> {
        Arc::new(Self { keeper, root_file, places, seats: Semaphore::new(MAX_CONNECTIONS) })
    }

    /// Serves the socket at `path` until the future is dropped.
    pub async fn serve_unix(self: Arc<Self>, socket: AdminSocket) {
        loop {
            match socket.listener.accept().await {
                Ok((stream, _)) => Arc::clone(&self).admit(stream, true),
                Err(_) => tokio::time::sleep(TIMEOUT / 100).await,
            }
        }
    }

    /// Serves `listener` until the future is dropped.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => Arc::clone(&self).admit(stream, false),
                Err(_) => tokio::time::sleep(TIMEOUT / 100).await,
            }
        }
    }

    fn admit<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self: Arc<Self>,
        stream: S,
        is_operator: bool,
    ) {
        tokio::spawn(async move {
            let Ok(_seat) = self.seats.try_acquire() else { return };
            let answer = service_fn(|request| {
                let desk = &self;
                async move { Ok::<_, Infallible>(desk.answer(&request, is_operator).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(TIMEOUT).keep_alive(false);
            let connection = builder.serve_connection(TokioIo::new(stream), answer);
            // A scraper that breaks off asks again.
            let patience = if is_operator { BACKUP_TIMEOUT } else { TIMEOUT };
            let _ = tokio::time::timeout(patience, connection).await;
        });
    }

    async fn answer(
        self: &Arc<Self>,
        request: &Request<Incoming>,
        is_operator: bool,
    ) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => self.health(),
            (&Method::GET, "/metrics") => {
                let text = self.keeper.metrics().text(self.keeper.gauges(self.places.in_use()));
                respond(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            (&Method::POST, "/backup") if is_operator => self.back_up().await,
            _ => respond(StatusCode::NOT_FOUND, "text/plain", "/health and /metrics are here\n".into()),
        }
    }

    async fn back_up(self: &Arc<Self>) -> Response<Full<Bytes>> {
        let desk = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let root = fs::read(&desk.root_file).map_err(|error| error.to_string())?;
            desk.keeper.back_up(&root).map_err(|error| error.to_string())
        });
        match made.await {
            Ok(Ok(backup)) => {
                let mut response = Response::new(Full::new(Bytes::from(backup)));
                let kind = HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Ok(Err(what)) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", what),
            Err(_) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "a fault of kmsd".into()),
        }
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let trouble = self.keeper.trouble();
        let status = if trouble.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if trouble.is_none() { "ok" } else { "failing" };
        let body = json!({
            "status": word,
            "audit": trouble.unwrap_or_else(|| "ok".into()),
            "version": env!("CARGO_PKG_VERSION"),
        });
        respond(status, "application/json", format!("{body}\n"))
    }
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The bound socket; removed when dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds it.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Ok(Self { listener: bind_unix(path, MODE)?, path: path.to_owned() })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the daemon whose socket is at `path`: status and body. `method` is GET, or POST for a backup.
pub fn ask(path: &Path, method: &str, what: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(BACKUP_TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "{method} /{what} HTTP/1.1\r\nhost: kmsd\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.take(MAX_BACKUP).read_to_end(&mut bytes)?;
    let garbled =
        || io::Error::new(io::ErrorKind::InvalidData, "the daemon's answer is not HTTP, or cut short");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(garbled)? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(garbled)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let body = bytes.split_off(end);
    if length != Some(body.len()) {
        return Err(garbled());
    }
    Ok((status, body))
}
