//! `kmsfs fsck --repair`: what is stored twice comes back, the rest is moved, nothing is deleted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use kmsfs::format::header::{KeySlot, SLOT_LEN, SLOT_OFFSETS, SLOTS_LEN, Slots};

use super::victim::{FILES, Victim, block, contents, flipped, patched};
use super::{Desk, list};

/// Inodes of everything below `dir`.
fn inodes(dir: &Path, found: &mut BTreeSet<u64>) {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    // The count of the volume is replaced whole by whoever may write.
    for path in entries.filter(|path| !path.ends_with(".kmsfs.epoch")) {
        let stat = fs::symlink_metadata(&path).unwrap();
        found.insert(stat.ino());
        if stat.is_dir() {
            inodes(&path, found);
        }
    }
}

fn check_all_files(victim: &Victim) {
    victim.in_mount(|mnt| {
        for (name, _) in FILES {
            assert!(fs::read(mnt.join(name)).unwrap() == contents(name, 1), "{name}");
        }
    });
}

/// Puts a slot of a higher generation and without a usable wrap into `bytes`.
fn with_useless_slot(bytes: &[u8]) -> Vec<u8> {
    let slots = Slots::parse(bytes[..SLOTS_LEN].try_into().unwrap()).unwrap();
    let mut wrapped = slots.active().wrapped.clone();
    wrapped.blob[40] ^= 1;
    let slot = KeySlot { generation: 7, wrapped }.encode().unwrap();
    let at = SLOT_OFFSETS[1 - slots.active_index()];
    patched(bytes, at..at + SLOT_LEN, &slot)
}

#[test]
fn what_is_stored_twice_comes_back() {
    let victim = Victim::new("repair");
    let lower = victim.desk.path("lower");
    let inner = victim.lower["d/inner"].parent().unwrap().to_owned();
    victim.put("small", &flipped(&victim.bytes("small"), 20));
    let mut torn = victim.bytes("middle");
    torn[SLOT_OFFSETS[1]..SLOT_OFFSETS[1] + 100].fill(7);
    victim.put("middle", &torn);
    victim.put("large", &[&victim.bytes("large")[..], &[0; 5000]].concat());
    victim.put("d/inner", &with_useless_slot(&victim.bytes("d/inner")));
    fs::remove_file(inner.join(".kmsfs.dir")).unwrap();
    symlink("AQMDAwMDAwMDAwMDAwMDAwO0O75t7GAiXCUCczMVjht5", inner.join(".kmsfs.dir")).unwrap();
    fs::remove_file(lower.join(".kmsfs.volume.bak")).unwrap();
    let before = victim.desk.kmsfs("fsck {lower} --json");
    assert_eq!(before.code, 4, "{before:?}");
    let repair = victim.desk.kmsfs("fsck {lower} --repair --json");
    assert_eq!(repair.code, 1, "{repair:?}");
    let report = repair.json();
    assert_eq!(report["errors"], report["errors_repaired"], "{report:#}");
    assert_eq!(report["findings"].as_array().unwrap().len(), 6, "{report:#}");
    // What stood behind a forged directory record is checked by the next run.
    let again = victim.desk.kmsfs("fsck {lower} --repair --json").json();
    assert_eq!(again["errors"], again["errors_repaired"], "{again:#}");
    victim.desk.kmsfs("fsck {lower}").ok();
    check_all_files(&victim);
}

#[test]
fn what_has_no_second_copy_is_moved_and_nothing_is_deleted() {
    let victim = Victim::new("quarantine");
    let lower = victim.desk.path("lower");
    victim.in_mount(|mnt| symlink("target", mnt.join("link")).unwrap());
    let entries: Vec<_> = fs::read_dir(&lower).unwrap().map(|e| e.unwrap().path()).collect();
    let link = entries.iter().find(|p| p.is_symlink() && !p.to_str().unwrap().contains(".kmsfs.")).unwrap();
    fs::remove_file(link).unwrap();
    symlink("/etc/passwd", link).unwrap();
    // A name of another directory, a leftover of each kind, a file that lost both superblocks.
    fs::copy(&victim.lower["d/inner"], lower.join(victim.lower["d/inner"].file_name().unwrap())).unwrap();
    symlink("whatever", lower.join(".kmsfs.n.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")).unwrap();
    fs::create_dir(lower.join(".kmsfs.t.AAAAAAAAAAAAAAAA")).unwrap();
    let broken = flipped(&flipped(&victim.bytes("small"), 20), 424 + 20);
    victim.put("small", &broken);
    fs::write(lower.join("notes.txt"), "not ours").unwrap();
    let mut before = BTreeSet::new();
    inodes(&lower, &mut before);
    let repair = victim.desk.kmsfs("fsck {lower} --repair --json");
    assert_eq!(repair.code, 1, "{repair:?}");
    let report = repair.json();
    assert_eq!((&report["errors"], &report["errors_repaired"]), (&3.into(), &3.into()), "{report:#}");
    assert_eq!(report["remarks_repaired"], 2, "{report:#}");
    let mut after = BTreeSet::new();
    inodes(&lower, &mut after);
    assert!(before.is_subset(&after), "nothing is deleted");
    let quarantine = fs::read_dir(lower.join(".kmsfs.quarantine")).unwrap().next().unwrap().unwrap().path();
    let moved = fs::read_to_string(quarantine.join("list.jsonl")).unwrap();
    assert_eq!(moved.lines().count(), 5, "{moved}");
    for line in moved.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let to = lower.join(line["moved_to"].as_str().unwrap());
        assert!(fs::symlink_metadata(to).is_ok(), "{line}");
    }
    assert!(moved.contains("\"path\":\"small\""), "{moved}");
    victim.desk.kmsfs("fsck {lower}").ok();
    victim.in_mount(|mnt| {
        let (names, end) = list(mnt);
        end.unwrap();
        assert_eq!(names, ["d", "large", "middle"]);
    });
    assert_eq!(fs::read_to_string(lower.join("notes.txt")).unwrap(), "not ours");
}

#[test]
fn what_has_a_long_name_goes_to_the_quarantine_with_its_sidecar() {
    let victim = Victim::new("long-quarantine");
    let lower = victim.desk.path("lower");
    let names =
        ["wrong", "directory", "header", "sound"].map(|begin| format!("{begin}{}", "-long".repeat(45)));
    let entries = victim.in_mount(|mnt| {
        for name in &names {
            if name.starts_with("directory") {
                fs::create_dir(mnt.join(name)).unwrap();
                fs::write(mnt.join(name).join("inner"), "kept").unwrap();
            } else {
                fs::write(mnt.join(name), "kept").unwrap();
            }
        }
        names.each_ref().map(|name| victim.desk.lower_entry_of(name))
    });
    let sidecar_of = |entry: &Path| {
        let name = entry.file_name().unwrap().to_str().unwrap();
        entry.with_file_name(name.replacen(".kmsfs.l.", ".kmsfs.n.", 1))
    };
    let other = fs::read_link(sidecar_of(&entries[3])).unwrap();
    for entry in &entries[..2] {
        fs::remove_file(sidecar_of(entry)).unwrap();
        symlink(&other, sidecar_of(entry)).unwrap();
    }
    let bytes = fs::read(&entries[2]).unwrap();
    fs::write(&entries[2], flipped(&flipped(&bytes, 20), 424 + 20)).unwrap();
    let mut before = BTreeSet::new();
    inodes(&lower, &mut before);
    let repair = victim.desk.kmsfs("fsck {lower} --repair --json");
    let (code, report) = (repair.code, repair.json());
    assert_eq!(
        (code, &report["errors"], &report["errors_repaired"]),
        (1, &3.into(), &3.into()),
        "{report:#}"
    );
    assert_eq!(report["findings"].as_array().unwrap().len(), 3, "no sidecar is left over: {report:#}");
    let mut after = BTreeSet::new();
    inodes(&lower, &mut after);
    assert!(before.is_subset(&after), "nothing is deleted");
    let quarantine = fs::read_dir(lower.join(".kmsfs.quarantine")).unwrap().next().unwrap().unwrap().path();
    let list = fs::read_to_string(quarantine.join("list.jsonl")).unwrap();
    assert_eq!(list.lines().count(), 3, "{list}");
    for line in list.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let [entry, sidecar] =
            ["moved_to", "sidecar_moved_to"].map(|to| lower.join(line[to].as_str().unwrap()));
        assert!(fs::symlink_metadata(&entry).is_ok() && sidecar.is_symlink(), "{line}");
        assert_eq!(sidecar_of(&entry), sidecar);
    }
    victim.desk.kmsfs("fsck {lower}").ok();
    victim.in_mount(|mnt| assert_eq!(fs::read_to_string(mnt.join(&names[3])).unwrap(), "kept"));
}

#[test]
fn damage_that_nothing_can_undo_stays_where_it_is_and_is_told() {
    let victim = Victim::new("damage");
    let bad = flipped(&victim.bytes("middle"), block(3).start);
    victim.put("middle", &bad);
    let repair = victim.desk.kmsfs("fsck {lower} --repair --json");
    assert_eq!(repair.code, 4, "{repair:?}");
    let report = repair.json();
    assert_eq!((&report["errors"], &report["errors_repaired"]), (&1.into(), &0.into()));
    assert_eq!(report["findings"][0]["path"], "middle");
    assert!(report["findings"][0]["why"].as_str().unwrap().contains("block 3"), "{report:#}");
    assert!(victim.bytes("middle") == bad);
    victim.put("middle", &flipped(&bad, block(3).start));
    victim.desk.kmsfs("key disable alias/k").ok();
    // A key that may not be used now is no reason to move anything.
    assert_ne!(victim.desk.kmsfs("fsck {lower} --repair").code, 0);
    victim.desk.kmsfs("key enable alias/k").ok();
    victim.desk.kmsfs("fsck {lower}").ok();
    check_all_files(&victim);
}

#[test]
fn a_repair_finishes_what_a_killed_mount_began_and_refuses_a_live_one() {
    let desk = Desk::with_volume("repair-killed");
    let mnt = desk.mount();
    let file = fs::File::create(mnt.join("file")).unwrap();
    {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&vec![1; 100_000], 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&vec![2; 50_000], 10_000).unwrap();
        file.sync_all().unwrap();
    }
    desk.kmsfs("fsck {lower} --repair").fails(8, "in use");
    drop(file);
    desk.crash();
    super::programs::eventually("its lock is free", || desk.kmsfs("fsck {lower} --repair").code != 8);
    let lower = desk.lower_files();
    assert_eq!(lower.len(), 1);
    let logs = fs::read_dir(desk.path("lower")).unwrap().map(|e| e.unwrap().file_name());
    let logs: Vec<_> = logs.filter(|name| name.to_str().unwrap().starts_with(".kmsfs.log")).collect();
    assert!(logs.is_empty(), "{logs:?}");
    desk.kmsfs("fsck {lower}").ok();
    let mnt = desk.mount();
    let mut expected = vec![1; 100_000];
    expected[10_000..60_000].fill(2);
    assert!(fs::read(mnt.join("file")).unwrap() == expected);
    desk.umount();
}

#[test]
fn a_copy_made_in_the_lower_tree_is_told_as_a_twin_once() {
    let victim = Victim::new("twin");
    victim.in_mount(|mnt| {
        fs::write(mnt.join("other"), "of its own").unwrap();
        fs::hard_link(mnt.join("small"), mnt.join("second name")).unwrap();
    });
    victim.desk.kmsfs("fsck {lower}").ok();
    let other = victim.in_mount(|_| victim.desk.lower_of("other"));
    fs::copy(&victim.lower["middle"], other).unwrap();
    for how in ["", " --structure-only"] {
        let report = victim.desk.kmsfs(&format!("fsck {{lower}} --json{how}")).json();
        assert_eq!((&report["errors"], &report["findings"][0]["class"]), (&1.into(), &"duplicate-id".into()));
    }
}

#[test]
fn a_damaged_tag_page_is_one_problem_however_many_blocks_it_has() {
    let victim = Victim::new("once");
    let at = kmsfs::format::layout::tag_page_offset(1) as usize;
    victim.put("large", &flipped(&victim.bytes("large"), at));
    let said = victim.desk.kmsfs("fsck {lower}");
    assert_eq!((said.code, said.out.matches("tag page 1 does not verify").count()), (4, 1), "{said:?}");
}
