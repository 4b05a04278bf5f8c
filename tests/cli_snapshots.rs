//! Snapshots: of a mount that goes on changing, restored, compared, interrupted, on a full disk, with and without reflinks.
#![allow(clippy::unwrap_used)]

mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use programs::{Desk, eventually, manifest, run};

const FILES: usize = 360;

fn contents(n: usize, version: u8) -> Vec<u8> {
    (0..n * 131 % 20_000).map(|i| (i + n) as u8 ^ version).collect()
}

/// Files of many sizes in several directories, links of both kinds, modes, times, attributes.
fn populate(mnt: &Path) {
    for n in 0..FILES {
        let dir = mnt.join(format!("d{}/e{}", n % 5, n % 3));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), contents(n, 0)).unwrap();
    }
    fs::hard_link(mnt.join("d0/e0/f0"), mnt.join("d1/hard")).unwrap();
    fs::hard_link(mnt.join("d2/e2/f17"), mnt.join("d3/hard")).unwrap();
    symlink("d0/e0", mnt.join("link")).unwrap();
    fs::write(mnt.join("d4").join("x".repeat(230)), "long name").unwrap();
    fs::create_dir(mnt.join("d4/empty")).unwrap();
    fs::set_permissions(mnt.join("d0/e0/f15"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(mnt.join("d2/e1"), fs::Permissions::from_mode(0o750)).unwrap();
}

#[track_caller]
fn assert_same(found: &BTreeMap<PathBuf, String>, expected: &BTreeMap<PathBuf, String>) {
    for (path, text) in expected {
        assert_eq!(found.get(path), Some(text), "{}", path.display());
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{} was not there", path.display());
    }
}

/// Changes in every way what was there.
fn change_everything(mnt: &Path) {
    for n in (0..FILES).rev() {
        let path = mnt.join(format!("d{}/e{}/f{n}", n % 5, n % 3));
        match n % 9 {
            0 => fs::write(&path, contents(n + 1, 9)).unwrap(),
            1 => fs::remove_file(&path).unwrap(),
            2 => fs::rename(&path, mnt.join(format!("d0/moved{n}"))).unwrap(),
            3 => fs::File::options().write(true).open(&path).unwrap().set_len(3).unwrap(),
            4 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
            5 => fs::hard_link(&path, mnt.join(format!("d1/again{n}"))).unwrap(),
            6 => fs::File::options().write(true).open(&path).unwrap().write_all_at(b"change", 5).unwrap(),
            7 => {
                fs::write(mnt.join("new"), format!("new {n}")).unwrap();
                fs::rename(mnt.join("new"), &path).unwrap();
            }
            _ => {}
        }
    }
    fs::write(mnt.join("d1/hard"), "changed through the other name").unwrap();
    fs::remove_file(mnt.join("link")).unwrap();
    symlink("elsewhere", mnt.join("link")).unwrap();
    fs::remove_dir(mnt.join("d4/empty")).unwrap();
    fs::remove_file(mnt.join("d4").join("x".repeat(230))).unwrap();
    fs::rename(mnt.join("d3"), mnt.join("d0/e1/d3")).unwrap();
    fs::rename(mnt.join("d4"), mnt.join("d3")).unwrap();
    fs::create_dir(mnt.join("d4")).unwrap();
    fs::write(mnt.join("d4/late"), "late").unwrap();
}

/// Begins a snapshot of the mount, and comes back when its moment has come.
fn begin(desk: &Desk, name: &str) -> Child {
    let mut command = desk.command_of(&format!("snapshot create {{mnt}} {name} --json"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let snapshots = desk.path("lower/.kmsfs.snapshots");
    eventually("the copy begins", || {
        let listed = fs::read_dir(&snapshots).into_iter().flatten().flatten();
        listed
            .filter(|e| e.file_name() != *name)
            .any(|e| fs::read_dir(e.path()).is_ok_and(|mut d| d.next().is_some()))
            || snapshots.join(name).exists()
    });
    child
}

fn mount_snapshot(desk: &Desk, name: &str) -> PathBuf {
    let at = desk.path("snap");
    fs::create_dir_all(&at).unwrap();
    desk.kmsfs(&format!("snapshot mount {{lower}} {name} {{snap}}")).ok();
    desk.adopt(at.clone());
    at
}

#[test]
fn a_snapshot_is_the_tree_at_one_moment_whatever_changes_meanwhile() {
    let desk = Desk::with_volume("snapshot-live");
    let mnt = desk.mount();
    populate(&mnt);
    let before = manifest(&mnt);
    let making = begin(&desk, "one");
    change_everything(&mnt);
    let made = making.wait_with_output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let after = manifest(&mnt);

    let at = mount_snapshot(&desk, "one");
    let mut found = manifest(&at);
    let mut expected = before;
    // Nothing is promised of the root's own times, in which the list of snapshots stands.
    found.remove(Path::new(""));
    expected.remove(Path::new(""));
    assert_same(&found, &expected);
    assert!(fs::write(at.join("no"), "x").is_err(), "a snapshot is read-only");
    desk.kmsfs("umount {snap}").ok();
    assert!(!desk.kmsfs("fsck {lower}/.kmsfs.snapshots/one").ok().contains("remark"));
    desk.kmsfs("snapshot create {mnt} one").fails(1, "already");
    desk.kmsfs("snapshot create {mnt} ../x").fails(1, "cannot be taken");
    assert_same(&manifest(&mnt), &after);
    desk.umount();
    assert!(!desk.kmsfs("fsck {lower}").ok().contains("remark"));
    desk.kmsfs("snapshot delete {lower} one").ok();
    desk.kmsfs("snapshot delete {lower} one").fails(1, "no snapshot 'one'");
    assert_eq!(fs::read_dir(desk.path("lower/.kmsfs.snapshots")).unwrap().count(), 0);
}

#[test]
fn a_volume_goes_back_to_a_snapshot_and_the_state_before_is_kept() {
    let desk = Desk::with_volume("snapshot-restore");
    let mnt = desk.mount();
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("dir/file"), "first").unwrap();
    fs::write(mnt.join("gone"), "gone").unwrap();
    desk.kmsfs("snapshot restore {mnt} a").fails(6, "unmount it first");
    desk.umount();
    desk.kmsfs("snapshot create {lower} a").ok();
    desk.mount();
    fs::write(mnt.join("dir/file"), "second").unwrap();
    fs::remove_file(mnt.join("gone")).unwrap();
    fs::write(mnt.join("new"), "new").unwrap();
    desk.umount();
    let said = desk.kmsfs("snapshot diff {lower} a").ok();
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["+ new", "- gone", "M dir/file"]);
    desk.kmsfs("snapshot restore {lower} none").fails(1, "no snapshot 'none'");
    desk.kmsfs("snapshot restore {lower} a").ok();
    desk.mount();
    assert_eq!(fs::read(mnt.join("dir/file")).unwrap(), b"first");
    assert!(mnt.join("gone").exists() && !mnt.join("new").exists());
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
    let listed = desk.kmsfs("snapshot list {lower} --json").json();
    let kept = listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap());
    let kept = kept.filter(|name| name.starts_with("before-a-")).collect::<Vec<_>>();
    assert_eq!(kept.len(), 1);
    let at = mount_snapshot(&desk, kept[0]);
    assert_eq!(fs::read(at.join("dir/file")).unwrap(), b"second");
    desk.kmsfs("umount {snap}").ok();
    // A snapshot put in the place of the volume does not pass for it.
    fs::rename(desk.path("lower"), desk.path("away")).unwrap();
    fs::rename(desk.path("away/.kmsfs.snapshots/a"), desk.path("lower")).unwrap();
    desk.kmsfs("mount {lower} {mnt}").fails(3, "-o snapshot");
}

#[test]
fn a_restore_killed_at_any_time_is_gone_on_with() {
    let desk = Desk::with_volume("snapshot-kill");
    let mnt = desk.mount();
    for n in 0..60 {
        fs::write(mnt.join(format!("f{n}")), contents(n, 0)).unwrap();
    }
    desk.umount();
    desk.kmsfs("snapshot create {lower} a").ok();
    for round in 0..6_u64 {
        desk.mount();
        fs::write(mnt.join("f7"), format!("round {round}")).unwrap();
        fs::write(mnt.join(format!("extra{round}")), "x").unwrap();
        desk.umount();
        let mut child = desk
            .command_of("snapshot restore {lower} a")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(15 * (round + 1)));
        let _ = child.kill();
        let _ = child.wait();
        // Before the swap began nothing has changed, in the middle of it no mount is made.
        if desk.path("lower/.kmsfs.restore").exists() {
            desk.kmsfs("mount {lower} {mnt}").fails(1, "was interrupted");
            desk.kmsfs("snapshot create {lower} other").fails(1, "was interrupted");
        }
        desk.kmsfs("snapshot restore {lower} a").ok();
        desk.mount();
        for n in 0..60 {
            assert_eq!(fs::read(mnt.join(format!("f{n}"))).unwrap(), contents(n, 0), "round {round}, f{n}");
        }
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 60, "round {round}");
        desk.umount();
    }
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_mount_killed_during_a_snapshot_leaves_none_and_the_next_one_works() {
    let desk = Desk::with_volume("snapshot-killed");
    let mnt = desk.mount();
    populate(&mnt);
    let making = begin(&desk, "one");
    desk.kill_mount();
    let ended = making.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        said.contains("mount it again, and give the same command")
            || desk.path("lower/.kmsfs.snapshots/one").exists(),
        "{said}"
    );
    run(Command::new("umount").arg("-l").arg(&mnt)).ok();
    let finished = desk.path("lower/.kmsfs.snapshots/one").exists();
    let listed = desk.kmsfs("snapshot list {lower} --json").json();
    assert_eq!(listed.as_array().unwrap().len(), usize::from(finished));
    desk.mount();
    desk.kmsfs("snapshot create {mnt} two").ok();
    let left = fs::read_dir(desk.path("lower/.kmsfs.snapshots")).unwrap().count();
    assert_eq!(left, 1 + usize::from(finished), "what was interrupted is cleaned up");
    desk.umount();
    desk.kmsfs("fsck {lower}/.kmsfs.snapshots/two").ok();
}

#[test]
fn a_copy_under_another_key_opens_with_that_key_alone() {
    let desk = Desk::with_volume("copy");
    let other = desk.key("other");
    let mnt = desk.mount();
    populate(&mnt);
    desk.kmsfs("copy {lower} {copy} --key alias/other").fails(6, "VOLUME@SNAPSHOT");
    desk.kmsfs("snapshot create {mnt} a").ok();
    let mut expected = manifest(&mnt);
    desk.kmsfs("copy {lower}@a {copy} --key alias/k").fails(4, "under it already");
    desk.kmsfs("copy {lower}@none {copy} --key alias/other").fails(1, "no snapshot 'none'");
    desk.kmsfs("copy {lower}@a {home} --key alias/other").fails(1, "is not empty");
    let copied = desk.kmsfs("copy {lower}@a {copy} --key alias/other --json").json();
    assert_eq!(copied["rewrapped"]["failed"], 0, "{copied}");
    desk.umount();
    desk.kmsfs("key disable alias/k").ok();
    desk.kmsfs("fsck {copy}").ok();
    let at = desk.path("snap");
    fs::create_dir(&at).unwrap();
    desk.kmsfs("mount {copy} {snap}").ok();
    desk.adopt(at.clone());
    let mut found = manifest(&at);
    found.remove(Path::new(""));
    expected.remove(Path::new(""));
    assert_same(&found, &expected);
    fs::write(at.join("new"), "x").unwrap();
    let info = desk.kmsfs("info {snap}/d0/e0/f15 --json").json();
    assert_eq!(info["slots"].as_array().unwrap().len(), 1, "no wrap under the old key is left");
    assert_eq!(info["slots"][0]["key_arn"], other.as_str());
    desk.kmsfs("umount {snap}").ok();
    desk.kmsfs("key enable alias/k").ok();
    desk.kmsfs("copy {lower}@a {same}").ok();
    desk.kmsfs("mount {same} {snap} --accept-older").ok();
    assert_eq!(fs::read(at.join("d0/e0/f15")).unwrap(), contents(15, 0));
    desk.kmsfs("umount {snap}").ok();
}

/// A small file system of its own at `disk`, on a loop device; gone with the guard.
struct Disk(PathBuf);

impl Disk {
    fn new(desk: &Desk, kind: &str, mib: u64) -> Option<Self> {
        let mkfs = ["/usr/sbin", "/sbin"].map(|dir| PathBuf::from(dir).join(format!("mkfs.{kind}")));
        let mkfs = mkfs.iter().find(|path| path.exists())?;
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return None;
        }
        let (image, at) = (desk.path("disk.img"), desk.path("disk"));
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new(mkfs).arg("-q").arg(&image)).ok();
        fs::create_dir_all(&at).unwrap();
        let mounted = run(Command::new("mount").arg("-o").arg("loop").arg(&image).arg(&at));
        (mounted.code == 0).then_some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn a_full_disk_fails_the_snapshot_and_nothing_else() {
    let desk = Desk::new("snapshot-full");
    desk.key("k");
    let Some(_disk) = Disk::new(&desk, "ext4", 40) else { return };
    desk.kmsfs("init {disk}/v --key alias/k").ok();
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.kmsfs("mount {disk}/v {mnt}").ok();
    desk.adopt(mnt.clone());
    fs::write(mnt.join("big"), vec![5; 18 << 20]).unwrap();
    desk.kmsfs("snapshot create {mnt} a").fails(1, "No space left");
    fs::write(mnt.join("small"), "there is space again").unwrap();
    assert_eq!(desk.kmsfs("snapshot list {mnt} --json").json().as_array().unwrap().len(), 0);
    assert_eq!(fs::read(mnt.join("big")).unwrap(), vec![5; 18 << 20]);
    desk.kmsfs("umount {mnt}").ok();
    desk.kmsfs("fsck {disk}/v").ok();
}

#[test]
fn where_blocks_can_be_shared_nothing_is_copied() {
    for (kind, mib) in [("xfs", 320), ("btrfs", 128)] {
        let desk = Desk::new("snapshot-reflink");
        desk.key("k");
        let Some(_disk) = Disk::new(&desk, kind, mib) else { continue };
        let volume = |line: &str| {
            run(desk.command_of(&format!("volume {line}")).env("KMSFS_STATE_DIR", desk.path("registry")))
        };
        volume("create v --key alias/k --at {disk}/v").ok();
        let mnt = desk.path("mnt");
        fs::create_dir(&mnt).unwrap();
        desk.kmsfs("mount {disk}/v {mnt}").ok();
        desk.adopt(mnt.clone());
        fs::create_dir(mnt.join("d")).unwrap();
        fs::write(mnt.join("d/big"), vec![5; 20 << 20]).unwrap();
        let made = desk.kmsfs("snapshot create {mnt} a --json").json();
        assert_eq!(made["copied_bytes"], 0, "{kind}: {made}");
        fs::write(mnt.join("d/big"), vec![6; 1 << 20]).unwrap();
        let at = desk.path("snap");
        fs::create_dir(&at).unwrap();
        desk.kmsfs("snapshot mount {mnt} a {snap}").ok();
        desk.adopt(at.clone());
        assert_eq!(fs::read(at.join("d/big")).unwrap(), vec![5; 20 << 20], "{kind}");
        desk.kmsfs("umount {snap}").ok();
        desk.kmsfs("umount {mnt}").ok();
        desk.kmsfs("fsck {disk}/v/.kmsfs.snapshots/a").ok();
        desk.kmsfs("snapshot restore {disk}/v a").ok();
        desk.kmsfs("mount {disk}/v {mnt}").ok();
        assert_eq!(fs::read(mnt.join("d/big")).unwrap(), vec![5; 20 << 20], "{kind}");
        desk.kmsfs("umount {mnt}").ok();
        volume("delete v --yes").ok();
        assert!(!desk.path("disk/v").exists(), "{kind}");
    }
}
