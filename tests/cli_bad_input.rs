//! What goes wrong around keys, played with the programs: each is told in clear words, and nothing is lost.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use programs::{Desk, Frozen, KMSD, SmallDisk, eventually, refusal, run, sh};

const DAY: i64 = 86_400;
const NO_KEY: &str = "11111111-1111-1111-1111-111111111111";

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_key_of_another_region_or_account_is_refused_with_a_way_on_and_leaves_nothing() {
    let desk = Desk::with_volume("elsewhere");
    let mnt = desk.mount();
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("file"), "text").unwrap();
    let first = desk.key_of("file");
    let refused = [
        ("eu-west-1:000000000000", "--kms ARN-BEGINNING=ENDPOINT"),
        ("local:000000000000", "does not exist"),
        ("local:111122223333", "does not exist in this Region"),
    ];
    for (place, why) in refused {
        let key = format!("arn:aws:kms:{place}:key/{NO_KEY}");
        for command in ["init {new}", "default {mnt}/dir", "cp {mnt}/file {mnt}/copy"] {
            desk.kmsfs(&format!("{command} --key {key}")).fails(4, why).fails(4, &key);
        }
        desk.kmsfs(&format!("rewrap {{mnt}} --to-key {key}")).fails(4, why);
    }
    assert!(!desk.path("new").exists() && !mnt.join("copy").exists());
    fs::write(mnt.join("dir/file"), "text").unwrap();
    assert_eq!((desk.key_of("file"), desk.key_of("dir/file")), (first.clone(), first));
}

/// Puts the daemon back to `backup`; what it was before is kept as `state.newer`.
fn put_back(desk: &Desk) {
    desk.stop_kmsd();
    fs::rename(desk.path("state"), desk.path("state.newer")).unwrap();
    let mut restore = Command::new(KMSD);
    restore.arg("restore").arg("--dir").arg(desk.path("state")).arg("--from").arg(desk.path("backup"));
    run(restore.arg("--seal").arg(format!("keyfile:{}", desk.path("root.key").display()))).ok();
    desk.start_kmsd();
}

fn back_up(desk: &Desk) {
    let mut backup = Command::new(KMSD);
    run(backup.arg("backup").arg("--dir").arg(desk.path("state")).arg("--to").arg(desk.path("backup"))).ok();
}

#[test]
fn a_daemon_of_an_older_backup_is_told_and_the_newer_one_opens_everything() {
    let desk = Desk::with_volume("backup");
    let mnt = desk.mount();
    fs::write(mnt.join("old"), "old").unwrap();
    back_up(&desk);
    desk.kmsfs("key rotate alias/k").ok();
    desk.umount();
    desk.mount();
    fs::write(mnt.join("new"), "new").unwrap();
    desk.umount();
    put_back(&desk);
    // The record is under the older version, and so the volume opens, but for what came later.
    desk.mount();
    assert_eq!((refusal(&mnt.join("old")), refusal(&mnt.join("new"))), (None, Some(libc::EIO)));
    desk.umount();
    desk.kmsfs("fsck {lower}").fails(4, "restored from an older backup");
    let newer = || {
        desk.stop_kmsd();
        fs::remove_dir_all(desk.path("state")).unwrap();
        fs::rename(desk.path("state.newer"), desk.path("state")).unwrap();
        desk.start_kmsd();
    };
    newer();
    desk.kmsfs("rewrap {lower}").ok();
    put_back(&desk);
    desk.try_mount("").fails(4, "restored from an older backup");
    desk.kmsfs("fsck {lower} --structure-only").ok();
    newer();
    // The older daemon was told of fewer epochs, this one knows all of them.
    desk.mount();
    assert_eq!(
        fs::read_to_string(mnt.join("old")).unwrap() + &fs::read_to_string(mnt.join("new")).unwrap(),
        "oldnew"
    );
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_policy_that_locks_everyone_out_is_refused_and_when_forced_a_backup_brings_all_back() {
    let desk = Desk::with_volume("lockout");
    let mnt = desk.mount();
    let file = mnt.join("file");
    fs::write(&file, "text").unwrap();
    back_up(&desk);
    let deny = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}]}"#;
    fs::write(desk.path("deny.json"), deny).unwrap();
    desk.kmsfs("key policy put alias/k {deny.json}").fails(1, "will not allow you to update the key policy");
    assert_eq!(refusal(&file), None);
    desk.kmsfs("key policy put alias/k {deny.json} --bypass-lockout-check").ok();
    eventually("the mount is refused", || refusal(&file) == Some(libc::EACCES));
    desk.umount();
    desk.try_mount("").fails(4, "explicit deny");
    desk.kmsfs("key policy put alias/k {deny.json}").fails(1, "explicit deny");
    put_back(&desk);
    desk.mount();
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}

#[test]
fn a_daemon_whose_clock_is_behind_destroys_nothing_early_and_its_log_stays_whole() {
    let desk = Desk::with_volume("clock");
    let mnt = desk.mount();
    fs::write(mnt.join("before"), "text").unwrap();
    let verify = || {
        let mut audit = Command::new(KMSD);
        run(audit.args(["audit", "--dir"]).arg(desk.path("state")).arg("verify")).ok();
    };
    desk.key("doomed");
    desk.kmsfs("key delete alias/doomed --days 7").ok();
    desk.stop_kmsd();
    desk.start_kmsd_off(-365 * DAY);
    eventually("the mount finds it again", || fs::write(mnt.join("behind"), "text").is_ok());
    desk.kmsfs("key rotate alias/k").ok();
    desk.kmsfs("rewrap {mnt}").ok();
    desk.kmsfs("key describe alias/doomed").ok();
    verify();
    desk.stop_kmsd();
    desk.start_kmsd();
    desk.kmsfs("key cancel-deletion alias/doomed").ok();
    verify();
    desk.umount();
    desk.mount();
    for name in ["before", "behind"] {
        assert_eq!(fs::read_to_string(mnt.join(name)).unwrap(), "text");
    }
}

#[test]
fn when_its_key_is_destroyed_a_volume_is_gone_for_the_live_mount_and_for_every_other() {
    let desk = Desk::with_volume("shredded");
    let mnt = desk.mount();
    let file = mnt.join("file");
    fs::write(&file, vec![7; 100_000]).unwrap();
    let held = fs::File::open(&file).unwrap();
    desk.kmsfs("key delete alias/k --days 7").ok();
    desk.stop_kmsd();
    desk.start_kmsd_off(8 * DAY);
    eventually("the key is gone", || desk.kmsfs("key describe alias/k").err.contains("NotFoundException"));
    desk.loses_the_key_of(&file, &held);
    drop(held);
    desk.umount();
    desk.try_mount("").fails(4, "it was destroyed");
    desk.kmsfs("fsck {lower} --structure-only").ok();
    // Nor does a clock that goes back bring it back.
    desk.stop_kmsd();
    desk.start_kmsd();
    desk.kmsfs("key cancel-deletion alias/k").fails(1, "NotFoundException");
    desk.try_mount("").fails(4, "it was destroyed");
}

#[test]
fn two_hosts_that_rewrap_at_once_and_share_no_lock_leave_every_header_readable() {
    const FILES: usize = 60;
    let desk = Desk::with_volume("two-hosts");
    desk.key("b");
    let mnt = desk.mount();
    for n in 0..FILES {
        fs::write(mnt.join(format!("f{n}")), format!("text {n}")).unwrap();
    }
    desk.umount();
    desk.kmsfs("key rotate alias/k").ok();
    let record = || fs::read(desk.path("lower/.kmsfs.volume")).unwrap();
    let before = record();
    let mut slow = desk.command_of("rewrap {lower} --rate 60");
    let mut first = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the first one works", || record() != before);
    // As on a filesystem that keeps no locks between hosts.
    fs::remove_file(desk.path("lower/.kmsfs.lock")).unwrap();
    desk.kmsfs("rewrap {lower} --to-key alias/b");
    first.wait().unwrap();
    desk.kmsfs("fsck {lower}").ok();
    desk.kmsfs("rewrap {lower} --to-key alias/b --purge").ok();
    desk.kmsfs("key disable alias/k").ok();
    desk.mount();
    for n in 0..FILES {
        assert_eq!(fs::read_to_string(mnt.join(format!("f{n}"))).unwrap(), format!("text {n}"));
    }
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_record_that_another_host_writes_from_what_it_read_before_names_all_keys_again() {
    const FILES: usize = 60;
    let desk = Desk::with_volume("two-records");
    desk.key("b");
    let mnt = desk.mount();
    for n in 0..FILES {
        fs::write(mnt.join(format!("f{n}")), format!("text {n}")).unwrap();
    }
    desk.umount();
    // One that has moved every header before it stands still shows nothing; the way back is as good.
    let mut ways = [("k", "b"), ("b", "k")].into_iter().cycle().take(20);
    let (left, _) = ways.find(|(_, to)| puts_the_record_back(&desk, to)).expect("a rewrap takes two seconds");
    desk.kmsfs(&format!("key disable alias/{left}")).ok();
    desk.kmsfs("fsck {lower}").ok();
    desk.mount();
    for n in 0..FILES {
        assert_eq!(fs::read_to_string(mnt.join(format!("f{n}"))).unwrap(), format!("text {n}"));
    }
}

/// Rewraps, and in the middle of that puts the record back to what it was before. Returns whether it was in the middle.
fn puts_the_record_back(desk: &Desk, to: &str) -> bool {
    let record = desk.path("lower/.kmsfs.volume");
    let before = fs::read(&record).unwrap();
    let headers = || desk.lower_files().iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    let unmoved = headers();
    let mut rewrap = desk.command_of(&format!("rewrap {{lower}} --to-key alias/{to} --rate 30"));
    let mut rewrap = rewrap.stdout(Stdio::null()).spawn().unwrap();
    eventually("headers move, behind the record", || headers() != unmoved);
    let frozen = Frozen::freeze(rewrap.id().to_string());
    let in_time = headers().iter().zip(&unmoved).any(|(now, before)| now == before);
    if in_time {
        fs::write(&record, &before).unwrap();
    }
    drop(frozen);
    assert!(rewrap.wait().unwrap().success());
    in_time
}

#[test]
fn a_full_disk_fails_a_copy_which_leaves_nothing_and_a_stream_which_goes_on() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let desk = Desk::with_volume("full-copy");
    let mnt = desk.mount();
    for n in 0..5 {
        fs::write(mnt.join(format!("f{n}")), vec![n; 1 << 20]).unwrap();
    }
    desk.kmsfs("snapshot create {mnt} s").ok();
    let disk = SmallDisk::mount(&desk);
    desk.kmsfs("copy {lower}@s {disk}/copy").fails(1, "No space left");
    assert_eq!(entries(&desk.path("disk")), 0);
    let stream = desk.path("stream");
    let send = |more: &str, to: &Path| {
        let mut send = desk.command_of(&format!("send {{lower}}@s{more}"));
        assert!(send.stdout(fs::File::create(to).unwrap()).stderr(Stdio::null()).status().unwrap().success());
    };
    send("", &stream);
    desk.kmsfs("receive {disk}/r --input {stream}").fails(1, "No space left");
    assert!(!desk.path("disk/r/s").exists(), "it has its name when it is whole");
    disk.grow();
    desk.kmsfs("receive {disk}/r --input {stream}").ok();
    desk.kmsfs("copy {lower}@s {disk}/copy").ok();
    for tree in ["copy", "r/s"] {
        desk.kmsfs(&format!("fsck {{disk}}/{tree}")).ok();
    }
    sh(&["rm", "-r", desk.path("disk/r").to_str().unwrap()]);
}
