//! The process of a mount: opens the volume, mounts, serves, cleans up.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::args::MountArgs;
use super::control::{self, Answer, Request, Status, Work};
use super::error::{CliError, Exit};
use super::figures::Figures;
use super::mount::{FAILED, READY};
use super::mount_plan::MountPlan;
use super::named;
use super::reencrypt_job::ReencryptJob;
use super::runtime_dir;
use super::service::{self, Behalf};
use super::snapshot_job::SnapshotJob;
use crate::client::{CacheLimits, Kms};
use crate::fuse::{MountOptions, Session, SessionHandle, damage_seen};
use crate::volume::snapshot::{self, finish_restore_first};
use crate::volume::{
    Epoch, KeyEvent, KeyWatch, MountGrants, MountLock, MountedTree, Volume, VolumeKeys, WatchOptions,
};

/// How long the first request through the mount may take.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile whether the session has ended.
const ANSWER_POLL: Duration = Duration::from_millis(20);
/// How often the epoch of a volume that stays mounted is advanced.
const EPOCH_EVERY: Duration = Duration::from_mins(10);
/// How often the mount is looked at: whether it is idle, whether files are to be closed that could not be.
const IDLE_POLL: Duration = Duration::from_secs(1);
/// Work that was not told of for so long has ended.
const WORK_IS_NEWS: Duration = Duration::from_secs(5);
/// Open files that a mount may need at once beside its caches: connections, threads, logs, one request's steps.
const DESCRIPTORS_MIN: usize = 128;
/// Fewer inodes than these take so little memory (200 bytes each) that none of it is worth giving back.
const MANY_INODES: usize = 20_000;

/// Serves in this process until unmounted; logs to standard error.
pub fn in_foreground(plan: &MountPlan) -> Result<(), CliError> {
    serve(plan, || Ok(()))
}

/// Serves as the child of a `kmsfs mount` that waits for a word on standard output.
pub fn as_child(args: &MountArgs, kms: Option<&str>) -> Result<(), CliError> {
    let detached = Cell::new(false);
    let outcome = MountPlan::new(args, kms).and_then(|plan| {
        let (log, path) = open_log(args.log.as_deref(), &plan.mountpoint)?;
        let served = serve(&plan, || detach(&log).inspect(|()| detached.set(true))).inspect_err(|e| {
            // From then on there is nobody but the log to tell.
            if detached.get() {
                log::error!("{e}");
            }
        });
        // A log of our own choosing in which nothing was written is of no use to anybody.
        if args.log.is_none() && log.metadata().is_ok_and(|stat| stat.len() == 0) {
            let _ = std::fs::remove_file(path);
        }
        served
    });
    if let Err(e) = &outcome {
        // After the word "ready" standard output is the null device, and this is lost on purpose.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{FAILED} {}\n{e}", e.exit as u8);
    }
    outcome.map_err(|e| CliError::new(e.exit, ""))
}

fn open_log(named: Option<&Path>, mountpoint: &Path) -> Result<(File, PathBuf), CliError> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => runtime_dir::log_of(mountpoint)?,
    };
    let mut options = File::options();
    let file = options.append(true).create(true).mode(0o600).open(&path);
    match file {
        Ok(file) => Ok((file, path)),
        Err(e) => Err(CliError::failed(format!("cannot open the log {}: {e}", path.display()))),
    }
}

/// Tells the parent that the mount answers, and lets go of its terminal.
fn detach(log: &File) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

fn harden() -> Result<(), CliError> {
    crate::sys::harden::need_descriptors(DESCRIPTORS_MIN)
        .map_err(|e| CliError::failed(format!("cannot mount: {e}")))?;
    let failed = |e: std::io::Error| CliError::failed(format!("cannot harden the process: {e}"));
    // Without a terminal of its own a signal to the parent's group does not reach the mount.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").map_err(failed)?;
    crate::sys::harden::forbid_dumps().map_err(failed)?;
    crate::sys::harden::obey_quotas().map_err(failed)?;
    Ok(())
}

fn serve(plan: &MountPlan, ready: impl FnOnce() -> std::io::Result<()>) -> Result<(), CliError> {
    harden()?;
    let lock = MountLock::take(&plan.lower)?;
    let (kms, grants) = connect(plan)?;
    let is_unix = kms.is_local();
    let per_caller = plan.decides_per_caller(is_unix)?;
    finish_restore_first(&plan.lower)?;
    let volume = Arc::new(Volume::open(&plan.lower, kms, CacheLimits::default())?);
    if let Some(grants) = &grants.0 {
        volume.keys.use_grants(Arc::clone(grants));
    }
    if per_caller {
        volume.keys.check_trusted()?;
    }
    let is_snapshot = check_snapshot(plan, &volume)?;
    let read_only = plan.read_only || is_snapshot || is_read_only(&plan.lower);
    volume.bring_all(&plan.customer_keys, read_only)?;
    if read_only && !plan.read_only {
        eprintln!("kmsfs: {} is on a read-only file system; mounted read-only", plan.lower.display());
    }
    // A snapshot is an older state by its nature.
    let epoch = if is_snapshot { None } else { Some(Epoch::check(&volume, plan.accept_older)?) };
    if let Some(epoch) = epoch.as_ref().filter(|_| !read_only) {
        epoch.begin()?;
    }
    let last = epoch.as_ref().map(Epoch::last).unwrap_or_default();
    if read_only {
        volume.check_no_reencryption()?;
    } else {
        volume.finish_reencryption()?;
    }
    let tree = volume.tree((!read_only).then_some(plan.durability), plan.integrity, last)?;
    let session =
        Session::mount(tree.for_session(), &mount_options(plan, read_only, per_caller), &plan.mountpoint)
            .map_err(|e| {
                CliError::new(Exit::Mount, format!("cannot mount at {}: {e}", plan.mountpoint.display()))
            })?;
    let handle = session.handle();
    let (ended, end) = channel();
    let served = spawn_session(session, ended)?;
    let renewing = ReencryptJob::new(Arc::clone(&volume), tree.clone());
    let mounted = Mounted { volume, tree, handle, renewing, read_only, per_caller, epoch };
    let outcome = run_beside(plan, &mounted, is_unix, &end, ready);
    mounted.renewing.end();
    let served =
        served.join().map_err(|_| CliError::new(Exit::Mount, "the mount's session ended by a panic"))?;
    mounted.end_epoch();
    drop(grants);
    drop(lock);
    served.map_err(|e| CliError::new(Exit::Mount, format!("the mount ended: {e}")))?;
    outcome
}

/// The client of a mount, and its grants where it is the mount of an attached volume.
fn connect(plan: &MountPlan) -> Result<(Arc<Kms>, Granted), CliError> {
    let own = service::connect(plan.kms.as_deref(), Behalf::Mount)?;
    let Some(name) = &plan.attach else { return Ok((own, Granted(None))) };
    let grants = MountGrants::begin(named::registry(), name, Arc::clone(&own), &service::connect_mount)?;
    let grants = grants.map(Arc::new);
    Ok((grants.as_ref().map_or(own, |grants| grants.kms()), Granted(grants)))
}

/// Grants, given up on drop: when the mount needs no key any more, and before somebody else may mount.
struct Granted(Option<Arc<MountGrants>>);

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(grants) = &self.0 {
            grants.end();
        }
    }
}

/// What stands beside the session while it serves.
struct Mounted {
    volume: Arc<Volume>,
    tree: MountedTree,
    handle: SessionHandle,
    renewing: ReencryptJob,
    read_only: bool,
    per_caller: bool,
    epoch: Option<Epoch>,
}

impl Mounted {
    fn advance_epoch(&self) {
        if let Some(epoch) = self.epoch.as_ref().filter(|_| !self.read_only) {
            epoch.advance();
        }
    }

    fn end_epoch(&self) {
        if let Some(epoch) = self.epoch.as_ref().filter(|_| !self.read_only && self.tree.ended_well()) {
            epoch.end();
        }
    }
}

/// Whether the lower directory is a snapshot, which is mounted as one only where that was said: by its place, or `-o
/// snapshot`. Otherwise a snapshot put in the place of a volume would pass for it.
fn check_snapshot(plan: &MountPlan, volume: &Volume) -> Result<bool, CliError> {
    let wanted = plan.snapshot || snapshot::is_place_of_one(&plan.lower);
    let is_one = snapshot::of_volume(volume)?.is_some();
    let lower = plan.lower.display();
    match (is_one, wanted) {
        (true, false) => {
            let text = format!("{lower} is a snapshot of a volume; -o snapshot mounts it, read-only");
            Err(CliError::new(Exit::Volume, text))
        }
        (false, true) => Err(CliError::new(Exit::Volume, format!("{lower} is not a snapshot"))),
        _ => Ok(is_one),
    }
}

type Served = std::thread::JoinHandle<std::io::Result<()>>;

fn spawn_session(session: Session, ended: Sender<()>) -> Result<Served, CliError> {
    let run = move || {
        let served = session.run();
        let _ = ended.send(());
        served
    };
    let spawned = std::thread::Builder::new().name("session".into()).spawn(run);
    spawned.map_err(|e| CliError::new(Exit::Mount, format!("cannot start a thread: {e}")))
}

/// Watches keys, answers control requests and waits for the end. Unmounts when anything of it fails at the start.
fn run_beside(
    plan: &MountPlan,
    mounted: &Mounted,
    is_unix: bool,
    end: &Receiver<()>,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), CliError> {
    let started = start_beside(plan, mounted, is_unix).and_then(|beside| {
        wait_for_answer(&plan.mountpoint, end)?;
        ready().map_err(|e| CliError::failed(format!("cannot report that the mount answers: {e}")))?;
        Ok(beside)
    });
    match started {
        Ok(_beside) => {
            wait_for_end(plan, mounted, end);
            Ok(())
        }
        Err(e) => {
            let _ = mounted.handle.unmount(true);
            Err(e)
        }
    }
}

fn start_beside(
    plan: &MountPlan,
    mounted: &Mounted,
    is_unix: bool,
) -> Result<(KeyWatch, control::Server), CliError> {
    let failed = |e: std::io::Error| CliError::failed(format!("cannot start a thread: {e}"));
    unmount_on_signals(mounted.handle.clone()).map_err(failed)?;
    let (tree, handle) = (mounted.tree.clone(), mounted.handle.clone());
    let act = move |event: KeyEvent<'_>| tree.act_on(event, |ids| drop_pages(&handle, ids));
    let watch = KeyWatch::start(Arc::clone(&mounted.volume.keys), WatchOptions::for_endpoint(is_unix), act);
    let watch = watch.map_err(failed)?;
    let server = control::Server::start(&plan.mountpoint, control_handler(plan, mounted))?;
    Ok((watch, server))
}

/// Makes the kernel write back and forget these files' pages.
fn drop_pages(handle: &SessionHandle, node_ids: &[u64]) {
    if let Err(e) = handle.invalidate(node_ids) {
        log::debug!("cached pages of some files could not be dropped: {e}");
    }
}

/// A mount that answers one request answers all; without this the caller's first access might find nothing.
fn wait_for_answer(mountpoint: &Path, end: &Receiver<()>) -> Result<(), CliError> {
    let failed = |text: &str| Err(CliError::new(Exit::Mount, text));
    let (sender, receiver) = channel();
    let path = mountpoint.to_owned();
    std::thread::spawn(move || {
        let _ = sender.send(is_mount_point(&path));
    });
    let begun = Instant::now();
    while begun.elapsed() < FIRST_ANSWER {
        match receiver.recv_timeout(ANSWER_POLL) {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => return failed("the mount ended before it answered"),
            Ok(Err(e)) => return failed(&format!("the mount does not work: {e}")),
            Err(_) if end.try_recv().is_ok() => return failed("the mount ended before it answered"),
            Err(_) => {}
        }
    }
    failed("the mount does not answer")
}

/// Whether something is mounted there: a session that could not serve has taken its mount away.
fn is_mount_point(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let above = path.parent().unwrap_or(path);
    Ok(std::fs::metadata(path)?.dev() != std::fs::metadata(above)?.dev())
}

fn unmount_on_signals(handle: SessionHandle) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let unmount = move || {
        // Out of sight at once, ended when the last file is closed.
        while signals.forever().next().is_some() {
            if let Err(e) = handle.unmount(true) {
                log::error!("cannot unmount: {e}");
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(unmount).map(|_| ())
}

/// Waits until the session has ended; unmounts when it was idle for long enough.
fn wait_for_end(plan: &MountPlan, mounted: &Mounted, end: &Receiver<()>) {
    let mut idle = plan.idle.map(|limit| IdleClock { limit, seen: 0, since: Instant::now() });
    let (mut advanced, mut tide) = (Instant::now(), Tide::default());
    loop {
        match end.recv_timeout(IDLE_POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        mounted.tree.close_left_open();
        if tide.has_ebbed(mounted.tree.inodes()) {
            crate::sys::give_back_memory();
        }
        if advanced.elapsed() >= EPOCH_EVERY {
            advanced = Instant::now();
            mounted.advance_epoch();
        }
        let Some(idle) = &mut idle else { continue };
        if idle.has_run_out(Instant::now(), mounted.handle.requests(), mounted.tree.open_files()) {
            log::info!("unmounting after {} s without use", idle.limit.as_secs());
            // Somebody's working directory keeps it busy, which counts as use.
            if mounted.handle.unmount(false).is_err() {
                idle.since = Instant::now();
            }
        }
    }
}

/// The most inodes known since memory was last given back.
#[derive(Default)]
struct Tide(usize);

impl Tide {
    /// Whether most of many inodes have been forgotten since, so that it is worth looking for free memory.
    fn has_ebbed(&mut self, inodes: usize) -> bool {
        let ebbed = self.0 > MANY_INODES && inodes < self.0 / 4;
        self.0 = if ebbed { inodes } else { self.0.max(inodes) };
        ebbed
    }
}

/// How long a mount has not been used: no request came, and no file was open.
struct IdleClock {
    limit: Duration,
    /// Requests counted when it was looked at last.
    seen: u64,
    since: Instant,
}

impl IdleClock {
    fn has_run_out(&mut self, now: Instant, requests: u64, open_files: usize) -> bool {
        if requests != self.seen || open_files > 0 {
            (self.seen, self.since) = (requests, now);
        }
        now.duration_since(self.since) >= self.limit
    }
}

/// What is told of the mount, before anything was counted.
fn first_status(plan: &MountPlan, mounted: &Mounted) -> Status {
    Status {
        mountpoint: plan.mountpoint.clone(),
        lower: plan.lower.clone(),
        volume_id: mounted.volume.id.to_string(),
        kms: mounted.volume.keys.kms().services().to_string(),
        default_key: mounted.volume.keys.default_key(),
        pid: std::process::id(),
        read_only: mounted.read_only,
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        cached_keys: 0,
        fresh_keys: 0,
        locked: false,
        locked_keys: Vec::new(),
        per_caller: mounted.per_caller,
        open_files: 0,
        inodes: 0,
        damage_seen: 0,
        idle_seconds: plan.idle.map(|idle| idle.as_secs()),
        socket: control::socket_of(&plan.mountpoint).unwrap_or_default(),
        figures: Figures::default(),
        work: None,
    }
}

fn status_now(first: &Status, keys: &VolumeKeys, tree: &MountedTree, handle: &SessionHandle) -> Status {
    let (cached_keys, fresh_keys) = keys.held();
    let (locked, locked_keys) = keys.locked();
    Status {
        default_key: keys.default_key(),
        cached_keys,
        fresh_keys,
        locked,
        locked_keys,
        open_files: tree.open_files(),
        inodes: tree.inodes(),
        damage_seen: damage_seen(),
        figures: Figures::new(&handle.traffic(), keys.figures()),
        ..first.clone()
    }
}

fn control_handler(plan: &MountPlan, mounted: &Mounted) -> impl Fn(Request) -> Answer + Send + 'static {
    let keys = Arc::clone(&mounted.volume.keys);
    let (tree, handle) = (mounted.tree.clone(), mounted.handle.clone());
    let status = first_status(plan, mounted);
    let job = SnapshotJob::new(Arc::clone(&mounted.volume), mounted.tree.clone(), plan.mountpoint.clone());
    let renewing = mounted.renewing.clone();
    let work = LastWork::default();
    move |request| match request {
        Request::Status => {
            let now = status_now(&status, &keys, &tree, &handle);
            Answer::Status(Box::new(Status { work: work.now(), ..now }))
        }
        Request::Working(told) => {
            work.note(told);
            Answer::Noted
        }
        Request::Lock { key, once } => {
            // What is dirty goes out while its keys are there; then nothing comes back.
            let open = tree.drop_keys(key.as_deref(), |ids| drop_pages(&handle, ids));
            if !once {
                keys.lock(key.as_deref());
            }
            let cached = keys.drop_keys(key.as_deref());
            // Files that were opened meanwhile.
            tree.drop_keys(key.as_deref(), |ids| drop_pages(&handle, ids));
            Answer::Locked(cached.max(open))
        }
        Request::Unlock { key } => Answer::Unlocked(keys.unlock(key.as_deref())),
        Request::Reload => match keys.reload_if_changed() {
            Ok(changed) => {
                tree.act_on(KeyEvent::RecordChanged, |ids| drop_pages(&handle, ids));
                Answer::Reloaded(changed)
            }
            Err(e) => Answer::Failed(e.to_string()),
        },
        Request::Snapshot { name } => match job.begin(name) {
            Ok(()) => Answer::Snapshot(Box::new(job.state())),
            Err(why) => Answer::Failed(why),
        },
        Request::SnapshotState => Answer::Snapshot(Box::new(job.state())),
        Request::SnapshotCancel => {
            job.cancel();
            Answer::Snapshot(Box::new(job.state()))
        }
        Request::Reencrypt(options) => match renewing.begin(options) {
            Ok(()) => Answer::Reencrypt(Box::new(renewing.state())),
            Err(why) => Answer::Failed(why),
        },
        Request::ReencryptState => Answer::Reencrypt(Box::new(renewing.state())),
        Request::ReencryptCancel => {
            renewing.cancel();
            Answer::Reencrypt(Box::new(renewing.state()))
        }
        Request::Locate { path } => match tree.lower_path(&path) {
            Ok(lower) => Answer::Located(lower),
            Err(e) => Answer::Failed(format!("{}: {e}", path.display())),
        },
    }
}

/// What work was last told of, for as long as that is news.
#[derive(Default)]
struct LastWork(Cell<Option<(Work, Instant)>>);

impl LastWork {
    fn note(&self, work: Work) {
        self.0.set(Some((work, Instant::now())));
    }

    fn now(&self) -> Option<Work> {
        let told = self.0.take().filter(|(_, at)| at.elapsed() < WORK_IS_NEWS);
        self.0.set(told.clone());
        told.map(|(work, _)| work)
    }
}

fn mount_options(plan: &MountPlan, read_only: bool, per_caller: bool) -> MountOptions {
    MountOptions {
        source: plan.lower.display().to_string(),
        allow_other: plan.allow_other,
        per_caller,
        read_only,
        no_suid: !plan.suid,
        no_dev: !plan.dev,
        no_exec: plan.no_exec,
        ..MountOptions::default()
    }
}

fn is_read_only(lower: &PathBuf) -> bool {
    rustix::fs::statvfs(lower).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_most_of_many_inodes_are_forgotten() {
        let mut tide = Tide::default();
        let ebbs =
            [100, 10, 1_000_000, 600_000, 240_000, 200_000, 1_000, 40_000, 9_000].map(|n| tide.has_ebbed(n));
        assert_eq!(ebbs, [false, false, false, false, true, false, true, false, true]);
    }

    #[test]
    fn requests_and_open_files_are_use() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = IdleClock { limit: Duration::from_mins(1), seen: 5, since: start };
        assert!(!clock.has_run_out(at(59), 5, 0));
        assert!(!clock.has_run_out(at(61), 6, 0), "a request came");
        assert!(!clock.has_run_out(at(120), 6, 0));
        assert!(!clock.has_run_out(at(125), 6, 1), "a file is open");
        assert!(!clock.has_run_out(at(184), 6, 0));
        assert!(clock.has_run_out(at(185), 6, 0));
    }
}
