//! Which key a file takes, and mounts whose keys are locked, disabled or on their way to be destroyed.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;

use programs::{Desk, refusal};

#[test]
fn a_directory_s_choice_is_inherited_a_file_s_own_wins_and_moving_keeps_it() {
    let desk = Desk::with_volume("choice");
    desk.key("b");
    desk.key("c");
    let (k, b, c) = (desk.arn("k"), desk.arn("b"), desk.arn("c"));
    let mnt = desk.mount();
    fs::create_dir_all(mnt.join("dir/old")).unwrap();
    assert_eq!(desk.kmsfs("default {mnt}/dir --json").json()["key_arn"], k.as_str());
    desk.kmsfs("default {mnt}/dir --key alias/b").ok();
    assert_eq!(desk.kmsfs("default {mnt}/dir --json").json()["key_arn"], b.as_str());
    fs::create_dir(mnt.join("dir/new")).unwrap();
    for name in ["top", "dir/file", "dir/new/file", "dir/old/file"] {
        fs::write(mnt.join(name), "text").unwrap();
    }
    let keys = ["top", "dir/file", "dir/new/file", "dir/old/file"].map(|name| desk.key_of(name));
    assert_eq!(keys, [k.clone(), b.clone(), b.clone(), k.clone()]);
    // Empty when it is made, and opened again to be written: the choice is the same.
    fs::write(mnt.join("dir/late"), "").unwrap();
    fs::write(mnt.join("dir/late"), "text").unwrap();
    fs::rename(mnt.join("dir/file"), mnt.join("moved")).unwrap();
    fs::write(mnt.join("moved"), "written anew").unwrap();
    desk.kmsfs("cp --key alias/c {mnt}/moved {mnt}/dir/copy").ok();
    desk.kmsfs("cp {mnt}/moved {mnt}/dir/plain").ok();
    assert_eq!(fs::read_to_string(mnt.join("dir/copy")).unwrap(), "written anew");
    let keys = ["dir/late", "moved", "dir/copy", "dir/plain"].map(|name| desk.key_of(name));
    assert_eq!(keys, [b.clone(), b.clone(), c.clone(), b.clone()]);
    desk.kmsfs("cp {mnt}/moved {mnt}/dir/copy").fails(1, "exists");
    let tree = desk.kmsfs("info -r {mnt} --json").json();
    let files = |key: &str| tree["keys"][key]["files"].as_u64().unwrap();
    assert_eq!((files(&k), files(&b), files(&c)), (2, 4, 1), "{tree}");
    assert_eq!(tree["defaults"].as_object().unwrap().len(), 2, "{tree}");
    // It outlives the mount, and is taken back.
    desk.umount();
    desk.mount();
    fs::write(mnt.join("dir/after"), "text").unwrap();
    assert_eq!(desk.key_of("dir/after"), b);
    desk.kmsfs("default {mnt}/dir --none").ok();
    fs::write(mnt.join("dir/last"), "text").unwrap();
    assert_eq!(desk.key_of("dir/last"), k);
}

#[test]
fn a_choice_that_cannot_be_used_is_refused_and_changes_nothing() {
    let desk = Desk::with_volume("unfit");
    for alias in ["off", "doomed", "b"] {
        desk.key(alias);
    }
    desk.kmsfs("key disable alias/off").ok();
    desk.kmsfs("key delete alias/doomed").ok();
    let mnt = desk.mount();
    fs::create_dir(mnt.join("dir")).unwrap();
    desk.kmsfs("default {mnt}/dir --key alias/none").fails(4, "alias/none");
    desk.kmsfs("default {mnt}/dir --key alias/off").fails(4, "Disabled");
    desk.kmsfs("default {mnt}/dir --key alias/doomed").fails(4, "PendingDeletion");
    let foreign = desk.arn("b").replace(":local:", ":elsewhere:");
    let said = desk.kmsfs(&format!("default {{mnt}}/dir --key {foreign}"));
    assert!(said.code != 0 && said.err.contains("elsewhere"), "{said:?}");
    desk.kmsfs("default {mnt}/dir --key alias/b --none").fails(2, "cannot be used with");
    desk.kmsfs("default {lower} --key alias/b").fails(1, "no mount");
    fs::write(mnt.join("file"), "text").unwrap();
    desk.kmsfs("default {mnt}/file --key alias/b").fails(2, "not a directory");
    // By hand: a key that the volume does not name, and one for a file that has its key.
    let set = |name: &str, arn: &str| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(mnt.join(name), "user.kmsfs.key", arn.as_bytes(), flags)
    };
    assert_eq!(set("dir", &desk.arn("b")), Err(rustix::io::Errno::NOKEY));
    assert_eq!(set("file", &desk.arn("k")), Err(rustix::io::Errno::NOTEMPTY));
    fs::write(mnt.join("dir/file"), "text").unwrap();
    assert_eq!(desk.key_of("dir/file"), desk.arn("k"));
}

#[test]
fn an_alias_that_moves_changes_nothing_for_a_mount() {
    let desk = Desk::with_volume("alias");
    let mnt = desk.mount();
    let first = desk.arn("k");
    let other = desk.kmsfs("key create").ok();
    let other = other.split_whitespace().next().unwrap();
    fs::write(mnt.join("before"), "text").unwrap();
    desk.kmsfs(&format!("key alias update alias/k {other}")).ok();
    fs::write(mnt.join("after"), "text").unwrap();
    assert_eq!((desk.key_of("before"), desk.key_of("after")), (first.clone(), first));
    assert_eq!(fs::read_to_string(mnt.join("before")).unwrap(), "text");
}

#[test]
fn a_locked_mount_fetches_nothing_until_it_is_unlocked() {
    let desk = Desk::with_volume("locked");
    desk.key("b");
    let mnt = desk.mount();
    fs::create_dir(mnt.join("dir")).unwrap();
    desk.kmsfs("default {mnt}/dir --key alias/b").ok();
    let (one, two) = (mnt.join("one"), mnt.join("dir/two"));
    for path in [&one, &two] {
        fs::write(path, "text").unwrap();
    }
    desk.kmsfs("unlock {mnt}").fails(1, "not locked");
    desk.kmsfs("lock {mnt} --key alias/b").ok();
    assert_eq!((refusal(&one), refusal(&two)), (None, Some(libc::ENOKEY)));
    assert_eq!(fs::write(mnt.join("dir/new"), "x").unwrap_err().raw_os_error(), Some(libc::ENOKEY));
    let status = desk.kmsfs("status {mnt} --json").json();
    assert_eq!((&status["locked"], status["locked_keys"].as_array().unwrap().len()), (&false.into(), 1));
    desk.kmsfs("lock {mnt}").ok();
    assert_eq!((refusal(&one), refusal(&two)), (Some(libc::ENOKEY), Some(libc::ENOKEY)));
    assert_eq!(fs::read_dir(mnt.join("dir")).unwrap().count(), 1, "names are there");
    let status = desk.kmsfs("status {mnt} --json").json();
    assert_eq!((&status["locked"], &status["cached_keys"]), (&true.into(), &0.into()));
    desk.kmsfs("unlock {mnt}").ok();
    assert_eq!((refusal(&one), refusal(&two)), (None, None));
    desk.kmsfs("lock {mnt} --once").ok();
    assert_eq!(refusal(&one), None);
}

#[test]
fn a_key_on_its_way_to_be_destroyed_takes_the_volume_with_it() {
    let desk = Desk::with_volume("shred");
    let mnt = desk.mount();
    let file = mnt.join("file");
    fs::write(&file, vec![7; 100_000]).unwrap();
    let held = fs::File::open(&file).unwrap();
    desk.kmsfs("key delete alias/k --days 7").ok();
    desk.loses_the_key_of(&file, &held);
    // Neither a new mount nor a new daemon brings it back.
    drop(held);
    desk.umount();
    desk.kmsfs("mount {lower} {mnt}").fails(4, "pending deletion");
    desk.stop_kmsd();
    desk.start_kmsd();
    desk.kmsfs("mount {lower} {mnt}").fails(4, "pending deletion");
    // Until the time is over, whoever may can still change their mind.
    desk.kmsfs("key cancel-deletion alias/k").ok();
    desk.kmsfs("key enable alias/k").ok();
    desk.mount();
    let back = fs::File::open(&file).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&back, &mut byte, 50_000).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_key_that_is_brought_along_opens_its_files_and_no_service_is_asked() {
    let desk = Desk::with_volume("customer");
    let mnt = desk.path("mnt");
    fs::write(desk.path("own.key"), [0x5a; 32]).unwrap();
    fs::write(desk.path("other.key"), "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n").unwrap();
    fs::write(desk.path("short.key"), "short").unwrap();
    desk.try_mount("--customer-key own={short.key}").fails(1, "neither 32 bytes nor their base64");
    desk.try_mount("--customer-key o/wn={own.key}").fails(4, "name has 1 to 32");
    desk.try_mount("--customer-key own").fails(2, "NAME=FILE");
    desk.try_mount("--customer-key own={own.key}").ok();
    fs::create_dir(mnt.join("dir")).unwrap();
    desk.kmsfs("default {mnt}/dir --customer-key own").ok();
    desk.kmsfs("default {mnt}/dir --customer-key none").fails(4, "no customer key 'none'");
    // From here on the key service is of no use to files below.
    desk.stop_kmsd();
    fs::write(mnt.join("dir/file"), "secret").unwrap();
    desk.kmsfs("lock {mnt} --once").ok();
    assert_eq!(fs::read_to_string(mnt.join("dir/file")).unwrap(), "secret");
    assert!(desk.key_of("dir/file").starts_with("customer-key/own/"));
    desk.start_kmsd();
    desk.umount();
    // Without the key there are names and no contents; with another one there is no mount.
    desk.try_mount("--idle 1h").ok();
    assert_eq!(refusal(&mnt.join("dir/file")), Some(libc::ENOKEY));
    assert_eq!(fs::read_dir(mnt.join("dir")).unwrap().count(), 1);
    fs::write(mnt.join("beside"), "text").unwrap();
    desk.umount();
    // So for a check, which names what it could not ask for.
    let found = desk.kmsfs("fsck {lower}");
    assert!(found.code == 4 && found.out.contains("--customer-key own=FILE"), "{found:?}");
    assert!(
        found.out.contains("(its key is customer-key/own/") && found.out.contains("1 error\n"),
        "{found:?}"
    );
    desk.kmsfs("fsck {lower} --customer-key own={own.key}").ok();
    desk.kmsfs("fsck {lower} --customer-key own={other.key}").fails(8, "'own'");
    desk.kmsfs("fsck {lower} --customer-key new={own.key}").fails(8, "'new'");
    desk.kmsfs("key disable alias/k").ok();
    let found = desk.kmsfs("fsck {lower} --customer-key own={own.key}");
    assert!(found.code == 8 && found.err.contains("is disabled"), "{found:?}");
    desk.kmsfs("key enable alias/k").ok();
    desk.try_mount("--customer-key own={other.key}").fails(4, "'own'");
    desk.try_mount("--read-only --customer-key new={other.key}").fails(4, "'new'");
    desk.try_mount("").ok();
    desk.kmsfs("snapshot create {mnt} s").ok();
    desk.umount();
    fs::create_dir(desk.path("snap")).unwrap();
    desk.kmsfs("snapshot mount {lower} s {snap} --customer-key own={own.key}").ok();
    desk.adopt(desk.path("snap"));
    assert_eq!(fs::read_to_string(desk.path("snap/dir/file")).unwrap(), "secret");
    desk.kmsfs("umount {snap}").ok();
    // A rewrap has nothing to move there.
    let report = desk.kmsfs("rewrap {lower} --json").json();
    assert_eq!((&report["failed"], &report["current"]), (&0.into(), &2.into()), "{report}");
    // By an open descriptor, as from a password manager.
    let script = "exec 7<\"$1\"; shift; exec \"$@\"";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(desk.path("own.key")).arg(programs::KMSFS);
    shell
        .env("KMSFS_KMS", format!("unix:{}", desk.path("kmsd.sock").display()))
        .env("HOME", desk.path("home"));
    shell.arg("mount").arg(desk.path("lower")).arg(&mnt).args(["--customer-key", "own=fd:7"]);
    programs::run(&mut shell).ok();
    desk.adopt(mnt.clone());
    assert_eq!(fs::read_to_string(mnt.join("dir/file")).unwrap(), "secret");
}

#[test]
fn a_copy_under_another_key_keeps_customer_keys_and_no_other_choice() {
    let desk = Desk::with_volume("choice-copy");
    desk.key("b");
    desk.key("other");
    fs::write(desk.path("own.key"), [0x5a; 32]).unwrap();
    let mnt = desk.path("mnt");
    desk.try_mount("--customer-key own={own.key}").ok();
    for (dir, choice) in [("own", "--customer-key own"), ("b", "--key alias/b")] {
        fs::create_dir(mnt.join(dir)).unwrap();
        desk.kmsfs(&format!("default {{mnt}}/{dir} {choice}")).ok();
        fs::create_dir(mnt.join(dir).join("below")).unwrap();
        fs::write(mnt.join(dir).join("file"), dir).unwrap();
    }
    desk.umount();
    desk.kmsfs("copy {lower} {copy} --key alias/other").ok();
    desk.kmsfs("fsck {copy} --customer-key own={own.key}").ok();
    fs::create_dir(desk.path("there")).unwrap();
    desk.kmsfs("mount {copy} {there} --customer-key own={own.key}").ok();
    desk.adopt(desk.path("there"));
    for dir in ["own", "b"] {
        let at = desk.path("there").join(dir);
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), dir);
        fs::write(at.join("below/new"), "new").unwrap();
    }
    let tree = desk.kmsfs("info -r {there} --json").json();
    assert_eq!(tree["keys"][desk.arn("other")]["files"], 2, "{tree}");
    assert_eq!(tree["keys"].as_object().unwrap().len(), 2, "{tree}");
    assert_eq!(tree["defaults"].as_object().unwrap().len(), 2, "the choices of the customer key: {tree}");
    desk.kmsfs("umount {there}").ok();
}
