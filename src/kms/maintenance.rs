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
    /// Keys whose imported material expired.
    pub expired: usize,
    /// Keys for which it failed; tried again the next time.
    pub failed: usize,
    /// When the next deed falls due.
    pub next: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Delete,
    Rotate,
    Expire,
    Settle,
}

/// What falls due for a key, and when.
fn due(key: &Key) -> Option<(Deed, Timestamp)> {
    let by_state = due_by_state(key);
    by_state.into_iter().chain(due_at_once(key)).min_by_key(|(_, at)| *at)
}

/// What of that is not left to the worker: whoever finds the key first does it.
fn due_at_once(key: &Key) -> Option<(Deed, Timestamp)> {
    let settles = key.record.settles.map(|settles| (Deed::Settle, settles.at));
    let expiries = key.record.materials.iter().filter_map(|material| material.imported.as_ref()?.valid_to);
    let expires = expiries.min().map(|at| (Deed::Expire, at));
    settles.into_iter().chain(expires).min_by_key(|(_, at)| *at)
}

fn due_by_state(key: &Key) -> Option<(Deed, Timestamp)> {
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
                Ok(Some(Deed::Expire)) => done.expired += 1,
                Ok(Some(Deed::Settle) | None) => {}
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
        self.run_deed(&turn, &key, deed, now)?;
        Ok(Some(deed))
    }

    /// `known` as it is at `now`: a passing state that is over has ended, expired material is gone.
    pub(super) fn caught_up(
        &self,
        turn: Option<&Turn<'_>>,
        known: Arc<Key>,
        now: Timestamp,
    ) -> Result<Arc<Key>, KmsError> {
        if due_at_once(&known).is_none_or(|(_, at)| at > now) {
            return Ok(known);
        }
        let own;
        let turn = if let Some(turn) = turn {
            turn
        } else {
            own = self.turn();
            &own
        };
        let mut key = known;
        // At most one deed of each kind is due.
        for _ in 0..2 {
            let Some(now_there) = self.key(key.record.home(), key.record.id) else { break };
            key = now_there;
            let Some((deed, _)) = due_at_once(&key).filter(|(_, at)| *at <= now) else { break };
            self.run_deed(turn, &key, deed, now)?;
        }
        Ok(self.key(key.record.home(), key.record.id).unwrap_or(key))
    }

    fn run_deed(&self, turn: &Turn<'_>, key: &Key, deed: Deed, now: Timestamp) -> Result<(), KmsError> {
        if deed == Deed::Settle {
            // The end of what was recorded when it began.
            return self.settle(turn, key);
        }
        let act = match deed {
            Deed::Delete => OwnAct::DeleteKey,
            Deed::Rotate => OwnAct::RotateKey,
            Deed::Expire | Deed::Settle => OwnAct::DeleteExpiredKeyMaterial,
        };
        self.act_on(act, key, now, || self.perform(turn, key, deed, now))
    }

    fn settle(&self, turn: &Turn<'_>, key: &Key) -> Result<(), KmsError> {
        self.update_key(turn, key, |record| {
            record.state = record.lasting_state();
            record.settles = None;
        })
    }

    fn perform(&self, turn: &Turn<'_>, key: &Key, deed: Deed, now: Timestamp) -> Result<(), KmsError> {
        match deed {
            Deed::Delete => self.destroy_key(turn, key, now),
            Deed::Expire => self.expire_material(turn, key, now),
            Deed::Settle => self.settle(turn, key),
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
