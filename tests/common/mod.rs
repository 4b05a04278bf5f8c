//! A volume mounted in the test's own process, with data keys from a map instead of a key daemon.
#![allow(dead_code, clippy::unwrap_used, missing_docs)] // Each test file uses its own part.

#[allow(clippy::duplicate_mod, reason = "some test files use both supports")]
#[path = "../programs/fresh_dir.rs"]
mod fresh_dir;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kmsfs::crypto::{DataKey, Secret, VolumeKey, random_array};
use kmsfs::format::{FileId, VolumeId, WrappedKey};
use kmsfs::fuse::{MountOptions, Session, SessionHandle};
use kmsfs::tree::{
    Durability, FileContext, FreshKey, KeyError, KeyNeed, KeySource, KeyUser, Stage, TagLog, Tree,
    TreeOptions,
};
use parking_lot::Mutex;

use fresh_dir::fresh_dir;

/// The name under which the map's keys are wrapped.
pub const KEY_ARN: &str = "arn:aws:kms:local:000000000000:key/test";

/// Data keys by file id. The "wrapped" key is the file id: it shows that the right one is asked for.
#[derive(Default)]
pub struct MapKeys {
    keys: Mutex<HashMap<FileId, DataKey>>,
    /// While set, every request is refused as AWS does for a disabled key.
    pub disabled: AtomicBool,
    /// While set, requests panic.
    pub broken: AtomicBool,
    /// Keys handed out.
    pub unwraps: AtomicU64,
    /// While held, keys are absent that were not made or fetched since [`Self::forget`], and those who fetch them wait.
    pub gate: Mutex<()>,
    /// At hand all the same: new, or fetched.
    fetched: Mutex<HashSet<FileId>>,
    /// Callers at the gate.
    pub at_gate: AtomicU64,
}

impl KeySource for MapKeys {
    fn fresh(&self, _key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        self.check()?;
        let file_id = FileId(random_array());
        let data_key = DataKey::random();
        self.keys.lock().insert(file_id, data_key.duplicate());
        self.fetched.lock().insert(file_id);
        let wrapped = WrappedKey { key_arn: KEY_ARN.into(), material_id: None, blob: file_id.0.to_vec() };
        Ok(FreshKey { user, file_id, data_key, wrapped })
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.check()?;
        if self.gate.is_locked() && !self.fetched.lock().contains(&file_id) {
            return Err(KeyError::Absent(
                Box::new(KeyNeed::Unwrapped(file_id, wrapped.clone())),
                KeyUser::Mount,
            ));
        }
        self.unwraps.fetch_add(1, Ordering::Relaxed);
        if wrapped.blob != file_id.0 {
            return Err(KeyError::Invalid("the blob is another file's".into()));
        }
        let keys = self.keys.lock();
        keys.get(&file_id).map(DataKey::duplicate).ok_or(KeyError::Invalid("unknown file".into()))
    }

    fn obtain(&self, need: &KeyNeed, _user: KeyUser) -> Result<(), KeyError> {
        self.at_gate.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock());
        if let KeyNeed::Unwrapped(file_id, _) = need {
            self.fetched.lock().insert(*file_id);
        }
        Ok(())
    }
}

impl MapKeys {
    /// As after a restart: no key is at hand.
    pub fn forget(&self) {
        self.fetched.lock().clear();
    }

    fn check(&self) -> Result<(), KeyError> {
        assert!(!self.broken.load(Ordering::Relaxed), "broken by the test");
        if self.disabled.load(Ordering::Relaxed) {
            return Err(KeyError::Disabled("disabled by the test".into()));
        }
        Ok(())
    }
}

/// Any wait for something that must come.
const PATIENCE: Duration = Duration::from_mins(2);

/// A directory below the system's temporary one, removed at the end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(label: &str) -> Self {
        Self(fresh_dir(label))
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What stays of a volume between two mounts.
pub struct Volume {
    pub keys: Arc<MapKeys>,
    pub secret: Arc<VolumeKey>,
    id: VolumeId,
    pub root: TempDir,
}

impl Volume {
    /// An empty volume.
    pub fn new(label: &str) -> Self {
        Self::made(label, VolumeKey::new(Secret::random()))
    }

    /// The same, of those that bind names.
    pub fn binding_names(label: &str) -> Self {
        Self::made(label, VolumeKey::new(Secret::random()).binding_names(true))
    }

    fn made(label: &str, volume_key: VolumeKey) -> Self {
        let root = TempDir::new(label);
        fs::create_dir(root.join("lower")).unwrap();
        fs::create_dir(root.join("mnt")).unwrap();
        let volume_key = Arc::new(volume_key);
        let record = kmsfs::format::dir::seal(&volume_key, &random_array(), volume_key.root_place().as_ref());
        std::os::unix::fs::symlink(record, root.join("lower").join(kmsfs::format::dir::DIR_RECORD)).unwrap();
        Self { keys: Arc::default(), secret: volume_key, id: VolumeId(random_array()), root }
    }

    pub fn lower(&self) -> PathBuf {
        self.root.join("lower")
    }

    pub fn mount(&self) -> Mount {
        self.mount_with(&MountOptions::default())
    }

    pub fn tree(&self, read_only: bool) -> Arc<Tree> {
        let root = open_dir(&self.lower());
        let log = if read_only {
            TagLog::open_read_only(&root, &self.secret, kmsfs::tree::LastEnd::Unknown)
        } else {
            TagLog::open(&root, &self.secret, Durability::Strict, kmsfs::tree::LastEnd::Unknown)
        };
        let (volume_id, log) = (self.id, Some(log.unwrap()));
        let context = FileContext {
            volume_id,
            keys: self.keys.clone(),
            read_only,
            log,
            stage: Stage::default(),
            integrity: kmsfs::tree::Integrity::default(),
        };
        let options = TreeOptions { read_only, ..TreeOptions::default() };
        Tree::open(root, self.secret.clone(), Arc::new(context), &options).unwrap()
    }

    pub fn mount_with(&self, options: &MountOptions) -> Mount {
        let tree = self.tree(options.read_only);
        let mountpoint = self.root.join("mnt");
        let session = Session::mount(tree.clone(), options, &mountpoint).unwrap();
        let handle = session.handle();
        let server = std::thread::spawn(move || session.run());
        Mount {
            path: mountpoint,
            tree: Some(tree),
            handle: Some(handle),
            server: Some(server),
            root: self.root.0.clone(),
        }
    }
}

fn open_dir(path: &Path) -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Descriptors of this process below `root`; other tests may run in the same process.
fn open_descriptors(root: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| fs::read_link(entry.unwrap().path()));
    open.filter(|target| target.as_ref().is_ok_and(|target| target.starts_with(root))).count()
}

/// A mounted volume; unmounted on drop, also when the test fails.
pub struct Mount {
    pub path: PathBuf,
    pub tree: Option<Arc<Tree>>,
    pub handle: Option<SessionHandle>,
    server: Option<JoinHandle<std::io::Result<()>>>,
    root: PathBuf,
}

impl Mount {
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn tree(&self) -> &Arc<Tree> {
        self.tree.as_ref().unwrap()
    }

    pub fn handle(&self) -> &SessionHandle {
        self.handle.as_ref().unwrap()
    }

    fn stop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let handle = self.handle.take().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while handle.unmount(false).is_err() {
            if Instant::now() > deadline {
                handle.unmount(true).unwrap();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(handle);
        server.join().unwrap().unwrap();
    }

    /// Unmounts, and fails the test where a descriptor was left open.
    pub fn unmount(mut self) {
        self.stop();
        assert_eq!(self.tree().open_file_count(), 0, "files left open");
        self.tree = None;
        // The flusher looks once a second, and lets go of the tree where it finds that it was the last.
        let deadline = Instant::now() + PATIENCE;
        while open_descriptors(&self.root) > 0 {
            assert!(Instant::now() < deadline, "descriptors left open");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Deterministic bytes that differ from block to block.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Whether the test runs as root, which some promises need.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
