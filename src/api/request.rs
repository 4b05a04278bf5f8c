//! From the body of a request to its checked shape.

use super::shape::{At, Member, Violations};
use super::{ErrorCode, KmsError, Operation};

/// Longest message about violations, in bytes: it quotes what the caller sent, and is recorded.
const MAX_MESSAGE: usize = 32 * 1024;

/// A request shape, tied to its operation.
pub trait Request: Member {
    /// Which operation it asks for.
    const OPERATION: Operation;

    /// Tokens of grants that the caller shows.
    fn grant_tokens(&self) -> &[String];
}

/// One broken constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(String);

impl Violation {
    /// `value` comes quoted as it shall be shown, or not at all for a secret.
    pub(super) fn new(at: &At<'_>, value: Option<&str>, sentence: &str) -> Self {
        let value = value.map(|value| format!(" {value}")).unwrap_or_default();
        Self(format!("Value{value} at '{at}' failed to satisfy constraint: {sentence}"))
    }
}

/// Reads and checks a request. An empty body is an empty object.
pub fn parse<R: Request>(body: &[u8]) -> Result<R, KmsError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let wire: R::Wire = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
    let mut found = Violations::default();
    let request = R::take(wire, &At::top(""), &[], &mut found);
    let found = found.into_list();
    match request {
        Some(request) if found.is_empty() => Ok(request),
        _ => Err(invalid(&found)),
    }
}

fn invalid(found: &[Violation]) -> KmsError {
    let count = found.len();
    let plural = if count == 1 { "" } else { "s" };
    let list: Vec<&str> = found.iter().map(|violation| violation.0.as_str()).collect();
    let mut message = format!("{count} validation error{plural} detected: {}", list.join("; "));
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push_str("...");
    }
    KmsError::new(ErrorCode::ValidationException, message)
}

/// A body that is not the JSON of this shape. The parser's own words may quote the body, so they are not passed on.
fn unreadable(error: &serde_json::Error) -> KmsError {
    let text = error.to_string();
    let message = if text.starts_with("invalid base64") {
        "Invalid base64 data".to_owned()
    } else if let Some(rest) = text.strip_prefix("invalid type: ") {
        let (found, expected) = rest.split_once(", expected ").unwrap_or((rest, ""));
        format!("{} cannot be converted to {}", json_kind(found), type_name(expected))
    } else {
        String::new()
    };
    KmsError::new(ErrorCode::SerializationException, message)
}

fn json_kind(found: &str) -> &'static str {
    match found.split_whitespace().next() {
        Some("string") => "STRING_VALUE",
        Some("integer") => "NUMBER_VALUE",
        Some("floating") => "DECIMAL_VALUE",
        Some("boolean") if found.contains("true") => "TRUE_VALUE",
        Some("boolean") => "FALSE_VALUE",
        Some("map") => "START_OBJECT",
        Some("sequence") => "START_ARRAY",
        _ => "NULL_VALUE",
    }
}

fn type_name(expected: &str) -> &'static str {
    match expected.split_whitespace().next() {
        Some("i64") => "Integer",
        Some("f64") => "Timestamp",
        _ if expected.starts_with("a boolean") => "Boolean",
        _ if expected.starts_with("a base64") => "Blob",
        _ if expected.starts_with("a sequence") => "List",
        _ if expected.starts_with("a map") => "Map",
        _ if expected.starts_with("struct") => "Structure",
        _ => "String",
    }
}
