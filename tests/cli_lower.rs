//! Lower filesystems that say no: a full disk, and one that became read-only.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use programs::{Desk, SmallDisk, eventually};

/// A mounted volume on a small disk.
fn on_small_disk(label: &str) -> (Desk, SmallDisk, PathBuf) {
    let desk = Desk::new(label);
    desk.key("k");
    let disk = SmallDisk::mount(&desk);
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.kmsfs("init {disk}/v --key alias/k").ok();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    desk.adopt(mnt.clone());
    (desk, disk, mnt)
}

#[test]
fn a_full_disk_is_told_costs_nothing_and_work_goes_on_after_it() {
    let (desk, disk, mnt) = on_small_disk("full");
    fs::write(mnt.join("old"), "kept").unwrap();
    File::open(mnt.join("old")).unwrap().sync_all().unwrap();
    let mut big = File::create(mnt.join("big")).unwrap();
    let written = (0..160).try_for_each(|_| big.write_all(&vec![7; 65536])).and_then(|()| big.sync_all());
    assert_eq!(written.unwrap_err().kind(), ErrorKind::StorageFull);
    drop(big);
    assert_eq!(fs::read_to_string(mnt.join("old")).unwrap(), "kept");
    fs::remove_file(mnt.join("big")).unwrap();
    // The kernel tells the last close of a file in its own time; until then its space is not free.
    let write_new = || {
        let mut new = File::create(mnt.join("new"))?;
        new.write_all(&vec![5; 500_000]).and_then(|()| new.sync_all())
    };
    eventually("space comes back", || match write_new() {
        Ok(()) => true,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::StorageFull);
            false
        }
    });
    desk.kmsfs("umount {mnt}").ok();
    desk.kmsfs("fsck {disk}/v").ok();
    disk.make_read_only();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    assert_eq!(fs::read(mnt.join("new")).unwrap(), vec![5; 500_000]);
    assert_eq!(fs::read_to_string(mnt.join("old")).unwrap(), "kept");
    assert_eq!(fs::write(mnt.join("x"), "y").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    desk.kmsfs("umount {mnt}").ok();
}

/// Writes past the kernel's cache, one after the other, until the disk is full; gives the bytes that were taken.
fn fill_directly(path: &Path) -> Vec<u8> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut taken = Vec::new();
    let refused = loop {
        let piece = vec![taken.len() as u8 | 1; 100_001];
        match file.write_at(&piece, taken.len() as u64) {
            Ok(written) => taken.extend_from_slice(&piece[..written]),
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    // Behind a gap: what is refused fills up no end of the file either.
    let far = file.write_at(&vec![1; 1 << 20], (taken.len() as u64).next_multiple_of(4096) + 8192);
    assert_eq!(far.unwrap_err().kind(), ErrorKind::StorageFull);
    let mut back = vec![0; taken.len() + 4096];
    let read = file.read_at(&mut back, 0).unwrap();
    assert!(back[..read] == taken, "{read} bytes of {}", taken.len());
    taken
}

#[test]
fn what_a_full_disk_takes_is_told_to_the_byte_and_it_can_be_mounted_and_emptied() {
    let (desk, disk, mnt) = on_small_disk("exact");
    let taken = fill_directly(&mnt.join("direct"));
    // Whoever writes for ever is told, although the kernel collects what is written.
    let mut endless = File::create(mnt.join("endless")).unwrap();
    let piece = vec![7; 65_536];
    let refused = (0..16_384).find_map(|_| endless.write_all(&piece).err());
    assert_eq!(refused.expect("a gibibyte fits nowhere here").kind(), ErrorKind::StorageFull);
    drop(endless);
    assert!(File::open(mnt.join("endless")).unwrap().metadata().unwrap().len() < 3 << 20);
    // And so full that nothing at all fits.
    let mut filler = File::create(disk.0.join("filler")).unwrap();
    while filler.write_all(&[1; 512]).is_ok() {}
    desk.kill_mount();
    eventually("the dead mount shows", || fs::read_dir(&mnt).is_err());
    desk.umount();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    assert!(fs::read(mnt.join("direct")).unwrap() == taken);
    fs::remove_file(mnt.join("direct")).unwrap();
    eventually("there is room again", || {
        fs::write(mnt.join("new"), "x").and_then(|()| File::open(mnt.join("new"))?.sync_all()).is_ok()
    });
    desk.umount();
    desk.kmsfs("fsck {disk}/v").ok();
}
