//! What was done to one thing and what of it is known to be durable. Kept by the loads, asked at each cut.
//!
//! The cut itself takes a moment. What was synced before it must be there, what was begun after it cannot be: so what
//! is durable is noted before the cut ([`Record::freeze`]) and what was begun after it ([`Record::thaw`]).

use std::collections::VecDeque;
use std::path::Path;

use parking_lot::Mutex;

use crate::Outcome;

/// A thing under test: a file, a directory, a table.
pub trait State: Clone + Send + 'static {
    /// A change of it.
    type Op: Clone + Send;

    /// The state after `op`.
    fn apply(&mut self, op: &Self::Op);

    /// Holds what is found below `root` against what may be there: `self` was durable, each of `later` may have come
    /// about, in part. Gives the number of things compared.
    fn check(&self, later: &[Self::Op], root: &Path) -> Outcome<u64>;
}

/// The changes of one thing, in the order in which they were begun. One thread begins them.
pub struct Ledger<S: State> {
    base: S,
    ops: VecDeque<S::Op>,
    /// Number of the first of `ops`.
    first: usize,
    /// Changes before this one are durable.
    durable: usize,
    /// The same when the cut began.
    frozen: Option<usize>,
}

impl<S: State> Ledger<S> {
    /// `base` is durable.
    pub fn new(base: S) -> Self {
        Self { base, ops: VecDeque::new(), first: 0, durable: 0, frozen: None }
    }

    /// A change is about to be made.
    pub fn begin(&mut self, op: S::Op) {
        self.ops.push_back(op);
    }

    /// The change that was begun last is not to be had here, and was not made.
    pub fn take_back(&mut self) {
        self.ops.pop_back();
    }

    /// A sync is about to begin, which is to cover every change begun so far: all of them have ended. Its end is told
    /// with the number that this gives.
    pub fn mark(&self) -> usize {
        self.first + self.ops.len()
    }

    /// The sync that began at `mark` has succeeded.
    pub fn synced(&mut self, mark: usize) {
        self.durable = self.durable.max(mark);
        while self.frozen.is_none() && self.first < self.durable {
            let Some(op) = self.ops.pop_front() else { break };
            self.base.apply(&op);
            self.first += 1;
        }
    }

    /// The change before `mark` is durable; what came before it is so only where that is known already.
    pub fn synced_alone(&mut self, mark: usize) {
        if self.durable + 1 == mark {
            self.synced(mark);
        }
    }

    /// The state with every change.
    pub fn current(&self) -> S {
        let mut state = self.base.clone();
        self.ops.iter().for_each(|op| state.apply(op));
        state
    }
}

/// A ledger, whatever of.
pub trait Record: Send + Sync {
    /// Before the cut.
    fn freeze(&self);
    /// After the cut.
    fn thaw(&self) -> Box<dyn Expectation>;
}

/// What may be found after the cut.
pub trait Expectation: Send + Sync {
    /// See [`State::check`].
    fn check(&self, root: &Path) -> Outcome<u64>;
}

struct Expected<S: State> {
    floor: S,
    later: Vec<S::Op>,
}

impl<S: State + Sync> Expectation for Expected<S>
where
    S::Op: Sync,
{
    fn check(&self, root: &Path) -> Outcome<u64> {
        self.floor.check(&self.later, root)
    }
}

impl<S: State + Sync> Record for Mutex<Ledger<S>>
where
    S::Op: Sync,
{
    fn freeze(&self) {
        let mut ledger = self.lock();
        ledger.frozen = Some(ledger.durable);
    }

    fn thaw(&self) -> Box<dyn Expectation> {
        let mut ledger = self.lock();
        let durable = ledger.frozen.take().unwrap_or(ledger.first) - ledger.first;
        let mut floor = ledger.base.clone();
        ledger.ops.iter().take(durable).for_each(|op| floor.apply(op));
        Box::new(Expected { floor, later: ledger.ops.iter().skip(durable).cloned().collect() })
    }
}
