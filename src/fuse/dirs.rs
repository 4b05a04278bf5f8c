//! Open directories: listing them.
//!
//! Called by the adapter.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen,
};
use parking_lot::Mutex;

use super::attr::{file_attr, file_type};
use super::errno::report;
use super::handles::Handles;
use super::reply::{nameless, reply_empty};
use super::server::Server;
use crate::tree::{DirStream, FsError, Tree};

/// Listings open at a time; each has a descriptor.
const STREAMS_MAX: usize = 16_384;
/// An entry or attribute that is found stale at once, for answers that must not be cached.
const NO_TIME: Duration = Duration::ZERO;

/// The open directories of a mount.
pub struct Dirs {
    server: Arc<Server>,
    /// A listing's position moves, so one request at a time.
    streams: Handles<Mutex<DirStream>>,
    cache_time: Duration,
}

impl Dirs {
    /// None is open yet.
    pub fn new(server: Arc<Server>, cache_time: Duration) -> Self {
        Self { server, streams: Handles::new(STREAMS_MAX), cache_time }
    }

    /// Opens a directory for listing.
    pub fn open(&self, id: INodeNo, reply: ReplyOpen) {
        let opened = self.server.run(id.0, |tree| tree.open_stream(id.0));
        match opened.and_then(|stream| self.streams.insert(Mutex::new(stream))) {
            Ok(number) => {
                reply.opened(FileHandle(number), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(report(id.0, &e)),
        }
    }

    /// Ends a listing.
    pub fn release(&self, handle: FileHandle, reply: ReplyEmpty) {
        self.streams.remove(handle.0);
        reply.ok();
    }

    /// Makes the entries durable.
    pub fn sync(&self, id: INodeNo, reply: ReplyEmpty) {
        let sync = move |tree: &Tree| tree.sync_dir(id.0);
        self.server.answer_slowly(id.0, sync, move |done| reply_empty(reply, id, done));
    }

    fn listing(
        &self,
        id: INodeNo,
        handle: FileHandle,
        list: impl FnOnce(&Tree, &mut DirStream) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let stream = self.streams.find(handle.0)?;
        self.server.run(id.0, |tree| list(tree, &mut stream.lock()))
    }

    /// The entries from `offset` on.
    pub fn read(&self, id: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.listing(id, handle, |tree, stream| {
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
    pub fn read_plus(&self, id: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.listing(id, handle, |tree, stream| {
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
