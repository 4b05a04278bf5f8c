//! Power cuts made by hand: the tree works, the lower files are put back to what a cut would leave, and the tree is
//! opened again.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod programs;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::{Volume, pattern};
use kmsfs::tree::{Asker, Caller, KeyUser, NewObject, ROOT_ID, Tree, WriteManner};
use programs::{Desk, eventually};

fn create(tree: &Arc<Tree>, name: &[u8]) -> u64 {
    let caller = Caller { uid: 0, gid: 0, pid: 0 };
    let new = NewObject { permissions: 0o600, umask: 0, caller };
    tree.create(ROOT_ID, name, new, true, KeyUser::Mount).unwrap().0.node_id
}

fn write(tree: &Tree, id: u64, at: u64, data: &[u8]) {
    tree.write(id, at, data, WriteManner::default(), Asker::Mount).unwrap();
}

/// The one lower file that holds ciphertext.
fn lower_file(volume: &Volume) -> std::path::PathBuf {
    let entries = std::fs::read_dir(volume.lower()).unwrap().map(|entry| entry.unwrap().path());
    let ours = |path: &std::path::PathBuf| !path.file_name().unwrap().to_string_lossy().starts_with(".kmsfs");
    let found: Vec<_> = entries.filter(ours).collect();
    assert_eq!(found.len(), 1);
    found[0].clone()
}

/// A file of 4,050 bytes, synced, whose last 50 are in the log alone.
fn cut_after_a_synced_append() -> (Volume, Vec<u8>) {
    let volume = Volume::new("cuts");
    let data = pattern(4050, 1);
    {
        let tree = volume.tree(false);
        let id = create(&tree, b"file");
        write(&tree, id, 0, &data[..4000]);
        tree.sync_file(id, true).unwrap();
        let before = std::fs::read(lower_file(&volume)).unwrap();
        write(&tree, id, 4000, &data[4000..]);
        tree.sync_file(id, true).unwrap();
        std::fs::write(lower_file(&volume), before).unwrap();
    }
    (volume, data)
}

#[test]
fn the_size_that_a_look_up_tells_after_a_cut_is_the_repaired_one() {
    for read_only in [true, false] {
        let (volume, data) = cut_after_a_synced_append();
        let tree = volume.tree(read_only);
        let (attr, _) = tree.look_up(ROOT_ID, b"file").unwrap();
        assert_eq!(attr.size, 4050, "read-only: {read_only}");
        let mut back = Vec::new();
        tree.read(attr.node_id, 0, 10_000, Asker::Mount, &mut back).unwrap();
        assert_eq!(back, data);
    }
}

#[test]
fn a_file_to_be_repaired_whose_key_is_refused_can_be_removed() {
    use std::sync::atomic::Ordering;
    let (volume, _) = cut_after_a_synced_append();
    let tree = volume.tree(false);
    volume.keys.disabled.store(true, Ordering::Relaxed);
    // It will not open either, and can be removed.
    assert!(tree.look_up(ROOT_ID, b"file").unwrap().0.size < 4050);
    tree.unlink(ROOT_ID, b"file").unwrap();
}

#[test]
fn a_directory_whose_removal_was_cut_short_is_no_damage_and_can_be_used() {
    let desk = Desk::with_volume("half-removed");
    let mnt = desk.mount();
    std::fs::create_dir(mnt.join("dir")).unwrap();
    desk.umount();
    let entries = std::fs::read_dir(desk.path("lower")).unwrap().map(|entry| entry.unwrap().path());
    let record = entries.map(|path| path.join(".kmsfs.dir")).find(|record| record.is_symlink()).unwrap();
    std::fs::remove_file(record).unwrap();
    desk.kmsfs("fsck {lower}").ok();
    desk.mount();
    std::fs::write(mnt.join("dir/file"), "in it").unwrap();
    assert_eq!(std::fs::read_to_string(mnt.join("dir/file")).unwrap(), "in it");
    desk.umount();
    assert!(!desk.kmsfs("fsck {lower}").ok().contains("remark"));
}

#[test]
fn a_new_file_whose_header_a_cut_took_is_empty_and_no_damage() {
    let desk = Desk::with_volume("headless");
    let mnt = desk.mount();
    std::fs::write(mnt.join("file"), pattern(10_000, 1)).unwrap();
    desk.kill_mount();
    eventually("the dead mount shows", || std::fs::read_dir(&mnt).is_err());
    desk.umount();
    let lower = std::fs::OpenOptions::new().write(true).open(&desk.lower_files()[0]).unwrap();
    lower.write_all_at(&[0; 4096], 0).unwrap();
    desk.kmsfs("fsck {lower}").ok();
    // A mount that does not look at it leaves it as it is.
    desk.mount();
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
    desk.mount();
    assert_eq!(std::fs::read(mnt.join("file")).unwrap(), b"");
    desk.umount();
}
