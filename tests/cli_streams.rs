//! Streams of snapshots: whole and incremental, verified without keys, cut, changed and gone on with.
#![allow(clippy::unwrap_used)]

mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use programs::{Desk, SmallDisk, manifest};

/// A volume with two snapshots, `a` and `b`.
fn two_snapshots(label: &str) -> Desk {
    let desk = Desk::with_volume(label);
    let mnt = desk.mount();
    for n in 0..80 {
        let dir = mnt.join(format!("d{}", n % 4));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), vec![n as u8; n * 400]).unwrap();
    }
    fs::write(mnt.join("large"), vec![1; 5 << 20]).unwrap();
    fs::hard_link(mnt.join("d1/f5"), mnt.join("hard")).unwrap();
    symlink("d1", mnt.join("link")).unwrap();
    desk.kmsfs("snapshot create {mnt} a").ok();
    fs::File::options()
        .write(true)
        .open(mnt.join("large"))
        .unwrap()
        .write_all_at(b"change", 3 << 20)
        .unwrap();
    fs::remove_file(mnt.join("d2/f6")).unwrap();
    fs::rename(mnt.join("d3"), mnt.join("moved")).unwrap();
    fs::write(mnt.join("new"), "new").unwrap();
    fs::remove_file(mnt.join("link")).unwrap();
    fs::create_dir(mnt.join("link")).unwrap();
    fs::set_permissions(mnt.join("d1/f9"), fs::Permissions::from_mode(0o600)).unwrap();
    desk.kmsfs("snapshot create {mnt} b").ok();
    desk.umount();
    desk
}

#[test]
fn a_stream_and_what_changed_since_make_the_same_trees_without_a_key() {
    let desk = two_snapshots("stream");
    desk.stop_kmsd();
    desk.kmsfs("send {lower}@a --output {a.stream}").ok();
    desk.kmsfs("send {lower}@b --from a --output {b.stream}").ok();
    let (whole, part) = (desk.path("a.stream"), desk.path("b.stream"));
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(len(&part) < len(&whole) / 3, "{} {}", len(&part), len(&whole));
    desk.kmsfs("receive --check --input {b.stream}").ok();
    desk.kmsfs("receive {backup} --input {b.stream}").fails(1, "the base 'a' is not here");
    desk.kmsfs("receive {backup} --position a").fails(1, "nothing of 'a' has come yet");
    desk.kmsfs("receive {backup} --input {a.stream}").ok();
    desk.kmsfs("receive {backup} --position a").fails(1, "was received already");
    // What a kill behind the last step leaves goes with the same command.
    fs::write(desk.path("backup/.kmsfs.receive-a"), "").unwrap();
    fs::write(desk.path("backup/.kmsfs.t.room-a"), "").unwrap();
    desk.kmsfs("receive {backup} --input {a.stream}").fails(1, "was received already");
    assert_eq!(fs::read_dir(desk.path("backup")).unwrap().count(), 1);
    desk.kmsfs("receive {backup} --input {b.stream}").ok();
    for name in ["a", "b"] {
        let source = manifest(&desk.path(&format!("lower/.kmsfs.snapshots/{name}")));
        assert_eq!(manifest(&desk.path(&format!("backup/{name}"))), source, "{name}");
    }
    desk.kmsfs("fsck --structure-only {backup}/b").ok();
    desk.start_kmsd();
    assert!(!desk.kmsfs("fsck {backup}/b").ok().contains("remark"));
    fs::create_dir_all(desk.path("snap")).unwrap();
    desk.kmsfs("mount {backup}/b {snap} -o snapshot").ok();
    desk.adopt(desk.path("snap"));
    assert_eq!(fs::read(desk.path("snap/new")).unwrap(), b"new");
    desk.kmsfs("umount {snap}").ok();
}

#[test]
fn a_cut_stream_is_gone_on_with_and_a_changed_one_is_refused() {
    let desk = two_snapshots("stream-cut");
    desk.kmsfs("send {lower}@a --output {a.stream}").ok();
    let whole = fs::read(desk.path("a.stream")).unwrap();
    let expected = manifest(&desk.path("lower/.kmsfs.snapshots/a"));
    for part in [1, 3, 5, 7, 9] {
        let (cut, dir) = (whole.len() * part / 10, format!("backup{part}"));
        fs::write(desk.path("cut"), &whole[..cut]).unwrap();
        desk.kmsfs(&format!("receive {{{dir}}} --input {{cut}}")).fails(1, "the stream stops before its end");
        assert!(!desk.path(&dir).join("a").exists(), "what is cut is no snapshot");
        let position = desk.kmsfs(&format!("receive {{{dir}}} --position a")).ok();
        desk.kmsfs(&format!("send {{lower}}@a --resume {} --output {{rest}}", position.trim())).ok();
        // Lower names, and with them the order, are by chance: the large file may come first.
        assert!(part < 9 || fs::metadata(desk.path("rest")).unwrap().len() < whole.len() as u64);
        desk.kmsfs(&format!("receive {{{dir}}} --input {{rest}}")).ok();
        assert_eq!(manifest(&desk.path(&dir).join("a")), expected, "{part}");
        // Another snapshot's stream does not go on there.
        desk.kmsfs(&format!("send {{lower}}@b --resume {} --output {{rest}}", position.trim()))
            .fails(1, "is not the beginning of this stream");
    }
    for at in [0, 9, 40, whole.len() / 2, whole.len() - 20] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(desk.path("changed"), &changed).unwrap();
        assert_eq!(desk.kmsfs("receive --check --input {changed}").code, 1, "byte {at}");
    }
    desk.kmsfs("send {lower} --output {x}").fails(2, "VOLUME@SNAPSHOT");
    desk.kmsfs("send {lower}@a --from none --output {x}").fails(1, "there is no snapshot");
}

#[test]
fn a_stream_that_fills_the_disk_goes_on_once_there_is_room() {
    let desk = Desk::with_volume("stream-full");
    let mnt = desk.mount();
    for n in 0..80 {
        fs::write(mnt.join(format!("f{n}")), vec![n as u8; 60_000]).unwrap();
    }
    desk.kmsfs("snapshot create {mnt} a").ok();
    desk.kmsfs("send {lower}@a --output {a.stream}").ok();
    let disk = SmallDisk::mount(&desk);
    // A file of it has its name when it is whole; until then the one before stays.
    fs::write(desk.path("disk/kept"), "older").unwrap();
    desk.kmsfs("send {lower}@a --output {disk}/kept").fails(1, "No space left");
    assert_eq!(fs::read_to_string(desk.path("disk/kept")).unwrap(), "older");
    assert_eq!(fs::read_dir(desk.path("disk")).unwrap().count(), 1);
    fs::remove_file(desk.path("disk/kept")).unwrap();
    let receive = "receive {disk}/back --input {a.stream}";
    desk.kmsfs(receive).fails(1, "No space left").fails(1, "the same stream goes on there");
    let position = desk.kmsfs("receive {disk}/back --position a").ok();
    disk.grow();
    let back = desk.path("disk/back");
    let had = inodes(&back.join(".kmsfs.t.receive-a"));
    desk.kmsfs(receive).ok();
    let has = inodes(&back.join("a"));
    // The one that was being written is made anew.
    let stayed = had.iter().filter(|(path, inode)| has[*path] == **inode).count();
    assert!(stayed > 20 && stayed + 1 >= had.len(), "{stayed} of {} stayed, {position}", had.len());
    assert!(manifest(&back.join("a")) == manifest(&desk.path("lower/.kmsfs.snapshots/a")));
    let left: Vec<_> = fs::read_dir(&back).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a"]);
}

fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    let inode = |path: PathBuf| (path.clone(), root.join(path).symlink_metadata().unwrap().ino());
    manifest(root).into_keys().map(inode).collect()
}

#[test]
fn what_was_begun_of_one_stream_is_not_gone_on_with_by_another() {
    let desk = two_snapshots("stream-other");
    desk.kmsfs("send {lower}@a --output {a.stream}").ok();
    desk.kmsfs("send {lower}@b --output {whole}").ok();
    desk.kmsfs("send {lower}@b --from a --output {part}").ok();
    let whole = fs::read(desk.path("whole")).unwrap();
    fs::write(desk.path("cut"), &whole[..whole.len() / 2]).unwrap();
    desk.kmsfs("receive {back} --input {cut}").fails(1, "goes on there");
    desk.kmsfs("receive {back} --input {a.stream}").ok();
    desk.kmsfs("receive {back} --input {part}").ok();
    for name in ["a", "b"] {
        let source = manifest(&desk.path(&format!("lower/.kmsfs.snapshots/{name}")));
        assert!(manifest(&desk.path(&format!("back/{name}"))) == source, "{name}");
    }
}
