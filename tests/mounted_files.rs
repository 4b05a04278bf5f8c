//! Regular files through the kernel: contents, sizes, opening modes, files without a name.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use common::{Volume, pattern};

#[test]
fn contents_come_back_after_a_remount() {
    let volume = Volume::new("files");
    let sizes = [0, 1, 100, 3000, 4095, 4096, 4097, 65_536, 1_000_003, 5 << 20];
    let mount = volume.mount();
    for size in sizes {
        fs::write(mount.join(&format!("f{size}")), pattern(size, size as u64)).unwrap();
    }
    for size in sizes {
        assert_eq!(fs::read(mount.join(&format!("f{size}"))).unwrap(), pattern(size, size as u64), "{size}");
    }
    mount.unmount();
    let mount = volume.mount();
    for size in sizes {
        let path = mount.join(&format!("f{size}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        assert_eq!(fs::read(&path).unwrap(), pattern(size, size as u64), "{size}");
    }
    mount.unmount();
}

#[test]
fn the_lower_tree_shows_neither_names_nor_contents() {
    let volume = Volume::new("lower");
    let mount = volume.mount();
    fs::create_dir(mount.join("secret-directory")).unwrap();
    fs::write(mount.join("secret-directory/secret-file"), b"secret-content".repeat(1000)).unwrap();
    std::os::unix::fs::symlink("secret-target", mount.join("secret-link")).unwrap();
    mount.unmount();
    let mut seen = Vec::new();
    collect(&volume.lower(), &mut seen);
    assert!(seen.len() > 3);
    for bytes in seen {
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
    }
}

fn collect(dir: &std::path::Path, seen: &mut Vec<Vec<u8>>) {
    use std::os::unix::ffi::OsStrExt;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        seen.push(entry.file_name().as_bytes().to_vec());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&entry.path(), seen);
        } else if kind.is_symlink() {
            seen.push(fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec());
        } else {
            seen.push(fs::read(entry.path()).unwrap());
        }
    }
}

#[test]
fn a_file_opened_for_writing_only_takes_partial_blocks() {
    let volume = Volume::new("wronly");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, pattern(10_000, 1)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"middle", 5000).unwrap();
    drop(file);
    let mut expected = pattern(10_000, 1);
    expected[5000..5006].copy_from_slice(b"middle");
    assert_eq!(fs::read(&path).unwrap(), expected);
    mount.unmount();
}

#[test]
fn a_file_without_write_permission_is_written_through_its_first_handle() {
    let volume = Volume::new("readonly");
    let mount = volume.mount();
    let path = mount.join("object");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path).unwrap();
    file.write_all(&pattern(9000, 2)).unwrap();
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(fs::read(&path).unwrap(), pattern(9000, 2));
    mount.unmount();
}

#[test]
fn appends_from_several_handles_all_arrive() {
    let volume = Volume::new("append");
    let mount = volume.mount();
    let path = mount.join("log");
    let open = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let writers: Vec<_> = (0..4u8)
        .map(|n| {
            let mut file = open();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    file.write_all(&[b'a' + n; 37]).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let all = fs::read(&path).unwrap();
    assert_eq!(all.len(), 4 * 200 * 37);
    for record in all.chunks(37) {
        assert!(record.iter().all(|b| *b == record[0]));
    }
    mount.unmount();
}

#[test]
fn truncation_cuts_and_growth_reads_zero() {
    let volume = Volume::new("truncate");
    let mount = volume.mount();
    let path = mount.join("f");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    file.write_all_at(&pattern(20_000, 3), 0).unwrap();
    for size in [12_345u64, 4096, 4095, 1, 0, 50_000, 3] {
        file.set_len(size).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
    }
    file.set_len(9000).unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap().iter().all(|b| *b == 0));
    fs::write(&path, pattern(8000, 4)).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(8000).unwrap();
    let mut expected = pattern(5000, 4);
    expected.resize(8000, 0);
    assert_eq!(fs::read(&path).unwrap(), expected);
    mount.unmount();
}

#[test]
fn opening_with_truncation_empties() {
    let volume = Volume::new("otrunc");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, pattern(30_000, 5)).unwrap();
    let file = File::create(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all_at(b"x", 4096).unwrap();
    drop(file);
    let mut expected = vec![0; 4096];
    expected.push(b'x');
    assert_eq!(fs::read(&path).unwrap(), expected);
    mount.unmount();
}

#[test]
fn an_unlinked_open_file_is_fully_usable() {
    let volume = Volume::new("unlinked");
    let mount = volume.mount();
    let path = mount.join("f");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(&pattern(100_000, 6)).unwrap();
    file.set_len(50_000).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    file.seek(SeekFrom::Start(6)).unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert_eq!(back, pattern(100_000, 6)[..49_994]);
    // A new file under the old name is another file.
    fs::write(&path, b"new").unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), file.metadata().unwrap().ino());
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    mount.unmount();
}

#[test]
fn an_open_file_survives_being_replaced_and_renamed() {
    let volume = Volume::new("replaced");
    let mount = volume.mount();
    fs::write(mount.join("a"), b"first").unwrap();
    fs::write(mount.join("b"), b"second").unwrap();
    let a = OpenOptions::new().read(true).write(true).open(mount.join("a")).unwrap();
    let b = OpenOptions::new().read(true).write(true).open(mount.join("b")).unwrap();
    fs::rename(mount.join("b"), mount.join("a")).unwrap();
    a.write_all_at(b"FIRST", 0).unwrap();
    b.write_all_at(b"SECOND", 0).unwrap();
    let mut read = [0; 5];
    a.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"FIRST");
    assert_eq!(a.metadata().unwrap().nlink(), 0);
    drop((a, b));
    assert_eq!(fs::read(mount.join("a")).unwrap(), b"SECOND");
    mount.unmount();
}

#[test]
fn direct_io_and_the_page_cache_see_the_same_bytes() {
    let volume = Volume::new("direct");
    let mount = volume.mount();
    let path = mount.join("f");
    fs::write(&path, pattern(64 * 1024, 7)).unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut back = vec![0; 64 * 1024];
    direct.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, pattern(64 * 1024, 7));
    direct.write_all_at(&pattern(8192, 8), 4096).unwrap();
    let mut expected = pattern(64 * 1024, 7);
    expected[4096..12_288].copy_from_slice(&pattern(8192, 8));
    assert_eq!(fs::read(&path).unwrap(), expected);
    drop(direct);
    mount.unmount();
}

#[test]
fn a_temporary_file_without_name_is_refused_as_not_supported() {
    let volume = Volume::new("tmpfile");
    let mount = volume.mount();
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&mount.path);
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    mount.unmount();
}

#[test]
fn copy_file_range_copies_across_files() {
    let volume = Volume::new("copyrange");
    let mount = volume.mount();
    let from = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("a")).unwrap();
    let to = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("b")).unwrap();
    from.write_all_at(&pattern(3 << 20, 9), 0).unwrap();
    let (mut at, mut to_at) = (1000u64, 77u64);
    while at < 3 << 20 {
        let left = (3 << 20) - at as usize;
        if rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), left).unwrap() == 0 {
            break;
        }
    }
    drop((from, to));
    let mut expected = vec![0; 77];
    expected.extend_from_slice(&pattern(3 << 20, 9)[1000..]);
    assert_eq!(fs::read(mount.join("b")).unwrap(), expected);
    mount.unmount();
}

#[test]
fn a_direct_write_to_a_synchronous_file_is_durable_when_it_returns() {
    for flags in [libc::O_DSYNC, libc::O_SYNC] {
        let volume = Volume::new("dsync");
        let mount = volume.mount();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT | flags);
        let file = options.open(mount.join("f")).unwrap();
        file.write_all_at(&pattern(8192, 1), 0).unwrap();
        // Only what is durable is replaced by way of the log.
        let logged =
            || fs::read(volume.lower().join(".kmsfs.log")).unwrap()[4096..].iter().any(|byte| *byte != 0);
        assert!(!logged(), "nothing was replaced");
        file.write_all_at(&pattern(4096, 2), 0).unwrap();
        assert!(logged(), "the first write was not durable");
        drop(file);
        mount.unmount();
    }
}
