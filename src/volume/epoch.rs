//! The volume's epoch: a count in the lower tree and, as a mark, in the key service. A tree that counts less than the
//! mark is an older one that somebody put back.
//!
//! Called by a mount and by a repair: checked before anything is read, raised when it begins, on a period and after a clean end. It is odd
//! while a mount may write and even once that has ended well, so that nobody can make it out that a mount ended uncleanly
//! by putting its log back. Must never raise the mark before the count is durable: a crash between the two would lock the
//! owner out.
//!
//! ```text
//! .kmsfs.epoch:  0  magic "KME1" 4 B | 4  zero 4 B | 8  epoch u64 | 16  MAC 16 B
//! MAC = GCM-SIV tag (directory record key, nonce = 0, aad = "epoch" || volume id 16 B || epoch u64, empty message)
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::{Volume, VolumeError, context, key_error, record_file};
use crate::client::Kms;
use crate::crypto::{VolumeKey, constant_time_eq};
use crate::format::VolumeId;
use crate::sys::at;
use crate::tree::file::LastEnd;

/// Name of the count in the lower root.
pub const EPOCH_FILE: &str = ".kmsfs.epoch";
const MAGIC: [u8; 4] = *b"KME1";
const LEN: usize = 32;

/// The epoch of a volume that is being mounted.
pub struct Epoch {
    kms: Arc<Kms>,
    key: Arc<VolumeKey>,
    id: VolumeId,
    root: OwnedFd,
    path: PathBuf,
    /// The count; `None` where the key service keeps no marks.
    current: Mutex<Option<u64>>,
    /// How the last mount that could write ended, as the key service knows it.
    last: LastEnd,
}

impl Epoch {
    /// Holds the count of the lower tree against the mark. `accept_older` goes on with an older tree, and says so to the
    /// key service, which records it.
    pub fn check(volume: &Volume, accept_older: bool) -> Result<Self, VolumeError> {
        let mut epoch = Self {
            kms: Arc::clone(volume.keys.kms()),
            key: Arc::clone(&volume.key),
            id: volume.id,
            root: volume.root()?,
            path: volume.path().to_owned(),
            current: Mutex::new(None),
            last: LastEnd::Unknown,
        };
        let Some(mark) = epoch.mark(None, accept_older)? else { return Ok(epoch) };
        let count = epoch.read();
        if count < mark && !accept_older {
            return Err(VolumeError::PutBack { path: epoch.path, count, mark });
        }
        if count < mark {
            log::warn!(
                "{} is at epoch {count} and was seen at {mark}: used all the same",
                epoch.path.display()
            );
        }
        *epoch.current.lock() = Some(count.max(mark));
        // A backup that is used on purpose was perhaps made while it was mounted.
        if count == mark {
            epoch.last = if mark.is_multiple_of(2) { LastEnd::Well } else { LastEnd::Unknown };
        }
        Ok(epoch)
    }

    /// How the last mount ended, for the tag log.
    pub fn last(&self) -> LastEnd {
        self.last
    }

    /// Counts on, at the beginning and in the course of a mount: what was in the lower tree before is an older state from
    /// now on.
    pub fn advance(&self) {
        self.raise(|count| (count + 1) | 1);
    }

    /// Counts on at the end of a mount, which has left everything whole.
    pub fn end(&self) {
        self.raise(|count| (count + 2) & !1);
    }

    fn raise(&self, next: impl FnOnce(u64) -> u64) {
        let mut current = self.current.lock();
        let Some(next) = current.map(next) else { return };
        if let Err(e) = record_file::replace(self.root.as_fd(), EPOCH_FILE, &self.encode(next)) {
            return log::warn!("the epoch of {} is not advanced: {e}", self.path.display());
        }
        *current = Some(next);
        if let Err(e) = self.mark(Some(next), false) {
            log::warn!("the key service does not know of epoch {next} of {}: {e}", self.path.display());
        }
    }

    fn mark(&self, value: Option<u64>, accept_older: bool) -> Result<Option<u64>, VolumeError> {
        let record = record_file::read(self.root.as_fd(), &self.path)?;
        let wrapped = &record.active().wrapped;
        let context = context::record(record.volume_id);
        let mark = self.kms.advance_mark(&wrapped.blob, &wrapped.key_arn, &context, value, accept_older);
        mark.map_err(|e| VolumeError::Key(wrapped.key_arn.clone(), key_error(&e)))
    }

    /// The count; 0 where there is none that this volume's key vouches for.
    fn read(&self) -> u64 {
        let mut bytes = [0; LEN];
        let read = at::open_regular(&self.root, EPOCH_FILE.as_bytes(), OFlags::RDONLY, 0)
            .and_then(|file| Ok(rustix::io::pread(&file, &mut bytes, 0)?));
        let count = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        match read {
            Ok(LEN) if constant_time_eq(&self.encode(count), &bytes) => count,
            Ok(_) => {
                log::warn!("{} is not of this volume", self.path.join(EPOCH_FILE).display());
                0
            }
            Err(_) => 0,
        }
    }

    fn encode(&self, count: u64) -> [u8; LEN] {
        let aad = [&b"epoch"[..], &self.id.0, &count.to_le_bytes()].concat();
        let mut out = [0; LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&count.to_le_bytes());
        out[16..].copy_from_slice(&self.key.dir_record.mac(&[0; 12], &aad));
        out
    }
}
