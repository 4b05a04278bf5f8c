//! The gate that every change of a mount passes, and the moment that a snapshot sets there.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Volume, pattern};
use kmsfs::tree::{KEY_ATTRIBUTE, Moment};
use rustix::fs::XattrFlags;

/// How long a freeze may wait for changes; longer than any change takes, so that a failure is one that would not end.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_rename_that_waits_for_a_key_does_not_hold_up_a_snapshot() {
    let volume = Volume::binding_names("gate");
    let mount = volume.mount();
    for name in ["one", "two"] {
        fs::write(mount.join(name), pattern(9000, 1)).unwrap();
    }
    mount.unmount();
    volume.keys.forget();
    let mount = volume.mount();
    let gate = volume.keys.gate.lock();
    let (from, to) = (mount.join("one"), mount.join("two"));
    let exchange = std::thread::spawn(move || {
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, from, cwd, to, rustix::fs::RenameFlags::EXCHANGE)
    });
    while volume.keys.at_gate.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let frozen = mount.tree().freeze(PATIENCE, || Ok(None));
    drop(gate);
    exchange.join().unwrap().unwrap();
    frozen.unwrap();
    for name in ["one", "two"] {
        assert_eq!(fs::read(mount.join(name)).unwrap(), pattern(9000, 1));
    }
    mount.unmount();
}

/// The attributes of each directory below `root`, by the lower names.
fn attributes(root: &Path) -> BTreeMap<String, Vec<(String, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap().map(|entry| entry.unwrap()) {
        if !entry.file_type().unwrap().is_dir() || entry.file_name().to_string_lossy().starts_with(".kmsfs") {
            continue;
        }
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(entry.path(), &mut names).unwrap();
        let names = String::from_utf8(names[..len].to_vec()).unwrap();
        let value = |name: &str| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::getxattr(entry.path(), name, &mut value).unwrap();
            (name.to_owned(), value[..len].to_vec())
        };
        let all = names.split_terminator('\0').filter(|name| name.starts_with("user.")).map(value).collect();
        found.insert(entry.file_name().into_string().unwrap(), all);
    }
    found
}

#[test]
fn a_snapshot_has_the_keys_that_directories_had_chosen_at_its_moment() {
    let volume = Volume::new("choices");
    let mount = volume.mount();
    let choose = |name: &str, key: &str| {
        rustix::fs::setxattr(mount.join(name), KEY_ATTRIBUTE, key.as_bytes(), XattrFlags::empty()).unwrap();
    };
    for name in ["kept", "changed", "taken-back", "none-before"] {
        fs::create_dir(mount.join(name)).unwrap();
    }
    for name in ["kept", "changed", "taken-back"] {
        choose(name, "arn:before");
    }
    let before = attributes(&volume.lower());
    let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
    let stage = volume.root.join("lower/.kmsfs.stage");
    fs::create_dir(&stage).unwrap();
    let mut begun = None;
    let frozen = mount.tree().freeze(PATIENCE, || {
        let moment = Arc::new(Moment::new(open(&volume.lower()), open(&stage)).unwrap());
        begun = Some(Arc::clone(&moment));
        Ok(Some(moment))
    });
    frozen.unwrap();
    let moment = begun.unwrap();
    choose("changed", "arn:after");
    choose("none-before", "arn:after");
    rustix::fs::removexattr(mount.join("taken-back"), KEY_ATTRIBUTE).unwrap();
    mount.tree().walk_moment(&moment).unwrap();
    mount.tree().end_moment();
    assert!(moment.failure().is_none());
    moment.assemble().unwrap();
    let copied = attributes(&stage.join(moment.root_name()));
    drop(moment);
    // Each has a copy of its record there, and three have a choice.
    assert_eq!(before.values().flatten().count(), 4 + 3);
    assert_eq!(copied, before);
    assert_ne!(attributes(&volume.lower()), before);
    mount.unmount();
}
