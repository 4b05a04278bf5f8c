//! Holes, preallocation and mappings through the kernel.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{Volume, pattern};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

fn new_file(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

#[test]
fn a_sparse_file_takes_little_space_and_shows_its_holes() {
    let volume = Volume::new("sparse");
    let mount = volume.mount();
    let path = mount.join("f");
    let file = new_file(&path);
    file.write_all_at(&pattern(8192, 1), 1 << 30).unwrap();
    file.sync_all().unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 1 << 30);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 30)).unwrap(), (1 << 30) + 8192);
    assert_eq!(seek(&file, SeekFrom::Data((1 << 30) + 8192)).unwrap_err(), Errno::NXIO);
    let mut back = vec![1; 10_000];
    file.read_exact_at(&mut back, 5000).unwrap();
    assert!(back.iter().all(|b| *b == 0));
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let file = File::open(mount.join("f")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 30) + 8192);
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 1 << 30);
    let mut back = vec![0; 8192];
    file.read_exact_at(&mut back, 1 << 30).unwrap();
    assert_eq!(back, pattern(8192, 1));
    drop(file);
    mount.unmount();
}

#[test]
fn the_blocks_of_an_open_file_are_told_after_a_sync() {
    let volume = Volume::new("blocks");
    let mount = volume.mount();
    let file = new_file(&mount.join("f"));
    for part in 1..=3_u64 {
        let size = part << 20;
        file.write_all_at(&pattern(1 << 20, part), size - (1 << 20)).unwrap();
        file.sync_all().unwrap();
        let blocks = file.metadata().unwrap().blocks() * 512;
        assert!((size..size + 65_536).contains(&blocks), "{blocks} bytes of blocks for {size} bytes");
    }
    drop(file);
    mount.unmount();
}

#[test]
fn the_blocks_of_a_file_that_was_cut_and_written_anew_are_told_after_a_sync() {
    let volume = Volume::new("blocks-anew");
    let mount = volume.mount();
    let file = new_file(&mount.join("f"));
    let rewrite = |seed| {
        file.write_all_at(&pattern(1 << 20, seed), 0).unwrap();
        file.sync_all().unwrap();
    };
    rewrite(1);
    rewrite(2);
    file.set_len(0).unwrap();
    rewrite(3);
    let bytes = file.metadata().unwrap().blocks() * 512;
    assert!((1 << 20..(1 << 20) + 65_536).contains(&bytes), "{bytes} bytes of blocks for 1 MiB");
    drop(file);
    mount.unmount();
}

#[test]
fn a_sync_of_overwritten_data_makes_the_kernel_ask_for_nothing() {
    const TIMES: u64 = 50;
    let volume = Volume::new("quiet-sync");
    let mount = volume.mount();
    let file = new_file(&mount.join("f"));
    file.write_all_at(&pattern(1 << 20, 1), 0).unwrap();
    // The second sync is the first that finds the blocks of the one before.
    for _ in 0..2 {
        file.sync_all().unwrap();
        file.metadata().unwrap();
    }
    let before = mount.handle().requests();
    for number in 0..TIMES {
        file.write_all_at(&pattern(4096, number), number * 4096).unwrap();
        file.sync_data().unwrap();
    }
    // The data, its time and the sync; now and then the kernel writes back before it is told to.
    let requests = mount.handle().requests() - before;
    assert!(requests < 4 * TIMES, "{requests} requests for {TIMES} writes and syncs");
    drop(file);
    mount.unmount();
}

#[test]
fn data_that_is_not_written_back_yet_is_data_to_lseek() {
    let volume = Volume::new("lseek");
    let mount = volume.mount();
    let file = new_file(&mount.join("f"));
    file.write_all_at(&pattern(4096, 2), 0).unwrap();
    file.write_all_at(&pattern(4096, 3), 65_536).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 4096);
    assert_eq!(seek(&file, SeekFrom::Data(4096)).unwrap(), 65_536);
    assert_eq!(seek(&file, SeekFrom::Hole(65_536)).unwrap(), 69_632);
    drop(file);
    mount.unmount();
}

#[test]
fn punched_and_zeroed_ranges_read_zero_and_the_rest_stays() {
    let volume = Volume::new("punch");
    let mount = volume.mount();
    let path = mount.join("f");
    let file = new_file(&path);
    let mut expected = pattern(1 << 20, 4);
    file.write_all_at(&expected, 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (offset, len) in [(4096, 8192), (100, 50), (300_000, 100_001), (0, 4095), (1_048_000, 576)] {
        fallocate(&file, punch, offset, len).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    for (offset, len) in [(500_000, 70_000), (8191, 2)] {
        fallocate(&file, FallocateFlags::ZERO_RANGE, offset, len).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 4096);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.join("f")).unwrap(), expected);
    mount.unmount();
}

#[test]
fn space_that_was_set_apart_and_never_written_goes_back_with_a_punch() {
    let volume = Volume::new("prealloc-punch");
    let mount = volume.mount();
    let file = new_file(&mount.join("f"));
    let bytes = || file.metadata().unwrap().blocks() * 512;
    file.write_all_at(b"start", 0).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
    let full = bytes();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1 << 16, 3 << 20).unwrap();
    assert!(bytes() + (3 << 20) <= full + (1 << 17), "{full} bytes of blocks before, {} after", bytes());
    drop(file);
    mount.unmount();
}

#[test]
fn preallocation_grows_only_when_asked() {
    let volume = Volume::new("prealloc");
    let mount = volume.mount();
    let path = mount.join("f");
    let file = new_file(&path);
    file.write_all_at(b"start", 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::empty(), 0, 50_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 50_000);
    let mut expected = b"start".to_vec();
    expected.resize(50_000, 0);
    assert_eq!(fs::read(&path).unwrap(), expected);
    let refused = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(refused.unwrap_err(), Errno::OPNOTSUPP);
    drop(file);
    mount.unmount();
}

#[test]
fn shared_mappings_and_calls_see_the_same_bytes() {
    let volume = Volume::new("mmap");
    let mount = volume.mount();
    let path = mount.join("f");
    let len = 300_000;
    fs::write(&path, pattern(len, 5)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping of a file that stays as long as the mapping; unmapped below, after its last use.
    let base = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }.unwrap();
    // SAFETY: the mapping is `len` bytes long, and no one else in this process uses it.
    let mapped = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), len) };
    assert_eq!(mapped, pattern(len, 5));
    mapped[123_456..123_456 + 6].copy_from_slice(b"mapped");
    let mut back = [0; 6];
    file.read_exact_at(&mut back, 123_456).unwrap();
    assert_eq!(&back, b"mapped");
    file.write_all_at(b"called", 200_000).unwrap();
    assert_eq!(&mapped[200_000..200_006], b"called");
    // SAFETY: the range is the mapping.
    unsafe { msync(base, len, MsyncFlags::SYNC) }.unwrap();
    // SAFETY: `mapped` is not used any more.
    unsafe { munmap(base, len) }.unwrap();
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let mut expected = pattern(len, 5);
    expected[123_456..123_462].copy_from_slice(b"mapped");
    expected[200_000..200_006].copy_from_slice(b"called");
    assert_eq!(fs::read(mount.join("f")).unwrap(), expected);
    mount.unmount();
}

#[test]
fn locks_exclude_other_processes() {
    let volume = Volume::new("locks");
    let mount = volume.mount();
    let path = mount.join("lock");
    let file = new_file(&path);
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let try_lock = |how: &str| {
        let line = format!("exec flock {how} -n '{}' true", path.display());
        std::process::Command::new("/bin/sh").arg("-c").arg(line).status().unwrap().success()
    };
    assert!(!try_lock("-x"));
    assert!(!try_lock("-s"));
    rustix::fs::flock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
    assert!(try_lock("-x"));
    drop(file);
    mount.unmount();
}
