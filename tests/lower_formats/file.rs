//! Files whose seals, tags and logs are authentic and say anything: behind the MACs no more is to be believed than in
//! front of them. Read through the file layer, as a mount does.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kmsfs::crypto::{DataKey, FileKeys, Tag};
use kmsfs::format::header::{Slots, Superblock};
use kmsfs::format::layout::{self, MAX_SIZE};
use kmsfs::format::seal::SEAL_OFFSETS;
use kmsfs::format::tags::{Entry, HOLE, TagPage, seal_block, tail_range};
use kmsfs::format::{FileId, WrappedKey};
use kmsfs::tree::{
    Durability, FileContext, FileIo, FreshKey, FsError, Integrity, KeyError, KeySource, KeyUser, LastEnd,
    Seek, Stage, TagLog,
};

use super::pages::sealed_plain;
use super::{BLOCK, FILE_ID, Input, VOLUME_ID, data_key, file_keys, volume_key, wrapped};

/// As much of a file is read.
const READ_MAX: usize = 1 << 20;

struct OneKey;

impl KeySource for OneKey {
    fn fresh(&self, _key: Option<&str>, _user: KeyUser) -> Result<FreshKey, KeyError> {
        Err(KeyError::Denied("nothing is to be made".into()))
    }

    fn unwrap(&self, _file_id: FileId, _wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        Ok(data_key())
    }
}

/// What a lower file is made of; all of it authentic.
struct Shape {
    /// The plaintext of its seal.
    seal: [u8; 60],
    /// What each block holds: 0 is a hole, a large number an entry that nothing stands behind.
    versions: Vec<u8>,
    /// The root is the one of these tags, not the one of the seal's plaintext.
    right_root: bool,
    /// Bytes of the lower file, where not those that belong to the size.
    lower_len: Option<u64>,
}

const MADE_UP: u8 = 200;

/// Entry and ciphertext of `block` in one of its versions.
fn block_of(keys: &FileKeys, block: u64, version: u8, len: usize) -> (Entry, Vec<u8>) {
    let mut data = vec![version; len];
    match version {
        0 => (HOLE, data),
        MADE_UP.. => ([version; 28], data),
        _ => (seal_block(keys, FILE_ID, block, &[version; 12], &mut data), data),
    }
}

impl Shape {
    fn size(&self) -> u64 {
        u64::from_le_bytes(self.seal[8..16].try_into().unwrap())
    }

    fn write(&mut self, file: &File) {
        let (keys, size) = (file_keys(), self.size());
        let count = layout::block_count(size).min(self.versions.len() as u64);
        let mut page = vec![0; BLOCK];
        let (mut root, mut tags) = ([0; 16], TagPage::empty(0));
        for block in 0..count {
            let len = layout::block_len(block, size);
            let (entry, data) = block_of(&keys, block, self.versions[block as usize], len);
            tags.set(layout::entry_index(block), entry);
            if layout::tail_is_inline(size) && block == size / BLOCK as u64 {
                page[tail_range(len)].copy_from_slice(&data);
            } else if entry != HOLE {
                file.write_all_at(&data, layout::block_offset(block)).unwrap();
            }
            let page_no = layout::tag_page(block);
            if block + 1 < count && layout::tag_page(block + 1) == page_no {
                continue;
            }
            let mac = put_tags(&keys, &tags, page_no, size, file, &mut page);
            tags.root_term(&keys, page_no, &mac).iter().zip(&mut root).for_each(|(t, r)| *r ^= t);
            tags = TagPage::empty(page_no + 1);
        }
        self.write_header(file, page, root, &keys);
        let len = self.lower_len.unwrap_or_else(|| layout::lower_len(size.min(MAX_SIZE)));
        let _ = file.set_len(len);
    }

    fn write_header(&mut self, file: &File, mut page: Vec<u8>, root: Tag, keys: &FileKeys) {
        if self.right_root {
            self.seal[16..32].copy_from_slice(&root);
        }
        let superblock = Superblock::new(VOLUME_ID, FILE_ID, *keys.commitment());
        let at = SEAL_OFFSETS[usize::from(self.seal[0] % 2)];
        let sealed = sealed_plain(&superblock.encode(), self.seal);
        page[at..at + sealed.len()].copy_from_slice(&sealed);
        let slots = Slots::new(superblock, wrapped(1)).encode().unwrap();
        page[..slots.len()].copy_from_slice(&slots);
        file.write_all_at(&page, 0).unwrap();
    }
}

/// Stores the tag page `page_no` in the file or in the header page; gives its MAC.
fn put_tags(keys: &FileKeys, tags: &TagPage, page_no: u64, size: u64, file: &File, page: &mut [u8]) -> Tag {
    let mac = tags.mac(keys, page_no);
    if page_no == 0 {
        tags.encode_head(&mac, layout::block_count(size).min(layout::HEAD_BLOCKS), page.try_into().unwrap());
    } else if mac != [0; 16] {
        file.write_all_at(&tags.encode(&mac)[..], layout::tag_page_offset(page_no)).unwrap();
    }
    mac
}

/// A directory in memory, emptied for each use.
struct Bench(PathBuf);

thread_local!(static BENCH: Bench = Bench::new());

impl Bench {
    fn new() -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let thread = rustix::thread::gettid();
        Self(base.join(format!("kmsfs-formats-{}-{thread:?}", std::process::id())))
    }

    fn emptied(&self) -> &Path {
        let _ = fs::remove_dir_all(&self.0);
        fs::create_dir(&self.0).unwrap();
        &self.0
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lower_file(dir: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(dir.join("file")).unwrap()
}

fn context(log: Option<TagLog>, read_only: bool, integrity: Integrity) -> Arc<FileContext> {
    let (keys, stage) = (Arc::new(OneKey), Stage::default());
    Arc::new(FileContext { volume_id: VOLUME_ID, keys, read_only, log, stage, integrity })
}

/// The begin of the file and its size; whatever else can be asked of it is asked, too.
fn contents(io: &FileIo) -> Result<(u64, Vec<u8>), FsError> {
    io.ensure_keys()?;
    let (size, mut out, mut end) = (io.size()?, Vec::new(), Vec::new());
    assert!(size <= MAX_SIZE, "no file is that large");
    let verified = io.verify()?;
    assert!(verified.blocks + verified.holes <= layout::block_count(size));
    let _ = io.seek(size / 2, Seek::Data);
    io.read(size.saturating_sub(5000), 8192, &mut end)?;
    io.read(0, READ_MAX, &mut out)?;
    assert_eq!(out.len() as u64, size.min(READ_MAX as u64));
    Ok((size, out))
}

/// What a sealed file is to be beyond what its plaintext says.
const SMALL: u8 = 1;
const RIGHT_ROOT: u8 = 2;
const ANY_LENGTH: u8 = 4;
const WHOLE_FILE: u8 = 8;

pub(super) fn sealed_seeds() -> Vec<Vec<u8>> {
    let seed = |how: u8, size: u64, state: u8, versions: &[u8]| {
        let plain = [&[2; 8][..], &size.to_le_bytes(), &[4; 16], &[state], &[0; 27], &[0; 8]].concat();
        [&[how][..], &plain, versions].concat()
    };
    let long: Vec<u8> = (0..=255).collect();
    vec![
        seed(SMALL | RIGHT_ROOT, 20_000, 0, &[1, 0, 2, 3, 4]),
        seed(SMALL | RIGHT_ROOT | WHOLE_FILE, 199 * 4096 + 5, 0, &long[..199]),
        seed(SMALL, 600_000, 1, &long),
        seed(SMALL, 9000, 2, &[1, 2, 250]),
        seed(RIGHT_ROOT, MAX_SIZE, 0, &[1]),
        seed(RIGHT_ROOT, u64::MAX, 1, &[1]),
    ]
}

/// `how`, the plaintext of the seal, the lower length, then what each block holds. Where all of it is right it is read.
pub(super) fn sealed(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (how, mut seal, lower_len) = (input.byte(), input.array::<60>(), input.u64());
    if how & SMALL != 0 {
        let size = u64::from_le_bytes(seal[8..16].try_into().unwrap()) % (2 << 20);
        seal[8..16].copy_from_slice(&size.to_le_bytes());
        (seal[7], seal[38], seal[39]) = (0, 0, 0);
    }
    let lower_len = (how & ANY_LENGTH != 0).then_some(lower_len % (1 << 36));
    let versions = input.slice(500).to_vec();
    let mut shape = Shape { seal, versions, right_root: how & RIGHT_ROOT != 0, lower_len };
    let integrity = if how & WHOLE_FILE != 0 { Integrity::File } else { Integrity::Auto };
    BENCH.with(|bench| {
        let file = lower_file(bench.emptied());
        shape.write(&file);
        let read = contents(&FileIo::new(file.into(), context(None, true, integrity), None));
        let whole = shape.right_root && lower_len.is_none() && !shape.versions.iter().any(|v| *v >= MADE_UP);
        if how & SMALL != 0 && whole && seal[32] == 0 {
            let (size, out) = read.unwrap();
            assert_eq!(size, shape.size());
            let expected = |block: usize| shape.versions.get(block).copied().unwrap_or(0);
            let right =
                out.chunks(BLOCK).enumerate().all(|(block, data)| data.iter().all(|b| *b == expected(block)));
            assert!(right, "it reads as it was not written");
            return true;
        }
        read.is_ok()
    })
}

/// How the log of an unclean stop is made up; each record has more of its own.
const FORGED_HEADER: u8 = 1;
const ENDED_WELL: u8 = 2;
const WRITTEN: u8 = 4;
const SET_ASIDE: u8 = 8;
const MARKED: u8 = 16;
const OTHER_SESSION: u8 = 32;
const HALF: u64 = 2 << 20;

pub(super) fn log_seeds() -> Vec<Vec<u8>> {
    let header = |how: u8, flags: u8, state: u8| {
        let (size, firm) = (20_000_u32.to_le_bytes(), 9000_u32.to_le_bytes());
        [&[how, flags, 0, 7, 0, 0, 0, 1, 9, 0, 0, 0, 4][..], &size, &[state], &firm, &[5, 1, 2, 3, 1, 2]]
            .concat()
    };
    let block = |block: u8, old: u8, new: u8, how: u8| [how, block, old, new];
    let one = [&[0, 1, 1, 0][..], &block(1, 2, 3, 1)].concat();
    let sealing =
        [&[0, 2, 2, 1][..], &[5, 0x40, 0x20, 0, 0, 2, 0, 0, 0, 0], &block(2, 3, 4, 0), &block(4, 2, 0, 0)]
            .concat();
    let wide = [&[0, 1, 3, 0, 8][..], &[0xff; 8], &[1, 2]].concat();
    // A block of 512 bytes in the middle of the file, and a time of more nanoseconds than a second has.
    let short = [&[0, 1, 1, 0][..], &block(1, 2, 3, 3), &[0, 2]].concat();
    let made_up = [&[0, 1, 1, 0][..], &block(1, 2, MADE_UP, 1)].concat();
    // Held, far behind the end and what was promised.
    let beyond = [&[0, 1, 1, 0][..], &block(193, 0, 5, 1)].concat();
    let no_time = vec![92, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    let mut seeds = Vec::new();
    for how in [0, WRITTEN, WRITTEN | SET_ASIDE, MARKED, ENDED_WELL | WRITTEN] {
        seeds.push([&header(how, 0, 1)[..], &one, &sealing].concat());
        seeds.push([&header(how, 0, 2)[..], &sealing, &one].concat());
        seeds.push([&header(how, 0, 0)[..], &wide].concat());
        seeds.push([&header(how, 0, 0)[..], &beyond].concat());
        seeds.push([&header(how, 0, 1)[..], &beyond].concat());
        seeds.push([&header(how, 0, 1)[..], &short].concat());
        seeds.push([&header(how, 0, 1)[..], &no_time, &one].concat());
        seeds.push([&header(how, 0, 2)[..], &sealing, &made_up].concat());
    }
    seeds
}

/// The first page of a log (fields, then up to four sessions before it), the file, then records. A reader that changes
/// nothing sees what a repair stores, and a repair stays.
pub(super) fn tag_log(data: &[u8]) -> bool {
    let mut input = Input(data);
    let how = input.byte();
    let (page, session) = log_page(&mut input, how & FORGED_HEADER != 0);
    let mut shape = logged_file(&mut input, if how & OTHER_SESSION != 0 { 0xfeed } else { session });
    let mut log = page;
    while !input.is_empty() && log.len() < 64 << 10 {
        log.extend(record(&mut input, session));
        log.resize(log.len().next_multiple_of(64), 0);
    }
    if how & MARKED != 0 {
        log.resize(4096 + HALF as usize, 0);
        let mark = &mut log[4096 + HALF as usize - 64..];
        mark[0] = 2;
        let mac = volume_key(false).log.mac(b"mark\0\0\0\0\0\0\0\0", &mark[..8]);
        mark[8..24].copy_from_slice(&mac);
    }
    let last = if how & ENDED_WELL != 0 { LastEnd::Well } else { LastEnd::Unknown };
    BENCH.with(|bench| {
        let dir = bench.emptied();
        shape.write(&lower_file(dir));
        fs::write(dir.join(".kmsfs.log"), &log).unwrap();
        if how & SET_ASIDE != 0 {
            fs::write(dir.join(".kmsfs.log.3"), &log).unwrap();
        }
        recover(dir, last, how & WRITTEN != 0)
    })
}

/// Mounts what is in `dir` for reading, then for writing, and once more. Whether its records spoke of the file, and it
/// could be read.
fn recover(dir: &Path, last: LastEnd, writes: bool) -> bool {
    let (key, root) = (Arc::new(volume_key(false)), OwnedFd::from(File::open(dir).unwrap()));
    let log = TagLog::open_read_only(&root, &key, last).unwrap();
    let reader = context(Some(log), true, Integrity::Auto);
    let spoken_of = reader.has_old_records();
    let seen = contents(&FileIo::new(lower_file(dir).into(), reader, None));
    if !writes {
        return spoken_of && seen.is_ok();
    }
    let mount = |last| {
        let log = TagLog::open(&root, &key, Durability::Relaxed, last).unwrap();
        let context = context(Some(log), false, Integrity::Auto);
        let io = FileIo::new(lower_file(dir).into(), Arc::clone(&context), None);
        let read = contents(&io);
        if read.is_ok() {
            io.seal().unwrap();
        }
        drop(io);
        context.log.as_ref().unwrap().close();
        read
    };
    let repaired = mount(last);
    assert_eq!(seen.is_ok(), repaired.is_ok(), "a reader and a repair: {seen:?} {repaired:?}");
    if let (Ok(seen), Ok(repaired)) = (&seen, repaired) {
        assert!(*seen == repaired, "a reader sees what a repair does not store");
        assert!(mount(LastEnd::Unknown).unwrap() == repaired, "a repair does not stay");
    }
    spoken_of && seen.is_ok()
}

/// The first page; gives its session too.
fn log_page(input: &mut Input, forged: bool) -> (Vec<u8>, u32) {
    let mut page = vec![0; BLOCK];
    let (flags, session, count) = (input.u16(), input.u32() | 1, input.byte());
    page[..4].copy_from_slice(b"KMLS");
    page[4] = 2;
    page[6..8].copy_from_slice(&flags.to_le_bytes());
    page[8..12].copy_from_slice(&session.to_le_bytes());
    // More sessions than have room.
    let told = if count > 250 { u32::MAX } else { u32::from(count) };
    page[12..16].copy_from_slice(&told.to_le_bytes());
    (0..usize::from(count % 5))
        .for_each(|i| page[16 + 4 * i..20 + 4 * i].copy_from_slice(&input.array::<4>()));
    let mac = volume_key(false).log.mac(&[0; 12], &page[..BLOCK - 16]);
    if !forged {
        page[BLOCK - 16..].copy_from_slice(&mac);
    }
    (page, session)
}

/// The plaintext of a seal of a small file: epoch, size, state, firm.
fn small_seal(input: &mut Input, session: u32) -> [u8; 60] {
    let (epoch, size, state, firm) =
        (input.byte(), input.u32() % 900_000, input.byte() % 3, input.u32() % 900_000);
    let mut plain = [0; 60];
    plain[0] = epoch;
    plain[8..12].copy_from_slice(&size.to_le_bytes());
    plain[32] = state;
    plain[33..37].copy_from_slice(&firm.to_le_bytes());
    plain[40..44].copy_from_slice(&session.to_le_bytes());
    plain
}

fn logged_file(input: &mut Input, session: u32) -> Shape {
    let seal = small_seal(input, session);
    let count = usize::from(input.byte());
    let versions = input.slice(count).to_vec();
    Shape { seal, versions, right_root: true, lower_len: None }
}

/// What is wrong with a record.
const NO_MAC: u8 = 1;
const NO_CRC: u8 = 2;
const CHANGED: u8 = 4;

/// One record of the log: `how`, count of blocks, sequence, what else it has (seal, time), and the blocks.
fn record(input: &mut Input, session: u32) -> Vec<u8> {
    let keys = file_keys();
    let (how, count, sequence, has) = (input.byte(), input.byte() % 6, input.byte(), input.byte() & 3);
    let mut out = [&b"KML3\0\0\0\0"[..], &FILE_ID.0, &u64::from(sequence).to_le_bytes(), &[0; 4]].concat();
    out.extend_from_slice(&u32::from(count).to_le_bytes());
    out.extend_from_slice(&u32::from(has).to_le_bytes());
    out.extend_from_slice(&[how; 12]);
    let superblock = Superblock::new(VOLUME_ID, FILE_ID, *keys.commitment()).encode();
    let seal = if has & 1 != 0 { sealed_plain(&superblock, small_seal(input, session)) } else { [0; 88] };
    out.extend_from_slice(&seal);
    let mut data = Vec::new();
    for _ in 0..count {
        let (fields, held) = logged_block(input, &keys);
        out.extend(fields);
        data.extend(held);
    }
    out.extend(data);
    if how & CHANGED != 0 {
        for _ in 0..2 {
            let at = usize::from(input.u16()) % out.len();
            out[at] ^= input.byte();
        }
    }
    let len = out.len() as u32 + 16;
    out[32..36].copy_from_slice(&len.to_le_bytes());
    let mac = if how & NO_MAC != 0 { [0; 16] } else { keys.page.mac(b"\0\0\0\0\0\0\0\0log\0", &out) };
    out.extend_from_slice(&mac);
    if how & NO_CRC == 0 {
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

/// How a block of a record is told of.
const HELD: u8 = 1;
const SHORT: u8 = 2;
const WAS_SHORT: u8 = 4;
const WIDE: u8 = 8;

/// The fields of a block in a record, and its data where the record holds it.
fn logged_block(input: &mut Input, keys: &FileKeys) -> (Vec<u8>, Vec<u8>) {
    let how = input.byte();
    let block = if how & WIDE != 0 { input.u64() } else { u64::from(input.byte()) };
    let (old, new) = (input.byte(), input.byte());
    let mut length = |short: u8| if how & short != 0 { input.u16() % 5000 } else { BLOCK as u16 };
    let (old_len, new_len) = (length(WAS_SHORT), length(SHORT));
    let (was, _) = block_of(keys, block, old, usize::from(old_len));
    let (is, data) = block_of(keys, block, new, usize::from(new_len));
    let mut out = block.to_le_bytes().to_vec();
    out.extend_from_slice(&old_len.to_le_bytes());
    out.extend_from_slice(&new_len.to_le_bytes());
    out.extend_from_slice(&u32::from(how & HELD).to_le_bytes());
    out.extend_from_slice(&was);
    out.extend_from_slice(&is);
    (out, if how & HELD != 0 { data } else { Vec::new() })
}
