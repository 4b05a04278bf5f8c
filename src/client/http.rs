//! HTTP/1.1, the client's half of it: requests out, answers in, over any [`Stream`].
//!
//! Called by [`super::transport`]. Must never keep an answer's body beyond its use (it may hold a plaintext key):
//! every buffer here is wiped.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

use super::stream::Stream;

/// Longest answer head taken.
const MAX_HEAD: usize = 16 * 1024;
/// Headers an answer may have.
const MAX_HEADERS: usize = 64;
/// Longest answer body taken.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// Bytes read at a time.
const READ_SIZE: usize = 16 * 1024;
/// Longest line that opens a chunk.
const MAX_CHUNK_LINE: usize = 256;
/// An answer that trickles in is given up after this long.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(30);

/// What the service sent back.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; wiped on drop.
    pub body: Zeroizing<Vec<u8>>,
}

/// One connection and what has been read ahead on it.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: Zeroizing<Vec<u8>>,
    start: usize,
    keep_alive: bool,
}

struct Head {
    status: u16,
    body: BodyLength,
    close: bool,
}

#[derive(Clone, Copy)]
enum BodyLength {
    Fixed(usize),
    Chunked,
    UntilClose,
}

impl Connection {
    /// Takes over a fresh stream.
    pub fn new(stream: Box<dyn Stream>) -> Self {
        let input = Zeroizing::new(Vec::with_capacity(MAX_HEAD + READ_SIZE));
        Self { stream, input, start: 0, keep_alive: true }
    }

    /// Whether another request may be sent on it.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive && self.start == self.input.len() && !self.stream.is_stale()
    }

    /// Sends one or more complete requests.
    pub fn send(&mut self, requests: &[u8]) -> io::Result<()> {
        self.stream.write_all(requests)?;
        self.stream.flush()
    }

    /// Reads the next answer.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let deadline = Instant::now() + MAX_ANSWER_TIME;
        let head = loop {
            let head = self.receive_head(deadline)?;
            if head.status >= 200 {
                break head;
            }
        };
        self.keep_alive = !head.close;
        let body = match head.body {
            BodyLength::Fixed(length) => self.receive_fixed(length, deadline)?,
            BodyLength::Chunked => self.receive_chunked(deadline)?,
            BodyLength::UntilClose => self.receive_until_close(deadline)?,
        };
        self.forget_consumed();
        Ok(Answer { status: head.status, body })
    }

    fn receive_head(&mut self, deadline: Instant) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = parse_head(&self.input[self.start..])? {
                self.start += length;
                return Ok(head);
            }
            if self.input.len() - self.start > MAX_HEAD {
                return Err(malformed("the answer's head is too long"));
            }
            self.fill(deadline)?;
        }
    }

    fn receive_fixed(&mut self, length: usize, deadline: Instant) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut body = Zeroizing::new(Vec::with_capacity(length));
        self.take_into(&mut body, length, deadline)?;
        Ok(body)
    }

    /// Appends exactly `length` bytes to `body`.
    fn take_into(&mut self, body: &mut Vec<u8>, length: usize, deadline: Instant) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.start == self.input.len() {
                self.fill(deadline)?;
            }
            let take = left.min(self.input.len() - self.start);
            body.extend_from_slice(&self.input[self.start..self.start + take]);
            self.start += take;
            left -= take;
        }
        Ok(())
    }

    fn receive_chunked(&mut self, deadline: Instant) -> io::Result<Zeroizing<Vec<u8>>> {
        // One allocation, so that growing leaves no copy behind.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        loop {
            let line = self.receive_line(deadline)?;
            let digits = line.split(|b| *b == b';').next().unwrap_or_default();
            let length =
                std::str::from_utf8(digits).ok().and_then(|d| usize::from_str_radix(d.trim(), 16).ok());
            let length =
                length.filter(|n| body.len() + n <= MAX_BODY).ok_or_else(|| malformed("a bad chunk"))?;
            if length == 0 {
                while !self.receive_line(deadline)?.is_empty() {}
                return Ok(body);
            }
            self.take_into(&mut body, length, deadline)?;
            if !self.receive_line(deadline)?.is_empty() {
                return Err(malformed("a chunk is longer than it says"));
            }
        }
    }

    fn receive_line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        loop {
            let waiting = &self.input[self.start..];
            if let Some(end) = waiting.iter().take(MAX_CHUNK_LINE).position(|b| *b == b'\n') {
                let line = waiting[..end].strip_suffix(b"\r").unwrap_or(&waiting[..end]).to_vec();
                self.start += end + 1;
                return Ok(line);
            }
            if waiting.len() >= MAX_CHUNK_LINE {
                return Err(malformed("a line between chunks is too long"));
            }
            self.fill(deadline)?;
        }
    }

    fn receive_until_close(&mut self, deadline: Instant) -> io::Result<Zeroizing<Vec<u8>>> {
        self.keep_alive = false;
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        loop {
            let take = self.input.len() - self.start;
            if body.len() + take > MAX_BODY {
                return Err(malformed("the answer is too long"));
            }
            self.take_into(&mut body, take, deadline)?;
            match self.fill(deadline) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(body),
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads at least one more byte into the buffer, which never grows beyond its first allocation.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        if self.start == self.input.len() {
            self.forget_consumed();
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let end = self.input.len();
        if self.input.capacity() - end < READ_SIZE {
            self.input.copy_within(self.start.., 0);
            let kept = end - self.start;
            self.input[kept..].zeroize();
            self.input.truncate(kept);
            self.start = 0;
        }
        let end = self.input.len();
        let room = (self.input.capacity() - end).min(READ_SIZE);
        self.input.resize(end + room, 0);
        let read = retry_interrupted(|| self.stream.read(&mut self.input[end..]));
        self.input.truncate(end + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Wipes what has been handed out, once nothing unread lies behind it.
    fn forget_consumed(&mut self) {
        if self.start == self.input.len() {
            self.input.as_mut_slice().zeroize();
            self.input.clear();
            self.start = 0;
        }
    }
}

fn retry_interrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The head and its length, or `None` when more of it must be read.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(malformed("it is not HTTP/1.1")),
    };
    let status = response.code.unwrap_or(0);
    let header =
        |name: &str| response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    let has = |name: &str, word: &str| {
        header(name).is_some_and(|v| String::from_utf8_lossy(v).to_ascii_lowercase().contains(word))
    };
    let body = if has("transfer-encoding", "chunked") {
        BodyLength::Chunked
    } else if let Some(value) = header("content-length") {
        let parsed = std::str::from_utf8(value).ok().and_then(|v| v.trim().parse().ok());
        let fits = parsed.filter(|n| *n <= MAX_BODY);
        BodyLength::Fixed(fits.ok_or_else(|| malformed("a bad or too large Content-Length"))?)
    } else if status < 200 || status == 204 || status == 304 {
        BodyLength::Fixed(0)
    } else {
        BodyLength::UntilClose
    };
    let close =
        has("connection", "close") || (response.version == Some(0) && !has("connection", "keep-alive"));
    Ok(Some((Head { status, body, close }, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out `answer` in pieces of `step` bytes.
    struct Canned {
        answer: Vec<u8>,
        step: usize,
    }

    impl Read for Canned {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let take = self.step.min(out.len()).min(self.answer.len());
            out[..take].copy_from_slice(&self.answer[..take]);
            self.answer.drain(..take);
            Ok(take)
        }
    }

    impl Write for Canned {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Stream for Canned {
        fn is_stale(&self) -> bool {
            false
        }
    }

    fn connection(answer: &[u8], step: usize) -> Connection {
        Connection::new(Box::new(Canned { answer: answer.to_vec(), step }))
    }

    #[test]
    fn pipelined_answers_come_apart_whatever_the_pieces() {
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        for step in [1, 2, 7, 1000] {
            let mut connection = connection(two, step);
            let first = connection.receive().unwrap();
            assert_eq!((first.status, first.body.as_slice()), (200, &b"hello"[..]));
            let second = connection.receive().unwrap();
            assert_eq!((second.status, second.body.as_slice()), (400, &b"abcde"[..]));
            assert!(connection.is_reusable());
        }
    }

    #[test]
    fn a_body_larger_than_the_buffer_is_read_whole() {
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec();
        answer.extend((0..100_000).map(|i| (i % 251) as u8));
        let body = connection(&answer, 4096).receive().unwrap().body;
        assert!(body.len() == 100_000 && body.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
    }

    #[test]
    fn an_informational_answer_is_skipped_and_close_is_honoured() {
        let text =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let mut connection = connection(text, 9);
        assert_eq!(connection.receive().unwrap().status, 200);
        assert!(!connection.is_reusable());
    }

    #[test]
    fn malformed_answers_are_errors() {
        for bad in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        ] {
            assert_eq!(connection(bad, 100).receive().err().unwrap().kind(), io::ErrorKind::InvalidData);
        }
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel";
        assert_eq!(connection(cut, 100).receive().err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 64 * 1024]].concat();
        assert_eq!(connection(&endless, 8192).receive().err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
