//! Stops between two calls on the lower filesystem, for tests: from the n-th change on nothing happens any more, as if
//! the process had been killed there, or that one change fails.
//!
//! Every change of a lower name or file asks [`admit`] first. For this thread alone.
#![cfg(test)]

use std::cell::{Cell, RefCell};

use rustix::io::Errno;

/// What the n-th change comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Neither it nor a later one happens.
    Kill,
    /// It fails; what comes after it does not.
    Fail(Errno),
}

thread_local! {
    static LEFT: Cell<Option<(u32, Stop)>> = const { Cell::new(None) };
    static SEEN: RefCell<Option<Vec<&'static str>>> = const { RefCell::new(None) };
}

/// From here on the lower filesystem passes for one that stores names in no order, and the changes are written down.
pub fn watch() {
    SEEN.set(Some(Vec::new()));
}

/// What was written down.
pub fn seen() -> Vec<&'static str> {
    SEEN.take().unwrap_or_default()
}

/// Whether somebody watches.
pub fn watched() -> bool {
    SEEN.with_borrow(Option::is_some)
}

/// The stop comes after `changes` more of them.
pub fn after(changes: u32, stop: Stop) {
    LEFT.set(Some((changes, stop)));
}

/// No stop from here on; tells whether it had come.
pub fn clear() -> bool {
    !matches!(LEFT.take(), Some((1.., _)))
}

/// Whether the change `what` happens.
pub fn admit(what: &'static str) -> Result<(), Errno> {
    SEEN.with_borrow_mut(|seen| seen.as_mut().map(|seen| seen.push(what)));
    match LEFT.get() {
        None => Ok(()),
        Some((0, Stop::Kill)) => Err(Errno::IO),
        Some((0, Stop::Fail(e))) => {
            LEFT.set(None);
            Err(e)
        }
        Some((left, stop)) => {
            LEFT.set(Some((left - 1, stop)));
            Ok(())
        }
    }
}
