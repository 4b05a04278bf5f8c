//! What is planted under the names of our own files keeps no volume from being mounted or rewrapped.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::programs::Desk;

/// Things that are not a regular file of ours.
const KINDS: [&str; 4] = ["fifo", "directory", "dangling link", "huge"];

fn plant(place: &Path, kind: &str) {
    match kind {
        "fifo" => {
            let made = std::process::Command::new("mkfifo").arg(place).status().unwrap();
            assert!(made.success());
        }
        "directory" => fs::create_dir_all(place.join("full")).unwrap(),
        "dangling link" => symlink("/nowhere/at/all", place).unwrap(),
        _ => File::create(place).unwrap().set_len(1 << 40).unwrap(),
    }
}

fn take_away(place: &Path) {
    let _ = fs::remove_dir_all(place);
    let _ = fs::remove_file(place);
}

fn desk_with_a_file(label: &str) -> Desk {
    let desk = Desk::with_volume(label);
    let mnt = desk.mount();
    fs::write(mnt.join("file"), "kept").unwrap();
    desk.umount();
    desk
}

#[test]
fn planted_logs_and_locks_hinder_neither_mount_nor_rewrap() {
    let desk = desk_with_a_file("planted");
    let (lower, mnt) = (desk.path("lower"), desk.path("mnt"));
    for kind in KINDS {
        let names = [".kmsfs.log", ".kmsfs.log.3", ".kmsfs.log.4294967295", ".kmsfs.log.007", ".kmsfs.lock"];
        for name in names {
            take_away(&lower.join(name));
            plant(&lower.join(name), kind);
        }
        desk.mount();
        assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "kept", "{kind}");
        desk.kmsfs("key rotate alias/k").ok();
        let done = desk.kmsfs("rewrap {mnt} --json").json();
        assert_eq!((&done["moved"], &done["failed"]), (&1.into(), &0.into()), "{kind}: {done}");
        desk.umount();
        desk.kmsfs("rewrap {lower}").ok();
        for name in names {
            take_away(&lower.join(name));
        }
    }
}

#[test]
fn a_planted_volume_record_gives_way_to_its_copy() {
    let desk = desk_with_a_file("planted-record");
    let (lower, mnt) = (desk.path("lower"), desk.path("mnt"));
    let good = fs::read(lower.join(".kmsfs.volume")).unwrap();
    for name in [".kmsfs.volume", ".kmsfs.volume.bak"] {
        for kind in KINDS {
            take_away(&lower.join(name));
            plant(&lower.join(name), kind);
            desk.mount();
            assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "kept", "{name}: {kind}");
            desk.umount();
            desk.kmsfs("key rotate alias/k").ok();
            desk.kmsfs("rewrap {lower}").ok();
            assert!(fs::symlink_metadata(lower.join(name)).unwrap().is_file(), "{name}: {kind} is replaced");
        }
    }
    assert_ne!(fs::read(lower.join(".kmsfs.volume")).unwrap(), good);
}

#[test]
fn a_planted_quarantine_takes_nothing_out_of_the_volume() {
    let desk = desk_with_a_file("planted-quarantine");
    let (lower, outside) = (desk.path("lower"), desk.path("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(lower.join(".kmsfs.t.AAAAAAAAAAAAAAAA"), "left over").unwrap();
    let quarantine = lower.join(".kmsfs.quarantine");
    let mut kinds = KINDS.map(Some).to_vec();
    kinds.push(None);
    for kind in kinds {
        match kind {
            Some(kind) => plant(&quarantine, kind),
            None => symlink(&outside, &quarantine).unwrap(),
        }
        let said = desk.kmsfs("fsck {lower} --repair");
        assert!(said.out.contains("moved to .kmsfs.quarantine/"), "{kind:?}: {said:?}");
        assert!(fs::symlink_metadata(&quarantine).unwrap().is_dir(), "{kind:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{kind:?}");
        let aside = fs::read_dir(&lower).unwrap().map(|entry| entry.unwrap().file_name());
        let aside = aside.filter(|name| name.to_str().unwrap().starts_with(".kmsfs.foreign.")).count();
        assert_eq!(
            aside,
            usize::from(kind != Some("directory")),
            "{kind:?}: what was planted is not deleted"
        );
        let mnt = desk.mount();
        assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "kept", "{kind:?}");
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 1, "{kind:?}");
        desk.umount();
        for entry in fs::read_dir(&lower).unwrap().map(|entry| entry.unwrap().path()) {
            if entry == quarantine || entry.to_str().unwrap().contains(".kmsfs.foreign.") {
                take_away(&entry);
            }
        }
        fs::write(lower.join(".kmsfs.t.AAAAAAAAAAAAAAAA"), "left over").unwrap();
    }
}
