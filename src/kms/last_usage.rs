//! What each key was last used for, kept in memory since the daemon started.
//!
//! Written by the pipeline after each call that used a key; read by GetKeyLastUsage. Never on a call's way: a lock of
//! one of many parts for a few nanoseconds.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::api::{Operation, Timestamp};

use super::audit::EventId;

/// Parts, so that calls on several cores rarely meet.
const PARTS: usize = 32;

/// One use of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastUse {
    /// The operation.
    pub operation: Operation,
    /// When.
    pub at: Timestamp,
    /// Id of the call.
    pub request_id: [u8; 16],
    /// Id of its audit record.
    pub event_id: EventId,
}

/// The last use of each key, by ARN. As many entries as there are keys.
#[derive(Debug)]
pub struct LastUsage {
    since: Timestamp,
    hasher: RandomState,
    parts: [Mutex<HashMap<String, LastUse>>; PARTS],
}

impl LastUsage {
    /// Nothing is known of the time before `since`.
    pub fn new(since: Timestamp) -> Self {
        Self { since, hasher: RandomState::new(), parts: std::array::from_fn(|_| Mutex::default()) }
    }

    /// From when on uses are known.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Notes a use. Of two at once, either may be the one that stays.
    pub fn note(&self, key_arn: &str, last: LastUse) {
        let mut part = self.part(key_arn).lock();
        match part.get_mut(key_arn) {
            Some(known) => *known = last,
            None => drop(part.insert(key_arn.to_owned(), last)),
        }
    }

    /// The last use, if it is known.
    pub fn of(&self, key_arn: &str) -> Option<LastUse> {
        self.part(key_arn).lock().get(key_arn).copied()
    }

    /// A key that is no more.
    pub fn forget(&self, key_arn: &str) {
        self.part(key_arn).lock().remove(key_arn);
    }

    fn part(&self, key_arn: &str) -> &Mutex<HashMap<String, LastUse>> {
        &self.parts[self.hasher.hash_one(key_arn) as usize % PARTS]
    }
}

/// Whether an operation counts as a use of a key.
pub const fn is_use(operation: Operation) -> bool {
    use Operation as O;
    matches!(
        operation,
        O::Decrypt
            | O::DeriveSharedSecret
            | O::Encrypt
            | O::GenerateDataKey
            | O::GenerateDataKeyPair
            | O::GenerateDataKeyPairWithoutPlaintext
            | O::GenerateDataKeyWithoutPlaintext
            | O::GenerateMac
            | O::ReEncrypt
            | O::Sign
            | O::Verify
            | O::VerifyMac
            | O::Encapsulate
            | O::Decapsulate
    )
}
