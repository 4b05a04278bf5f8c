//! The built programs on a desk of their own: a key daemon with its store, volumes, mounts.
#![allow(dead_code, clippy::unwrap_used, missing_docs)] // Each test file uses its own part.

mod fresh_dir;
mod kill;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fresh_dir::fresh_dir;

pub const KMSFS: &str = env!("CARGO_BIN_EXE_kmsfs");
pub const KMSD: &str = env!("CARGO_BIN_EXE_kmsd");
/// Any wait for something that must come.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The output of a success.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Checks for a failure with one clear line that holds `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(words), "'{words}' in {self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }

    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

pub fn run(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A directory with a running key daemon; everything of it ends with it.
pub struct Desk {
    pub dir: PathBuf,
    mounts: std::cell::RefCell<Vec<PathBuf>>,
}

impl Desk {
    pub fn new(label: &str) -> Self {
        Self::made(label, &[])
    }

    /// With further arguments of `kmsd init`.
    pub fn made(label: &str, how: &[&str]) -> Self {
        let desk = Self { dir: fresh_dir(label), mounts: Vec::new().into() };
        fs::create_dir(desk.path("home")).unwrap();
        let seal = format!("keyfile:{}", desk.path("root.key").display());
        let mut init = Command::new(KMSD);
        run(init.arg("init").arg("--dir").arg(desk.path("state")).arg("--seal").arg(seal).args(how)).ok();
        desk.start_kmsd();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn start_kmsd(&self) {
        self.start_kmsd_with(&[]);
    }

    /// With further arguments of `serve`.
    pub fn start_kmsd_with(&self, arguments: &[&str]) {
        run(self.serve().args(arguments)).ok();
    }

    fn serve(&self) -> Command {
        let mut command = Command::new(KMSD);
        command.arg("serve").arg("--dir").arg(self.path("state")).arg("--socket").arg(self.path("kmsd.sock"));
        let seal = format!("keyfile:{}", self.path("root.key").display());
        command.arg("--seal").arg(seal).arg("--background");
        command
    }

    /// With a clock that is so many seconds off.
    pub fn start_kmsd_off(&self, seconds: i64) {
        let (source, shift) = (self.path("shift.c"), self.path("shift.so"));
        fs::write(&source, SHIFT).unwrap();
        sh(&["cc", "-shared", "-fPIC", "-o", shift.to_str().unwrap(), source.to_str().unwrap()]);
        let mut command = self.serve();
        run(command.env("LD_PRELOAD", shift).env("CLOCK_SHIFT", seconds.to_string())).ok();
    }

    pub fn stop_kmsd(&self) {
        run(Command::new(KMSD).arg("stop").arg("--dir").arg(self.path("state"))).ok();
    }

    /// The process of the key daemon.
    pub fn kmsd_pid(&self) -> String {
        let state = self.path("state").into_os_string().into_encoded_bytes();
        let serves = |process: &PathBuf| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&&b"serve"[..]) && words.contains(&state.as_slice())
        };
        let mut processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let found = processes.find(serves).unwrap();
        found.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// Stops the key daemon in its tracks, which comes back once no thread of it runs any more: the signal itself is only
    /// on its way when it has been sent.
    pub fn freeze_kmsd(&self) -> Frozen {
        Frozen::freeze(self.kmsd_pid())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KMSFS);
        command.args(args).env("HOME", self.path("home")).env_remove("XDG_DATA_HOME");
        command.env("KMSFS_KMS", format!("unix:{}", self.path("kmsd.sock").display()));
        command
    }

    /// Runs `kmsfs` with words; `{name}` stands for that path on the desk.
    pub fn kmsfs(&self, line: &str) -> Said {
        run(&mut self.command_of(line))
    }

    /// The command that [`Self::kmsfs`] runs.
    pub fn command_of(&self, line: &str) -> Command {
        let words: Vec<String> = line.split(' ').map(|word| self.expand(word)).collect();
        self.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn expand(&self, word: &str) -> String {
        match (word.find('{'), word.find('}')) {
            (Some(open), Some(close)) => {
                let path = self.path(&word[open + 1..close]);
                format!("{}{}{}", &word[..open], path.display(), &word[close + 1..])
            }
            _ => word.to_owned(),
        }
    }

    /// Makes the key `alias/NAME`.
    pub fn key(&self, name: &str) -> String {
        self.kmsfs(&format!("key create --alias alias/{name}")).ok().trim().to_owned()
    }

    /// A key `alias/k` and a volume `lower` under it.
    pub fn with_volume(label: &str) -> Self {
        Self::with_volume_made(label, "")
    }

    /// The same, made with further words of `kmsfs init`.
    pub fn with_volume_made(label: &str, how: &str) -> Self {
        let desk = Self::new(label);
        desk.key("k");
        desk.kmsfs(&format!("init {{lower}} --key alias/k{how}")).ok();
        desk
    }

    /// Mounts `lower` at `mnt`.
    pub fn mount(&self) -> PathBuf {
        let mountpoint = self.path("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        self.kmsfs("mount {lower} {mnt}").ok();
        self.mounts.borrow_mut().push(mountpoint.clone());
        mountpoint
    }

    /// Mounts `lower` at `mnt` with further options; what that said.
    pub fn try_mount(&self, options: &str) -> Said {
        fs::create_dir_all(self.path("mnt")).unwrap();
        let said = self.kmsfs(format!("mount {{lower}} {{mnt}} {options}").trim_end());
        if said.code == 0 {
            self.adopt(self.path("mnt"));
        }
        said
    }

    /// The ARN of the key with that alias.
    pub fn arn(&self, alias: &str) -> String {
        let described = self.kmsfs(&format!("key describe alias/{alias} --json")).json();
        described["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// The ARN of the key that the file `name` of the mount is under.
    pub fn key_of(&self, name: &str) -> String {
        let info = self.kmsfs(&format!("info {{mnt}}/{name} --json")).json();
        let slots = info["slots"].as_array().unwrap();
        slots.iter().find(|slot| slot["active"] == true).unwrap()["key_arn"].as_str().unwrap().to_owned()
    }

    /// The records of the audit log that a search finds.
    pub fn audit(&self, search: &[&str]) -> Vec<serde_json::Value> {
        let mut command = Command::new(KMSD);
        command.args(["audit", "--dir"]).arg(self.path("state")).arg("search").args(search);
        run(&mut command).ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn umount(&self) {
        self.kmsfs("umount {mnt}").ok();
        self.mounts.borrow_mut().clear();
    }

    /// Ends the daemon of the mount `mnt` as a crash does; the dead mount stays.
    pub fn kill_mount(&self) {
        let pid = self.kmsfs("status {mnt} --json").json()["pid"].as_i64().unwrap();
        kill(pid as i32);
    }

    /// The key of `file` is taken from the live mount, which notices; so does who `held` it open, and no key is kept.
    pub fn loses_the_key_of(&self, file: &Path, held: &fs::File) {
        eventually("the live mount notices", || refusal(file) == Some(libc::ENOKEY));
        let refused = || FileExt::read_exact_at(held, &mut [0; 1], 50_000).is_err();
        eventually("its open files too", refused);
        eventually("no key is kept", || {
            let status = self.kmsfs("status {mnt} --json").json();
            status["cached_keys"] == 0 && status["fresh_keys"] == 0
        });
    }

    /// A mount that the test made by itself, to be taken away at the end.
    pub fn adopt(&self, mountpoint: PathBuf) {
        self.mounts.borrow_mut().push(mountpoint);
    }

    /// Regular files of the lower tree that hold ciphertext, sorted.
    pub fn lower_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.path("lower"), &mut found);
        found.sort();
        found
    }
}

/// Loaded before the C library's own: the wall clock of a process, set off.
const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += atol(getenv("CLOCK_SHIFT"));
    return failed;
}
"#;

/// Kills a process, and comes back when it is gone.
#[track_caller]
pub fn kill(pid: i32) {
    kill::kill(pid, PATIENCE);
}

/// Runs a program of the system that must succeed.
pub fn sh(words: &[&str]) {
    assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{words:?}");
}

/// A small filesystem of its own below the desk, taken away on drop. Needs root.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn mount(desk: &Desk) -> Self {
        let dir = desk.path("disk");
        fs::create_dir(&dir).unwrap();
        sh(&["mount", "-t", "tmpfs", "-o", "size=3m", "kmsfs-test", dir.to_str().unwrap()]);
        Self(dir)
    }

    pub fn make_read_only(&self) {
        sh(&["mount", "-o", "remount,ro", self.0.to_str().unwrap()]);
    }

    /// Gives it more space.
    pub fn grow(&self) {
        sh(&["mount", "-o", "remount,size=30m", self.0.to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, it goes when the mount above it is gone too, also when the test fails.
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

/// A process that stands still, until this is dropped.
pub struct Frozen {
    pid: String,
}

impl Frozen {
    pub fn freeze(pid: String) -> Self {
        run(Command::new("kill").arg("-STOP").arg(&pid)).ok();
        let frozen = Self { pid };
        eventually("the process stands still", || frozen.stands_still());
        frozen
    }

    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        // The state comes behind the name, which stands in brackets. Who has ended stands still, too.
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat"))).all(|stat| {
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z']))
            })
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run(Command::new("kill").arg("-CONT").arg(&self.pid));
    }
}

/// All that a program can see of a tree.
pub fn manifest(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let stat = path.symlink_metadata().unwrap();
        let mut text = format!("{:o} {} {}.{}", stat.mode(), stat.nlink(), stat.mtime(), stat.mtime_nsec());
        if stat.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_symlink() {
            let _ = write!(text, " -> {}", fs::read_link(&path).unwrap().display());
        } else {
            let data = fs::read(&path).unwrap();
            let sum = data.iter().fold(7_u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
            let _ = write!(text, " {} {sum}", data.len());
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
    }
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let ours = path.file_name().unwrap().to_string_lossy().starts_with(".kmsfs.");
        if path.is_dir() && !path.is_symlink() {
            walk(&path, found);
        } else if path.is_file() && !path.is_symlink() && !ours {
            found.push(path);
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for mountpoint in self.mounts.borrow().iter() {
            let _ = run(self.command(&["umount", "--lazy"]).arg(mountpoint));
        }
        let _ = run(Command::new(KMSD).arg("stop").arg("--dir").arg(self.path("state")));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Why reading `path` fails; `None` where it goes well.
pub fn refusal(path: &Path) -> Option<i32> {
    fs::read(path).err().and_then(|e| e.raw_os_error())
}

/// Waits until `done`, and fails when that takes too long.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
