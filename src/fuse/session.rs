//! A mount's life: mount, serve, invalidate, unmount.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuser::{Config, INodeNo, InitFlags, KernelConfig, Notifier, SessionACL};

use super::adapter::Adapter;
use super::kernel_cache::KernelCache;
use super::mount;
use super::seeker::Seeker;
use super::server::Server;
use super::traffic::{Traffic, TrafficNow};
use crate::tree::Tree;

/// Bytes of one write request.
const MAX_WRITE: u32 = 1 << 20;
/// Read-ahead and write-back requests in flight.
const MAX_BACKGROUND: u16 = 128;
/// Threads that serve requests, at least and at most.
pub(super) const THREADS: std::ops::RangeInclusive<usize> = 2..=32;

/// How a volume is mounted.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // They are mount(8)'s own independent options.
pub struct MountOptions {
    /// What mount tables show as the source.
    pub source: String,
    /// Let other users in; the kernel checks permissions in any case.
    pub allow_other: bool,
    /// Each caller's own right to a file's key counts, as opposed to the mount's.
    pub per_caller: bool,
    /// No change through the mount.
    pub read_only: bool,
    /// Set-user-id has no effect.
    pub no_suid: bool,
    /// Device files have no effect.
    pub no_dev: bool,
    /// Programs do not run.
    pub no_exec: bool,
    /// Let the kernel collect writes. Only where no one else changes the lower tree.
    pub writeback: bool,
    /// How long the kernel may trust names and attributes without asking.
    pub cache_time: Duration,
    /// Serving threads; `None` for as many as there are processors.
    pub threads: Option<usize>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "kmsfs".into(),
            allow_other: false,
            per_caller: false,
            read_only: false,
            no_suid: true,
            no_dev: true,
            no_exec: false,
            writeback: true,
            cache_time: Duration::from_hours(24),
            threads: None,
        }
    }
}

/// A mounted volume.
pub struct Session {
    inner: fuser::Session<Adapter>,
    tree: Arc<Tree>,
    mountpoint: PathBuf,
    requests: Arc<AtomicU64>,
    traffic: Arc<Traffic>,
}

/// Acts on a mount from other threads.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    notifier: Notifier,
    mountpoint: PathBuf,
    requests: Arc<AtomicU64>,
    traffic: Arc<Traffic>,
}

impl Session {
    /// Mounts `tree` at `mountpoint`. The kernel's requests wait until [`Session::run`].
    pub fn mount(tree: Arc<Tree>, options: &MountOptions, mountpoint: &Path) -> io::Result<Self> {
        // New objects get the mode that the request names; a mask of the daemon's own would distort it.
        rustix::process::umask(rustix::fs::Mode::empty());
        let mountpoint = mountpoint.canonicalize()?;
        let device = mount::mount(&mountpoint, options)?;
        let mut config = Config::default();
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let threads = options.threads.unwrap_or(processors).clamp(*THREADS.start(), *THREADS.end());
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let server = Arc::new(Server::start(tree.clone(), !options.per_caller)?);
        let (requests, traffic) = (server.requests(), Arc::clone(server.traffic()));
        let kernel = KernelCache::default();
        let seeker = Seeker::start(server.clone(), kernel.clone())?;
        let adapter = Adapter::new(server, seeker, kernel.clone(), options);
        // The kernel keeps other users out unless `allow_other`; a second check here would refuse the kernel's own
        // write-back, which comes as root.
        let inner = match fuser::Session::from_fd(adapter, device, SessionACL::All, config) {
            Ok(inner) => inner,
            Err(e) => {
                let _ = mount::unmount(&mountpoint, true);
                return Err(e);
            }
        };
        kernel.connect(inner.notifier());
        Ok(Self { inner, tree, mountpoint, requests, traffic })
    }

    /// For other threads.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle {
            notifier: self.inner.notifier(),
            mountpoint: self.mountpoint.clone(),
            requests: self.requests.clone(),
            traffic: self.traffic.clone(),
        }
    }

    /// Serves until the volume is unmounted, then leaves every file sealed.
    pub fn run(self) -> io::Result<()> {
        let Self { inner, tree, mountpoint, .. } = self;
        let served = inner.run();
        if served.is_err() {
            let _ = mount::unmount(&mountpoint, true);
        }
        tree.close_all();
        served
    }
}

impl SessionHandle {
    /// Makes the kernel write back and drop what it caches of the contents of these inodes.
    /// Must not be called from a serving thread.
    pub fn invalidate(&self, node_ids: &[u64]) -> io::Result<()> {
        node_ids.iter().try_for_each(|id| self.notifier.inval_inode(INodeNo(*id), 0, 0))
    }

    /// Unmounts; `lazy` takes a busy mount out of sight and ends it when it is free.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        mount::unmount(&self.mountpoint, lazy)
    }

    /// Requests of the kernel so far. What it answers from its caches is not among them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What was asked for so far, how long it took, and how many bytes went through.
    pub fn traffic(&self) -> TrafficNow {
        self.traffic.now()
    }

    /// Where the volume is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

/// What the kernel is asked for. Locks are its own: one mount at a time uses the lower tree. No `FUSE_ATOMIC_O_TRUNC`: with
/// it the kernel sets the size to nothing once more after the open is answered, and a truncation by another process between
/// the two is then in the file and not in the kernel's mind.
pub fn negotiate(config: &mut KernelConfig, writeback: bool) {
    let mut wanted = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_POSIX_ACL
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
    wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, writeback);
    if let Err(missing) = config.add_capabilities(wanted & config.capabilities()) {
        let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
        log::debug!("the kernel lacks {}", names.join(", "));
    }
    let _ = config.set_max_write(MAX_WRITE);
    let _ = config.set_max_readahead(MAX_WRITE);
    let _ = config.set_max_background(MAX_BACKGROUND);
}
