//! The life of a daemon: init, serve, stop, status.
//!
//! Called by the command line with validated plans. The order of a start matters: lock, unseal, check the store and the
//! log, seed, listen, and only then say that it answers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use crate::crypto::RootKey;
use crate::sys::harden;

use super::admin_socket::{self, AdminDesk, AdminSocket};
use super::audit_log::{self, AuditLog, AuditSync};
use super::background;
use super::failure::Failure;
use super::home::ANY_REGION;
use super::http::Front;
use super::keeper::{Bounds, Keeper};
use super::listen::{ListenError, bind_tcp};
use super::notify;
use super::peer::PeerMap;
use super::pipeline::Settings;
use super::places::Places;
use super::root::{Root, RootError};
use super::seal_source::SealSource;
use super::sealed::{self, SealedError};
use super::seed::Seed;
use super::server::{Limits, Listeners};
use super::sqlite::SqliteStore;
use super::state_dir::{Running, StateDir, StateError, StateLock};
use super::store::{Store, StoreError};
use super::tls::{Tls, TlsFiles};
use super::toml_file::TomlError;
use super::worker::Worker;

/// The region of a store that is made without one.
pub const DEFAULT_REGION: &str = "local";
/// How long `stop` waits: the drain of the server and some more.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Descriptors beside the connections.
const OTHER_DESCRIPTORS: u64 = 256;
/// With fewer places for connections it could not serve a user and an operator at once.
const CONNECTIONS_MIN: u64 = 64;

/// A new store.
#[derive(Debug)]
pub struct InitPlan {
    /// Where.
    pub state: StateDir,
    /// Account id.
    pub account: String,
    /// Regions; the first one is that of callers who name none.
    pub regions: Vec<String>,
    /// What seals it.
    pub seal: SealSource,
}

/// A daemon to be started.
#[derive(Debug)]
pub struct ServePlan {
    /// Its state directory.
    pub state: StateDir,
    /// What unseals it, if not what the store says.
    pub seal: Option<SealSource>,
    /// Its Unix socket.
    pub socket: PathBuf,
    /// The socket's mode.
    pub socket_mode: u32,
    /// Regions beside those of the store.
    pub regions: Vec<String>,
    /// How long a new replica is `Creating` and a moved primary key `Updating`.
    pub settle_millis: u32,
    /// Whether key policies and grants may name users and roles that are not there.
    pub takes_unknown_principals: bool,
    /// TCP address.
    pub listen: Option<SocketAddr>,
    /// Certificate and key, for TLS on TCP.
    pub tls: Option<TlsFiles>,
    /// Seed file.
    pub seed: Option<PathBuf>,
    /// Map file.
    pub map: Option<PathBuf>,
    /// TCP address for metrics.
    pub metrics: Option<SocketAddr>,
    /// Quotas, faults, retention.
    pub bounds: Bounds,
    /// When audit records are on disk.
    pub audit_sync: AuditSync,
    /// Threads.
    pub workers: Option<usize>,
    /// The service manager's socket.
    pub notify: Option<OsString>,
    /// Whether a parent waits on standard output.
    pub report: bool,
}

/// Makes a new store.
pub fn init(plan: &InitPlan) -> Result<(), Failure> {
    harden()?;
    let state = &plan.state;
    let wrap = |error| Failure::State(state.path().to_owned(), error);
    state.create().map_err(wrap)?;
    let _lock = state.lock().map_err(wrap)?;
    if state.root_file().exists() {
        return Err(Failure::Initialised(state.path().to_owned()));
    }
    let secret = plan.seal.establish()?;
    let root = RootKey::random();
    forget_unfinished(state)?;
    let store = SqliteStore::create(state.path(), root.store_keys()).map_err(Failure::Store)?;
    new_settings(plan).save(&store).map_err(Failure::Store)?;
    audit_log::create(&state.audit_dir(), &root.audit_key()).map_err(Failure::Audit)?;
    // Last: what has a root file is whole.
    sealed::create(&state.root_file(), &root, &secret.as_seal()).map_err(|e| seal_failure(state, e))?;
    Root::open(root, &store).map_err(root_failure)?;
    Ok(())
}

fn new_settings(plan: &InitPlan) -> Settings {
    let (own, further): (Vec<&String>, Vec<_>) =
        plan.regions.iter().partition(|region| *region != ANY_REGION);
    let region = own.first().map_or_else(|| DEFAULT_REGION.to_owned(), ToString::to_string);
    let further_regions = own.into_iter().skip(1).chain(further).cloned().collect();
    let account = plan.account.clone();
    Settings { account, region, further_regions, settle_millis: 0, takes_unknown_principals: false }
}

/// Removes what an interrupted init left; without a root file nobody can ever read it.
pub(super) fn forget_unfinished(state: &StateDir) -> Result<(), Failure> {
    let gone = |outcome: std::io::Result<()>, path: &Path| match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::System(path.display().to_string(), error))
        }
        _ => Ok(()),
    };
    for name in ["store.db", "store.db-wal", "store.db-shm", "head"] {
        let path = state.path().join(name);
        gone(std::fs::remove_file(&path), &path)?;
    }
    let audit = state.audit_dir();
    gone(std::fs::remove_dir_all(&audit), &audit)
}

/// Serves until told to stop.
pub fn serve(plan: &ServePlan) -> Result<(), Failure> {
    harden()?;
    let limits = Limits::default();
    let files = harden::raise_open_files(limits.connections as u64 + OTHER_DESCRIPTORS);
    harden::need_descriptors((OTHER_DESCRIPTORS + CONNECTIONS_MIN) as usize)
        .map_err(|e| Failure::System("kmsd cannot begin".into(), e))?;
    let connections = limits.connections.min(files.saturating_sub(OTHER_DESCRIPTORS) as usize);
    let loops = plan.workers.unwrap_or(limits.loops);
    let limits = Limits { connections, loops, ..limits };
    let mut lock = lock(&plan.state)?;
    let root = unseal(&plan.state, plan.seal.as_ref())?;
    let keeper = open(plan, root)?;
    leave_terminal(plan);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::System("threads".into(), e))?;
    runtime.block_on(answer(plan, keeper, limits, &mut lock))
}

/// Opens everything below the protocol.
fn open(plan: &ServePlan, root: RootKey) -> Result<Arc<Keeper>, Failure> {
    let state = &plan.state;
    let store = SqliteStore::open_at_rest(state.path(), root.store_keys()).map_err(Failure::Store)?;
    let store: Arc<dyn Store> = Arc::new(store);
    let mut settings = Settings::load(&*store).map_err(Failure::Store)?;
    settings.further_regions.extend(plan.regions.iter().cloned());
    settings.settle_millis = plan.settle_millis.into();
    settings.takes_unknown_principals = plan.takes_unknown_principals;
    let audit =
        AuditLog::open(&state.audit_dir(), root.audit_key(), plan.audit_sync).map_err(Failure::Audit)?;
    let root = Root::open(root, &*store).map_err(root_failure)?;
    let mut peers = PeerMap::new(&settings.account, rustix::process::geteuid().as_raw());
    if let Some(path) = &plan.map {
        peers = peers.with_file(path).map_err(|e| Failure::File(path.clone(), e.to_string()))?;
    }
    let keeper = Keeper::open(settings, store, root, Arc::new(audit), peers, plan.bounds.clone())?;
    if let Some(path) = &plan.seed {
        let wrong = |what: TomlError| Failure::File(path.clone(), what.to_string());
        let seed = Seed::read(path).map_err(wrong)?;
        if !keeper.holds(&seed) {
            // What a seed makes is held against all that is there.
            keeper.read_rest()?;
            keeper.apply(&seed).map_err(wrong)?;
        }
    }
    Ok(Arc::new(keeper))
}

async fn answer(
    plan: &ServePlan,
    keeper: Arc<Keeper>,
    limits: Limits,
    lock: &mut StateLock,
) -> Result<(), Failure> {
    let system = |what: &str| {
        let what = what.to_owned();
        move |e| Failure::System(what, e)
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("signals"))?;
    let tls = plan.tls.clone().map(Tls::load).transpose().map_err(Failure::Tls)?.map(Arc::new);
    warn_of_risks(plan);
    let listeners = Listeners::bind(&plan.socket, plan.socket_mode, plan.listen, tls.clone());
    let listeners = listeners.await.map_err(Failure::Listen)?;
    lock.announce(&plan.socket).map_err(system("the lock file"))?;
    let worker = Worker::start(Arc::clone(&keeper)).map_err(system("the background worker"))?;
    let front = Front::new(Arc::clone(&keeper) as _, limits.body_timeout);
    let (stop, stopped) = watch::channel(false);
    let address = listeners.tcp_address();
    let places = Places::new(limits.connections);
    let desk = AdminDesk::new(Arc::clone(&keeper), plan.state.root_file(), Arc::clone(&places));
    let desk = open_desk(plan, desk).await?;
    let serving = tokio::spawn(listeners.serve(Arc::new(front), places, limits, stopped));
    let mut bad_end = pin!(read_rest(&keeper)?);
    say_ready(plan, address);
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            failure = &mut bad_end => {
                outcome = Err(failure);
                break;
            }
            _ = hangup.recv() => reload(tls.as_deref()),
        }
    }
    log::info!("stopping");
    keeper.end_watches();
    tell_manager(plan, "STOPPING=1");
    let _ = stop.send(true);
    if let Ok(Err(error)) = serving.await {
        log::error!("the server did not end in order: {error}");
    }
    desk.iter().for_each(AbortHandle::abort);
    worker.stop();
    keeper.sync_audit();
    if !keeper.is_reading() {
        keeper.store_last_usage();
    }
    keeper.vouch(true);
    outcome
}

/// Reads the records that the start has left, beside the calls. What comes of the future is why that cannot go on; it
/// never comes where all is well.
fn read_rest(keeper: &Arc<Keeper>) -> Result<impl Future<Output = Failure> + use<>, Failure> {
    let (end, ended) = oneshot::channel();
    let keeper = Arc::clone(keeper);
    std::thread::Builder::new()
        .name("kmsd-reader".into())
        .spawn(move || drop(end.send(keeper.read_rest())))
        .map_err(|error| Failure::System("the reading of the store".into(), error))?;
    Ok(async {
        match ended.await {
            Ok(Err(failure)) => failure,
            Ok(Ok(())) => std::future::pending().await,
            Err(_) => Failure::Store(StoreError::Io("the reading of the store came to a bad end".into())),
        }
    })
}

/// Opens the operator's socket, and the address for scrapers where asked.
async fn open_desk(plan: &ServePlan, desk: Arc<AdminDesk>) -> Result<Vec<AbortHandle>, Failure> {
    let mut tasks = Vec::new();
    match AdminSocket::bind(&plan.state.admin_socket()) {
        Ok(socket) => tasks.push(tokio::spawn(Arc::clone(&desk).serve_unix(socket)).abort_handle()),
        // The kernel takes paths of 107 bytes; a daemon without this socket still serves its callers.
        Err(ListenError::Io(path, error)) if error.kind() == std::io::ErrorKind::InvalidInput => {
            log::warn!("no operator's socket: {path}: {error}");
        }
        Err(error) => return Err(Failure::Listen(error)),
    }
    if let Some(address) = plan.metrics {
        let listener = bind_tcp(address).await.map_err(Failure::Listen)?;
        tasks.push(tokio::spawn(desk.serve_tcp(listener)).abort_handle());
    }
    Ok(tasks)
}

/// On SIGHUP: a renewed certificate takes over for new connections.
fn reload(tls: Option<&Tls>) {
    match tls.map(Tls::reload) {
        Some(Ok(())) => log::info!("the certificate was read again"),
        Some(Err(error)) => log::error!("the old certificate stays: {}", Failure::Tls(error)),
        None => {}
    }
}

fn warn_of_risks(plan: &ServePlan) {
    for fault in &plan.bounds.faults {
        log::warn!("calls fail on purpose: --inject {fault}");
    }
    if let Some(address) = plan.listen.filter(|address| plan.tls.is_none() && !address.ip().is_loopback()) {
        log::warn!(
            "listening on {address}, which is not a loopback address, without TLS: calls are signed, but plaintexts \
             cross the network in clear; give --tls-cert and --tls-key"
        );
    }
}

fn say_ready(plan: &ServePlan, address: Option<SocketAddr>) {
    log::info!("answering at {}", plan.socket.display());
    if let Some(address) = address {
        log::info!("answering at {address}");
    }
    tell_manager(plan, "READY=1");
    if plan.report {
        background::report_ready();
    }
}

fn tell_manager(plan: &ServePlan, state: &str) {
    if let Some(socket) = &plan.notify
        && let Err(error) = notify::send(socket, state)
    {
        log::warn!("the service manager was not told {state}: {error}");
    }
}

/// In the background: no controlling terminal, and no hold on the directory it was started in.
fn leave_terminal(plan: &ServePlan) {
    if plan.report {
        // Both are courtesies; a daemon that keeps its session still answers.
        let _ = rustix::process::setsid();
        let _ = std::env::set_current_dir("/");
    }
}

/// What can be known before a secret is asked for: initialised, and not running. Tells how it is sealed.
pub fn check_before_start(plan: &ServePlan) -> Result<SealSource, Failure> {
    drop(lock(&plan.state)?);
    source(&plan.state, plan.seal.as_ref())
}

/// The root key of a state directory.
pub fn unseal(state: &StateDir, given: Option<&SealSource>) -> Result<RootKey, Failure> {
    let secret = source(state, given)?.read()?;
    sealed::open(&state.root_file(), &secret.as_seal()).map_err(|e| seal_failure(state, e))
}

fn source(state: &StateDir, given: Option<&SealSource>) -> Result<SealSource, Failure> {
    let info = sealed::inspect(&state.root_file()).map_err(|e| seal_failure(state, e))?;
    Ok(given.cloned().unwrap_or_else(|| SealSource::from_info(&info)))
}

/// Takes the state directory of an initialised store.
pub fn lock(state: &StateDir) -> Result<StateLock, Failure> {
    let lock = state.lock().map_err(|e| Failure::State(state.path().to_owned(), e))?;
    if !state.root_file().exists() {
        return Err(Failure::NotInitialised(state.path().to_owned()));
    }
    Ok(lock)
}

/// The daemon that runs on `state`.
pub fn running(state: &StateDir) -> Result<Running, Failure> {
    let running = state.running().map_err(|e| Failure::State(state.path().to_owned(), e))?;
    running.ok_or_else(|| Failure::NotRunning(state.path().to_owned()))
}

/// Stops the daemon of `state` and waits until it is gone.
pub fn stop(state: &StateDir) -> Result<(), Failure> {
    let Running { pid, .. } = running(state)?;
    let gone = || Failure::NotRunning(state.path().to_owned());
    let system = |error: rustix::io::Errno| Failure::System(format!("process {pid}"), error.into());
    let process = Pid::from_raw(pid).ok_or_else(gone)?;
    let handle = rustix::process::pidfd_open(process, PidfdFlags::empty()).map_err(|_| gone())?;
    // The lock is still held by the same process, so the handle is not that of a stranger with its number.
    if running(state)?.pid != pid {
        return Err(gone());
    }
    rustix::process::pidfd_send_signal(&handle, Signal::TERM).map_err(system)?;
    let timeout = Timespec { tv_sec: STOP_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let ended =
        rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).map_err(system)?;
    if ended == 0 {
        return Err(Failure::NotStopped(pid));
    }
    wait_for_lock(state, pid)
}

/// The kernel reports the end of a process a moment before its locks are gone.
fn wait_for_lock(state: &StateDir, pid: i32) -> Result<(), Failure> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < deadline {
        match state.lock() {
            Err(StateError::Held(_)) => std::thread::sleep(Duration::from_millis(5)),
            _ => return Ok(()),
        }
    }
    Err(Failure::NotStopped(pid))
}

/// Prints what runs on `state`.
pub fn status(state: &StateDir) -> Result<(), Failure> {
    let Running { pid, socket } = running(state)?;
    println!("kmsd (process {pid}) runs on {} and answers at {}", state.path().display(), socket.display());
    Ok(())
}

/// Prints what the daemon of `state` says of its health, or of its work; fails when it is not well.
pub fn ask(state: &StateDir, what: &str) -> Result<(), Failure> {
    running(state)?;
    let path = state.admin_socket();
    let (status, body) =
        admin_socket::ask(&path, "GET", what).map_err(|e| Failure::System(path.display().to_string(), e))?;
    print!("{}", String::from_utf8_lossy(&body));
    if status == 200 { Ok(()) } else { Err(Failure::Refused("kmsd is not well".into())) }
}

/// Before secrets are read: no dumps, no new privileges, files for us alone.
pub(super) fn harden() -> Result<(), Failure> {
    harden::private_umask();
    harden::forbid_dumps()
        .and_then(|()| harden::no_new_privileges())
        .map_err(|e| Failure::System("the process cannot be hardened".into(), e))
}

pub(super) fn seal_failure(state: &StateDir, error: SealedError) -> Failure {
    Failure::Seal(state.path().to_owned(), error)
}

pub(super) fn root_failure(error: RootError) -> Failure {
    match error {
        RootError::Store(error) => Failure::Store(error),
        error => Failure::Store(super::store::StoreError::Tampered(error.to_string())),
    }
}
