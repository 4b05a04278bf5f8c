//! Errors of the protocol: every code with its HTTP status, in one table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How kmsd begins to refuse a caller who speaks for others without being marked as a service; mounts know it by that.
pub const NOT_TRUSTED: &str = "Service principal not trusted";

macro_rules! codes {
    ($($(#[$meta:meta])* $variant:ident = $status:literal,)+) => {
        /// The name of an error, as clients know it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$meta])* #[doc = concat!("HTTP ", stringify!($status))] $variant,)+
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// The HTTP status it travels with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }
        }
    };
}

codes! {
    AccessDeniedException = 400,
    AlreadyExistsException = 400,
    ConflictException = 400,
    DependencyTimeoutException = 503,
    DisabledException = 400,
    DryRunOperationException = 400,
    ExpiredImportTokenException = 400,
    ExpiredTokenException = 400,
    IncompleteSignature = 400,
    IncorrectKeyException = 400,
    IncorrectKeyMaterialException = 400,
    InternalFailure = 500,
    InvalidAliasNameException = 400,
    InvalidArnException = 400,
    InvalidCiphertextException = 400,
    InvalidGrantIdException = 400,
    InvalidGrantTokenException = 400,
    InvalidImportTokenException = 400,
    InvalidKeyUsageException = 400,
    InvalidMarkerException = 400,
    InvalidSignatureException = 400,
    KMSInternalException = 500,
    KMSInvalidMacException = 400,
    KMSInvalidSignatureException = 400,
    KMSInvalidStateException = 400,
    KeyUnavailableException = 500,
    LimitExceededException = 400,
    MalformedPolicyDocumentException = 400,
    MissingAuthenticationTokenException = 400,
    NotAuthorizedException = 400,
    NotFoundException = 400,
    RequestEntityTooLargeException = 413,
    SerializationException = 400,
    ServiceUnavailableException = 503,
    TagException = 400,
    ThrottlingException = 400,
    UnknownOperationException = 400,
    UnrecognizedClientException = 400,
    UnsupportedOperationException = 400,
    ValidationException = 400,
}

impl ErrorCode {
    /// From the `__type` of an error body, which may carry a namespace before a `#` and a link after a `:`.
    pub fn from_type(text: &str) -> Option<Self> {
        let name = text.rsplit('#').next().unwrap_or(text);
        let name = name.split(':').next().unwrap_or(name);
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The name of the member that carries the message.
    const fn message_member(self) -> &'static str {
        match self {
            Self::AccessDeniedException => "Message",
            _ => "message",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsError {
    /// Which error.
    pub code: ErrorCode,
    /// For people; empty where the service tells nothing on purpose.
    pub message: String,
}

impl KmsError {
    /// An error with its message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The JSON body of the answer. An empty message is left out, as AWS does: botocore tells `""` from absent.
    pub fn body(&self) -> Vec<u8> {
        let mut map = serde_json::Map::new();
        map.insert("__type".into(), self.code.name().into());
        if !self.message.is_empty() {
            map.insert(self.code.message_member().into(), self.message.clone().into());
        }
        serde_json::Value::Object(map).to_string().into_bytes()
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { self.code.fmt(f) } else { write!(f, "{}: {}", self.code, self.message) }
    }
}

impl std::error::Error for KmsError {}

/// The body of an error answer, as a client reads it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The name of the error, perhaps with a namespace.
    #[serde(rename = "__type", default)]
    pub error_type: String,
    /// For people.
    #[serde(alias = "Message", default)]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_carry_the_member_names_that_clients_expect() {
        let denied = KmsError::new(ErrorCode::AccessDeniedException, "no").body();
        assert_eq!(denied, br#"{"__type":"AccessDeniedException","Message":"no"}"#);
        let absent = KmsError::new(ErrorCode::NotFoundException, "a \"b\"").body();
        assert_eq!(absent, br#"{"__type":"NotFoundException","message":"a \"b\""}"#);
        let silent = KmsError::new(ErrorCode::InvalidCiphertextException, "").body();
        assert_eq!(silent, br#"{"__type":"InvalidCiphertextException"}"#);
        let read: ErrorBody = serde_json::from_slice(&denied).unwrap();
        assert_eq!((read.error_type.as_str(), read.message.as_str()), ("AccessDeniedException", "no"));
    }

    #[test]
    fn codes_are_found_by_any_spelling_of_their_type() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_type(code.name()), Some(*code));
            assert_eq!(ErrorCode::from_type(&format!("com.amazonaws.kms#{code}")), Some(*code));
        }
        assert_eq!(ErrorCode::from_type("Nonsense"), None);
    }
}
