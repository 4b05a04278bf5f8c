//! Many threads at once, and random operations held against a plain directory.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{TempDir, Volume, pattern};
use rustix::fs::{FallocateFlags, RenameFlags, XattrFlags};

/// A small generator, so that a run can be repeated from its printed seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

/// The same in every run; `KMSFS_TEST_SEED` gives others.
fn seed_of(test: &str) -> u64 {
    let given = std::env::var("KMSFS_TEST_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let seed = given.unwrap_or(2026) | 1;
    println!("{test}: KMSFS_TEST_SEED={seed}");
    seed
}

#[test]
fn many_threads_write_read_rename_and_remove() {
    let volume = Volume::new("threads");
    let mount = volume.mount();
    let seed = seed_of("threads");
    fs::create_dir(mount.join("shared")).unwrap();
    let workers: Vec<_> = (0..8u64)
        .map(|worker| {
            let root = mount.path.clone();
            std::thread::spawn(move || work(&root, worker, Random(seed.wrapping_add(worker * 2))))
        })
        .collect();
    let kept: Vec<_> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    let check = |root: &Path| {
        for (worker, files) in kept.iter().enumerate() {
            for (name, content) in files {
                let path = root.join(format!("w{worker}")).join(name);
                assert_eq!(fs::read(&path).unwrap(), pattern(content.0, content.1), "{}", path.display());
            }
            let count = fs::read_dir(root.join(format!("w{worker}"))).unwrap().count();
            assert_eq!(count, files.len());
        }
    };
    check(&mount.path);
    mount.unmount();
    let mount = volume.mount();
    check(&mount.path);
    mount.unmount();
}

/// The kernel keeps sizes on its own while it collects writes; where it takes two cuts for made in another order than they
/// were, it shows a size that the file does not have, for as long as it knows the file.
#[test]
fn truncating_opens_and_truncations_at_once_leave_one_size() {
    let volume = Volume::new("one-size");
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, "some").unwrap();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    for round in 0..50 {
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            });
            scope.spawn(|| {
                start.wait();
                file.set_len(300_000).unwrap();
            });
            start.wait();
            (&file).write_all(b"+").unwrap();
        });
        file.sync_all().unwrap();
        let shown = file.metadata().unwrap();
        let held = mount.tree().attr(shown.ino()).unwrap().size;
        assert_eq!(shown.len(), held, "shown and held in round {round}");
    }
    drop(file);
    mount.unmount();
}

/// A rename moves what is bound to its place in several steps, which nobody else may see half done; and the link that it
/// puts in the place of another has an inode of its own, while the kernel still knows the other.
#[test]
fn bound_names_that_many_threads_move_still_open() {
    let volume = Volume::binding_names("bound-threads");
    let mount = volume.mount();
    let seed = seed_of("bound");
    let root = mount.path.clone();
    let name = |random: &mut Random| {
        let dir = ["", "d0/", "d1/"][random.below(3) as usize];
        root.join(format!("{dir}n{}", random.below(6)))
    };
    for dir in ["d0", "d1"] {
        fs::create_dir(mount.join(dir)).unwrap();
    }
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let name = &name;
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_add(worker * 2));
                for _ in 0..400 {
                    let (from, to) = (name(&mut random), name(&mut random));
                    // Others take away what this one is about to use: most of these may fail.
                    let done = match random.below(6) {
                        0 => fs::write(&from, pattern(5000, 1)),
                        1 => std::os::unix::fs::symlink("target", &from),
                        2 => fs::rename(&from, &to),
                        3 => exchange(&from, &to),
                        4 => fs::read_link(&from).map(drop),
                        _ => fs::remove_file(&from),
                    };
                    let damage =
                        done.is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()));
                    assert!(!damage, "{} {}", from.display(), to.display());
                }
            });
        }
    });
    let before = snapshot(&mount.path);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(snapshot(&mount.path), before);
    mount.unmount();
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// One thread's share, in its own directory and a shared one; what must be there at the end.
fn work(root: &Path, worker: u64, mut random: Random) -> BTreeMap<String, (usize, u64)> {
    let own = root.join(format!("w{worker}"));
    fs::create_dir(&own).unwrap();
    let mut files = BTreeMap::new();
    for step in 0..150u64 {
        let name = format!("f{}", random.below(20));
        let content = (random.below(40_000) as usize, worker * 1000 + step);
        match random.below(5) {
            0 | 1 => {
                fs::write(own.join(&name), pattern(content.0, content.1)).unwrap();
                files.insert(name, content);
            }
            2 => {
                if files.remove(&name).is_some() {
                    fs::remove_file(own.join(&name)).unwrap();
                }
            }
            3 => {
                // Through the shared directory, under names that other threads use as well.
                let there = root.join("shared").join(format!("s{worker}-{step}"));
                if let Some(content) = files.remove(&name) {
                    fs::rename(own.join(&name), &there).unwrap();
                    assert_eq!(fs::read(&there).unwrap(), pattern(content.0, content.1));
                    let back = format!("back{}", random.below(10));
                    fs::rename(&there, own.join(&back)).unwrap();
                    files.insert(back, content);
                }
            }
            _ => {
                if let Some(content) = files.get(&name) {
                    assert_eq!(fs::read(own.join(&name)).unwrap(), pattern(content.0, content.1));
                }
            }
        }
    }
    files
}

#[test]
fn writers_of_different_ranges_of_one_file_do_not_disturb_each_other() {
    let volume = Volume::new("ranges");
    let mount = volume.mount();
    let path = mount.join("f");
    File::create(&path).unwrap().set_len(8 * 100_000).unwrap();
    let writers: Vec<_> = (0..8u64)
        .map(|n| {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            std::thread::spawn(move || {
                let (base, mine) = (n * 100_000, pattern(100_000, n));
                for at in (0..100_000).step_by(7919) {
                    let end = (at + 7919).min(100_000);
                    file.write_all_at(&mine[at..end], base + at as u64).unwrap();
                    if n % 2 == 0 {
                        file.sync_data().unwrap();
                    }
                }
                let mut back = vec![0; 100_000];
                file.read_exact_at(&mut back, base).unwrap();
                assert_eq!(back, mine);
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let expected: Vec<u8> = (0..8).flat_map(|n| pattern(100_000, n)).collect();
    assert_eq!(fs::read(&path).unwrap(), expected);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.join("f")).unwrap(), expected);
    mount.unmount();
}

/// One random operation with its arguments, to be applied to both trees alike.
#[derive(Debug, Clone)]
enum Op {
    Create(PathBuf),
    CreateExclusive(PathBuf),
    Write(PathBuf, u64, usize, u64),
    Append(PathBuf, usize, u64),
    Read(PathBuf, u64, usize),
    Truncate(PathBuf, u64),
    Unlink(PathBuf),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    Rename(PathBuf, PathBuf),
    RenameNoReplace(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    Symlink(String, PathBuf),
    ReadLink(PathBuf),
    Mode(PathBuf, u32),
    Times(PathBuf, i64),
    SetXattr(PathBuf, u64, usize),
    RemoveXattr(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    ZeroRange(PathBuf, u64, u64),
    Preallocate(PathBuf, u64, u64),
    CopyRange(PathBuf, PathBuf, u64, u64, usize),
    Sync(PathBuf),
    Fifo(PathBuf),
    List(PathBuf),
    WriteUnlinked(PathBuf, usize, u64),
}

const KINDS: u64 = 27;

/// Names that collide often; some are long.
fn random_path(random: &mut Random) -> PathBuf {
    let mut path = PathBuf::new();
    for _ in 0..random.below(3) {
        path.push(format!("d{}", random.below(3)));
    }
    let name = match random.below(8) {
        0 => "L".repeat(200 + random.below(56) as usize),
        1 | 2 => format!("d{}", random.below(3)),
        _ => format!("n{}", random.below(8)),
    };
    path.join(name)
}

fn random_op(random: &mut Random) -> Op {
    let (a, b) = (random_path(random), random_path(random));
    let (offset, len) = (random.below(120_000), random.below(60_000) + 1);
    let (size, seed) = (len as usize, random.next());
    match random.below(KINDS) {
        0 => Op::Create(a),
        1 => Op::CreateExclusive(a),
        2 => Op::Write(a, offset, size, seed),
        3 => Op::Append(a, size, seed),
        4 => Op::Read(a, offset, size),
        5 => Op::Truncate(a, offset),
        6 => Op::Unlink(a),
        7 => Op::MakeDir(a),
        8 => Op::RemoveDir(a),
        9 => Op::Rename(a, b),
        10 => Op::RenameNoReplace(a, b),
        11 => Op::Exchange(a, b),
        12 => Op::HardLink(a, b),
        13 => Op::Symlink(format!("target-{}", seed % 1000), a),
        14 => Op::ReadLink(a),
        15 => Op::Mode(a, 0o700 | (seed as u32 & 0o77)),
        16 => Op::Times(a, (seed % 2_000_000_000) as i64),
        17 => Op::SetXattr(a, seed % 4, size % 500),
        18 => Op::RemoveXattr(a, seed % 4),
        19 => Op::Punch(a, offset, len),
        20 => Op::ZeroRange(a, offset, len),
        21 => Op::Preallocate(a, offset, len),
        22 => Op::CopyRange(a, b, offset, seed % 50_000, size),
        23 => Op::Sync(a),
        24 => Op::Fifo(a),
        25 => Op::List(a),
        _ => Op::WriteUnlinked(a, size, seed),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A fifo would block, and must fail alike on both sides.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    OpenOptions::new().read(true).write(true).open(path)
}

/// Applies `op` below `root`; what it gave, for comparison.
fn apply(root: &Path, op: &Op) -> io::Result<Vec<u8>> {
    let at = |path: &PathBuf| root.join(path);
    let done = |result: io::Result<()>| result.map(|()| Vec::new());
    match op {
        Op::Create(a) | Op::CreateExclusive(a) => {
            if fs::symlink_metadata(at(a)).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
                return Ok(Vec::new());
            }
            let exclusive = matches!(op, Op::CreateExclusive(_));
            let mut options = OpenOptions::new();
            options.write(true).create(true).create_new(exclusive).truncate(!exclusive);
            done(options.open(at(a)).map(drop))
        }
        Op::Write(a, offset, len, seed) => done(open(&at(a))?.write_all_at(&pattern(*len, *seed), *offset)),
        Op::Append(a, len, seed) => {
            let end = open(&at(a))?.metadata()?.len();
            done(open(&at(a))?.write_all_at(&pattern(*len, *seed), end))
        }
        Op::Read(a, offset, len) => {
            let mut out = vec![0; *len];
            let n = open(&at(a))?.read_at(&mut out, *offset)?;
            out.truncate(n);
            Ok(out)
        }
        Op::Truncate(a, size) => done(open(&at(a))?.set_len(*size)),
        Op::Unlink(a) => done(fs::remove_file(at(a))),
        Op::MakeDir(a) => done(fs::create_dir(at(a))),
        Op::RemoveDir(a) => done(fs::remove_dir(at(a))),
        Op::Rename(a, b) => done(fs::rename(at(a), at(b))),
        Op::RenameNoReplace(a, b) => done(rename(&at(a), &at(b), RenameFlags::NOREPLACE)),
        Op::Exchange(a, b) => done(rename(&at(a), &at(b), RenameFlags::EXCHANGE)),
        Op::HardLink(a, b) => done(fs::hard_link(at(a), at(b))),
        Op::Symlink(target, a) => done(std::os::unix::fs::symlink(target, at(a))),
        Op::ReadLink(a) => Ok(fs::read_link(at(a))?.as_os_str().as_bytes().to_vec()),
        _ => apply_to_file(root, op),
    }
}

fn apply_to_file(root: &Path, op: &Op) -> io::Result<Vec<u8>> {
    let at = |path: &PathBuf| root.join(path);
    let done = |result: rustix::io::Result<()>| Ok(result.map(|()| Vec::new())?);
    match op {
        Op::Mode(a, mode) => {
            if fs::symlink_metadata(at(a))?.is_symlink() {
                return Ok(Vec::new());
            }
            fs::set_permissions(at(a), fs::Permissions::from_mode(*mode)).map(|()| Vec::new())
        }
        Op::Times(a, seconds) => {
            let time = rustix::fs::Timespec { tv_sec: *seconds, tv_nsec: 5 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            done(rustix::fs::utimensat(rustix::fs::CWD, at(a), &times, flags))
        }
        Op::SetXattr(a, number, len) => {
            let (name, value) = (format!("user.x{number}"), pattern(*len, *number));
            done(rustix::fs::lsetxattr(at(a), name, &value, XattrFlags::empty()))
        }
        Op::RemoveXattr(a, number) => done(rustix::fs::lremovexattr(at(a), format!("user.x{number}"))),
        Op::Punch(a, offset, len) => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            done(rustix::fs::fallocate(open(&at(a))?, mode, *offset, *len))
        }
        Op::ZeroRange(a, offset, len) => {
            done(rustix::fs::fallocate(open(&at(a))?, FallocateFlags::ZERO_RANGE, *offset, *len))
        }
        Op::Preallocate(a, offset, len) => {
            done(rustix::fs::fallocate(open(&at(a))?, FallocateFlags::empty(), *offset, *len))
        }
        Op::CopyRange(a, b, from, to, len) => {
            let (source, target) = (open(&at(a))?, open(&at(b))?);
            let (mut from, mut to) = (*from, *to);
            let copied = rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), *len)?;
            Ok(copied.to_le_bytes().to_vec())
        }
        Op::Sync(a) => open(&at(a))?.sync_all().map(|()| Vec::new()),
        Op::Fifo(a) => {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            done(rustix::fs::mknodat(rustix::fs::CWD, at(a), rustix::fs::FileType::Fifo, mode, 0))
        }
        Op::List(a) => {
            let names = fs::read_dir(at(a))?.map(|e| e.unwrap().file_name().as_bytes().to_vec());
            let mut names: Vec<_> = names.collect();
            names.sort();
            Ok(names.concat())
        }
        Op::WriteUnlinked(a, len, seed) => {
            let file = open(&at(a))?;
            fs::remove_file(at(a))?;
            file.write_all_at(&pattern(*len, *seed), 100)?;
            let mut back = vec![0; *len];
            file.read_exact_at(&mut back, 100)?;
            Ok(back)
        }
        other => unreachable!("{other:?} is applied by name"),
    }
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
}

/// Everything that a walk sees: kind, mode, links, size, content, target, attributes, time.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            if meta.is_dir() {
                left.push(path.clone());
            }
            seen.insert(path, describe(&entry.path(), &meta));
        }
    }
    seen
}

fn describe(path: &Path, meta: &fs::Metadata) -> String {
    let links = if meta.is_dir() { 0 } else { meta.nlink() };
    let mut text = format!("mode {:o} links {links}", meta.mode());
    if meta.is_file() {
        let content = fs::read(path).unwrap();
        let hash = kmsfs::crypto::sha256(&content);
        write!(text, " size {} content {:?}", meta.len(), &hash[..8]).unwrap();
        if meta.mtime_nsec() == 5 {
            write!(text, " mtime {}", meta.mtime()).unwrap();
        }
    }
    if meta.is_symlink() {
        write!(text, " target {}", fs::read_link(path).unwrap().display()).unwrap();
    } else if meta.is_file() || meta.is_dir() {
        for number in 0..4 {
            let mut value = Vec::with_capacity(1000);
            let name = format!("user.x{number}");
            if rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).is_ok() {
                write!(text, " x{number} {:?}", &kmsfs::crypto::sha256(&value)[..4]).unwrap();
            }
        }
    }
    text
}

fn compare(upper: &Path, plain: &Path, history: &[Op]) {
    let (ours, theirs) = (snapshot(upper), snapshot(plain));
    if ours != theirs {
        for (path, text) in &theirs {
            if ours.get(path) != Some(text) {
                println!("{}: plain {text}\n    ours {:?}", path.display(), ours.get(path));
            }
        }
        for op in history.iter().rev().take(60).rev() {
            println!("{op:?}");
        }
        panic!("the trees differ after {} operations", history.len());
    }
}

#[test]
fn random_operations_leave_the_same_tree_as_on_a_plain_directory() {
    let seed = seed_of("model");
    let mut random = Random(seed);
    let volume = Volume::new("model");
    let plain = TempDir::new("plain");
    let mut mount = volume.mount();
    let mut history = Vec::new();
    for step in 0..1500 {
        let op = random_op(&mut random);
        let (ours, theirs) = (apply(&mount.path, &op), apply(&plain.0, &op));
        history.push(op.clone());
        let same = match (&ours, &theirs) {
            (Ok(a), Ok(b)) => a == b,
            (Err(a), Err(b)) => a.raw_os_error() == b.raw_os_error(),
            _ => false,
        };
        if !same {
            let brief = |r: &io::Result<Vec<u8>>| r.as_ref().map(Vec::len).map_err(ToString::to_string);
            compare(&mount.path, &plain.0, &history);
            panic!("step {step} {op:?}: ours {:?}, plain {:?}", brief(&ours), brief(&theirs));
        }
        if step % 300 == 299 {
            compare(&mount.path, &plain.0, &history);
            mount.unmount();
            mount = volume.mount();
            compare(&mount.path, &plain.0, &history);
        }
    }
    mount.unmount();
}
