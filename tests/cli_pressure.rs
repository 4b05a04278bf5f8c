//! Both daemons where the machine is short of something, jumps in time, or ends them: nothing that was synced is lost, an
//! error is told once to each descriptor, and the service goes on.
#![allow(clippy::unwrap_used, missing_docs)]

mod programs;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use programs::{Desk, KMSD, KMSFS, run, sh};

const BLOCK: usize = 4096;

fn block(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(BLOCK / 8)
}

/// For reading and writing, made if need be.
fn open(path: &Path) -> File {
    File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

fn mount_pid(desk: &Desk) -> String {
    desk.kmsfs("status {mnt} --json").json()["pid"].to_string()
}

/// Whether nothing is left of a process but its name, with all of its locks.
fn has_ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_empty() || state.starts_with('Z') && threads == 1
}

/// The words of a command that does what `desk.kmsfs("mount {lower} {mnt}")` does.
fn mount_words(desk: &Desk) -> Vec<PathBuf> {
    fs::create_dir_all(desk.path("mnt")).unwrap();
    vec![KMSFS.into(), "mount".into(), desk.path("lower"), desk.path("mnt")]
}

/// Runs a program of the system with the environment of `kmsfs`.
fn with_environment(desk: &Desk, program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, value) in desk.command(&[]).get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

/// Overwrites, one version after the other, until `enough` were acknowledged and `act` was done. Gives the last version
/// that was acknowledged and the last that was begun.
fn overwrite_until(file: &File, enough: u64, act: impl FnOnce() + Send) -> (u64, u64) {
    let (synced, begun, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1.. {
                begun.store(version, Ordering::SeqCst);
                let place = version % 8 * BLOCK as u64;
                let written = file.write_all_at(&block(version), place).and_then(|()| file.sync_data());
                if written.is_err() || over.load(Ordering::SeqCst) {
                    return;
                }
                synced.store(version, Ordering::SeqCst);
            }
        });
        programs::eventually("enough is written", || synced.load(Ordering::SeqCst) >= enough);
        act();
        over.store(true, Ordering::SeqCst);
    });
    (synced.into_inner(), begun.into_inner())
}

#[test]
fn both_daemons_killed_at_once_under_load_lose_nothing_that_was_synced() {
    let desk = Desk::with_volume("pressure-kill");
    for round in 0..2 {
        let mnt = desk.mount();
        let file = open(&mnt.join("file"));
        if round == 0 {
            file.write_all_at(&vec![0; 8 * BLOCK], 0).unwrap();
            file.sync_all().unwrap();
        }
        let pids = [mount_pid(&desk), desk.kmsd_pid()];
        let (synced, begun) =
            overwrite_until(&file, 24, || _ = run(Command::new("kill").arg("-9").args(&pids)).ok());
        drop(file);
        assert!(synced >= 24, "round {round}");
        programs::eventually("both have ended", || pids.iter().all(|pid| has_ended(pid)));
        desk.kmsfs("umount {mnt} --lazy");
        desk.start_kmsd();
        let mnt = desk.mount();
        let found = fs::read(mnt.join("file")).unwrap();
        for place in 0..8 {
            let cell = &found[place as usize * BLOCK..][..BLOCK];
            let version = u64::from_le_bytes(*cell.first_chunk().unwrap());
            assert!(cell == block(version), "round {round}: a block is of two versions");
            assert!(
                version == 0 || version % 8 == place,
                "round {round}: block {place} is of version {version}"
            );
            // The newest of this place that was acknowledged, or a later one.
            let newest = (synced.saturating_sub(7)..=synced).find(|v| v % 8 == place).unwrap_or(0);
            assert!((newest..=begun).contains(&version), "round {round}: {version}, not {newest} to {begun}");
        }
        desk.umount();
    }
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_mount_of_few_descriptors_serves_more_files_and_directories_than_it_can_have_open() {
    let desk = Desk::with_volume("pressure-few");
    let limited = |limit: u32| {
        let mut command = with_environment(&desk, "prlimit");
        run(command.arg(format!("--nofile={limit}:{limit}")).args(mount_words(&desk)))
    };
    limited(127).fails(1, "ulimit -n");
    limited(128).ok();
    let mnt = desk.path("mnt");
    desk.adopt(mnt.clone());
    let path = |n: usize| mnt.join(format!("d{}/f{n}", n % 40));
    for n in 0..200 {
        fs::create_dir_all(path(n).parent().unwrap()).unwrap();
        fs::write(path(n), [n as u8; 5000]).unwrap();
    }
    let files: Vec<File> = (0..200).map(|n| open(&path(n))).collect();
    for (n, file) in files.iter().enumerate() {
        file.write_all_at(b"again", 4000).unwrap();
        file.sync_all().unwrap_or_else(|e| panic!("file {n}: {e}"));
    }
    drop(files);
    desk.umount();
    let mnt = desk.mount();
    for n in 0..200 {
        let found = fs::read(mnt.join(format!("d{}/f{n}", n % 40))).unwrap();
        assert_eq!(
            (found.len(), found[3999], &found[4000..4005]),
            (5000, n as u8, &b"again"[..]),
            "file {n}"
        );
    }
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_key_daemon_of_too_few_descriptors_says_so_and_does_not_begin() {
    let desk = Desk::with_volume("pressure-daemon");
    desk.stop_kmsd();
    let serve = |limit: u32| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).args([KMSD, "serve", "--background", "--dir"]);
        command.arg(desk.path("state")).arg("--socket").arg(desk.path("kmsd.sock"));
        run(command.arg("--seal").arg(format!("keyfile:{}", desk.path("root.key").display())))
    };
    serve(300).fails(9, "LimitNOFILE");
    serve(400).ok();
    // All of its places are taken, for a while.
    let socket = desk.path("kmsd.sock");
    let taken: Vec<_> =
        (0..400).map_while(|_| std::os::unix::net::UnixStream::connect(&socket).ok()).collect();
    assert!(taken.len() > 100);
    drop(taken);
    programs::eventually("it serves again", || desk.kmsfs("key list").code == 0);
}

/// Lets each thread of a process fail its next `calls` once, as long as this lives. What it says must find a reader.
struct Failing(std::process::Child, BufReader<std::process::ChildStderr>);

impl Failing {
    fn new(pid: &str, calls: &str) -> Option<Self> {
        let inject = format!("inject={calls}:error=EIO:when=1");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", &format!("trace={calls}"), "-e", &inject, "-o", "/dev/null", "-p", pid]);
        let mut child = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
        let (mut said, errors) = (String::new(), child.stderr.take()?);
        let mut failing = Self(child, BufReader::new(errors));
        failing.1.read_line(&mut said).ok()?;
        said.contains("attached").then_some(failing)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // It lets go of the process.
        run(Command::new("kill").arg(self.0.id().to_string()));
        self.0.wait().unwrap();
    }
}

#[test]
fn a_failed_sync_below_the_write_back_cache_is_told_once_to_each_descriptor_that_was_open() {
    let desk = Desk::with_volume("pressure-latch");
    let mnt = desk.mount();
    let path = mnt.join("file");
    let (first, second) = (open(&path), open(&path));
    // Too much for the log: the lower file itself is synced. Nothing but a sync that somebody asks for uses fsync(2).
    (&first).write_all(&vec![7; 1 << 20]).unwrap();
    let Some(failing) = Failing::new(&mount_pid(&desk), "fsync") else {
        return eprintln!("skipped: no process can be traced here");
    };
    let code = |synced: std::io::Result<()>| synced.err().and_then(|e| e.raw_os_error());
    assert_eq!(code(first.sync_all()), Some(5));
    drop(failing);
    let later = open(&path);
    assert_eq!(code(first.sync_all()), None, "told twice");
    assert_eq!(code(later.sync_all()), None, "it failed before this one was opened");
    assert_eq!(code(second.sync_all()), Some(5), "swallowed");
    assert_eq!(code(second.sync_all()), None, "told twice");
    drop((first, second, later));
    desk.umount();
    let mnt = desk.mount();
    assert!(fs::read(mnt.join("file")).unwrap() == vec![7; 1 << 20]);
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

/// Loaded before the C library's own: a wall clock that is as many seconds off as a file says.
const JUMPING: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) {
        char text[32] = "";
        int fd = syscall(SYS_openat, AT_FDCWD, getenv("CLOCK_OFF"), O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            if (syscall(SYS_read, fd, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
            syscall(SYS_close, fd);
        }
    }
    return failed;
}
"#;

#[test]
fn clocks_that_jump_back_and_forth_under_both_daemons_stop_nothing() {
    let desk = Desk::with_volume("pressure-clock");
    desk.stop_kmsd();
    let (source, shim, off) = (desk.path("jump.c"), desk.path("jump.so"), desk.path("off"));
    fs::write(&source, JUMPING).unwrap();
    sh(&["cc", "-shared", "-fPIC", "-o", shim.to_str().unwrap(), source.to_str().unwrap()]);
    let set = |seconds: i64| {
        // At once, for a reader in between.
        fs::write(desk.path("off.new"), seconds.to_string()).unwrap();
        fs::rename(desk.path("off.new"), &off).unwrap();
    };
    let jumping = |command: &mut Command| run(command.env("LD_PRELOAD", &shim).env("CLOCK_OFF", &off));
    set(0);
    let mut serve = Command::new(KMSD);
    serve.args(["serve", "--background", "--dir"]).arg(desk.path("state"));
    serve.arg("--socket").arg(desk.path("kmsd.sock"));
    jumping(serve.arg("--seal").arg(format!("keyfile:{}", desk.path("root.key").display()))).ok();
    jumping(with_environment(&desk, KMSFS).args(&mount_words(&desk)[1..])).ok();
    let mnt = desk.path("mnt");
    desk.adopt(mnt.clone());
    let year = 365 * 24 * 3600;
    let jumps = [10 * year, -10 * year, -1, 0];
    for (n, seconds) in jumps.into_iter().enumerate() {
        set(seconds);
        let file = File::create(mnt.join(format!("f{n}"))).unwrap();
        (&file).write_all(&[n as u8; 10_000]).unwrap();
        file.sync_all().unwrap();
        // Another key, and a decision on it, of the daemon.
        desk.kmsfs("lock {mnt}").ok();
        desk.kmsfs("unlock {mnt}").ok();
        for earlier in 0..=n {
            let found = fs::read(mnt.join(format!("f{earlier}")));
            assert_eq!(found.unwrap(), [earlier as u8; 10_000], "at {seconds} s");
        }
        desk.kmsfs(&format!("snapshot create {{mnt}} s{n}")).ok();
        assert_eq!(desk.kmsfs("snapshot list {mnt} --json").json().as_array().unwrap().len(), n + 1);
    }
    desk.umount();
    desk.stop_kmsd();
    run(Command::new(KMSD).args(["audit", "--dir"]).arg(desk.path("state")).arg("verify")).ok();
    desk.start_kmsd();
    let mnt = desk.mount();
    for n in 0..jumps.len() {
        assert_eq!(fs::read(mnt.join(format!("f{n}"))).unwrap(), [n as u8; 10_000]);
    }
    desk.umount();
    desk.kmsfs("fsck {lower}").ok();
}

/// A control group of little memory; gone with the guard.
struct LittleMemory(PathBuf);

impl LittleMemory {
    /// `None` where no such group can be made.
    fn new(label: &str, bytes: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own =
            |prefix: &str| groups.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path);
        let first = own(":memory:").map(|path| ("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
        let second = own("0::").map(|path| ("/sys/fs/cgroup", path, "memory.max"));
        [first, second].into_iter().flatten().find_map(|(root, own, limit)| {
            let group =
                PathBuf::from(format!("{root}{own}")).join(format!("kmsfs-{label}-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            fs::write(group.0.join(limit), bytes.to_string()).ok()?;
            Some(group)
        })
    }

    fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for LittleMemory {
    fn drop(&mut self) {
        // It is empty once the processes in it have ended.
        programs::eventually("the group is empty", || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

fn is_filled_with(path: &Path, byte: u8, len: u64) -> bool {
    let file = File::open(path).unwrap();
    let mut piece = vec![0; 1 << 20];
    let whole = |n: u64| file.read_exact_at(&mut piece, n << 20).is_ok() && piece.iter().all(|b| *b == byte);
    file.metadata().unwrap().len() == len && (0..len >> 20).all(whole)
}

#[test]
fn a_mount_of_little_memory_streams_more_than_it_has() {
    let desk = Desk::with_volume("pressure-memory");
    let Some(group) = LittleMemory::new("pressure", 80 << 20) else {
        return eprintln!("skipped: no control group of memory can be made here");
    };
    let words = mount_words(&desk);
    let mut command = with_environment(&desk, "sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.processes()).args(&words);
    let said = run(&mut command);
    if said.code != 0 && said.err.contains("cannot create") {
        return eprintln!("skipped: {}", said.err);
    }
    said.ok();
    let mnt = desk.path("mnt");
    desk.adopt(mnt.clone());
    let (len, piece) = (96 << 20, vec![9; 1 << 20]);
    let file = File::create(mnt.join("stream")).unwrap();
    for n in 0..len >> 20 {
        file.write_all_at(&piece, n << 20).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    for n in 0..100 {
        fs::write(mnt.join(format!("small{n}")), [n as u8; 3000]).unwrap();
    }
    desk.umount();
    let mnt = desk.mount();
    assert!(is_filled_with(&mnt.join("stream"), 9, len));
    assert!((0..100).all(|n| fs::read(mnt.join(format!("small{n}"))).unwrap() == [n as u8; 3000]));
    desk.umount();
    drop(group);
}
