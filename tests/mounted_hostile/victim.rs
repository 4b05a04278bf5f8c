//! A closed volume with some files, and the tools of somebody who writes its lower tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kmsfs::format::layout;

use super::{Desk, errno};

pub const EIO: i32 = 5;
/// Files of every shape: in the header page alone, with tags there alone, with tag pages, sparse.
pub const FILES: [(&str, usize); 4] =
    [("small", 2_000), ("middle", 40_000), ("large", 1_000_000), ("d/inner", 9_000)];

/// The volume, unmounted, and where the lower files are.
pub struct Victim {
    pub desk: Desk,
    pub lower: BTreeMap<&'static str, PathBuf>,
}

/// What `name` holds at version `version`.
pub fn contents(name: &str, version: u8) -> Vec<u8> {
    let (_, len) = FILES.iter().find(|(n, _)| *n == name).unwrap();
    (0..*len).map(|i| (i % 251) as u8 ^ version ^ name.len() as u8).collect()
}

impl Victim {
    pub fn new(label: &str) -> Self {
        Self::on(Desk::with_volume(label))
    }

    /// The same on a volume that binds names.
    pub fn bound(label: &str) -> Self {
        Self::on(Desk::with_volume_made(label, " --bind-names"))
    }

    fn on(desk: Desk) -> Self {
        let mnt = desk.mount();
        fs::create_dir(mnt.join("d")).unwrap();
        for (name, _) in FILES {
            fs::write(mnt.join(name), contents(name, 1)).unwrap();
        }
        let lower = FILES.iter().map(|(name, _)| (*name, desk.lower_of(name))).collect();
        desk.umount();
        Self { desk, lower }
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(&self.lower[name]).unwrap()
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(&self.lower[name], bytes).unwrap();
    }

    /// Does something in the mount.
    pub fn in_mount<R>(&self, act: impl FnOnce(&Path) -> R) -> R {
        let mnt = self.desk.mount_logging();
        let result = act(&mnt);
        self.desk.umount();
        result
    }

    /// Overwrites all of `name` in the mount, in place.
    pub fn update(&self, name: &str, version: u8) {
        self.in_mount(|mnt| {
            use std::os::unix::fs::FileExt;
            let file = fs::File::options().write(true).open(mnt.join(name)).unwrap();
            file.write_all_at(&contents(name, version), 0).unwrap();
        });
    }

    /// Whether reading all of `name` is refused with EIO; otherwise what was read must be what is expected.
    pub fn is_refused(&self, name: &str, expected: &[u8]) -> bool {
        self.in_mount(|mnt| match fs::read(mnt.join(name)) {
            Ok(read) => {
                assert!(read == expected, "{name} reads as what was never written");
                false
            }
            Err(e) => {
                assert_eq!(errno::<()>(Err(e)), EIO, "{name}");
                true
            }
        })
    }

    /// Holds each edit of `name` against a mount: refused, and whole again when taken back.
    #[track_caller]
    pub fn refuses(&self, name: &str, edits: &[(&str, Vec<u8>)]) {
        let (good, expected) = (self.bytes(name), contents(name, 1));
        for (what, bad) in edits {
            assert!(*bad != good, "{name}, {what}: nothing was changed");
            self.put(name, bad);
            assert!(self.is_refused(name, &expected), "{name}: {what}");
            assert!(
                self.desk.log().contains("damaged") || self.desk.log().contains("key"),
                "{}",
                self.desk.log()
            );
        }
        self.put(name, &good);
        assert!(!self.is_refused(name, &expected), "{name} is whole");
    }
}

/// The place of a block in the lower file.
pub fn block(number: u64) -> std::ops::Range<usize> {
    let at = layout::block_offset(number) as usize;
    at..at + layout::BLOCK_LEN
}

/// The place of a block's tag entry in the lower file.
pub fn entry(number: u64) -> std::ops::Range<usize> {
    let (page, index) = (layout::tag_page(number), layout::entry_index(number));
    let at = if page == 0 {
        4096 - (index + 1) * layout::ENTRY_LEN
    } else {
        layout::tag_page_offset(page) as usize + index * layout::ENTRY_LEN
    };
    at..at + layout::ENTRY_LEN
}

/// `bytes` with one part from elsewhere.
pub fn patched(bytes: &[u8], at: std::ops::Range<usize>, with: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at].copy_from_slice(with);
    out
}

/// `bytes` with one bit flipped.
pub fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at] ^= 0x10;
    out
}
