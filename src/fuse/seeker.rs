//! SEEK_DATA and SEEK_HOLE on files that are being written.
//!
//! The kernel asks for holes without writing back what it has collected, so data just written would show as a hole.
//! Before the answer it is therefore made to write back. It needs a serving thread for that, so this must not happen
//! on one: a thread of its own does it.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use fuser::{Errno, INodeNo, Notifier, ReplyLseek};

use super::errno::report;
use crate::tree::{Seek, Tree};

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
    tree: Arc<Tree>,
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
    /// Starts the thread, which ends with the seeker. The notifier is to be set once there is one.
    pub fn start(tree: Arc<Tree>) -> io::Result<(Self, Arc<OnceLock<Notifier>>)> {
        let (queue, waiting) = sync_channel(QUEUE_LEN);
        let notifier = Arc::new(OnceLock::new());
        let (for_thread, its_tree) = (notifier.clone(), tree.clone());
        let serve = move || serve(&its_tree, &for_thread, &waiting);
        let thread = Some(thread::Builder::new().name("seeker".into()).spawn(serve)?);
        Ok((Self { tree, queue: Some(queue), thread }, notifier))
    }

    /// Answers `request`, at once where the kernel can hold no data of the file.
    pub fn seek(&self, request: SeekRequest) {
        let queue = match &self.queue {
            Some(queue) if self.tree.has_writers(request.id) => queue,
            _ => return answer(&self.tree, request),
        };
        if let Err(refused) = queue.try_send(request) {
            let (std::sync::mpsc::TrySendError::Full(request)
            | std::sync::mpsc::TrySendError::Disconnected(request)) = refused;
            request.reply.error(Errno::EAGAIN);
        }
    }
}

fn serve(tree: &Tree, notifier: &OnceLock<Notifier>, waiting: &Receiver<SeekRequest>) {
    while let Ok(request) = waiting.recv() {
        if let Some(notifier) = notifier.get()
            && let Err(e) = notifier.inval_inode(INodeNo(request.id), 0, 0)
        {
            log::warn!("inode {}: the kernel could not write back before a seek: {e}", request.id);
        }
        answer(tree, request);
    }
}

fn answer(tree: &Tree, request: SeekRequest) {
    match tree.seek(request.id, request.offset, request.what) {
        Ok(offset) => request.reply.offset(offset as i64),
        Err(e) => request.reply.error(report(request.id, &e)),
    }
}
