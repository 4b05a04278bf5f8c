//! Putting a volume back to a snapshot, in place.
//!
//! A copy of the snapshot is made first; then the volume's tree goes out of the root and the copy comes in, entry by
//! entry. A note in the root says how far that is, so that it can be gone on with, and no mount is made in between. The
//! old tree becomes a snapshot of its own: nothing is lost.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Dir, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::make::walk_offline;
use super::record::{self, SnapshotRecord};
use super::{open_snapshots, path_of};
use crate::crypto::random_array;
use crate::format::dir::DIR_RECORD;
use crate::format::name::{Kind, classify, foreign};
use crate::format::record::{VOLUME_RECORD, VOLUME_RECORD_COPY};
use crate::sys::at;
use crate::tree::{LOG_NAME, Moment};
use crate::volume::lower_dir::remove_tree;
use crate::volume::open::open_lower;
use crate::volume::record_file::replace;
use crate::volume::{MountLock, Volume, VolumeError};

/// Name of the note in the lower root that tells how far a restore is.
pub const RESTORE_NOTE: &str = ".kmsfs.restore";

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The snapshot.
    name: String,
    /// Directory beside the snapshots with the copy of it.
    new: String,
    /// Directory beside the snapshots that takes the old tree.
    old: String,
    /// Everything old is out of the root.
    out: bool,
    /// The snapshot that the old tree becomes.
    kept: SnapshotRecord,
}

fn read_note(root: &OwnedFd) -> Option<Note> {
    let file = at::open_regular(root, RESTORE_NOTE.as_bytes(), OFlags::RDONLY, 0).ok()?;
    serde_json::from_reader(std::io::Read::take(std::fs::File::from(file), 64 * 1024)).ok()
}

/// Refuses a volume whose restore was interrupted.
pub fn finish_restore_first(lower: &Path) -> Result<(), VolumeError> {
    match read_note(&open_lower(lower)?) {
        None => Ok(()),
        Some(note) => Err(super::named(
            lower,
            &format!("its restore was interrupted; run 'kmsfs snapshot restore' to '{}' again", note.name),
        )),
    }
}

/// Puts `volume`, which must not be mounted, back to its snapshot `name`. Returns the name of the snapshot that the state
/// before has become.
pub fn restore(
    volume: &Volume,
    name: &str,
    kept: SnapshotRecord,
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<String, VolumeError> {
    let lower = volume.path();
    let io = |e: Errno| VolumeError::io("restore", lower, e);
    let _unmounted = MountLock::take(lower)?;
    volume.finish_reencryption()?;
    let root = volume.root()?;
    let note = if let Some(note) = read_note(&root) {
        if note.name != name {
            return finish_restore_first(lower).map(|()| String::new());
        }
        note
    } else {
        begin(volume, &root, name, kept, moment)?
    };
    let _lock = super::ChangeLock::take(root.as_fd(), lower)?;
    let snapshots = open_snapshots(&root).map_err(io)?;
    swap(volume, &root, &snapshots, note)
}

/// Makes the copy and the note.
fn begin(
    volume: &Volume,
    root: &OwnedFd,
    name: &str,
    kept: SnapshotRecord,
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<Note, VolumeError> {
    let lower = volume.path();
    let io = |e: std::io::Error| VolumeError::io("restore", lower, e);
    let source = open_lower(&path_of(lower, name)?)?;
    let (_lock, snapshots) = volume.snapshots()?;
    let [stage_name, new, old] = [(); 3].map(|()| foreign(random_array()));
    let copied = lay_down(&source, &snapshots, [&stage_name, &new, &old], moment);
    let ended = remove_tree(&snapshots, stage_name.as_bytes());
    let failure = match copied {
        Ok(None) => ended.err().map(std::io::Error::from),
        Ok(Some(copy)) => copy.failure(),
        Err(e) => Some(std::io::Error::from(e)),
    };
    if let Some(e) = failure {
        let _ = remove_tree(&snapshots, new.as_bytes());
        let _ = remove_tree(&snapshots, old.as_bytes());
        return Err(io(e));
    }
    let note = Note { name: name.to_owned(), new, old, out: false, kept };
    write_note(root, &note).map_err(io)?;
    Ok(note)
}

/// Makes the copy and the place for the old tree. The copy itself where it failed.
fn lay_down(
    source: &OwnedFd,
    snapshots: &OwnedFd,
    [stage_name, new, old]: [&str; 3],
    moment: &Mutex<Option<Arc<Moment>>>,
) -> Result<Option<Arc<Moment>>, Errno> {
    at::make_dir(snapshots, stage_name.as_bytes(), 0o700)?;
    let stage = at::open(snapshots, stage_name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    let copy = Arc::new(Moment::new(source, stage.try_clone().map_err(|_| Errno::MFILE)?)?);
    *moment.lock() = Some(Arc::clone(&copy));
    walk_offline(&copy, source)?;
    if copy.failure().is_some() {
        return Ok(Some(copy));
    }
    copy.assemble()?;
    at::rename(&stage, copy.root_name().as_bytes(), snapshots, new.as_bytes(), RenameFlags::empty())?;
    at::make_dir(snapshots, old.as_bytes(), 0o700)?;
    at::sync_filesystem(snapshots)?;
    Ok(None)
}

fn write_note(root: &OwnedFd, note: &Note) -> std::io::Result<()> {
    replace(root.as_fd(), RESTORE_NOTE, &serde_json::to_vec(note)?)
}

/// Each step may be done again after it was interrupted.
fn swap(volume: &Volume, root: &OwnedFd, snapshots: &OwnedFd, mut note: Note) -> Result<String, VolumeError> {
    let io = |e: std::io::Error| VolumeError::io("restore", volume.path(), e);
    let open = |name: &str| at::open(snapshots, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, 0);
    let (old, is_named) = match open(&note.old) {
        // It was ended but for the note.
        Err(Errno::NOENT) => (open(&note.kept.name).map_err(|e| io(e.into()))?, true),
        other => (other.map_err(|e| io(e.into()))?, false),
    };
    if !note.out {
        move_tree(root, &old).map_err(|e| io(e.into()))?;
        at::sync_filesystem(root).map_err(|e| io(e.into()))?;
        note.out = true;
        write_note(root, &note).map_err(io)?;
    }
    let new = open(&note.new).map_err(|e| io(e.into()))?;
    move_tree(&new, root).and_then(|()| copy_records(root, &old)).map_err(|e| io(e.into()))?;
    record::write(&old, &volume.key, &note.kept).map_err(io)?;
    let name_old = || {
        let (old, kept) = (note.old.as_bytes(), note.kept.name.as_bytes());
        if is_named { Ok(()) } else { at::rename(snapshots, old, snapshots, kept, RenameFlags::empty()) }
    };
    let ended = at::sync_filesystem(root)
        .and_then(|()| name_old())
        // Without the note, what has no name of its own is removed.
        .and_then(|()| at::sync_dir(snapshots))
        .and_then(|()| at::unlink(root, RESTORE_NOTE.as_bytes()))
        .and_then(|()| at::sync_dir(root))
        .and_then(|()| remove_tree(snapshots, note.new.as_bytes()));
    ended.map_err(|e| io(e.into()))?;
    Ok(note.kept.name)
}

/// Moves the entries and logs of one root to another; records stay.
fn move_tree(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    loop {
        let mut moved = 0;
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_log = name.to_bytes().starts_with(LOG_NAME.as_bytes());
            if is_log || matches!(classify(name.to_bytes()), Kind::Short | Kind::LongEntry | Kind::Sidecar) {
                at::rename(from, name.to_bytes(), to, name.to_bytes(), RenameFlags::empty())?;
                moved += 1;
            }
        }
        if moved == 0 {
            return Ok(());
        }
    }
}

/// Gives the old tree the records that it needs to be a snapshot.
fn copy_records(root: &OwnedFd, old: &OwnedFd) -> Result<(), Errno> {
    let missing = |record: &&str| at::stat(old, record.as_bytes()).is_err();
    let records = [VOLUME_RECORD, VOLUME_RECORD_COPY, DIR_RECORD];
    records.into_iter().filter(missing).try_for_each(|record| copy_record(root, old, record))
}

fn copy_record(root: &OwnedFd, old: &OwnedFd, name: &str) -> Result<(), Errno> {
    if name == DIR_RECORD {
        let target = at::read_link(root, name.as_bytes())?;
        return at::make_link(&target, old, name.as_bytes());
    }
    let mut bytes = Vec::new();
    let file = at::open(root, name.as_bytes(), OFlags::RDONLY, 0)?;
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)
        .and_then(|_| replace(old.as_fd(), name, &bytes))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}
