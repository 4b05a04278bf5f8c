//! ScheduleKeyDeletion, CancelKeyDeletion.

use std::borrow::Cow;

use crate::api::{
    CancelKeyDeletionRequest, KeyIdResponse, KeyState, KmsError, Origin, ScheduleKeyDeletionRequest,
    ScheduleKeyDeletionResponse,
};

use super::super::authorise::{Allowed, Demand};
use super::super::lifecycle::{self, Need};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::{plain_demand, refuse_managed};
use super::{Perform, invalid, turn};

const DEFAULT_DAYS: i64 = 30;
const MIN_DAYS: i64 = 7;
const MAX_DAYS: i64 = 30;

impl Perform for ScheduleKeyDeletionRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:ScheduleKeyDeletion", notes)?;
        let days = self.pending_window_in_days.unwrap_or(DEFAULT_DAYS).to_string();
        let fact = ("kms:schedulekeydeletionpendingwindowindays", Cow::Owned(days));
        for demand in &mut demands {
            demand.facts.push(fact.clone());
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let days = self.pending_window_in_days.unwrap_or(DEFAULT_DAYS);
        if !(MIN_DAYS..=MAX_DAYS).contains(&days) {
            let message =
                format!("PendingWindowInDays should be between {MIN_DAYS} and {MAX_DAYS}, but it is {days}");
            return Err(invalid(message));
        }
        refuse_managed(key)?;
        lifecycle::check(Need::Schedule, key.record.state, &key.record.arn)?;
        // A primary key outlives its replicas.
        let waits = key.record.is_primary() && !call.kms.replicas(&key.record).is_empty();
        let date = (!waits).then(|| call.now.plus_days(days));
        let state = if waits { KeyState::PendingReplicaDeletion } else { KeyState::PendingDeletion };
        call.kms.update_key(turn(call)?, key, |record| {
            record.state = state;
            record.settles = None;
            record.deletion_date = date;
            record.pending_window_days = waits.then_some(days);
        })?;
        let answer = ScheduleKeyDeletionResponse {
            key_id: key.record.arn.clone(),
            deletion_date: date,
            key_state: state,
            pending_window_in_days: days,
        };
        Answer::of(&answer, 0)
    }
}

impl Perform for CancelKeyDeletionRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:CancelKeyDeletion", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        lifecycle::check(Need::Cancel, key.record.state, &key.record.arn)?;
        call.kms.update_key(turn(call)?, key, |record| {
            let lacks_material = record.origin == Origin::External && !record.is_complete();
            record.state = if lacks_material { KeyState::PendingImport } else { KeyState::Disabled };
            record.deletion_date = None;
            record.pending_window_days = None;
        })?;
        Answer::of(&KeyIdResponse { key_id: key.record.arn.clone() }, 0)
    }
}
