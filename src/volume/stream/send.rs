//! The sending end: a snapshot as a stream, whole or as what changed since another one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Dir, FileType, OFlags, SeekFrom, Stat, seek};
use rustix::io::{Errno, pread};

use super::{Begin, DATA_MAX, End, Entry, Kind, Position, VERSION, Writer};
use crate::sys::{at, on_deep_stack};
use crate::volume::open::open_lower;
use crate::volume::report::Progress;
use crate::volume::{VolumeError, record_file};

/// Files with several names that are remembered; beyond it, each name is sent as a file.
const LINKS_MAX: usize = 1 << 20;

/// How to send.
#[derive(Debug, Clone, Default)]
pub struct SendOptions {
    /// Go on behind this position.
    pub resume: Option<Position>,
}

/// What was sent.
#[derive(Debug, serde::Serialize)]
pub struct Sent {
    /// Objects.
    pub entries: u64,
    /// Bytes of the stream.
    pub bytes: u64,
    /// The last hash, which names the whole stream.
    pub hash: String,
}

/// Sends the snapshot in the lower directory `snapshot`, or what it changes of that in `base`.
pub fn send(
    snapshot: &Path,
    base: Option<&Path>,
    out: impl Write + Send,
    options: &SendOptions,
    progress: &Progress,
) -> Result<Sent, VolumeError> {
    let io = |e: io::Error| VolumeError::io("send", snapshot, e);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let root = open_lower(snapshot)?;
    let record = record_file::read(root.as_fd(), snapshot)?;
    let begin = Begin {
        version: VERSION,
        volume_id: record.volume_id.to_string(),
        snapshot: name(snapshot),
        base: base.map(name),
        resume: 0,
    };
    let base = base.map(open_lower).transpose()?;
    let writer = Writer::new(out, options.resume, &begin).map_err(io)?;
    let mut sender = Sender { writer, progress, links: HashMap::new(), entries: 0, bytes: 0 };
    on_deep_stack(|| sender.directory(&root, base.as_ref(), "")).and_then(|sent| sent).map_err(io)?;
    let end = End { entries: sender.entries, bytes: sender.bytes };
    sender.writer.json(Kind::End, &end).map_err(io)?;
    sender.writer.out.flush().map_err(io)?;
    let (bytes, hash) = (sender.writer.written, crate::api::hex(&sender.writer.at.hash));
    Ok(Sent { entries: end.entries, bytes, hash })
}

struct Sender<'a, W> {
    writer: Writer<W>,
    progress: &'a Progress,
    /// The first path of each file with several names.
    links: HashMap<u64, String>,
    entries: u64,
    bytes: u64,
}

impl<W: Write> Sender<'_, W> {
    /// In the order of names, so that the stream is the same each time.
    fn directory(&mut self, dir: &OwnedFd, base: Option<&OwnedFd>, path: &str) -> io::Result<()> {
        let stat = rustix::fs::fstat(dir)?;
        let (now, before) = (names(dir)?, base.map_or_else(|| Ok(BTreeSet::new()), names)?);
        if base.is_none() && !path.is_empty() {
            self.writer.json(Kind::Entry, &entry_of(dir, path, &stat)?)?;
        }
        for name in before.difference(&now) {
            self.writer.json(Kind::Remove, &join(path, name)?)?;
        }
        for name in &now {
            if self.progress.stopped() {
                return Err(Errno::CANCELED.into());
            }
            self.object(dir, base.filter(|_| before.contains(name)), name, &join(path, name)?)?;
        }
        self.writer.json(Kind::Close, &entry_of(dir, path, &stat)?)
    }

    fn object(
        &mut self,
        dir: &OwnedFd,
        base: Option<&OwnedFd>,
        name: &CString,
        path: &str,
    ) -> io::Result<()> {
        self.entries += 1;
        self.progress.done.fetch_add(1, Ordering::Relaxed);
        let stat = at::stat(dir, name.to_bytes())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let old = base.map(|base| at::stat(base, name.to_bytes())).transpose()?;
        let same_kind = old.as_ref().is_some_and(|old| FileType::from_raw_mode(old.st_mode) == kind);
        if old.is_some() && !same_kind {
            self.writer.json(Kind::Remove, &path)?;
        }
        let base = base.filter(|_| same_kind);
        if kind == FileType::Directory {
            let below = |dir: &OwnedFd| at::open(dir, name.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0);
            let (new, old) = (below(dir)?, base.map(below).transpose()?);
            return self.directory(&new, old.as_ref(), path);
        }
        if stat.st_nlink > 1 && kind == FileType::RegularFile {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                let entry = entry_of(at::open_path(dir, name.to_bytes())?, path, &stat)?;
                return self.writer.json(Kind::Entry, &Entry { link: Some(first), ..entry });
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(stat.st_ino, path.to_owned());
            }
        }
        if kind == FileType::RegularFile {
            return self.file(dir, base.zip(old), name, path, &stat);
        }
        let fd = at::open_path(dir, name.to_bytes())?;
        let mut entry = entry_of(&fd, path, &stat)?;
        if kind == FileType::Symlink {
            entry.target = Some(text(&at::read_link(dir, name.to_bytes())?)?);
            if let Some((base, old)) = base.zip(old) {
                let mut known = entry_of(at::open_path(base, name.to_bytes())?, path, &old)?;
                known.target = Some(text(&at::read_link(base, name.to_bytes())?)?);
                if known == entry {
                    return Ok(());
                }
            }
        }
        self.writer.json(Kind::Entry, &entry)
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        base: Option<(&OwnedFd, Stat)>,
        name: &CString,
        path: &str,
        stat: &Stat,
    ) -> io::Result<()> {
        let open = |dir: &OwnedFd| at::open(dir, name.to_bytes(), OFlags::RDONLY | OFlags::NONBLOCK, 0);
        let new = open(dir)?;
        let old = base.map(|(base, stat)| open(base).map(|fd| (fd, stat))).transpose()?;
        let entry = entry_of(&new, path, stat)?;
        if let Some((old, old_stat)) = &old
            && is_unchanged(&new, stat, old, old_stat)?
        {
            let known = entry_of(old, path, old_stat)?;
            return if known == entry { Ok(()) } else { self.writer.json(Kind::Close, &entry) };
        }
        self.writer.json(Kind::Entry, &Entry { base: old.is_some(), ..entry.clone() })?;
        self.data(&new, stat.st_size as u64, old.as_ref().map(|(fd, stat)| (fd, stat.st_size as u64)))?;
        self.writer.json(Kind::Close, &entry)
    }

    /// Every run of data, where there is an older file only what differs from it.
    fn data(&mut self, new: &OwnedFd, len: u64, old: Option<(&OwnedFd, u64)>) -> io::Result<()> {
        let mut place = 0;
        let (mut fresh, mut known) = (vec![0; DATA_MAX], vec![0; DATA_MAX]);
        while place < len {
            let data = match seek(new, SeekFrom::Data(place)) {
                Err(Errno::NXIO) => len,
                other => other.unwrap_or(place).min(len),
            };
            if data > place && old.is_some() {
                self.hole(place, data - place)?;
            }
            let end = seek(new, SeekFrom::Hole(data)).unwrap_or(len).min(len);
            place = data;
            while place < end {
                let want = ((end - place) as usize).min(DATA_MAX);
                let got = read_at(new, &mut fresh[..want], place)?;
                if got == 0 {
                    return Err(Errno::IO.into());
                }
                let same = match old {
                    Some((old, old_len)) if place + got as u64 <= old_len => {
                        read_at(old, &mut known[..got], place)? == got && known[..got] == fresh[..got]
                    }
                    _ => false,
                };
                if !same {
                    self.bytes += got as u64;
                    let body = [&place.to_le_bytes()[..], &fresh[..got]].concat();
                    self.writer.frame(Kind::Data, &body)?;
                }
                place += got as u64;
            }
        }
        Ok(())
    }

    fn hole(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.writer.frame(Kind::Hole, &[at.to_le_bytes(), len.to_le_bytes()].concat())
    }
}

/// Names in a directory that go along: the volume's, and in a root the records of the snapshot. Logs too.
fn names(dir: &OwnedFd) -> Result<BTreeSet<CString>, Errno> {
    let mut found = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.insert(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Every write of a file changes its first page, in which the seals are; so does a rewrap.
fn is_unchanged(new: &OwnedFd, stat: &Stat, old: &OwnedFd, old_stat: &Stat) -> Result<bool, Errno> {
    if stat.st_size != old_stat.st_size {
        return Ok(false);
    }
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    Ok(read_at(new, &mut a, 0)? == read_at(old, &mut b, 0)? && a == b)
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| io::Error::other("a lower name that is none of kmsfs's"))
}

fn join(path: &str, name: &CString) -> io::Result<String> {
    let name = text(name.to_bytes())?;
    Ok(if path.is_empty() { name } else { format!("{path}/{name}") })
}

fn entry_of(fd: impl AsFd, path: &str, stat: &Stat) -> io::Result<Entry> {
    let mut xattrs = BTreeMap::new();
    for name in at::list_xattrs(&fd).unwrap_or_default() {
        // The labels of this host's security modules mean nothing elsewhere.
        if !name.starts_with(b"security.") {
            xattrs.insert(text(&name)?, STANDARD.encode(at::xattr(&fd, &name)?));
        }
    }
    let size =
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile { stat.st_size as u64 } else { 0 };
    Ok(Entry {
        path: path.to_owned(),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
        size,
        target: None,
        device: stat.st_rdev,
        link: None,
        base: false,
        xattrs,
    })
}
