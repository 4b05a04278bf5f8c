//! Mounts by the command line: refusals, status, revocation, a service that goes away, fstab's form.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use programs::{Desk, KMSFS, eventually, run};

#[test]
fn a_mount_keeps_what_is_written_and_tells_about_itself() {
    let desk = Desk::with_volume("mount");
    let mnt = desk.mount();
    fs::create_dir_all(mnt.join("a/b")).unwrap();
    fs::write(mnt.join("a/b/file"), "secret").unwrap();
    let status = desk.kmsfs("status {mnt} --json").json();
    assert_eq!(status["lower"], desk.path("lower").to_str().unwrap());
    assert_eq!(status["read_only"], false);
    let all = desk.kmsfs("status --json").json();
    assert!(all.as_array().unwrap().iter().any(|s| s["mountpoint"] == mnt.to_str().unwrap()));
    let info = desk.kmsfs("info {mnt}/a/b/file --json").json();
    assert_eq!((&info["size"], &info["slots"][0]["active"]), (&6.into(), &true.into()), "{info}");
    assert_eq!(
        fs::metadata(info["lower_path"].as_str().unwrap()).unwrap().len(),
        info["lower_size"].as_u64().unwrap()
    );
    desk.kmsfs("info {mnt}/a/none").fails(1, "none");
    desk.umount();
    assert!(!mnt.join("a").exists());
    let mnt = desk.mount();
    assert_eq!(fs::read_to_string(mnt.join("a/b/file")).unwrap(), "secret");
    desk.kmsfs("lock {mnt} --once").ok();
    assert_eq!(fs::read_to_string(mnt.join("a/b/file")).unwrap(), "secret");
    desk.umount();
    desk.kmsfs("status {mnt}").fails(1, "not a mount point");
    desk.kmsfs("umount {mnt}").fails(1, "cannot unmount");
}

#[test]
fn a_busy_mount_stays_and_a_lazy_end_waits_for_the_last_file() {
    use std::io::{Seek, SeekFrom, Write};
    let desk = Desk::with_volume("busy");
    let mnt = desk.mount();
    let mut held =
        fs::File::options().read(true).write(true).create_new(true).open(mnt.join("held")).unwrap();
    held.write_all(b"before").unwrap();
    let said = desk.kmsfs("umount {mnt}").fails(6, "close what is open there, or use --lazy");
    assert!(!said.err.contains(".;"), "{}", said.err);
    held.write_all(b" after").unwrap();
    desk.kmsfs("umount {mnt} --lazy").ok();
    assert!(!mnt.join("held").exists());
    desk.kmsfs("mount {lower} {mnt}").fails(6, "in use by another mount");
    held.write_all(b" and on").unwrap();
    held.sync_all().unwrap();
    let mut text = String::new();
    held.seek(SeekFrom::Start(0)).unwrap();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before after and on");
    drop(held);
    eventually("the first mount has ended", || desk.kmsfs("mount {lower} {mnt}").code == 0);
    assert_eq!(fs::read_to_string(mnt.join("held")).unwrap(), "before after and on");
    desk.umount();
}

#[test]
fn places_that_cannot_be_mounted_are_refused_with_the_reason() {
    let desk = Desk::with_volume("places");
    for dir in ["full", "other", "lower/inside"] {
        fs::create_dir_all(desk.path(dir)).unwrap();
    }
    fs::write(desk.path("full/file"), "x").unwrap();
    desk.kmsfs("mount {lower} {missing}").fails(7, "make it with mkdir");
    desk.kmsfs("mount {lower} {full}").fails(7, "is not empty");
    desk.kmsfs("mount {lower} {full}/file").fails(7, "is not a directory");
    desk.kmsfs("mount {lower} {lower}/inside").fails(7, "lies inside the lower directory");
    desk.kmsfs("mount {lower} {lower}").fails(7, "lies inside the lower directory");
    symlink(desk.path("lower/inside"), desk.path("sly")).unwrap();
    desk.kmsfs("mount {lower} {sly}").fails(7, "lies inside the lower directory");
    desk.kmsfs("mount {missing} {other}").fails(7, "missing");
    desk.kmsfs("mount {lower} {other} -o compress").fails(2, "'compress' is not known");
    desk.mount();
    desk.kmsfs("mount {lower} {other}").fails(6, "in use by another mount");
    desk.kmsfs("init {second} --key alias/k").ok();
    desk.kmsfs("mount {second} {mnt}").fails(6, "is in use");
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let desk = Desk::with_volume("ro");
    let mnt = desk.mount();
    fs::write(mnt.join("file"), "x").unwrap();
    desk.umount();
    desk.kmsfs("mount {lower} {mnt} --read-only").ok();
    desk.adopt(mnt.clone());
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "x");
    assert_eq!(fs::write(mnt.join("file"), "y").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(desk.kmsfs("status {mnt} --json").json()["read_only"], true);
}

#[test]
fn a_disabled_key_ends_reads_of_open_files_and_an_enabled_one_lets_them_go_on() {
    let desk = Desk::with_volume("revoke");
    let mnt = desk.mount();
    fs::write(mnt.join("open"), vec![1; 100_000]).unwrap();
    fs::write(mnt.join("dirty"), "before").unwrap();
    let mut open = fs::File::open(mnt.join("open")).unwrap();
    let mut byte = [0];
    open.read_exact(&mut byte).unwrap();
    let mut dirty = fs::OpenOptions::new().append(true).open(mnt.join("dirty")).unwrap();
    std::io::Write::write_all(&mut dirty, b" and after").unwrap();
    desk.kmsfs("key disable alias/k").ok();
    let read = |path: &str| fs::read(mnt.join(path));
    let no_key = Some(rustix::io::Errno::NOKEY.raw_os_error());
    eventually("new opens fail", || read("open").is_err_and(|e| e.raw_os_error() == no_key));
    eventually("reads of open files fail", || {
        std::os::unix::fs::FileExt::read_at(&open, &mut byte, 50_000).is_err()
    });
    assert!(fs::metadata(mnt.join("open")).is_ok_and(|m| m.len() == 100_000), "stat needs no key");
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 2, "readdir needs no key");
    desk.kmsfs("key enable alias/k").ok();
    assert_eq!(read("open").unwrap(), vec![1; 100_000]);
    std::os::unix::fs::FileExt::read_at(&open, &mut byte, 50_000).unwrap();
    assert_eq!(read("dirty").unwrap(), b"before and after", "what was written before the revocation is kept");
    drop((open, dirty));
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_service_that_is_away_stops_new_files_only() {
    let desk = Desk::with_volume("away");
    let mnt = desk.mount();
    fs::write(mnt.join("cached"), "cached").unwrap();
    fs::write(mnt.join("cold"), "cold").unwrap();
    desk.umount();
    desk.mount();
    assert_eq!(fs::read_to_string(mnt.join("cached")).unwrap(), "cached");
    desk.stop_kmsd();
    let cold = fs::read_to_string(mnt.join("cold")).unwrap_err();
    assert_eq!(cold.raw_os_error(), Some(rustix::io::Errno::HOSTDOWN.raw_os_error()), "{cold}");
    assert_eq!(fs::read_to_string(mnt.join("cached")).unwrap(), "cached");
    desk.start_kmsd();
    eventually("the file opens again", || fs::read_to_string(mnt.join("cold")).is_ok());
}

#[test]
fn a_stopped_service_stops_cold_files_only_and_for_a_short_time() {
    let desk = Desk::with_volume("stopped");
    let mnt = desk.mount();
    for n in 0..40 {
        fs::write(mnt.join(format!("cold{n}")), "cold").unwrap();
    }
    fs::write(mnt.join("cached"), "cached").unwrap();
    desk.umount();
    desk.mount();
    assert_eq!(fs::read_to_string(mnt.join("cached")).unwrap(), "cached");
    let frozen = desk.freeze_kmsd();
    let readers: Vec<_> = (0..40)
        .map(|n| {
            let path = mnt.join(format!("cold{n}"));
            std::thread::spawn(move || fs::read_to_string(path).map_err(|e| e.raw_os_error()))
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(fs::read_to_string(mnt.join("cached")).unwrap(), "cached");
        fs::write(mnt.join("cached"), "cached").unwrap();
    }
    let host_down = rustix::io::Errno::HOSTDOWN.raw_os_error();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Err(Some(host_down)));
    }
    drop(frozen);
    eventually("the files open again", || {
        (0..40).all(|n| fs::read_to_string(mnt.join(format!("cold{n}"))).is_ok_and(|text| text == "cold"))
    });
    desk.umount();
}

#[test]
fn a_mount_that_was_killed_is_mounted_again() {
    let desk = Desk::with_volume("killed");
    let mnt = desk.mount();
    fs::write(mnt.join("file"), vec![5; 300_000]).unwrap();
    fs::File::open(mnt.join("file")).unwrap().sync_all().unwrap();
    desk.kill_mount();
    // A list may open, and then fail; the kernel forgets the directory's times with that.
    let lives =
        || fs::read_dir(&mnt).is_ok_and(|mut entries| entries.next().is_some_and(|entry| entry.is_ok()));
    eventually("the dead mount shows", || !lives());
    desk.kmsfs("mount {lower} {mnt}").fails(6, "unmount it first");
    desk.umount();
    desk.mount();
    assert_eq!(fs::read(mnt.join("file")).unwrap(), vec![5; 300_000]);
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

/// With a directory of sockets of its own, in which another mount stands still.
#[test]
fn a_mount_that_stands_still_is_not_asked_about_another() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: a mount namespace needs root");
    }
    let desk = Desk::with_volume("mute");
    for dir in ["run", "mnt"] {
        fs::create_dir(desk.path(dir)).unwrap();
    }
    let mute = UnixListener::bind(desk.path("run/mount-0000000000000000.sock")).unwrap();
    mute.set_nonblocking(true).unwrap();
    let script = r#"mkdir -p /run/kmsfs; mount --bind "$1/run" /run/kmsfs; cd /; kmsfs=$0 mnt=$1/mnt
        "$kmsfs" mount "$1/lower" "$mnt"; echo text >"$mnt/file"; "$kmsfs" status "$mnt"; "$kmsfs" info "$mnt/file"
        "$kmsfs" top "$mnt" --batch 1; "$kmsfs" lock --once "$mnt"; "$kmsfs" snapshot create "$1/lower" one; "$kmsfs" umount "$mnt""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script, KMSFS]).arg(&desk.dir);
    let environment = desk.command(&[]);
    command.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut command).ok();
    assert_eq!(mute.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it was asked");
}

#[test]
fn the_foreground_form_ends_with_a_signal() {
    let desk = Desk::with_volume("foreground");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    let mut command = desk.command(&["mount", "--foreground"]);
    let mut child = command.arg(desk.path("lower")).arg(&mnt).stderr(Stdio::null()).spawn().unwrap();
    eventually("the mount answers", || desk.kmsfs("status {mnt}").code == 0);
    fs::write(mnt.join("file"), "x").unwrap();
    run(Command::new("kill").arg("-TERM").arg(child.id().to_string())).ok();
    assert!(child.wait().unwrap().success());
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn an_idle_mount_goes_away() {
    let desk = Desk::with_volume("idle");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    desk.kmsfs("mount {lower} {mnt} --idle 1h").ok();
    assert_eq!(desk.kmsfs("status {mnt} --json").json()["idle_seconds"], 3600);
    desk.kmsfs("umount {mnt}").ok();
    desk.kmsfs("mount {lower} {mnt} --idle 1s").ok();
    eventually("the mount goes away", || desk.kmsfs("status {mnt}").code != 0);
}

#[test]
fn fstab_reaches_the_same_mount() {
    let desk = Desk::with_volume("fstab");
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    let helper = desk.path("mount.fuse.kmsfs");
    symlink(KMSFS, &helper).unwrap();
    let options = format!("ro,nofail,kms=unix:{}", desk.path("kmsd.sock").display());
    let call = |lower: &str| {
        run(Command::new(&helper)
            .arg(desk.path(lower))
            .arg(&mnt)
            .arg("-o")
            .arg(&options)
            .env_remove("KMSFS_KMS"))
    };
    call("none").fails(32, "none");
    call("lower").ok();
    assert!(fs::write(mnt.join("file"), "x").is_err());
}
