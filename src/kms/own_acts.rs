//! What the daemon does by itself, recorded like a call: keys it makes, rotates and destroys.
//!
//! Called by the background work, by the seed file and for the managed key. Nothing is done that could not be recorded.

use std::sync::Arc;

use crate::api::{KmsError, Timestamp, uuid_text};
use crate::crypto::random_array;

use super::audit::{AuditRecord, Identity, JsonText, Resource};
use super::home::Home;
use super::model::Key;
use super::pipeline::{Kms, unrecorded};

/// An act and the name it has in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnAct {
    /// The managed key, one of the seed file, or a replica in its region.
    CreateKey,
    /// The end of a waiting time.
    DeleteKey,
    /// Automatic rotation.
    RotateKey,
    /// The end of the time for which imported material is good.
    DeleteExpiredKeyMaterial,
}

impl OwnAct {
    fn event_name(self) -> &'static str {
        match self {
            Self::CreateKey => "CreateKey",
            Self::DeleteKey => "DeleteKey",
            Self::RotateKey => "RotateKey",
            Self::DeleteExpiredKeyMaterial => "DeleteExpiredKeyMaterial",
        }
    }
}

impl Kms {
    /// Does `deed` to `key` when there is a place for its record, and records what came of it.
    pub(super) fn act_on<T>(
        &self,
        act: OwnAct,
        key: &Key,
        now: Timestamp,
        deed: impl FnOnce() -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        self.audit.reserve().map_err(|error| unrecorded(&error))?;
        let outcome = deed();
        self.record_act(act, key.record.home(), Some(key), now, outcome.as_ref().err());
        outcome
    }

    /// Makes a key when there is a place for the record of it.
    pub(super) fn act_making(
        &self,
        home: Home<'_>,
        now: Timestamp,
        deed: impl FnOnce() -> Result<Arc<Key>, KmsError>,
    ) -> Result<Arc<Key>, KmsError> {
        self.audit.reserve().map_err(|error| unrecorded(&error))?;
        let outcome = deed();
        let made = outcome.as_ref().ok().map(AsRef::as_ref);
        self.record_act(OwnAct::CreateKey, home, made, now, outcome.as_ref().err());
        outcome
    }

    /// A log that cannot take the record owes it, and refuses every call until it is written.
    fn record_act(
        &self,
        act: OwnAct,
        home: Home<'_>,
        key: Option<&Key>,
        now: Timestamp,
        error: Option<&KmsError>,
    ) {
        let null = JsonText::null();
        let resource = key.map(|key| Resource { arn: &key.record.arn, account: &key.record.account });
        let record = AuditRecord {
            time_ms: u64::try_from(now.millis()).unwrap_or(0),
            event_source: super::pipeline::KMS_SOURCE,
            event_name: act.event_name(),
            region: home.region,
            identity: Identity {
                kind: "AWSService",
                arn: "kmsd",
                account: home.account,
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
            resources: resource.as_slice(),
            request_id: &uuid_text(random_array()),
        };
        if let Err(error) = self.audit.record(&record) {
            log::error!("{} by the daemon itself could not be recorded: {error}", act.event_name());
        }
    }
}
