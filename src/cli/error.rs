//! What a command failed with: one message, one exit code.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::volume::registry::RegistryError;
use crate::volume::{KeyError, VolumeError};

/// Exit codes, as documented in the help text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything without a code of its own, or done in part.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Not a volume, or its record is unreadable.
    Volume = 3,
    /// The key says no.
    Key = 4,
    /// The key service is not there.
    Service = 5,
    /// In use.
    Busy = 6,
    /// The mount failed.
    Mount = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command.
#[derive(Debug)]
pub struct CliError {
    /// Exit code.
    pub exit: Exit,
    /// One line for the user; empty when everything was said already.
    pub message: String,
}

impl CliError {
    /// An error with its code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// An error without a code of its own.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The same with one more thing to do about it.
    #[must_use]
    pub fn with_hint(self, hint: &str) -> Self {
        Self { message: format!("{}; {hint}", self.message), ..self }
    }

    /// The exit code of a number, as a child process reports it.
    pub fn from_code(code: u8, message: String) -> Self {
        let known = [Exit::Usage, Exit::Volume, Exit::Key, Exit::Service, Exit::Busy, Exit::Mount];
        let exit = known.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Failed);
        Self { exit, message }
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for CliError {
    fn from(e: ClientError) -> Self {
        let exit = match &e {
            ClientError::Endpoint(_) => Exit::Usage,
            e if e.is_unavailable() => Exit::Service,
            _ => Exit::Failed,
        };
        Self::new(exit, e.to_string())
    }
}

/// What an error of the registry is to whoever called.
fn exit_of(error: &RegistryError) -> Exit {
    match error {
        RegistryError::BadName(_) => Exit::Usage,
        RegistryError::Unknown(_) | RegistryError::Damaged(..) => Exit::Volume,
        RegistryError::Busy(_) => Exit::Busy,
        RegistryError::Exists(_) | RegistryError::Unsafe(_) | RegistryError::Io(..) => Exit::Failed,
    }
}

impl From<RegistryError> for CliError {
    fn from(e: RegistryError) -> Self {
        Self::new(exit_of(&e), e.to_string())
    }
}

impl From<VolumeError> for CliError {
    fn from(e: VolumeError) -> Self {
        let exit = match &e {
            VolumeError::NotAVolume(_) | VolumeError::Record(..) | VolumeError::PutBack { .. } => {
                Exit::Volume
            }
            VolumeError::Key(_, KeyError::Unavailable(_)) => Exit::Service,
            VolumeError::Key(..) | VolumeError::UnfitKey(..) | VolumeError::CustomerKey(..) => Exit::Key,
            VolumeError::NoGrant(_, e) | VolumeError::GrantLeft(_, e) => {
                if matches!(e, KeyError::Unavailable(_)) { Exit::Service } else { Exit::Key }
            }
            VolumeError::Registry(e) => exit_of(e),
            VolumeError::Client(e) if e.is_unavailable() => Exit::Service,
            VolumeError::InUse(..) => Exit::Busy,
            VolumeError::SheetInside(_) | VolumeError::InsideVolume(..) | VolumeError::ShortNames(..) => {
                Exit::Usage
            }
            VolumeError::Client(_)
            | VolumeError::NotEmpty(_)
            | VolumeError::Unfinished(_)
            | VolumeError::Unread(..)
            | VolumeError::NamesNotBound(_)
            | VolumeError::Io(..)
            | VolumeError::Tree(_) => Exit::Failed,
        };
        Self::new(exit, e.to_string())
    }
}
