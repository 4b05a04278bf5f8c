//! Attributes through the kernel: times, permissions, owners, links, extended attributes, ACLs, special files.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{Mount, Volume, is_root};
use kmsfs::fuse::MountOptions;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat};
use rustix::io::Errno;

const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Runs a shell line as another user; its success.
fn as_user(uid: u32, gid: u32, line: &str) -> bool {
    Command::new("/bin/sh").arg("-c").arg(line).uid(uid).gid(gid).status().unwrap().success()
}

/// A mount that other users can reach.
fn shared_mount(volume: &Volume) -> Mount {
    fs::set_permissions(&volume.root.0, fs::Permissions::from_mode(0o755)).unwrap();
    let mount =
        volume.mount_with(&MountOptions { allow_other: true, no_suid: false, ..MountOptions::default() });
    fs::set_permissions(&mount.path, fs::Permissions::from_mode(0o777)).unwrap();
    mount
}

#[test]
fn times_are_kept_to_the_nanosecond_through_a_remount() {
    let volume = Volume::new("times");
    let mount = volume.mount();
    fs::write(mount.join("f"), "content").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    symlink("target", mount.join("l")).unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1_000_000_007, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: -5, tv_nsec: 999_999_999 },
    };
    for name in ["f", "d", "l"] {
        rustix::fs::utimensat(CWD, mount.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let check = |mount: &Mount| {
        for name in ["f", "d", "l"] {
            let m = fs::symlink_metadata(mount.join(name)).unwrap();
            assert_eq!((m.atime(), m.atime_nsec()), (1_000_000_007, 123_456_789), "{name}");
            assert_eq!((m.mtime(), m.mtime_nsec()), (-5, 999_999_999), "{name}");
        }
    };
    check(&mount);
    mount.unmount();
    let mount = volume.mount();
    check(&mount);
    mount.unmount();
}

#[test]
fn closing_and_sealing_leave_the_time_of_the_last_write() {
    let volume = Volume::new("mtime");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, vec![7; 50_000]).unwrap();
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::metadata(mount.join("f")).unwrap().modified().unwrap(), written);
    fs::read(mount.join("f")).unwrap();
    assert_eq!(fs::metadata(mount.join("f")).unwrap().modified().unwrap(), written);
    mount.unmount();
}

#[test]
fn modes_survive_and_the_callers_mask_counts() {
    let volume = Volume::new("modes");
    let mount = volume.mount();
    for bits in [0o600, 0o644, 0o4755, 0o2711, 0o1777, 0o000] {
        let path = mount.join(&format!("f{bits:o}"));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        assert_eq!(mode(&path), bits);
    }
    let line = format!("cd '{}' && umask 027 && touch masked && mkdir masked-dir", mount.path.display());
    assert!(Command::new("/bin/sh").arg("-c").arg(line).status().unwrap().success());
    assert_eq!(mode(&mount.join("masked")), 0o640);
    assert_eq!(mode(&mount.join("masked-dir")), 0o750);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(mode(&mount.join("f4755")), 0o4755);
    mount.unmount();
}

#[test]
fn hard_links_are_one_file() {
    let volume = Volume::new("links");
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("a"), "one").unwrap();
    let long = mount.join("d").join("h".repeat(255));
    fs::hard_link(mount.join("a"), &long).unwrap();
    fs::hard_link(&long, mount.join("c")).unwrap();
    let numbers: Vec<_> = [mount.join("a"), long.clone(), mount.join("c")]
        .iter()
        .map(|p| (fs::metadata(p).unwrap().ino(), fs::metadata(p).unwrap().nlink()))
        .collect();
    assert!(numbers.iter().all(|n| *n == (numbers[0].0, 3)), "{numbers:?}");
    fs::write(&long, "changed through another name").unwrap();
    assert_eq!(fs::read_to_string(mount.join("a")).unwrap(), "changed through another name");
    fs::remove_file(mount.join("a")).unwrap();
    assert_eq!(fs::metadata(&long).unwrap().nlink(), 2);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("c")).unwrap(), "changed through another name");
    assert_eq!(fs::metadata(mount.join("c")).unwrap().nlink(), 2);
    mount.unmount();
}

#[test]
fn symbolic_links_keep_their_target_and_length() {
    let volume = Volume::new("symlinks");
    let mount = volume.mount();
    for length in [1, 10, 100, 1000, 3000] {
        let target = "t".repeat(length);
        let path = mount.join(&format!("l{length}"));
        symlink(&target, &path).unwrap();
        assert_eq!(fs::read_link(&path).unwrap().as_os_str(), target.as_str());
        assert_eq!(fs::symlink_metadata(&path).unwrap().len(), length as u64);
    }
    let refused = symlink("t".repeat(4000), mount.join("long")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
    mount.unmount();
}

#[test]
fn special_files_are_what_they_were_made() {
    if !is_root() {
        return eprintln!("skipped: devices need root");
    }
    let volume = Volume::new("special");
    let mount = volume.mount();
    let make = |name: &str, kind, device| mknodat(CWD, mount.join(name), kind, Mode::RUSR, device).unwrap();
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    make("char", FileType::CharacterDevice, makedev(1, 3));
    make("block", FileType::BlockDevice, makedev(259, 70_000));
    mknodat(CWD, mount.join("plain"), FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let kind = |name: &str| fs::symlink_metadata(mount.join(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket() && kind("plain").is_file());
    assert!(kind("char").is_char_device() && kind("block").is_block_device());
    assert_eq!(fs::metadata(mount.join("char")).unwrap().rdev(), makedev(1, 3));
    assert_eq!(fs::metadata(mount.join("block")).unwrap().rdev(), makedev(259, 70_000));
    mount.unmount();
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = Vec::with_capacity(70_000);
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).map(|_| value)
}

fn list(path: &Path) -> Vec<String> {
    let mut value = Vec::with_capacity(70_000);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut value)).unwrap();
    let names = value.split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<_> = names.map(|n| String::from_utf8(n.to_vec()).unwrap()).collect();
    names.sort();
    names
}

#[test]
fn extended_attributes_of_files_and_directories() {
    let volume = Volume::new("xattr");
    let mount = volume.mount();
    fs::write(mount.join("f"), "").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    for name in ["f", "d"] {
        let path = mount.join(name);
        assert_eq!(get(&path, "user.none"), Err(Errno::NODATA));
        rustix::fs::setxattr(&path, "user.one", b"secret-value", XattrFlags::CREATE).unwrap();
        rustix::fs::setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(&path, "user.big", &[5; 2000], XattrFlags::empty()).unwrap();
        let again = rustix::fs::setxattr(&path, "user.one", b"x", XattrFlags::CREATE);
        assert_eq!(again, Err(Errno::EXIST));
        let missing = rustix::fs::setxattr(&path, "user.two", b"x", XattrFlags::REPLACE);
        assert_eq!(missing, Err(Errno::NODATA));
        assert_eq!(rustix::fs::removexattr(&path, "user.two"), Err(Errno::NODATA));
        assert_eq!(list(&path), ["user.big", "user.empty", "user.one"]);
    }
    fs::write(mount.join("f"), "content after attributes").unwrap();
    mount.unmount();
    let mount = volume.mount();
    for name in ["f", "d"] {
        let path = mount.join(name);
        assert_eq!(get(&path, "user.one").unwrap(), b"secret-value");
        assert_eq!(get(&path, "user.empty").unwrap(), b"");
        assert_eq!(get(&path, "user.big").unwrap(), [5; 2000]);
        rustix::fs::removexattr(&path, "user.big").unwrap();
        assert_eq!(list(&path), ["user.empty", "user.one"]);
    }
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "content after attributes");
    mount.unmount();
}

#[test]
fn attributes_of_an_empty_file_leave_the_time_of_its_last_write() {
    let volume = Volume::new("xattr-time");
    let mount = volume.mount();
    let path = mount.join("f");
    let file = File::create(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000, 18)).unwrap();
    drop(file);
    let none = rustix::fs::setxattr(&path, "user.none", b"", XattrFlags::REPLACE);
    assert_eq!(none, Err(Errno::NODATA));
    rustix::fs::setxattr(&path, "user.some", b"value", XattrFlags::CREATE).unwrap();
    let modified = |mount: &Mount| {
        let m = fs::metadata(mount.join("f")).unwrap();
        (m.mtime(), m.mtime_nsec())
    };
    assert_eq!(modified(&mount), (1_000, 18));
    mount.unmount();
    assert_eq!(modified(&volume.mount()), (1_000, 18));
}

#[test]
fn trusted_attributes_of_links_and_special_files_as_root() {
    if !is_root() {
        return eprintln!("skipped: trusted attributes need root");
    }
    let volume = Volume::new("trusted");
    let mount = volume.mount();
    symlink("t", mount.join("l")).unwrap();
    fs::write(mount.join("f"), "x").unwrap();
    for name in ["l", "f"] {
        let path = mount.join(name);
        rustix::fs::lsetxattr(&path, "trusted.overlay", b"y", XattrFlags::empty()).unwrap();
        assert_eq!(get(&path, "trusted.overlay").unwrap(), b"y");
        assert_eq!(list(&path), ["trusted.overlay"]);
    }
    mount.unmount();
}

#[test]
fn a_label_is_kept_and_where_there_is_none_it_is_said_that_labels_are_not_supported() {
    if !is_root() || fs::read_to_string("/proc/filesystems").unwrap().contains("selinuxfs") {
        return eprintln!(
            "skipped: labels are root's to set, and SELinux answers for them where it is in use"
        );
    }
    let volume = Volume::new("label");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, "x").unwrap();
    assert_eq!(get(&path, "security.selinux"), Err(Errno::OPNOTSUPP));
    assert_eq!(get(&path, "security.other"), Err(Errno::NODATA));
    rustix::fs::setxattr(&path, "security.selinux", b"a:b:c:s0", XattrFlags::empty()).unwrap();
    assert_eq!(get(&path, "security.selinux").unwrap(), b"a:b:c:s0");
    assert_eq!(list(&path), ["security.selinux"]);
    mount.unmount();
}

/// `CAP_NET_RAW` permitted, as capabilities(7) keeps it (`vfs_cap_data`, revision 2).
const NET_RAW: [u8; 20] = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_new_file_gets_a_capability_and_loses_it_by_a_write() {
    if !is_root() {
        return eprintln!("skipped: capabilities need root");
    }
    let volume = Volume::new("capability");
    let mount = volume.mount();
    let path = mount.join("ping");
    let (name, flags) = ("security.capability", XattrFlags::empty());
    fs::write(&path, "program").unwrap();
    assert_eq!(get(&path, name), Err(Errno::NODATA));
    rustix::fs::setxattr(&path, name, &NET_RAW, flags).unwrap();
    assert_eq!(get(&path, name).unwrap(), NET_RAW);
    fs::write(&path, "another program").unwrap();
    assert_eq!(get(&path, name), Err(Errno::NODATA));
    rustix::fs::setxattr(&path, name, &NET_RAW, flags).unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(get(&mount.join("ping"), name).unwrap(), NET_RAW);
    mount.unmount();
}

/// An access or default ACL in the kernel's form: owner rwx, user `uid` rwx, group r-x, mask rwx, others none.
fn acl(uid: u32) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, bits, id) in [(1u16, 7u16, none), (2, 7, uid), (4, 5, none), (0x10, 7, none), (0x20, 0, none)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_are_enforced_and_inherited() {
    if !is_root() {
        return eprintln!("skipped: needs root to act as another user");
    }
    let volume = Volume::new("acl");
    let mount = shared_mount(&volume);
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let reach = format!("ls '{}'", dir.display());
    assert!(!as_user(NOBODY, NOBODY, &reach));
    rustix::fs::setxattr(&dir, "system.posix_acl_access", &acl(NOBODY), XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&dir, "system.posix_acl_default", &acl(NOBODY), XattrFlags::empty()).unwrap();
    assert!(as_user(NOBODY, NOBODY, &reach));
    assert!(!as_user(1234, 1234, &reach));
    let line = format!("umask 077; cd '{}' && mkdir sub && touch f", dir.display());
    assert!(Command::new("/bin/sh").arg("-c").arg(line).status().unwrap().success());
    // The default ACL takes the place of the mask.
    assert_eq!(get(&dir.join("sub"), "system.posix_acl_default").unwrap(), acl(NOBODY));
    assert_eq!(mode(&dir.join("f")), 0o660);
    assert!(as_user(NOBODY, NOBODY, &format!("echo x > '{}'", dir.join("f").display())));
    assert!(list(&dir).contains(&"system.posix_acl_access".to_owned()));
    mount.unmount();
}

#[test]
fn new_objects_belong_to_their_maker() {
    if !is_root() {
        return eprintln!("skipped: needs root to act as another user");
    }
    let volume = Volume::new("owner");
    let mount = shared_mount(&volume);
    let line = "umask 022; cd '@' && touch f && mkdir d && ln -s t l && mkfifo p && echo data > g && cat g";
    assert!(as_user(NOBODY, 100, &line.replace('@', &mount.path.to_string_lossy())));
    for name in ["f", "d", "l", "p", "g"] {
        let m = fs::symlink_metadata(mount.join(name)).unwrap();
        assert_eq!((m.uid(), m.gid()), (NOBODY, 100), "{name}");
    }
    assert!(!as_user(1234, 1234, &format!("echo x >> '{}'", mount.join("g").display())));
    assert!(!as_user(1234, 1234, &format!("chmod 777 '{}'", mount.join("g").display())));
    mount.unmount();
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    if !is_root() {
        return eprintln!("skipped: needs root to act as another user");
    }
    let volume = Volume::new("setgid");
    let mount = shared_mount(&volume);
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(0), Some(77)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777)).unwrap();
    assert!(as_user(NOBODY, 100, &format!("umask 022; cd '{}' && touch f && mkdir s", dir.display())));
    let (file, sub) = (fs::metadata(dir.join("f")).unwrap(), fs::metadata(dir.join("s")).unwrap());
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (NOBODY, 77, 0o644));
    assert_eq!((sub.uid(), sub.gid(), sub.mode() & 0o7777), (NOBODY, 77, 0o2755));
    mount.unmount();
}

#[test]
fn a_strangers_write_clears_set_user_id() {
    if !is_root() {
        return eprintln!("skipped: needs root to act as another user");
    }
    let volume = Volume::new("suid");
    let mount = shared_mount(&volume);
    let ways = [
        ("write", "echo x >> '@'"),
        ("truncate", "truncate -s 1 '@'"),
        ("empty", ": > '@'"),
        ("allocate", "fallocate -l 9000 '@'"),
        ("punch", "fallocate -p -o 0 -l 4096 '@'"),
        ("copy", "cp /etc/passwd '@'"),
    ];
    for (name, line) in ways {
        let path = mount.join(name);
        fs::write(&path, "program").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(mode(&path), 0o6777, "{name}");
        assert!(as_user(NOBODY, 100, &line.replace('@', &path.to_string_lossy())));
        assert_eq!(mode(&path), 0o777, "{name}");
    }
    let path = mount.join("c");
    fs::write(&path, "program").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 100), 7).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 9000).unwrap();
    assert_eq!((copied, mode(&path)), (7, 0o6777), "root may keep them");
    std::os::unix::fs::chown(&path, Some(5), None).unwrap();
    assert_eq!(mode(&path), 0o777);
    drop(file);
    mount.unmount();
}

#[test]
fn a_read_of_what_is_at_hand_moves_the_time_of_the_last_read() {
    let volume = Volume::new("atime");
    let mount = volume.mount();
    let lower = rustix::fs::statvfs(&volume.root.0).unwrap();
    if lower.f_flag.contains(rustix::fs::StatVfsMountFlags::NOATIME) {
        return eprintln!("skipped: the lower filesystem keeps no time of the last read");
    }
    let path = mount.join("f");
    let writer = fs::File::create(&path).unwrap();
    writer.write_all_at(b"short enough to be kept with the header", 0).unwrap();
    writer.sync_all().unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    writer.set_times(fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
    // Past the kernel's cache, of whose reads no filesystem in user space learns.
    let reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), long_ago);
    assert_eq!(reader.read_at(&mut [0; 5], 0).unwrap(), 5);
    assert!(fs::metadata(&path).unwrap().accessed().unwrap() > long_ago);
    drop((reader, writer));
    mount.unmount();
}

#[test]
fn other_users_are_kept_out_unless_let_in() {
    if !is_root() {
        return eprintln!("skipped: needs root to act as another user");
    }
    let volume = Volume::new("others");
    fs::set_permissions(&volume.root.0, fs::Permissions::from_mode(0o755)).unwrap();
    let mount = volume.mount();
    fs::write(mount.join("f"), "x").unwrap();
    assert!(!as_user(NOBODY, NOBODY, &format!("cat '{}' 2>/dev/null", mount.join("f").display())));
    mount.unmount();
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let volume = Volume::new("readonly");
    let mount = volume.mount();
    fs::write(mount.join("f"), "kept").unwrap();
    mount.unmount();
    let mount = volume.mount_with(&MountOptions { read_only: true, ..MountOptions::default() });
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "kept");
    let refused = |done: std::io::Result<()>| assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::EROFS));
    refused(fs::write(mount.join("f"), "x"));
    refused(fs::write(mount.join("g"), "x"));
    refused(fs::remove_file(mount.join("f")));
    refused(fs::create_dir(mount.join("d")));
    mount.unmount();
}

#[test]
fn statfs_tells_the_lower_filesystems_figures() {
    let volume = Volume::new("statfs");
    let mount = volume.mount();
    let (upper, lower) =
        (rustix::fs::statvfs(&mount.path).unwrap(), rustix::fs::statvfs(volume.lower()).unwrap());
    assert_eq!(upper.f_blocks * upper.f_frsize, lower.f_blocks * lower.f_frsize);
    assert_eq!(upper.f_namemax, 255);
    mount.unmount();
}

/// Clears what would keep the files below a directory from being removed, also when the test fails.
struct Removable(std::path::PathBuf);

impl Drop for Removable {
    fn drop(&mut self) {
        use rustix::fs::IFlags;
        let mut dirs = vec![self.0.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let kept = kind.is_file() || kind.is_dir();
                if let Some(file) = kept.then(|| File::open(entry.path()).ok()).flatten()
                    && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
                {
                    let _ = rustix::fs::ioctl_setflags(&file, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
                }
                if kind.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
    }
}

#[test]
fn inode_flags_are_those_of_the_lower_file() {
    use rustix::fs::IFlags;
    let volume = Volume::new("flags");
    let probe = File::create(volume.root.join("probe")).unwrap();
    if !is_root() || rustix::fs::ioctl_getflags(&probe).is_err() {
        eprintln!("skipped: needs root, and inode flags in the temporary directory");
        return;
    }
    drop(probe);
    let _removable = Removable(volume.lower().clone());
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, "content").unwrap();
    fs::create_dir(mount.join("dir")).unwrap();
    let change = |path: &Path, on: IFlags, off: IFlags| {
        let file = File::open(path).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).unwrap();
        rustix::fs::ioctl_setflags(&file, (flags | on) - off)
    };
    let none = IFlags::empty();
    change(&path, IFlags::NODUMP | IFlags::IMMUTABLE, none).unwrap();
    let flags = rustix::fs::ioctl_getflags(File::open(&path).unwrap()).unwrap();
    assert!(flags.contains(IFlags::NODUMP | IFlags::IMMUTABLE), "{flags:?}");
    let denied = |outcome: std::io::Result<()>| outcome.unwrap_err().raw_os_error() == Some(libc::EPERM);
    assert!(denied(OpenOptions::new().write(true).open(&path).map(drop)));
    assert!(denied(fs::remove_file(&path)));
    assert!(denied(fs::rename(&path, mount.join("other"))));
    assert_eq!(fs::read(&path).unwrap(), b"content");
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read(&path).unwrap(), b"content");
    change(&path, none, IFlags::IMMUTABLE).unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(change(&path, IFlags::IMMUTABLE, none).unwrap_err(), rustix::io::Errno::BUSY);
    drop(writer);
    assert_eq!(change(&path, IFlags::APPEND, none).unwrap_err(), rustix::io::Errno::OPNOTSUPP);
    change(&mount.join("dir"), IFlags::IMMUTABLE, none).unwrap();
    assert!(denied(fs::write(mount.join("dir/new"), "x")));
    change(&mount.join("dir"), none, IFlags::IMMUTABLE).unwrap();
    fs::write(mount.join("dir/new"), "x").unwrap();
    mount.unmount();
}
