//! GetKeyLastUsage.

use crate::api::{GetKeyLastUsageRequest, GetKeyLastUsageResponse, KeyLastUsageData, KmsError, uuid_text};

use super::super::authorise::{Allowed, Demand};
use super::super::pipeline::{Answer, Call, Notes};
use super::Perform;
use super::keys::plain_demand;

impl Perform for GetKeyLastUsageRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:GetKeyLastUsage", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let record = &allowed.key()?.record;
        call.kms.state.wait();
        let last = call.kms.last_usage.of(&record.arn);
        let key_last_usage = last.map_or_else(KeyLastUsageData::default, |last| KeyLastUsageData {
            operation: Some(last.operation.name().to_owned()),
            timestamp: Some(last.at),
            cloud_trail_event_id: Some(last.event_id.to_string()),
            kms_request_id: Some(uuid_text(last.request_id)),
        });
        let answer = GetKeyLastUsageResponse {
            key_id: record.arn.clone(),
            key_last_usage,
            tracking_start_date: call.kms.last_usage.since().max(record.created),
            key_creation_date: record.created,
        };
        Answer::of(&answer, 0)
    }
}
