//! What can go wrong with a volume as a whole, each with a message that says what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::registry::RegistryError;
use crate::api::ErrorCode;
use crate::client::ClientError;
use crate::format::name::LOWER_NAME_MAX;
use crate::format::record::RecordError;
use crate::tree::{FsError, KeyError};

/// Why a volume cannot be made, opened or worked on.
#[derive(Debug)]
pub enum VolumeError {
    /// There is no volume record in this directory.
    NotAVolume(PathBuf),
    /// The volume record does not parse or does not open.
    Record(PathBuf, RecordError),
    /// The volume's key is not to be had: its name, and why.
    Key(String, KeyError),
    /// The mount cannot be given the right to use a key: its name, and why.
    NoGrant(String, KeyError),
    /// A grant that an ended mount left cannot be retired: the key's name, and why.
    GrantLeft(String, KeyError),
    /// The registry of volumes cannot do what it is asked.
    Registry(RegistryError),
    /// Which keys are in use cannot be told, because of this path, and why.
    Unread(PathBuf, String),
    /// Another call to the key service failed.
    Client(ClientError),
    /// The directory for a new volume holds something.
    NotEmpty(PathBuf),
    /// A re-encryption was interrupted, and files may be a mixture until it is ended.
    Unfinished(PathBuf),
    /// Another mount or another rewrap uses the lower directory.
    InUse(PathBuf, &'static str),
    /// The lower tree is an older state of the volume.
    PutBack {
        /// The lower directory.
        path: PathBuf,
        /// The epoch that it has.
        count: u64,
        /// The epoch that the key service has seen.
        mark: u64,
    },
    /// The recovery sheet would lie inside the tree that it is to recover.
    SheetInside(PathBuf),
    /// The directory for a new volume lies in the lower tree of another, which is at the second path.
    InsideVolume(PathBuf, PathBuf),
    /// The lower filesystem allows names of this many bytes only.
    ShortNames(PathBuf, u64),
    /// Names were to be bound, and this lower directory has no extended attributes.
    NamesNotBound(PathBuf),
    /// The key cannot wrap data keys: its name, and why.
    UnfitKey(String, String),
    /// The customer key of this name cannot be brought along, and why.
    CustomerKey(String, String),
    /// The lower file system said no: to what, on which path.
    Io(&'static str, PathBuf, io::Error),
    /// The plaintext tree cannot be opened.
    Tree(FsError),
}

impl VolumeError {
    /// An I/O error while doing `what` to `path`.
    pub(super) fn io(what: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Io(what, path.to_owned(), error.into())
    }
}

impl VolumeError {
    /// The message without what to do about it.
    pub(super) fn in_short(&self) -> String {
        match self {
            Self::NotAVolume(path) => format!("{} has no volume record", path.display()),
            Self::Record(path, e) => format!("{}: {e}", path.display()),
            other => other.to_string(),
        }
    }
}

impl From<ClientError> for VolumeError {
    fn from(e: ClientError) -> Self {
        Self::Client(e)
    }
}

impl std::fmt::Display for VolumeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAVolume(path) => {
                let path = path.display();
                write!(
                    f,
                    "{path} is not a volume (it has no .kmsfs.volume); make one with 'kmsfs init {path}'"
                )
            }
            Self::Record(path, e) => {
                write!(f, "{}: {e}", path.display())?;
                if matches!(e, RecordError::NotARecord | RecordError::NoSlot) {
                    write!(
                        f,
                        "; restore it from the recovery sheet with 'kmsfs init --restore SHEET LOWER'"
                    )?;
                }
                Ok(())
            }
            // It says which endpoint, and what to do, already.
            Self::Key(_, KeyError::Unavailable(why)) => f.write_str(why),
            Self::Key(..)
            | Self::NoGrant(..)
            | Self::GrantLeft(..)
            | Self::Unread(..)
            | Self::Unfinished(_)
            | Self::NamesNotBound(_) => self.fmt_rest(f),
            Self::Registry(e) => write!(f, "{e}"),
            Self::Client(e) => write!(f, "{e}"),
            Self::NotEmpty(path) => {
                write!(f, "{} is not empty; name an empty or new directory", path.display())
            }
            Self::InUse(path, by) => write!(f, "{} is in use by {by}; end it first", path.display()),
            Self::PutBack { path, count, mark } => write!(
                f,
                "{} was put back to an older state (epoch {count}, but {mark} has been seen); if that was you, as after \
                 restoring a backup, mount it once with --accept-older, which the key service records",
                path.display()
            ),
            Self::SheetInside(path) => write!(
                f,
                "{} lies inside the volume; name a place outside with --recovery-sheet",
                path.display()
            ),
            Self::InsideVolume(path, volume) => write!(
                f,
                "{} lies in the lower directory of the volume {}, which would take it for foreign; name a place outside",
                path.display(),
                volume.display()
            ),
            Self::ShortNames(path, most) => write!(
                f,
                "names on the filesystem of {} have at most {most} bytes, and a volume needs {LOWER_NAME_MAX}; choose a place \
                 on another filesystem (ext4, XFS, btrfs, tmpfs)",
                path.display()
            ),
            Self::CustomerKey(name, why) => {
                write!(f, "the customer key '{name}' cannot be brought along: {why}")
            }
            Self::UnfitKey(key, why) => write!(f, "the key {key} cannot be used for a volume: {why}"),
            Self::Io(what, path, e) => {
                write!(f, "cannot {what} {}: {e}", path.display())?;
                if e.kind() == io::ErrorKind::ReadOnlyFilesystem {
                    write!(f, "; the lower filesystem must be mounted for writing")?;
                }
                Ok(())
            }
            Self::Tree(e) => write!(f, "cannot open the tree: {e}"),
        }
    }
}

impl VolumeError {
    /// What has a longer story.
    fn fmt_rest(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key, e) => match advice(e) {
                "" => write!(f, "the key {key}: {e}"),
                advice => write!(f, "the key {key}: {}; {advice}", e.to_string().trim_end_matches('.')),
            },
            Self::NamesNotBound(path) => write!(
                f,
                "--bind-names needs a lower filesystem with extended attributes, which {} has not",
                path.display()
            ),
            Self::NoGrant(_, KeyError::Unavailable(why)) => f.write_str(why),
            Self::NoGrant(key, e @ KeyError::Disabled(_)) => {
                write!(f, "no grant on {key} can be made for the mount: {e}")
            }
            Self::NoGrant(key, e) => write!(
                f,
                "no grant on {key} can be made for the mount: {e}; it takes kms:CreateGrant on the key, or attach with \
                 --own-right, by which the mount uses what rights you have"
            ),
            Self::GrantLeft(key, e) => write!(f, "the grant that an earlier mount left on {key} stays: {e}"),
            Self::Unread(path, why) => {
                write!(f, "which keys are in use cannot be told: {}: {why}", path.display())
            }
            Self::Unfinished(path) => write!(
                f,
                "a re-encryption of {} was interrupted: mount it for writing, or run 'kmsfs reencrypt' again, which ends it",
                path.display()
            ),
            other => write!(f, "{other:?}"),
        }
    }
}

impl std::error::Error for VolumeError {}

/// What there is to be done about a refusal of kmsd or AWS, whose own words do not say it.
fn advice(error: &KeyError) -> &'static str {
    let (KeyError::Denied(text) | KeyError::Disabled(text)) = error else { return "" };
    let known = [
        ("is pending deletion", "until its time is over 'kmsfs key cancel-deletion' takes that back"),
        ("is disabled", "'kmsfs key enable' lets it be used again"),
        (
            "Invalid arn",
            "that service has no keys of this region, and --kms ARN-BEGINNING=ENDPOINT names one that has",
        ),
        (
            "does not exist",
            "it was destroyed, or another service has it, which --kms ARN-BEGINNING=ENDPOINT names",
        ),
    ];
    known.iter().find(|(words, _)| text.contains(words)).map_or("", |(_, advice)| advice)
}

/// What a failed key call means to a file. The one table from service errors to key errors.
pub fn key_error(error: &ClientError) -> KeyError {
    let text = error.to_string();
    if error.is_unavailable() {
        return KeyError::Unavailable(text);
    }
    match error.code() {
        Some(
            ErrorCode::AccessDeniedException
            | ErrorCode::NotAuthorizedException
            | ErrorCode::InvalidSignatureException
            | ErrorCode::IncompleteSignature
            | ErrorCode::MissingAuthenticationTokenException
            | ErrorCode::UnrecognizedClientException,
        ) => KeyError::Denied(text),
        Some(
            ErrorCode::DisabledException | ErrorCode::KMSInvalidStateException | ErrorCode::NotFoundException,
        ) => KeyError::Disabled(text),
        _ => KeyError::Invalid(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::KmsError;

    #[test]
    fn service_errors_map_to_what_they_mean_for_a_file() {
        let map = |code| key_error(&ClientError::Kms(KmsError::new(code, "")));
        assert!(matches!(map(ErrorCode::AccessDeniedException), KeyError::Denied(_)));
        assert!(matches!(map(ErrorCode::DisabledException), KeyError::Disabled(_)));
        assert!(matches!(map(ErrorCode::KMSInvalidStateException), KeyError::Disabled(_)));
        assert!(matches!(map(ErrorCode::InvalidCiphertextException), KeyError::Invalid(_)));
        assert!(matches!(map(ErrorCode::IncorrectKeyException), KeyError::Invalid(_)));
        assert!(matches!(map(ErrorCode::ThrottlingException), KeyError::Unavailable(_)));
        let down = ClientError::TimedOut("unix:/x".to_owned());
        assert!(matches!(key_error(&down), KeyError::Unavailable(_)));
    }
}
