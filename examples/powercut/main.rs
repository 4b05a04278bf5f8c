//! The load and the judge of `scripts/powercut`: writes to a mounted volume, clones the image below its lower
//! filesystem at random moments, and holds what is found on each clone against what was written and what was synced.
//!
//!     powercut --volume MNT --lower DIR --image IMG --cuts N --stage CMD [--loads a,b] [--seed N]
//!              [--postgres BIN --sockets DIR]
//!
//! Clones are made some at a time under one load, which rests while they are looked at.
//!
//! The image must lie on a filesystem with reflinks: a clone is atomic, which is what a cut is. `CMD recover IMG`
//! mounts the clone and the volume in it and prints where; `CMD release IMG` checks it and takes both away.
#![allow(missing_docs)]

mod bytes;
mod cells;
mod databases;
mod files;
mod ledger;
mod names;
mod writeback;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::{Mutex, RwLock};

use bytes::Random;
use cells::{CellLoad, Habit};
use databases::{Cluster, PostgresLoad, SqliteLoad};
use files::{LogLoad, ReplaceLoad};
use ledger::{Expectation, Record};
use names::NamesLoad;
use writeback::WriteBack;

pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longest words on one thing that is wrong.
const TOLD_MAX: usize = 400;
/// Databases whose recovery takes long are looked at in one cut of so many.
const RARELY: usize = 4;
/// One cut of so many is cut again while it is being recovered.
const AGAIN: usize = 4;

/// What works on the volume, in a thread of its own.
pub trait Load: Send {
    /// One operation or a few.
    fn step(&mut self, random: &mut Random) -> Outcome<()>;
    /// What it keeps of what it did.
    fn records(&self) -> Vec<Arc<dyn Record>>;
    /// Somebody who works on the same things at the same time.
    fn helper(&self) -> Option<Box<dyn Load>> {
        None
    }
    /// To look at it takes long.
    fn rarely(&self) -> bool {
        false
    }
}

#[derive(Parser)]
struct Args {
    /// Where the volume is mounted
    #[arg(long)]
    volume: PathBuf,
    /// Its lower directory
    #[arg(long)]
    lower: PathBuf,
    /// The image that its lower filesystem lies in
    #[arg(long)]
    image: PathBuf,
    /// How often the power is cut
    #[arg(long)]
    cuts: usize,
    /// What mounts and takes away a clone
    #[arg(long)]
    stage: String,
    /// cells, logs, replace, names, sqlite, postgres
    #[arg(long, value_delimiter = ',', default_value = "cells,logs,replace,names,sqlite")]
    loads: Vec<String>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory of the programs of PostgreSQL
    #[arg(long, default_value = "/usr/lib/postgresql/bin")]
    postgres: PathBuf,
    /// Directory for its sockets
    #[arg(long, default_value = "/tmp")]
    sockets: PathBuf,
    /// The lower filesystem is btrfs, of which two things are not asked: that fdatasync covers the length of a file that
    /// another thread extends meanwhile, and that a rename which was not synced leaves one name
    #[arg(long)]
    btrfs: bool,
    /// Tell what is wrong, and keep so many of the clones
    #[arg(long, default_value_t = 0)]
    keep: usize,
    /// Most milliseconds between two cuts
    #[arg(long, default_value_t = 700)]
    between: usize,
    /// Cuts before the load rests
    #[arg(long, default_value_t = 10)]
    batch: usize,
    /// Go no further once something is lost
    #[arg(long)]
    until_loss: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(e) => {
            eprintln!("powercut: {e}");
            ExitCode::from(2)
        }
    }
}

fn make_loads(args: &Args) -> Outcome<Vec<Box<dyn Load>>> {
    let root = &args.volume;
    let mut loads: Vec<Box<dyn Load>> = Vec::new();
    for name in &args.loads {
        match name.as_str() {
            "cells" => {
                // Within the header page, within the first group, beyond it; overwriting alone; synced by another.
                let files =
                    [(6, 3, 6, false), (700, 4, 8, false), (3000, 6, 12, false), (2000, 30, 0, false)];
                let files = files.into_iter().chain([(1000, 3, 0, false), (1500, 50, 15, !args.btrfs)]);
                for (id, (cells, sync, reshape, shared)) in (1..).zip(files) {
                    loads.push(Box::new(CellLoad::new(root, id, Habit { cells, sync, reshape, shared })?));
                }
            }
            "logs" => {
                loads.push(Box::new(LogLoad::new(root, 1)?));
                loads.push(Box::new(LogLoad::new(root, 2)?));
            }
            "replace" => {
                let names: Vec<String> = ["one", "two"].map(str::to_owned).into();
                loads.push(Box::new(ReplaceLoad::new(root, &names, "new", 100)?));
                let names = [format!("{:x<255}", "replaced"), "short".to_owned()];
                loads.push(Box::new(ReplaceLoad::new(root, &names, &format!("{:x<255}", "new"), 200)?));
            }
            "names" => loads.push(Box::new(NamesLoad::new(root, args.btrfs)?)),
            "sqlite" => {
                loads.push(Box::new(SqliteLoad::new(root, true)?));
                loads.push(Box::new(SqliteLoad::new(root, false)?));
            }
            "postgres" => {
                let cluster = Cluster { programs: args.postgres.clone(), sockets: args.sockets.clone() };
                loads.push(Box::new(PostgresLoad::new(root, cluster)?));
            }
            other => return Err(format!("there is no load '{other}'").into()),
        }
    }
    loads.push(Box::new(WriteBack::new(&args.lower)));
    let helpers: Vec<_> = loads.iter().filter_map(|load| load.helper()).collect();
    loads.extend(helpers);
    Ok(loads)
}

/// What all threads share.
struct Desk {
    stop: AtomicBool,
    steps: AtomicU64,
    /// Held for each step; taken while the load is to rest.
    gate: RwLock<()>,
    /// A load that ended with an error: then nothing that follows says anything.
    failed: Mutex<Option<String>>,
}

fn work(mut load: Box<dyn Load>, desk: &Desk, seed: u64) {
    let mut random = Random::new(seed);
    while !desk.stop.load(Ordering::Relaxed) {
        let step = {
            let _going = desk.gate.read();
            load.step(&mut random)
        };
        if let Err(e) = step {
            desk.failed.lock().get_or_insert(e.to_string());
            return;
        }
        desk.steps.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_micros(random.below(4000) as u64));
    }
}

fn run(args: &Args) -> Outcome<usize> {
    let loads = make_loads(args)?;
    let records: Vec<(Arc<dyn Record>, bool)> =
        loads.iter().flat_map(|load| load.records().into_iter().map(|r| (r, load.rarely()))).collect();
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    let desk = Desk { stop, steps, gate: RwLock::new(()), failed: Mutex::new(None) };
    std::thread::scope(|scope| {
        for (number, load) in loads.into_iter().enumerate() {
            let (desk, seed) = (&desk, args.seed << 16 | number as u64);
            scope.spawn(move || work(load, desk, seed));
        }
        let mut judge = Judge { args, wrong: 0, compared: 0, cuts: 0, in_full: 0 };
        let outcome = judge.run(&records, &desk);
        desk.stop.store(true, Ordering::Relaxed);
        outcome?;
        let Judge { wrong, compared, cuts, in_full, .. } = judge;
        let steps = desk.steps.load(Ordering::Relaxed);
        let seldom = records.iter().any(|(_, rarely)| *rarely);
        let seldom = if seldom { format!(" ({in_full} with PostgreSQL)") } else { String::new() };
        println!("{cuts} cuts{seldom}, {wrong} with losses; {steps} operations, {compared} things compared");
        Ok(wrong)
    })
}

struct Judge<'a> {
    args: &'a Args,
    wrong: usize,
    compared: u64,
    cuts: usize,
    /// Those in which what is looked at rarely was looked at.
    in_full: usize,
}

type Expected = BTreeMap<usize, Box<dyn Expectation>>;

/// A clone that was not looked at yet.
struct Cut {
    image: PathBuf,
    expected: Expected,
    in_full: bool,
}

impl Judge<'_> {
    fn run(&mut self, records: &[(Arc<dyn Record>, bool)], desk: &Desk) -> Outcome<()> {
        let mut random = Random::new(self.args.seed);
        let begin = Instant::now();
        while self.cuts < self.args.cuts && !(self.args.until_loss && self.wrong > 0) {
            let count = self.args.batch.clamp(1, self.args.cuts - self.cuts);
            let cuts =
                (0..count).map(|n| self.cut(n, records, &mut random)).collect::<Outcome<Vec<Cut>>>()?;
            let _rest = desk.gate.write();
            if let Some(why) = &*desk.failed.lock() {
                return Err(format!("the load cannot go on: {why}").into());
            }
            for cut in cuts {
                let again = random.once_in(AGAIN).then(|| Duration::from_millis(random.below(400) as u64));
                let before = self.cuts;
                self.look_at(&cut.image, &cut.expected, again)?;
                self.in_full += if cut.in_full { self.cuts - before } else { 0 };
            }
            let (cuts, wrong, seconds) = (self.cuts, self.wrong, begin.elapsed().as_secs());
            eprintln!("{cuts} cuts, {wrong} with losses, {seconds} s");
        }
        Ok(())
    }

    /// Clones the image under load, at a random moment.
    fn cut(&self, number: usize, records: &[(Arc<dyn Record>, bool)], random: &mut Random) -> Outcome<Cut> {
        sleep(Duration::from_millis(random.below(self.args.between) as u64));
        let rare = random.once_in(RARELY);
        let image = self.args.image.with_extension(format!("cut{}-{number}", self.cuts));
        for (record, _) in records {
            record.freeze();
        }
        let cut = clone(&self.args.image, &image);
        let thawed = records.iter().map(|(record, rarely)| (record.thaw(), *rarely));
        let wanted = thawed.enumerate().filter(|(_, (_, rarely))| rare || !rarely);
        let expected = wanted.map(|(number, (expectation, _))| (number, expectation)).collect();
        cut?;
        Ok(Cut { image, expected, in_full: rare })
    }

    /// Recovers the clone and compares; cuts it again meanwhile where that is asked for.
    fn look_at(&mut self, image: &Path, expected: &Expected, again: Option<Duration>) -> Outcome<()> {
        let second = image.with_extension(format!("cut{}-again", self.cuts));
        self.cuts += 1;
        let problems = std::thread::scope(|scope| -> Outcome<Vec<String>> {
            let cutter = again.map(|wait| {
                let second = &second;
                scope.spawn(move || {
                    sleep(wait);
                    clone(image, second)
                })
            });
            let problems = self.recover_and_compare(image, expected);
            if let Some(cutter) = cutter {
                cutter.join().map_err(|_| "the cutter failed")??;
            }
            problems
        })?;
        self.tell(image, &problems)?;
        if again.is_some() && self.cuts < self.args.cuts {
            self.cuts += 1;
            let problems = self.recover_and_compare(&second, expected)?;
            self.tell(&second, &problems)?;
        } else if again.is_some() {
            std::fs::remove_file(&second)?;
        }
        Ok(())
    }

    fn recover_and_compare(&mut self, image: &Path, expected: &Expected) -> Outcome<Vec<String>> {
        let mut problems = Vec::new();
        clone(image, &untouched(image))?;
        match self.stage("recover", image) {
            Ok(root) => {
                for expectation in expected.values() {
                    match expectation.check(Path::new(root.trim_end())) {
                        Ok(compared) => self.compared += compared,
                        Err(e) => problems.push(e.to_string()),
                    }
                }
            }
            Err(e) => problems.push(e.to_string()),
        }
        if let Err(e) = self.stage("release", image) {
            problems.push(e.to_string());
        }
        Ok(problems)
    }

    /// Reports a cut and takes its clone away; what was wrong is kept as it was before its recovery.
    fn tell(&mut self, image: &Path, problems: &[String]) -> Outcome<()> {
        for problem in problems.iter().filter(|_| self.args.keep > 0) {
            let problem: String = problem.chars().take(TOLD_MAX).collect();
            eprintln!("{}: {problem}", image.display());
        }
        self.wrong += usize::from(!problems.is_empty());
        if problems.is_empty() || self.wrong > self.args.keep {
            std::fs::remove_file(untouched(image))?;
        }
        Ok(std::fs::remove_file(image)?)
    }

    fn stage(&self, what: &str, image: &Path) -> Outcome<String> {
        let output = Command::new(&self.args.stage).arg(what).arg(image).stdin(Stdio::null()).output()?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(out);
        }
        Err(format!("{what}: {out}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// Where a clone is kept as it was before its recovery.
fn untouched(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".untouched");
    name.into()
}

/// What the image is at one moment between the call and its return.
fn clone(image: &Path, to: &Path) -> Outcome<()> {
    Ok(rustix::fs::ioctl_ficlone(File::create(to)?, File::open(image)?)?)
}
