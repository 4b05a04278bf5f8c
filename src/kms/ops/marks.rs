//! AdvanceMark: a number that only rises, for each owner of a ciphertext.
//!
//! A client that can be put back to an older state as a whole (a filesystem's lower tree) keeps a count in its state and
//! has the same count here: a state that counts less than its mark is an older one. Who may decrypt the ciphertext
//! is the owner; the mark belongs to the key and the encryption context.

use serde::Serialize;

use crate::api::{AdvanceMarkRequest, ErrorCode, KmsError, Operation, hex};
use crate::crypto::sha256;

use super::super::authorise::{Allowed, Demand};
use super::super::pipeline::{Answer, Call, Notes};
use super::data_keys::SYMMETRIC;
use super::sealing::{Seal, blob_demand, canonical};
use super::{Perform, limit_exceeded, turn};

/// Most marks of a daemon.
const MAX_MARKS: usize = 100_000;

/// Where the mark stands now.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AdvanceMarkResponse {
    value: i64,
}

impl Perform for AdvanceMarkRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let context = self.encryption_context.as_ref();
        Ok(vec![blob_demand(call, &self.ciphertext_blob.0, "kms:Decrypt", context, SYMMETRIC, notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let seal = Seal { key, algorithm: SYMMETRIC, context: self.encryption_context.as_ref() };
        seal.check(Operation::AdvanceMark)?;
        // A context can be invented, a ciphertext that opens with it cannot.
        drop(seal.open(call, allowed, &self.ciphertext_blob.0, notes)?);
        let context = canonical(self.encryption_context.as_ref());
        let owner = hex(&sha256(&[key.record.arn.as_bytes(), &[0], &context].concat()));
        let state = call.kms.state.read();
        let (known, count) = (state.marks.get(&owner).copied().unwrap_or(0), state.marks.len());
        drop(state);
        let value = self.value.unwrap_or(known);
        if value < known {
            let message = format!("The mark stands at {known} and cannot be lowered to {value}.");
            return Err(KmsError::new(ErrorCode::ConflictException, message));
        }
        if value > known {
            if known == 0 && count >= MAX_MARKS {
                return Err(limit_exceeded(format!("There are {MAX_MARKS} marks already.")));
            }
            call.kms.put_mark(turn(call)?, owner, value)?;
        }
        Answer::of(&AdvanceMarkResponse { value }, 0)
    }
}
