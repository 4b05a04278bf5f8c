//! How the tree asks for a file's key without knowing who holds keys.

use crate::crypto::DataKey;
use crate::format::{FileId, WrappedKey};

/// Why a data key is not to be had. `fuse` maps each to an errno in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyError {
    /// The key service refuses this caller (AccessDeniedException). EACCES.
    Denied(String),
    /// The master key is disabled, pending deletion, or gone. ENOKEY.
    Disabled(String),
    /// The wrapped key does not open: wrong file, wrong volume, or tampered with. EIO.
    Invalid(String),
    /// The key service cannot be reached, or is too slow. EHOSTDOWN.
    Unavailable(String),
    /// Not at hand: [`KeySource::obtain`] fetches it for that user, then the operation is to be tried again.
    Absent(Box<KeyNeed>, KeyUser),
}

/// What [`KeySource::obtain`] is to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyNeed {
    /// The data key of a file, from its wrapped form.
    Unwrapped(FileId, WrappedKey),
    /// A key for a new file, under this master key or the volume's default key.
    Fresh(Option<String>),
    /// Whether the user may have the data key of a file.
    Permission(FileId, WrappedKey),
}

/// For whom a key is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyUser {
    /// The mount: for everybody where callers are not told apart, else for what no caller stands behind.
    Mount,
    /// The Unix user of this id.
    User(u32),
}

/// Who stands behind an operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Whoever it is, the mount's own right counts.
    Mount,
    /// A user whose right to the file's key is asked for now.
    Caller(u32),
    /// A user who opened the file, which was decided then; it goes on until that right is withdrawn.
    Holder(u32),
}

impl Asker {
    /// In whose name keys are fetched for it.
    pub const fn user(self) -> KeyUser {
        match self {
            Self::Mount => KeyUser::Mount,
            Self::Caller(uid) | Self::Holder(uid) => KeyUser::User(uid),
        }
    }
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(m) => write!(f, "the key policy denies the use of the key: {m}"),
            Self::Disabled(m) => write!(f, "the key cannot be used now: {m}"),
            Self::Invalid(m) => write!(f, "the wrapped data key does not open: {m}"),
            Self::Unavailable(m) => write!(f, "the key service is not reachable: {m}"),
            Self::Absent(..) => f.write_str("too many wait for keys of the key service"),
        }
    }
}

impl std::error::Error for KeyError {}

/// A new file's identity and key, wrapped already.
pub struct FreshKey {
    /// For whom it was made.
    pub user: KeyUser,
    /// The id the wrap is bound to.
    pub file_id: FileId,
    /// The plaintext data key.
    pub data_key: DataKey,
    /// What the header stores.
    pub wrapped: WrappedKey,
}

/// Where data keys come from. Implemented by `volume` over the key client, by tests over a map.
///
/// `fresh` and `unwrap` are called under the locks of a file. The source of a mount therefore answers them from what
/// it holds, or with [`KeyError::Absent`]; `obtain`, which may take as long as the service does, is called under none.
pub trait KeySource: Send + Sync {
    /// A fresh data key for `user` under `key` (alias, id or ARN), or under the volume's default key.
    /// Served from a small prefetched pool where possible, so that creating a file does not wait.
    fn fresh(&self, key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError>;

    /// Unwraps the data key of `file_id`. Answers from a bounded cache when it can;
    /// concurrent callers for one file share one call.
    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError>;

    /// Whether files may be under the master key of this ARN.
    fn knows(&self, _key_arn: &str) -> bool {
        true
    }

    /// Fetches what was absent, so that the operation finds it when it is tried again.
    /// A source that never says so has nothing to do here.
    fn obtain(&self, _need: &KeyNeed, _user: KeyUser) -> Result<(), KeyError> {
        Ok(())
    }

    /// How many data keys it is worth fetching before anybody needs them.
    fn room_ahead(&self) -> usize {
        0
    }

    /// Fetches those of them that are not held, in the mount's own name. May take as long as the service does; what
    /// cannot be had is left for whoever needs it. `false` where the service did not give all of them, so that it is
    /// not worth asking on.
    fn fetch_ahead(&self, _wanted: &[(FileId, WrappedKey)]) -> bool {
        true
    }

    /// Whether user `uid` may have the data key of `file_id`, by a decision of the key service that is not old.
    fn permit(&self, _uid: u32, _file_id: FileId, _wrapped: &WrappedKey) -> Result<(), KeyError> {
        Ok(())
    }

    /// Whether user `uid` still may use what it opened; decided now where it was not, for a file that was empty then.
    /// Asked before each read and write: must be quick.
    fn check_holder(&self, _uid: u32, _file_id: FileId, _wrapped: &WrappedKey) -> Result<(), KeyError> {
        Ok(())
    }
}
