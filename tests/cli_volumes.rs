//! Volumes by name, and block volumes: their whole life, and every kind of bad input.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use programs::{Desk, Said, run};
use serde_json::Value;

/// Runs `kmsfs volume` with the desk's own registry.
fn volume(desk: &Desk, line: &str) -> Said {
    run(desk.command_of(&format!("volume {line}")).env("KMSFS_STATE_DIR", desk.path("registry")))
}

#[test]
fn a_volume_is_made_attached_described_and_deleted_by_name() {
    let desk = Desk::new("volumes");
    let arn = desk.key("k");
    volume(&desk, "list").ok();
    volume(&desk, "defaults --key alias/k").ok();
    let made = volume(&desk, "create projects --json").ok();
    assert!(made.contains(&arn), "the host's default key: {made}");
    assert_eq!(fs::metadata(desk.path("registry")).unwrap().mode() & 0o777, 0o700);
    volume(&desk, "create projects").fails(1, "already");
    volume(&desk, "create ../x").fails(2, "cannot be taken");

    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    volume(&desk, "attach projects {mnt}").ok();
    fs::write(mnt.join("file"), "data").unwrap();
    volume(&desk, "attach projects {mnt}").fails(6, "is attached at");
    volume(&desk, "forget projects").fails(6, "is attached at");
    volume(&desk, "delete projects --yes").fails(6, "is attached at");
    let listed = volume(&desk, "list --json").json();
    assert_eq!(listed[0]["attached"], mnt.to_str().unwrap());
    volume(&desk, "detach projects").ok();
    volume(&desk, "detach projects").fails(1, "is not attached");

    // A mount that was killed stays in the kernel's table until the volume is detached.
    volume(&desk, "attach projects {mnt}").ok();
    fs::write(mnt.join("more"), "data").unwrap();
    desk.kill_mount();
    programs::eventually("the dead mount shows", || {
        fs::read_dir(&mnt).map_or(true, |mut dir| dir.next().is_some_and(|entry| entry.is_err()))
    });
    let listed = volume(&desk, "list");
    assert!(
        listed.out.contains("mount-gone") && listed.err.contains("'kmsfs volume detach projects'"),
        "{listed:?}"
    );
    let described = volume(&desk, "describe projects --json").json();
    assert_eq!((&described["state"], &described["attached"]), (&"mount-gone".into(), &Value::Null));
    volume(&desk, "delete projects --yes").fails(6, "its mount was killed");
    let said = volume(&desk, "detach projects");
    assert!(said.code == 0 && said.err.contains("had ended without being detached"), "{said:?}");
    volume(&desk, "detach projects").fails(1, "is not attached");

    // So does the next attach.
    volume(&desk, "attach projects {mnt}").ok();
    desk.kill_mount();
    let said = volume(&desk, "attach projects {mnt}");
    assert!(said.code == 0 && said.err.contains("had ended without being detached"), "{said:?}");
    assert_eq!(volume(&desk, "list --json").json()[0]["state"], "in-use");
    volume(&desk, "detach projects").ok();

    // With a key of one's own, which the volume learns, and no other one afterwards.
    fs::write(desk.path("own.key"), [9; 32]).unwrap();
    fs::write(desk.path("other.key"), [8; 32]).unwrap();
    volume(&desk, "attach projects {mnt} --customer-key own={own.key}").ok();
    desk.kmsfs("cp --customer-key own {mnt}/file {mnt}/copy").ok();
    volume(&desk, "detach projects").ok();
    volume(&desk, "attach projects {mnt} --customer-key own={other.key}").fails(4, "'own'");
    volume(&desk, "attach projects {mnt} --customer-key own={own.key}").ok();
    assert_eq!(fs::read_to_string(mnt.join("copy")).unwrap(), "data");
    volume(&desk, "detach projects").ok();
    let described = volume(&desk, "describe projects --json").json();
    assert_eq!((&described["state"], &described["record_key"]), (&"available".into(), &arn.as_str().into()));

    let lower = described["volume"]["lower"].as_str().unwrap().to_owned();
    volume(&desk, "delete projects").fails(2, "--yes");
    assert!(Path::new(&lower).exists());
    volume(&desk, "delete projects --yes").ok();
    assert!(!Path::new(&lower).exists());
    volume(&desk, "describe projects").fails(3, "there is no volume 'projects'");
}

#[test]
fn a_volume_that_is_there_is_taken_up_and_forgotten() {
    let desk = Desk::with_volume("volumes-add");
    volume(&desk, "add old {lower}").ok();
    volume(&desk, "add again {lower}").fails(1, "is the volume 'old' already");
    volume(&desk, "add none {home}").fails(3, "is not a volume");
    volume(&desk, "forget old").ok();
    assert!(desk.path("lower/.kmsfs.volume").exists());
    volume(&desk, "forget old").fails(3, "there is no volume");
}

/// Makes the entry of `name` that of a volume whose making was cut.
fn cut_the_making_of(desk: &Desk, name: &str) {
    let path = desk.path(&format!("registry/volumes/{name}.json"));
    let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    entry["state"] = "creating".into();
    // The key stands there as it was named until all is made.
    entry["key_arn"] = "alias/k".into();
    fs::write(&path, entry.to_string()).unwrap();
}

/// Kills the making of `name` where the key is asked for, which a daemon that stands still holds up.
fn kill_the_making_of(desk: &Desk, name: &str, options: &str) {
    let frozen = desk.freeze_kmsd();
    let mut making = desk.command_of(&format!("volume create {name} --key alias/k{options}"));
    let mut making = making.env("KMSFS_STATE_DIR", desk.path("registry")).spawn().unwrap();
    let entry = desk.path(&format!("registry/volumes/{name}.json"));
    programs::eventually("it is noted", || entry.exists());
    making.kill().unwrap();
    making.wait().unwrap();
    drop(frozen);
}

#[test]
fn a_volume_whose_making_was_cut_is_no_volume_and_the_same_command_makes_it() {
    let desk = Desk::new("volumes-cut");
    desk.key("k");
    kill_the_making_of(&desk, "cut", "");
    assert_eq!(volume(&desk, "list --json").json()[0]["state"], "creating");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    volume(&desk, "attach cut {mnt}").fails(3, "'kmsfs volume create cut' ends that");
    volume(&desk, "resize cut 1G").fails(3, "is being made");
    volume(&desk, "create cut --key alias/k").ok();

    // Cut behind the record, before it, and with something of somebody else's in its place.
    let lower = desk.path("registry/data/cut");
    let first = fs::read(lower.join(".kmsfs.volume")).unwrap();
    cut_the_making_of(&desk, "cut");
    volume(&desk, "create cut --key alias/k").ok();
    assert_eq!(fs::read(lower.join(".kmsfs.volume")).unwrap(), first, "what was whole is kept");
    cut_the_making_of(&desk, "cut");
    fs::remove_file(lower.join(".kmsfs.volume")).unwrap();
    fs::remove_file(lower.join(".kmsfs.volume.bak")).unwrap();
    fs::write(lower.join("letter"), "mine").unwrap();
    volume(&desk, "create cut --key alias/k").fails(1, "'kmsfs volume forget cut'");
    assert_eq!(fs::read_to_string(lower.join("letter")).unwrap(), "mine");
    fs::remove_file(lower.join("letter")).unwrap();
    volume(&desk, "create cut --key alias/k").ok();
    assert_ne!(fs::read(lower.join(".kmsfs.volume")).unwrap(), first);
    cut_the_making_of(&desk, "cut");
    volume(&desk, "delete cut --yes").ok();
    assert!(!lower.exists());
}

#[test]
fn what_came_to_be_in_the_place_of_a_volume_whose_making_was_cut_is_not_deleted() {
    let desk = Desk::new("volumes-foreign");
    desk.key("k");
    kill_the_making_of(&desk, "cut", " --at {data}");
    fs::create_dir_all(desk.path("data")).unwrap();
    fs::write(desk.path("data/letter"), "mine").unwrap();
    volume(&desk, "delete cut --yes").fails(1, "'kmsfs volume forget cut'");
    assert_eq!(fs::read_to_string(desk.path("data/letter")).unwrap(), "mine");
    assert_eq!(volume(&desk, "list --json").json()[0]["state"], "creating");
    fs::remove_file(desk.path("data/letter")).unwrap();
    volume(&desk, "delete cut --yes").ok();
    assert!(!desk.path("data").exists());
    volume(&desk, "describe cut").fails(3, "there is no volume");
}

#[test]
fn a_volume_that_was_used_before_its_making_was_ended_keeps_what_it_holds() {
    let desk = Desk::new("volumes-used");
    desk.key("k");
    let other = desk.key("other");
    let sheet = volume(&desk, "create cut --key alias/k --json").json()["recovery_sheet"].clone();
    cut_the_making_of(&desk, "cut");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    desk.kmsfs("mount {registry}/data/cut {mnt}").ok();
    fs::write(mnt.join("letter"), "mine").unwrap();

    volume(&desk, "delete cut --yes").fails(6, "in use");
    assert_eq!(volume(&desk, "list --json").json()[0]["state"], "creating");
    volume(&desk, &format!("create cut --key {other}")).fails(1, "another --key");
    volume(&desk, "create cut --size 5G").fails(1, "another --size");
    volume(&desk, "create cut --at {mnt}").fails(1, "another --at");
    volume(&desk, "create cut --bind-names").fails(1, "another --bind-names");
    // Mounted or not, with its record as it was or with one copy lost.
    volume(&desk, "create cut").ok();
    assert_eq!(volume(&desk, "list --json").json()[0]["state"], "in-use");
    cut_the_making_of(&desk, "cut");
    fs::rename(desk.path("registry/data/cut/.kmsfs.volume"), desk.path("record")).unwrap();
    volume(&desk, "create cut").fails(6, "in use");
    volume(&desk, "delete cut --yes").fails(6, "in use");
    desk.kmsfs("umount {mnt}").ok();
    volume(&desk, "create cut").fails(1, "'kmsfs volume forget cut'");
    volume(&desk, "delete cut --yes").fails(1, "'kmsfs volume forget cut'");
    fs::rename(desk.path("record"), desk.path("registry/data/cut/.kmsfs.volume")).unwrap();
    // The sheet is written anew where it is missing.
    let sheet = Path::new(sheet.as_str().unwrap());
    let text = fs::read(sheet).unwrap();
    fs::remove_file(sheet).unwrap();
    volume(&desk, "create cut --key alias/k").ok();
    assert_eq!(fs::read(sheet).unwrap(), text);
    volume(&desk, "attach cut {mnt}").ok();
    assert_eq!(fs::read_to_string(mnt.join("letter")).unwrap(), "mine");
    volume(&desk, "detach cut").ok();
}

#[test]
fn a_quota_that_was_noted_and_perhaps_never_set_does_not_keep_a_volume_from_being_made_or_deleted() {
    let desk = Desk::new("volumes-quota-cut");
    desk.key("k");
    let note_quota = || {
        let path = desk.path("registry/volumes/cut.json");
        let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        entry["quota"] = serde_json::json!({ "bytes": 8 << 20, "project": 0x6b6d_0000 });
        fs::write(&path, entry.to_string()).unwrap();
    };
    kill_the_making_of(&desk, "cut", "");
    note_quota();
    volume(&desk, "create cut --key alias/k").ok();
    assert_eq!(volume(&desk, "describe cut --json").json()["volume"]["quota"], Value::Null);
    volume(&desk, "delete cut --yes").ok();
    kill_the_making_of(&desk, "cut", "");
    note_quota();
    volume(&desk, "delete cut --yes").ok();
    assert!(!desk.path("registry/data/cut").exists());
}

#[test]
fn an_entry_of_another_volume_deletes_nothing_and_a_damaged_one_is_told() {
    let desk = Desk::with_volume("volumes-swap");
    volume(&desk, "add mine {lower}").ok();
    fs::rename(desk.path("lower"), desk.path("moved")).unwrap();
    desk.kmsfs("init {lower} --key alias/k").ok();
    volume(&desk, "delete mine --yes").fails(3, "holds another volume");
    assert!(desk.path("lower/.kmsfs.volume").exists());
    fs::write(desk.path("registry/volumes/mine.json"), "{").unwrap();
    volume(&desk, "attach mine {home}").fails(3, "cannot be read");
    assert!(volume(&desk, "list").err.contains("cannot be read"));
}

#[test]
fn a_quota_that_the_lower_filesystem_cannot_keep_is_refused_and_leaves_nothing() {
    let desk = Desk::new("volumes-quota");
    desk.key("k");
    let said = volume(&desk, "create small --key alias/k --size 50M");
    if said.code == 0 {
        return; // This filesystem has project quotas.
    }
    said.fails(1, "project quotas");
    assert!(!desk.path("registry/data/small").exists());
    volume(&desk, "describe small").fails(3, "there is no volume");
}

/// Whether loop devices and the formatter are to be had here.
fn can_block(fs: &str) -> bool {
    let mkfs = ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(format!("mkfs.{fs}")).exists());
    rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists() && mkfs
}

fn system(program: &str, args: &[&str]) -> Said {
    run(Command::new(program).args(args))
}

#[test]
fn a_block_volume_holds_a_filesystem_gives_back_space_and_grows() {
    for filesystem in ["ext4", "xfs"] {
        if !can_block(filesystem) {
            continue;
        }
        let desk = Desk::new("volumes-block");
        desk.key("k");
        volume(&desk, "create tiny --key alias/k --block 1M").fails(2, "at least");
        volume(&desk, "describe tiny").fails(3, "there is no volume");
        volume(&desk, &format!("create disk --key alias/k --block 320M --fs {filesystem}")).ok();
        let mnt = desk.path("mnt");
        fs::create_dir(&mnt).unwrap();
        volume(&desk, "attach disk").fails(2, "name a mount point");
        volume(&desk, "attach disk {registry}").fails(7, "is not empty");
        volume(&desk, "attach disk {none}").fails(7, "does not exist");
        volume(&desk, "attach disk {mnt}").ok();
        let _guard = Detach(&desk);
        volume(&desk, "attach disk {mnt}").fails(6, "is attached at");

        let lower = desk.path("registry/data/disk");
        let before = allocated(&lower);
        let file = fs::File::create(mnt.join("big")).unwrap();
        for n in 0..40_u64 {
            file.write_all_at(&vec![n as u8 + 1; 1 << 20], n << 20).unwrap();
        }
        file.sync_all().unwrap();
        drop(file);
        let full = allocated(&lower);
        assert!(full > before + (35 << 20), "{before} {full}");
        fs::remove_file(mnt.join("big")).unwrap();
        system("sync", &["--file-system", mnt.to_str().unwrap()]).ok();
        system("fstrim", &[mnt.to_str().unwrap()]).ok();
        programs::eventually("discarded space is given back", || allocated(&lower) < full - (30 << 20));

        volume(&desk, "resize disk 100M").fails(2, "cannot be made smaller");
        let grown = volume(&desk, "resize disk 400M");
        // ext4 grows only for who has CAP_SYS_RESOURCE, which containers may lack.
        assert!(
            grown.code == 0 || grown.err.contains("detach the volume, and the same command"),
            "{grown:?}"
        );
        fs::write(mnt.join("kept"), vec![7; 100_000]).unwrap();
        // Cut between the steps of a detachment.
        system("umount", &[mnt.to_str().unwrap()]).ok();
        programs::eventually("the device is gone", || {
            volume(&desk, "list --json").json()[0]["state"] == "in-part"
        });
        volume(&desk, "attach disk {mnt}").fails(6, "'kmsfs volume detach disk'");
        volume(&desk, "detach disk").ok();
        assert_eq!(volume(&desk, "list --json").json()[0]["state"], "available");
        volume(&desk, "resize disk 500M").ok();
        desk.kmsfs("fsck {registry}/data/disk").ok();
        volume(&desk, "attach disk {mnt}").ok();
        assert_eq!(fs::read(mnt.join("kept")).unwrap(), vec![7; 100_000]);
        let stat = rustix::fs::statvfs(&mnt).unwrap();
        assert!(stat.f_blocks * stat.f_frsize > 420 << 20, "{filesystem} has {} blocks", stat.f_blocks);
        volume(&desk, "detach disk").ok();
        volume(&desk, "delete disk --yes").ok();
    }
}

#[test]
fn the_making_of_a_block_volume_is_gone_on_with_where_it_was_cut() {
    if !can_block("ext4") {
        return;
    }
    let desk = Desk::new("volumes-block-made");
    desk.key("k");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    volume(&desk, "create disk --key alias/k --block 32M").ok();
    // Cut while the filesystem was made.
    cut_the_making_of(&desk, "disk");
    desk.kmsfs("mount {registry}/data/disk {mnt}").ok();
    fs::remove_file(mnt.join("disk.img")).unwrap();
    fs::write(mnt.join("disk.img.unfinished"), "half").unwrap();
    volume(&desk, "create disk").fails(6, "in use");
    assert!(mnt.join("disk.img.unfinished").exists(), "a mount that is not its own stays");
    desk.kmsfs("umount {mnt}").ok();
    volume(&desk, "create disk --block 64M").fails(1, "another --block");
    volume(&desk, "create disk --key alias/k --block 32M").ok();
    volume(&desk, "attach disk {mnt} --own-right").ok();
    let _guard = Detach(&desk);
    fs::write(mnt.join("letter"), "mine").unwrap();
    // Cut behind that: it is detached, and keeps its filesystem.
    cut_the_making_of(&desk, "disk");
    volume(&desk, "create disk").ok();
    volume(&desk, "attach disk {mnt} --own-right").ok();
    assert_eq!(fs::read_to_string(mnt.join("letter")).unwrap(), "mine");
    // A mount that the making left does not keep it from being deleted.
    cut_the_making_of(&desk, "disk");
    volume(&desk, "delete disk --yes").ok();
    assert!(!desk.path("registry/data/disk").exists());
}

struct Detach<'a>(&'a Desk);

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        let _ = volume(self.0, "detach disk");
    }
}

#[test]
fn what_was_written_on_a_block_volume_is_in_its_snapshot_and_a_copy_of_that_is_a_block_volume() {
    if !can_block("ext4") {
        return;
    }
    let desk = Desk::new("volumes-block-copy");
    desk.key("k");
    desk.key("other");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    volume(&desk, "create disk --key alias/k --block 32M").ok();
    volume(&desk, "attach disk {mnt}").ok();
    let _guard = Detach(&desk);
    // Not synced by anybody: the filesystem on the volume holds it back.
    fs::write(mnt.join("kept"), vec![7; 100_000]).unwrap();
    run(desk.command_of("snapshot create {mnt} one").env("KMSFS_STATE_DIR", desk.path("registry"))).ok();
    fs::remove_file(mnt.join("kept")).unwrap();
    volume(&desk, "detach disk").ok();

    run(desk
        .command_of("copy disk@one {copy} --key alias/other")
        .env("KMSFS_STATE_DIR", desk.path("registry")))
    .ok();
    volume(&desk, "delete disk --yes").ok();
    volume(&desk, "add disk {copy} --block").ok();
    let described = volume(&desk, "describe disk --json").json();
    assert_eq!(described["volume"]["block"], serde_json::json!({ "bytes": 32 << 20, "filesystem": "ext4" }));
    volume(&desk, "attach disk {mnt}").ok();
    assert_eq!(fs::read(mnt.join("kept")).unwrap(), vec![7; 100_000]);
    volume(&desk, "attach disk {mnt} --idle 1m").fails(6, "is attached at");
    volume(&desk, "detach disk").ok();
    volume(&desk, "attach disk {mnt} --idle 1m").fails(2, "takes no --idle");
    let said = volume(&desk, "forget disk").ok();
    assert!(said.contains("'kmsfs volume add --block'"), "{said}");
    desk.kmsfs("init {plain} --key alias/k").ok();
    volume(&desk, "add disk {plain} --block").fails(3, "holds no block volume");
    volume(&desk, "describe disk").fails(3, "there is no volume");
}

/// Bytes that a tree takes on disk.
fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| path.symlink_metadata().unwrap().blocks() * 512).sum()
}
