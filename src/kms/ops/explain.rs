//! Explain: what decides about an action of a principal on a key, for the operator.

use std::sync::Arc;

use crate::api::{ErrorCode, ExplainRequest, ExplainResponse, KmsError, Operation};

use super::super::authorise::{Allowed, Asker, Demand, Resource};
use super::super::caller::{Caller, Source, root_arn};
use super::super::decision::{access_denied, decide};
use super::super::find::Aliases;
use super::super::pipeline::{Answer, Call, Notes};
use super::{Perform, invalid};

impl Perform for ExplainRequest {
    fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![Demand::new("kmsd:Explain", Resource::Daemon)])
    }

    fn perform(self, call: &Call<'_>, _: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let found = call.find(&self.key_id, Aliases::Taken, "kms:DescribeKey")?;
        notes.touched(&found.key);
        let action = action_of(&self.action)?;
        let caller = self.caller(call)?;
        let identity = call.kms.identity_of(&caller);
        let operator = call.kms.operator();
        let asker = Asker {
            caller: &caller,
            identity: identity.as_deref(),
            now: call.now,
            operator,
            records: call.kms,
        };
        let demand = Demand {
            context: self.encryption_context.as_ref(),
            request_alias: found.alias,
            ..Demand::new(action, Resource::Key(Arc::clone(&found.key)))
        };
        let key_arn = found.key.record.arn.clone();
        let answer = match decide(&asker, &demand) {
            Ok(basis) => {
                ExplainResponse { allowed: true, decided_by: basis.to_string(), message: None, key_arn }
            }
            Err(denial) => {
                let message = access_denied(&caller, action, &key_arn, denial.refusal).message;
                let decided_by =
                    denial.basis.map_or_else(|| denial.refusal.missing(), |basis| basis.to_string());
                ExplainResponse { allowed: false, decided_by, message: Some(message), key_arn }
            }
        };
        Answer::of(&answer, 0)
    }
}

impl ExplainRequest {
    fn caller(&self, call: &Call<'_>) -> Result<Caller, KmsError> {
        let account = self.principal_arn.split(':').nth(4).unwrap_or_default();
        if account.len() != 12 {
            return Err(invalid(format!("{} is no ARN of a principal.", self.principal_arn)));
        }
        let source = match &self.source_ip {
            None => Source::Internal,
            Some(text) => {
                Source::Tcp(text.parse().map_err(|_| invalid(format!("{text} is no IP address.")))?)
            }
        };
        Ok(Caller {
            principal_arn: self.principal_arn.clone(),
            account: account.to_owned(),
            is_root: self.principal_arn == root_arn(account),
            via_service: self.via_service.clone(),
            source,
            ..Caller::internal(call.home())
        })
    }
}

/// The action of policies that `text` names, with or without its service.
fn action_of(text: &str) -> Result<&'static str, KmsError> {
    let name = text.strip_prefix("kms:").unwrap_or(text);
    let further = ["kms:ReEncryptFrom", "kms:ReEncryptTo"];
    let known = Operation::ALL.iter().map(|operation| operation.action()).chain(further);
    let mut known = known.filter(|action| action.starts_with("kms:"));
    known.find(|action| action["kms:".len()..].eq_ignore_ascii_case(name)).ok_or_else(|| {
        KmsError::new(
            ErrorCode::ValidationException,
            format!("{text} is no action of KMS, e.g. kms:Decrypt."),
        )
    })
}
