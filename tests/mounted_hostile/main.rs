//! Somebody edits the lower tree of a real volume; what a mount, a rewrap and the check make of it.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../programs/mod.rs"]
mod programs;

mod bound;
mod keys;
mod moves;
mod names;
mod planted;
mod repair;
mod replays;
mod rows;
mod victim;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use programs::Desk;

impl Desk {
    /// The lower file or directory of a path in the mount, which must be mounted.
    fn lower_of(&self, plain: &str) -> PathBuf {
        let info = self.kmsfs(&format!("info {{mnt}}/{plain} --json")).json();
        PathBuf::from(info["lower_path"].as_str().unwrap())
    }

    /// The lower entry in the lower root of what stands in the root of the mount: it has the same inode number.
    fn lower_entry_of(&self, plain: &str) -> PathBuf {
        let number = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let inode = number(&self.path("mnt").join(plain));
        let mut entries = fs::read_dir(self.path("lower")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| number(path) == inode).unwrap()
    }

    /// The lower directory that holds `plain`.
    fn lower_parent_of(&self, plain: &str) -> PathBuf {
        self.lower_of(plain).parent().unwrap().to_owned()
    }

    /// Everything in the log of the mount, which was started with [`Desk::mount_logging`].
    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Ends the daemon of the mount with no warning, and takes the dead mount away.
    fn crash(&self) {
        self.kill_mount();
        self.kmsfs("umount {mnt} --lazy");
        programs::eventually("the mount is gone", || {
            !fs::read_to_string("/proc/self/mounts").unwrap().contains(self.path("mnt").to_str().unwrap())
        });
    }

    /// Mounts `lower` at `mnt` with a log at `log`.
    fn mount_logging(&self) -> PathBuf {
        let mountpoint = self.path("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        self.kmsfs("mount {lower} {mnt} --log {log}").ok();
        self.adopt(mountpoint.clone());
        mountpoint
    }
}

/// The names that a listing gives before it ends, and how it ends.
fn list(dir: &Path) -> (Vec<String>, std::io::Result<()>) {
    let mut names = Vec::new();
    let mut end = Ok(());
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) => names.push(entry.file_name().into_string().unwrap()),
                    Err(e) => end = Err(e),
                }
            }
        }
        Err(e) => end = Err(e),
    }
    names.sort();
    (names, end)
}

/// The errno of a failure.
#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}
