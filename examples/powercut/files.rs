//! Logs that grow by appends and begin anew, and files that are replaced whole by a rename.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bytes::{Random, text};
use crate::ledger::{Ledger, Record, State};
use crate::{Load, Outcome};

const PAGE: usize = 4096;
/// A log begins anew beyond this.
const LOG_MAX: u64 = 700_000;
/// Longest content of a replaced file.
const CONTENT_MAX: usize = 60_000;

/// Which part of `found`, which begins at `at`, is neither `wanted` nor zeros (where they may be), page by page.
fn differs(found: &[u8], wanted: &[u8], zeros: impl Fn(usize) -> bool) -> Option<usize> {
    let pages = found.chunks(PAGE).zip(wanted.chunks(PAGE)).enumerate();
    let wrong = |(page, (found, wanted)): &(usize, (&[u8], &[u8]))| {
        found
            .iter()
            .zip(*wanted)
            .enumerate()
            .any(|(at, (found, wanted))| found != wanted && !(*found == 0 && zeros(page * PAGE + at)))
    };
    pages.into_iter().find(wrong).map(|(page, _)| page * PAGE)
}

/// A log: how often it began anew, and its length.
#[derive(Clone)]
pub struct Log {
    name: PathBuf,
    id: u64,
    life: u64,
    len: u64,
}

#[derive(Clone)]
pub enum LogOp {
    Append(usize),
    BeginAnew,
}

impl Log {
    fn text(&self, life: u64, at: u64, len: usize) -> Vec<u8> {
        text(self.id << 32 | life, at, len)
    }
}

impl State for Log {
    type Op = LogOp;

    fn apply(&mut self, op: &LogOp) {
        match op {
            LogOp::Append(len) => self.len += *len as u64,
            LogOp::BeginAnew => (self.life, self.len) = (self.life + 1, 0),
        }
    }

    fn check(&self, later: &[LogOp], root: &Path) -> Outcome<u64> {
        let name = self.name.display();
        let found = fs::read(root.join(&self.name)).map_err(|e| format!("{name}: {e}"))?;
        let mut states = vec![self.clone()];
        for op in later {
            let mut next = states.last().expect("at least one").clone();
            next.apply(op);
            states.push(next);
        }
        let (least, most) = (states.iter().map(|s| s.len).min(), states.iter().map(|s| s.len).max());
        let len = Some(found.len() as u64);
        if len < least || len > most {
            return Err(format!("{name} has {len:?} bytes, not {least:?} to {most:?}").into());
        }
        let last = states.last().expect("at least one").life;
        for life in self.life..=last {
            // What was never synced may be missing.
            let synced = if life == self.life && last == self.life { self.len } else { 0 };
            let wanted = self.text(life, 0, found.len());
            if differs(&found, &wanted, |at| at as u64 >= synced).is_none() {
                return Ok(found.len() as u64);
            }
        }
        Err(format!("{name} ({} bytes, {} of them synced) is none of its lives", found.len(), self.len)
            .into())
    }
}

pub struct LogLoad {
    path: PathBuf,
    file: File,
    ledger: Arc<Mutex<Ledger<Log>>>,
}

impl LogLoad {
    pub fn new(root: &Path, id: u64) -> Outcome<Self> {
        let name = PathBuf::from(format!("log-{id}"));
        let path = root.join(&name);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.sync_all()?;
        File::open(root)?.sync_all()?;
        let ledger = Arc::new(Mutex::new(Ledger::new(Log { name, id, life: 0, len: 0 })));
        Ok(Self { path, file, ledger })
    }
}

impl Load for LogLoad {
    fn step(&mut self, random: &mut Random) -> Outcome<()> {
        let state = self.ledger.lock().current();
        match random.below(12) {
            0..=2 => {
                let mark = self.ledger.lock().mark();
                if random.once_in(3) { self.file.sync_all() } else { self.file.sync_data() }?;
                self.ledger.lock().synced(mark);
            }
            3 => self.file = OpenOptions::new().append(true).open(&self.path)?,
            _ if state.len > LOG_MAX || random.once_in(300) => {
                self.ledger.lock().begin(LogOp::BeginAnew);
                if random.once_in(2) {
                    self.file.set_len(0)?;
                } else {
                    self.file = OpenOptions::new().write(true).truncate(true).open(&self.path)?;
                    self.file = OpenOptions::new().append(true).open(&self.path)?;
                }
            }
            _ => {
                let longest = if random.once_in(5) { 30_000 } else { 700 };
                let len = 1 + random.below(longest);
                self.ledger.lock().begin(LogOp::Append(len));
                self.file.write_all(&state.text(state.life, state.len, len))?;
            }
        }
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        vec![self.ledger.clone()]
    }
}

/// A file that is replaced whole: which version of it stands there.
#[derive(Clone)]
pub struct Whole {
    name: PathBuf,
    id: u64,
    version: u64,
}

impl Whole {
    fn content(&self, version: u64) -> Vec<u8> {
        let mut random = Random::new(self.id << 32 | version);
        let len = if random.once_in(3) { random.below(CONTENT_MAX) } else { random.below(4000) };
        text(self.id << 40 | version, 0, len.max(1))
    }
}

impl State for Whole {
    type Op = ();

    fn apply(&mut self, (): &()) {
        self.version += 1;
    }

    fn check(&self, later: &[()], root: &Path) -> Outcome<u64> {
        let name = self.name.display();
        let found = fs::read(root.join(&self.name)).map_err(|e| format!("{name}: {e}"))?;
        let mut versions = self.version..=self.version + later.len() as u64;
        if versions.any(|version| found == self.content(version)) {
            return Ok(1);
        }
        let (len, from, to) = (found.len(), self.version, self.version + later.len() as u64);
        Err(format!("{name} ({len} bytes) is none of its versions {from} to {to}: neither old nor new")
            .into())
    }
}

pub struct ReplaceLoad {
    root: PathBuf,
    temporary: PathBuf,
    ledgers: Vec<Arc<Mutex<Ledger<Whole>>>>,
}

impl ReplaceLoad {
    /// `names` are replaced; the temporary that takes their place is `temporary`.
    pub fn new(root: &Path, names: &[String], temporary: &str, id: u64) -> Outcome<Self> {
        let mut ledgers = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let state = Whole { name: name.into(), id: id + number as u64, version: 0 };
            let mut file = File::create(root.join(name))?;
            file.write_all(&state.content(0))?;
            file.sync_all()?;
            ledgers.push(Arc::new(Mutex::new(Ledger::new(state))));
        }
        File::open(root)?.sync_all()?;
        Ok(Self { root: root.to_owned(), temporary: root.join(temporary), ledgers })
    }
}

impl Load for ReplaceLoad {
    fn step(&mut self, random: &mut Random) -> Outcome<()> {
        let ledger = &self.ledgers[random.below(self.ledgers.len())];
        let state = ledger.lock().current();
        let mut file = File::create(&self.temporary)?;
        file.write_all(&state.content(state.version + 1))?;
        if random.once_in(2) { file.sync_all() } else { file.sync_data() }?;
        if random.once_in(2) {
            drop(file);
        }
        ledger.lock().begin(());
        fs::rename(&self.temporary, self.root.join(&state.name))?;
        if random.once_in(3) {
            let marks: Vec<usize> = self.ledgers.iter().map(|ledger| ledger.lock().mark()).collect();
            File::open(&self.root)?.sync_all()?;
            self.ledgers.iter().zip(marks).for_each(|(ledger, mark)| ledger.lock().synced(mark));
        }
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        self.ledgers.iter().map(|ledger| Arc::clone(ledger) as Arc<dyn Record>).collect()
    }
}
