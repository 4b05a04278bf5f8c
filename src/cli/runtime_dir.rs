//! Where sockets and logs of running mounts lie.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::CliError;

const SYSTEM: &str = "/run/kmsfs";
/// Logs of ended mounts that are kept.
const OLD_LOGS_MAX: usize = 16;

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

/// Where the mount at `mountpoint` keeps its log.
pub fn log_of(mountpoint: &Path) -> Result<PathBuf, CliError> {
    let dir = make()?;
    bound_logs(&dir);
    Ok(dir.join(format!("{}.log", stem(mountpoint))))
}

/// Removes the oldest logs of mounts that have ended, but for a few.
fn bound_logs(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let is_old = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let is_log = name.and_then(|name| name.strip_prefix("mount-")?.strip_suffix(".log")).is_some();
        is_log && !path.with_extension("sock").exists()
    };
    let logs = entries.flatten().map(|entry| entry.path()).filter(|path| is_old(path));
    let dated = |path: PathBuf| Some((std::fs::symlink_metadata(&path).ok()?.modified().ok()?, path));
    let mut logs: Vec<_> = logs.filter_map(dated).collect();
    logs.sort();
    for (_, path) in logs.iter().take(logs.len().saturating_sub(OLD_LOGS_MAX)) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_logs_and_those_of_living_mounts_stay() {
        let dir = std::env::temp_dir().join(format!("kmsfs-logs-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let put = |name: &str, age: u64| {
            let file = std::fs::File::create(dir.join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - age))
                .unwrap();
        };
        for number in 0..OLD_LOGS_MAX as u64 + 5 {
            put(&format!("mount-{number:016x}.log"), number);
        }
        put("mount-a.log", 900);
        put("mount-a.sock", 900);
        put("kmsd.log", 900);
        bound_logs(&dir);
        let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let mut expected: Vec<_> =
            (0..OLD_LOGS_MAX).map(|number| format!("mount-{number:016x}.log").into()).collect();
        expected.extend(["mount-a.log", "mount-a.sock", "kmsd.log"].map(std::ffi::OsString::from));
        expected.sort();
        assert_eq!(left, expected);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
