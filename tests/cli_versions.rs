//! Which versions of a key volumes use, and the end of a version that none uses any more.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::io::Write;

use programs::{Desk, Said, run};
use serde_json::Value;

fn kmsfs(desk: &Desk, line: &str) -> Said {
    run(desk.command_of(line).env("KMSFS_STATE_DIR", desk.path("registry")))
}

/// Id and users of the versions in that state.
fn versions(desk: &Desk, state: &str) -> Vec<(String, Value)> {
    let told = kmsfs(desk, "key versions alias/k --json").json();
    let of = |version: &Value| (version["id"].as_str().unwrap().to_owned(), version["uses"].clone());
    let all = told["versions"].as_array().unwrap();
    all.iter().filter(|version| version["state"] == state).map(of).collect()
}

#[test]
fn a_version_is_destroyed_when_no_volume_uses_it_and_not_before() {
    let desk = Desk::new("versions");
    desk.key("k");
    kmsfs(&desk, "volume create v --key alias/k").ok();
    let mnt = desk.path("mnt");
    fs::create_dir(&mnt).unwrap();
    desk.adopt(mnt.clone());
    kmsfs(&desk, "volume attach v {mnt}").ok();
    fs::write(mnt.join("file"), "data").unwrap();
    kmsfs(&desk, "snapshot create v old").ok();
    let current = versions(&desk, "current").remove(0).0;
    kmsfs(&desk, &format!("key retire-version alias/k {current} --yes")).fails(1, "is the current version");
    desk.kmsfs("key rotate alias/k").ok();
    let (old, uses) = versions(&desk, "old").remove(0);
    assert_eq!(old, current);
    assert_eq!((&uses["v"], &uses["v@old"]), (&2.into(), &2.into()), "a file and a record each");

    let retire = format!("key retire-version alias/k {} --yes", &old[..12]);
    kmsfs(&desk, &retire).fails(6, "is in use by v (2), v@old (2)");
    kmsfs(&desk, "rewrap v").ok();
    kmsfs(&desk, &retire).fails(6, "is in use by v@old (2)");
    kmsfs(&desk, "snapshot delete v old").ok();
    kmsfs(&desk, retire.trim_end_matches(" --yes")).fails(2, "--yes destroys it for good");
    // A volume that cannot be looked at may use it.
    kmsfs(&desk, "volume create w --key alias/k").ok();
    let record = desk.path("registry/data/w/.kmsfs.volume");
    let kept = fs::read(&record).unwrap();
    fs::write(&record, "").unwrap();
    let copy = desk.path("registry/data/w/.kmsfs.volume.bak");
    let kept_copy = fs::read(&copy).ok();
    let _ = fs::write(&copy, "");
    kmsfs(&desk, &retire).fails(3, "nothing was destroyed");
    fs::write(&record, kept).unwrap();
    if let Some(bytes) = kept_copy {
        fs::write(&copy, bytes).unwrap();
    }

    kmsfs(&desk, &retire).ok();
    assert!(versions(&desk, "old").is_empty());
    kmsfs(&desk, &retire).fails(2, "has no version");
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "data");
    let audit = run(std::process::Command::new(programs::KMSD)
        .args(["audit", "--dir"])
        .arg(desk.path("state"))
        .args(["search", "--operation", "RetireVersion", "-n", "9"]))
    .ok();
    assert!(audit.contains(&old), "{audit}");
}

#[test]
fn what_was_left_under_a_retired_version_says_so() {
    let desk = Desk::with_volume("versions-left");
    let mnt = desk.mount();
    fs::write(mnt.join("file"), "data").unwrap();
    desk.umount();
    let old = versions(&desk, "current").remove(0).0;
    desk.kmsfs("key rotate alias/k").ok();
    // The volume has no name here, and is not mounted: only whoever names it can know of it.
    kmsfs(&desk, &format!("key retire-version alias/k {old} --also {{lower}} --yes"))
        .fails(6, "is in use by");
    kmsfs(&desk, &format!("key retire-version alias/k {old} --yes")).ok();
    desk.kmsfs("mount {lower} {mnt}").fails(4, "was retired");
}

#[test]
fn a_mount_fetches_new_keys_before_an_old_version_ends() {
    let desk = Desk::with_volume("versions-live");
    let mnt = desk.mount();
    // Its key is there already; its header, which would tell the version, is not.
    let mut empty = fs::File::create(mnt.join("empty")).unwrap();
    fs::write(mnt.join("warm"), "warm").unwrap();
    let mut warm = fs::File::options().append(true).open(mnt.join("warm")).unwrap();
    let old = versions(&desk, "current").remove(0).0;
    desk.kmsfs("key rotate alias/k").ok();
    desk.kmsfs("rewrap {lower}").ok();
    kmsfs(&desk, &format!("key retire-version alias/k {old} --yes")).ok();

    empty.write_all(b"late").unwrap();
    warm.write_all(b" still").unwrap();
    fs::write(mnt.join("new"), "new").unwrap();
    drop((empty, warm));
    desk.umount();
    let mnt = desk.mount();
    for (name, expected) in [("empty", "late"), ("warm", "warm still"), ("new", "new")] {
        assert_eq!(fs::read_to_string(mnt.join(name)).unwrap(), expected);
    }
}

#[test]
fn a_version_is_kept_where_a_mount_or_a_snapshot_cannot_be_looked_at() {
    let desk = Desk::with_volume("versions-mute");
    let mnt = desk.mount();
    let old = versions(&desk, "current").remove(0).0;
    desk.kmsfs("key rotate alias/k").ok();
    desk.kmsfs("rewrap {lower}").ok();
    let retire = format!("key retire-version alias/k {old} --yes");

    let status = desk.kmsfs("status {mnt} --json").json();
    let socket = std::path::PathBuf::from(status["socket"].as_str().unwrap());
    let aside = desk.path("aside");
    fs::rename(&socket, &aside).unwrap();
    let said = kmsfs(&desk, &retire);
    fs::rename(&aside, &socket).unwrap();
    said.fails(3, "does not answer");

    // What may be a snapshot, and does not say so.
    let snapshots = desk.path("lower/.kmsfs.snapshots/odd");
    fs::create_dir_all(&snapshots).unwrap();
    kmsfs(&desk, &retire).fails(3, "odd");
    fs::remove_dir_all(snapshots.parent().unwrap()).unwrap();
    kmsfs(&desk, &retire).ok();
    assert!(mnt.is_dir());
}
