//! A storm of names: directories and files are made, renamed, put over one another, exchanged and removed, under short
//! names and names of 255 bytes. Each tells who it is, so that after a cut it is found where it may be, once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::bytes::{Random, text};
use crate::ledger::{Ledger, Record, State};
use crate::{Load, Outcome};

/// Objects at most.
const OBJECTS_MAX: usize = 40;
/// Bytes of a file's content, of which the first eight are its number.
const CONTENT: usize = 5000;

type Id = u64;

fn content(id: Id) -> Vec<u8> {
    let mut out = (id | 1 << 63).to_le_bytes().to_vec();
    out.extend(text(id, 0, CONTENT));
    out
}

fn long(word: &str) -> String {
    format!("{word:-<255}")
}

/// The name of the file in a directory that tells which one it is.
fn marker() -> String {
    long("marker")
}

/// Where things stand: directory (by number) and name; and what of them is made or removed step by step.
#[derive(Clone)]
pub struct Names {
    bases: Vec<PathBuf>,
    at: BTreeMap<Id, Place>,
    /// An object that moves may be seen at both ends.
    twice: bool,
}

type Place = (usize, String);

#[derive(Clone)]
pub enum Op {
    /// Made, or being made.
    Make(Id, Place),
    Move(Id, Place),
    /// The first takes the place of the second, which is gone.
    Over(Id, Id),
    Exchange(Id, Id),
    /// Gone, or going.
    Remove(Id),
}

impl Names {
    fn path(&self, root: &Path, (base, name): &Place) -> PathBuf {
        root.join(&self.bases[*base]).join(name)
    }
}

/// What is allowed of one object.
#[derive(Default)]
struct May {
    places: Vec<Place>,
    /// It may not be there, or not whole.
    absent: bool,
    /// Who took its place, if anybody did.
    under: Option<Id>,
}

impl Names {
    /// For each object that was ever there, what is allowed.
    fn allowed(&self, later: &[Op]) -> BTreeMap<Id, May> {
        let mut all = BTreeMap::<Id, May>::new();
        for (id, place) in &self.at {
            all.entry(*id).or_default().places.push(place.clone());
        }
        let mut state = self.clone();
        for op in later {
            let victim = if let Op::Over(_, victim) = op { Some(*victim) } else { None };
            let changed: Vec<Id> = match op {
                Op::Make(id, _) | Op::Move(id, _) | Op::Remove(id) => vec![*id],
                Op::Over(id, other) | Op::Exchange(id, other) => vec![*id, *other],
            };
            state.apply(op);
            for id in changed {
                let may = all.entry(id).or_default();
                match state.at.get(&id) {
                    Some(place) => may.places.push(place.clone()),
                    None if victim == Some(id) => {
                        if let Op::Over(by, _) = op {
                            may.under = Some(*by);
                        }
                    }
                    None => may.absent = true,
                }
                may.absent |= matches!(op, Op::Make(..));
            }
        }
        all
    }
}

impl State for Names {
    type Op = Op;

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Make(id, place) | Op::Move(id, place) => {
                self.at.insert(*id, place.clone());
            }
            Op::Over(id, victim) => {
                if let Some(place) = self.at.remove(victim) {
                    self.at.insert(*id, place);
                }
            }
            Op::Exchange(one, other) => {
                if let (Some(first), Some(second)) = (self.at.remove(one), self.at.remove(other)) {
                    self.at.insert(*one, second);
                    self.at.insert(*other, first);
                }
            }
            Op::Remove(id) => {
                self.at.remove(id);
            }
        }
    }

    fn check(&self, later: &[Op], root: &Path) -> Outcome<u64> {
        let all = self.allowed(later);
        let mut found = BTreeMap::<Id, Place>::new();
        let mut nameless = Vec::new();
        for (base, dir) in self.bases.iter().enumerate() {
            let dir = root.join(dir);
            for entry in fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))? {
                let name = entry.map_err(|e| format!("listing {}: {e}", dir.display()))?.file_name();
                let name = name.to_string_lossy().into_owned();
                let place = (base, name);
                let path = self.path(root, &place);
                if self.bases.iter().any(|base| root.join(base).starts_with(&path)) {
                    continue;
                }
                match identify(&path)? {
                    Some(id) => {
                        let other = found.insert(id, place.clone());
                        if let Some(other) = other.filter(|_| !self.twice) {
                            return Err(format!("object {id} is at {place:?} and at {other:?}").into());
                        }
                    }
                    None => nameless.push(place),
                }
            }
        }
        for (id, place) in &found {
            let may = all.get(id).ok_or_else(|| format!("object {id} was removed long ago"))?;
            if !may.places.contains(place) {
                return Err(format!("object {id} is at {place:?}, not at one of {:?}", may.places).into());
            }
        }
        for place in &nameless {
            let unfinished =
                |(id, may): (&Id, &May)| may.absent && may.places.contains(place) && !found.contains_key(id);
            if !all.iter().any(unfinished) {
                return Err(format!("what is at {place:?} has lost its content").into());
            }
        }
        for (id, may) in all.iter().filter(|(id, may)| !may.absent && !found.contains_key(id)) {
            check_replaced(*id, may, &all, &found)?;
        }
        Ok(found.len() as u64)
    }
}

/// Object `id` is not there: somebody must have taken its place, and must not be where he was before.
fn check_replaced(id: Id, may: &May, all: &BTreeMap<Id, May>, found: &BTreeMap<Id, Place>) -> Outcome<()> {
    let lost = || format!("object {id} is lost; it was durable at one of {:?}", may.places);
    let by = may.under.ok_or_else(lost)?;
    let place = may.places.last().ok_or_else(lost)?;
    let winner = all.get(&by).ok_or_else(lost)?;
    let from = winner.places.iter().rposition(|known| known == place);
    match (found.get(&by), from) {
        (Some(now), Some(from)) if winner.places[from..].contains(now) => Ok(()),
        // He has gone in turn.
        (None, _) if winner.absent || winner.under.is_some() => Ok(()),
        (now, _) => Err(format!("object {id} is lost and {by}, which took its place, is at {now:?}").into()),
    }
}

/// Who stands at `path`; `None` where its content is not there yet, or no longer. An error where it is nobody's.
fn identify(path: &Path) -> Outcome<Option<Id>> {
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    let is_dir = fs::symlink_metadata(path).map_err(told)?.is_dir();
    let inner = path.join(marker());
    let found = match fs::read(if is_dir { &inner } else { path }) {
        Err(e) if is_dir && e.kind() == std::io::ErrorKind::NotFound => {
            // Whatever else is listed in it would be a name that does not lead anywhere.
            return match fs::read_dir(path).map_err(told)?.next() {
                None => Ok(None),
                Some(entry) => {
                    Err(format!("{}: unexpected {:?}", path.display(), entry.map_err(told)?).into())
                }
            };
        }
        found => found.map_err(told)?,
    };
    let Some(head) = found.first_chunk::<8>().filter(|head| **head != [0; 8]) else { return Ok(None) };
    let id = u64::from_le_bytes(*head) & !(1 << 63);
    let wanted = content(id);
    if found == wanted {
        return Ok(Some(id));
    }
    let torn = found.len() <= wanted.len() && found.iter().zip(&wanted).all(|(a, b)| a == b || *a == 0);
    if torn { Ok(None) } else { Err(format!("{} holds garbage", path.display()).into()) }
}

/// A place that was never used before.
fn somewhere(random: &mut Random, id: Id) -> Place {
    let word = format!("{id}-{}", random.below(1 << 20));
    (random.below(3), if random.once_in(2) { long(&word) } else { word })
}

pub struct NamesLoad {
    root: PathBuf,
    ledger: Arc<Mutex<Ledger<Names>>>,
    /// Which of the objects are directories.
    dirs: BTreeSet<Id>,
    next: Id,
}

impl NamesLoad {
    pub fn new(root: &Path, twice: bool) -> Outcome<Self> {
        let top = PathBuf::from("names");
        let bases = vec![top.clone(), top.join(long("long")), top.join("deep").join("deeper")];
        for base in &bases {
            fs::create_dir_all(root.join(base))?;
        }
        let ledger =
            Arc::new(Mutex::new(Ledger::new(Names { bases: bases.clone(), at: BTreeMap::new(), twice })));
        for dir in bases.iter().map(PathBuf::as_path).chain([Path::new("names/deep"), Path::new("")]) {
            File::open(root.join(dir))?.sync_all()?;
        }
        Ok(Self { root: root.to_owned(), ledger, dirs: BTreeSet::from([0]), next: 1 })
    }

    fn make(&mut self, state: &Names, random: &mut Random) -> Outcome<()> {
        let id = self.next;
        self.next += 1;
        let place = somewhere(random, id);
        let path = state.path(&self.root, &place);
        self.ledger.lock().begin(Op::Make(id, place));
        let write = |path: &Path| -> Outcome<()> {
            let mut file = File::create_new(path)?;
            file.write_all(&content(id))?;
            Ok(file.sync_all()?)
        };
        if random.once_in(2) {
            fs::create_dir(&path)?;
            write(&path.join(marker()))?;
            File::open(&path)?.sync_all()?;
            self.dirs.insert(id);
        } else {
            write(&path)?;
        }
        // Before that, it may not be there.
        self.sync(state)
    }

    fn sync(&self, state: &Names) -> Outcome<()> {
        let mark = self.ledger.lock().mark();
        for base in &state.bases {
            File::open(self.root.join(base))?.sync_all()?;
        }
        self.ledger.lock().synced(mark);
        Ok(())
    }

    /// Two objects of one kind.
    fn pair(&self, state: &Names, random: &mut Random) -> Option<(Id, Id)> {
        let known: Vec<Id> = state.at.keys().copied().collect();
        let one = *known.get(random.below(known.len()))?;
        let like = |id: &Id| *id != one && self.dirs.contains(id) == self.dirs.contains(&one);
        let others: Vec<Id> = known.into_iter().filter(like).collect();
        others.get(random.below(others.len())).map(|other| (one, *other))
    }

    fn rename(&self, state: &Names, op: Op, from: &Place, to: &Place, flags: RenameFlags) -> Outcome<()> {
        self.ledger.lock().begin(op);
        let (from, to) = (state.path(&self.root, from), state.path(&self.root, to));
        match renameat_with(CWD, from, CWD, to, flags) {
            // A filesystem that does not know these flags.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !flags.is_empty() => {
                self.ledger.lock().take_back();
                Ok(())
            }
            done => Ok(done?),
        }
    }

    fn remove(&self, state: &Names, id: Id) -> Outcome<()> {
        let path = state.path(&self.root, &state.at[&id]);
        self.ledger.lock().begin(Op::Remove(id));
        if self.dirs.contains(&id) {
            fs::remove_file(path.join(marker()))?;
            fs::remove_dir(path)?;
        } else {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

impl Load for NamesLoad {
    fn step(&mut self, random: &mut Random) -> Outcome<()> {
        let state = self.ledger.lock().current();
        let Some((one, other)) = self.pair(&state, random).filter(|_| !random.once_in(4)) else {
            if state.at.len() < OBJECTS_MAX {
                return self.make(&state, random);
            }
            let gone = *state.at.keys().next().expect("many");
            return self.remove(&state, gone);
        };
        match random.below(8) {
            0 => self.remove(&state, one),
            1 => {
                // A directory gives way only when it is empty.
                if self.dirs.contains(&other) {
                    return Ok(());
                }
                self.rename(
                    &state,
                    Op::Over(one, other),
                    &state.at[&one],
                    &state.at[&other],
                    RenameFlags::empty(),
                )
            }
            2 => {
                let (from, to) = (&state.at[&one], &state.at[&other]);
                self.rename(&state, Op::Exchange(one, other), from, to, RenameFlags::EXCHANGE)
            }
            3 => self.sync(&state),
            _ => {
                let to = somewhere(random, one);
                let op = Op::Move(one, to.clone());
                self.rename(&state, op, &state.at[&one], &to, RenameFlags::NOREPLACE)
            }
        }
    }

    fn records(&self) -> Vec<Arc<dyn Record>> {
        vec![self.ledger.clone()]
    }
}
