//! Block volumes: one sparse image in a volume, attached as a loop device with a filesystem of its own.
//!
//! Called by `kmsfs volume`. The volume itself is mounted at a private place; the loop device reads and writes the image
//! there directly, past the page cache of that mount, and its discards punch holes. Must never format an image that
//! holds something.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::args::MountArgs;
use super::control;
use super::error::{CliError, Exit};
use super::mount;
use super::mount_plan::check_mountpoint;
use super::mounts;
use super::output::line;
use super::runtime_dir;
use super::volume_args::{AttachArgs, BlockFilesystem};
use crate::sys::at;
use crate::volume::registry::{Block, Entry};

/// Name of the image in its volume.
const IMAGE: &str = "disk.img";
/// Its name until it is whole, with a filesystem on it.
const UNFINISHED: &str = "disk.img.unfinished";
/// Sectors of the loop device: the blocks in which the image is encrypted.
const SECTOR: &str = "4096";
/// How long a loop device may take to let go of its image.
const RELEASE_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// The option that lets a mount point hold something; not one of the filesystem.
const NON_EMPTY: &str = "nonempty";
/// Smallest image: below it, mkfs.xfs refuses.
const SMALLEST: u64 = 300 << 20;
const SMALLEST_EXT4: u64 = 16 << 20;

/// Says early what is missing for block volumes.
pub fn check_tools(fs: BlockFilesystem) -> Result<(), CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::failed("block volumes need root, for the loop device"));
    }
    let formatter = match fs {
        BlockFilesystem::Ext4 => Some("mkfs.ext4"),
        BlockFilesystem::Xfs => Some("mkfs.xfs"),
        BlockFilesystem::None => None,
    };
    for program in ["losetup", "mount"].into_iter().chain(formatter) {
        let found = program_path(program).is_some();
        if !found {
            return Err(CliError::failed(format!("{program} is not installed on this host")));
        }
    }
    Ok(())
}

fn program_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs a system program and gives its output.
fn run(name: &str, configure: impl FnOnce(&mut Command)) -> Result<String, CliError> {
    run_unless(name, |code| code != 0, configure)
}

/// The same for a program of whose exit codes more than 0 are good.
fn run_unless(
    name: &str,
    is_bad: impl FnOnce(i32) -> bool,
    configure: impl FnOnce(&mut Command),
) -> Result<String, CliError> {
    let program = program_path(name).unwrap_or_else(|| name.into());
    let mut command = Command::new(program);
    configure(&mut command);
    let failed = |why: String| CliError::failed(format!("{name}: {why}"));
    let output = command.stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
    if output.status.code().is_some_and(|code| !is_bad(code)) {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Where the volume of a block device is mounted, for us alone.
fn place_of(entry: &Entry) -> Result<PathBuf, CliError> {
    Ok(runtime_dir::make()?.join("block").join(&entry.volume_id))
}

/// The same, made where it is missing.
fn place(entry: &Entry) -> Result<PathBuf, CliError> {
    let dir = place_of(entry)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| CliError::failed(format!("cannot make {}: {e}", dir.display())))?;
    Ok(dir)
}

/// Where anything has it mounted that answers.
fn mounted_place(entry: &Entry) -> Option<PathBuf> {
    control::of_lower(&entry.lower).map(|status| status.mountpoint)
}

/// The loop device of the image in `place`.
fn device_of(place: &Path) -> Option<String> {
    [IMAGE, UNFINISHED].iter().find_map(|image| {
        let listed = run("losetup", |c| {
            c.args(["--associated"]).arg(place.join(image)).args(["--noheadings", "--output", "NAME"]);
        });
        listed.ok()?.lines().next().map(|line| line.trim().to_owned()).filter(|name| !name.is_empty())
    })
}

/// What a mount that was killed leaves: its place in the kernel's table, and the loop device of its image. Asks neither,
/// as nobody answers any more.
fn remains(place: &Path) -> (bool, Option<String>) {
    let mounted = run("findmnt", |c| {
        c.args(["--noheadings", "--output", "TARGET", "--mountpoint"]).arg(place);
    });
    let listed = run("losetup", |c| {
        c.args(["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"]);
    });
    let images = [IMAGE, UNFINISHED].map(|image| place.join(image).display().to_string());
    let listed = listed.unwrap_or_default();
    let device = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, file)| images.iter().any(|image| file.trim() == image));
    (mounted.is_ok_and(|text| !text.is_empty()), device.map(|(name, _)| name.to_owned()))
}

/// Takes away what a killed mount left. The filesystem on it replays its journal when it is next attached.
fn detach_remains(entry: &Entry, lazy: bool) -> Result<(), CliError> {
    let place = place_of(entry)?;
    let (mounted, device) = remains(&place);
    if !mounted && device.is_none() {
        return Err(CliError::failed(format!("volume {} is not attached", entry.name)));
    }
    if let Some(device) = device {
        if let Some(mountpoint) = mountpoint_of(&device) {
            unmount_device(&mountpoint, lazy)?;
        }
        let _ = let_go(&device, || remains(&place).1.as_deref() == Some(&*device));
    }
    if mounted {
        mounts::unmount(&place, true)?;
    }
    let _ = std::fs::remove_dir(&place);
    tell_remains(entry);
    Ok(())
}

/// Says that a detached volume had no daemon any more.
pub fn tell_remains(entry: &Entry) {
    eprintln!(
        "kmsfs: the mount of {} had ended without being detached; what it left is taken away",
        entry.name
    );
}

/// Lets go of `device` if `is_ours`. While it is held open its number is given to no other image; one whose filesystem
/// just went has let go by itself, and may be somebody else's by now.
fn let_go(device: &str, is_ours: impl FnOnce() -> bool) -> Result<(), CliError> {
    let Ok(_held) = File::open(device) else { return Ok(()) };
    if !is_ours() {
        return Ok(());
    }
    run("losetup", |c| {
        c.args(["--detach", device]);
    })
    .map(drop)
}

fn unmount_device(mountpoint: &Path, lazy: bool) -> Result<(), CliError> {
    run("umount", |c| {
        c.args(lazy.then_some("--lazy")).arg(mountpoint);
    })
    .map(drop)
    .map_err(|e| CliError::new(Exit::Busy, e.message))
}

/// Where the filesystem on `device` is mounted, by the kernel's table.
fn mountpoint_of(device: &str) -> Option<PathBuf> {
    let found = run("findmnt", |c| {
        c.args(["--noheadings", "--raw", "--first-only", "--output", "TARGET", "--source", device]);
    });
    found.ok().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What there is of an attached block volume.
pub enum Standing {
    /// No mount of it answers.
    NotMounted,
    /// Its volume is mounted, without the device or without the filesystem on it.
    InPart,
    /// All of it: the filesystem's mount point, or the device of a volume without one.
    At(PathBuf),
}

/// How far a block volume is attached.
pub fn standing(entry: &Entry) -> Standing {
    let Some(place) = mounted_place(entry) else { return Standing::NotMounted };
    let Some(device) = device_of(&place) else { return Standing::InPart };
    if entry.block.as_ref().is_some_and(|block| block.filesystem == "none") {
        return Standing::At(device.into());
    }
    mountpoint_of(&device).map_or(Standing::InPart, Standing::At)
}

/// Where a killed mount of a block volume has left something.
pub fn left_at(entry: &Entry) -> Option<PathBuf> {
    let place = place_of(entry).ok()?;
    match remains(&place) {
        (false, None) => None,
        (_, device) => Some(device.and_then(|device| mountpoint_of(&device)).unwrap_or(place)),
    }
}

/// Takes away what the interrupted making of a block volume has mounted. A mount elsewhere is somebody else's.
pub fn take_back(entry: &Entry) -> Result<(), CliError> {
    if entry.block.is_none() {
        return Ok(());
    }
    let is_there = match mounted_place(entry) {
        Some(place) => at::resolved(&place) == at::resolved(&place_of(entry)?),
        None => left_at(entry).is_some(),
    };
    if is_there { detach(entry, false) } else { Ok(()) }
}

/// Mounts the volume at its private place and gives that.
fn mount_volume(entry: &Entry, how: MountArgs, kms: Option<&str>, verbose: u8) -> Result<PathBuf, CliError> {
    let place = place(entry)?;
    let args = MountArgs { lower: entry.lower.clone(), mountpoint: place.clone(), ..how };
    mount::mount(&args, kms, verbose)?;
    Ok(place)
}

/// Has what was written on the block volume mounted at `place` put into its image: the filesystem on it keeps much back,
/// and so does the kernel for a bare device. Nothing for other volumes.
pub fn flush(place: &Path) -> Result<(), CliError> {
    if !place.join(IMAGE).exists() {
        return Ok(());
    }
    let Some(device) = device_of(place) else { return Ok(()) };
    let place = mountpoint_of(&device).unwrap_or_else(|| device.into());
    let synced = File::open(&place)
        .and_then(|file| if place.is_dir() { Ok(rustix::fs::syncfs(file)?) } else { file.sync_all() });
    synced.map_err(|e| CliError::failed(format!("cannot sync {}: {e}", place.display())))
}

fn set_up_loop(image: &Path, read_only: bool) -> Result<String, CliError> {
    run("losetup", |c| {
        c.args(["--find", "--show", "--direct-io=on", "--sector-size", SECTOR]);
        c.args(read_only.then_some("--read-only")).arg(image);
    })
}

/// What block volume lies in the lower directory of `entry`, by its image.
pub fn found(entry: &Entry, kms: Option<&str>, verbose: u8) -> Result<Block, CliError> {
    check_tools(BlockFilesystem::None)?;
    let how = MountArgs { read_only: true, ..MountArgs::default() };
    let place = mount_volume(entry, how, kms, verbose)?;
    let image = place.join(IMAGE);
    let seen = std::fs::metadata(&image).map_err(|_| {
        let text = format!("{} holds no block volume", entry.lower.display());
        CliError::new(Exit::Volume, text)
    });
    let block = seen.map(|seen| Block { bytes: seen.len(), filesystem: filesystem_on(&image) });
    let ended = mounts::unmount(&place, false);
    let _ = std::fs::remove_dir(&place);
    block.and_then(|block| ended.map(|()| block))
}

fn filesystem_on(image: &Path) -> String {
    let kind = run("blkid", |c| {
        c.args(["--probe", "--output", "value", "--match-tag", "TYPE"]).arg(image);
    });
    kind.ok().filter(|kind| matches!(kind.as_str(), "ext4" | "xfs")).unwrap_or_else(|| "none".to_owned())
}

/// Says early that a filesystem does not fit.
pub fn check_size(bytes: u64, fs: BlockFilesystem) -> Result<(), CliError> {
    let least = if fs == BlockFilesystem::Xfs { SMALLEST } else { SMALLEST_EXT4 };
    if bytes >= least {
        return Ok(());
    }
    let text = format!("a block volume with {} takes at least {} MiB", fs.name(), least >> 20);
    Err(CliError::new(Exit::Usage, text))
}

/// Makes the image and its filesystem, in a volume that was just made, where it has none yet.
pub fn format(entry: &Entry, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let Some(block) = &entry.block else { return Ok(()) };
    let place = mount_volume(entry, MountArgs::default(), kms, verbose)?;
    let made = make_image(&place, block);
    let ended = mounts::unmount(&place, false);
    let _ = std::fs::remove_dir(&place);
    made.and(ended)
}

fn make_image(place: &Path, block: &Block) -> Result<(), CliError> {
    let (whole, path) = (place.join(IMAGE), place.join(UNFINISHED));
    let failed = |e: std::io::Error| CliError::failed(format!("cannot make {}: {e}", path.display()));
    if whole.try_exists().map_err(failed)? {
        return Ok(());
    }
    // Of a making that was interrupted.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let image = File::options().write(true).create_new(true).open(&path).map_err(failed)?;
    image.set_len(whole_sectors(block.bytes)).and_then(|()| image.sync_all()).map_err(failed)?;
    drop(image);
    format_image(place, block)?;
    std::fs::rename(&path, &whole).and_then(|()| File::open(place)?.sync_all()).map_err(failed)
}

/// Puts the filesystem on the image that is being made.
fn format_image(place: &Path, block: &Block) -> Result<(), CliError> {
    let formatter = match block.filesystem.as_str() {
        "ext4" => ("mkfs.ext4", ["-q", "-E", "discard"].as_slice()),
        "xfs" => ("mkfs.xfs", ["-q"].as_slice()),
        _ => return Ok(()),
    };
    let device = set_up_loop(&place.join(UNFINISHED), false)?;
    let formatted = run(formatter.0, |c| {
        c.args(formatter.1).arg(&device);
    });
    let released = release(&device, place);
    formatted.map(drop).and(released)
}

fn whole_sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

/// Lets go of the loop device, and waits until it has let go of its image.
fn release(device: &str, place: &Path) -> Result<(), CliError> {
    let_go(device, || device_of(place).as_deref() == Some(device))?;
    wait_until("the loop device lets go of its image", || device_of(place).is_none())
}

fn wait_until(what: &str, done: impl Fn() -> bool) -> Result<(), CliError> {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return Err(CliError::new(Exit::Busy, format!("waited in vain until {what}")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Mounts the volume, makes its loop device and mounts the filesystem on it.
pub fn attach(entry: &Entry, args: &AttachArgs, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let Some(block) = &entry.block else { return Ok(()) };
    check_tools(BlockFilesystem::None)?;
    match (&args.mountpoint, block.filesystem.as_str()) {
        (None, "none") | (Some(_), "ext4" | "xfs") => {}
        (None, _) => return Err(CliError::new(Exit::Usage, "name a mount point: an empty directory")),
        (Some(_), _) => {
            let text = "this volume has no filesystem: attach it without a mount point and use its device";
            return Err(CliError::new(Exit::Usage, text));
        }
    }
    for (given, option) in
        [(!args.customer_key.is_empty(), "--customer-key"), (args.idle.is_some(), "--idle")]
    {
        if given {
            return Err(CliError::new(Exit::Usage, format!("a block volume takes no {option}")));
        }
    }
    if let Some(mountpoint) = &args.mountpoint {
        check_mountpoint(mountpoint, args.options.iter().any(|option| option == NON_EMPTY))?;
    }
    let how = MountArgs { read_only: args.read_only, attach: args.granted_name(), ..MountArgs::default() };
    let place = mount_volume(entry, how, kms, verbose)?;
    let attached = set_up_loop(&place.join(IMAGE), args.read_only).and_then(|device| {
        let Some(mountpoint) = &args.mountpoint else { return line(&device) };
        let mounted = mount_device(&device, mountpoint, &block.filesystem, args);
        // Once it is mounted the device goes with the mount.
        let released = let_go(&device, || device_of(&place).as_deref() == Some(&*device));
        mounted.and(released)
    });
    attached.inspect_err(|_| {
        let _ = wait_until("", || device_of(&place).is_none());
        let _ = mounts::unmount(&place, false);
    })
}

fn mount_device(device: &str, mountpoint: &Path, fs: &str, args: &AttachArgs) -> Result<(), CliError> {
    let mut options = vec!["discard".to_owned()];
    options.extend(args.options.iter().filter(|option| *option != NON_EMPTY).cloned());
    if args.read_only {
        options.push("ro".to_owned());
    }
    run("mount", |c| {
        c.args(["-t", fs, "-o"]).arg(options.join(",")).arg(device).arg(mountpoint);
    })
    .map(drop)
    .map_err(|e| CliError::new(Exit::Mount, e.message))
}

/// Unmounts the filesystem, lets go of the device and unmounts the volume.
pub fn detach(entry: &Entry, lazy: bool) -> Result<(), CliError> {
    let Some(place) = mounted_place(entry) else {
        return detach_remains(entry, lazy);
    };
    if let Some(device) = device_of(&place) {
        if let Some(mountpoint) = mountpoint_of(&device) {
            unmount_device(&mountpoint, lazy)?;
        }
        if !lazy {
            release(&device, &place)?;
        }
    }
    mounts::unmount(&place, lazy)?;
    let _ = std::fs::remove_dir(&place);
    Ok(())
}

/// Makes the device and the filesystem on it larger, attached or not.
pub fn grow(entry: &Entry, bytes: u64, kms: Option<&str>, verbose: u8) -> Result<(), CliError> {
    let Some(block) = &entry.block else { return Ok(()) };
    if bytes < block.bytes {
        let text = "a block volume cannot be made smaller: its filesystem may use the end";
        return Err(CliError::new(Exit::Usage, text));
    }
    let attached = mounted_place(entry).and_then(|place| Some((device_of(&place)?, place)));
    let Some((device, place)) = attached else {
        return grow_detached(entry, block, bytes, kms, verbose);
    };
    grow_image(&place, bytes)?;
    run("losetup", |c| {
        c.args(["--set-capacity", &device]);
    })?;
    match (block.filesystem.as_str(), mountpoint_of(&device)) {
        ("ext4", mounted) => resize_ext4(&device).map_err(|e| {
            let hint = "growing ext4 while it is mounted needs CAP_SYS_RESOURCE, which this process may lack; detach the \
                        volume, and the same command grows it";
            if mounted.is_some() { e.with_hint(hint) } else { e }
        }),
        ("xfs", Some(mountpoint)) => grow_xfs(&mountpoint),
        _ => Ok(()),
    }
}

/// The same for a volume that is not attached: it is mounted at its private place for as long as that takes.
fn grow_detached(
    entry: &Entry,
    block: &Block,
    bytes: u64,
    kms: Option<&str>,
    verbose: u8,
) -> Result<(), CliError> {
    check_tools(BlockFilesystem::None)?;
    let place = mount_volume(entry, MountArgs::default(), kms.or(entry.kms.as_deref()), verbose)?;
    let grown = grow_image(&place, bytes).and_then(|()| grow_filesystem(&place, &block.filesystem));
    let ended = mounts::unmount(&place, false);
    let _ = std::fs::remove_dir(&place);
    grown.and(ended)
}

fn grow_filesystem(place: &Path, filesystem: &str) -> Result<(), CliError> {
    if filesystem == "none" {
        return Ok(());
    }
    let device = set_up_loop(&place.join(IMAGE), false)?;
    let grown = if filesystem == "ext4" {
        // resize2fs wants it checked; 1 is "errors were corrected".
        let checked = run_unless(
            "e2fsck",
            |code| code > 1,
            |c| {
                c.args(["-f", "-p", &device]);
            },
        );
        checked.and_then(|_| resize_ext4(&device))
    } else {
        grow_xfs_of(&device, place)
    };
    grown.and(release(&device, place))
}

/// XFS grows only where it is mounted: beside the volume, for a moment.
fn grow_xfs_of(device: &str, place: &Path) -> Result<(), CliError> {
    let beside = place.with_extension("grow");
    let failed = |e: std::io::Error| CliError::failed(format!("cannot make {}: {e}", beside.display()));
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&beside).map_err(failed)?;
    run("mount", |c| {
        c.args(["-t", "xfs", device]).arg(&beside);
    })?;
    let grown = grow_xfs(&beside);
    let ended = run("umount", |c| {
        c.arg(&beside);
    });
    let _ = std::fs::remove_dir(&beside);
    grown.and(ended.map(drop))
}

fn grow_image(place: &Path, bytes: u64) -> Result<(), CliError> {
    let path = place.join(IMAGE);
    let failed = |e: std::io::Error| CliError::failed(format!("cannot grow {}: {e}", path.display()));
    let image = File::options().write(true).open(&path).map_err(failed)?;
    image.set_len(whole_sectors(bytes)).and_then(|()| image.sync_all()).map_err(failed)
}

fn resize_ext4(device: &str) -> Result<(), CliError> {
    run("resize2fs", |c| {
        c.arg(device);
    })
    .map(drop)
}

fn grow_xfs(mountpoint: &Path) -> Result<(), CliError> {
    run("xfs_growfs", |c| {
        c.arg(mountpoint);
    })
    .map(drop)
}
