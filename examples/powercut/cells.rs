//! Files of numbered cells: overwritten, extended, cut and punched, with and without syncs, through descriptors of
//! every kind. After a cut each cell holds a version between the last synced and the last begun.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::bytes::{CELL, Random, cell, version_of};
use crate::ledger::{Ledger, Record, State};
use crate::{Load, Outcome};

/// Longest write, in cells.
const WRITE_MAX: usize = 80;

/// Which cells a file has, in which versions; 0 is a hole.
#[derive(Clone)]
pub struct Cells {
    name: PathBuf,
    id: u32,
    versions: Vec<u32>,
}

#[derive(Clone)]
pub enum Op {
    Write { at: usize, count: usize, version: u32 },
    Resize(usize),
    Punch { at: usize, count: usize },
}

impl State for Cells {
    type Op = Op;

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { at, count, version } => {
                self.versions.resize(self.versions.len().max(at + count), 0);
                self.versions[at..at + count].fill(version);
            }
            Op::Resize(len) => self.versions.resize(len, 0),
            Op::Punch { at, count } => {
                let len = self.versions.len();
                self.versions[at.min(len)..(at + count).min(len)].fill(0);
            }
        }
    }

    fn check(&self, later: &[Op], root: &Path) -> Outcome<u64> {
        let found =
            std::fs::read(root.join(&self.name)).map_err(|e| format!("{}: {e}", self.name.display()))?;
        let mut allowed: Vec<Vec<u32>> = self.versions.iter().map(|version| vec![*version]).collect();
        let (mut state, mut least, mut most) = (self.clone(), self.versions.len(), self.versions.len());
        for op in later {
            let before = state.versions.clone();
            state.apply(op);
            allowed.resize(allowed.len().max(state.versions.len()), vec![0]);
            for (number, may_be) in allowed.iter_mut().enumerate() {
                let (old, new) = (before.get(number), state.versions.get(number));
                if old != new {
                    may_be.push(new.copied().unwrap_or(0));
                }
            }
            (least, most) = (least.min(state.versions.len()), most.max(state.versions.len()));
        }
        if found.len() < least * CELL || found.len() > most * CELL {
            let name = self.name.display();
            return Err(
                format!("{name} has {} bytes, not {} to {}", found.len(), least * CELL, most * CELL).into()
            );
        }
        for (number, bytes) in found.chunks(CELL).enumerate() {
            let version = version_of(bytes, self.id, number as u32)?;
            if !allowed[number].contains(&version) {
                let (name, may_be) = (self.name.display(), &allowed[number]);
                return Err(
                    format!("cell {number} of {name} is version {version}, none of {may_be:?}").into()
                );
            }
        }
        Ok(found.len().div_ceil(CELL) as u64)
    }
}

/// How one file is used.
#[derive(Clone, Copy)]
pub struct Habit {
    /// Most cells.
    pub cells: usize,
    /// One step of so many is a sync.
    pub sync: usize,
    /// One step of so many cuts, extends or punches; 0 for none.
    pub reshape: usize,
    /// Somebody else syncs the same file all the time.
    pub shared: bool,
}

/// One file and its user.
pub struct CellLoad {
    root: PathBuf,
    name: PathBuf,
    id: u32,
    habit: Habit,
    ledger: Arc<Mutex<Ledger<Cells>>>,
    file: Option<(File, Kind)>,
    version: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Each write is durable when it returns.
    Dsync,
    /// Past the page cache.
    Direct,
}

impl CellLoad {
    pub fn new(root: &Path, id: u32, habit: Habit) -> Outcome<Self> {
        let name = PathBuf::from(format!("cells-{id}"));
        File::create(root.join(&name))?.sync_all()?;
        File::open(root)?.sync_all()?;
        let state = Cells { name: name.clone(), id, versions: Vec::new() };
        let ledger = Arc::new(Mutex::new(Ledger::new(state)));
        Ok(Self { root: root.to_owned(), name, id, habit, ledger, file: None, version: 0 })
    }

    fn open(&mut self, random: &mut Random) -> Outcome<(&File, Kind)> {
        if self.file.is_none() {
            let kind = match random.below(8) {
                0 => Kind::Dsync,
                1 => Kind::Direct,
                _ => Kind::Plain,
            };
            let flags = match kind {
                Kind::Plain => 0,
                Kind::Dsync => libc::O_DSYNC,
                Kind::Direct => libc::O_DIRECT,
            };
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).custom_flags(flags);
            // Where there is no direct access, it is not what is asked about.
            let file = options.open(self.root.join(&self.name));
            let file =
                file.or_else(|_| OpenOptions::new().read(true).write(true).open(self.root.join(&self.name)))?;
            if kind == Kind::Dsync {
                let mark = self.ledger.lock().mark();
                file.sync_data()?;
                self.ledger.lock().synced(mark);
            }
            self.file = Some((file, kind));
        }
        let (file, kind) = self.file.as_ref().expect("just opened");
        Ok((file, *kind))
    }

    fn write(&mut self, random: &mut Random) -> Outcome<()> {
        let len = self.ledger.lock().current().versions.len();
        let longest = if random.once_in(4) { WRITE_MAX } else { 9 };
        let count = 1 + random.below(longest);
        let last = self.habit.cells.saturating_sub(count);
        let at = if random.once_in(6) { len } else { random.below(len.max(1) + len / 16) }.min(last);
        let (at, count) = if self.file.as_ref().is_some_and(|(_, kind)| *kind == Kind::Direct) {
            (at / 8 * 8, count.next_multiple_of(8))
        } else {
            (at, count)
        };
        self.open(random)?;
        self.version += 1;
        let (id, version) = (self.id, self.version);
        let mut data = Aligned::new(count * CELL);
        for (number, place) in data.bytes().chunks_mut(CELL).enumerate() {
            place.copy_from_slice(&cell(id, (at + number) as u32, version));
        }
        let mark = {
            let mut ledger = self.ledger.lock();
            ledger.begin(Op::Write { at, count, version });
            ledger.mark()
        };
        let (file, kind) = self.open(random)?;
        file.write_all_at(data.bytes(), (at * CELL) as u64)?;
        if kind == Kind::Dsync {
            self.ledger.lock().synced_alone(mark);
        }
        Ok(())
    }

    fn reshape(&mut self, random: &mut Random) -> Outcome<()> {
        let len = self.ledger.lock().current().versions.len();
        let cells = self.habit.cells;
        let at = random.below(len + 1);
        let op = match random.below(4) {
            0 => Op::Resize(at),
            1 => Op::Resize((len + random.below(WRITE_MAX)).min(cells)),
            _ => Op::Punch { at, count: 1 + random.below(WRITE_MAX) },
        };
        self.open(random)?;
        self.ledger.lock().begin(op.clone());
        let (file, _) = self.open(random)?;
        match op {
            Op::Resize(len) => file.set_len((len * CELL) as u64)?,
            Op::Punch { at, count } => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(file, how, (at * CELL) as u64, (count * CELL) as u64) {
                    Err(Errno::OPNOTSUPP) => self.ledger.lock().take_back(),
                    done => done?,
                }
            }
            Op::Write { .. } => {}
        }
        Ok(())
    }

    fn sync(&mut self, random: &mut Random) -> Outcome<()> {
        self.open(random)?;
        let mark = self.ledger.lock().mark();
        let data_only = random.once_in(2);
        let (file, _) = self.open(random)?;
        if data_only { file.sync_data() } else { file.sync_all() }?;
        self.ledger.lock().synced(mark);
        Ok(())
    }
}

impl Load for CellLoad {
    fn step(&mut self, random: &mut Random) -> Outcome<()> {
        let Habit { sync, reshape, .. } = self.habit;
        if random.once_in(sync) {
            self.sync(random)
        } else if reshape > 0 && random.once_in(reshape) {
            self.reshape(random)
        } else if random.once_in(25) {
            self.file = None;
            Ok(())
        } else {
            self.write(random)
        }
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        vec![self.ledger.clone()]
    }

    fn helper(&self) -> Option<Box<dyn Load>> {
        let file = File::open(self.root.join(&self.name)).ok()?;
        self.habit
            .shared
            .then(|| Box::new(Syncer { file, ledger: Arc::clone(&self.ledger) }) as Box<dyn Load>)
    }
}

/// Syncs a file that somebody else writes.
struct Syncer {
    file: File,
    ledger: Arc<Mutex<Ledger<Cells>>>,
}

impl Load for Syncer {
    fn step(&mut self, _random: &mut Random) -> Outcome<()> {
        // The newest change may be under way still.
        let mark = self.ledger.lock().mark().saturating_sub(1);
        self.file.sync_data()?;
        self.ledger.lock().synced(mark);
        Ok(())
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        Vec::new()
    }
}

/// Bytes that begin on a page, as direct access wants them.
struct Aligned {
    held: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let held = vec![0; len + 4096];
        let start = held.as_ptr().align_offset(4096);
        Self { held, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.held[self.start..self.start + self.len]
    }
}
