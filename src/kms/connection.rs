//! A plain blocking HTTP client over the daemon's Unix socket, or over TCP with signatures, for `kmsd iam` and
//! `kmsd bench`.
//!
//! Speaks to servers whose responses always carry a length.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::hex;
use crate::api::sigv4::{Scope, SignedParts, authorization, canonical_request, string_to_sign, time_text};
use crate::crypto::{SigningKey, sha256};

/// Longest response.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Longest line of a response's head.
const MAX_LINE: u64 = 16 * 1024;
/// Most lines of a response's head.
const MAX_LINES: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where a service answers, and as whom it is called.
#[derive(Debug, Clone)]
pub enum Target {
    /// Unsigned, as the Unix user we are.
    Unix(PathBuf),
    /// Signed.
    Tcp(SocketAddr, AccessKey),
}

/// Who signs calls over TCP.
#[derive(Clone)]
pub struct AccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The region that is signed for.
    pub region: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

/// A stream to either.
pub enum Stream {
    /// To a Unix socket.
    Unix(UnixStream),
    /// To a TCP address.
    Tcp(TcpStream),
}

impl Target {
    /// Connects.
    pub fn dial(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Self::Tcp(address, _) => {
                let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Puts one whole request into `out`, signed for this moment where calls are signed.
    pub fn write_request(&self, target: &str, body: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        let host = match self {
            Self::Unix(_) => "kmsd".to_owned(),
            Self::Tcp(address, _) => address.to_string(),
        };
        write!(
            out,
            "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-amz-json-1.1\r\nx-amz-target: {target}\r\n\
             user-agent: kmsd/{}\r\ncontent-length: {}\r\n",
            env!("CARGO_PKG_VERSION"),
            body.len()
        )?;
        if let Self::Tcp(_, key) = self {
            key.write_headers(&host, target, body, out)?;
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        Ok(())
    }
}

impl AccessKey {
    fn write_headers(&self, host: &str, target: &str, body: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let time = time_text(now);
        let headers = [("host", host), ("x-amz-date", &*time), ("x-amz-target", target)];
        let signed = ["host", "x-amz-date", "x-amz-target"];
        let body_hash = sha256(body);
        let parts = SignedParts::of_call(&headers, &signed, &body_hash);
        let scope = Scope { date: &time[..8], region: &self.region, service: "kms" };
        let canonical =
            canonical_request(&parts).ok_or_else(|| io::Error::other("the request cannot be signed"))?;
        let text = string_to_sign(&time, &scope, &sha256(canonical.as_bytes()));
        let key = SigningKey::derive(self.secret.as_bytes(), scope.date, scope.region, scope.service);
        let header = authorization(&self.id, &scope, &signed, &hex(&key.sign(&text)));
        write!(out, "x-amz-date: {time}\r\nauthorization: {header}\r\n")
    }
}

impl Stream {
    fn set_timeouts(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            }
        }
    }

    /// Makes reads and writes return at once.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(space),
            Self::Tcp(stream) => stream.read(space),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection with one call at a time.
pub struct Connection {
    target: Target,
    stream: BufReader<Stream>,
    request: Vec<u8>,
    line: Vec<u8>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection(..)")
    }
}

impl Connection {
    /// Connects to `target`.
    pub fn to(target: &Target) -> io::Result<Self> {
        let stream = target.dial()?;
        stream.set_timeouts()?;
        let stream = BufReader::new(stream);
        Ok(Self { target: target.clone(), stream, request: Vec::new(), line: Vec::new() })
    }

    /// Sends one call; returns the status and puts the response's body into `out`.
    pub fn call(&mut self, target: &str, body: &[u8], out: &mut Vec<u8>) -> io::Result<u16> {
        self.target.write_request(target, body, &mut self.request)?;
        self.exchange(out)
    }

    /// Sends one call to IAM or STS over a Unix socket, in the name of `account` where given; the answer is JSON.
    pub fn form(&mut self, body: &[u8], account: Option<&str>, out: &mut Vec<u8>) -> io::Result<u16> {
        self.request.clear();
        write!(
            self.request,
            "POST / HTTP/1.1\r\nhost: kmsd\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             accept: application/json\r\nuser-agent: kmsd/{}\r\ncontent-length: {}\r\n",
            env!("CARGO_PKG_VERSION"),
            body.len()
        )?;
        if let Some(account) = account {
            write!(self.request, "x-kms-account: {account}\r\n")?;
        }
        self.request.extend_from_slice(b"\r\n");
        self.request.extend_from_slice(body);
        self.exchange(out)
    }

    fn exchange(&mut self, out: &mut Vec<u8>) -> io::Result<u16> {
        self.stream.get_mut().write_all(&self.request)?;
        let (status, length) = self.read_head()?;
        out.clear();
        out.resize(length, 0);
        self.stream.read_exact(out)?;
        Ok(status)
    }

    fn read_head(&mut self) -> io::Result<(u16, usize)> {
        let (mut status, mut length) = (None, None);
        for _ in 0..MAX_LINES {
            self.line.clear();
            (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut self.line)?;
            let line = self.line.trim_ascii();
            if line.is_empty() {
                break;
            }
            let text = std::str::from_utf8(line).map_err(|_| garbled())?;
            match text.split_once(": ") {
                None if status.is_none() => {
                    status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
                }
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().ok();
                }
                _ => {}
            }
        }
        match (status, length) {
            (Some(status), Some(length)) if length <= MAX_RESPONSE => Ok((status, length)),
            _ => Err(garbled()),
        }
    }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the daemon's answer is not HTTP")
}
