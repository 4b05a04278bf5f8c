//! Directories: listing them.
//!
//! Nothing is opened: the kernel is told so once and asks no more (FUSE_NO_OPENDIR_SUPPORT), so that a listing which it
//! has cached costs no request. What is under way of the other listings waits here for their next request.
//! Called by the adapter.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyOpen,
};
use parking_lot::Mutex;

use super::attr::{file_attr, file_type};
use super::errno::report;
use super::reply::{nameless, reply_empty};
use super::server::Server;
use crate::tree::{DirStream, FsError, Tree};

/// Listings under way that are kept, each with a descriptor. One that was given up is found again from its position.
const KEPT_MAX: usize = 128;
/// An entry or attribute that is found stale at once, for answers that must not be cached.
const NO_TIME: Duration = Duration::ZERO;

/// The directories of a mount.
pub struct Dirs {
    server: Arc<Server>,
    under_way: UnderWay,
    cache_time: Duration,
    /// The kernel asks to open a directory even where it need not.
    must_open: bool,
}

/// Listings between two requests, the oldest first.
#[derive(Default)]
struct UnderWay(Mutex<VecDeque<(u64, DirStream)>>);

impl UnderWay {
    /// Takes the listing of the directory `id` that goes on at `offset`; there is one at most.
    fn take(&self, id: u64, offset: u64) -> Option<DirStream> {
        let mut kept = self.0.lock();
        let found = kept.iter().position(|(of, stream)| *of == id && stream.position() == offset)?;
        kept.remove(found).map(|(_, stream)| stream)
    }

    /// Keeps a listing. One that has come as far before is given up: what it has read ahead may be out of date. Of too
    /// many the oldest goes, or the oldest that has no damage to tell of at its end.
    fn keep(&self, id: u64, stream: DirStream) {
        let mut kept = self.0.lock();
        kept.retain(|(of, older)| *of != id || older.position() != stream.position());
        if kept.len() >= KEPT_MAX {
            let victim = kept.iter().position(|(_, stream)| !stream.met_damage()).unwrap_or(0);
            kept.remove(victim);
        }
        kept.push_back((id, stream));
    }
}

impl Dirs {
    /// Nothing is listed yet.
    pub fn new(server: Arc<Server>, cache_time: Duration) -> Self {
        Self { server, under_way: UnderWay::default(), cache_time, must_open: false }
    }

    /// Whether the kernel insists that directories are opened.
    pub fn set_must_open(&mut self, must_open: bool) {
        self.must_open = must_open;
    }

    /// Says that directories need no opening, and may be cached.
    pub fn open(&self, reply: ReplyOpen) {
        if self.must_open {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        } else {
            reply.error(Errno::ENOSYS);
        }
    }

    /// Makes the entries durable.
    pub fn sync(&self, id: INodeNo, reply: ReplyEmpty) {
        let sync = move |tree: &Tree| tree.sync_dir(id.0);
        self.server.answer_slowly(id.0, sync, move |done| reply_empty(reply, id, done));
    }

    /// Runs `list` on the listing of `id` that goes on at `offset`, and keeps it unless it came to its end.
    fn listing(
        &self,
        id: INodeNo,
        offset: u64,
        list: impl FnOnce(&Tree, &mut DirStream) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let known = self.under_way.take(id.0, offset);
        let stream = self.server.run(id.0, |tree| {
            let mut stream = known.map_or_else(|| tree.open_stream(id.0), Ok)?;
            list(tree, &mut stream).map(|()| stream)
        })?;
        if stream.position() != offset {
            self.under_way.keep(id.0, stream);
        }
        Ok(())
    }

    /// The entries from `offset` on.
    pub fn read(&self, id: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.listing(id, offset, |tree, stream| {
            tree.list(stream, offset, |entry| {
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(INodeNo(entry.node_id), entry.position, file_type(entry.kind), name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    /// The entries from `offset` on, with their attributes; each counts as looked up.
    pub fn read_plus(&self, id: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.listing(id, offset, |tree, stream| {
            let dir = stream.listed_dir();
            tree.list(stream, offset, |entry| {
                let name = OsStr::from_bytes(&entry.name);
                let Some((attr, generation)) = tree.look_up_listed(&dir, entry) else {
                    // Node id 0 says "no attributes": for the dots, and for an entry that just went.
                    let attr = nameless(entry.node_id, file_type(entry.kind));
                    return !reply.add(INodeNo(0), entry.position, name, &NO_TIME, &attr, Generation(0));
                };
                let generation = Generation(generation.into());
                let ttl = &self.cache_time;
                let full = reply.add(
                    INodeNo(attr.node_id),
                    entry.position,
                    name,
                    ttl,
                    &file_attr(&attr),
                    generation,
                );
                if full {
                    tree.forget(attr.node_id, 1);
                }
                !full
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(report(id.0, &e)),
        }
    }
}
