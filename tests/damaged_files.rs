//! Files written through the format code, damaged in every way that somebody with the lower file at hand may think of,
//! and read back: what a file gives is what was written, or an error, and never a mixture of what was written when.
//!
//! A seed gives the same run again: `KMSFS_FUZZ_SEED`. `KMSFS_FUZZ_SECONDS` asks for a long run (`scripts/fuzz`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kmsfs::crypto::{DataKey, Secret, VolumeKey, random_array};
use kmsfs::format::header::{SLOT_LEN, SLOT_OFFSETS};
use kmsfs::format::layout;
use kmsfs::format::{FileId, VolumeId, WrappedKey};
use kmsfs::tree::{
    Allocate, Durability, FileContext, FileIo, FreshKey, FsError, Integrity, KeyError, KeySource, KeyUser,
    LastEnd, Stage, TagLog,
};

/// Files written and damaged where nobody asks for more.
const CASES: u64 = 60;
/// Damages tried on each file.
const DAMAGES: usize = 12;
const SIZE_MAX: u64 = 1_400_000;
const PAGE: u64 = 4096;

/// A small generator: the same seed, the same run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        // Some of it zero, some the same again and again.
        match self.below(4) {
            0 => vec![0; len as usize],
            1 => vec![self.next() as u8; len as usize],
            _ => (0..len).map(|_| self.next() as u8).collect(),
        }
    }
}

#[derive(Default)]
struct Keys(Mutex<HashMap<FileId, DataKey>>);

impl KeySource for Keys {
    fn fresh(&self, _key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let (file_id, data_key) = (FileId(random_array()), DataKey::random());
        self.0.lock().unwrap().insert(file_id, data_key.duplicate());
        let wrapped = WrappedKey { key_arn: "arn:test".into(), material_id: None, blob: file_id.0.to_vec() };
        Ok(FreshKey { user, file_id, data_key, wrapped })
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if wrapped.blob != file_id.0 {
            return Err(KeyError::Invalid("another file's".into()));
        }
        let known = self.0.lock().unwrap().get(&file_id).map(DataKey::duplicate);
        known.ok_or_else(|| KeyError::Denied("unknown".into()))
    }
}

/// The lower file and the tag log as they were at one time.
#[derive(Clone, PartialEq, Eq)]
struct Lower {
    file: Vec<u8>,
    logs: BTreeMap<PathBuf, Vec<u8>>,
}

struct Bench {
    dir: PathBuf,
    keys: Arc<Keys>,
    volume: Arc<VolumeKey>,
    integrity: Integrity,
    last: LastEnd,
}

impl Bench {
    fn new() -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let dir = base.join(format!("kmsfs-damage-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let volume = Arc::new(VolumeKey::new(Secret::random()));
        Self { dir, keys: Arc::default(), volume, integrity: Integrity::Auto, last: LastEnd::Unknown }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("file")
    }

    /// What a new mount has of the file.
    fn mount(&self) -> (Arc<FileIo>, Arc<FileContext>) {
        let root: OwnedFd = fs::File::open(&self.dir).unwrap().into();
        let log = Some(TagLog::open(&root, &self.volume, Durability::Strict, self.last).unwrap());
        let (volume_id, keys, stage) = (VolumeId([1; 16]), self.keys.clone(), Stage::default());
        let context = Arc::new(FileContext {
            volume_id,
            keys,
            read_only: false,
            log,
            stage,
            integrity: self.integrity,
        });
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(self.path());
        (FileIo::new(file.unwrap().into(), context.clone(), None), context)
    }

    fn logs(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let logs = paths.filter(|path| *path != self.path());
        logs.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn copy(&self) -> Lower {
        Lower { file: fs::read(self.path()).unwrap(), logs: self.logs() }
    }

    fn put(&self, lower: &Lower) {
        for path in self.logs().keys() {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in &lower.logs {
            fs::write(path, bytes).unwrap();
        }
        fs::write(self.path(), &lower.file).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What a file held, and what it and its log were, each time it was closed; and every block it ever had.
struct History {
    closed: Vec<Vec<u8>>,
    blocks: HashMap<u64, Vec<Vec<u8>>>,
    /// Lower states of any time, of open and of closed files.
    seen: Vec<Lower>,
    now: Vec<u8>,
}

impl History {
    fn change(&mut self, from: u64, to: u64) {
        let last = layout::block_count(self.now.len() as u64);
        for block in from / PAGE..to.div_ceil(PAGE).min(last) {
            let at = (block * PAGE) as usize;
            let data = &self.now[at..(at + PAGE as usize).min(self.now.len())];
            self.blocks.entry(block).or_default().push(data.to_vec());
        }
    }

    /// Whether block `block` may read as `data` after an unclean stop and an attack on what it left: as it once was, with
    /// zeros behind where it was cut.
    fn once_was(&self, block: u64, data: &[u8]) -> bool {
        let used = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        used == 0
            || self.blocks.get(&block).is_some_and(|all| all.iter().any(|v| v.starts_with(&data[..used])))
    }
}

/// One change of the file and of what it is expected to hold.
fn change(dice: &mut Dice, file: &FileIo, known: &mut History) {
    let size = known.now.len() as u64;
    match dice.below(10) {
        0..=5 => {
            let at = match dice.below(3) {
                0 => dice.below(size + 1),
                1 => dice.below(size + 1) / PAGE * PAGE,
                _ => dice.below(SIZE_MAX / 2),
            };
            let len = if dice.below(3) == 0 { dice.below(300_000) } else { dice.below(9_000) } + 1;
            let data = dice.bytes(len.min(SIZE_MAX - at));
            file.write(at, &data).unwrap();
            let end = at as usize + data.len();
            known.now.resize(known.now.len().max(end), 0);
            known.now[at as usize..end].copy_from_slice(&data);
            known.change(at.min(size), end as u64);
        }
        6 | 7 => {
            let to = if dice.below(3) == 0 { dice.below(SIZE_MAX) } else { dice.below(size + 5000) };
            file.truncate(to).unwrap();
            known.now.resize(to as usize, 0);
            known.change(to.min(size).saturating_sub(1), to.max(size));
        }
        8 => {
            let (at, len) = (dice.below(size + 1), dice.below(50_000) + 1);
            file.allocate(Allocate::Punch, at, len).unwrap();
            let end = size.min(at + len);
            known.now[at as usize..end.max(at) as usize].fill(0);
            known.change(at, end);
        }
        _ => file.sync(dice.below(2) == 0).unwrap(),
    }
}

/// Writes a file over some mounts. Gives whether the last one ended well.
fn write_history(dice: &mut Dice, bench: &Bench) -> (History, bool) {
    let mut known =
        History { closed: vec![Vec::new()], blocks: HashMap::new(), seen: Vec::new(), now: Vec::new() };
    let (rounds, clean) = (1 + dice.below(3), dice.below(4) != 0);
    for round in 1..=rounds {
        let (file, context) = bench.mount();
        for _ in 0..=dice.below(6) {
            change(dice, &file, &mut known);
            if dice.below(3) == 0 {
                known.seen.push(bench.copy());
            }
        }
        if round == rounds && !clean {
            break;
        }
        file.seal().unwrap();
        drop(file);
        context.log.as_ref().unwrap().close();
        known.closed.push(known.now.clone());
        known.seen.push(bench.copy());
    }
    (known, clean)
}

/// A range of whole pages of `file`, or of any bytes.
fn range(dice: &mut Dice, len: usize) -> std::ops::Range<usize> {
    let len = len.max(1) as u64;
    let (at, size) = if dice.below(3) > 0 {
        (dice.below(len.div_ceil(PAGE)) * PAGE, (dice.below(3) + 1) * PAGE)
    } else {
        (dice.below(len), dice.below(600) + 1)
    };
    at.min(len) as usize..(at + size).min(len) as usize
}

/// The parts of a header page that one may want to put back by themselves.
fn part(dice: &mut Dice) -> std::ops::Range<usize> {
    use kmsfs::format::seal::{HEAD_MAC_OFFSET, SEAL_OFFSETS};
    let parts = [
        0..80,
        SLOT_OFFSETS[0]..SLOT_OFFSETS[0] + SLOT_LEN,
        SLOT_OFFSETS[1]..SLOT_OFFSETS[1] + SLOT_LEN,
        SEAL_OFFSETS[0]..SEAL_OFFSETS[1],
        SEAL_OFFSETS[1]..HEAD_MAC_OFFSET,
        SEAL_OFFSETS[0]..HEAD_MAC_OFFSET,
        HEAD_MAC_OFFSET..4096,
        layout::HEADER_LEN..4096,
        0..4096,
    ];
    parts[dice.below(parts.len() as u64) as usize].clone()
}

fn splice(file: &mut [u8], from: &[u8], part: std::ops::Range<usize>) {
    let end = part.end.min(file.len()).min(from.len());
    if part.start < end {
        file[part.start..end].copy_from_slice(&from[part.start..end]);
    }
}

/// Damages `now` once; what it did. `seen` are older states.
fn damage(dice: &mut Dice, now: &mut Lower, seen: &[Lower]) -> &'static str {
    let old = &seen[dice.below(seen.len() as u64) as usize];
    let file = &mut now.file;
    let len = file.len();
    match dice.below(12) {
        0 | 1 if len > 0 => {
            let at = range(dice, len).start.min(len - 1);
            file[at] ^= 1 << dice.below(8);
            "a flipped bit"
        }
        2 => {
            let range = range(dice, len);
            file[range.start.min(len)..range.end.min(len)].fill(0);
            "zeros"
        }
        3 => {
            let by = [1, 100, PAGE, 145 * PAGE][dice.below(4) as usize] as usize;
            let longer = dice.below(2) == 0;
            file.resize(if longer { len + by } else { len.saturating_sub(by) }, 0);
            "another length"
        }
        4 if len > 8192 => {
            let pages = (len / 4096) as u64;
            let (a, b) = (dice.below(pages) as usize * 4096, dice.below(pages) as usize * 4096);
            let moved = file[a..a + 4096].to_vec();
            file.copy_within(b..b + 4096, a);
            file[b..b + 4096].copy_from_slice(&moved);
            "pages that traded places"
        }
        5 | 6 => {
            splice(file, &old.file, range(dice, len));
            "an older page"
        }
        7 | 8 => {
            splice(file, &old.file, part(dice));
            "an older part of the header"
        }
        9 => {
            // A group with its tags, as it was.
            let group = dice.below(3) + 1;
            let (from, to) = (layout::tag_page_offset(group), layout::tag_page_offset(group + 1));
            splice(file, &old.file, from as usize..to as usize);
            "an older group"
        }
        10 if dice.below(2) == 0 => {
            now.logs.clone_from(&old.logs);
            "an older log"
        }
        10 => {
            // Most of a log is room that was never written.
            for log in now.logs.values_mut().filter(|log| !log.is_empty()) {
                let most = [20_000, 4096][dice.below(2) as usize];
                let at = dice.below(most) % log.len() as u64;
                log[at as usize] ^= 1 << dice.below(8);
            }
            "a damaged log"
        }
        _ => {
            file.clone_from(&old.file);
            "an older file"
        }
    }
}

/// Everything the file gives now, or the error.
fn read_all(file: &FileIo) -> Result<Vec<u8>, FsError> {
    file.ensure_keys()?;
    let mut out = Vec::new();
    file.read(0, 1 << 22, &mut out)?;
    assert_eq!(out.len() as u64, file.size()?);
    Ok(out)
}

#[derive(Debug, Default)]
struct Tally {
    files: u64,
    damages: u64,
    refused: u64,
    unharmed: u64,
    older_whole: u64,
    mixed_after_a_stop: u64,
}

/// Damages one written file again and again, each time from its good state.
fn attack(dice: &mut Dice, bench: &mut Bench, tally: &mut Tally) {
    bench.last = LastEnd::Unknown;
    let (known, clean) = write_history(dice, bench);
    // Somebody else may know that the last mount ended well.
    bench.last = if clean && dice.below(2) == 0 { LastEnd::Well } else { LastEnd::Unknown };
    let good = bench.copy();
    let mut seen = known.seen.clone();
    seen.push(good.clone());
    for _ in 0..DAMAGES {
        let mut bad = good.clone();
        let what: Vec<_> = (0..=dice.below(3)).map(|_| damage(dice, &mut bad, &seen)).collect();
        bench.put(&bad);
        let (file, _context) = bench.mount();
        tally.damages += 1;
        match read_all(&file) {
            Err(FsError::Corrupt(_) | FsError::Key(_)) => tally.refused += 1,
            Err(other) => panic!("{what:?}: {other}"),
            Ok(read) if clean && read == known.now => tally.unharmed += 1,
            Ok(read) if known.closed.contains(&read) => tally.older_whole += 1,
            Ok(read) => {
                // An unclean stop is part of what was put back, or is how this file ended.
                let stopped = bench.last == LastEnd::Unknown && (!clean || bad.logs != good.logs);
                assert!(stopped, "{what:?} of a closed file gave what it never was");
                for (block, data) in read.chunks(PAGE as usize).enumerate() {
                    assert!(known.once_was(block as u64, data), "{what:?}: block {block} is made up");
                }
                tally.mixed_after_a_stop += 1;
            }
        }
        // Whatever came of it can be checked and written on.
        let _ = file.verify();
        let _ = file.write(dice.below(SIZE_MAX), b"and on").and_then(|()| file.sync(false));
    }
    tally.files += 1;
}

#[test]
fn a_damaged_file_gives_what_was_written_or_an_error() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("KMSFS_FUZZ_SEED").unwrap_or(7);
    let until = number("KMSFS_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let (mut bench, mut tally) = (Bench::new(), Tally::default());
    let mut case = 0;
    while until.map_or(case < CASES, |until| Instant::now() < until) {
        for path in bench.logs().keys() {
            fs::remove_file(path).unwrap();
        }
        let _ = fs::remove_file(bench.path());
        let mut dice = Dice(seed.wrapping_add(case));
        bench.integrity = if dice.below(2) == 0 { Integrity::Auto } else { Integrity::File };
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            attack(&mut dice, &mut bench, &mut tally);
        }));
        assert!(run.is_ok(), "failed: repeat it with KMSFS_FUZZ_SEED={}", seed.wrapping_add(case));
        case += 1;
        if until.is_some() && case.is_multiple_of(1000) {
            eprintln!("{tally:?}");
        }
    }
    println!("{tally:?}");
    assert!(tally.refused > 0 && tally.unharmed > 0 && tally.older_whole > 0, "{tally:?}");
}
