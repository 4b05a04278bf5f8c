//! Snapshots as a stream of ciphertext: to a file, a pipe, another host. Neither end needs a key.
//!
//! Called by `kmsfs send` and `kmsfs receive`. The stream is a chain: each frame carries the hash of everything before it and
//! itself, so that a cut or changed stream is noticed at the frame where it happened, and the last hash names the whole.
//! A stream of the same snapshots is the same bytes each time, which is what makes it resumable.
//!
//! ```text
//! stream = "KMFSTRM1"  frame...
//! frame  = kind u8   length u32   body   hash 32 B        hash = SHA-256(hash before || kind || length || body)
//! kind 1 begin   JSON Begin (the first; the hash before it is zero, or that of the frame resumed behind)
//!      2 remove  JSON path
//!      3 entry   JSON Entry: an object to make, or to replace; `base`: a file to begin with the base snapshot's bytes of
//!      4 data    offset u64   bytes, of the file last begun
//!      5 hole    offset u64   length u64
//!      6 close   JSON Entry: attributes of the file or directory that is done
//!      7 end     JSON End
//! ```

mod receive;
mod send;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::crypto::sha256;

pub use receive::{Begins, POSITION_PREFIX, Received, begins, check, position, receive};
pub use send::{SendOptions, Sent, send};

const MAGIC: &[u8; 8] = b"KMFSTRM1";
/// Longest body of a frame.
const BODY_MAX: usize = 2 << 20;
/// Data of one frame.
const DATA_MAX: usize = 128 << 10;
const VERSION: u32 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Begin = 1,
    Remove = 2,
    Entry = 3,
    Data = 4,
    Hole = 5,
    Close = 6,
    End = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let all = [Self::Begin, Self::Remove, Self::Entry, Self::Data, Self::Hole, Self::Close, Self::End];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    version: u32,
    volume_id: String,
    snapshot: String,
    /// The snapshot that the receiver must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    /// Frames that the receiver has.
    #[serde(default)]
    resume: u64,
}

/// An object of the lower tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Lower path; empty for the root.
    path: String,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    /// Lower length of a file.
    #[serde(default)]
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default)]
    device: u64,
    /// The path of an entry before this one that is the same file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    /// Begin with the bytes of the base snapshot's file.
    #[serde(default)]
    base: bool,
    /// Names with values in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
}

/// The end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    entries: u64,
    bytes: u64,
}

/// Where a stream may be gone on with: frames so far, and the hash that they end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Frames.
    pub frames: u64,
    /// Hash of the last.
    pub hash: [u8; 32],
}

impl Position {
    const START: Self = Self { frames: 0, hash: [0; 32] };

    fn after(self, kind: u8, body: &[u8]) -> Self {
        let length = (body.len() as u32).to_le_bytes();
        let hash = sha256(&[&self.hash[..], &[kind], &length, body].concat());
        Self { frames: self.frames + 1, hash }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.frames, crate::api::hex(&self.hash))
    }
}

impl std::str::FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "not a position; 'kmsfs receive --position' prints one".to_owned();
        let (frames, digits) = text.split_once(':').ok_or_else(bad)?;
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(bad());
        }
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self { frames: frames.parse().map_err(|_| bad())?, hash })
    }
}

/// Writes frames, from the position that was asked for on.
struct Writer<W> {
    out: W,
    at: Position,
    resume: Option<Position>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a stream; what is before `resume` is only counted.
    fn new(out: W, resume: Option<Position>, begin: &Begin) -> io::Result<Self> {
        let mut writer = Self { out, at: Position::START, resume, written: 0 };
        writer.out.write_all(MAGIC)?;
        // The chain is that of the whole stream; a resumed one begins with a word of its own.
        writer.at =
            writer.at.after(Kind::Begin as u8, &serde_json::to_vec(&Begin { resume: 0, ..begin.clone() })?);
        let word = Begin { resume: resume.map_or(0, |resume| resume.frames), ..begin.clone() };
        let hash = resume.map_or(writer.at.hash, |resume| resume.hash);
        writer.put(Kind::Begin as u8, &serde_json::to_vec(&word)?, &hash)?;
        writer.check_resume()?;
        Ok(writer)
    }

    fn put(&mut self, kind: u8, body: &[u8], hash: &[u8; 32]) -> io::Result<()> {
        self.out.write_all(&[kind])?;
        self.out.write_all(&(body.len() as u32).to_le_bytes())?;
        self.out.write_all(body)?;
        self.out.write_all(hash)?;
        self.written += body.len() as u64 + 37;
        Ok(())
    }

    fn check_resume(&self) -> io::Result<()> {
        match self.resume {
            Some(resume) if resume.frames == self.at.frames && resume.hash != self.at.hash => Err(
                io::Error::other("what the receiver has is not the beginning of this stream; begin again"),
            ),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, kind: Kind, body: &[u8]) -> io::Result<()> {
        self.at = self.at.after(kind as u8, body);
        self.check_resume()?;
        if self.resume.is_some_and(|resume| self.at.frames <= resume.frames) {
            return Ok(());
        }
        let hash = self.at.hash;
        self.put(kind as u8, body, &hash)
    }

    fn json(&mut self, kind: Kind, value: &impl Serialize) -> io::Result<()> {
        self.frame(kind, &serde_json::to_vec(value)?)
    }
}

/// Reads frames and checks the chain.
struct Reader<R> {
    from: R,
    at: Position,
}

impl<R: Read> Reader<R> {
    /// Reads the first word of a stream.
    fn open(mut from: R) -> io::Result<(Self, Begin)> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(cut)?;
        if &magic != MAGIC {
            return Err(damaged("it is not a stream of kmsfs"));
        }
        let mut reader = Self { from, at: Position::START };
        let (kind, body, hash) = reader.raw()?;
        let begin: Begin = serde_json::from_slice(&body)?;
        if kind != Kind::Begin as u8 || begin.version != VERSION {
            return Err(damaged("the stream is of another version"));
        }
        let expected = reader.at.after(kind, &body);
        if begin.resume == 0 && hash != expected.hash {
            return Err(damaged("the first frame is damaged"));
        }
        reader.at = Position { frames: begin.resume.max(1), hash };
        Ok((reader, begin))
    }

    fn raw(&mut self) -> io::Result<(u8, Vec<u8>, [u8; 32])> {
        let mut head = [0; 5];
        self.from.read_exact(&mut head).map_err(cut)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > BODY_MAX {
            return Err(damaged("a frame is longer than any"));
        }
        let mut body = vec![0; length];
        self.from.read_exact(&mut body).map_err(cut)?;
        let mut hash = [0; 32];
        self.from.read_exact(&mut hash).map_err(cut)?;
        Ok((head[0], body, hash))
    }

    /// The next frame, verified.
    fn frame(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        let (byte, body, hash) = self.raw()?;
        let next = self.at.after(byte, &body);
        let kind = Kind::of(byte).filter(|_| next.hash == hash);
        let kind = kind.ok_or_else(|| damaged(&format!("frame {} does not verify", next.frames)))?;
        self.at = next;
        Ok((kind, body))
    }
}

/// Says what a stream that stops too early is.
fn cut(e: io::Error) -> io::Error {
    let ended = e.kind() == io::ErrorKind::UnexpectedEof;
    if ended { io::Error::new(e.kind(), "the stream stops before its end") } else { e }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Offset and the rest of a data or hole frame.
fn split(body: &[u8]) -> io::Result<(u64, &[u8])> {
    let (head, rest) = body.split_first_chunk::<8>().ok_or_else(|| damaged("a frame is too short"))?;
    Ok((u64::from_le_bytes(*head), rest))
}
