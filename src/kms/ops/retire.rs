//! RetireVersion: destroys one version of a key.
//!
//! What is under that version can never be opened again; that nothing is, only whoever holds the ciphertexts can know.
//! Called by the operator, through `kmsfs key retire-version`, which looks at the volumes first.

use serde::Serialize;

use crate::api::{ErrorCode, KmsError, Origin, RetireVersionRequest};

use super::super::authorise::{Allowed, Demand};
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::{plain_demand, refuse_managed};
use super::{Perform, dry_run, limit_exceeded, turn, unsupported};

/// Most retired versions that a key remembers; more than it can have had.
const MAX_RETIRED: usize = 10_000;

/// What was destroyed.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RetireVersionResponse<'a> {
    key_id: &'a str,
    key_material_id: &'a str,
}

impl Perform for RetireVersionRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:ScheduleKeyDeletion", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        let record = &key.record;
        refuse_managed(key)?;
        if record.origin != Origin::AwsKms {
            return Err(unsupported(format!(
                "{} origin is {}: DeleteImportedKeyMaterial takes a version of it away.",
                record.arn, record.origin
            )));
        }
        if record.primary_region.is_some() {
            return Err(unsupported(
                "A version of a multi-Region key cannot be retired: its other keys have it too.",
            ));
        }
        let wanted = self.key_material_id.to_ascii_lowercase();
        let Some(place) = key.versions.iter().position(|version| version.id_hex == wanted) else {
            let message = format!("Key {} has no version {wanted}.", record.arn);
            return Err(KmsError::new(ErrorCode::NotFoundException, message));
        };
        if record.current_material() == Some(place) {
            let message = format!("{wanted} is the current version of {}; rotate the key first.", record.arn);
            return Err(KmsError::new(ErrorCode::ConflictException, message));
        }
        if record.retired.len() >= MAX_RETIRED {
            return Err(limit_exceeded(format!("The key has {MAX_RETIRED} retired versions already.")));
        }
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        notes.material_id = Some(wanted.clone());
        let mut next = key.with_record(record.clone());
        let change = call.kms.drop_version(&mut next, place)?;
        next.versions.remove(place);
        next.record.materials.remove(place);
        next.record.retired.push(wanted.clone());
        call.kms.replace_all(turn(call)?, vec![next], vec![change])?;
        call.kms.materials.forget(record.id);
        Answer::of(&RetireVersionResponse { key_id: &record.arn, key_material_id: &wanted }, 0)
    }
}
