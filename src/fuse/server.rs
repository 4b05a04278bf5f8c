//! Running one request of the kernel: on the serving thread, or where it must wait for a key, on a thread kept for that.
//!
//! Called by the adapter. Must never let a panic end a thread: it is an I/O error of that request alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::session::THREADS;
use crate::tree::{FsError, KEY_WAITS, KeyError, Tree};

/// Threads on which requests wait for keys, besides the serving ones that do.
const WAITERS: usize = 4;
/// Requests that wait for such a thread; more wait on the serving ones.
const QUEUE_LEN: usize = 1024;

// Whatever happens to the key service, threads are left for requests that need no key of it.
const _: () = assert!(KEY_WAITS < *THREADS.start());

type Job = Box<dyn FnOnce(&Tree) + Send>;

/// Runs requests on a tree.
pub struct Server {
    tree: Arc<Tree>,
    /// `None` only while dropped.
    queue: Option<SyncSender<Job>>,
    waiters: Vec<JoinHandle<()>>,
    requests: Arc<AtomicU64>,
}

impl Server {
    /// Starts the threads for waiting requests, which end with the server.
    pub fn start(tree: Arc<Tree>) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_LEN);
        let jobs = Arc::new(Mutex::new(jobs));
        let waiter = |number| {
            let (tree, jobs) = (Arc::clone(&tree), Arc::clone(&jobs));
            thread::Builder::new().name(format!("key-wait-{number}")).spawn(move || work(&tree, &jobs))
        };
        let waiters = (0..WAITERS).map(waiter).collect::<Result<_, _>>()?;
        Ok(Self { tree, queue: Some(queue), waiters, requests: Arc::default() })
    }

    /// What the requests are about.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Counts requests.
    pub fn requests(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.requests)
    }

    /// Runs `act`, which needs no file's key.
    pub fn run<T>(&self, id: u64, act: impl FnOnce(&Tree) -> Result<T, FsError>) -> Result<T, FsError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        guarded(&self.tree, id, act)
    }

    /// Runs `act` and then `answer` with its outcome, now or, where `act` must wait for a key, later.
    pub fn answer<T: 'static>(
        &self,
        id: u64,
        act: impl Fn(&Tree) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) {
        match self.run(id, &act) {
            Err(FsError::Key(KeyError::Absent(_))) => self.wait(id, act, answer),
            done => answer(done),
        }
    }

    /// Runs `act` and `answer` where they may wait for keys.
    pub fn wait<T: 'static>(
        &self,
        id: u64,
        act: impl Fn(&Tree) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) {
        let patient = move |tree: &Tree| tree.with_keys_patiently(|| act(tree));
        let job: Job = Box::new(move |tree| answer(guarded(tree, id, patient)));
        let Some(queue) = &self.queue else { return job(&self.tree) };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = queue.try_send(job) {
            job(&self.tree);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.queue = None;
        for waiter in self.waiters.drain(..) {
            let _ = waiter.join();
        }
    }
}

fn work(tree: &Tree, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().recv();
        let Ok(job) = job else { return };
        // What `act` did is guarded; this is for its answer.
        let _ = catch_unwind(AssertUnwindSafe(|| job(tree)));
    }
}

/// Runs `act`. After a panic nothing in memory is trusted that concerns the file: it is loaded again, as after a crash.
fn guarded<T>(tree: &Tree, id: u64, act: impl FnOnce(&Tree) -> Result<T, FsError>) -> Result<T, FsError> {
    catch_unwind(AssertUnwindSafe(|| act(tree))).unwrap_or_else(|_| {
        log::error!(
            "inode {id}: a request ended by a panic, which is an error of this program; please report it"
        );
        let _ = catch_unwind(AssertUnwindSafe(|| tree.abandon(id)));
        Err(FsError::Os(rustix::io::Errno::IO))
    })
}
