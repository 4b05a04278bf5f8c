//! The key-state table: which operation a key's state lets through, and the error where it does not.

use crate::api::{ErrorCode, KeyState, KmsError};

/// What an operation needs of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Using the material.
    Use,
    /// Enabling, disabling.
    Switch,
    /// Turning rotation on or off, rotating.
    Rotation,
    /// Tags, description, a new alias.
    Change,
    /// Scheduling the deletion.
    Schedule,
    /// Cancelling the deletion.
    Cancel,
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
    use Verdict::{Disabled, Invalid, Pass, Unsupported};
    // Columns: use, switch, rotation, change, schedule, cancel.
    let row = match state {
        KeyState::Enabled => [Pass, Pass, Pass, Pass, Pass, Invalid],
        KeyState::Disabled => [Disabled, Pass, Disabled, Pass, Pass, Invalid],
        KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => {
            [Invalid, Invalid, Invalid, Invalid, Invalid, Pass]
        }
        KeyState::PendingImport => [Invalid, Invalid, Unsupported, Pass, Pass, Invalid],
        KeyState::Unavailable => [Invalid, Pass, Unsupported, Pass, Pass, Invalid],
        KeyState::Creating => [Invalid, Invalid, Invalid, Pass, Pass, Invalid],
        KeyState::Updating => [Pass, Invalid, Pass, Pass, Invalid, Invalid],
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
        KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => "pending deletion",
        KeyState::PendingImport => "pending import",
        KeyState::Unavailable => "unavailable",
        KeyState::Creating => "creating",
        KeyState::Updating => "updating",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row for each state; columns as in `Need`: use, switch, rotation, change, schedule, cancel.
    const TABLE: &[(KeyState, &str)] = &[
        (KeyState::Enabled, "ok ok ok ok ok not-pending"),
        (KeyState::Disabled, "disabled ok disabled ok ok not-pending"),
        (KeyState::PendingDeletion, "invalid invalid invalid invalid invalid ok"),
        (KeyState::PendingReplicaDeletion, "invalid invalid invalid invalid invalid ok"),
        (KeyState::PendingImport, "invalid invalid unsupported ok ok not-pending"),
        (KeyState::Unavailable, "invalid ok unsupported ok ok not-pending"),
        (KeyState::Creating, "invalid invalid invalid ok ok not-pending"),
        (KeyState::Updating, "ok invalid ok ok invalid not-pending"),
    ];

    #[test]
    fn the_state_table_is_the_one_of_the_developer_guide() {
        let needs = [Need::Use, Need::Switch, Need::Rotation, Need::Change, Need::Schedule, Need::Cancel];
        assert_eq!(TABLE.len(), KeyState::ALL.len());
        for (state, row) in TABLE {
            for (need, expected) in needs.iter().zip(row.split(' ')) {
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
        assert_eq!(message(Need::Use, KeyState::PendingImport), "ARN is pending import.");
        assert_eq!(message(Need::Switch, KeyState::Creating), "ARN is creating.");
    }
}
