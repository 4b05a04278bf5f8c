//! The attack table of docs/SECURITY.md, row by row. Each test edits the lower tree of a real volume and looks through a
//! mount at what came of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use kmsfs::format::header::{KeySlot, SLOT_LEN, SLOT_OFFSETS, SLOTS_LEN, Slots};
use kmsfs::format::layout;
use kmsfs::format::seal::{HEAD_MAC_OFFSET, SEAL_LEN, SEAL_OFFSETS};

use super::victim::{EIO, Victim, block, contents, entry, flipped, patched};
use super::{Desk, errno, list};

#[test]
fn a01_flipped_bits_in_content_are_refused() {
    let victim = Victim::new("a01");
    for (name, data) in [("small", 1500), ("middle", 5 * 4096 + 7), ("large", block(200).start + 9)] {
        let good = victim.bytes(name);
        let tag = entry(if name == "large" { 200 } else { 0 });
        let mut seals = good.clone();
        for at in SEAL_OFFSETS {
            seals[at + SEAL_LEN - 30] ^= 1;
        }
        let edits = [
            ("data", flipped(&good, data)),
            ("nonce of a tag", flipped(&good, tag.start + 3)),
            ("tag", flipped(&good, tag.start + 20)),
            ("MAC of the head tags", flipped(&good, HEAD_MAC_OFFSET + 3)),
            ("both seals", seals),
            ("both superblocks", flipped(&flipped(&good, 50), 424 + 50)),
        ];
        victim.refuses(name, &edits);
    }
}

#[test]
fn a02_moved_blocks_are_refused() {
    let victim = Victim::new("a02");
    let (good, other) = (victim.bytes("middle"), victim.bytes("large"));
    let swapped = patched(&patched(&good, block(2), &good[block(3)]), block(3), &good[block(2)]);
    let with_tags = patched(&patched(&swapped, entry(2), &good[entry(3)]), entry(3), &good[entry(2)]);
    let foreign = patched(&patched(&good, block(4), &other[block(4)]), entry(4), &other[entry(4)]);
    victim.refuses(
        "middle",
        &[("swapped", swapped), ("swapped with tags", with_tags), ("from another", foreign)],
    );
    let good = victim.bytes("large");
    let (a, b) = (layout::tag_page_offset(1) as usize, layout::tag_page_offset(2) as usize);
    victim.refuses("large", &[("a tag page for another", patched(&good, a..a + 4096, &good[b..b + 4096]))]);
}

#[test]
fn a03_a_block_put_back_to_an_older_version_is_refused() {
    let victim = Victim::new("a03");
    for name in ["small", "middle", "large"] {
        let old = victim.bytes(name);
        victim.update(name, 9);
        victim.update(name, 1);
        let new = victim.bytes(name);
        let mut edits =
            vec![("the head tags", patched(&new, HEAD_MAC_OFFSET..4096, &old[HEAD_MAC_OFFSET..4096]))];
        if name != "small" {
            let back = patched(&new, block(3), &old[block(3)]);
            edits.push(("a block", back.clone()));
            edits.push((
                "a block with its tags",
                patched(&back, HEAD_MAC_OFFSET..4096, &old[HEAD_MAC_OFFSET..4096]),
            ));
        }
        if name == "large" {
            let group = layout::tag_page_offset(1) as usize..layout::tag_page_offset(2) as usize;
            edits.push(("a group with its tags", patched(&new, group.clone(), &old[group])));
            let all = 4096..old.len();
            edits.push(("all data and tag pages", patched(&new, all.clone(), &old[all])));
        }
        victim.refuses(name, &edits);
    }
}

#[test]
fn a03_an_older_dirty_header_opens_no_door_to_older_blocks() {
    use std::os::unix::fs::FileExt;
    let victim = Victim::new("a03-dirty");
    for name in ["middle", "large"] {
        let oldest = victim.bytes(name);
        // Somebody looks on while the file is being written.
        let log = victim.desk.path("lower/.kmsfs.log");
        let (seen, seen_log) = victim.in_mount(|mnt| {
            let file = fs::File::options().write(true).open(mnt.join(name)).unwrap();
            file.write_all_at(&contents(name, 9), 0).unwrap();
            file.sync_all().unwrap();
            (victim.bytes(name), fs::read(&log).unwrap())
        });
        victim.update(name, 1);
        let new = victim.bytes(name);
        assert_ne!(seen[..4096], new[..4096]);
        let dirty = patched(&new, 0..4096, &seen[..4096]);
        let older = patched(&dirty, block(3), &oldest[block(3)]);
        let mut edits = vec![("a header", dirty), ("and a block", older), ("the whole file", seen.clone())];
        if name == "large" {
            let group = layout::tag_page_offset(1) as usize..layout::tag_page_offset(2) as usize;
            edits.push(("and a group", patched(&edits[0].1, group.clone(), &oldest[group])));
        }
        victim.refuses(name, &edits);
        // And the log of that time, which the key service knows to have ended well; under the name of an older one, too.
        for planted in [log.clone(), victim.desk.path("lower/.kmsfs.log.3")] {
            fs::write(&planted, &seen_log).unwrap();
            victim.put(name, &edits[1].1);
            assert!(victim.is_refused(name, &contents(name, 1)), "{}", planted.display());
            let _ = fs::remove_file(&planted);
        }
        victim.put(name, &new);
    }
}

#[test]
fn a04_zeroed_and_punched_blocks_are_refused() {
    let victim = Victim::new("a04");
    for (name, number) in [("middle", 3_u64), ("large", 20), ("large", 150)] {
        let good = victim.bytes(name);
        let zeroed = patched(&good, block(number), &[0; 4096]);
        let edits = [("data", zeroed.clone()), ("data and tag", patched(&zeroed, entry(number), &[0; 28]))];
        victim.refuses(name, &edits);
    }
    let good = victim.bytes("large");
    let group = layout::tag_page_offset(1) as usize..layout::tag_page_offset(2) as usize;
    let zeros = vec![0; group.len()];
    victim.refuses("large", &[("a whole group", patched(&good, group, &zeros))]);
}

#[test]
fn a05_cut_and_extended_files_are_refused() {
    let victim = Victim::new("a05");
    for name in ["small", "middle", "large"] {
        let good = victim.bytes(name);
        let longer = |n: usize| [good.clone(), vec![0; n]].concat();
        let edits = [
            ("cut to its header", good[..4096].to_vec()),
            ("cut by a byte", good[..good.len() - 1].to_vec()),
            ("cut inside the header", good[..700].to_vec()),
            ("longer by a byte", longer(1)),
            ("longer by a block", longer(4096)),
            ("longer by its own last block", [&good[..], &good[good.len() - 4096..]].concat()),
        ];
        victim.refuses(name, &edits);
    }
    // The one cut that no file can show by itself.
    victim.put("small", b"");
    victim.in_mount(|mnt| assert_eq!(fs::read(mnt.join("small")).unwrap(), b""));
}

#[test]
fn a06_swapped_names_stay_within_their_directory_and_volume() {
    let victim = Victim::new("a06");
    let (small, inner) = (victim.lower["small"].clone(), victim.lower["d/inner"].clone());
    // Elsewhere the name is damage.
    let stray = inner.parent().unwrap().join(small.file_name().unwrap());
    fs::copy(&small, &stray).unwrap();
    victim.in_mount(|mnt| {
        let (names, end) = list(&mnt.join("d"));
        assert_eq!((names, errno(end)), (vec!["inner".to_owned()], EIO));
    });
    fs::remove_file(stray).unwrap();
    // A file of another volume does not open under any name here.
    let other = Victim::new("a06-other");
    victim.put("middle", &other.bytes("middle"));
    assert!(victim.is_refused("middle", b""));
    // What falls: two names of one directory trade places, or a whole file is put under another's name.
    victim.put("middle", &victim.bytes("small"));
    assert!(!victim.is_refused("middle", &contents("small", 1)));
}

#[test]
fn a07_a_volume_put_back_to_an_older_state_is_refused() {
    let victim = Victim::new("a07");
    let copy = |from: &str, to: &str| {
        let _ = fs::remove_dir_all(victim.desk.path(to));
        let (from, to) = (victim.desk.path(from), victim.desk.path(to));
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy("lower", "old");
    victim.update("middle", 2);
    copy("lower", "new");
    copy("old", "lower");
    fs::create_dir_all(victim.desk.path("mnt")).unwrap();
    for how in ["", " --read-only"] {
        victim.desk.kmsfs(&format!("mount {{lower}} {{mnt}}{how}")).fails(3, "older state");
    }
    // Neither without the count, nor with one that was made up.
    let count = victim.desk.path("lower/.kmsfs.epoch");
    let mut made_up = fs::read(&count).unwrap();
    made_up[8] = 200;
    fs::write(&count, made_up).unwrap();
    victim.desk.kmsfs("mount {lower} {mnt}").fails(3, "older state");
    fs::remove_file(&count).unwrap();
    victim.desk.kmsfs("mount {lower} {mnt}").fails(3, "older state");
    // Its owner may, and the key service keeps that on record.
    victim.desk.kmsfs("mount {lower} {mnt} --accept-older").ok();
    assert_eq!(fs::read(victim.desk.path("mnt/middle")).unwrap(), contents("middle", 1));
    victim.desk.kmsfs("umount {mnt}").ok();
    let mut audit = String::new();
    for segment in fs::read_dir(victim.desk.path("state/audit")).unwrap() {
        audit.push_str(&fs::read_to_string(segment.unwrap().path()).unwrap_or_default());
    }
    assert!(audit.lines().any(|line| line.contains("AdvanceMark") && line.contains("\"acceptOlder\":true")));
    // From then on it is the newest state, and what was newer is not.
    victim.in_mount(|mnt| assert_eq!(fs::read(mnt.join("middle")).unwrap(), contents("middle", 1)));
    copy("new", "lower");
    victim.desk.kmsfs("mount {lower} {mnt}").fails(3, "older state");
}

#[test]
fn a08_swapped_attribute_values_are_refused() {
    let victim = Victim::new("a08");
    victim.in_mount(|mnt| {
        for (name, value) in [("small", "one"), ("middle", "two")] {
            set_xattr(&mnt.join(name), "user.a", value);
            set_xattr(&mnt.join(name), "user.b", "other");
        }
        symlink("target", mnt.join("link")).unwrap();
    });
    let of = |name: &str| xattrs(&victim.lower[name]);
    let (small, middle) = (of("small"), of("middle"));
    assert_eq!(small.len(), 2);
    for (name, value) in &middle {
        set_raw(&victim.lower["small"], name, value);
    }
    victim.in_mount(|mnt| {
        assert_eq!(errno(get_xattr(&mnt.join("small"), "user.a")), EIO, "of another file");
        assert_eq!(get_xattr(&mnt.join("middle"), "user.a").unwrap(), b"two");
    });
    let names: Vec<&String> = small.keys().collect();
    set_raw(&victim.lower["small"], names[0], &small[names[1]]);
    set_raw(&victim.lower["small"], names[1], &small[names[0]]);
    victim.in_mount(|mnt| assert_eq!(errno(get_xattr(&mnt.join("small"), "user.a")), EIO, "of another name"));
    // A target that was not made in this volume.
    let link = fs::read_dir(victim.desk.path("lower")).unwrap().map(|e| e.unwrap().path());
    let link = link.into_iter().find(|p| p.is_symlink() && !p.to_str().unwrap().contains(".kmsfs.")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    victim.in_mount(|mnt| assert_eq!(errno(fs::read_link(mnt.join("link"))), EIO));
}

#[test]
fn a09_a_directory_record_of_another_directory_shows_no_names() {
    let victim = Victim::new("a09");
    let record = victim.lower["d/inner"].parent().unwrap().join(".kmsfs.dir");
    let own = fs::read_link(&record).unwrap();
    let mut forged = own.to_str().unwrap().to_owned().into_bytes();
    forged[9] ^= 1;
    let of_root = fs::read_link(victim.desk.path("lower/.kmsfs.dir")).unwrap();
    for planted in [of_root.into_os_string().into_encoded_bytes(), forged] {
        fs::remove_file(&record).unwrap();
        symlink(std::str::from_utf8(&planted).unwrap(), &record).unwrap();
        victim.in_mount(|mnt| {
            let (names, end) = list(&mnt.join("d"));
            assert_eq!((names.len(), errno(end)), (0, EIO));
            fs::read(mnt.join("d/inner")).unwrap_err();
        });
    }
}

#[test]
fn a10_a_planted_header_gives_no_way_into_another_file() {
    let victim = Victim::new("a10");
    victim.in_mount(|mnt| fs::write(mnt.join("planted"), "").unwrap());
    let planted = {
        let mnt = victim.desk.mount();
        let path = victim.desk.lower_of("planted");
        victim.desk.umount();
        drop(mnt);
        path
    };
    // The header of `middle` before the first write: what is written there shares the key of `middle`.
    fs::copy(&victim.lower["middle"], &planted).unwrap();
    victim.in_mount(|mnt| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(mnt.join("planted")).unwrap();
        file.write_all_at(&[7; 4096], 3 * 4096).unwrap();
    });
    let (good, other) = (victim.bytes("middle"), fs::read(&planted).unwrap());
    let moved = patched(&good, block(3), &other[block(3)]);
    let with_tag = patched(&moved, entry(3), &other[entry(3)]);
    let with_page = patched(&moved, HEAD_MAC_OFFSET..4096, &other[HEAD_MAC_OFFSET..4096]);
    victim
        .refuses("middle", &[("its block", moved), ("with its tag", with_tag), ("with all tags", with_page)]);
}

#[test]
fn a13_a14_the_same_data_is_never_the_same_ciphertext() {
    let victim = Victim::new("a13");
    let before = victim.bytes("large");
    victim.update("large", 1);
    let after = victim.bytes("large");
    for number in 0..layout::block_count(contents("large", 1).len() as u64) - 1 {
        assert_ne!(before[block(number)], after[block(number)], "block {number}");
    }
}

#[test]
fn a15_flags_and_versions_cannot_be_turned_down() {
    let victim = Victim::new("a15");
    let good = victim.bytes("middle");
    let mut edits = Vec::new();
    for (what, at) in [("format version", 4), ("cipher", 8), ("block size", 9), ("flags", 10)] {
        let mut bad = good.clone();
        for start in [0, 424] {
            bad[start + at] ^= 1;
            let crc = crc32c::crc32c(&bad[start..start + 76]);
            bad[start + 76..start + 80].copy_from_slice(&crc.to_le_bytes());
        }
        edits.push((what, bad));
    }
    victim.refuses("middle", &edits);
    let record = victim.desk.path("lower/.kmsfs.volume");
    let good = fs::read(&record).unwrap();
    for at in [4, 8, 15, 40, 1100] {
        let mut bad = flipped(&good, at);
        let crc = crc32c::crc32c(&bad[..68]);
        bad[68..72].copy_from_slice(&crc.to_le_bytes());
        fs::write(&record, &bad).unwrap();
        fs::write(victim.desk.path("lower/.kmsfs.volume.bak"), &bad).unwrap();
        assert_ne!(victim.desk.kmsfs("mount {lower} {mnt}").code, 0, "byte {at}");
    }
}

#[test]
fn a16_equal_names_and_common_beginnings_do_not_show() {
    let desk = Desk::with_volume("a16");
    let mnt = desk.mount();
    for dir in ["one", "two"] {
        fs::create_dir(mnt.join(dir)).unwrap();
        for name in ["report-2024-01", "report-2024-02", "r"] {
            fs::write(mnt.join(dir).join(name), "x").unwrap();
        }
    }
    let lower = |plain: &str| desk.lower_of(plain).file_name().unwrap().to_str().unwrap().to_owned();
    assert_ne!(lower("one/report-2024-01"), lower("two/report-2024-01"));
    let (a, b) = (lower("one/report-2024-01"), lower("one/report-2024-02"));
    assert_ne!(a[..8], b[..8]);
    assert_eq!((a.len(), a.len()), (b.len(), lower("one/r").len()), "lengths in steps of 16");
    desk.umount();
}

#[test]
fn a18_a_name_has_one_spelling() {
    let victim = Victim::new("a18");
    let good = victim.lower["small"].clone();
    let name = good.file_name().unwrap().to_str().unwrap().to_owned();
    // The bits of the last character that no byte takes, padding, and another alphabet.
    let last = name.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).unwrap();
    let neighbours = (0..4).map(|n| alphabet.as_bytes()[at / 4 * 4 + n] as char).filter(|c| *c != last);
    let mut spellings: Vec<String> = neighbours.map(|c| format!("{}{c}", &name[..name.len() - 1])).collect();
    spellings.extend([format!("{name}="), format!("{name}A"), format!(" {name}"), name.to_ascii_lowercase()]);
    for spelling in spellings.iter().filter(|s| **s != name) {
        let second = good.with_file_name(spelling);
        fs::hard_link(&good, &second).unwrap();
        victim.in_mount(|mnt| {
            let names = list(mnt).0;
            assert_eq!(names.iter().filter(|n| *n == "small").count(), 1, "{spelling}");
            assert_eq!(names.len(), 4, "{spelling}: {names:?}");
        });
        fs::remove_file(second).unwrap();
    }
}

#[test]
fn a19_links_planted_in_the_lower_tree_lead_nowhere() {
    let victim = Victim::new("a19");
    let outside = victim.desk.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "somebody else's").unwrap();
    let dir = victim.lower["d/inner"].parent().unwrap().to_owned();
    for (place, target) in [(victim.lower["small"].clone(), outside.join("secret")), (dir, outside.clone())] {
        let kept = victim.desk.path("kept");
        fs::rename(&place, &kept).unwrap();
        symlink(&target, &place).unwrap();
        victim.in_mount(|mnt| {
            fs::read(mnt.join("small"))
                .map(|read| assert_eq!(read, contents("small", 1)))
                .unwrap_or_default();
            let _ = fs::write(mnt.join("small"), contents("small", 1));
            assert!(fs::write(mnt.join("d/new"), "x").is_err() || !place.ends_with("d"));
        });
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "somebody else's");
        let _ = fs::remove_file(&place);
        fs::rename(&kept, &place).unwrap();
    }
}

#[test]
fn a20_an_old_header_opens_only_as_long_as_its_key_is_allowed() {
    let victim = Victim::new("a20");
    let old = victim.bytes("middle");
    victim.desk.kmsfs("key rotate alias/k").ok();
    victim.desk.kmsfs("rewrap {lower}").ok();
    let new = victim.bytes("middle");
    assert_ne!(old[..SLOTS_LEN], new[..SLOTS_LEN]);
    victim.put("middle", &patched(&new, 0..SLOTS_LEN, &old[..SLOTS_LEN]));
    // Rotation takes nothing back.
    assert!(!victim.is_refused("middle", &contents("middle", 1)));
    // Another key and the disabling of the first one do.
    victim.desk.key("next");
    victim.put("middle", &new);
    victim.desk.kmsfs("rewrap {lower} --to-key alias/next").ok();
    let new = victim.bytes("middle");
    victim.put("middle", &patched(&new, 0..SLOTS_LEN, &old[..SLOTS_LEN]));
    victim.desk.kmsfs("key disable alias/k").ok();
    victim.in_mount(|mnt| {
        assert_eq!(errno(fs::read(mnt.join("middle"))), libc_enokey());
        assert_eq!(fs::read(mnt.join("large")).unwrap(), contents("large", 1));
    });
}

fn libc_enokey() -> i32 {
    rustix::io::Errno::NOKEY.raw_os_error()
}

#[test]
fn a21_a_mount_leaves_no_core_and_is_not_dumpable() {
    let victim = Victim::new("a21");
    victim.in_mount(|_| {
        let pid = victim.desk.kmsfs("status {mnt} --json").json()["pid"].as_u64().unwrap();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        // The files of a process that may not be dumped belong to root.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
    });
}

#[test]
fn a22_the_key_service_unwraps_no_key_for_another_file() {
    let victim = Victim::new("a22");
    let (mine, other) = (victim.bytes("small"), victim.bytes("middle"));
    for (at, len) in SLOT_OFFSETS.iter().map(|at| (*at, SLOT_LEN)) {
        let moved = patched(&mine, at..at + len, &other[at..at + len]);
        if moved != mine {
            victim.refuses("small", &[("the wrapped key of another file", moved)]);
        }
    }
    let slots = Slots::parse(other[..SLOTS_LEN].try_into().unwrap()).unwrap();
    fs::write(victim.desk.path("blob"), &slots.active().wrapped.blob).unwrap();
    let said = victim.desk.kmsfs("key decrypt --in {blob}");
    assert_ne!(said.code, 0, "{said:?}");
}

#[test]
fn a23_a_file_under_a_key_of_the_attacker_is_refused() {
    let victim = Victim::new("a23");
    let evil = victim.desk.key("evil");
    let good = victim.bytes("small");
    let slots = Slots::parse(good[..SLOTS_LEN].try_into().unwrap()).unwrap();
    let id = |id: String| id;
    let contexts = [
        format!("kmsfs:volume={}", id(slots.superblock.volume_id.to_string())),
        format!("kmsfs:file={}", id(slots.superblock.file_id.to_string())),
        "kmsfs:purpose=file-data".to_owned(),
        "kmsfs:format=1".to_owned(),
    ];
    let mut edits = Vec::new();
    // Under a key that is not the volume's; and one that was not this file's, under a key that is.
    for (what, alias) in [("another key", "alias/evil"), ("another data key", "alias/k")] {
        let words = contexts.join(" --context ");
        let said = victim.desk.kmsfs(&format!("key data-key {alias} --context {words}")).ok();
        let blob = base64_of(said.split_whitespace().last().unwrap());
        let mut wrapped = slots.active().wrapped.clone();
        wrapped.blob = blob;
        if alias == "alias/evil" {
            wrapped.key_arn.clone_from(&evil);
        }
        wrapped.material_id = None;
        let slot = KeySlot { generation: slots.active().generation + 5, wrapped }.encode().unwrap();
        let at = SLOT_OFFSETS[1 - slots.active_index()];
        edits.push((what, patched(&good, at..at + SLOT_LEN, &slot)));
    }
    victim.refuses("small", &edits);
}

fn base64_of(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn set_raw(path: &std::path::Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn set_xattr(path: &std::path::Path, name: &str, value: &str) {
    set_raw(path, name, value.as_bytes());
}

fn get_xattr(path: &std::path::Path, name: &str) -> std::io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn xattrs(path: &std::path::Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    let names =
        names.map(|n| String::from_utf8(n.to_vec()).unwrap()).filter(|n| n.starts_with("user.kmsfs."));
    names.map(|name| (name.clone(), get_xattr(path, &name).unwrap())).collect()
}
