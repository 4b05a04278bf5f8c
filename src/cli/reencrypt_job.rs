//! A re-encryption that a mount makes of its own tree, on a thread of its own, while its control socket tells how far it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::volume::{self, MountedTree, Progress, ReencryptOptions, ReencryptReport, Volume};

/// How long the end of a mount waits for it to finish the files under way.
const END_PATIENCE: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(10);

/// How far a re-encryption is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReencryptState {
    /// Whether it is under way.
    pub running: bool,
    /// Files looked at.
    pub files: u64,
    /// It has ended.
    pub report: Option<ReencryptReport>,
    /// Why it could not begin.
    pub failed: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<ReencryptState>,
    progress: Mutex<Arc<Progress>>,
    /// What is under way.
    options: Mutex<Option<ReencryptOptions>>,
}

/// Re-encrypts files of one mount, one piece of work at a time.
#[derive(Clone)]
pub struct ReencryptJob {
    volume: Arc<Volume>,
    tree: MountedTree,
    shared: Arc<Shared>,
}

impl ReencryptJob {
    /// For the mount of `volume`.
    pub fn new(volume: Arc<Volume>, tree: MountedTree) -> Self {
        Self { volume, tree, shared: Arc::default() }
    }

    /// Begins, or leaves it at what is under way where that is the same: for a command that was killed, and given again.
    pub fn begin(&self, options: ReencryptOptions) -> Result<(), String> {
        let mut state = self.shared.state.lock();
        if state.running {
            let is_same = !options.restart && self.shared.options.lock().as_ref() == Some(&options);
            let text = "files of this volume are being re-encrypted already, by another command";
            return if is_same { Ok(()) } else { Err(text.to_owned()) };
        }
        *self.shared.options.lock() = Some(options.clone());
        let progress = Arc::new(Progress::default());
        *self.shared.progress.lock() = Arc::clone(&progress);
        let job = self.clone();
        let run = move || job.run(&options, &progress);
        std::thread::Builder::new().name("reencrypt".into()).spawn(run).map_err(|e| e.to_string())?;
        *state = ReencryptState { running: true, ..ReencryptState::default() };
        Ok(())
    }

    fn run(&self, options: &ReencryptOptions, progress: &Progress) {
        if options.background
            && let Err(e) = crate::sys::priority::give_way()
        {
            log::warn!("the re-encryption does not give way to others: {e}");
        }
        let done = volume::reencrypt(&self.volume, &self.tree, options, progress);
        let mut state = self.shared.state.lock();
        match done {
            Ok(report) => state.report = Some(report),
            Err(e) => state.failed = Some(e.to_string()),
        }
        state.running = false;
    }

    /// How far it is.
    pub fn state(&self) -> ReencryptState {
        let files = self.shared.progress.lock().done.load(Ordering::Relaxed);
        ReencryptState { files, ..self.shared.state.lock().clone() }
    }

    /// Ends it early.
    pub fn cancel(&self) {
        self.shared.progress.lock().stop.store(true, Ordering::Relaxed);
    }

    /// Ends it, at the end of the mount. What is cut off all the same is ended by the next mount.
    pub fn end(&self) {
        self.cancel();
        let deadline = Instant::now() + END_PATIENCE;
        while self.state().running && Instant::now() < deadline {
            std::thread::sleep(END_POLL);
        }
    }
}
