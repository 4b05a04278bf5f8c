//! What each key was last used for.
//!
//! Written by the pipeline after each call that used a key; read by GetKeyLastUsage. Never on a call's way: a lock of
//! one of many parts for a few nanoseconds. The worker writes what is new to the store each minute and at the end, so a
//! daemon that is killed forgets a minute at most.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::api::{Family, KmsError, Operation, Timestamp, hex, unhex};

use super::audit::EventId;
use super::change::put;
use super::pipeline::Kms;
use super::store::Table;

/// Parts, so that calls on several cores rarely meet.
const PARTS: usize = 32;
/// Uses that are stored by one commit.
const USES_A_COMMIT: usize = 4096;
/// Row of table Setting: since when uses are known.
pub(super) const SINCE_ROW: &str = "last-usage-since";

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

/// A use as stored (table LastUse, row id: ARN of the key).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UseRecord {
    operation: String,
    at: Timestamp,
    request: String,
    event: String,
}

impl UseRecord {
    fn of(last: &LastUse) -> Self {
        let (request, event) = (hex(&last.request_id), hex(&last.event_id.bytes()));
        Self { operation: last.operation.name().to_owned(), at: last.at, request, event }
    }

    /// Nothing where a newer daemon wrote it.
    pub(super) fn last_use(&self) -> Option<LastUse> {
        let id = |text: &str| <[u8; 16]>::try_from(unhex(text)?).ok();
        Some(LastUse {
            operation: Operation::from_name(Family::Kms, &self.operation)?,
            at: self.at,
            request_id: id(&self.request)?,
            event_id: EventId::of_bytes(id(&self.event)?),
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    last: LastUse,
    is_stored: bool,
}

/// The last use of each key, by ARN. As many entries as there are keys.
#[derive(Debug)]
pub struct LastUsage {
    since: AtomicI64,
    hasher: RandomState,
    parts: [Mutex<HashMap<String, Entry>>; PARTS],
}

impl LastUsage {
    /// Nothing is known of the time before `since`.
    pub fn new(since: Timestamp) -> Self {
        let parts = std::array::from_fn(|_| Mutex::default());
        Self { since: AtomicI64::new(since.millis()), hasher: RandomState::new(), parts }
    }

    /// From when on uses are known.
    pub fn since(&self) -> Timestamp {
        Timestamp::from_millis(self.since.load(Ordering::Relaxed))
    }

    /// Notes a use. Of two at once, either may be the one that stays.
    pub fn note(&self, key_arn: &str, last: LastUse) {
        let mut part = self.part(key_arn).lock();
        let entry = Entry { last, is_stored: false };
        match part.get_mut(key_arn) {
            Some(known) => *known = entry,
            None => drop(part.insert(key_arn.to_owned(), entry)),
        }
    }

    /// Takes over what was stored; what was noted meanwhile stays.
    pub(super) fn restore(&self, since: Option<Timestamp>, uses: Vec<(String, LastUse)>) {
        if let Some(since) = since {
            self.since.store(since.millis(), Ordering::Relaxed);
        }
        for (key_arn, last) in uses {
            self.part(&key_arn).lock().entry(key_arn).or_insert(Entry { last, is_stored: true });
        }
    }

    /// The last use, if it is known.
    pub fn of(&self, key_arn: &str) -> Option<LastUse> {
        self.part(key_arn).lock().get(key_arn).map(|entry| entry.last)
    }

    /// A key that is no more.
    pub fn forget(&self, key_arn: &str) {
        self.part(key_arn).lock().remove(key_arn);
    }

    /// Some of what is not stored yet; from now on it counts as stored.
    fn take_new(&self) -> Vec<(String, LastUse)> {
        let mut taken = Vec::new();
        for part in &self.parts {
            for (key_arn, entry) in part.lock().iter_mut().filter(|(_, entry)| !entry.is_stored) {
                if taken.len() == USES_A_COMMIT {
                    return taken;
                }
                entry.is_stored = true;
                taken.push((key_arn.clone(), entry.last));
            }
        }
        taken
    }

    /// What `take_new` gave is not stored after all.
    fn give_back(&self, taken: &[(String, LastUse)]) {
        for (key_arn, _) in taken {
            if let Some(entry) = self.part(key_arn).lock().get_mut(key_arn) {
                entry.is_stored = false;
            }
        }
    }

    fn part(&self, key_arn: &str) -> &Mutex<HashMap<String, Entry>> {
        &self.parts[self.hasher.hash_one(key_arn) as usize % PARTS]
    }
}

impl Kms {
    /// Stores the uses that are not stored yet.
    pub fn store_last_usage(&self) -> Result<(), KmsError> {
        loop {
            // Nobody destroys a key between the look at its use and the commit.
            let _turn = self.turn();
            let taken = self.last_usage.take_new();
            if taken.is_empty() {
                return Ok(());
            }
            let mut changes = vec![put(Table::Setting, SINCE_ROW.to_owned(), &self.last_usage.since())?];
            for (key_arn, last) in &taken {
                changes.push(put(Table::LastUse, key_arn.clone(), &UseRecord::of(last))?);
            }
            self.commit(&changes).inspect_err(|_| self.last_usage.give_back(&taken))?;
        }
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
