//! What can go wrong in the tree.

use rustix::io::Errno;

use super::KeyError;

/// An error of a tree operation. `fuse::errno` maps it to the caller's errno, in one table.
#[derive(Debug)]
pub enum FsError {
    /// The lower filesystem, or a POSIX rule, says no.
    Os(Errno),
    /// The file's key is not to be had.
    Key(KeyError),
    /// The ciphertext is damaged or was tampered with: which part, and why. EIO, and logged once.
    Corrupt(String),
}

impl From<Errno> for FsError {
    fn from(e: Errno) -> Self {
        Self::Os(e)
    }
}

impl From<KeyError> for FsError {
    fn from(e: KeyError) -> Self {
        Self::Key(e)
    }
}

impl std::fmt::Display for FsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Os(e) => write!(f, "{e}"),
            Self::Key(e) => write!(f, "{e}"),
            Self::Corrupt(why) => write!(f, "damaged ciphertext: {why}"),
        }
    }
}

impl std::error::Error for FsError {}
