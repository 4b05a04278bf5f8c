//! Parts that are each genuine, put together anew: from another file, from an older state, from another directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kmsfs::format::layout;
use kmsfs::format::seal::{HEAD_MAC_OFFSET, SEAL_LEN, SEAL_OFFSETS};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

use super::victim::{EIO, Victim, contents, patched};
use super::{errno, list};

const LONG: &str = "a name whose ciphertext is longer than any lower name may be, as those of about one hundred and \
                    seventy characters and more are, so that it lies in a sidecar beside its entry, number ";

/// The place of tag page `page` with the blocks behind it.
fn group(page: u64) -> std::ops::Range<usize> {
    layout::tag_page_offset(page) as usize..layout::tag_page_offset(page + 1) as usize
}

/// `bytes` with the part `at` of `from`, which lies at the same place.
fn part(bytes: &[u8], from: &[u8], at: std::ops::Range<usize>) -> Vec<u8> {
    patched(bytes, at.clone(), &from[at])
}

/// The same of several parts.
fn patched_all(bytes: &[u8], from: &[u8], at: &[std::ops::Range<usize>]) -> Vec<u8> {
    at.iter().fold(bytes.to_vec(), |bytes, at| part(&bytes, from, at.clone()))
}

#[test]
fn a02_tag_pages_and_groups_do_not_move_between_files() {
    let victim = Victim::new("a02-files");
    let other = victim.in_mount(|mnt| {
        fs::write(mnt.join("twin"), contents("large", 1)).unwrap();
        victim.desk.lower_of("twin")
    });
    let (good, other) = (victim.bytes("large"), fs::read(other).unwrap());
    assert_eq!(good.len(), other.len());
    let page = group(1).start..group(1).start + 4096;
    let hot = HEAD_MAC_OFFSET..4096;
    let first = 4096..group(1).start;
    victim.refuses(
        "large",
        &[
            ("a tag page", part(&good, &other, page)),
            ("a tag page and its blocks", part(&good, &other, group(1))),
            ("the tags in the header", part(&good, &other, hot.clone())),
            ("these and their blocks", patched_all(&good, &other, &[hot, first])),
            ("everything but the keys", part(&good, &other, 856..good.len())),
        ],
    );
}

#[test]
fn a03_older_parts_of_a_file_do_not_go_with_newer_ones() {
    let victim = Victim::new("a03-parts");
    for name in ["middle", "large"] {
        let old = victim.bytes(name);
        victim.update(name, 9);
        victim.update(name, 1);
        let new = victim.bytes(name);
        let seals = SEAL_OFFSETS.map(|at| at..at + SEAL_LEN);
        let newest = seals.iter().map(|at| &new[at.clone()]).collect::<Vec<_>>();
        let mut edits = vec![
            ("the header without its blocks", part(&new, &old, 0..4096)),
            ("the seals", patched_all(&new, &old, &seals)),
            ("blocks and tags without the seals", part(&new, &old, HEAD_MAC_OFFSET..old.len())),
            ("the blocks without their tags", part(&new, &old, 4096..old.len())),
        ];
        // Whichever of the two seals is the newer one, the other one in its place says less than what stands.
        for (which, seal) in newest.iter().enumerate() {
            let mut twice = new.clone();
            twice[seals[1 - which].clone()].copy_from_slice(seal);
            victim.put(name, &twice);
            victim.is_refused(name, &contents(name, 1));
        }
        if name == "large" {
            edits.push(("the header and one group", patched_all(&new, &old, &[0..4096, group(1)])));
            edits.push(("all but one group", part(&old, &new, group(1))));
        }
        victim.put(name, &new);
        victim.refuses(name, &edits);
        // What falls: all of it together is an older file.
        victim.put(name, &old);
        assert!(!victim.is_refused(name, &contents(name, 1)));
    }
}

#[test]
fn a07_a_state_from_before_an_unclean_stop_is_refused_once_it_was_mounted_again() {
    let victim = Victim::new("a07-crash");
    let copy = |from: &str, to: &str| {
        let (from, to) = (victim.desk.path(from), victim.desk.path(to));
        let _ = fs::remove_dir_all(&to);
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    let mnt = victim.desk.mount();
    fs::write(mnt.join("small"), contents("small", 2)).unwrap();
    fs::File::open(mnt.join("small")).unwrap().sync_all().unwrap();
    copy("lower", "old");
    victim.desk.crash();
    copy("lower", "crashed");
    victim.in_mount(|mnt| {
        assert_eq!(fs::read(mnt.join("small")).unwrap(), contents("small", 2));
        fs::write(mnt.join("small"), contents("small", 3)).unwrap();
    });
    for older in ["old", "crashed"] {
        copy(older, "lower");
        for how in ["", " --read-only"] {
            victim.desk.kmsfs(&format!("mount {{lower}} {{mnt}}{how}")).fails(3, "older state");
        }
    }
}

/// The lower attributes of `path` that are ours, by their names.
fn attributes(path: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = std::str::from_utf8(&names[..len]).unwrap().split_terminator('\0');
    let ours = names.filter(|name| name.starts_with(prefix)).map(|name| (name.to_owned(), value(path, name)));
    ours.collect()
}

fn value(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
    value.truncate(len);
    value
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn a08_attribute_values_of_directories_do_not_move_and_older_ones_and_removals_pass() {
    let victim = Victim::new("a08-dirs");
    let (d, e) = victim.in_mount(|mnt| {
        fs::create_dir(mnt.join("e")).unwrap();
        for name in ["d", "e", "small"] {
            set(&mnt.join(name), "user.note", format!("of {name}").as_bytes());
        }
        (victim.desk.lower_entry_of("d"), victim.desk.lower_entry_of("e"))
    });
    let [of_d, of_e] = [&d, &e].map(|dir| attributes(dir, "user.kmsfs.").remove(0));
    assert_eq!(of_d.0, of_e.0, "one name in one volume");
    set(&d, &of_d.0, &of_e.1);
    let small = victim.lower["small"].clone();
    let older = attributes(&small, "user.kmsfs.").remove(0);
    victim.in_mount(|mnt| {
        let mut room = [0; 64];
        assert_eq!(
            rustix::fs::getxattr(mnt.join("d"), "user.note", &mut room[..]).unwrap_err().raw_os_error(),
            EIO
        );
        assert_eq!(value(&mnt.join("e"), "user.note"), b"of e");
        set(&mnt.join("small"), "user.note", b"newer");
    });
    victim.desk.kmsfs("fsck {lower}").fails(4, "");
    set(&d, &of_d.0, &of_d.1);
    victim.desk.kmsfs("fsck {lower}").ok();
    // What falls: nothing counts the attributes of a file, or their versions.
    set(&small, &older.0, &older.1);
    victim.in_mount(|mnt| assert_eq!(value(&mnt.join("small"), "user.note"), b"of small"));
    rustix::fs::lremovexattr(&small, older.0.as_str()).unwrap();
    victim.in_mount(|mnt| assert!(attributes(&mnt.join("small"), "user.note").is_empty()));
}

#[test]
fn a08_targets_of_links_trade_places_within_a_volume_and_come_from_no_other() {
    let (victim, other) = (Victim::new("a08-links"), Victim::new("a08-links-other"));
    let make = |victim: &Victim| {
        victim.in_mount(|mnt| {
            for name in ["one", "two"] {
                symlink(format!("target of {name}"), mnt.join(name)).unwrap();
            }
            ["one", "two"].map(|name| victim.desk.lower_entry_of(name))
        })
    };
    let (links, foreign) = (make(&victim), make(&other));
    renameat_with(CWD, &links[0], CWD, &links[1], RenameFlags::EXCHANGE).unwrap();
    victim.in_mount(|mnt| assert_eq!(fs::read_link(mnt.join("one")).unwrap(), Path::new("target of two")));
    fs::remove_file(&links[0]).unwrap();
    symlink(fs::read_link(&foreign[0]).unwrap(), &links[0]).unwrap();
    victim.in_mount(|mnt| assert_eq!(errno(fs::read_link(mnt.join("one"))), EIO));
}

#[test]
fn a09_a_directory_record_replaced_with_its_copy_shows_no_names() {
    const COPY: &str = "user.kmsfs-dir";
    let victim = Victim::new("a09-copy");
    let other = victim.in_mount(|mnt| {
        fs::create_dir(mnt.join("e")).unwrap();
        victim.desk.lower_entry_of("e")
    });
    let dir = victim.lower["d/inner"].parent().unwrap();
    let foreign = fs::read_link(other.join(".kmsfs.dir")).unwrap();
    fs::remove_file(dir.join(".kmsfs.dir")).unwrap();
    symlink(&foreign, dir.join(".kmsfs.dir")).unwrap();
    set(dir, COPY, &value(&other, COPY));
    victim.in_mount(|mnt| {
        let (names, end) = list(&mnt.join("d"));
        assert_eq!((names.len(), errno(end)), (0, EIO));
        fs::read(mnt.join("d/inner")).unwrap_err();
        // What is made there now does not come from, or show in, the other one.
        fs::write(mnt.join("d/new"), "made").unwrap();
        assert_eq!(list(&mnt.join("e")).0, Vec::<String>::new());
    });
    victim.desk.kmsfs("fsck {lower}").fails(4, "");
}

#[test]
fn a18_sidecars_of_long_names_do_not_trade_places() {
    let victim = Victim::new("a18-sidecars");
    let names = ["1", "2"].map(|number| format!("{LONG}{number}"));
    let entries = victim.in_mount(|mnt| {
        names.each_ref().map(|name| {
            fs::write(mnt.join(name), name).unwrap();
            victim.desk.lower_entry_of(name)
        })
    });
    let sidecars = entries.each_ref().map(|entry| {
        let name = entry.file_name().unwrap().to_str().unwrap();
        entry.with_file_name(name.replacen(".kmsfs.l.", ".kmsfs.n.", 1))
    });
    renameat_with(CWD, &sidecars[0], CWD, &sidecars[1], RenameFlags::EXCHANGE).unwrap();
    victim.in_mount(|mnt| {
        let (listed, end) = list(mnt);
        assert_eq!((listed.len(), errno(end)), (4, EIO), "{listed:?}");
        for name in &names {
            // Never one under the name of the other.
            assert!(fs::read_to_string(mnt.join(name)).map_or(true, |read| read == *name));
        }
    });
    renameat_with(CWD, &sidecars[0], CWD, &sidecars[1], RenameFlags::EXCHANGE).unwrap();
    victim.desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a06_what_kind_an_entry_is_of_is_not_told_by_its_name() {
    let victim = Victim::new("a06-kinds");
    let mnt = victim.desk.path("mnt");
    for kind in ["fifo", "socket", "device", "directory", "link"] {
        let place = victim.lower["small"].clone();
        let good = victim.bytes("small");
        fs::remove_file(&place).unwrap();
        let node =
            |kind, device| rustix::fs::mknodat(CWD, &place, kind, rustix::fs::Mode::RUSR, device).unwrap();
        match kind {
            "fifo" => node(rustix::fs::FileType::Fifo, 0),
            "socket" => node(rustix::fs::FileType::Socket, 0),
            // /dev/null
            "device" => node(rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            "directory" => fs::create_dir(&place).unwrap(),
            _ => symlink("/etc/passwd", &place).unwrap(),
        }
        victim.in_mount(|_| match kind {
            "directory" => assert_eq!(list(&mnt.join("small")).0.len(), 0),
            "link" => assert_eq!(errno(fs::read_link(mnt.join("small"))), EIO),
            // A device of the lower tree is no way to the device.
            "device" => {
                assert_eq!(errno(fs::read(mnt.join("small"))), rustix::io::Errno::ACCESS.raw_os_error());
            }
            _ => assert!(!fs::symlink_metadata(mnt.join("small")).unwrap().is_file()),
        });
        let _ = fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place));
        victim.put("small", &good);
    }
    assert!(!victim.is_refused("small", &contents("small", 1)));
}
