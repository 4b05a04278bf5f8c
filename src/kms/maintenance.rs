//! What falls due by itself: keys whose waiting time is over are destroyed, keys that rotate get new material.
//!
//! Called by the daemon's worker at start and from time to time. Each deed is recorded like a call.

use std::sync::Arc;

use crate::api::{KeyState, KmsError, RotationType, Timestamp};

use super::change::MaterialRotation;
use super::model::Key;
use super::own_acts::OwnAct;
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
        let act = match deed {
            Deed::Delete => OwnAct::DeleteKey,
            Deed::Rotate => OwnAct::RotateKey,
        };
        self.act_on(act, &key, now, || self.perform(&turn, &key, deed, now)).map(|()| Some(deed))
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
}
