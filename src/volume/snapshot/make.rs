//! Making snapshots: of a mount that goes on, or of a volume that is not mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use super::record::{self, SnapshotRecord};
use super::{SNAPSHOTS, remove_leftovers};
use crate::crypto::random_array;
use crate::format::name::temporary;
use crate::sys::{at, btrfs};
use crate::tree::{FsError, LOG_NAME, Moment, RENEWALS, Tree, ended_cleanly};
use crate::volume::epoch::EPOCH_FILE;
use crate::volume::lower_dir::remove_tree;
use crate::volume::record_file::{ChangeLock, LOCK_FILE};
use crate::volume::registry::check_name;
use crate::volume::{MountLock, Volume, VolumeError};

/// How long a freeze waits for changes under way.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// A snapshot being made.
pub struct Making<'a> {
    volume: &'a Volume,
    name: String,
    snapshots: OwnedFd,
    temporary: String,
    /// The copy, where it takes time; for whoever shows progress or ends it.
    pub moment: &'a Mutex<Option<Arc<Moment>>>,
    _lock: ChangeLock,
}

impl<'a> Making<'a> {
    /// Prepares the snapshot `name`.
    pub fn prepare(
        volume: &'a Volume,
        name: &str,
        moment: &'a Mutex<Option<Arc<Moment>>>,
    ) -> Result<Self, VolumeError> {
        check_name(name).map_err(|e| super::named(volume.path(), &e.to_string()))?;
        let (lock, snapshots) = volume.snapshots()?;
        if at::stat(&snapshots, name.as_bytes()).is_ok() {
            return Err(super::named(volume.path(), &format!("it has a snapshot '{name}' already")));
        }
        let temporary = temporary(random_array());
        Ok(Self { volume, name: name.to_owned(), snapshots, temporary, moment, _lock: lock })
    }

    fn io(&self, e: impl Into<std::io::Error>) -> VolumeError {
        VolumeError::io("make a snapshot in", &self.volume.path().join(SNAPSHOTS), e)
    }

    /// Makes it of a mounted volume.
    pub fn of_mount(self, tree: &Tree) -> Result<SnapshotRecord, VolumeError> {
        let root = self.volume.root()?;
        let made = if btrfs::is_subvolume(&root) {
            self.by_subvolume(&root, Some(tree))
        } else {
            self.by_copy(&root, tree)
        };
        made.inspect_err(|_| self.clean_up())
    }

    fn clean_up(&self) {
        if let Err(e) = remove_leftovers(&self.snapshots) {
            log::warn!("a snapshot that failed left something behind: {e}");
        }
    }

    /// btrfs gives the whole tree in one step.
    fn by_subvolume(&self, root: &OwnedFd, tree: Option<&Tree>) -> Result<SnapshotRecord, VolumeError> {
        let created = now();
        let snap = || btrfs::snapshot(root, &self.snapshots, &self.temporary);
        let held = match tree {
            Some(tree) => {
                let act = || match snap() {
                    Ok(()) => Ok(None),
                    Err(e) => Err(FsError::Os(Errno::from_io_error(&e).unwrap_or(Errno::IO))),
                };
                tree.freeze(FREEZE_PATIENCE, act).map_err(VolumeError::Tree)?.held
            }
            None => snap().map(|()| Duration::ZERO).map_err(|e| self.io(e))?,
        };
        let made =
            at::open(&self.snapshots, self.temporary.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)
                .map_err(|e| self.io(e))?;
        if let Some(tree) = tree {
            tree.copy_logs(&made, true).map_err(VolumeError::Tree)?;
        }
        for own in [EPOCH_FILE, LOCK_FILE, SNAPSHOTS, RENEWALS] {
            remove_tree(&made, own.as_bytes()).map_err(|e| self.io(e))?;
        }
        let record = self.record(created, tree.is_some(), held, None);
        self.publish(&made, &self.temporary, &self.snapshots, record)
    }

    /// Elsewhere the copy is made behind the changes' back.
    fn by_copy(&self, root: &OwnedFd, tree: &Tree) -> Result<SnapshotRecord, VolumeError> {
        let stage = self.make_stage()?;
        let keep = stage.try_clone().map_err(|e| self.io(e))?;
        let created = now();
        let mut begun = None;
        let frozen = tree.freeze(FREEZE_PATIENCE, || {
            let moment = Arc::new(Moment::new(root, stage)?);
            tree.copy_logs(&moment.stage_root()?, false)?;
            begun = Some(Arc::clone(&moment));
            Ok(Some(moment))
        });
        let held = frozen.map_err(VolumeError::Tree)?.held;
        let Some(moment) = begun else { return Err(self.io(Errno::CANCELED)) };
        *self.moment.lock() = Some(Arc::clone(&moment));
        let walked = tree.walk_moment(&moment);
        tree.end_moment();
        walked.map_err(VolumeError::Tree)?;
        self.end_copy(&moment, &keep, created, true, held)
    }

    fn make_stage(&self) -> Result<OwnedFd, VolumeError> {
        at::make_dir(&self.snapshots, self.temporary.as_bytes(), 0o700)
            .and_then(|()| {
                at::open(&self.snapshots, self.temporary.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)
            })
            .map_err(|e| self.io(e))
    }

    fn end_copy(
        &self,
        moment: &Moment,
        stage: &OwnedFd,
        created: u64,
        live: bool,
        held: Duration,
    ) -> Result<SnapshotRecord, VolumeError> {
        if let Some(e) = moment.failure() {
            return Err(self.io(e));
        }
        moment.assemble().map_err(|e| self.io(e))?;
        let (files, copied) = moment.progress();
        let record = SnapshotRecord { copied_bytes: copied, ..self.record(created, live, held, Some(files)) };
        let made = moment.stage_root().map_err(|e| self.io(e))?;
        let record = self.publish(&made, &moment.root_name(), stage, record)?;
        self.clean_up();
        Ok(record)
    }

    fn record(&self, created: u64, live: bool, held: Duration, files: Option<u64>) -> SnapshotRecord {
        SnapshotRecord {
            name: self.name.clone(),
            volume_id: self.volume.id.to_string(),
            created,
            live,
            held_us: held.as_micros() as u64,
            files,
            copied_bytes: 0,
        }
    }

    /// Makes the tree in `made`, which is `from_name` of `from`, a snapshot: whole and durable before it has its name.
    fn publish(
        &self,
        made: &OwnedFd,
        from_name: &str,
        from: &OwnedFd,
        record: SnapshotRecord,
    ) -> Result<SnapshotRecord, VolumeError> {
        record::write(made, &self.volume.key, &record).map_err(|e| self.io(e))?;
        let (from_name, name) = (from_name.as_bytes(), self.name.as_bytes());
        // What is told to have failed must not be there.
        let take_back = || _ = at::rename(&self.snapshots, name, from, from_name, RenameFlags::NOREPLACE);
        at::sync_filesystem(made)
            .and_then(|()| at::rename(from, from_name, &self.snapshots, name, RenameFlags::NOREPLACE))
            .and_then(|()| at::sync_dir(&self.snapshots).inspect_err(|_| take_back()))
            .map_err(|e| self.io(e))?;
        Ok(record)
    }
}

/// Makes the snapshot `name` of a volume that is not mounted.
pub fn make_offline(
    volume: &Volume,
    name: &str,
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<SnapshotRecord, VolumeError> {
    let _unmounted = MountLock::take(volume.path())?;
    volume.finish_reencryption()?;
    let making = Making::prepare(volume, name, moment)?;
    let root = volume.root()?;
    // Its log would be one that was put back, once the volume has gone on.
    if !ended_cleanly(&root, &volume.key) {
        let why = "its last mount did not end well; mount it, which repairs it, or run 'kmsfs fsck --repair'";
        return Err(super::named(volume.path(), why));
    }
    let made = if btrfs::is_subvolume(&root) {
        making.by_subvolume(&root, None)
    } else {
        offline_copy(&making, &root)
    };
    made.inspect_err(|_| making.clean_up())
}

fn offline_copy(making: &Making<'_>, root: &OwnedFd) -> Result<SnapshotRecord, VolumeError> {
    let stage = making.make_stage()?;
    let keep = stage.try_clone().map_err(|e| making.io(e))?;
    let created = now();
    let moment = Arc::new(Moment::new(root, stage).map_err(|e| making.io(e))?);
    *making.moment.lock() = Some(Arc::clone(&moment));
    walk_offline(&moment, root).map_err(|e| making.io(e))?;
    making.end_copy(&moment, &keep, created, false, Duration::ZERO)
}

/// Copies a tree that nobody changes, with its logs.
pub(in crate::volume) fn walk_offline(moment: &Moment, root: &OwnedFd) -> Result<(), Errno> {
    copy_logs(moment, root)?;
    moment.walk(at::reopen_dir(root)?, &RwLock::new(()));
    Ok(())
}

fn copy_logs(moment: &Moment, root: &OwnedFd) -> Result<(), Errno> {
    let to = moment.stage_root()?;
    for entry in rustix::fs::Dir::read_from(root.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.strip_prefix(LOG_NAME.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'.') {
            moment.copy_beside(root, name, &to)?;
        }
    }
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
