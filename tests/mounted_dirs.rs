//! Directories, names and renames through the kernel.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Volume, is_root, pattern};
use rustix::fs::RenameFlags;

fn names(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect()
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
}

/// What a lower directory holds besides its record.
fn lower_entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_name() != ".kmsfs.dir").count()
}

#[test]
fn names_of_every_length_to_255_work_and_persist() {
    let volume = Volume::new("names");
    let mount = volume.mount();
    let lengths = [1, 15, 16, 17, 100, 143, 159, 160, 161, 175, 176, 177, 200, 254, 255];
    for length in lengths {
        fs::write(mount.join(&"n".repeat(length)), length.to_string()).unwrap();
        fs::create_dir(mount.join(&"d".repeat(length))).unwrap();
    }
    let utf8 = "\u{fc}".repeat(127);
    fs::write(mount.join(&utf8), "umlaut").unwrap();
    assert_eq!(
        fs::write(mount.join(&"n".repeat(256)), "").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(names(&mount.path).len(), 2 * lengths.len() + 1);
    for length in lengths {
        assert_eq!(fs::read_to_string(mount.join(&"n".repeat(length))).unwrap(), length.to_string());
        assert!(fs::metadata(mount.join(&"d".repeat(length))).unwrap().is_dir());
        fs::remove_file(mount.join(&"n".repeat(length))).unwrap();
        fs::remove_dir(mount.join(&"d".repeat(length))).unwrap();
    }
    fs::remove_file(mount.join(&utf8)).unwrap();
    mount.unmount();
    let left: Vec<_> = fs::read_dir(volume.lower()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| n == ".kmsfs.dir" || n == ".kmsfs.log"), "sidecars left: {left:?}");
}

#[test]
fn equal_names_look_different_in_different_directories() {
    let volume = Volume::new("equal");
    let mount = volume.mount();
    let mut lower = BTreeSet::new();
    for dir in ["a", "b", "c"] {
        fs::create_dir(mount.join(dir)).unwrap();
        fs::write(mount.join(dir).join("same"), "").unwrap();
    }
    mount.unmount();
    for entry in fs::read_dir(volume.lower()).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            lower.extend(names(&entry.path()).into_iter().filter(|n| n != ".kmsfs.dir"));
        }
    }
    assert_eq!(lower.len(), 3);
}

#[test]
fn rmdir_takes_only_what_is_empty_and_loses_nothing_else() {
    let volume = Volume::new("rmdir");
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), "kept").unwrap();
    assert_eq!(fs::remove_dir(mount.join("d")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    assert_eq!(fs::read_to_string(mount.join("d/f")).unwrap(), "kept");
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("d/f")).unwrap(), "kept");
    fs::remove_file(mount.join("d/f")).unwrap();
    fs::remove_dir(mount.join("d")).unwrap();
    assert_eq!(names(&mount.path).len(), 0);
    assert_eq!(fs::remove_dir(mount.join("d")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    mount.unmount();
}

#[test]
fn a_directory_with_a_foreign_file_below_is_not_removed() {
    let volume = Volume::new("foreign");
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    let lower_dir = fs::read_dir(volume.lower()).unwrap().map(Result::unwrap);
    let lower_dir = lower_dir.into_iter().find(|e| e.file_type().unwrap().is_dir()).unwrap().path();
    fs::write(lower_dir.join("note.txt"), "of somebody else").unwrap();
    assert_eq!(names(&mount.join("d")).len(), 0);
    assert_eq!(fs::remove_dir(mount.join("d")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    assert_eq!(fs::read_to_string(lower_dir.join("note.txt")).unwrap(), "of somebody else");
    fs::remove_file(lower_dir.join("note.txt")).unwrap();
    fs::remove_dir(mount.join("d")).unwrap();
    mount.unmount();
}

#[test]
fn read_only_directories_can_be_made_and_removed() {
    let volume = Volume::new("rodir");
    let mount = volume.mount();
    for mode in [0o555, 0o000, 0o311] {
        let path = mount.join("d");
        rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        fs::remove_dir(&path).unwrap();
    }
    mount.unmount();
}

#[test]
fn rename_moves_files_and_trees() {
    let volume = Volume::new("rename");
    let mount = volume.mount();
    let long = "l".repeat(240);
    fs::create_dir_all(mount.join("a/b/c")).unwrap();
    fs::write(mount.join("a/b/c/f"), "deep").unwrap();
    fs::rename(mount.join("a/b"), mount.join(&long)).unwrap();
    assert_eq!(fs::read_to_string(mount.join(&long).join("c/f")).unwrap(), "deep");
    fs::rename(mount.join(&long), mount.join("short")).unwrap();
    fs::rename(mount.join("short/c/f"), mount.join(&format!("short/{long}"))).unwrap();
    fs::rename(mount.join(&format!("short/{long}")), mount.join(&format!("a/{long}"))).unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join(&format!("a/{long}"))).unwrap(), "deep");
    assert_eq!(names(&mount.join("short")), BTreeSet::from(["c".into()]));
    fs::remove_file(mount.join(&format!("a/{long}"))).unwrap();
    mount.unmount();
}

#[test]
fn rename_over_a_directory_wants_it_empty() {
    let volume = Volume::new("replace");
    let mount = volume.mount();
    fs::create_dir(mount.join("from")).unwrap();
    fs::write(mount.join("from/f"), "moved").unwrap();
    fs::create_dir(mount.join("full")).unwrap();
    fs::write(mount.join("full/g"), "kept").unwrap();
    fs::create_dir(mount.join("empty")).unwrap();
    let refused = fs::rename(mount.join("from"), mount.join("full")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOTEMPTY));
    assert_eq!(fs::read_to_string(mount.join("full/g")).unwrap(), "kept");
    fs::rename(mount.join("from"), mount.join("empty")).unwrap();
    assert_eq!(names(&mount.path), BTreeSet::from(["full".into(), "empty".into()]));
    assert_eq!(fs::read_to_string(mount.join("empty/f")).unwrap(), "moved");
    fs::write(mount.join("file"), "").unwrap();
    let refused =
        |from: &str, to: &str| fs::rename(mount.join(from), mount.join(to)).unwrap_err().raw_os_error();
    assert_eq!(refused("file", "full"), Some(libc::EISDIR));
    assert_eq!(refused("full", "file"), Some(libc::ENOTDIR));
    mount.unmount();
    assert_eq!(lower_entries(&volume.lower()), 3, "full, empty and file");
}

#[test]
fn exchange_noreplace_and_whiteout() {
    let volume = Volume::new("flags");
    let mount = volume.mount();
    let long = mount.join(&"x".repeat(230));
    fs::write(mount.join("a"), "A").unwrap();
    fs::create_dir(&long).unwrap();
    fs::write(long.join("inside"), "I").unwrap();
    rename(&mount.join("a"), &long, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(&long).unwrap(), "A");
    assert_eq!(fs::read_to_string(mount.join("a/inside")).unwrap(), "I");
    let refused = rename(&long, &mount.join("a"), RenameFlags::NOREPLACE);
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::EXIST);
    rename(&long, &mount.join("b"), RenameFlags::NOREPLACE).unwrap();
    let missing = rename(&mount.join("b"), &mount.join("none"), RenameFlags::EXCHANGE);
    assert_eq!(missing.unwrap_err(), rustix::io::Errno::NOENT);
    if is_root() {
        rename(&mount.join("b"), &mount.join("c"), RenameFlags::WHITEOUT).unwrap();
        let left = fs::symlink_metadata(mount.join("b")).unwrap();
        assert_eq!((left.mode() & libc::S_IFMT, left.rdev()), (libc::S_IFCHR, 0));
        assert_eq!(fs::read_to_string(mount.join("c")).unwrap(), "A");
    }
    mount.unmount();
}

#[test]
fn a_big_directory_lists_each_entry_once() {
    let volume = Volume::new("big");
    let mount = volume.mount();
    let dir = mount.join("big");
    fs::create_dir(&dir).unwrap();
    let all: BTreeSet<OsString> = (0..5000).map(|n| OsString::from(format!("entry-{n}"))).collect();
    for name in &all {
        fs::write(dir.join(name), "").unwrap();
    }
    assert_eq!(names(&dir), all);
    mount.unmount();
    let mount = volume.mount();
    let listed: Vec<_> = fs::read_dir(mount.join("big")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed.len(), all.len());
    assert_eq!(names(&mount.join("big")), all);
    // Removing while listing neither skips nor repeats.
    for entry in fs::read_dir(mount.join("big")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(mount.join("big")).unwrap();
    mount.unmount();
}

#[test]
fn inode_numbers_are_unique_and_stable() {
    let volume = Volume::new("inodes");
    let mount = volume.mount();
    let number = |mount: &common::Mount, name: &str| fs::metadata(mount.join(name)).unwrap().ino();
    let mut numbers = BTreeSet::new();
    for n in 0..500 {
        fs::write(mount.join(&format!("f{n}")), "x").unwrap();
        numbers.insert(number(&mount, &format!("f{n}")));
    }
    assert_eq!(numbers.len(), 500);
    let before = number(&mount, "f7");
    fs::rename(mount.join("f7"), mount.join("g7")).unwrap();
    assert_eq!(number(&mount, "g7"), before);
    for entry in fs::read_dir(&mount.path).unwrap().map(Result::unwrap) {
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
    }
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(number(&mount, "g7"), before);
    mount.unmount();
}

#[test]
fn the_kernels_cache_and_the_lower_tree_agree_after_changes_in_deep_trees() {
    let volume = Volume::new("deep");
    let mount = volume.mount();
    let mut path = mount.path.clone();
    for level in 0..60 {
        path.push(format!("level-{level}"));
        fs::create_dir(&path).unwrap();
    }
    fs::write(path.join("bottom"), pattern(5000, 1)).unwrap();
    fs::rename(mount.join("level-0"), mount.join("moved")).unwrap();
    let bottom = {
        let mut p = mount.join("moved");
        for level in 1..60 {
            p.push(format!("level-{level}"));
        }
        p.join("bottom")
    };
    assert_eq!(fs::read(&bottom).unwrap(), pattern(5000, 1));
    fs::remove_dir_all(mount.join("moved")).unwrap();
    assert_eq!(names(&mount.path).len(), 0);
    mount.unmount();
}

#[test]
fn a_removed_directory_that_is_still_open_answers() {
    let volume = Volume::new("opendir");
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    let dir = fs::File::open(mount.join("d")).unwrap();
    fs::remove_dir(mount.join("d")).unwrap();
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
    let made = rustix::fs::openat(
        &dir,
        "f",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RWXU,
    );
    assert_eq!(made.unwrap_err(), rustix::io::Errno::NOENT);
    drop(dir);
    mount.unmount();
}
