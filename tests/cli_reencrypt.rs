//! Re-encryption: new data keys and ciphertext, offline and through a mount, beside users, killed, on a full disk.
#![allow(clippy::unwrap_used)]

mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use programs::{Desk, eventually, manifest, run};
use rustix::fs::{Mode, OFlags, mkdirat, openat};

/// Identities of all files of the lower tree.
fn ids(desk: &Desk) -> Vec<Vec<u8>> {
    let mut ids: Vec<_> = desk.lower_files().iter().filter_map(|path| id_of(path)).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn id_of(path: &Path) -> Option<Vec<u8>> {
    let mut head = [0; 44];
    fs::File::open(path).unwrap().read_exact(&mut head).ok()?;
    (head[..4] == *b"KMF1").then(|| head[28..].to_vec())
}

fn contents(n: usize) -> Vec<u8> {
    (0..n * 997 % 60_000).map(|i| (i + n) as u8).collect()
}

fn populate(mnt: &Path, count: usize) {
    for n in 0..count {
        let dir = mnt.join(format!("d{}/e{}", n % 5, n % 3));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), contents(n + 1)).unwrap();
    }
    fs::write(mnt.join("empty"), "").unwrap();
    fs::hard_link(mnt.join("d0/e0/f0"), mnt.join("d1/hard")).unwrap();
    fs::write(mnt.join("d4").join("x".repeat(230)), "long name").unwrap();
    let sparse = fs::File::create(mnt.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 4 << 20).unwrap();
    run(Command::new("setfattr").args(["-n", "user.note", "-v", "kept"]).arg(mnt.join("d0/e0/f0"))).ok();
}

/// The tree. Nothing is promised of the root itself, in which the place for the work stands.
fn seen(mnt: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = manifest(mnt);
    found.remove(Path::new(""));
    found
}

#[track_caller]
fn assert_same(mnt: &Path, before: &BTreeMap<PathBuf, String>) {
    let now = seen(mnt);
    assert_eq!(now.len(), before.len());
    for (path, text) in before {
        assert_eq!(now.get(path), Some(text), "{}", path.display());
    }
}

#[test]
fn a_volume_that_is_not_mounted_gets_new_data_keys_and_is_else_the_same() {
    let desk = Desk::with_volume("reencrypt");
    let mnt = desk.mount();
    populate(&mnt, 60);
    let before = seen(&mnt);
    desk.kmsfs("reencrypt {lower}/nowhere").fails(1, "No such file");
    desk.umount();
    let old = ids(&desk);
    let dry = desk.kmsfs("reencrypt {lower} --dry-run --json").json();
    assert_eq!((&dry["done"], &dry["without_header"]), (&62.into(), &1.into()), "{dry}");
    assert_eq!(ids(&desk), old);
    let blocks: u64 = desk.lower_files().iter().map(|path| fs::metadata(path).unwrap().blocks()).sum();

    let done = desk.kmsfs("reencrypt {lower} --json").json();
    assert_eq!((&done["done"], &done["failed"]), (&62.into(), &0.into()), "{done}");
    let new = ids(&desk);
    assert_eq!(new.len(), old.len());
    assert!(new.iter().all(|id| !old.contains(id)), "a file kept its identity");
    let now: u64 = desk.lower_files().iter().map(|path| fs::metadata(path).unwrap().blocks()).sum();
    assert!(now <= blocks + 64, "holes were filled: {blocks} blocks before, {now} now");
    desk.kmsfs("fsck {lower}").ok();
    desk.mount();
    assert_same(&mnt, &before);
    let value =
        run(Command::new("getfattr").args(["--only-values", "-n", "user.note"]).arg(mnt.join("d1/hard")));
    assert_eq!(value.ok(), "kept");
    desk.umount();
    // One file, by its lower path.
    let file = desk.lower_files().into_iter().find(|path| id_of(path).is_some()).unwrap();
    let before = id_of(&file);
    let done = run(desk.command_of("reencrypt --json").arg(&file)).json();
    assert_eq!(done["done"], 1, "{done}");
    assert_ne!(id_of(&file), before);
    assert_eq!(ids(&desk).iter().filter(|id| new.contains(id)).count(), new.len() - 1);
}

#[test]
fn files_in_use_are_re_encrypted_beneath_their_users() {
    let desk = Desk::with_volume("reencrypt-live");
    desk.key("other");
    let mnt = desk.mount();
    populate(&mnt, 40);
    let open = fs::File::options().read(true).write(true).open(mnt.join("d1/e1/f1")).unwrap();
    open.write_all_at(b"before", 0).unwrap();
    let mut writer = Command::new("python3");
    writer.args(["-c", MAPPER]).arg(mnt.join("d2/e2/f2")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut ready = [0; 1];
    writer.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let old = ids(&desk);

    let done = desk.kmsfs("reencrypt {mnt} --json").json();
    assert_eq!((&done["failed"], &done["ended_early"]), (&0.into(), &serde_json::Value::Null), "{done}");
    assert!(ids(&desk).iter().all(|id| !old.contains(id)));
    open.write_all_at(b"after", 10).unwrap();
    let mut back = [0; 15];
    open.read_exact_at(&mut back, 0).unwrap();
    assert_eq!((&back[..6], &back[10..]), (&b"before"[..], &b"after"[..]));
    writer.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(writer.wait().unwrap().success());
    assert_eq!(&fs::read(mnt.join("d2/e2/f2")).unwrap()[..12], b"firstsecond!");
    drop(open);

    let info =
        |path: &str| desk.kmsfs(&format!("info {{mnt}}/{path} --json")).json()["slots"][0]["key_arn"].clone();
    let (one, two) = (info("d3/e0/f3"), info("d4/e1/f4"));
    let done = desk.kmsfs("reencrypt {mnt}/d3 --key alias/other --json").json();
    assert_eq!(done["done"], 8, "{done}");
    assert_ne!(info("d3/e0/f3"), one);
    assert_eq!(info("d4/e1/f4"), two);
    desk.kmsfs("reencrypt {mnt}/d3/e0/f3").ok();
    desk.kmsfs("reencrypt {mnt}/nothing").fails(1, "No such file");
    desk.kmsfs("reencrypt {lower}/.kmsfs.lock").fails(1, ".kmsfs.lock");
    let before = seen(&mnt);
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
    desk.mount();
    assert_same(&mnt, &before);
}

/// Writes by a mapping, before and after it is told to go on.
const MAPPER: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
page = mmap.mmap(file.fileno(), 1000)
page[0:5] = b'first'
sys.stdout.write('.')
sys.stdout.flush()
sys.stdin.readline()
page[5:12] = b'second!'
page.flush()
";

#[test]
fn what_cannot_be_done_is_named_and_done_by_the_next_run() {
    let desk = Desk::with_volume("reencrypt-busy");
    let mnt = desk.mount();
    populate(&mnt, 10);
    let large = fs::File::create(mnt.join("large")).unwrap();
    large.set_len(300 << 20).unwrap();
    large.write_all_at(b"the end", (300 << 20) - 7).unwrap();
    let said = desk.kmsfs("reencrypt {mnt}").fails(1, "large: it is open");
    assert!(said.out.contains("12 re-encrypted"), "{said:?}");
    let old = ids(&desk);
    drop(large);
    // The kernel tells of the end of a file in its own time.
    let is_open = || desk.kmsfs("status {mnt} --json").json()["open_files"] != 0;
    eventually("the large file is closed", || !is_open());
    let done = desk.kmsfs("reencrypt {mnt} --json").json();
    assert_eq!((&done["done"], &done["done_before"]), (&1.into(), &12.into()), "{done}");
    assert_eq!(ids(&desk).iter().filter(|id| !old.contains(id)).count(), 1);
    let all = desk.kmsfs("reencrypt {mnt} --json").json();
    assert_eq!((&all["done"], &all["done_before"]), (&13.into(), &0.into()), "{all}");
    let mut end = [0; 7];
    fs::File::open(mnt.join("large")).unwrap().read_exact_at(&mut end, (300 << 20) - 7).unwrap();
    assert_eq!(&end, b"the end");

    desk.kmsfs("key disable alias/k").ok();
    desk.kmsfs("reencrypt {mnt}").fails(4, "is disabled");
    desk.kmsfs("key enable alias/k").ok();
    desk.kmsfs("reencrypt {mnt} --key alias/none").fails(4, "alias/none");
    desk.kmsfs("reencrypt {mnt} --rate 0").fails(2, "0 is not in");
}

const ROUNDS: usize = 6;

fn is_within(desk: &Desk) -> bool {
    desk.path("lower/.kmsfs.reencrypt/commit").exists()
}

fn has_done(desk: &Desk) -> bool {
    let listed = fs::read_dir(desk.path("lower/.kmsfs.reencrypt")).into_iter().flatten().flatten();
    listed
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("done-"))
        .any(|entry| entry.metadata().is_ok_and(|stat| stat.len() > 16))
}

#[test]
fn a_killed_run_loses_nothing_and_the_next_one_goes_on() {
    let desk = Desk::with_volume("reencrypt-kill");
    let mnt = desk.mount();
    populate(&mnt, 70);
    let before = seen(&mnt);
    let (mut went_on, mut live) = (0, true);
    for round in 0..ROUNDS {
        if !live {
            desk.umount();
        }
        let place = if live { "{mnt}" } else { "{lower}" };
        // Slow enough to be ended before its last file, on any machine.
        let rate = if round < ROUNDS / 2 { 30 } else { 5 };
        let mut command = desk.command_of(&format!("reencrypt {place} --rate {rate} --json"));
        let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Within a replacement, or after one.
        let mut over = || running.try_wait().unwrap().is_some();
        eventually("files are done", || {
            over() || if round < ROUNDS / 2 { is_within(&desk) } else { has_done(&desk) }
        });
        if live {
            desk.kill_mount();
            let _ = running.wait();
            run(Command::new("fusermount3").args(["-uz"]).arg(&mnt)).ok();
        } else {
            let _ = running.kill();
            let _ = running.wait();
        }
        desk.mount();
        assert_same(&mnt, &before);
        assert!(!desk.path("lower/.kmsfs.reencrypt/commit").exists());
        live = !live;
        if round % 2 == 1 {
            let done = desk.kmsfs("reencrypt {mnt} --json").json();
            let (done, earlier) = (done["done"].as_u64().unwrap(), done["done_before"].as_u64().unwrap());
            assert_eq!(done + earlier, 72);
            went_on += u64::from(earlier > 0);
        }
    }
    assert!(went_on > 0, "no run was cut after its first files");
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_command_that_was_killed_is_given_again_while_the_mount_goes_on_with_it() {
    let desk = Desk::with_volume("reencrypt-again");
    let mnt = desk.mount();
    for n in 0..8_u8 {
        fs::write(mnt.join(format!("f{n}")), [n; 100]).unwrap();
    }
    let mut running = desk.command_of("reencrypt {mnt} --rate 2").spawn().unwrap();
    eventually("files are done", || running.try_wait().unwrap().is_some() || has_done(&desk));
    let _ = running.kill();
    let _ = running.wait();
    let report = desk.kmsfs("reencrypt {mnt} --rate 2 --json").json();
    assert_eq!((&report["done"], &report["failed"]), (&8.into(), &0.into()));
}

/// Directories within each other: more than a thread of so many bytes has room for if each level took some of its stack.
const LEVELS: usize = 400;
const STACK: &str = "262144";

#[test]
fn directories_within_each_other_are_gone_through_however_deep_they_lie() {
    let desk = Desk::with_volume("reencrypt-deep");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    run(desk.command_of("mount {lower} {mnt}").env("RUST_MIN_STACK", STACK)).ok();
    desk.adopt(mnt.clone());
    let mut dir = fs::File::open(&mnt).unwrap();
    for _ in 0..LEVELS {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = openat(&dir, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap().into();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    fs::File::from(openat(&dir, "file", flags, Mode::RUSR).unwrap()).write_all_at(b"text", 0).unwrap();
    drop(dir);
    let dry = desk.kmsfs("reencrypt {mnt} --dry-run --json").json();
    assert_eq!((&dry["done"], &dry["failed"]), (&1.into(), &0.into()), "{dry}");
    let done = desk.kmsfs("reencrypt {mnt} --json").json();
    assert_eq!((&done["done"], &done["failed"]), (&1.into(), &0.into()), "{done}");
    desk.umount();
    programs::sh(&["rm", "-r", desk.path("lower/").to_str().unwrap()]);
}
