//! Keys under a mount: when they are asked for, and what happens when they are refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use common::{KEY_ARN, Volume, pattern};

#[test]
fn stat_and_listing_ask_for_no_key_and_a_read_asks_once() {
    let volume = Volume::new("nokey");
    let mount = volume.mount();
    for n in 0..20 {
        fs::write(mount.join(&format!("f{n}")), pattern(5000, n)).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    for entry in fs::read_dir(&mount.path).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), 5000);
    }
    assert_eq!(volume.keys.unwraps.load(Ordering::Relaxed), 0);
    let readers: Vec<_> = (0..8).map(|_| File::open(mount.join("f3")).unwrap()).collect();
    for reader in &readers {
        let mut back = vec![0; 5000];
        reader.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, pattern(5000, 3));
    }
    assert_eq!(volume.keys.unwraps.load(Ordering::Relaxed), 1);
    drop(readers);
    mount.unmount();
}

#[test]
fn a_disabled_key_stops_open_files_and_works_again_without_a_remount() {
    let volume = Volume::new("disabled");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, pattern(100_000, 1)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"dirty", 50_000).unwrap();
    let affected = mount.tree().nodes_under(Some(KEY_ARN));
    assert_eq!(affected.len(), 1);
    assert!(mount.tree().nodes_under(Some("arn:another")).is_empty());
    // As on a revocation: write back what is dirty, then drop the keys.
    mount.handle().invalidate(&affected).unwrap();
    volume.keys.disabled.store(true, Ordering::Relaxed);
    mount.tree().revoke(KEY_ARN);
    let mut back = [0; 5];
    let refused = file.read_exact_at(&mut back, 50_000).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOKEY));
    assert_eq!(File::open(&path).unwrap_err().raw_os_error(), Some(libc::ENOKEY));
    assert_eq!(fs::metadata(&path).unwrap().len(), 100_000);
    assert_eq!(File::create(mount.join("new")).unwrap_err().raw_os_error(), Some(libc::ENOKEY));
    assert!(!mount.join("new").exists(), "a file that could never be written is not made");
    volume.keys.disabled.store(false, Ordering::Relaxed);
    file.read_exact_at(&mut back, 50_000).unwrap();
    assert_eq!(&back, b"dirty");
    assert_eq!(fs::read(&path).unwrap().len(), 100_000);
    drop(file);
    mount.unmount();
}

#[test]
fn damage_is_an_error_of_that_file_alone() {
    let volume = Volume::new("damage");
    let mount = volume.mount();
    fs::write(mount.join("a"), pattern(50_000, 1)).unwrap();
    fs::write(mount.join("b"), pattern(70_000, 2)).unwrap();
    mount.unmount();
    let damaged = fs::read_dir(volume.lower()).unwrap().map(|e| e.unwrap().path()).find(|p| {
        let m = fs::symlink_metadata(p).unwrap();
        m.is_file() && m.len() > 60_000
    });
    let lower = OpenOptions::new().read(true).write(true).open(damaged.unwrap()).unwrap();
    let mut byte = [0];
    lower.read_exact_at(&mut byte, 4096 * 5 + 17).unwrap();
    lower.write_all_at(&[byte[0] ^ 1], 4096 * 5 + 17).unwrap();
    drop(lower);
    let mount = volume.mount();
    assert_eq!(fs::read(mount.join("a")).unwrap(), pattern(50_000, 1));
    assert_eq!(fs::read(mount.join("b")).unwrap_err().raw_os_error(), Some(libc::EIO));
    // The blocks beside the damaged one are still there.
    let file = File::open(mount.join("b")).unwrap();
    let mut back = vec![0; 4096];
    file.read_exact_at(&mut back, 4096 * 10).unwrap();
    assert_eq!(back, pattern(70_000, 2)[4096 * 10..4096 * 11]);
    drop(file);
    mount.unmount();
}

#[test]
fn a_volume_under_another_key_does_not_open() {
    let (one, two) = (Volume::new("one"), Volume::new("two"));
    fs::remove_file(two.lower().join(".kmsfs.dir")).unwrap();
    let record = fs::read_link(one.lower().join(".kmsfs.dir")).unwrap();
    std::os::unix::fs::symlink(record, two.lower().join(".kmsfs.dir")).unwrap();
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| two.tree(false)));
    assert!(opened.is_err());
}

#[test]
fn files_whose_keys_are_at_hand_go_on_while_others_wait_for_theirs() {
    let volume = Volume::new("waiting");
    let mount = volume.mount();
    for n in 0..100 {
        fs::write(mount.join(&format!("cold{n}")), pattern(9000, n)).unwrap();
    }
    fs::write(mount.join("warm"), pattern(100_000, 1)).unwrap();
    mount.unmount();
    volume.keys.forget();
    let mount = volume.mount();
    let warm = OpenOptions::new().read(true).write(true).open(mount.join("warm")).unwrap();
    let gate = volume.keys.gate.lock();
    // Far more than there are serving threads, and several of one file.
    let readers: Vec<_> = (0..120)
        .map(|n| {
            let path = mount.join(&format!("cold{}", n % 100));
            std::thread::spawn(move || fs::read(path).unwrap() == pattern(9000, n % 100))
        })
        .collect();
    while volume.keys.at_gate.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    // Each of these would wait for ever if a thread, or a lock that it needs, waited for a key.
    let mut back = vec![0; 100_000];
    warm.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, pattern(100_000, 1));
    warm.write_all_at(b"written", 5000).unwrap();
    warm.sync_all().unwrap();
    assert_eq!(fs::read_dir(&mount.path).unwrap().count(), 101);
    for n in 0..100 {
        let path = mount.join(&format!("cold{n}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 9000);
        rustix::fs::chmod(&path, 0o640.into()).unwrap();
    }
    fs::create_dir(mount.join("dir")).unwrap();
    fs::rename(mount.join("cold99"), mount.join("dir/moved")).unwrap();
    fs::hard_link(mount.join("dir/moved"), mount.join("cold99")).unwrap();
    fs::write(mount.join("new"), "new").unwrap();
    assert_eq!(fs::read(mount.join("new")).unwrap(), b"new");
    drop(gate);
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    drop(warm);
    mount.unmount();
}

#[test]
fn a_panic_is_an_error_of_one_request() {
    let volume = Volume::new("panic");
    let mount = volume.mount();
    fs::write(mount.join("cold"), pattern(9000, 1)).unwrap();
    mount.unmount();
    let mount = volume.mount();
    volume.keys.broken.store(true, Ordering::Relaxed);
    // More often than there are serving threads.
    for n in 0..40 {
        let refused = fs::read(mount.join("cold")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        let refused = File::create(mount.join(&format!("new{n}"))).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    }
    volume.keys.broken.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(mount.join("cold")).unwrap(), pattern(9000, 1));
    mount.unmount();
}

#[test]
fn requests_are_counted_as_use() {
    let volume = Volume::new("requests");
    let mount = volume.mount();
    let before = mount.handle().requests();
    for _ in 0..3 {
        rustix::fs::statvfs(&mount.path).unwrap();
    }
    assert!(mount.handle().requests() >= before + 3);
    mount.unmount();
}
