//! A plain blocking HTTP client over the daemon's Unix socket, for `kmsd iam` and `kmsd bench`.
//!
//! Speaks to this program's own server only, whose responses always carry a length.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest response.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Longest line of a response's head.
const MAX_LINE: u64 = 16 * 1024;
/// Most lines of a response's head.
const MAX_LINES: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection with one call at a time.
pub struct Connection {
    stream: BufReader<UnixStream>,
    request: Vec<u8>,
    line: Vec<u8>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection(..)")
    }
}

impl Connection {
    /// Connects to the daemon at `socket`.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream), request: Vec::new(), line: Vec::new() })
    }

    /// Sends one call; returns the status and puts the response's body into `out`.
    pub fn call(&mut self, target: &str, body: &[u8], out: &mut Vec<u8>) -> io::Result<u16> {
        self.request.clear();
        write!(
            self.request,
            "POST / HTTP/1.1\r\nhost: kmsd\r\ncontent-type: application/x-amz-json-1.1\r\nx-amz-target: {target}\r\n\
             user-agent: kmsd/{}\r\ncontent-length: {}\r\n\r\n",
            env!("CARGO_PKG_VERSION"),
            body.len()
        )?;
        self.request.extend_from_slice(body);
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
