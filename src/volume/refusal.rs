//! How often data keys were to be had, and why not: counted, logged, and said in words that help.
//!
//! Used by `keys`. Must never hold a key.

use serde::{Deserialize, Serialize};

use super::key_error;
use crate::api::{ErrorCode, hex};
use crate::client::{ClientError, Kms};
use crate::format::WrappedKey;
use crate::logging::RateLimit;
use crate::sys::figures::{Count, Timing};
use crate::tree::KeyError;

/// Digits by which a version of a key is named in messages.
const SHOWN_VERSION: usize = 12;
static UNAVAILABLE: RateLimit = RateLimit::new();
static REFUSED: RateLimit = RateLimit::new();

/// Counted while a volume is open.
#[derive(Default)]
pub(super) struct KeyCounts {
    pub(super) hits: Count,
    pub(super) unwraps: Count,
    pub(super) ahead: Count,
    pub(super) made: Count,
    denied: Count,
    disabled: Count,
    invalid: Count,
    unavailable: Count,
}

/// What was counted until a moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeyFigures {
    /// Data keys found in the cache.
    pub hits: u64,
    /// Data keys unwrapped by the key service.
    pub unwraps: u64,
    /// Those of them that were unwrapped before anybody needed them.
    #[serde(default)]
    pub ahead: u64,
    /// Data keys made by it.
    pub made: u64,
    /// Refusals: somebody may not.
    pub denied: u64,
    /// Refusals: the key is disabled, locked or gone.
    pub disabled: u64,
    /// Refusals: it does not open, or is under a foreign key.
    pub invalid: u64,
    /// Times that the service could not be asked.
    pub unavailable: u64,
    /// Answers of the service that asked for patience.
    pub throttled: u64,
    /// Calls to the service, and how long they took.
    pub service: Timing,
    /// Master keys used since the mount began.
    pub in_use: Vec<KeyInUse>,
}

/// A master key that was used.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeyInUse {
    /// Its ARN.
    pub key_arn: String,
    /// Data keys unwrapped and made under it.
    pub uses: u64,
    /// Whether the last word on it was no.
    pub refused: bool,
}

impl KeyCounts {
    /// Counts why a key is not to be had, and says it once a second; the caller's own error is the same for each.
    pub(super) fn refused(&self, error: KeyError) -> KeyError {
        match &error {
            KeyError::Denied(_) => self.denied.add(1),
            KeyError::Disabled(_) => self.disabled.add(1),
            KeyError::Invalid(_) => self.invalid.add(1),
            KeyError::Unavailable(_) => self.unavailable.add(1),
            KeyError::Absent(..) => {}
        }
        log_refusal(error)
    }

    /// The numbers now.
    pub(super) fn read(&self, mut in_use: Vec<KeyInUse>, kms: &Kms) -> KeyFigures {
        in_use.sort_by(|a, b| a.key_arn.cmp(&b.key_arn));
        let (service, throttled) = kms.figures();
        KeyFigures {
            hits: self.hits.read(),
            unwraps: self.unwraps.read(),
            ahead: self.ahead.read(),
            made: self.made.read(),
            denied: self.denied.read(),
            disabled: self.disabled.read(),
            invalid: self.invalid.read(),
            unavailable: self.unavailable.read(),
            throttled,
            service,
            in_use,
        }
    }
}

/// Why a wrapped key is not to be had. A service that was put back to an older state says no more of a version that it
/// does not know than of a forgery.
pub(super) fn unopened(error: &ClientError, wrapped: &WrappedKey) -> KeyError {
    match (key_error(error), wrapped.material_id) {
        (KeyError::Invalid(why), Some(version))
            if error.code() == Some(ErrorCode::InvalidCiphertextException) =>
        {
            let version: String = hex(&version).chars().take(SHOWN_VERSION).collect();
            let key = &wrapped.key_arn;
            KeyError::Invalid(format!(
                "{why}: it was changed, or the key service does not know version {version} of {key}, as after it was \
                 restored from an older backup"
            ))
        }
        (error, _) => error,
    }
}

fn log_refusal(error: KeyError) -> KeyError {
    let limit = match error {
        KeyError::Unavailable(_) => &UNAVAILABLE,
        KeyError::Denied(_) | KeyError::Disabled(_) | KeyError::Invalid(_) => &REFUSED,
        KeyError::Absent(..) => return error,
    };
    if let Some(held_back) = limit.admit() {
        let more = if held_back > 0 { format!(" ({held_back} more like it)") } else { String::new() };
        log::error!("{error}{more}");
    }
    error
}
