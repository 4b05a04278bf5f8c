//! Re-encryption: new data keys and new ciphertext for a file or a tree, after a data key has leaked.
//!
//! Called by the command line for a volume that is not mounted, and by a mount for its own tree. The work on one file is
//! done by `tree`; here it is decided which files, in which order, and what is told of it. What is done is noted, so that
//! an interrupted run goes on where it was. Must never leave a file that it could not do unmentioned.

mod done;
mod walk;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::epoch::Epoch;
use super::pace::Pace;
use super::record_file::ChangeLock;
use super::report::{Failure, MAX_LISTED, Progress};
use super::{MountLock, MountedTree, Volume, VolumeError};
use crate::format::FileId;
use crate::tree::{
    self, Attr, Durability, FsError, Integrity, Journal, KeyError, Kind, Prepared, ROOT_ID, Renewal, Renewed,
    Stuck, Tree,
};
use done::DoneList;

/// Files put in place together at most, and plaintext bytes of them: so long do those who use them wait.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: u64 = 8 << 20;
/// How often a file that changes meanwhile is tried, and the pause between.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);
/// A file that is open and longer than this is left alone: whoever uses it would wait for all of it to be copied.
const OPEN_MAX: u64 = 256 << 20;
/// Inodes with several names that are remembered; of more, each name counts.
const MET_MAX: usize = 4 << 20;

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReencryptOptions {
    /// Lower path of the file or directory, relative to the lower directory; empty for the whole volume.
    pub path: PathBuf,
    /// ARN of another master key to go under, which the record names. Otherwise each file keeps its own.
    pub key: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Forget what an interrupted run has done.
    pub restart: bool,
    /// Files a second at most.
    pub rate: Option<u32>,
    /// Let everything else go first, for processor and disk.
    pub background: bool,
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReencryptReport {
    /// Whether nothing was written on purpose.
    pub dry_run: bool,
    /// Files with a new data key, or to get one.
    pub done: u64,
    /// Plaintext bytes of them.
    pub bytes: u64,
    /// Files that an earlier, interrupted run has done.
    pub done_before: u64,
    /// When that was begun, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<u64>,
    /// Empty files, which have no key.
    pub without_header: u64,
    /// Files that are as they were.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
    /// Why the work was ended early.
    pub ended_early: Option<String>,
    /// Snapshots of the volume, which keep the old ciphertext.
    pub snapshots: usize,
    /// Seconds it took.
    pub seconds: f64,
}

impl ReencryptReport {
    /// Whether every file is done.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.ended_early.is_none()
    }
}

impl Volume {
    /// Puts in place what an interrupted re-encryption left. The caller holds the volume exclusively.
    pub fn finish_reencryption(&self) -> Result<(), VolumeError> {
        let finished = tree::finish(&self.root()?, &self.key, self.id).map_err(VolumeError::Tree)?;
        if finished > 0 {
            log::warn!("a re-encryption was interrupted: {finished} files were put in place");
        }
        Ok(())
    }

    /// The same where nobody has it mounted; a mount has done so when it began.
    pub(super) fn finish_reencryption_if_free(&self) -> Result<(), VolumeError> {
        if !tree::is_unfinished(self.root()?) {
            return Ok(());
        }
        match MountLock::take(self.path()) {
            Ok(_exclusively) => self.finish_reencryption(),
            Err(VolumeError::InUse(..)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Refuses a volume in which files may be a mixture, to somebody who may not change it.
    pub fn check_no_reencryption(&self) -> Result<(), VolumeError> {
        if tree::is_unfinished(self.root()?) {
            Err(VolumeError::Unfinished(self.path().to_owned()))
        } else {
            Ok(())
        }
    }
}

/// Re-encrypts files of a volume that is not mounted.
pub fn reencrypt_offline(
    volume: &Volume,
    options: &ReencryptOptions,
    progress: &Progress,
) -> Result<ReencryptReport, VolumeError> {
    let _exclusively = MountLock::take(volume.path())?;
    super::snapshot::finish_restore_first(volume.path())?;
    volume.finish_reencryption()?;
    let epoch = Epoch::check(volume, false)?;
    epoch.begin()?;
    let tree = volume.tree(Some(Durability::Relaxed), Integrity::default(), epoch.last())?;
    let report = reencrypt(volume, &tree, options, progress);
    tree.for_session().close_all();
    if tree.ended_well() {
        epoch.end();
    }
    report
}

/// Re-encrypts files of `volume`, whose tree is open for writing, and perhaps mounted.
pub fn reencrypt(
    volume: &Volume,
    tree: &MountedTree,
    options: &ReencryptOptions,
    progress: &Progress,
) -> Result<ReencryptReport, VolumeError> {
    let start = Instant::now();
    let root = volume.root()?;
    let _lock = ChangeLock::take(root.as_fd(), volume.path())?;
    let tree = tree.for_session();
    let journal = tree.renewals().map_err(VolumeError::Tree)?;
    let list =
        DoneList::open(journal.dir(), &volume.key, &options.path, options.key.as_deref(), options.restart);
    let list = list.map_err(|e| VolumeError::io("note in", &volume.path().join(tree::RENEWALS), e))?;
    let mut report = ReencryptReport {
        dry_run: options.dry_run,
        begun: (list.known > 0).then_some(list.begun),
        snapshots: super::snapshot::list(volume.path()).map_or(0, |found| found.len()),
        ..ReencryptReport::default()
    };
    let mut work = Work {
        tree: &tree,
        options,
        progress,
        journal: &journal,
        pace: Pace::new(options.rate),
        list,
        batch: Vec::new(),
        numbers: 0,
        met: HashSet::new(),
        held: Vec::new(),
        report: &mut report,
    };
    let ended = work.run();
    let list = work.list;
    if let Err(why) = ended {
        report.ended_early.get_or_insert(why);
    }
    let whole = options.path.as_os_str().is_empty() && report.is_complete();
    if let Err(e) = tree.forget_logged(whole && !options.dry_run) {
        report.ended_early.get_or_insert(format!("the tag log still holds ciphertext under old keys: {e}"));
    }
    if report.is_complete() && !options.dry_run {
        let _ = list.remove(journal.dir());
        // It stays where other work was interrupted.
        let _ = crate::sys::at::rmdir(&root, tree::RENEWALS.as_bytes());
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// A file to be done, looked up.
struct Found {
    id: u64,
    path: PathBuf,
    size: u64,
    /// That its new file is known by.
    number: u32,
}

/// A file under way, and where it is.
struct Waiting {
    id: u64,
    path: PathBuf,
    renewal: Renewal,
}

/// What came of preparing one file.
#[derive(Default)]
struct Looked {
    renewal: Option<Renewal>,
    done_before: bool,
    would: bool,
    without_header: bool,
    trouble: Option<Trouble>,
}

struct Work<'a> {
    tree: &'a Arc<Tree>,
    options: &'a ReencryptOptions,
    progress: &'a Progress,
    journal: &'a Journal,
    pace: Option<Pace>,
    list: DoneList,
    batch: Vec<Found>,
    /// New files made so far.
    numbers: u32,
    /// Inodes with several names that were met under one of them.
    met: HashSet<u64>,
    /// Directories that files of the batch lie in.
    held: Vec<u64>,
    report: &'a mut ReencryptReport,
}

/// Why everything ends.
type Ended = String;

/// What keeps a file from being done, or all that follow.
enum Trouble {
    File(String),
    All(String),
}

fn stuck(e: &Stuck) -> Ended {
    format!(
        "files could not be put in place ({}); they cannot be read until the volume is mounted again, which ends it",
        e.0
    )
}

impl Work<'_> {
    fn run(&mut self) -> Result<(), Ended> {
        let mut held = Vec::new();
        let mut worked = self.begin(&mut held);
        if worked.is_ok() {
            worked = self.apply();
        }
        for file in std::mem::take(&mut self.batch) {
            self.tree.forget(file.id, 1);
        }
        self.let_go();
        held.iter().rev().for_each(|id| self.tree.forget(*id, 1));
        worked
    }

    fn let_go(&mut self) {
        for id in self.held.drain(..) {
            self.tree.forget(id, 1);
        }
    }

    /// Finds where to begin, keeping what is above in `held`.
    fn begin(&mut self, held: &mut Vec<u64>) -> Result<(), Ended> {
        let (mut id, mut kind, mut plain) = (ROOT_ID, Kind::Dir, PathBuf::new());
        for component in self.options.path.components() {
            let entry = component.as_os_str().to_str().unwrap_or_default();
            let found = self.tree.look_up_lower(id, entry);
            let (attr, name) = found.map_err(|e| format!("{}: {e}", self.options.path.display()))?;
            held.push(attr.node_id);
            plain.push(name);
            (id, kind) = (attr.node_id, attr.kind);
        }
        match kind {
            Kind::Dir => self.directory(id, plain),
            Kind::File => {
                self.tree.look_up_again(id).map_err(|e| e.to_string())?;
                self.file(id, plain)
            }
            _ => Err("it is neither a file nor a directory".to_owned()),
        }
    }

    fn check_stop(&self) -> Result<(), Ended> {
        if self.progress.stopped() { Err("interrupted; run it again to go on".to_owned()) } else { Ok(()) }
    }

    /// Takes up a file, which was looked up for it.
    fn file(&mut self, id: u64, path: PathBuf) -> Result<(), Ended> {
        if let Some(pace) = &self.pace {
            pace.wait();
        }
        let Ok(attr) = self.tree.attr(id) else {
            self.over(id);
            return Ok(());
        };
        if self.is_met(&attr) {
            self.over(id);
            return Ok(());
        }
        let found = self.found(id, path, attr.size);
        self.batch.push(found);
        let bytes: u64 = self.batch.iter().map(|found| found.size).sum();
        if self.batch.len() >= BATCH_FILES || bytes >= BATCH_BYTES { self.apply() } else { Ok(()) }
    }

    fn found(&mut self, id: u64, path: PathBuf, size: u64) -> Found {
        self.numbers += 1;
        Found { id, path, size, number: self.numbers }
    }

    /// Makes the new ciphertext of files. What keeps all that follow from being done comes beside those that are made.
    fn take_up(&mut self, files: Vec<Found>) -> (Vec<Waiting>, Result<(), Ended>) {
        let (mut waiting, mut outcome) = (Vec::new(), Ok(()));
        for (file, looked) in self.look_at(files) {
            self.report.done_before += u64::from(looked.done_before);
            self.report.done += u64::from(looked.would);
            self.report.bytes += if looked.would { file.size } else { 0 };
            self.report.without_header += u64::from(looked.without_header);
            match looked.trouble {
                Some(Trouble::File(why)) => self.fail(&file.path, &why),
                Some(Trouble::All(why)) => outcome = Err(why),
                None => {}
            }
            match looked.renewal {
                Some(renewal) => waiting.push(Waiting { id: file.id, path: file.path, renewal }),
                None => self.over(file.id),
            }
        }
        (waiting, outcome)
    }

    /// On two threads: one waits for the key service while the other encrypts.
    fn look_at(&self, files: Vec<Found>) -> Vec<(Found, Looked)> {
        let ended = OnceLock::new();
        let look = |files: &[Found]| files.iter().map(|file| self.prepare(file, &ended)).collect::<Vec<_>>();
        let (here, there) = files.split_at(files.len().div_ceil(2));
        let looked = std::thread::scope(|scope| {
            let other = (!there.is_empty()).then(|| scope.spawn(|| look(there)));
            let mut looked = look(here);
            if let Some(other) = other {
                looked.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            looked
        });
        files.into_iter().zip(looked).collect()
    }

    /// The file needs nothing more.
    fn over(&mut self, id: u64) {
        self.tree.forget(id, 1);
        self.progress.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the inode was met under another name.
    fn is_met(&mut self, attr: &Attr) -> bool {
        attr.links > 1 && self.met.len() < MET_MAX && !self.met.insert(attr.node_id)
    }

    fn prepare(&self, file: &Found, ended: &OnceLock<String>) -> Looked {
        let mut looked = Looked::default();
        let made = match ended.get() {
            Some(why) => Err(Trouble::All(why.clone())),
            None => self.try_prepare(file, &mut looked),
        };
        match made {
            Ok(renewal) => looked.renewal = renewal,
            Err(trouble) => {
                if let Trouble::All(why) = &trouble {
                    let _ = ended.set(why.clone());
                }
                looked.trouble = Some(trouble);
            }
        }
        looked
    }

    fn try_prepare(&self, file: &Found, looked: &mut Looked) -> Result<Option<Renewal>, Trouble> {
        let size = file.size;
        if size > OPEN_MAX && self.tree.is_open(file.id) {
            let why = "it is open, and so large that its users would wait for long; do it when it is closed";
            return Err(Trouble::File(why.to_owned()));
        }
        let (dry_run, list) = (self.options.dry_run, &self.list);
        let wanted = |id: FileId| {
            looked.done_before = list.has(id);
            looked.would = dry_run && !looked.done_before;
            !dry_run && !looked.done_before
        };
        let key = self.options.key.as_deref();
        match self.tree.prepare_renewal(file.id, key, file.number, self.journal, wanted) {
            Ok(Prepared::Ready(renewal)) => Ok(Some(*renewal)),
            Ok(Prepared::NoHeader) => {
                looked.without_header = true;
                Ok(None)
            }
            Ok(Prepared::Unwanted) | Err(FsError::Os(Errno::NOENT | Errno::STALE)) => Ok(None),
            Err(FsError::Os(e @ (Errno::NOSPC | Errno::DQUOT))) => Err(Trouble::File(format!(
                "{e}; the new copy of its {size} bytes must fit beside the old one, which is as it was"
            ))),
            Err(FsError::Key(KeyError::Unavailable(why))) => Err(Trouble::All(why)),
            Err(e) => Err(Trouble::File(e.to_string())),
        }
    }

    /// Puts what was made in place; what changed meanwhile is made anew and put there by itself.
    fn apply(&mut self) -> Result<(), Ended> {
        let files = std::mem::take(&mut self.batch);
        let (mut waiting, mut applied) = self.take_up(files);
        for last in (0..TRIES).rev() {
            if waiting.is_empty() {
                break;
            }
            let again = match self.apply_once(waiting, last == 0) {
                Ok(again) => again,
                Err(e) => {
                    self.let_go();
                    return Err(e);
                }
            };
            waiting = Vec::new();
            if again.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
            let sized = |(id, path)| {
                let size = self.tree.attr(id).map_or(0, |attr| attr.size);
                self.found(id, path, size)
            };
            let files = again.into_iter().map(sized).collect();
            let (more, ended) = self.take_up(files);
            (waiting, applied) = (more, applied.and(ended));
        }
        for waiting in waiting {
            self.tree.forget(waiting.id, 1);
        }
        self.let_go();
        applied
    }

    /// Gives those that changed meanwhile, unless this try is the `last`.
    fn apply_once(&mut self, waiting: Vec<Waiting>, last: bool) -> Result<Vec<(u64, PathBuf)>, Ended> {
        let (places, renewals): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|w| ((w.id, w.path), w.renewal)).unzip();
        let outcomes = self.tree.apply_renewals(&renewals, self.journal).map_err(|e| {
            for (id, _) in &places {
                self.tree.forget(*id, 1);
            }
            stuck(&e)
        })?;
        let mut again = Vec::new();
        for (((id, path), renewal), outcome) in places.into_iter().zip(&renewals).zip(outcomes) {
            match outcome {
                Renewed::Done => self.note_done(renewal),
                Renewed::Gone => {}
                Renewed::Changed if !last => {
                    again.push((id, path));
                    continue;
                }
                Renewed::Changed => {
                    self.fail(&path, "it is in use and changes all the time; do it when that is over");
                }
                Renewed::Failed(e) => self.fail(&path, &e.to_string()),
            }
            self.over(id);
        }
        Ok(again)
    }

    fn note_done(&mut self, renewal: &Renewal) {
        self.list.add(&[renewal.new_id]);
        self.report.done += 1;
        self.report.bytes += renewal.size;
    }

    fn fail(&mut self, path: &Path, why: &str) {
        self.report.failed += 1;
        if self.report.failures.len() < MAX_LISTED {
            let (lower_path, path) = (PathBuf::new(), Some(path.to_owned()));
            self.report.failures.push(Failure { lower_path, path, why: why.to_owned() });
        }
    }
}
