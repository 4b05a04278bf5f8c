//! Where sockets and logs of running mounts lie.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::CliError;

const SYSTEM: &str = "/run/kmsfs";

/// The directory of this user's mounts.
pub fn own() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from(SYSTEM);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    runtime.map_or_else(|| std::env::temp_dir().join(format!("kmsfs-{uid}")), |dir| dir.join("kmsfs"))
}

/// Every directory that may hold sockets this user can reach.
pub fn all() -> Vec<PathBuf> {
    let own = own();
    let system = PathBuf::from(SYSTEM);
    if own == system { vec![own] } else { vec![own, system] }
}

/// Makes the directory of this user's mounts; refuses one that somebody else put there.
pub fn make() -> Result<PathBuf, CliError> {
    let dir = own();
    let failed = |e: std::io::Error| CliError::failed(format!("cannot make {}: {e}", dir.display()));
    // The system's holds the key daemon's socket too, which others must reach.
    let mode = if dir == Path::new(SYSTEM) { 0o755 } else { 0o700 };
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(&dir).map_err(failed)?;
    let stat = std::fs::symlink_metadata(&dir).map_err(failed)?;
    let ours = stat.is_dir() && stat.uid() == rustix::process::geteuid().as_raw() && stat.mode() & 0o022 == 0;
    if !ours {
        let why = "belongs to somebody else, or others can write there";
        return Err(CliError::failed(format!("{} {why}", dir.display())));
    }
    Ok(dir)
}

/// A name that tells this mount point's socket and log from others'.
pub fn stem(mountpoint: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    mountpoint.hash(&mut hasher);
    format!("mount-{:016x}", hasher.finish())
}
