//! The one table from errors of the tree to what the calling program gets, and the one place where they are logged.

use std::sync::atomic::{AtomicU64, Ordering};

use fuser::Errno;

use crate::logging::RateLimit;
use crate::tree::{FsError, KeyError};

/// Damage and denied keys are for the operator; a program that keeps reading must not fill the log.
static DAMAGE: RateLimit = RateLimit::new();
static KEYS: RateLimit = RateLimit::new();
static DAMAGE_SEEN: AtomicU64 = AtomicU64::new(0);

/// How many requests met damaged ciphertext so far.
pub fn damage_seen() -> u64 {
    DAMAGE_SEEN.load(Ordering::Relaxed)
}

/// The errno of `error`.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Os(e) => Errno::from_i32(e.raw_os_error()),
        FsError::Key(KeyError::Denied(_)) => Errno::EACCES,
        FsError::Key(KeyError::Disabled(_)) => Errno::from_i32(libc::ENOKEY),
        FsError::Key(KeyError::Unavailable(_) | KeyError::Absent(..)) => Errno::EHOSTDOWN,
        FsError::Key(KeyError::Invalid(_)) | FsError::Corrupt(_) => Errno::EIO,
    }
}

/// Logs `error` where an operator should know of it, and gives its errno. `node_id` tells which file.
pub fn report(node_id: u64, error: &FsError) -> Errno {
    let limit = match error {
        FsError::Os(_) => None,
        FsError::Key(KeyError::Invalid(_)) | FsError::Corrupt(_) => Some(&DAMAGE),
        FsError::Key(_) => Some(&KEYS),
    };
    if errno(error).code() == libc::EIO && limit.is_some() {
        DAMAGE_SEEN.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(held_back) = limit.and_then(RateLimit::admit) {
        let more = if held_back > 0 { format!(" ({held_back} such lines held back)") } else { String::new() };
        log::error!("inode {node_id}: {error}{more}");
    }
    errno(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_own_errno() {
        let key = |e: fn(String) -> KeyError| errno(&FsError::Key(e("why".into()))).code();
        assert_eq!(key(KeyError::Denied), libc::EACCES);
        assert_eq!(key(KeyError::Disabled), libc::ENOKEY);
        assert_eq!(key(KeyError::Unavailable), libc::EHOSTDOWN);
        assert_eq!(key(KeyError::Invalid), libc::EIO);
        assert_eq!(errno(&FsError::Corrupt("block".into())).code(), libc::EIO);
        assert_eq!(errno(&FsError::Os(rustix::io::Errno::NOSPC)).code(), libc::ENOSPC);
    }
}
