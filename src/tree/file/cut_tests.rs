//! Power cuts, replayed: every write and sync that goes to the lower file and the log is recorded; then, for each moment,
//! states of the two files are made up that a power cut at that moment may leave, and what opens must be legal.
//!
//! What a cut may leave: metadata (length, holes) as of some moment since the last sync, and each page, on its own, as of
//! some moment since then, as far as the metadata allows. A page is written as a whole.
#![cfg(test)]

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::lower::trace::{self, Change};
use super::tests::*;
use super::{FileIo, LOG_NAME};
use crate::format::layout::BLOCK_LEN;

const PAGE: usize = 4096;

/// A lower file at a moment.
#[derive(Clone, Default, PartialEq)]
struct Image(Vec<u8>);

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(at, data) => {
                let end = *at as usize + data.len();
                self.0.resize(self.0.len().max(end), 0);
                self.0[*at as usize..end].copy_from_slice(data);
            }
            Change::Length(len) => self.0.resize(*len as usize, 0),
            Change::Punch(at, len) => {
                let end = ((at + len) as usize).min(self.0.len());
                self.0[(*at as usize).min(end)..end].fill(0);
            }
            Change::Sync => {}
        }
    }

    fn page(&self, page: usize) -> &[u8] {
        let end = ((page + 1) * PAGE).min(self.0.len());
        &self.0[(page * PAGE).min(end)..end]
    }
}

/// Whether `change` takes what page `page` of a file of `len` bytes holds, by way of the metadata.
fn takes(change: &Change, page: usize, len: usize) -> bool {
    match change {
        Change::Length(to) => (*to as usize) < len && (page + 1) * PAGE > *to as usize,
        Change::Punch(at, punched) => {
            (page * PAGE) < (at + punched) as usize && (page + 1) * PAGE > *at as usize
        }
        Change::Write(..) | Change::Sync => false,
    }
}

/// All that one file may be after a cut: the states since its last sync.
struct Choices {
    states: Vec<Image>,
    pending: Vec<Change>,
    /// Pages that differ between the states.
    pages: Vec<usize>,
}

impl Choices {
    fn new(base: &Image, changes: &[Change]) -> Self {
        let synced = changes.iter().rposition(|c| matches!(c, Change::Sync)).map_or(0, |at| at + 1);
        let mut now = base.clone();
        changes[..synced].iter().for_each(|change| now.apply(change));
        let mut states = vec![now.clone()];
        for change in &changes[synced..] {
            now.apply(change);
            states.push(now.clone());
        }
        let longest = states.iter().map(|s| s.0.len()).max().unwrap_or(0).div_ceil(PAGE);
        let differs = |page: &usize| states.iter().any(|state| state.page(*page) != states[0].page(*page));
        let pages = (0..longest).filter(differs).collect();
        Self { states, pending: changes[synced..].to_vec(), pages }
    }

    /// The state in which the metadata is that of moment `meta`, and `pick(n)` of `n` moments is chosen for each page.
    fn choose(&self, meta: usize, mut pick: impl FnMut(usize) -> usize) -> Image {
        let mut out = self.states[meta].clone();
        let len = out.0.len();
        for page in &self.pages {
            let took = |at: &usize| takes(&self.pending[*at], *page, self.states[*at].0.len());
            let low = (0..meta).rev().find(took).map_or(0, |at| at + 1);
            let high = (meta..self.pending.len()).find(took).unwrap_or(self.pending.len());
            let mut versions: Vec<&[u8]> =
                self.states[low..=high].iter().map(|state| state.page(*page)).collect();
            versions.dedup();
            let from = versions[pick(versions.len())].to_vec();
            let place = (*page * PAGE).min(len)..((*page + 1) * PAGE).min(len);
            let mut bytes = from;
            bytes.resize(place.len(), 0);
            out.0[place].copy_from_slice(&bytes);
        }
        out
    }
}

/// What was done, and what the file was after it.
struct Run {
    bench: Bench,
    base: BTreeMap<u64, Image>,
    changes: Vec<(u64, Change)>,
    /// After how many changes an operation had ended, what the file was then, and whether it was synced.
    ends: Vec<(usize, Vec<u8>, bool)>,
    data: u64,
    log: u64,
}

fn inode(path: std::path::PathBuf) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

impl Run {
    fn new(ops: &[Op]) -> Self {
        let bench = Bench::new();
        let mut file = bench.mount();
        let (data, log) = (inode(bench.path()), inode(bench.dir.join(LOG_NAME)));
        let mut base = BTreeMap::new();
        base.insert(data, Image::default());
        base.insert(log, Image(std::fs::read(bench.dir.join(LOG_NAME)).unwrap()[..PAGE].to_vec()));
        let mut model = Vec::new();
        let mut ends = vec![(0, model.clone(), true)];
        trace::start();
        for op in ops {
            if matches!(op, Op::Remount) {
                // Closed and opened again within one mount.
                file.seal().unwrap();
                file = FileIo::new(bench.fd(), file.context.clone(), None);
            }
            apply_to_file(&file, op).unwrap();
            if matches!(op, Op::SyncAsSomebodyWrites(..)) {
                ends.push((trace::count(), model.clone(), true));
            }
            apply_to_model(&mut model, op);
            ends.push((trace::count(), model.clone(), matches!(op, Op::Sync)));
        }
        let _ = file.seal();
        ends.push((trace::count(), model, false));
        Self { bench, base, changes: trace::stop(), ends, data, log }
    }

    fn choices(&self, file: u64, moment: usize) -> Choices {
        let of_file = self.changes[..moment].iter().filter(|(inode, _)| *inode == file);
        Choices::new(&self.base[&file], &of_file.map(|(_, change)| change.clone()).collect::<Vec<_>>())
    }

    /// Opens what a cut at `moment` left and holds it against what may be there.
    fn check(&self, moment: usize, data: &Image, log: &Image) {
        let after = self.bench.again();
        std::fs::write(after.path(), &data.0).unwrap();
        std::fs::write(after.dir.join(LOG_NAME), &log.0).unwrap();
        let file = after.mount();
        let mut got = Vec::new();
        if let Err(e) = file.read(0, 1 << 26, &mut got) {
            panic!("cut after {moment} changes: {e}; {}", self.story(moment));
        }
        let synced = self.ends.iter().rposition(|(at, _, synced)| *synced && *at <= moment).unwrap_or(0);
        let end = self.ends.iter().map(|(at, ..)| *at).find(|at| *at > moment);
        let next = self.ends.iter().rposition(|(at, ..)| Some(*at) == end).unwrap_or(self.ends.len() - 1);
        let legal: Vec<&Vec<u8>> =
            self.ends[synced..=next.max(synced)].iter().map(|(_, model, _)| model).collect();
        check_legal(&got, &legal);
        let problems = file.verify().unwrap().problems;
        assert!(problems.is_empty(), "{problems:?}");
        drop(file);
        assert!(contents(&after.mount()) == got, "a second mount sees something else");
        let writable = after.mount();
        writable.write(0, &[7; 10]).unwrap();
        writable.truncate(got.len().max(10) as u64 + 5000).unwrap();
        assert_eq!(contents(&writable)[..10], [7; 10]);
    }

    /// What had happened by `moment`, for messages.
    fn story(&self, moment: usize) -> String {
        let told = self.changes[..moment].iter().map(|(inode, change)| {
            let file = if *inode == self.data { "data" } else { "log" };
            match change {
                Change::Write(at, data) => format!("{file} {at}+{}", data.len()),
                Change::Length(len) => format!("{file} cut {len}"),
                Change::Punch(at, len) => format!("{file} punch {at}+{len}"),
                Change::Sync => format!("{file} sync"),
            }
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// `samples` states at each moment, or all of them where they are fewer.
    fn check_all(&self, samples: usize, seed: u64) {
        let mut random = seed | 1;
        let mut draw = move |n: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as usize % n
        };
        for moment in 0..=self.changes.len() {
            let (data, log) = (self.choices(self.data, moment), self.choices(self.log, moment));
            for sample in 0..samples {
                // Some with the pages in order, most at random, some with each page either first or last.
                let meta = draw(data.states.len());
                let log_meta = draw(log.states.len());
                let image = data.choose(meta, |n| {
                    if sample % 3 == 0 && draw(4) > 0 { (n - 1) * draw(2) } else { draw(n) }
                });
                self.check(moment, &image, &log.choose(log_meta, &mut draw));
            }
        }
    }

    /// Every state at every moment.
    fn check_exhaustively(&self) -> usize {
        let mut seen = HashSet::new();
        for moment in 0..=self.changes.len() {
            let (data, log) = (self.choices(self.data, moment), self.choices(self.log, moment));
            for (meta, log_meta) in
                (0..data.states.len()).flat_map(|m| (0..log.states.len()).map(move |l| (m, l)))
            {
                let mut digits: Vec<(usize, usize)> = Vec::new();
                loop {
                    let mut next = 0;
                    let mut pick = |n: usize| {
                        if next == digits.len() {
                            digits.push((0, n));
                        }
                        digits[next].1 = n;
                        next += 1;
                        digits[next - 1].0
                    };
                    let image = data.choose(meta, &mut pick);
                    let log_image = log.choose(log_meta, &mut pick);
                    if seen.insert(digest(moment, &image, &log_image)) {
                        self.check(moment, &image, &log_image);
                    }
                    while digits.last().is_some_and(|(at, n)| at + 1 == *n) {
                        digits.pop();
                    }
                    match digits.last_mut() {
                        Some((at, _)) => *at += 1,
                        None => break,
                    }
                }
            }
        }
        seen.len()
    }
}

fn digest(moment: usize, data: &Image, log: &Image) -> u64 {
    let mut hasher = DefaultHasher::new();
    (moment, &data.0, &log.0).hash(&mut hasher);
    hasher.finish()
}

/// Each block is as in one of `legal`, the first of which is what was last synced; a block beyond that one may be a hole.
fn check_legal(got: &[u8], legal: &[&Vec<u8>]) {
    let sizes = legal.iter().map(|model| model.len());
    let (min, max) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
    assert!((min..=max).contains(&got.len()), "{} bytes, not {min} to {max}", got.len());
    for (block, chunk) in got.chunks(BLOCK_LEN).enumerate() {
        let start = block * BLOCK_LEN;
        let fits = |model: &&Vec<u8>| {
            let mut part = model[start.min(model.len())..(start + chunk.len()).min(model.len())].to_vec();
            part.resize(chunk.len(), 0);
            part == chunk
        };
        let unsynced = start >= legal[0].len() && chunk.iter().all(|b| *b == 0);
        assert!(legal.iter().any(fits) || unsynced, "block {block} is none of its versions");
    }
}

fn w(block: u64, blocks: u64, seed: u8) -> Op {
    Op::Write(block * 4096, blocks as usize * 4096, seed)
}

/// The stories that every state of is tried.
fn stories() -> Vec<Vec<Op>> {
    vec![
        vec![w(0, 2, 1), Op::Sync, w(0, 1, 2), w(1, 1, 3)],
        vec![w(0, 2, 1), Op::Sync, Op::Sync, w(0, 1, 2), Op::Sync, w(0, 1, 3), Op::Sync, w(0, 1, 4)],
        vec![Op::Write(0, 6000, 1), Op::Sync, Op::Write(5000, 3000, 2), Op::Sync],
        vec![Op::Write(0, 2000, 1), Op::Sync, Op::Write(2000, 3000, 2)],
        vec![w(0, 3, 1), Op::Sync, Op::Truncate(5000), Op::Sync],
        vec![w(0, 3, 1), Op::Sync, Op::Truncate(0), Op::Write(0, 100, 2)],
        vec![w(0, 3, 1), Op::Sync, Op::Punch(4096, 4096), w(1, 1, 2)],
        vec![w(0, 2, 1), Op::Remount, w(0, 1, 2), Op::Sync],
        vec![Op::Truncate(20_000), Op::Sync, w(1, 1, 2), Op::Sync, w(1, 1, 3)],
        // A hole in the header page where an older record begins with a hole.
        vec![
            Op::Truncate(24_576),
            Op::Sync,
            w(5, 1, 1),
            Op::Sync,
            Op::Truncate(22_480),
            Op::Punch(20_480, 2_000),
            Op::Sync,
        ],
        // The header page that is left keeps a shorter end of the block that a cut ends in.
        vec![Op::Write(0, 4_097, 1), Op::Write(4_097, 4_000, 2), Op::Truncate(7_100)],
        // A hole is synced behind what was firm, while somebody writes behind it.
        vec![
            Op::Write(0, 17_408, 1),
            Op::Sync,
            Op::Truncate(45_056),
            Op::SyncAsSomebodyWrites(45_056, 4_096, 2),
        ],
    ]
}

#[test]
fn every_state_that_a_cut_may_leave_is_legal() {
    for (number, story) in stories().iter().enumerate() {
        let run = Run::new(story);
        let count = run.check_exhaustively();
        assert!(count > 20, "story {number} has only {count} states");
    }
}

proptest! {
    #![proptest_config(few())]

    /// Any operations, cut at any moment: what was synced is there, nothing is damaged.
    #[test]
    fn a_cut_at_any_moment_leaves_what_was_synced(
        ops in proptest::collection::vec(op(), 1..8), seed: u64, samples in 1..4_usize,
    ) {
        Run::new(&ops).check_all(samples, seed);
    }
}

/// A bounded number here; `PROPTEST_CASES` asks for a long run.
fn few() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    if asked { ProptestConfig::default() } else { ProptestConfig::with_cases(20) }
}
