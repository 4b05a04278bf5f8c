//! Faults on demand, for people who test how their programs take them: `--inject OPERATION:FAULT:SHARE`.
//!
//! Asked by the pipeline before a call begins. Nothing is injected unless the daemon was told to, and it says so at
//! start. A faulty call is recorded with its error like any other.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::api::{ErrorCode, KmsError, Operation};
use crate::crypto::random_array;

use super::quota::throttled;

/// Longest delay.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// The errors that real services give for no fault of the caller.
const ERRORS: [ErrorCode; 5] = [
    ErrorCode::ThrottlingException,
    ErrorCode::KMSInternalException,
    ErrorCode::DependencyTimeoutException,
    ErrorCode::KeyUnavailableException,
    ErrorCode::LimitExceededException,
];

/// One fault: for which operation, what, and how often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Every operation where absent.
    operation: Option<Operation>,
    what: What,
    /// Of 2^32 calls, how many.
    share: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Error(ErrorCode),
    Delay(Duration),
}

impl Fault {
    /// Whether it is meant for `operation`.
    pub fn may_hit(&self, operation: Operation) -> bool {
        self.operation.is_none_or(|own| own == operation)
    }

    /// Whether it makes callers wait.
    pub fn delays(&self) -> bool {
        matches!(self.what, What::Delay(_))
    }

    fn strikes(&self) -> bool {
        u64::from(u32::from_le_bytes(random_array())) < self.share
    }
}

/// What `faults` do to a call of `operation`: it may wait here, and may fail.
pub(super) fn strike(faults: &[Fault], operation: Operation) -> Result<(), KmsError> {
    for fault in faults.iter().filter(|fault| fault.may_hit(operation) && fault.strikes()) {
        match fault.what {
            What::Delay(delay) => std::thread::sleep(delay),
            What::Error(ErrorCode::ThrottlingException) => return Err(throttled()),
            What::Error(code) => return Err(KmsError::new(code, "This error was asked for with --inject.")),
        }
    }
    Ok(())
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = self.operation.map_or("*", Operation::name);
        match self.what {
            What::Error(code) => write!(f, "{operation}:{code}")?,
            What::Delay(delay) => write!(f, "{operation}:delay={}ms", delay.as_millis())?,
        }
        #[allow(clippy::cast_precision_loss, reason = "a share has 33 bits")]
        let share = self.share as f64;
        write!(f, ":{}%", share * 100.0 / 2f64.powi(32))
    }
}

impl FromStr for Fault {
    type Err = String;

    /// `Decrypt:ThrottlingException:10%`, `*:delay=50ms:1%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let [operation, what, share] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(
                "expected OPERATION:FAULT:SHARE, e.g. Decrypt:ThrottlingException:10% or *:delay=50ms:1%"
                    .into(),
            );
        };
        let known = |name: &str| Operation::ALL.iter().copied().find(|o| o.name().eq_ignore_ascii_case(name));
        let operation = match operation {
            "*" => None,
            name => Some(
                known(name).ok_or_else(|| format!("{name} is no operation; use its name, or * for all"))?,
            ),
        };
        let what = match what.strip_prefix("delay=") {
            Some(delay) => What::Delay(parse_delay(delay)?),
            None => What::Error(parse_error(what)?),
        };
        Ok(Self { operation, what, share: parse_share(share)? })
    }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").and_then(|number| number.parse().ok());
    let delay = number.map(Duration::from_millis).filter(|delay| *delay <= MAX_DELAY);
    delay.ok_or_else(|| {
        format!("a delay is at most {} in milliseconds, e.g. delay=50ms", MAX_DELAY.as_millis())
    })
}

fn parse_error(name: &str) -> Result<ErrorCode, String> {
    let found = ERRORS.into_iter().find(|code| code.name() == name);
    found.ok_or_else(|| {
        let all: Vec<&str> = ERRORS.iter().map(|code| code.name()).collect();
        format!("{name} is none of {}, delay=..ms", all.join(", "))
    })
}

fn parse_share(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let share = number.filter(|percent| (0.0..=100.0).contains(percent));
    let share = share.ok_or("a share is 0% to 100%")?;
    Ok((share / 100.0 * 2f64.powi(32)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        text.parse().unwrap()
    }

    #[test]
    fn a_fault_strikes_its_operation_at_its_share() {
        let always = [fault("Decrypt:ThrottlingException:100%")];
        assert_eq!(strike(&always, Operation::Decrypt), Err(throttled()));
        assert_eq!(strike(&always, Operation::Encrypt), Ok(()));
        let never = [fault("*:KMSInternalException:0%")];
        assert!((0..1000).all(|_| strike(&never, Operation::Encrypt).is_ok()));
        let half = [fault("*:DependencyTimeoutException:50%")];
        let struck = (0..2000).filter(|_| strike(&half, Operation::Encrypt).is_err()).count();
        assert!((700..1300).contains(&struck), "{struck}");
    }

    #[test]
    fn a_fault_is_written_as_it_is_read() {
        for text in ["Decrypt:ThrottlingException:25%", "*:delay=50ms:100%"] {
            assert_eq!(fault(text).to_string(), text);
        }
    }

    #[test]
    fn a_wrong_fault_says_what_a_right_one_looks_like() {
        for (text, needle) in [
            ("Decrypt", "OPERATION:FAULT:SHARE"),
            ("Decript:ThrottlingException:1%", "no operation"),
            ("Decrypt:AccessDeniedException:1%", "ThrottlingException"),
            ("Decrypt:ThrottlingException:0.1", "0% to 100%"),
            ("Decrypt:ThrottlingException:101%", "0% to 100%"),
            ("*:delay=1h:1%", "milliseconds"),
        ] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }
}
