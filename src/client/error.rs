//! What can go wrong with a key call.

use std::io;

use super::Endpoint;
use crate::api::{ErrorCode, KmsError};

/// Why a call to the key service failed.
#[derive(Debug, Clone)]
pub enum ClientError {
    /// The endpoint's name cannot be understood.
    Endpoint(String),
    /// No usable AWS credentials for an endpoint that needs signed requests.
    Credentials(String),
    /// TLS cannot be set up.
    Tls(String),
    /// No connection, or it broke before an answer came: the endpoint, and why.
    Unreachable(String, String),
    /// No answer in time.
    TimedOut(String),
    /// The answer is not one of this protocol.
    Protocol(String),
    /// The service answered with an error.
    Kms(KmsError),
    /// A wrapped key was to go from the service at the first endpoint to that at the second.
    Apart(String, String),
    /// The service answered with an error this version has no name for: its name and message.
    Unknown(String, String),
}

impl ClientError {
    /// An I/O error on the way to `endpoint`.
    pub(super) fn unreachable(endpoint: &Endpoint, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut(endpoint.to_string()),
            io::ErrorKind::InvalidData => Self::Protocol(error.to_string()),
            io::ErrorKind::NotFound if endpoint.is_unix() => Self::Unreachable(
                endpoint.to_string(),
                "there is no such socket; is kmsd running?".to_owned(),
            ),
            io::ErrorKind::ConnectionRefused if endpoint.is_unix() => {
                let why = "nobody listens on the socket; is kmsd running?";
                Self::Unreachable(endpoint.to_string(), why.to_owned())
            }
            io::ErrorKind::PermissionDenied if endpoint.is_unix() => {
                let why = "the socket's permissions do not let you in";
                Self::Unreachable(endpoint.to_string(), why.to_owned())
            }
            _ => Self::Unreachable(endpoint.to_string(), error.to_string()),
        }
    }

    /// The service's error code, where it answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Kms(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the service could not be reached, as opposed to having said no.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unreachable(..)
            | Self::TimedOut(_)
            | Self::Protocol(_)
            | Self::Tls(_)
            | Self::Credentials(_) => true,
            Self::Kms(error) => is_transient(error.code),
            Self::Endpoint(_) | Self::Apart(..) | Self::Unknown(..) => false,
        }
    }
}

/// Errors that pass with time: worth another try.
pub(super) fn is_transient(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::ThrottlingException
            | ErrorCode::KMSInternalException
            | ErrorCode::InternalFailure
            | ErrorCode::KeyUnavailableException
            | ErrorCode::DependencyTimeoutException
            | ErrorCode::ServiceUnavailableException
    )
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endpoint(text) => write!(
                f,
                "'{text}' is not a key service endpoint; use unix:/PATH, http://HOST:PORT or https://HOST, and for keys that \
                 another service has ARN-BEGINNING=ENDPOINT"
            ),
            Self::Apart(from, to) => write!(
                f,
                "the keys are of two key services, {from} and {to}, and a wrapped key does not go from one to the other; copy \
                 the files to a directory under the other key ('kmsfs default', 'kmsfs cp --key')"
            ),
            Self::Credentials(why) => write!(f, "no AWS credentials for this endpoint: {why}"),
            Self::Tls(why) => write!(f, "TLS: {why}"),
            Self::Unreachable(endpoint, why) => {
                write!(f, "cannot reach the key service at {endpoint}: {why}")
            }
            Self::TimedOut(endpoint) => write!(f, "the key service at {endpoint} did not answer in time"),
            Self::Protocol(why) => write!(f, "the key service's answer cannot be understood: {why}"),
            Self::Kms(error) => write!(f, "{error}"),
            Self::Unknown(name, message) => write!(f, "{name}: {message}"),
        }
    }
}

impl std::error::Error for ClientError {}
