//! A volume made with `kmsfs init --bind-names`: what trades places behind the mount's back does not open, and what the
//! mount renames does, also after an unclean stop.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::victim::{EIO, FILES, Victim, contents};
use super::{errno, list};

const LONG: &str = "a name of which the ciphertext is longer than any lower name, so that a sidecar holds it, as it goes \
                    for all names with more than about one hundred and seventy characters, which some programs do make \
                    of titles";

/// Exchanges two lower entries.
fn swap(a: &Path, b: &Path) {
    use rustix::fs::{CWD, RenameFlags};
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a06_bound_files_do_not_trade_places() {
    let victim = Victim::bound("a06-bound");
    let (small, middle) = (&victim.lower["small"], &victim.lower["middle"]);
    swap(small, middle);
    for name in ["small", "middle"] {
        assert!(victim.is_refused(name, b""), "{name} has traded places");
    }
    assert!(victim.desk.log().contains("another name"), "{}", victim.desk.log());
    let fsck = victim.desk.kmsfs("fsck {lower} --json");
    assert_eq!((fsck.code, fsck.json()["errors"].as_u64()), (4, Some(2)));
    swap(small, middle);
    // A whole file under another's name; a second name for one inode.
    let good = victim.bytes("middle");
    victim.put("middle", &victim.bytes("small"));
    assert!(victim.is_refused("middle", b""));
    fs::remove_file(middle).unwrap();
    fs::hard_link(small, middle).unwrap();
    assert!(victim.is_refused("middle", b""));
    fs::remove_file(middle).unwrap();
    victim.put("middle", &good);
    for (name, _) in FILES {
        assert!(!victim.is_refused(name, &contents(name, 1)));
    }
    victim.desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a06_bound_directories_and_links_do_not_trade_places() {
    let victim = Victim::bound("a06-dirs");
    let (dirs, links) = victim.in_mount(|mnt| {
        fs::create_dir(mnt.join("e")).unwrap();
        fs::write(mnt.join("e/file"), "in e").unwrap();
        for name in ["one", "two"] {
            symlink(format!("target of {name}"), mnt.join(name)).unwrap();
        }
        let lower = |names: [&str; 2]| names.map(|name| victim.desk.lower_entry_of(name));
        (lower(["d", "e"]), lower(["one", "two"]))
    });
    swap(&dirs[0], &dirs[1]);
    swap(&links[0], &links[1]);
    victim.in_mount(|mnt| {
        for (dir, file) in [("d", "file"), ("e", "inner")] {
            let (names, end) = list(&mnt.join(dir));
            assert_eq!((names.len(), errno(end)), (0, EIO));
            fs::read(mnt.join(dir).join(file)).unwrap_err();
        }
        for name in ["one", "two"] {
            assert_eq!(errno(fs::read_link(mnt.join(name))), EIO);
        }
    });
    swap(&dirs[0], &dirs[1]);
    swap(&links[0], &links[1]);
    victim.in_mount(|mnt| {
        assert_eq!(fs::read_to_string(mnt.join("e/file")).unwrap(), "in e");
        assert_eq!(fs::read_link(mnt.join("one")).unwrap(), Path::new("target of one"));
    });
}

#[test]
fn a06_a_swap_under_a_live_mount_never_shows_another_files_data() {
    let victim = Victim::bound("a06-live");
    let mnt = victim.desk.mount();
    for (name, _) in FILES {
        assert!(fs::read(mnt.join(name)).unwrap() == contents(name, 1));
    }
    swap(&victim.lower["small"], &victim.lower["middle"]);
    // The kernel looks the names up again after a while; other files in between make it forget sooner.
    for round in 0..40 {
        for name in ["small", "middle"] {
            if let Ok(read) = fs::read(mnt.join(name)) {
                assert!(read == contents(name, 1), "{name} in round {round}");
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    victim.desk.umount();
}

/// Moves things in every way, and gives what stands where afterwards.
fn rename_everything(mnt: &Path) -> Vec<(String, Vec<u8>)> {
    use rustix::fs::{CWD, RenameFlags};
    fs::write(mnt.join("victim"), "replaced").unwrap();
    fs::rename(mnt.join("small"), mnt.join("victim")).unwrap();
    fs::rename(mnt.join("middle"), mnt.join("d").join(LONG)).unwrap();
    fs::create_dir_all(mnt.join("x/y")).unwrap();
    fs::create_dir(mnt.join("empty")).unwrap();
    fs::write(mnt.join("x/y/deep"), "deep").unwrap();
    fs::rename(mnt.join("d"), mnt.join("x/y/moved")).unwrap();
    fs::rename(mnt.join("x/y"), mnt.join("empty")).unwrap();
    fs::write(mnt.join("a"), "was a").unwrap();
    fs::write(mnt.join("b"), "was b").unwrap();
    let (a, b) = (mnt.join("a"), mnt.join("b"));
    rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
    symlink("somewhere", mnt.join("link")).unwrap();
    fs::rename(mnt.join("link"), mnt.join("x/link")).unwrap();
    assert_eq!(fs::read_link(mnt.join("x/link")).unwrap(), Path::new("somewhere"));
    fs::write(mnt.join("void"), "").unwrap();
    fs::rename(mnt.join("void"), mnt.join("x/void")).unwrap();
    vec![
        ("victim".into(), contents("small", 1)),
        (format!("empty/moved/{LONG}"), contents("middle", 1)),
        ("empty/moved/inner".into(), contents("d/inner", 1)),
        ("large".into(), contents("large", 1)),
        ("empty/deep".into(), b"deep".to_vec()),
        ("a".into(), b"was b".to_vec()),
        ("b".into(), b"was a".to_vec()),
        ("x/void".into(), Vec::new()),
    ]
}

fn check(mnt: &Path, expected: &[(String, Vec<u8>)]) {
    for (name, data) in expected {
        assert!(fs::read(mnt.join(name)).unwrap() == *data, "{name}");
    }
    assert_eq!(fs::read_link(mnt.join("x/link")).unwrap(), Path::new("somewhere"));
}

#[test]
fn what_the_mount_renames_opens_at_its_new_name_and_no_more_at_the_old() {
    let victim = Victim::bound("bound-renames");
    let old = victim.lower["small"].clone();
    let expected = victim.in_mount(|mnt| {
        let expected = rename_everything(mnt);
        check(mnt, &expected);
        assert_eq!(errno(fs::hard_link(mnt.join("large"), mnt.join("second"))), 1, "EPERM");
        expected
    });
    victim.in_mount(|mnt| check(mnt, &expected));
    victim.desk.kmsfs("fsck {lower}").ok();
    // Somebody puts it back to the name that it had.
    let now = victim.in_mount(|_| victim.desk.lower_of("victim"));
    fs::rename(&now, &old).unwrap();
    assert!(victim.is_refused("small", b""));
}

#[test]
fn renames_before_an_unclean_stop_leave_everything_readable() {
    let victim = Victim::bound("bound-killed");
    let mnt = victim.desk.mount();
    let expected = rename_everything(&mnt);
    victim.desk.crash();
    victim.in_mount(|mnt| check(mnt, &expected));
    victim.desk.kmsfs("fsck {lower}").ok();
    victim.in_mount(|mnt| check(mnt, &expected));
}
