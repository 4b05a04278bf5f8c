//! A7 where the volume record moves from one master key to another: older trees stay refused under the key that they were
//! under, and the newest one never is, whatever interrupts the move.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::programs::{Desk, run};
use super::victim::{Victim, contents};

/// What an interrupted move may leave of the record.
const RECORDS: [&str; 2] = [".kmsfs.volume", ".kmsfs.volume.bak"];
const COUNT: &str = ".kmsfs.epoch";

impl Desk {
    /// Puts a copy of the directory `from` in the place of `to`.
    fn put_back(&self, from: &str, to: &str) {
        let _ = fs::remove_dir_all(self.path(to));
        run(Command::new("cp").arg("-a").arg(self.path(from)).arg(self.path(to))).ok();
    }

    fn put_file(&self, from: &str, name: &str) {
        fs::copy(self.path(from).join(name), self.path("lower").join(name)).unwrap();
    }
}

impl Victim {
    fn moves_to(&self, alias: &str) {
        self.desk.kmsfs(&format!("rewrap {{lower}} --to-key alias/{alias}")).ok();
    }

    #[track_caller]
    fn is_put_back(&self) {
        fs::create_dir_all(self.desk.path("mnt")).unwrap();
        self.desk.kmsfs("mount {lower} {mnt}").fails(3, "older state");
    }

    /// Mounts as it is, and holds the newest version of `middle`.
    #[track_caller]
    fn mounts_with(&self, version: u8) {
        self.in_mount(|mnt| assert_eq!(fs::read(mnt.join("middle")).unwrap(), contents("middle", version)));
    }
}

fn victim(label: &str) -> Victim {
    let victim = Victim::new(label);
    victim.desk.key("b");
    victim
}

#[test]
fn a07_a_tree_from_before_its_record_moved_to_another_key_is_refused() {
    let victim = victim("a07-moved");
    victim.desk.put_back("lower", "old");
    victim.update("middle", 2);
    victim.moves_to("b");
    victim.mounts_with(2);
    victim.desk.put_back("lower", "new");
    victim.desk.put_back("old", "lower");
    victim.is_put_back();
    // Nor does a further move take it along.
    victim.desk.kmsfs("rewrap {lower} --to-key alias/b").fails(3, "older state");
    victim.desk.key("c");
    victim.desk.kmsfs("rewrap {lower} --to-key alias/c").fails(3, "older state");
    // An older tree with the new record and the old count neither.
    for name in RECORDS {
        victim.desk.put_file("new", name);
    }
    victim.is_put_back();
    victim.desk.put_back("new", "lower");
    victim.mounts_with(2);
    // Its owner may still use it, and then move it.
    victim.desk.put_back("old", "lower");
    victim.desk.kmsfs("mount {lower} {mnt} --accept-older").ok();
    victim.desk.kmsfs("umount {mnt}").ok();
    victim.moves_to("c");
    victim.mounts_with(1);
}

#[test]
fn a07_moves_back_and_forth_never_refuse_the_newest_tree_and_always_older_ones() {
    let victim = victim("a07-forth");
    let mut version = 1;
    for key in ["b", "k", "b"] {
        victim.desk.put_back("lower", "old");
        version += 1;
        victim.update("middle", version);
        if version % 2 == 0 {
            victim.moves_to(key);
        } else {
            victim.in_mount(|_| _ = victim.desk.kmsfs(&format!("rewrap {{mnt}} --to-key alias/{key}")).ok());
        }
        victim.mounts_with(version);
        victim.desk.put_back("lower", "new");
        victim.desk.put_back("old", "lower");
        victim.is_put_back();
        victim.desk.put_back("new", "lower");
        victim.mounts_with(version);
    }
}

#[test]
fn a07_a_mount_goes_on_counting_behind_a_move_under_it() {
    let victim = victim("a07-live");
    for (version, key) in [(2, "b"), (3, "k"), (4, "k")] {
        let mnt = victim.desk.mount_logging();
        victim.desk.kmsfs(&format!("rewrap {{mnt}} --to-key alias/{key}")).ok();
        let file = fs::File::options().write(true).open(mnt.join("middle")).unwrap();
        file.write_all_at(&contents("middle", version), 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        if version == 3 {
            // What was synced is in the log perhaps, which a move must not make out to be of a mount that ended well.
            victim.desk.crash();
            victim.moves_to("b");
        } else {
            victim.desk.umount();
        }
        victim.mounts_with(version);
        assert!(!victim.desk.log().contains("is not of this volume"), "{}", victim.desk.log());
    }
}

#[test]
fn a07_a_move_that_is_interrupted_at_any_step_leaves_a_tree_that_mounts() {
    let victim = victim("a07-cut");
    let desk = &victim.desk;
    victim.update("middle", 2);
    desk.stop_kmsd();
    desk.put_back("state", "state-before");
    desk.start_kmsd();
    desk.put_back("lower", "before");
    victim.moves_to("b");
    desk.put_back("lower", "after");
    // Both marks are raised, and the record is not written, or its copy alone.
    desk.put_back("before", "lower");
    desk.put_file("after", COUNT);
    desk.kmsfs("mount {lower} {mnt} --read-only").ok();
    desk.kmsfs("umount {mnt}").ok();
    desk.put_file("after", RECORDS[1]);
    victim.mounts_with(2);
    // And the move is done when it is asked for again.
    victim.moves_to("b");
    victim.mounts_with(2);
    // The count alone is written, and no mark raised.
    desk.stop_kmsd();
    desk.put_back("state-before", "state");
    desk.start_kmsd();
    desk.put_back("before", "lower");
    desk.put_file("after", COUNT);
    victim.mounts_with(2);
    victim.moves_to("b");
    victim.mounts_with(2);
}

#[test]
fn a07_copies_and_snapshots_do_not_make_their_volume_an_older_one() {
    let victim = victim("a07-copies");
    let desk = &victim.desk;
    desk.kmsfs("snapshot create {lower} one").ok();
    desk.kmsfs("rewrap {lower}/.kmsfs.snapshots/one --to-key alias/b").ok();
    victim.mounts_with(1);
    let at = desk.path("copied");
    fs::create_dir(&at).unwrap();
    // The second copy under a key which the first was mounted with.
    for copy in ["first", "second"] {
        desk.kmsfs(&format!("copy {{lower}} {{{copy}}} --key alias/b")).ok();
        desk.kmsfs(&format!("mount {{{copy}}} {{copied}}")).ok();
        desk.adopt(at.clone());
        assert_eq!(fs::read(at.join("middle")).unwrap(), contents("middle", 1));
        desk.kmsfs("umount {copied}").ok();
        victim.mounts_with(1);
    }
}

#[test]
fn a07_a_mount_that_cannot_count_on_does_not_begin() {
    let victim = victim("a07-fixed");
    let count = victim.desk.path("lower").join(COUNT);
    let attribute = |what: &str, path: &Path| {
        Command::new("chattr").arg(what).arg(path).status().is_ok_and(|status| status.success())
    };
    if !attribute("+i", &count) {
        return eprintln!("skipped: no file can be made immutable here");
    }
    fs::create_dir_all(victim.desk.path("mnt")).unwrap();
    let refused = victim.desk.try_mount("");
    assert!(attribute("-i", &count));
    refused.fails(1, "count on in");
    victim.mounts_with(1);
}
