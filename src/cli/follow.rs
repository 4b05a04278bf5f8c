//! Following what a mount does for a command: how far it is, its end, and an early end by a signal.
//!
//! Called by `kmsfs snapshot create` and `kmsfs reencrypt`. The work is the mount's: a command that is killed ends nothing.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control::{self, Answer, Request};
use super::error::CliError;
use crate::volume::Progress;

/// How often a mount is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// What a mount does for a command.
pub struct Followed<'a> {
    /// Its mount point.
    pub mountpoint: &'a Path,
    /// What it is, for people.
    pub what: &'a str,
    /// Asks how far it is.
    pub state: Request,
    /// Ends it early.
    pub cancel: Request,
}

/// How far it is: files, and what came of it once it has ended.
pub type Far<R> = (u64, Option<Result<R, String>>);

impl Followed<'_> {
    /// Waits for the end of the work, which has begun. `read` gives what an answer of the right kind says.
    pub fn to_the_end<R>(
        &self,
        progress: &Progress,
        read: impl Fn(Answer) -> Option<Far<R>>,
    ) -> Result<R, CliError> {
        loop {
            let answer = control::ask(self.mountpoint, &self.state).map_err(|e| self.lost(&e))?;
            let Some((files, ended)) = read(answer) else {
                return Err(CliError::failed("the mount gave an answer to another question"));
            };
            progress.done.store(files, Ordering::Relaxed);
            if let Some(outcome) = ended {
                return outcome.map_err(CliError::failed);
            }
            if progress.stop.load(Ordering::Relaxed) {
                control::ask(self.mountpoint, &self.cancel)?;
            }
            std::thread::sleep(POLL);
        }
    }

    fn lost(&self, e: &CliError) -> CliError {
        CliError::failed(format!(
            "the mount at {} ended before {} was done, or answers no more ({e}); mount it again, and give the same command",
            self.mountpoint.display(),
            self.what
        ))
    }
}
