//! Running one request of the kernel: on the serving thread, or where it must wait, on a thread kept for that.
//!
//! The serving threads are few, because the kernel hands requests to them in turn and each change of thread costs more
//! than most requests; so they must not be spent on waiting.
//!
//! Called by the adapter. Must never let a panic end a thread: it is an I/O error of that request alone.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::ReplyData;
use parking_lot::Mutex;

use super::errno::report;
use super::session::THREADS;
use super::traffic::Traffic;
use crate::tree::{Asker, FsError, KEY_WAITS, KeyError, Tree};

/// Threads on which requests wait for keys, besides the serving ones that do.
const KEY_WAITERS: usize = 4;
/// Threads on which requests wait for the disk, besides the serving ones that do.
const DISK_WAITERS: usize = 8;
/// Serving threads that may wait for the disk in a request that always does.
const DISK_WAITS: usize = 1;
/// Requests that wait for such a thread; more wait on the serving ones.
const QUEUE_LEN: usize = 1024;

// Whatever happens to the key service, threads are left for requests that need no key of it; and so with the disk.
const _: () = assert!(KEY_WAITS < *THREADS.start() && DISK_WAITS < *THREADS.start());

/// How long the end of a mount waits for the thread that fetches keys ahead of need.
const AHEAD_PATIENCE: Duration = Duration::from_millis(300);

/// Buffers above this are not kept for the next read of the thread.
const KEPT_BUFFER: usize = 2 << 20;

type Job = Box<dyn FnOnce(&Tree) + Send>;

/// Threads that requests are handed to when they must wait.
struct Pool {
    /// `None` only while dropped.
    queue: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn start(tree: &Arc<Tree>, name: &str, count: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_LEN);
        let jobs = Arc::new(Mutex::new(jobs));
        let thread = |number| {
            let (tree, jobs) = (Arc::clone(tree), Arc::clone(&jobs));
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || work(&tree, &jobs))
        };
        let threads = (0..count).map(thread).collect::<Result<_, _>>()?;
        Ok(Self { queue: Some(queue), threads })
    }

    /// Has `job` run on a thread of the pool, or here where too many wait.
    fn hand(&self, tree: &Tree, job: Job) {
        let Some(queue) = &self.queue else { return job(tree) };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = queue.try_send(job) {
            job(tree);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The thread that fetches keys ahead of need.
struct AheadThread(Arc<Tree>, JoinHandle<()>);

impl AheadThread {
    fn start(tree: &Arc<Tree>) -> std::io::Result<Self> {
        let walked = Arc::clone(tree);
        // A panic costs keys ahead of need, and nothing else.
        let run = move || drop(catch_unwind(AssertUnwindSafe(|| walked.run_ahead())));
        Ok(Self(Arc::clone(tree), thread::Builder::new().name("key-ahead".into()).spawn(run)?))
    }
}

impl Drop for AheadThread {
    fn drop(&mut self) {
        self.0.stop_ahead();
        let begin = Instant::now();
        // The end of a mount does not wait for a key service that does not answer.
        while !self.1.is_finished() && begin.elapsed() < AHEAD_PATIENCE {
            thread::sleep(AHEAD_PATIENCE / 100);
        }
    }
}

/// Runs requests on a tree.
pub struct Server {
    tree: Arc<Tree>,
    for_keys: Pool,
    for_disk: Pool,
    _ahead: Option<AheadThread>,
    disk_waits: AtomicUsize,
    requests: Arc<AtomicU64>,
    traffic: Arc<Traffic>,
}

impl Server {
    /// Starts the threads for waiting requests, and with `ahead` the one for keys ahead of need. They end with the server.
    pub fn start(tree: Arc<Tree>, ahead: bool) -> std::io::Result<Self> {
        let for_keys = Pool::start(&tree, "key-wait", KEY_WAITERS)?;
        let for_disk = Pool::start(&tree, "disk-wait", DISK_WAITERS)?;
        let ahead = ahead.then(|| AheadThread::start(&tree)).transpose()?;
        Ok(Self {
            tree,
            for_keys,
            for_disk,
            _ahead: ahead,
            disk_waits: AtomicUsize::new(0),
            requests: Arc::default(),
            traffic: Arc::default(),
        })
    }

    /// What the requests are about.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Counts requests.
    pub fn requests(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.requests)
    }

    /// What was asked for, and how long it took.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Runs `act`, which needs no file's key.
    pub fn run<T>(&self, id: u64, act: impl FnOnce(&Tree) -> Result<T, FsError>) -> Result<T, FsError> {
        let begin = Instant::now();
        let done = self.run_uncounted(id, act);
        if !matches!(done, Err(FsError::Key(KeyError::Absent(..)))) {
            self.traffic.others.note(begin.elapsed());
        }
        done
    }

    /// The same for a write, which is counted by [`Server::traffic`] when it is done.
    pub fn run_uncounted<T>(
        &self,
        id: u64,
        act: impl FnOnce(&Tree) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
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
            Err(FsError::Key(KeyError::Absent(..))) => {
                let (traffic, begin) = (Arc::clone(&self.traffic), Instant::now());
                self.wait(id, act, move |done| {
                    traffic.others.note(begin.elapsed());
                    answer(done);
                });
            }
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
        self.for_keys.hand(&self.tree, Box::new(move |tree| answer(guarded(tree, id, patient))));
    }

    /// Runs `act`, which always waits for the disk and perhaps for a key, and then `answer` with its outcome: here, or
    /// elsewhere while other serving threads wait so.
    pub fn answer_slowly<T: 'static>(
        &self,
        id: u64,
        act: impl Fn(&Tree) -> Result<T, FsError> + Send + 'static,
        answer: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) {
        if let Some(_turn) = self.disk_turn() {
            return self.answer(id, act, answer);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let patient = move |tree: &Tree| tree.with_keys_patiently(|| act(tree));
        let (traffic, begin) = (Arc::clone(&self.traffic), Instant::now());
        let job = move |tree: &Tree| {
            let done = guarded(tree, id, patient);
            traffic.others.note(begin.elapsed());
            answer(done);
        };
        self.for_disk.hand(&self.tree, Box::new(job));
    }

    /// Answers with `len` bytes from `offset` on, here or elsewhere by the rule of [`Server::answer_slowly`].
    pub fn read(&self, id: u64, offset: u64, len: usize, asker: Asker, reply: ReplyData) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let read = Read { id, offset, len, asker, begin: Instant::now(), traffic: Arc::clone(&self.traffic) };
        let Some(_turn) = self.disk_turn() else {
            return self.for_disk.hand(&self.tree, Box::new(move |tree| read.patiently(tree, reply)));
        };
        if let Some(reply) = read.now(&self.tree, reply) {
            self.for_keys.hand(&self.tree, Box::new(move |tree| read.patiently(tree, reply)));
        }
    }

    fn disk_turn(&self) -> Option<DiskTurn<'_>> {
        let more = |waiting| (waiting < DISK_WAITS).then_some(waiting + 1);
        self.disk_waits.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(DiskTurn(&self.disk_waits))
    }
}

/// The place of one serving thread that waits for the disk.
struct DiskTurn<'a>(&'a AtomicUsize);

impl Drop for DiskTurn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A read request.
struct Read {
    id: u64,
    offset: u64,
    len: usize,
    asker: Asker,
    begin: Instant,
    traffic: Arc<Traffic>,
}

impl Read {
    /// Reads and answers; gives the reply back where a key is absent that must be waited for elsewhere.
    fn now(&self, tree: &Tree, reply: ReplyData) -> Option<ReplyData> {
        let read =
            |tree: &Tree, buffer: &mut Vec<u8>| tree.read(self.id, self.offset, self.len, self.asker, buffer);
        self.with_buffer(tree, read, reply)
    }

    fn patiently(&self, tree: &Tree, reply: ReplyData) {
        let read = |tree: &Tree, buffer: &mut Vec<u8>| {
            tree.with_keys_patiently(|| {
                buffer.clear();
                tree.read(self.id, self.offset, self.len, self.asker, buffer)
            })
        };
        if let Some(reply) = self.with_buffer(tree, read, reply) {
            reply.error(fuser::Errno::EHOSTDOWN);
        }
    }

    fn with_buffer(
        &self,
        tree: &Tree,
        read: impl FnOnce(&Tree, &mut Vec<u8>) -> Result<(), FsError>,
        reply: ReplyData,
    ) -> Option<ReplyData> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            let absent = match guarded(tree, self.id, |tree| read(tree, buffer)) {
                Ok(()) => {
                    self.traffic.note_read(self.begin, buffer.len());
                    reply.data(buffer);
                    None
                }
                Err(FsError::Key(KeyError::Absent(..))) => Some(reply),
                Err(e) => {
                    self.traffic.note_read(self.begin, 0);
                    reply.error(report(self.id, &e));
                    None
                }
            };
            buffer.shrink_to(KEPT_BUFFER);
            absent
        })
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
