//! The volume's epoch: a count in the lower tree and, as a mark, in the key service. A tree that counts less than the
//! mark is an older one that somebody put back.
//!
//! Called by a mount and by a repair: checked before anything is read, raised when it begins, on a period and after a clean end. It is odd
//! while a mount may write and even once that has ended well, so that nobody can make it out that a mount ended uncleanly
//! by putting its log back. Must never raise a mark before the count is durable: a crash between the two would lock the
//! owner out.
//!
//! A mark belongs to a master key, so that a volume whose record moves from key to key has several. Of all of them holds
//! at every moment: none is above the count of the newest tree. A move leaves the count, and the marks of both keys, above
//! what any tree from before it counts ([`Epoch::move_to`]).
//!
//! ```text
//! .kmsfs.epoch:  0  magic "KME1" 4 B | 4  zero 4 B | 8  epoch u64 | 16  MAC 16 B
//! MAC = GCM-SIV tag (directory record key, nonce = 0, aad = "epoch" || volume id 16 B || epoch u64, empty message)
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::{Volume, VolumeError, context, key_error, record_file};
use crate::api::ErrorCode;
use crate::client::{ClientError, Kms};
use crate::crypto::{VolumeKey, constant_time_eq};
use crate::format::{VolumeId, WrappedKey};
use crate::sys::at;
use crate::tree::file::LastEnd;

/// Name of the count in the lower root.
pub const EPOCH_FILE: &str = ".kmsfs.epoch";
const MAGIC: [u8; 4] = *b"KME1";
const LEN: usize = 32;
/// How long somebody else may take to count on.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

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
        let mut epoch = Self::of(volume)?;
        let Some(mark) = epoch.mark(&epoch.wrapped()?, accept_older)? else { return Ok(epoch) };
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

    fn of(volume: &Volume) -> Result<Self, VolumeError> {
        Ok(Self {
            kms: Arc::clone(volume.keys.kms()),
            key: Arc::clone(&volume.key),
            id: volume.id,
            root: volume.root()?,
            path: volume.path().to_owned(),
            current: Mutex::new(None),
            last: LastEnd::Unknown,
        })
    }

    /// How the last mount ended, for the tag log.
    pub fn last(&self) -> LastEnd {
        self.last
    }

    /// Counts on at the beginning of a mount that may write. One that cannot must not begin: were it killed, the even
    /// count would say that it had ended well, and its log be passed over.
    pub fn begin(&self) -> Result<(), VolumeError> {
        let next = self.count_on(|count| (count + 1) | 1)?;
        self.tell(next);
        Ok(())
    }

    /// Counts on in the course of a mount: what was in the lower tree before is an older state from now on.
    pub fn advance(&self) {
        self.raise(|count| (count + 1) | 1);
    }

    /// Counts on at the end of a mount, which has left everything whole.
    pub fn end(&self) {
        self.raise(|count| (count + 2) & !1);
    }

    /// Makes the volume ready for its record's move to the wrap `to`, of another master key: counts on to above the mark
    /// of either key, and raises both to that. To be called before the record is written, so that an interruption
    /// at any point leaves a tree that counts as much as any mark. Whether the last mount ended well stays as it is.
    pub fn move_to(&self, to: &WrappedKey) -> Result<(), VolumeError> {
        let Some(beyond) = self.mark(to, false)? else { return Ok(()) };
        let next = self.count_on(|count| {
            let least = count.max(beyond) + 1;
            least + (least ^ count) % 2
        })?;
        let Some(next) = next else { return Ok(()) };
        self.raise_mark(&self.wrapped()?, next)?;
        self.raise_mark(to, next)
    }

    /// Gives a copy, which goes on beside its source under a key of its own, a count that this key lets pass: an earlier
    /// copy may have been under it. Touches no mark.
    pub fn begin_copy(volume: &Volume) -> Result<(), VolumeError> {
        let copy = Self::of(volume)?;
        if let Some(beyond @ 1..) = copy.mark(&copy.wrapped()?, false)? {
            *copy.current.lock() = Some(beyond);
            copy.count_on(|count| count | 1)?;
        }
        Ok(())
    }

    fn raise(&self, next: impl FnOnce(u64) -> u64) {
        match self.count_on(next) {
            Ok(next) => self.tell(next),
            Err(e) => log::warn!("the epoch is not advanced: {e}"),
        }
    }

    /// Writes the next count, durably. `None` where the key service keeps no marks.
    fn count_on(&self, next: impl FnOnce(u64) -> u64) -> Result<Option<u64>, VolumeError> {
        let failed = |e| VolumeError::io("count on in", &self.path.join(EPOCH_FILE), e);
        let mut current = self.current.lock();
        let Some(known) = *current else { return Ok(None) };
        let _alone = record_file::lock(self.root.as_fd(), EPOCH_FILE, LOCK_PATIENCE).map_err(failed)?;
        // A rewrap beside a mount counts on as well.
        let next = next(known.max(self.read()));
        // A full disk must be mounted to be emptied.
        let written = record_file::replace_without_room(self.root.as_fd(), EPOCH_FILE, &self.encode(next));
        written.map_err(failed)?;
        *current = Some(next);
        Ok(Some(next))
    }

    /// Raises the mark of the key that the record is under.
    fn tell(&self, next: Option<u64>) {
        let Some(next) = next else { return };
        let told = self.wrapped().and_then(|wrapped| self.raise_mark(&wrapped, next));
        if let Err(e) = told {
            log::warn!("the key service does not know of epoch {next} of {}: {e}", self.path.display());
        }
    }

    /// The wrap that counts in the record as it is now: a rewrap may have moved it.
    fn wrapped(&self) -> Result<WrappedKey, VolumeError> {
        Ok(record_file::read(self.root.as_fd(), &self.path)?.active().wrapped.clone())
    }

    /// The mark of the key that made `wrapped`, for this volume.
    fn mark(&self, wrapped: &WrappedKey, accept_older: bool) -> Result<Option<u64>, VolumeError> {
        self.ask(wrapped, None, accept_older).map_err(|e| failed(wrapped, &e))
    }

    /// Raises it to `value`, if it is not there yet: a rewrap and a mount count on at the same time.
    fn raise_mark(&self, wrapped: &WrappedKey, value: u64) -> Result<(), VolumeError> {
        match self.ask(wrapped, Some(value), false) {
            Err(e) if e.code() != Some(ErrorCode::ConflictException) => Err(failed(wrapped, &e)),
            _ => Ok(()),
        }
    }

    fn ask(
        &self,
        wrapped: &WrappedKey,
        value: Option<u64>,
        accept_older: bool,
    ) -> Result<Option<u64>, ClientError> {
        let context = context::record(self.id);
        self.kms.advance_mark(&wrapped.blob, &wrapped.key_arn, &context, value, accept_older)
    }

    /// The count; 0 where there is none that this volume's key vouches for.
    fn read(&self) -> u64 {
        let mut bytes = [0; LEN];
        let read = at::open_regular(&self.root, EPOCH_FILE.as_bytes(), OFlags::RDONLY, 0)
            .and_then(|file| Ok(rustix::io::pread(&file, &mut bytes, 0)?));
        let count = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        match read {
            Ok(LEN) if constant_time_eq(&self.encode(count), &bytes) => count,
            // An empty one was made to be locked, and is not written yet.
            Ok(0) | Err(_) => 0,
            Ok(_) => {
                log::warn!("{} is not of this volume", self.path.join(EPOCH_FILE).display());
                0
            }
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

fn failed(wrapped: &WrappedKey, e: &ClientError) -> VolumeError {
    VolumeError::Key(wrapped.key_arn.clone(), key_error(e))
}
