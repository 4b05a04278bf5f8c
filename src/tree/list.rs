//! Listings of directories. Positions are the lower filesystem's own, so they stay valid while entries change.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, RawDir, SeekFrom};

use super::FsError;
use super::attr::{Attr, Kind};
use super::dir::{Dir, PlainName};
use super::namespace::Tree;
use super::node::ROOT_ID;
use crate::sys::at;

/// Bytes of lower entries read at a time.
const BUFFER_LEN: usize = 16 * 1024;

/// One entry of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Node id.
    pub node_id: u64,
    /// What it is.
    pub kind: Kind,
    /// Plaintext name.
    pub name: Vec<u8>,
    /// Where the listing goes on after this entry.
    pub position: u64,
    /// The lower name; `None` for `.` and `..`.
    entry: Option<String>,
}

/// A lower entry whose name decrypts.
struct Found<'a> {
    entry: &'a [u8],
    plain: Vec<u8>,
    kind: Option<Kind>,
    ino: u64,
}

/// A listing under way.
pub struct DirStream {
    dir: Arc<Dir>,
    fd: OwnedFd,
    position: u64,
    ahead: VecDeque<Listed>,
    /// How many names of our kinds did not decrypt, and the first of them.
    damaged: Option<(u64, String)>,
}

impl Tree {
    /// Opens a directory for listing.
    pub fn open_stream(&self, id: u64) -> Result<DirStream, FsError> {
        let dir = self.dir(id)?;
        let fd = self.spare_descriptors(|| at::reopen_dir(&dir.fd))?;
        Ok(DirStream { dir, fd, position: 0, ahead: VecDeque::new(), damaged: None })
    }

    /// Gives entries from `position` on to `take` until it answers `false`; the refused one comes first next time.
    /// Names that do not decrypt are told as damage at the end, after everything that can be listed.
    pub fn list(
        &self,
        stream: &mut DirStream,
        position: u64,
        mut take: impl FnMut(&Listed) -> bool,
    ) -> Result<(), FsError> {
        if stream.position != position {
            stream.ahead.clear();
            fs::seek(&stream.fd, SeekFrom::Start(position))?;
            stream.position = position;
        }
        if position == 0 {
            stream.damaged = None;
        }
        let mut took_any = false;
        loop {
            if stream.ahead.is_empty() && !self.read_ahead(stream)? {
                return if took_any { Ok(()) } else { stream.report_damage() };
            }
            while let Some(entry) = stream.ahead.front() {
                if !take(entry) {
                    return Ok(());
                }
                took_any = true;
                stream.position = entry.position;
                stream.ahead.pop_front();
            }
        }
    }

    /// Reads some lower entries; `false` at the end.
    fn read_ahead(&self, stream: &mut DirStream) -> Result<bool, FsError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_LEN];
        let mut lower = RawDir::new(&stream.fd, &mut buffer);
        let mut end = true;
        while let Some(entry) = lower.next() {
            let entry = entry?;
            end = false;
            let kind = Kind::of_type(entry.file_type());
            let (name, position) = (entry.file_name().to_bytes(), entry.next_entry_cookie());
            match stream.dir.plain_name(name) {
                PlainName::Name(plain) => {
                    let found = Found { entry: name, plain, kind, ino: entry.ino() };
                    stream.ahead.extend(self.listed(&stream.dir, found, position));
                }
                PlainName::Hidden => stream.ahead.extend(self.dots(&stream.dir, name, entry.ino(), position)),
                PlainName::Damaged => {
                    let first = || (0, String::from_utf8_lossy(name).into_owned());
                    stream.damaged.get_or_insert_with(first).0 += 1;
                }
            }
            if lower.is_buffer_empty() {
                break;
            }
        }
        Ok(!end)
    }

    /// The entries `.` and `..`; other names that are hidden are not listed.
    fn dots(&self, dir: &Dir, name: &[u8], ino: u64, position: u64) -> Option<Listed> {
        if name != b"." && name != b".." {
            return None;
        }
        let own = name == b"." || dir.node_id == ROOT_ID;
        let node_id = if own { dir.node_id } else { self.node_id_of_ino(ino) };
        Some(Listed { node_id, kind: Kind::Dir, name: name.to_vec(), position, entry: None })
    }

    /// An entry of ours; `None` when it has just gone.
    fn listed(&self, dir: &Dir, found: Found<'_>, position: u64) -> Option<Listed> {
        let entry = std::str::from_utf8(found.entry).ok()?.to_owned();
        let kind = match found.kind {
            Some(kind) => kind,
            None => Kind::of_mode(self.stat_entry(dir, &entry).ok()?.st_mode)?,
        };
        let node_id = self.node_id_of_ino(found.ino);
        Some(Listed { node_id, kind, name: found.plain, position, entry: Some(entry) })
    }

    /// Looks up an entry listed in `dir`: its attributes and one more lookup. `None` for the dots, and when it is gone.
    pub fn look_up_listed(&self, dir: &ListedDir, listed: &Listed) -> Option<(Attr, u32)> {
        self.look_up_entry(&dir.0, listed.entry.as_deref()?).ok()
    }
}

/// The directory of a listing, for looking up its entries while it goes on.
pub struct ListedDir(Arc<Dir>);

impl DirStream {
    /// Where the listing goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether names that do not decrypt were met so far.
    pub fn met_damage(&self) -> bool {
        self.damaged.is_some()
    }

    fn report_damage(&self) -> Result<(), FsError> {
        let Some((count, first)) = &self.damaged else { return Ok(()) };
        Err(FsError::Corrupt(format!(
            "{count} names of a directory do not decrypt, the first is {first}; they are not listed"
        )))
    }

    /// The directory that is listed.
    pub fn listed_dir(&self) -> ListedDir {
        ListedDir(self.dir.clone())
    }
}
