//! The way through a tree that is re-encrypted: every directory below the one named, one level at a time.
//!
//! Called by the run. Must never go deeper on its own stack with each level of directories: it runs on a thread of the
//! mount, which would die with it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::vec::IntoIter;

use super::{BATCH_FILES, Ended, Work};
use crate::tree::{DirStream, FsError, Kind, Listed, ListedDir};

/// Levels whose listing stays open; above them its position is kept.
const OPEN_LEVELS: usize = 64;

/// A directory under way.
struct Level {
    id: u64,
    stream: Option<DirStream>,
    /// Where the listing goes on after `found`.
    position: u64,
    found: IntoIter<Listed>,
}

impl Level {
    fn new(id: u64) -> Self {
        Self { id, stream: None, position: 0, found: Vec::new().into_iter() }
    }
}

impl Work<'_> {
    /// Everything below the directory `id`, which the caller holds.
    pub(super) fn directory(&mut self, id: u64, mut path: PathBuf) -> Result<(), Ended> {
        let mut levels = vec![Level::new(id)];
        let ended = self.walk(&mut levels, &mut path);
        self.held.extend(levels.iter().skip(1).map(|level| level.id));
        ended
    }

    fn walk(&mut self, levels: &mut Vec<Level>, path: &mut PathBuf) -> Result<(), Ended> {
        while let Some(level) = levels.last_mut() {
            self.check_stop()?;
            match self.next(level) {
                Ok(Some((entry, dir))) => {
                    if let Some(below) = self.enter(&entry, &dir, path)? {
                        levels.push(Level::new(below));
                        close_far_above(levels);
                    }
                }
                end => {
                    if let Err(e) = end {
                        self.fail(path, &e.to_string());
                    }
                    path.pop();
                    self.leave(levels);
                }
            }
        }
        Ok(())
    }

    fn next(&self, level: &mut Level) -> Result<Option<(Listed, ListedDir)>, FsError> {
        let stream = match &mut level.stream {
            Some(stream) => stream,
            closed => closed.insert(self.tree.open_stream(level.id)?),
        };
        if level.found.len() == 0 {
            let mut found = Vec::with_capacity(BATCH_FILES);
            self.tree.list(stream, level.position, |entry| {
                let taken = found.len() < BATCH_FILES;
                if taken {
                    found.push(entry.clone());
                }
                taken
            })?;
            level.position = stream.position();
            level.found = found.into_iter();
        }
        Ok(level.found.next().map(|entry| (entry, stream.listed_dir())))
    }

    /// Takes up a file, or gives the directory that comes next, to which `path` leads then.
    fn enter(&mut self, entry: &Listed, dir: &ListedDir, path: &mut PathBuf) -> Result<Option<u64>, Ended> {
        if !matches!(entry.kind, Kind::Dir | Kind::File) {
            return Ok(None);
        }
        let Some((attr, _)) = self.tree.look_up_listed(dir, entry) else { return Ok(None) };
        let name = OsStr::from_bytes(&entry.name);
        if attr.kind == Kind::Dir {
            path.push(name);
            return Ok(Some(attr.node_id));
        }
        self.file(attr.node_id, path.join(name))?;
        Ok(None)
    }

    fn leave(&mut self, levels: &mut Vec<Level>) {
        let left = levels.pop();
        if levels.is_empty() {
            return;
        }
        // Files of the batch are found through it.
        self.held.extend(left.map(|level| level.id));
        if self.batch.is_empty() {
            self.let_go();
        }
    }
}

/// A listing that has met damage tells it at its end, and stays.
fn close_far_above(levels: &mut [Level]) {
    if let Some(above) = levels.len().checked_sub(OPEN_LEVELS + 1) {
        let stream = &mut levels[above].stream;
        if stream.as_ref().is_some_and(|stream| !stream.met_damage()) {
            *stream = None;
        }
    }
}
