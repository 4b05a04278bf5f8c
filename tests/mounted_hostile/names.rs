//! Names, directory records and leftovers in the lower tree.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Desk, errno, list};

const EIO: i32 = 5;
const ENOTEMPTY: i32 = 39;
const LONG: &str = "long-";

/// `d` with the files `a`, `b` and one of a long name, in a volume that is not mounted. Gives the lower directory.
fn desk_with_a_directory(label: &str) -> (Desk, std::path::PathBuf) {
    let desk = Desk::with_volume(label);
    let mnt = desk.mount();
    fs::create_dir(mnt.join("d")).unwrap();
    for name in ["a", "b", &LONG.repeat(45)] {
        fs::write(mnt.join("d").join(name), "kept").unwrap();
    }
    let lower = desk.lower_parent_of("d/a");
    desk.umount();
    (desk, lower)
}

#[test]
fn names_that_do_not_decrypt_are_told_at_the_end_of_a_listing() {
    let (desk, lower) = desk_with_a_directory("names");
    let mnt = desk.mount_logging();
    let of_a = desk.lower_of("d/a");
    desk.umount();
    let mut forged = of_a.file_name().unwrap().to_str().unwrap().to_owned();
    forged.replace_range(3..4, if &forged[3..4] == "x" { "y" } else { "x" });
    fs::copy(&of_a, lower.join(&forged)).unwrap();
    desk.mount_logging();
    let (names, end) = list(&mnt.join("d"));
    assert_eq!((names.len(), errno(end)), (3, EIO), "{names:?}");
    assert!(desk.log().contains(&forged), "{}", desk.log());
    assert_eq!(fs::read_to_string(mnt.join("d/a")).unwrap(), "kept");
    assert!(desk.kmsfs("status {mnt} --json").json()["damage_seen"].as_u64().unwrap() > 0);
    desk.umount();
    fs::remove_file(lower.join(&forged)).unwrap();
    // A long name without its sidecar is damage as well.
    let sidecar = fs::read_dir(&lower).unwrap().map(|e| e.unwrap().path());
    let sidecar = sidecar.into_iter().find(|p| p.to_str().unwrap().contains(".kmsfs.n.")).unwrap();
    fs::remove_file(sidecar).unwrap();
    desk.mount_logging();
    let (names, end) = list(&mnt.join("d"));
    assert_eq!((names, errno(end)), (vec!["a".to_owned(), "b".to_owned()], EIO));
    desk.umount();
}

#[test]
fn a_swapped_directory_record_is_damage_and_a_lost_one_comes_back_from_its_copy() {
    let (desk, lower) = desk_with_a_directory("records");
    let record = lower.join(".kmsfs.dir");
    let own = fs::read_link(&record).unwrap();
    fs::remove_file(&record).unwrap();
    symlink(fs::read_link(desk.path("lower/.kmsfs.dir")).unwrap(), &record).unwrap();
    let mnt = desk.mount_logging();
    let (names, end) = list(&mnt.join("d"));
    assert_eq!((names.len(), errno(end)), (0, EIO));
    desk.umount();
    let found_at = |path: &str| {
        let report = desk.kmsfs("fsck {lower} --json").json();
        let findings = report["findings"].as_array().unwrap().clone();
        let of_record = findings
            .iter()
            .find(|finding| finding["lower_path"].as_str().unwrap().ends_with(".kmsfs.dir"))
            .unwrap_or_else(|| panic!("nothing is told of the record: {report}"));
        assert_eq!(of_record["path"], path, "{report}");
    };
    fs::remove_file(&record).unwrap();
    found_at("d");
    let root_record = desk.path("lower/.kmsfs.dir");
    let of_root = fs::read_link(&root_record).unwrap();
    fs::remove_file(&root_record).unwrap();
    found_at(".");
    symlink(of_root, &root_record).unwrap();
    desk.mount_logging();
    let (names, end) = list(&mnt.join("d"));
    end.unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(fs::read_link(&record).unwrap(), own);
    assert!(desk.log().contains("copy"), "{}", desk.log());
    desk.umount();
}

#[test]
fn what_a_kill_leaves_of_mkdir_rmdir_and_rename_hinders_nothing() {
    let (desk, lower) = desk_with_a_directory("leftovers");
    let top = desk.path("lower");
    // A mkdir that was cut before its rename, with and without its record.
    for (name, with_record) in [(".kmsfs.t.AAAAAAAAAAAAAAAA", true), (".kmsfs.t.BBBBBBBBBBBBBBBB", false)] {
        fs::create_dir(lower.join(name)).unwrap();
        if with_record {
            symlink("AQMDAwMDAwMDAwMDAwMDAwO0O75t7GAiXCUCczMVjht5", lower.join(name).join(".kmsfs.dir"))
                .unwrap();
        }
    }
    let mnt = desk.mount_logging();
    fs::create_dir(mnt.join("empty")).unwrap();
    fs::write(mnt.join("empty/x"), "").unwrap();
    let emptied = desk.lower_parent_of("empty/x");
    fs::remove_file(mnt.join("empty/x")).unwrap();
    desk.umount();
    // An rmdir, or a rename over a directory, that was cut after it took the record out.
    fs::remove_file(emptied.join(".kmsfs.dir")).unwrap();
    desk.mount_logging();
    assert_eq!(list(&mnt.join("empty")).0.len(), 0);
    fs::write(mnt.join("empty/again"), "used").unwrap();
    fs::remove_file(mnt.join("empty/again")).unwrap();
    fs::rename(mnt.join("d"), mnt.join("empty")).unwrap();
    assert_eq!(list(&mnt.join("empty")).0.len(), 3);
    fs::remove_dir_all(mnt.join("empty")).unwrap();
    desk.umount();
    assert!(!top.join(lower.file_name().unwrap()).exists());
    desk.kmsfs("fsck {lower}").ok();
}

#[test]
fn a_foreign_file_keeps_its_directory_and_is_named_in_the_log() {
    let (desk, lower) = desk_with_a_directory("foreign");
    fs::write(lower.join("notes.txt"), "somebody's").unwrap();
    let mnt = desk.mount_logging();
    for entry in fs::read_dir(mnt.join("d")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(errno(fs::remove_dir(mnt.join("d"))), ENOTEMPTY);
    assert!(desk.log().contains("notes.txt"), "{}", desk.log());
    fs::write(mnt.join("d/works"), "on").unwrap();
    fs::create_dir(mnt.join("other")).unwrap();
    assert_eq!(errno(fs::rename(mnt.join("other"), mnt.join("d"))), ENOTEMPTY);
    desk.umount();
    assert_eq!(fs::read_to_string(lower.join("notes.txt")).unwrap(), "somebody's");
}
