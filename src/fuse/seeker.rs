//! SEEK_DATA and SEEK_HOLE on files that are being written.
//!
//! The kernel asks for holes without writing back what it has collected, so data just written would show as a hole.
//! Before the answer it is therefore made to write back. It needs a serving thread for that, so this must not happen
//! on one: a thread of its own does it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use fuser::{Errno, INodeNo, ReplyLseek};

use super::errno::report;
use super::kernel_cache::KernelCache;
use super::server::Server;
use crate::tree::Seek;

/// Requests that wait; more get EAGAIN.
const QUEUE_LEN: usize = 1024;

/// One lseek(2) that waits for its answer.
pub struct SeekRequest {
    /// Node id.
    pub id: u64,
    /// Where to start.
    pub offset: u64,
    /// What to look for.
    pub what: Seek,
    /// Where the answer goes.
    pub reply: ReplyLseek,
}

/// Answers seeks.
pub struct Seeker {
    server: Arc<Server>,
    /// `None` only while dropped.
    queue: Option<SyncSender<SeekRequest>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seeker {
    /// Starts the thread, which ends with the seeker.
    pub fn start(server: Arc<Server>, kernel: KernelCache) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE_LEN);
        let its_server = server.clone();
        let serve = move || serve(&its_server, &kernel, &waiting);
        let thread = Some(thread::Builder::new().name("seeker".into()).spawn(serve)?);
        Ok(Self { server, queue: Some(queue), thread })
    }

    /// Answers `request`, at once where the kernel can hold no data of the file.
    pub fn seek(&self, request: SeekRequest) {
        let queue = match &self.queue {
            Some(queue) if self.server.tree().has_writers(request.id) => queue,
            _ => return answer(&self.server, request),
        };
        if let Err(refused) = queue.try_send(request) {
            let (std::sync::mpsc::TrySendError::Full(request)
            | std::sync::mpsc::TrySendError::Disconnected(request)) = refused;
            request.reply.error(Errno::EAGAIN);
        }
    }
}

fn serve(server: &Server, kernel: &KernelCache, waiting: &Receiver<SeekRequest>) {
    while let Ok(request) = waiting.recv() {
        if let Err(e) = kernel.write_back(INodeNo(request.id)) {
            log::warn!("inode {}: the kernel could not write back before a seek: {e}", request.id);
        }
        answer(server, request);
    }
}

fn answer(server: &Server, request: SeekRequest) {
    let SeekRequest { id, offset, what, reply } = request;
    server.answer(
        id,
        move |tree| tree.seek(id, offset, what),
        move |found| match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(e) => reply.error(report(id, &e)),
        },
    );
}
