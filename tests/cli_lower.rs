//! Lower filesystems that say no: a full disk, and one that became read-only.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use programs::Desk;

/// How long the space of a removed file may take to come back.
const SPACE_TIMEOUT: Duration = Duration::from_secs(10);

/// A small filesystem of its own below the desk, taken away on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(desk: &Desk) -> Self {
        let dir = desk.path("disk");
        fs::create_dir(&dir).unwrap();
        sh(&["mount", "-t", "tmpfs", "-o", "size=3m", "kmsfs-test", dir.to_str().unwrap()]);
        Self(dir)
    }

    fn make_read_only(&self) {
        sh(&["mount", "-o", "remount,ro", self.0.to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, it goes when the mount above it is gone too, also when the test fails.
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

fn sh(words: &[&str]) {
    assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{words:?}");
}

#[test]
fn a_full_disk_is_told_costs_nothing_and_work_goes_on_after_it() {
    let desk = Desk::new("full");
    desk.key("k");
    let disk = SmallDisk::mount(&desk);
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.kmsfs("init {disk}/v --key alias/k").ok();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    desk.adopt(mnt.clone());
    fs::write(mnt.join("old"), "kept").unwrap();
    File::open(mnt.join("old")).unwrap().sync_all().unwrap();
    let mut big = File::create(mnt.join("big")).unwrap();
    let written = (0..160).try_for_each(|_| big.write_all(&vec![7; 65536])).and_then(|()| big.sync_all());
    assert_eq!(written.unwrap_err().kind(), ErrorKind::StorageFull);
    drop(big);
    assert_eq!(fs::read_to_string(mnt.join("old")).unwrap(), "kept");
    fs::remove_file(mnt.join("big")).unwrap();
    // The kernel tells the last close of a file in its own time; until then its space is not free.
    let deadline = Instant::now() + SPACE_TIMEOUT;
    let write_new = || {
        let mut new = File::create(mnt.join("new"))?;
        new.write_all(&vec![5; 500_000]).and_then(|()| new.sync_all())
    };
    while let Err(e) = write_new() {
        assert!(e.kind() == ErrorKind::StorageFull && Instant::now() < deadline, "no space came back: {e}");
    }
    desk.kmsfs("umount {mnt}").ok();
    desk.kmsfs("fsck {disk}/v").ok();
    disk.make_read_only();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    assert_eq!(fs::read(mnt.join("new")).unwrap(), vec![5; 500_000]);
    assert_eq!(fs::read_to_string(mnt.join("old")).unwrap(), "kept");
    assert_eq!(fs::write(mnt.join("x"), "y").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    desk.kmsfs("umount {mnt}").ok();
}
