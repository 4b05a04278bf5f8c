//! Rewrap: headers move, data stays, whatever interrupts it.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use kmsfs::format::header::{KeySlot, SLOT_LEN, SLOT_OFFSETS, SLOTS_LEN, Slots};
use programs::Desk;

/// A volume with some files in some directories, closed.
fn desk_with_files(label: &str, count: usize) -> Desk {
    let desk = Desk::with_volume(label);
    let mnt = desk.mount();
    for n in 0..count {
        let dir = mnt.join(format!("d{}", n % 7));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), contents(n)).unwrap();
    }
    desk.umount();
    desk
}

fn contents(n: usize) -> Vec<u8> {
    (0..=n * 37 % 9000).map(|i| (i + n) as u8).collect()
}

fn read_slots(path: &PathBuf) -> Slots {
    let bytes = fs::read(path).unwrap();
    Slots::parse(bytes[..SLOTS_LEN].try_into().unwrap()).unwrap()
}

/// Everything but the key slots, with times and mode.
fn all_but_slots(path: &PathBuf) -> (Vec<u8>, i64, i64, u32) {
    let mut bytes = fs::read(path).unwrap();
    for at in SLOT_OFFSETS {
        bytes[at..at + SLOT_LEN].fill(0);
    }
    let stat = fs::metadata(path).unwrap();
    (bytes, stat.mtime(), stat.mtime_nsec(), stat.mode())
}

fn check_contents(desk: &Desk, count: usize) {
    let mnt = desk.mount();
    for n in 0..count {
        assert_eq!(fs::read(mnt.join(format!("d{}/f{n}", n % 7))).unwrap(), contents(n), "file {n}");
    }
    desk.umount();
}

#[test]
fn headers_go_to_the_new_version_and_nothing_else_changes() {
    let desk = desk_with_files("rewrap", 120);
    let files = desk.lower_files();
    fs::set_permissions(&files[3], fs::Permissions::from_mode(0o400)).unwrap();
    let before: Vec<_> = files.iter().map(all_but_slots).collect();
    let old = read_slots(&files[0]).active().wrapped.clone();
    let current = desk.kmsfs("rewrap {lower} --json").json();
    assert_eq!((&current["moved"], &current["current"]), (&0.into(), &120.into()));

    desk.kmsfs("key rotate alias/k").ok();
    let dry = desk.kmsfs("rewrap {lower} --dry-run --json").json();
    assert_eq!((&dry["moved"], &dry["current"], &dry["dry_run"]), (&120.into(), &0.into(), &true.into()));
    assert_eq!(read_slots(&files[0]).active().wrapped, old, "a dry run writes nothing");

    let done = desk.kmsfs("rewrap {lower} --json").json();
    assert_eq!((&done["moved"], &done["failed"]), (&120.into(), &0.into()), "{done}");
    assert_eq!((&done["versions"][0]["files"], &done["versions"][0]["current"]), (&120.into(), &true.into()));
    assert_eq!(done["versions"].as_array().unwrap().len(), 1);
    let new = read_slots(&files[0]);
    assert_eq!((new.active().generation, &new.active().wrapped.key_arn), (2, &old.key_arn));
    assert_ne!(new.active().wrapped.material_id, old.material_id);
    assert!(new.slots.iter().flatten().any(|slot| slot.wrapped == old), "the old wrap stays in its slot");
    for (path, before) in files.iter().zip(before) {
        assert_eq!(all_but_slots(path), before, "{}", path.display());
    }
    let again = desk.kmsfs("rewrap {lower} --json").json();
    assert_eq!((&again["moved"], &again["current"]), (&0.into(), &120.into()));
    check_contents(&desk, 120);
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_purge_leaves_no_wrap_under_an_old_version_and_a_rate_is_kept_to() {
    let desk = desk_with_files("rewrap-purge", 40);
    desk.kmsfs("key rotate alias/k").ok();
    let done = desk.kmsfs("rewrap {lower} --purge --background --rate 1000 --json").json();
    assert_eq!((&done["moved"], &done["purged"]), (&40.into(), &40.into()), "{done}");
    for file in desk.lower_files() {
        let slots = read_slots(&file);
        assert_eq!(slots.slots.iter().flatten().count(), 1, "{}", file.display());
    }
    desk.kmsfs("fsck {lower}").ok();
    check_contents(&desk, 40);
    desk.kmsfs("rewrap {lower} --rate 0").fails(2, "0 is not in");
}

#[test]
fn a_watch_follows_rotations_until_it_is_told_to_end() {
    let desk = desk_with_files("rewrap-watch", 20);
    let mut watch = desk.command_of("rewrap {lower} --watch 1s").stdout(Stdio::null()).spawn().unwrap();
    for _ in 0..2 {
        let before = read_slots(&desk.lower_files()[0]).active().wrapped.material_id;
        desk.kmsfs("key rotate alias/k").ok();
        programs::eventually("the headers follow", || {
            let moved = |file| read_slots(file).active().wrapped.material_id != before;
            desk.lower_files().iter().all(moved)
        });
    }
    programs::run(std::process::Command::new("kill").arg(watch.id().to_string())).ok();
    assert!(watch.wait().unwrap().success());
    check_contents(&desk, 20);
}

#[test]
fn headers_go_under_another_key_and_the_first_may_be_disabled_then() {
    let desk = desk_with_files("rewrap-to", 30);
    let other = desk.key("other");
    let done = desk.kmsfs("rewrap {lower} --to-key alias/other --json").json();
    assert_eq!((&done["moved"], &done["record_current"]), (&30.into(), &true.into()), "{done}");
    assert!(desk.lower_files().iter().all(|file| read_slots(file).active().wrapped.key_arn == other));
    desk.kmsfs("key disable alias/k").ok();
    check_contents(&desk, 30);
    let mnt = desk.mount();
    fs::write(mnt.join("new"), "x").unwrap();
    let info = desk.kmsfs("info {mnt}/new --json").json();
    assert_eq!(info["slots"][0]["key_arn"], other.as_str(), "new files take the new key");
    desk.umount();
    desk.kmsfs("rewrap {lower} --to-key alias/none").fails(4, "alias/none");
}

#[test]
fn a_rewrap_cut_at_any_byte_leaves_a_header_that_opens() {
    let desk = desk_with_files("rewrap-torn", 1);
    let file = desk.lower_files().remove(0);
    let mut cuts_checked = 0;
    for _ in 0..2 {
        let before = fs::read(&file).unwrap();
        desk.kmsfs("key rotate alias/k").ok();
        desk.kmsfs("rewrap {lower}").ok();
        let after = fs::read(&file).unwrap();
        let (old, new) = (slots_of(&before), slots_of(&after));
        let at = SLOT_OFFSETS[new.active_index()];
        for cut in 0..=SLOT_LEN {
            let mut torn = before.clone();
            torn[at..at + cut].copy_from_slice(&after[at..at + cut]);
            let read = slots_of(&torn);
            assert!(read.active() == old.active() || read.active() == new.active(), "cut at {cut}");
            // The whole program, for some of the cuts.
            if cut % 43 == 1 {
                fs::write(&file, &torn).unwrap();
                desk.kmsfs("fsck {lower}").ok();
                let done = desk.kmsfs("rewrap {lower} --json").json();
                assert_eq!(done["failed"], 0, "cut at {cut}: {done}");
                cuts_checked += 1;
            }
        }
        fs::write(&file, &after).unwrap();
    }
    assert_eq!(cuts_checked, 16);
    check_contents(&desk, 1);
}

fn slots_of(bytes: &[u8]) -> Slots {
    Slots::parse(bytes[..SLOTS_LEN].try_into().unwrap()).unwrap()
}

#[test]
fn an_interrupted_rewrap_is_resumed() {
    let desk = desk_with_files("rewrap-killed", 600);
    for signal in ["-KILL", "-TERM"] {
        desk.kmsfs("key rotate alias/k").ok();
        let lower = desk.path("lower");
        let first = &desk.lower_files()[0];
        let old = read_slots(first).active().generation;
        let mut command = desk.command(&["rewrap", "--jobs", "1"]);
        let mut child = command.arg(&lower).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let some_moved = || desk.lower_files().iter().any(|file| read_slots(file).active().generation > old);
        programs::eventually("the first header moves", some_moved);
        programs::run(std::process::Command::new("kill").arg(signal).arg(child.id().to_string()));
        child.wait().unwrap();
        let resumed = desk.kmsfs("rewrap {lower} --json").json();
        let count = |name: &str| resumed[name].as_u64().unwrap();
        assert_eq!((count("moved") + count("current"), count("failed")), (600, 0), "{resumed}");
    }
    desk.kmsfs("fsck {lower}").ok();
    check_contents(&desk, 600);
}

#[test]
fn files_that_cannot_be_moved_are_named_and_the_rest_moves() {
    let desk = desk_with_files("rewrap-failed", 20);
    let files = desk.lower_files();
    fs::write(&files[5], vec![9; 5000]).unwrap();
    desk.kmsfs("key rotate alias/k").ok();
    let said = desk.kmsfs("rewrap {lower} --json");
    assert_eq!(said.code, 1, "{said:?}");
    let report = said.json();
    assert_eq!((&report["moved"], &report["failed"]), (&19.into(), &1.into()), "{report}");
    let named = report["failures"][0]["lower_path"].as_str().unwrap();
    assert!(files[5].ends_with(named), "{named}");
}

#[test]
fn a_live_mount_goes_on_while_its_headers_move() {
    let desk = desk_with_files("rewrap-live", 200);
    let mnt = desk.mount();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_usize;
            while !over.load(Ordering::Relaxed) {
                let path = mnt.join(format!("live{}", written % 50));
                fs::write(&path, contents(written)).unwrap();
                assert_eq!(fs::read(&path).unwrap(), contents(written));
                fs::rename(&path, mnt.join(format!("d0/renamed{}", written % 50))).unwrap();
                let dir = mnt.join(format!("dir{}", written % 5));
                fs::create_dir_all(dir.join("below")).unwrap();
                fs::write(dir.join("below/file"), b"short-lived").unwrap();
                fs::rename(&dir, mnt.join("elsewhere")).unwrap();
                fs::remove_dir_all(mnt.join("elsewhere")).unwrap();
                written += 1;
            }
            written
        });
        for _ in 0..3 {
            desk.kmsfs("key rotate alias/k").ok();
            let done = desk.kmsfs("rewrap {mnt} --json").json();
            assert_eq!(
                (&done["failed"], &done["ended_early"]),
                (&0.into(), &serde_json::Value::Null),
                "{done}"
            );
            assert!(done["moved"].as_u64().unwrap() >= 200, "{done}");
        }
        over.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
    check_contents(&desk, 200);
}

#[test]
fn after_a_rewrap_new_files_of_a_live_mount_are_under_the_new_version_too() {
    let desk = desk_with_files("rewrap-stock", 5);
    let mnt = desk.mount();
    // A stock of fresh keys, and one reserved for a file that nobody has written to yet.
    (0..20).for_each(|n| fs::write(mnt.join(format!("stock{n}")), "x").unwrap());
    let mut waiting = fs::File::create(mnt.join("waiting")).unwrap();
    for target in ["{mnt}", "{lower}"] {
        desk.kmsfs("key rotate alias/k").ok();
        let done = desk.kmsfs(&format!("rewrap {target} --json")).json();
        assert_eq!(done["failed"], 0, "{done}");
        (0..20).for_each(|n| fs::write(mnt.join(format!("{}{n}", &target[1..4])), "x").unwrap());
        waiting.write_all(b"late").and_then(|()| waiting.sync_all()).unwrap();
        let after = desk.kmsfs("rewrap {lower} --dry-run --json").json();
        assert_eq!((&after["moved"], &after["failed"]), (&0.into(), &0.into()), "{after}");
    }
    drop(waiting);
    desk.umount();
}

#[test]
fn a_file_of_several_names_is_moved_and_counted_once() {
    let desk = desk_with_files("rewrap-links", 10);
    let mnt = desk.mount();
    for n in 0..5 {
        fs::hard_link(mnt.join("d0/f0"), mnt.join(format!("link{n}"))).unwrap();
    }
    desk.umount();
    for (moved, current) in [(0, 10), (10, 0), (0, 10)] {
        let done = desk.kmsfs("rewrap {lower} --json").json();
        assert_eq!((&done["moved"], &done["current"]), (&moved.into(), &current.into()), "{done}");
        assert_eq!(done["versions"][0]["files"], 10, "{done}");
        if moved == 0 {
            desk.kmsfs("key rotate alias/k").ok();
        }
    }
}

#[test]
fn generations_that_somebody_counted_up_do_not_stop_a_rewrap() {
    let desk = desk_with_files("rewrap-forged", 3);
    let files = desk.lower_files();
    for (path, generation) in files.iter().zip([1_u64 << 48, (1 << 48) - 1, (1 << 48) + 1]) {
        let (mut bytes, slots) = (fs::read(path).unwrap(), read_slots(path));
        let at = SLOT_OFFSETS[slots.active_index()];
        let forged = KeySlot { generation, wrapped: slots.active().wrapped.clone() };
        bytes[at..at + SLOT_LEN].copy_from_slice(&forged.encode().unwrap());
        fs::write(path, bytes).unwrap();
    }
    for _ in 0..3 {
        desk.kmsfs("key rotate alias/k").ok();
        let done = desk.kmsfs("rewrap {lower} --json").json();
        // Beyond the largest generation there is no slot at all: that file lost its only one.
        assert_eq!((&done["moved"], &done["failed"]), (&2.into(), &1.into()), "{done}");
        let again = desk.kmsfs("rewrap {lower} --json").json();
        assert_eq!((&again["moved"], &again["current"]), (&0.into(), &2.into()), "{again}");
    }
}

#[test]
fn two_rewraps_at_once_are_refused_and_a_dead_service_ends_one() {
    let desk = desk_with_files("rewrap-down", 5);
    desk.stop_kmsd();
    desk.kmsfs("rewrap {lower}").fails(5, "is kmsd running?");
    desk.start_kmsd();
    let lock = fs::OpenOptions::new().create(true).append(true).open(desk.path("lower/.kmsfs.lock")).unwrap();
    lock.lock().unwrap();
    desk.kmsfs("rewrap {lower}").fails(6, "another rewrap");
    drop(lock);
    desk.kmsfs("rewrap {lower}").ok();
}
