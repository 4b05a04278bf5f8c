//! What falls due by itself: keys whose waiting time is over are destroyed, keys that rotate get new material.
//!
//! Called by the daemon's worker at start and from time to time. Each deed is recorded like a call.

use std::sync::Arc;

use crate::api::{ErrorCode, KeyState, KmsError, RotationType, Timestamp, uuid_text};
use crate::crypto::random_array;

use super::audit::{AuditRecord, Identity, JsonText, Resource};
use super::change::MaterialRotation;
use super::model::Key;
use super::pipeline::{Kms, Turn};

/// What was done, and when there is more to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Keys destroyed.
    pub deleted: usize,
    /// Keys rotated.
    pub rotated: usize,
    /// Keys for which it failed; tried again the next time.
    pub failed: usize,
    /// When the next deed falls due.
    pub next: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Delete,
    Rotate,
}

/// What falls due for a key, and when.
fn due(key: &Key) -> Option<(Deed, Timestamp)> {
    match key.record.state {
        KeyState::PendingDeletion => key.record.deletion_date.map(|date| (Deed::Delete, date)),
        KeyState::Enabled => key.record.rotation.map(|rotation| (Deed::Rotate, rotation.next)),
        KeyState::Creating
        | KeyState::Disabled
        | KeyState::PendingImport
        | KeyState::PendingReplicaDeletion
        | KeyState::Unavailable
        | KeyState::Updating => None,
    }
}

impl Kms {
    /// Does everything that is due at `now`.
    pub fn run_due(&self, now: Timestamp) -> Due {
        let mut done = Due::default();
        let keys: Vec<Arc<Key>> = self.state.read().all_keys().cloned().collect();
        for key in keys.iter().filter(|key| due(key).is_some_and(|(_, at)| at <= now)) {
            match self.run_due_key(key, now) {
                Ok(Some(Deed::Delete)) => done.deleted += 1,
                Ok(Some(Deed::Rotate)) => done.rotated += 1,
                Ok(None) => {}
                Err(error) => {
                    log::error!("background work on {} failed: {error}", key.record.arn);
                    done.failed += 1;
                }
            }
        }
        done.next = self.state.read().all_keys().filter_map(|key| due(key)).map(|(_, at)| at).min();
        done
    }

    fn run_due_key(&self, known: &Key, now: Timestamp) -> Result<Option<Deed>, KmsError> {
        let turn = self.turn();
        // It may have been changed since it was listed.
        let Some(key) = self.key(known.record.home(), known.record.id) else { return Ok(None) };
        let Some((deed, _)) = due(&key).filter(|(_, at)| *at <= now) else { return Ok(None) };
        // Nothing is destroyed that could not be recorded.
        self.audit
            .reserve()
            .map_err(|error| KmsError::new(ErrorCode::KMSInternalException, error.to_string()))?;
        let outcome = self.perform(&turn, &key, deed, now);
        drop(turn);
        self.record_deed(&key, deed, now, outcome.as_ref().err());
        outcome.map(|()| Some(deed))
    }

    fn perform(&self, turn: &Turn<'_>, key: &Key, deed: Deed, now: Timestamp) -> Result<(), KmsError> {
        match deed {
            Deed::Delete => self.destroy_key(turn, key),
            Deed::Rotate => {
                let mut record = key.record.clone();
                if let Some(rotation) = &mut record.rotation {
                    rotation.next = now.plus_days(rotation.period_days);
                }
                let rotation = MaterialRotation { since: now, rotation_type: RotationType::Automatic };
                self.add_material(turn, key, record, rotation)
            }
        }
    }

    /// A log that cannot take the record owes it, and refuses every call until it is written.
    fn record_deed(&self, key: &Key, deed: Deed, now: Timestamp, error: Option<&KmsError>) {
        let null = JsonText::null();
        let record = AuditRecord {
            time_ms: u64::try_from(now.millis()).unwrap_or(0),
            event_name: match deed {
                Deed::Delete => "DeleteKey",
                Deed::Rotate => "RotateKey",
            },
            region: &key.record.region,
            identity: Identity {
                kind: "AWSService",
                arn: "kmsd",
                account: &key.record.account,
                access_key_id: None,
                invoked_by: Some("kmsd"),
            },
            source: "kmsd",
            peer: None,
            user_agent: "kmsd",
            request: &null,
            response: &null,
            additional: &null,
            error: error.map(|error| (error.code.name(), error.message.as_str())),
            read_only: false,
            resources: &[Resource { arn: &key.record.arn, account: &key.record.account }],
            request_id: &uuid_text(random_array()),
        };
        if let Err(error) = self.audit.record(&record) {
            log::error!("background work on {} could not be recorded: {error}", key.record.arn);
        }
    }
}
