//! Waiting for keys: under no lock, and by fewer threads than serve the mount.
//!
//! An operation that finds a key absent gives back its locks before the key is fetched, and is then done again. While
//! too many wait already it ends with [`KeyError::Absent`], and its caller does the waiting elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::changes::Passage;
use super::namespace::Tree;
use super::{FsError, KeyError, KeyNeed, KeyUser};

/// Operations that wait for keys on the threads that serve the mount, of which there are more than that.
pub const KEY_WAITS: usize = 1;
/// How often an operation is done again for a key; others may take the fresh ones, or the cache may be too small.
const TRIES: usize = 16;

/// How many wait.
#[derive(Default)]
pub(super) struct Waits(AtomicUsize);

struct Turn<'a>(&'a AtomicUsize);

impl Waits {
    fn turn(&self) -> Option<Turn<'_>> {
        let more = |waiting| (waiting < KEY_WAITS).then_some(waiting + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Turn(&self.0))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tree {
    /// Runs `action`, which holds no lock when it ends, and fetches the keys that it finds absent: in the name of the user
    /// that the need names, or of `user`.
    pub(super) fn with_keys<R>(
        &self,
        user: KeyUser,
        action: impl FnMut() -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        retry(action, |need, named| {
            let user = if named == KeyUser::Mount { user } else { named };
            match self.waits.turn() {
                Some(_turn) => Ok(self.files.keys.obtain(&need, user)?),
                None => Err(FsError::Key(KeyError::Absent(need, user))),
            }
        })
    }

    /// The same, for a caller that may wait however many do.
    pub fn with_keys_patiently<R>(&self, action: impl FnMut() -> Result<R, FsError>) -> Result<R, FsError> {
        retry(action, |need, user| Ok(self.files.keys.obtain(&need, user)?))
    }
}

fn retry<R>(
    mut action: impl FnMut() -> Result<R, FsError>,
    mut obtain: impl FnMut(Box<KeyNeed>, KeyUser) -> Result<(), FsError>,
) -> Result<R, FsError> {
    for _ in 0..TRIES {
        match action() {
            Err(FsError::Key(KeyError::Absent(need, user))) => {
                Passage::check_none();
                obtain(need, user)?;
            }
            other => return other,
        }
    }
    Err(FsError::Key(KeyError::Unavailable("keys are dropped before they can be used".into())))
}
