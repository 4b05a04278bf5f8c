//! The key-state table: which operation a key's state lets through, and the error where it does not.

use crate::api::{ErrorCode, KeyState, KmsError};

/// What an operation needs of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Using the material.
    Use,
    /// Enabling, disabling.
    Switch,
    /// Turning automatic rotation on or off.
    Rotation,
    /// Rotating on demand.
    RotateNow,
    /// Tags, description, a new alias.
    Change,
    /// Scheduling the deletion.
    Schedule,
    /// Cancelling the deletion.
    Cancel,
    /// Bringing key material.
    Import,
    /// Taking imported key material away.
    DeleteMaterial,
    /// Making a replica, moving the primary key.
    Replicate,
}

impl Need {
    /// Every need, in the order of the table's columns.
    pub const ALL: [Self; 10] = [
        Self::Use,
        Self::Switch,
        Self::Rotation,
        Self::RotateNow,
        Self::Change,
        Self::Schedule,
        Self::Cancel,
        Self::Import,
        Self::DeleteMaterial,
        Self::Replicate,
    ];
}

/// Holds `state` against the table.
pub fn check(need: Need, state: KeyState, arn: &str) -> Result<(), KmsError> {
    match verdict(need, state) {
        Verdict::Pass => Ok(()),
        Verdict::Disabled => Err(KmsError::new(ErrorCode::DisabledException, format!("{arn} is disabled."))),
        Verdict::Invalid => Err(KmsError::new(
            ErrorCode::KMSInvalidStateException,
            format!("{arn} is {}.", words(need, state)),
        )),
        Verdict::Unsupported => Err(KmsError::new(
            ErrorCode::UnsupportedOperationException,
            format!("{arn} is {} which is not valid for this operation.", words(need, state)),
        )),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Disabled,
    Invalid,
    Unsupported,
}

fn verdict(need: Need, state: KeyState) -> Verdict {
    use Verdict::{Disabled as D, Invalid as I, Pass as P, Unsupported as U};
    // Columns: use, switch, rotation, rotate now, change, schedule, cancel, import, delete material, replicate.
    let row = match state {
        KeyState::Enabled => [P, P, P, P, P, P, I, P, P, P],
        KeyState::Disabled => [D, P, D, D, P, P, I, P, P, D],
        KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => [I, I, I, I, I, I, P, I, P, I],
        KeyState::PendingImport => [I, I, U, I, P, P, I, P, P, I],
        KeyState::Unavailable => [I, P, U, U, P, P, I, U, U, I],
        KeyState::Creating => [I, I, I, I, P, P, I, I, I, I],
        KeyState::Updating => [P, I, P, P, P, I, I, P, I, I],
    };
    row[need as usize]
}

fn words(need: Need, state: KeyState) -> &'static str {
    if need == Need::Cancel {
        return "not pending deletion";
    }
    match state {
        KeyState::Enabled => "enabled",
        KeyState::Disabled => "disabled",
        KeyState::PendingDeletion => "pending deletion",
        KeyState::PendingReplicaDeletion => "pending replica deletion",
        KeyState::PendingImport => "pending import",
        KeyState::Unavailable => "unavailable",
        KeyState::Creating => "creating",
        KeyState::Updating => "updating",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row for each state; columns as in `Need`.
    const TABLE: &[(KeyState, &str)] = &[
        (KeyState::Enabled, "ok ok ok ok ok ok not-pending ok ok ok"),
        (KeyState::Disabled, "disabled ok disabled disabled ok ok not-pending ok ok disabled"),
        (KeyState::PendingDeletion, "invalid invalid invalid invalid invalid invalid ok invalid ok invalid"),
        (
            KeyState::PendingReplicaDeletion,
            "invalid invalid invalid invalid invalid invalid ok invalid ok invalid",
        ),
        (KeyState::PendingImport, "invalid invalid unsupported invalid ok ok not-pending ok ok invalid"),
        (
            KeyState::Unavailable,
            "invalid ok unsupported unsupported ok ok not-pending unsupported unsupported invalid",
        ),
        (KeyState::Creating, "invalid invalid invalid invalid ok ok not-pending invalid invalid invalid"),
        (KeyState::Updating, "ok invalid ok ok ok invalid not-pending ok invalid invalid"),
    ];

    #[test]
    fn the_state_table_is_the_one_of_the_developer_guide() {
        assert_eq!(TABLE.len(), KeyState::ALL.len());
        for (state, row) in TABLE {
            assert_eq!(row.split(' ').count(), Need::ALL.len());
            for (need, expected) in Need::ALL.iter().zip(row.split(' ')) {
                let found = match check(*need, *state, "A") {
                    Ok(()) => "ok",
                    Err(e) if e.code == ErrorCode::DisabledException => "disabled",
                    Err(e) if e.message == "A is not pending deletion." => "not-pending",
                    Err(e) if e.code == ErrorCode::KMSInvalidStateException => "invalid",
                    Err(e) if e.code == ErrorCode::UnsupportedOperationException => "unsupported",
                    Err(_) => "another error",
                };
                assert_eq!(found, expected, "{need:?} in {state}");
            }
        }
    }

    #[test]
    fn messages_name_the_key_and_its_state() {
        let message = |need, state| check(need, state, "ARN").unwrap_err().message;
        assert_eq!(message(Need::Use, KeyState::Disabled), "ARN is disabled.");
        assert_eq!(message(Need::Use, KeyState::PendingDeletion), "ARN is pending deletion.");
        assert_eq!(message(Need::Use, KeyState::PendingReplicaDeletion), "ARN is pending replica deletion.");
        assert_eq!(message(Need::Use, KeyState::PendingImport), "ARN is pending import.");
        assert_eq!(message(Need::Switch, KeyState::Creating), "ARN is creating.");
    }
}
