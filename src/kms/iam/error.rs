//! Errors of IAM and STS: each code with its HTTP status, in one table.

use crate::api::{ErrorCode, KmsError};

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IamError {
    /// Its name.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Every code, with the status it travels with.
pub const CODES: &[(&str, u16)] = &[
    ("AccessDenied", 403),
    ("DeleteConflict", 409),
    ("EntityAlreadyExists", 409),
    ("ExpiredToken", 403),
    ("IncompleteSignature", 400),
    ("InvalidAction", 400),
    ("InvalidClientTokenId", 403),
    ("InvalidInput", 400),
    ("LimitExceeded", 409),
    ("MalformedInput", 400),
    ("MalformedPolicyDocument", 400),
    ("MissingAuthenticationToken", 403),
    ("NoSuchEntity", 404),
    ("PackedPolicyTooLarge", 400),
    ("RequestEntityTooLarge", 413),
    ("ServiceFailure", 500),
    ("ServiceUnavailable", 503),
    ("SignatureDoesNotMatch", 403),
    ("Throttling", 400),
    ("ValidationError", 400),
];

impl IamError {
    /// An error with its message.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The HTTP status it travels with.
    pub fn status(&self) -> u16 {
        CODES.iter().find(|(code, _)| *code == self.code).map_or(400, |(_, status)| *status)
    }

    /// Something that is not there.
    pub fn no_such(what: &str, name: &str) -> Self {
        Self::new("NoSuchEntity", format!("The {what} with name {name} cannot be found."))
    }

    /// A parameter that breaks a constraint.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationError", message)
    }

    /// A parameter that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidInput", message)
    }

    /// A request that cannot be read.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new("MalformedInput", message)
    }

    /// Something must go before something else can.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new("DeleteConflict", message)
    }

    /// Too many of something.
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new("LimitExceeded", message)
    }
}

/// What goes wrong below and in front of IAM has the same name there, or another.
impl From<KmsError> for IamError {
    fn from(error: KmsError) -> Self {
        let code = match error.code {
            ErrorCode::AccessDeniedException => "AccessDenied",
            ErrorCode::MissingAuthenticationTokenException => "MissingAuthenticationToken",
            ErrorCode::IncompleteSignature => "IncompleteSignature",
            ErrorCode::InvalidSignatureException => "SignatureDoesNotMatch",
            ErrorCode::UnrecognizedClientException => "InvalidClientTokenId",
            ErrorCode::ExpiredTokenException => "ExpiredToken",
            ErrorCode::ThrottlingException => "Throttling",
            ErrorCode::RequestEntityTooLargeException => "RequestEntityTooLarge",
            ErrorCode::SerializationException => "MalformedInput",
            ErrorCode::ServiceUnavailableException => "ServiceUnavailable",
            ErrorCode::ValidationException => "ValidationError",
            _ => "ServiceFailure",
        };
        Self { code, message: error.message }
    }
}
