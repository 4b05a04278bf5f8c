//! Volumes by the command line: making, opening, checking, and every kind of bad input, each with one clear message.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use programs::{Desk, run};

#[test]
fn init_makes_a_volume_and_a_recovery_sheet_outside_of_it() {
    let desk = Desk::new("init");
    let arn = desk.key("k");
    let made = desk.kmsfs("init {lower} --key alias/k --json").json();
    assert_eq!(made["key_arn"], arn.as_str());
    let sheet = made["recovery_sheet"].as_str().unwrap();
    assert!(sheet.starts_with(desk.path("home").to_str().unwrap()));
    assert_eq!(fs::metadata(sheet).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(sheet).unwrap();
    assert!(text.contains(&arn) && text.contains(made["volume_id"].as_str().unwrap()));
    let names = [".kmsfs.dir", ".kmsfs.volume", ".kmsfs.volume.bak"];
    assert!(names.iter().all(|name| fs::symlink_metadata(desk.path("lower").join(name)).is_ok()));
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn init_without_a_key_takes_the_one_that_the_service_manages() {
    let desk = Desk::new("init-managed");
    desk.kmsfs("init {lower}").ok();
    let described = desk.kmsfs("key describe alias/aws/kmsfs --json").json();
    assert_eq!(described["KeyMetadata"]["KeyManager"], "AWS");
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn init_refuses_what_it_must_and_leaves_nothing_behind() {
    let desk = Desk::new("init-bad");
    desk.key("k");
    fs::create_dir(desk.path("full")).unwrap();
    fs::write(desk.path("full/file"), "x").unwrap();
    desk.kmsfs("init {full} --key alias/k").fails(1, "is not empty");
    assert_eq!(fs::read_dir(desk.path("full")).unwrap().count(), 1);
    desk.kmsfs("init {lower} --key alias/none").fails(4, "alias/none");
    desk.kmsfs("init {lower} --key alias/k --recovery-sheet {lower}/sheet").fails(2, "inside the volume");
    desk.kmsfs("init {lower} --key alias/k --kms nonsense").fails(2, "unix:/PATH");
    desk.kmsfs("init {missing}/lower --key alias/k").fails(1, "No such file or directory");
    desk.stop_kmsd();
    desk.kmsfs("init {lower} --key alias/k").fails(5, "is kmsd running?");
    assert!(!desk.path("lower").exists());
}

#[test]
fn init_refuses_a_place_in_the_lower_tree_of_another_volume() {
    let desk = Desk::with_volume("init-inside");
    desk.kmsfs("init {lower}/deep --key alias/k").fails(2, "lies in the lower directory of the volume");
    assert!(!desk.path("lower/deep").exists());
}

#[test]
fn a_second_init_does_not_touch_the_first_volume() {
    let desk = Desk::with_volume("init-twice");
    let record = fs::read(desk.path("lower/.kmsfs.volume")).unwrap();
    desk.kmsfs("init {lower} --key alias/k").fails(1, "is not empty");
    assert_eq!(fs::read(desk.path("lower/.kmsfs.volume")).unwrap(), record);
}

#[test]
fn what_is_no_volume_is_told_so() {
    let desk = Desk::new("no-volume");
    fs::create_dir_all(desk.path("plain")).unwrap();
    fs::create_dir_all(desk.path("mnt")).unwrap();
    for command in ["mount {plain} {mnt}", "rewrap {plain}"] {
        desk.kmsfs(command).fails(3, "is not a volume");
    }
    desk.kmsfs("fsck {plain}").fails(8, "is not a volume");
    desk.kmsfs("rewrap {missing}").fails(1, "No such file or directory");
}

/// Changes one byte of both copies of the volume record and repairs its checksum.
fn patch_records(desk: &Desk, at: usize, to: u8) {
    for name in ["lower/.kmsfs.volume", "lower/.kmsfs.volume.bak"] {
        let mut bytes = fs::read(desk.path(name)).unwrap();
        bytes[at] = to;
        let crc = crc32c::crc32c(&bytes[..68]);
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        fs::write(desk.path(name), bytes).unwrap();
    }
}

#[test]
fn a_newer_format_and_an_unknown_flag_refuse_by_name() {
    let desk = Desk::with_volume("newer");
    patch_records(&desk, 6, 9);
    desk.kmsfs("rewrap {lower}").fails(3, "format version 9; upgrade kmsfs");
    patch_records(&desk, 6, 1);
    patch_records(&desk, 8, 4);
    desk.kmsfs("rewrap {lower}").fails(3, "flags 0x4");
    patch_records(&desk, 8, 0);
    desk.kmsfs("rewrap {lower}").ok();
}

#[test]
fn a_damaged_record_is_replaced_by_its_copy_and_a_lost_one_by_the_sheet() {
    let desk = Desk::with_volume("records");
    let record = desk.path("lower/.kmsfs.volume");
    let copy = desk.path("lower/.kmsfs.volume.bak");
    fs::write(&record, "damaged").unwrap();
    assert_eq!(desk.kmsfs("fsck {lower}").code, 4);
    let said = desk.kmsfs("rewrap {lower}");
    assert!(said.err.contains(".kmsfs.volume.bak is used"), "{said:?}");
    said.ok();
    desk.kmsfs("fsck {lower}").ok();
    fs::write(&record, "damaged").unwrap();
    fs::write(&copy, "damaged too").unwrap();
    desk.kmsfs("rewrap {lower}").fails(3, "--restore");
    let sheets = desk.path("home/.local/share/kmsfs/recovery");
    let sheet = fs::read_dir(sheets).unwrap().next().unwrap().unwrap().path();
    run(desk.command(&["init", "--restore"]).arg(&sheet).arg(desk.path("lower"))).ok();
    desk.kmsfs("fsck {lower}").ok();
    fs::write(desk.path("bad-sheet"), "nothing").unwrap();
    desk.kmsfs("init --restore {bad-sheet} {lower}").fails(3, "damaged");
}

#[test]
fn a_key_that_says_no_is_told_apart_from_a_service_that_is_away() {
    let desk = Desk::with_volume("key-says-no");
    fs::create_dir_all(desk.path("mnt")).unwrap();
    desk.kmsfs("key disable alias/k").ok();
    for command in ["mount {lower} {mnt}", "rewrap {lower}"] {
        desk.kmsfs(command).fails(4, "is disabled");
    }
    desk.kmsfs("fsck {lower}").fails(8, "--structure-only");
    desk.kmsfs("fsck {lower} --structure-only").ok();
    desk.kmsfs("key enable alias/k").ok();
    let policy = r#"{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::000000000000:root"},"Action":"kms:*","Resource":"*"},
        {"Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*"}]}"#;
    fs::write(desk.path("policy.json"), policy).unwrap();
    desk.kmsfs("key policy put alias/k {policy.json}").ok();
    desk.kmsfs("rewrap {lower}").fails(4, "the key policy denies");
    desk.stop_kmsd();
    desk.kmsfs("mount {lower} {mnt}").fails(5, "is kmsd running?");
    desk.start_kmsd();
}

#[test]
fn the_check_names_what_is_damaged_foreign_and_left_over() {
    let desk = Desk::with_volume("check");
    let mnt = desk.mount();
    let long = "n".repeat(250);
    for name in ["one", "two", "three", "four", long.as_str()] {
        fs::write(mnt.join(name), vec![7; 50_000]).unwrap();
    }
    fs::create_dir(mnt.join("dir")).unwrap();
    symlink("one", mnt.join("link")).unwrap();
    desk.umount();
    let clean = desk.kmsfs("fsck {lower} --json").json();
    assert_eq!((&clean["errors"], &clean["remarks"]), (&0.into(), &0.into()), "{clean}");
    assert_eq!((&clean["files"], &clean["links"], &clean["directories"]), (&5.into(), &1.into(), &2.into()));
    assert_eq!(clean["verified_bytes"], 250_000);

    let lower = desk.path("lower");
    // Listed before the foreign one comes, whose name may stand anywhere among theirs.
    let files = desk.lower_files();
    fs::write(lower.join("readme.txt"), "foreign").unwrap();
    symlink("nowhere", lower.join(".kmsfs.n.orphan")).unwrap();
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[9000] ^= 1;
    fs::write(&files[0], bytes).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(&files[1]).unwrap();
    cut.set_len(700).unwrap();
    let mut bytes = fs::read(&files[2]).unwrap();
    bytes[..856].fill(3);
    fs::write(&files[2], bytes).unwrap();
    let found = desk.kmsfs("fsck {lower} --json");
    assert_eq!(found.code, 4, "{found:?}");
    let found = found.json();
    let classes: Vec<&str> =
        found["findings"].as_array().unwrap().iter().map(|f| f["class"].as_str().unwrap()).collect();
    for class in ["data", "header", "foreign", "leftover"] {
        assert!(classes.contains(&class), "{class} in {found}");
    }
    assert_eq!((&found["errors"], &found["remarks"]), (&3.into(), &2.into()), "{found}");
    let plain: Vec<_> = found["findings"].as_array().unwrap().iter().filter(|f| f["error"] == true).collect();
    assert!(plain.iter().all(|f| f["path"].is_string()), "{found}");
    assert!(lower.join("readme.txt").exists(), "nothing foreign is deleted");
    let structure = desk.kmsfs("fsck {lower} --structure-only --json");
    assert_eq!(structure.code, 4);
    assert_eq!(structure.json()["with_key"], false);
}

#[test]
fn the_check_names_attributes_that_were_changed_below_and_says_what_is_left() {
    let desk = Desk::with_volume("check-attributes");
    let mnt = desk.mount();
    fs::write(mnt.join("file"), "data").unwrap();
    fs::create_dir(mnt.join("dir")).unwrap();
    for name in ["file", "dir"] {
        rustix::fs::setxattr(mnt.join(name), "user.note", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    }
    desk.umount();
    assert!(desk.kmsfs("fsck {lower}").ok().contains("2 directories, 1 file (4 B), 0 links, 0 special"));
    let entries = fs::read_dir(desk.path("lower")).unwrap().map(|entry| entry.unwrap().path());
    // Our own records are links to nowhere.
    for entry in entries.filter(|path| path.exists()) {
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(&entry, &mut names).unwrap();
        let names = std::str::from_utf8(&names[..len]).unwrap().split_terminator('\0');
        for name in names.filter(|name| name.starts_with("user.kmsfs.")) {
            rustix::fs::setxattr(&entry, name, &[1; 40], rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
    for (line, left) in [("fsck {lower}", "--repair"), ("fsck {lower} --repair", "2 errors are left")] {
        let found = desk.kmsfs(line);
        assert_eq!(found.code, 4, "{found:?}");
        for what in ["(dir): the value of the extended attribute user.note", "(file): the value of", left] {
            assert!(found.out.contains(what), "{what}: {found:?}");
        }
    }
    assert_eq!(desk.kmsfs("fsck {lower} --quick").code, 0, "values are data");
}

#[test]
fn the_check_names_attributes_of_links_and_special_files() {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};
    let desk = Desk::with_volume("check-special");
    let mnt = desk.mount();
    symlink("target", mnt.join("link")).unwrap();
    mknodat(CWD, mnt.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for name in ["link", "fifo"] {
        lsetxattr(mnt.join(name), "trusted.note", b"value", XattrFlags::empty()).unwrap();
    }
    desk.umount();
    assert!(desk.kmsfs("fsck {lower}").ok().contains("1 link, 1 special"));
    for entry in fs::read_dir(desk.path("lower")).unwrap().map(|entry| entry.unwrap().path()) {
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(&entry, &mut names[..]).unwrap();
        let names = std::str::from_utf8(&names[..len]).unwrap().split_terminator('\0');
        for name in names.filter(|name| name.starts_with("trusted.kmsfs.")) {
            let mut value = [0; 100];
            let len = lgetxattr(&entry, name, &mut value[..]).unwrap();
            value[20] ^= 1;
            lsetxattr(&entry, name, &value[..len], XattrFlags::empty()).unwrap();
        }
    }
    let found = desk.kmsfs("fsck {lower}");
    assert_eq!(found.code, 4, "{found:?}");
    for what in
        ["(link): the value of the extended attribute trusted.note", "(fifo): the value of the extended"]
    {
        assert!(found.out.contains(what), "{what}: {found:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let desk = Desk::new("usage");
    for line in ["", "nonsense", "init", "rewrap {x} --jobs 0", "mount {x}", "mount {x} {y} --idle never"] {
        assert_eq!(desk.kmsfs(line).code, 2, "{line}");
    }
    assert!(run(Command::new(programs::KMSFS).arg("--help")).ok().contains("Exit codes:"));
}
