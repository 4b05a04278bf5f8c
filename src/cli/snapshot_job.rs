//! A snapshot that a mount makes of itself, on a thread of its own, while its control socket tells how far it is.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::volume::snapshot::SnapshotRecord;
use crate::volume::{Moment, MountedTree, Volume};

/// How far a snapshot is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SnapshotState {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Whether it is being made.
    pub running: bool,
    /// Files copied.
    pub files: u64,
    /// Bytes copied that could not be shared.
    pub copied_bytes: u64,
    /// It is made.
    pub made: Option<SnapshotRecord>,
    /// Why it could not be made.
    pub failed: Option<String>,
}

/// What the thread and the control socket share.
#[derive(Default)]
struct Shared {
    state: Mutex<SnapshotState>,
    moment: Mutex<Option<Arc<Moment>>>,
}

/// Makes snapshots of one mount, one at a time.
#[derive(Clone)]
pub struct SnapshotJob {
    volume: Arc<Volume>,
    tree: MountedTree,
    mountpoint: PathBuf,
    shared: Arc<Shared>,
}

impl SnapshotJob {
    /// For the mount of `volume` at `mountpoint`.
    pub fn new(volume: Arc<Volume>, tree: MountedTree, mountpoint: PathBuf) -> Self {
        Self { volume, tree, mountpoint, shared: Arc::default() }
    }

    /// Begins the snapshot `name`.
    pub fn begin(&self, name: String) -> Result<(), String> {
        let mut state = self.shared.state.lock();
        if state.running {
            return Err(format!(
                "the snapshot '{}' of this volume is being made, for another command or one that was killed; 'kmsfs snapshot \
                 list' has it when it is whole",
                state.name
            ));
        }
        let (job, under) = (self.clone(), name.clone());
        let spawned = std::thread::Builder::new().name("snapshot".into()).spawn(move || job.make(&under));
        spawned.map_err(|e| e.to_string())?;
        *state = SnapshotState { running: true, name, ..SnapshotState::default() };
        Ok(())
    }

    fn make(&self, name: &str) {
        // What programs wrote before is in it, also where the kernel still holds it back.
        let synced = std::fs::File::open(&self.mountpoint).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        let made = synced.map_err(|e| format!("{}: {e}", self.mountpoint.display())).and_then(|()| {
            let made = self.tree.snapshot(&self.volume, name, &self.shared.moment);
            made.map_err(|e| e.to_string())
        });
        let mut state = self.state();
        match made {
            Ok(record) => state.made = Some(record),
            Err(why) => state.failed = Some(why),
        }
        state.running = false;
        *self.shared.moment.lock() = None;
        *self.shared.state.lock() = state;
    }

    /// How far it is.
    pub fn state(&self) -> SnapshotState {
        let mut state = self.shared.state.lock().clone();
        if let Some(moment) = &*self.shared.moment.lock() {
            (state.files, state.copied_bytes) = moment.progress();
        }
        state
    }

    /// Ends it early.
    pub fn cancel(&self) {
        if let Some(moment) = &*self.shared.moment.lock() {
            moment.cancel();
        }
    }
}
