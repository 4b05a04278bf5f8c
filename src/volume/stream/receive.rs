//! The receiving end: a stream becomes a lower tree beside those received before. It takes no key.
//!
//! What is received stands under a temporary name until the last frame has come and everything is durable. How far that
//! is stands beside it, so that the sender can go on from there, or the same stream once more. Must never write outside its
//! directory, whatever the stream says: paths are taken apart, and no link is followed.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, fallocate, fsync,
    ftruncate, linkat, mkdirat, mknodat, renameat, renameat_with, symlinkat, syncfs, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::{Begin, End, Entry, Kind, Position, Reader, damaged, split};
use crate::sys::at;
use crate::tree::Moment;
use crate::volume::VolumeError;
use crate::volume::lower_dir::remove_tree;
use crate::volume::open::open_lower;
use crate::volume::record_file::replace;
use crate::volume::registry::check_name;
use crate::volume::snapshot::walk_offline;

/// Frames between two notes of the position.
const NOTE_EVERY: u64 = 2000;
/// Longest note read.
const NOTE_MAX: u64 = 1024;
/// Bytes kept free for the note of a stream that fills the disk.
const ROOM: u64 = 64 << 10;

/// What was received.
#[derive(Debug, serde::Serialize)]
pub struct Received {
    /// The volume.
    pub volume_id: String,
    /// The snapshot.
    pub snapshot: String,
    /// Objects.
    pub entries: u64,
    /// Bytes of data in the stream.
    pub bytes: u64,
    /// The last hash, which names the whole stream.
    pub hash: String,
}

/// Begins the name under which it is noted how far a stream was received.
pub const POSITION_PREFIX: &str = ".kmsfs.receive-";

fn partial_name(snapshot: &str) -> String {
    format!(".kmsfs.t.receive-{snapshot}")
}

fn position_name(snapshot: &str) -> String {
    format!("{POSITION_PREFIX}{snapshot}")
}

fn room_name(snapshot: &str) -> String {
    format!(".kmsfs.t.room-{snapshot}")
}

/// Verifies a whole stream and writes nothing.
pub fn check(from: impl Read) -> Result<Received, VolumeError> {
    let io = |e: io::Error| VolumeError::io("verify", Path::new("the stream"), e);
    let (mut reader, begin) = Reader::open(from).map_err(io)?;
    loop {
        let (kind, body) = reader.frame().map_err(io)?;
        if kind == Kind::End {
            return ended(&begin, &body, reader.at).map_err(io);
        }
    }
}

/// What a stream begins with.
#[derive(Debug, Clone)]
pub struct Begins {
    /// The volume.
    pub volume_id: String,
    /// The snapshot.
    pub snapshot: String,
    /// The one that the receiver must have.
    pub base: Option<String>,
}

/// Reads the first frame of a stream.
pub fn begins(from: impl Read) -> Result<Begins, VolumeError> {
    let io = |e: io::Error| VolumeError::io("read", Path::new("the stream"), e);
    let (_, begin) = Reader::open(from).map_err(io)?;
    for name in [Some(&begin.snapshot), begin.base.as_ref()].into_iter().flatten() {
        check_name(name).map_err(|e| io(io::Error::other(e.to_string())))?;
    }
    Ok(Begins { volume_id: begin.volume_id, snapshot: begin.snapshot, base: begin.base })
}

fn ended(begin: &Begin, body: &[u8], at: Position) -> io::Result<Received> {
    let end: End = serde_json::from_slice(body)?;
    Ok(Received {
        volume_id: begin.volume_id.clone(),
        snapshot: begin.snapshot.clone(),
        entries: end.entries,
        bytes: end.bytes,
        hash: crate::api::hex(&at.hash),
    })
}

/// Where the interrupted stream of `snapshot` into `dir` may be gone on with.
pub fn position(dir: &Path, snapshot: &str) -> Result<Position, VolumeError> {
    let io = |e: io::Error| VolumeError::io("find the position in", dir, e);
    check_name(snapshot).map_err(|e| io(io::Error::other(e.to_string())))?;
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound if dir.join(snapshot).is_dir() => {
            io::Error::other(format!("'{snapshot}' was received already"))
        }
        io::ErrorKind::NotFound => {
            io::Error::other(format!("nothing of '{snapshot}' has come yet; send it from its beginning"))
        }
        _ => e,
    };
    let text = std::fs::read_to_string(dir.join(position_name(snapshot))).map_err(|e| io(missing(e)))?;
    text.split(' ').next().unwrap_or_default().parse().map_err(|e: String| io(io::Error::other(e)))
}

/// Receives a stream into `dir`, as a lower tree under the snapshot's name.
pub fn receive(dir: &Path, from: impl Read) -> Result<Received, VolumeError> {
    let io = |e: io::Error| VolumeError::io("receive into", dir, e);
    std::fs::create_dir_all(dir).map_err(io)?;
    let place = open_lower(dir)?;
    let (mut reader, begin) = Reader::open(from).map_err(io)?;
    check_name(&begin.snapshot).map_err(|e| io(io::Error::other(e.to_string())))?;
    if at::stat(&place, begin.snapshot.as_bytes()).is_ok() {
        // Cut behind the renaming, an attempt left them.
        remove(&place, &position_name(&begin.snapshot))
            .and_then(|()| remove(&place, &room_name(&begin.snapshot)))
            .map_err(io)?;
        return Err(io(io::Error::other(format!("'{}' was received already", begin.snapshot))));
    }
    let root = prepare(&place, &begin, &mut reader).map_err(io)?;
    let mut receiver = Receiver { root, file: None, safe: reader.at };
    let outcome = receiver.apply_all(&place, &begin, &mut reader);
    let received = outcome.map_err(|e| io(kept(&place, &begin, &receiver, e)))?;
    publish(&place, &begin, &receiver.root).map_err(io)?;
    Ok(received)
}

/// Notes what came so far, which need not come again, and tells that with the error.
fn kept(place: &OwnedFd, begin: &Begin, receiver: &Receiver, e: io::Error) -> io::Error {
    // On a full disk there is no other room for the note.
    let freed = remove(place, &room_name(&begin.snapshot));
    match freed.and_then(|()| note(place, begin, &receiver.root, receiver.safe)) {
        Ok(()) => io::Error::new(e.kind(), format!("{e}; what came is kept: the same stream goes on there")),
        Err(_) => e,
    }
}

/// The tree to write to: new, begun as a copy of the base, or the one that an interrupted stream left. The reader stands
/// behind what is in it already.
fn prepare(place: &OwnedFd, begin: &Begin, reader: &mut Reader<impl Read>) -> io::Result<OwnedFd> {
    let partial = partial_name(&begin.snapshot);
    let open = |name: &str| at::open(place, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0);
    let (known, this) = (noted(place, begin)?, identity(begin)?);
    if begin.resume > 0 {
        if known.is_none_or(|(known, _)| known != reader.at.to_string()) {
            let text = "the stream does not go on where the last one ended; send --resume";
            return Err(io::Error::other(text));
        }
    } else if let Some((known, _)) = known.filter(|(_, stream)| *stream == this) {
        if let Err(e) = skip(reader, &known) {
            remove(place, &position_name(&begin.snapshot))?;
            return Err(e);
        }
    } else {
        remove(place, &position_name(&begin.snapshot))?;
        remove_tree(place, partial.as_bytes())?;
        make_tree(place, begin, &partial)?;
    }
    let root = open(&partial)?;
    if begin.resume == 0 {
        note(place, begin, &root, reader.at)?;
    }
    let flags = OFlags::RDWR | OFlags::CREATE;
    let room = at::open(place, room_name(&begin.snapshot).as_bytes(), flags, 0o600)?;
    fallocate(&room, FallocateFlags::empty(), 0, ROOM)?;
    Ok(root)
}

/// Reads over what an earlier attempt has written.
fn skip(reader: &mut Reader<impl Read>, known: &str) -> io::Result<()> {
    let known: Position = known.parse().map_err(|e: String| damaged(&e))?;
    while reader.at.frames < known.frames {
        reader.frame()?;
    }
    if reader.at.hash == known.hash {
        return Ok(());
    }
    Err(io::Error::other("what came before is not of this stream; receive it again, from its beginning"))
}

/// Makes the tree: empty, or a copy of the base.
fn make_tree(place: &OwnedFd, begin: &Begin, partial: &str) -> io::Result<()> {
    let Some(base) = &begin.base else { return Ok(mkdirat(place, partial, Mode::RWXU)?) };
    check_name(base).map_err(|e| io::Error::other(e.to_string()))?;
    let open = |name: &str| at::open(place, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0);
    let missing = |_| io::Error::other(format!("the base '{base}' is not here; receive it first"));
    let source = open(base).map_err(missing)?;
    let stage_name = format!("{partial}.stage");
    remove_tree(place, stage_name.as_bytes())?;
    mkdirat(place, &*stage_name, Mode::RWXU)?;
    let stage = open(&stage_name)?;
    let copy = Moment::new(&source, stage.try_clone()?)?;
    copy_records(&copy, &source)?;
    walk_offline(&copy, &source)?;
    copy.failure().map_or(Ok(()), Err)?;
    copy.assemble()?;
    renameat(&stage, copy.root_name(), place, partial)?;
    Ok(remove_tree(place, stage_name.as_bytes())?)
}

/// The records of the base that a copy of a tree leaves out.
fn copy_records(copy: &Moment, source: &OwnedFd) -> Result<(), Errno> {
    let to = copy.stage_root()?;
    match copy.copy_beside(source, crate::volume::snapshot::SNAPSHOT_RECORD.as_bytes(), &to) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// What names a stream, wherever it is gone on with: the hash of its first frame.
fn identity(begin: &Begin) -> io::Result<String> {
    let first = serde_json::to_vec(&Begin { resume: 0, ..begin.clone() })?;
    Ok(crate::api::hex(&Position::START.after(Kind::Begin as u8, &first).hash))
}

fn note(place: &OwnedFd, begin: &Begin, root: &OwnedFd, at: Position) -> io::Result<()> {
    syncfs(root)?;
    let text = format!("{at} {}\n", identity(begin)?);
    replace(place.as_fd(), &position_name(&begin.snapshot), text.as_bytes())
}

/// What an interrupted attempt left: its position, and which stream that is of.
fn noted(place: &OwnedFd, begin: &Begin) -> io::Result<Option<(String, String)>> {
    let name = position_name(&begin.snapshot);
    let file = match at::open_regular(place, name.as_bytes(), OFlags::RDONLY, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => std::fs::File::from(other?),
    };
    let mut text = String::new();
    file.take(NOTE_MAX).read_to_string(&mut text)?;
    Ok(text.split_once(' ').map(|(at, stream)| (at.to_owned(), stream.trim().to_owned())))
}

/// Removes a file that may be there.
fn remove(place: &OwnedFd, name: &str) -> io::Result<()> {
    match at::unlink(place, name.as_bytes()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn publish(place: &OwnedFd, begin: &Begin, root: &OwnedFd) -> io::Result<()> {
    syncfs(root)?;
    let partial = partial_name(&begin.snapshot);
    renameat_with(place, &*partial, place, &*begin.snapshot, RenameFlags::NOREPLACE)?;
    remove(place, &position_name(&begin.snapshot))?;
    remove(place, &room_name(&begin.snapshot))?;
    Ok(fsync(place)?)
}

struct Receiver {
    root: OwnedFd,
    /// The file that data goes to.
    file: Option<OwnedFd>,
    /// Where a stream may go on: in the middle of a file there is nothing to go on with.
    safe: Position,
}

impl Receiver {
    fn apply_all(
        &mut self,
        place: &OwnedFd,
        begin: &Begin,
        reader: &mut Reader<impl Read>,
    ) -> io::Result<Received> {
        let mut noted = self.safe.frames;
        loop {
            let (kind, body) = reader.frame()?;
            if kind == Kind::End {
                return ended(begin, &body, reader.at);
            }
            self.apply(kind, &body)?;
            if self.file.is_none() {
                self.safe = reader.at;
            }
            if self.safe.frames - noted >= NOTE_EVERY {
                noted = self.safe.frames;
                note(place, begin, &self.root, self.safe)?;
            }
        }
    }

    fn apply(&mut self, kind: Kind, body: &[u8]) -> io::Result<()> {
        match kind {
            Kind::Remove => {
                let path: String = serde_json::from_slice(body)?;
                let (dir, name) = self.place(&path)?;
                Ok(remove_tree(&dir, name.as_bytes())?)
            }
            Kind::Entry => self.entry(&serde_json::from_slice(body)?),
            Kind::Close => self.close(&serde_json::from_slice(body)?),
            Kind::Data => {
                let (offset, data) = split(body)?;
                let mut written = 0;
                while written < data.len() {
                    written += pwrite(self.open_file()?, &data[written..], offset + written as u64)?;
                }
                Ok(())
            }
            Kind::Hole => {
                let (offset, rest) = split(body)?;
                let (length, _) = split(rest)?;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(self.open_file()?, flags, offset, length)?)
            }
            Kind::Begin | Kind::End => Err(damaged("a frame that does not belong here")),
        }
    }

    fn open_file(&self) -> io::Result<&OwnedFd> {
        self.file.as_ref().ok_or_else(|| damaged("data without a file"))
    }

    /// The directory and the name of a path, step by step and through no link.
    fn place<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let mut dir = self.root.try_clone()?;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if matches!(part, "" | "." | "..") || part.contains('\0') {
                return Err(damaged("a path that leads elsewhere"));
            }
            if parts.peek().is_none() {
                return Ok((dir, part));
            }
            dir = at::open(&dir, part.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        }
        Err(damaged("an empty path"))
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.file = None;
        let (dir, name) = self.place(&entry.path)?;
        let kind = FileType::from_raw_mode(entry.mode);
        let there = at::stat(&dir, name.as_bytes()).ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind == FileType::Directory && there == Some(kind) {
            return Ok(());
        }
        if entry.base && there != Some(FileType::RegularFile) {
            return Err(damaged("the base is not the one that the sender has"));
        }
        if !entry.base {
            remove_tree(&dir, name.as_bytes())?;
        }
        if let Some(first) = &entry.link {
            let (from, first) = self.place(first)?;
            return Ok(linkat(&from, first, &dir, name, AtFlags::empty())?);
        }
        match kind {
            FileType::Directory => Ok(mkdirat(&dir, name, Mode::RWXU)?),
            FileType::RegularFile => {
                let flags = OFlags::RDWR | OFlags::CREATE;
                let file = at::open(&dir, name.as_bytes(), flags, 0o600)?;
                ftruncate(&file, entry.size)?;
                self.file = Some(file);
                Ok(())
            }
            FileType::Symlink => {
                let target = entry.target.as_deref().ok_or_else(|| damaged("a link without a target"))?;
                symlinkat(target, &dir, name)?;
                give_attributes(&at::open_path(&dir, name.as_bytes())?, entry)
            }
            kind => {
                mknodat(&dir, name, kind, Mode::from_raw_mode(entry.mode & 0o7777), entry.device)?;
                give_attributes(&at::open_path(&dir, name.as_bytes())?, entry)
            }
        }
    }

    /// The file or directory is done.
    fn close(&mut self, entry: &Entry) -> io::Result<()> {
        self.file = None;
        if entry.path.is_empty() {
            return give_attributes(&self.root, entry);
        }
        let (dir, name) = self.place(&entry.path)?;
        give_attributes(&at::open_path(&dir, name.as_bytes())?, entry)
    }
}

/// Owner, mode, extended attributes and time; what only root may give is left out for others.
fn give_attributes(fd: &OwnedFd, entry: &Entry) -> io::Result<()> {
    let as_root = rustix::process::geteuid().is_root();
    if as_root {
        at::set_owner(fd, Some(entry.uid), Some(entry.gid))?;
    }
    for known in at::list_xattrs(fd).unwrap_or_default() {
        let text = String::from_utf8_lossy(&known);
        if !known.starts_with(b"security.") && !entry.xattrs.contains_key(text.as_ref()) {
            at::remove_xattr(fd, &known)?;
        }
    }
    for (name, value) in &entry.xattrs {
        let value = STANDARD.decode(value).map_err(|_| damaged("an attribute that is no base64"))?;
        match at::set_xattr(fd, name.as_bytes(), &value, rustix::fs::XattrFlags::empty()) {
            Err(Errno::PERM) if !as_root => {}
            other => other?,
        }
    }
    if FileType::from_raw_mode(entry.mode) != FileType::Symlink {
        at::set_mode(fd, entry.mode & 0o7777)?;
    }
    let time = Timespec { tv_sec: entry.mtime.0 as _, tv_nsec: entry.mtime.1 as _ };
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ },
        last_modification: time,
    };
    Ok(utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
}
