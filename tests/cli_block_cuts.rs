//! A filesystem on a block volume when its mount is killed, and when the power is cut under load: it replays its journal,
//! its own fsck finds nothing, and what was synced is there.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use programs::{Desk, Said, eventually, run};

/// Pages of the file that is overwritten all the time.
const PAGES: usize = 200;

fn system(program: &str, args: &[&str]) -> Said {
    run(Command::new(program).args(args))
}

/// Whether loop devices and these programs are to be had here.
fn can_run(programs: &[&str]) -> bool {
    let is_there = |name: &&str| ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    root && programs.iter().all(is_there)
}

/// Commands that are run at the end, the last one first, whatever happened.
#[derive(Default)]
struct Undo(Vec<Vec<String>>);

impl Undo {
    fn later(&mut self, words: &[&str]) {
        self.0.push(words.iter().map(|word| (*word).to_owned()).collect());
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for words in self.0.iter().rev() {
            let _ = run(Command::new(&words[0]).args(&words[1..]));
        }
    }
}

fn volume(desk: &Desk, line: &str) -> Said {
    run(desk.command_of(&format!("volume {line}")).env("KMSFS_STATE_DIR", desk.path("registry")))
}

/// Writes files and pages, and notes what was synced.
struct Load {
    files: Arc<AtomicUsize>,
    pages: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn file_data(n: usize) -> Vec<u8> {
    (0..=n * 1371 % 90_000).map(|i| (i * 7 + n) as u8).collect()
}

impl Load {
    fn start(dir: PathBuf) -> Self {
        let (files, pages) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let stop = Arc::<AtomicBool>::default();
        fs::write(dir.join("pages"), vec![0; PAGES * 4096]).unwrap();
        let (files_done, pages_done, over) = (Arc::clone(&files), Arc::clone(&pages), Arc::clone(&stop));
        let run = move || -> std::io::Result<()> {
            let pages = fs::File::options().write(true).open(dir.join("pages"))?;
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let mut file = fs::File::create(dir.join(format!("f{n}")))?;
                file.write_all(&file_data(n))?;
                file.sync_all()?;
                fs::File::open(&dir)?.sync_all()?;
                files_done.store(n + 1, Ordering::SeqCst);
                // Each page holds the number of the round that wrote it last.
                for page in 0..7 {
                    let at = (n * 7 + page) * 31 % PAGES;
                    pages.write_all_at(&[(n as u64 + 1).to_le_bytes(); 512].concat(), at as u64 * 4096)?;
                }
                pages.sync_data()?;
                pages_done.store(n + 1, Ordering::SeqCst);
            }
            Ok(())
        };
        // It ends with an error when the device goes.
        let thread = std::thread::spawn(move || drop(run()));
        Self { files, pages, stop, thread: Some(thread) }
    }

    /// What is synced for certain now.
    fn synced(&self) -> (usize, usize) {
        (self.files.load(Ordering::SeqCst), self.pages.load(Ordering::SeqCst))
    }

    fn wait_for(&self, files: usize) {
        eventually("the load gets on", || self.synced().0 >= files);
    }

    fn end(&mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.synced()
    }
}

/// Everything that was synced by then is in `dir`, and no page is a mixture.
#[track_caller]
fn check(dir: &Path, (files, rounds): (usize, usize)) {
    for n in 0..files {
        assert!(fs::read(dir.join(format!("f{n}"))).unwrap() == file_data(n), "file {n} of {files}");
    }
    let mut least = vec![0; PAGES];
    for n in 0..rounds {
        (0..7).for_each(|page| least[(n * 7 + page) * 31 % PAGES] = n as u64 + 1);
    }
    let data = fs::read(dir.join("pages")).unwrap();
    for (number, page) in data.chunks(4096).enumerate() {
        let words: Vec<u64> =
            page.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert!(words.iter().all(|word| *word == words[0]), "page {number} is a mixture");
        assert!(words[0] >= least[number], "page {number} is of round {}, not {}", words[0], least[number]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_killed_mount_leaves_the_filesystem_on_its_block_volume_whole() {
    if !can_run(&["mkfs.ext4", "e2fsck"]) {
        return;
    }
    let desk = Desk::new("block-kill");
    desk.key("k");
    volume(&desk, "create disk --key alias/k --block 320M").ok();
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    volume(&desk, "attach disk {mnt}").ok();
    let mut undo = Undo::default();
    undo.later(&["umount", "--lazy", text(&mnt)]);
    let mut load = Load::start(mnt.clone());
    load.wait_for(25);
    let mounts = desk.kmsfs("status --json").json();
    let ours = desk.path("registry/data/disk");
    let mount = mounts.as_array().unwrap().iter().find(|m| m["lower"] == text(&ours)).unwrap();
    programs::kill(mount["pid"].as_i64().unwrap() as i32);
    load.thread.take().unwrap().join().unwrap();
    let synced = load.synced();
    let said = volume(&desk, "attach disk {mnt}");
    assert!(said.code == 0 && said.err.contains("what it left is taken away"), "{said:?}");
    check(&mnt, synced);
    volume(&desk, "detach disk").ok();
    volume(&desk, "detach disk").fails(1, "is not attached");
    desk.kmsfs("fsck {registry}/data/disk").ok();
    // Once more by hand, for the filesystem's own word.
    check_inner(&desk, &ours, synced, false);
}

/// Mounts the volume in `lower` and the image in it, checks both filesystems and what was synced.
#[track_caller]
fn check_inner(desk: &Desk, lower: &Path, synced: (usize, usize), put_back: bool) {
    let (at, inner) = (desk.path("at"), desk.path("inner"));
    fs::create_dir_all(&at).unwrap();
    fs::create_dir_all(&inner).unwrap();
    let mut undo = Undo::default();
    let mut mount = desk.command_of("mount");
    mount.args([lower, &at]).args(put_back.then_some("--accept-older"));
    run(&mut mount).ok();
    undo.later(&["umount", "--lazy", text(&at)]);
    let image = at.join("disk.img");
    let device =
        system("losetup", &["--find", "--show", "--direct-io=on", "--sector-size", "4096", text(&image)]);
    let device = device.ok().trim().to_owned();
    // By its image: the number of a device that was let go may be somebody else's.
    let let_go =
        "losetup --associated \"$0\" --noheadings --output NAME | xargs --no-run-if-empty losetup --detach";
    undo.later(&["sh", "-c", let_go, text(&image)]);
    system("mount", &[&device, text(&inner)]).ok();
    undo.later(&["umount", "--lazy", text(&inner)]);
    check(&inner, synced);
    system("umount", &[text(&inner)]).ok();
    system("e2fsck", &["-f", "-n", &device]).ok();
    system("losetup", &["--detach", &device]).ok();
    eventually("the device lets go of its image", || {
        system("losetup", &["--associated", text(&image)]).ok().is_empty()
    });
    desk.kmsfs("umount {at}").ok();
    run(desk.command_of("fsck").arg(lower)).ok();
}

/// A filesystem made by `mkfs`, in the image `image`, mounted at `at`.
fn disk(undo: &mut Undo, image: &Path, mebibytes: u64, mkfs: &[&str], at: &Path) {
    fs::File::create(image).unwrap().set_len(mebibytes << 20).unwrap();
    system(mkfs[0], &[&mkfs[1..], &[text(image)]].concat()).ok();
    mount_image(undo, image, at);
}

fn mount_image(undo: &mut Undo, image: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    system("mount", &["-o", "loop", text(image), text(at)]).ok();
    undo.later(&["umount", "--lazy", text(at)]);
}

#[test]
fn a_power_cut_under_load_leaves_the_filesystem_on_a_block_volume_whole() {
    if !can_run(&["mkfs.ext4", "mkfs.xfs", "e2fsck"]) {
        return;
    }
    let desk = Desk::new("block-cut");
    desk.key("k");
    // A clone of the lower filesystem's disk is what a power cut leaves: XFS makes it in one step.
    let mut undo = Undo::default();
    let (host, lower) = (desk.path("host"), desk.path("lower"));
    disk(&mut undo, &desk.path("host.img"), 1200, &["mkfs.xfs", "-q"], &host);
    disk(&mut undo, &host.join("disk.img"), 600, &["mkfs.ext4", "-q"], &lower);
    volume(&desk, "create disk --key alias/k --block 320M --at {lower}/volume").ok();
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    volume(&desk, "attach disk {mnt}").ok();
    undo.later(&["umount", "--lazy", text(&mnt)]);
    let mut load = Load::start(mnt.clone());
    let mut cuts = Vec::new();
    for number in 0..2 {
        load.wait_for(15 * (number + 1));
        let synced = load.synced();
        let cut = host.join(format!("cut{number}.img"));
        system("cp", &["--reflink=always", text(&host.join("disk.img")), text(&cut)]).ok();
        cuts.push((cut, synced));
    }
    load.end();
    volume(&desk, "detach disk").ok();
    for (cut, synced) in cuts {
        let at = desk.path("cut");
        let mut undo = Undo::default();
        mount_image(&mut undo, &cut, &at);
        check_inner(&desk, &at.join("volume"), synced, true);
    }
}
