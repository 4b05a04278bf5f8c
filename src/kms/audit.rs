//! The audit record of one call: CloudTrail's record shape, one JSON line each.
//!
//! Made by the pipeline, once per call, allowed or denied, and written before the answer leaves. Must never be
//! given plaintext, key material or ciphertext; the encryption context is public by definition and is recorded.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::api::{hex, sigv4, uuid_text};
use crate::crypto::{random_array, sha256};

/// Longest string of a record that stands there whole: with each byte escaped, all of them fit a line.
const MAX_TEXT: usize = 1024;
/// Longest JSON member of a record that stands there as it came.
const MAX_JSON: usize = 16 * 1024;

/// Who called, as the record names them.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// `Root`, `IAMUser`, or `AWSService` for the daemon's own worker.
    pub kind: &'a str,
    /// The principal's ARN.
    pub arn: &'a str,
    /// Account id.
    pub account: &'a str,
    /// The access key that signed, if one did.
    pub access_key_id: Option<&'a str>,
    /// The service that called for the principal, e.g. `kmsfs.local.amazonaws.com`.
    pub invoked_by: Option<&'a str>,
}

/// The kernel's word on a Unix peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFacts {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id at connect: an observation, not an identity.
    pub pid: i32,
}

/// A key the call touched.
#[derive(Debug, Clone, Copy)]
pub struct Resource<'a> {
    /// The key's ARN.
    pub arn: &'a str,
    /// Its owning account.
    pub account: &'a str,
}

/// A JSON object in serialised form, made once where its facts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Serialises `value`.
    pub fn of(value: &impl Serialize) -> Self {
        Self(serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()))
    }

    /// JSON `null`.
    pub fn null() -> Self {
        Self("null".to_owned())
    }

    /// Takes over a text that is a JSON value already.
    pub fn from_json(json: String) -> Self {
        Self(json)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a record: 128 random bits, written as a UUID (RFC 9562, version 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId([u8; 16]);

impl EventId {
    /// A fresh one.
    pub fn random() -> Self {
        let mut id: [u8; 16] = random_array();
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        Self(id)
    }

    /// One that was made before.
    pub(super) fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bits.
    pub(super) fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&uuid_text(self.0))
    }
}

/// One record. The log adds version, category, sequence number and chain.
#[derive(Debug, Clone, Copy)]
pub struct AuditRecord<'a> {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// The service, e.g. `kms.amazonaws.com`.
    pub event_source: &'a str,
    /// The operation, e.g. `Decrypt`.
    pub event_name: &'a str,
    /// Region of the daemon.
    pub region: &'a str,
    /// Who called.
    pub identity: Identity<'a>,
    /// `unix` for a socket peer, the IP address otherwise.
    pub source: &'a str,
    /// Facts of a Unix peer.
    pub peer: Option<PeerFacts>,
    /// The caller's User-Agent.
    pub user_agent: &'a str,
    /// Non-secret request parameters, with the encryption context: a JSON object or null.
    pub request: &'a JsonText,
    /// Non-secret parts of the answer: a JSON object or null.
    pub response: &'a JsonText,
    /// Further facts, e.g. `keyMaterialId` and the deciding policy: a JSON object or null.
    pub additional: &'a JsonText,
    /// Error name and message when the call failed.
    pub error: Option<(&'a str, &'a str)>,
    /// True when the call changes nothing.
    pub read_only: bool,
    /// Keys touched.
    pub resources: &'a [Resource<'a>],
    /// The request id that the answer carries.
    pub request_id: &'a str,
}

impl AuditRecord<'_> {
    /// Appends the record's members, without the closing brace, so that the log can add the chain.
    pub(super) fn write_open(&self, out: &mut String) {
        out.push_str("{\"eventVersion\":\"1.11\",\"userIdentity\":");
        self.write_identity(out);
        text(out, ",\"eventTime\":", &time_text(self.time_ms));
        text(out, ",\"eventSource\":", self.event_source);
        text(out, ",\"eventName\":", self.event_name);
        text(out, ",\"awsRegion\":", self.region);
        text(out, ",\"sourceIPAddress\":", self.source);
        text(out, ",\"userAgent\":", self.user_agent);
        if let Some((name, message)) = self.error {
            text(out, ",\"errorCode\":", name);
            text(out, ",\"errorMessage\":", message);
        }
        json(out, ",\"requestParameters\":", self.request.as_str());
        json(out, ",\"responseElements\":", self.response.as_str());
        json(out, ",\"additionalEventData\":", self.additional.as_str());
        text(out, ",\"requestID\":", self.request_id);
        raw(out, ",\"readOnly\":", if self.read_only { "true" } else { "false" });
        self.write_resources(out);
        out.push_str(",\"eventType\":\"AwsApiCall\",\"managementEvent\":true");
        text(out, ",\"recipientAccountId\":", self.identity.account);
        out.push_str(",\"eventCategory\":\"Management\"");
        if let Some(peer) = self.peer {
            let PeerFacts { uid, gid, pid } = peer;
            raw(out, ",\"peer\":", &format!("{{\"uid\":{uid},\"gid\":{gid},\"pid\":{pid}}}"));
        }
    }

    fn write_identity(&self, out: &mut String) {
        text(out, "{\"type\":", self.identity.kind);
        text(out, ",\"arn\":", self.identity.arn);
        text(out, ",\"accountId\":", self.identity.account);
        if let Some(id) = self.identity.access_key_id {
            text(out, ",\"accessKeyId\":", id);
        }
        if let Some(service) = self.identity.invoked_by {
            text(out, ",\"invokedBy\":", service);
        }
        out.push('}');
    }

    fn write_resources(&self, out: &mut String) {
        out.push_str(",\"resources\":[");
        for (index, resource) in self.resources.iter().enumerate() {
            text(out, if index == 0 { "{\"accountId\":" } else { ",{\"accountId\":" }, resource.account);
            out.push_str(",\"type\":\"AWS::KMS::Key\"");
            text(out, ",\"ARN\":", resource.arn);
            out.push('}');
        }
        out.push(']');
    }

    fn to_value(self) -> Value {
        let mut line = String::new();
        self.write_open(&mut line);
        line.push('}');
        serde_json::from_str(&line).expect("every member is written as JSON")
    }
}

fn raw(out: &mut String, name: &str, json: &str) {
    out.push_str(name);
    out.push_str(json);
}

/// Appends `name` and the JSON `value`; a long one by its long strings' digests, or by its own.
fn json(out: &mut String, name: &str, value: &str) {
    if value.len() <= MAX_JSON {
        return raw(out, name, value);
    }
    let mut short: Value = serde_json::from_str(value).unwrap_or_default();
    shorten(&mut short);
    let written = short.to_string();
    if written.len() <= MAX_JSON {
        return raw(out, name, &written);
    }
    raw(out, name, &digest_of(value).to_string());
}

/// Replaces each long string in `value`; the parser bounds how deep it is.
fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_TEXT => *value = digest_of(text),
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(members) => members.values_mut().for_each(shorten),
        _ => {}
    }
}

/// What stands for a text that is too long.
fn digest_of(text: &str) -> Value {
    serde_json::json!({
        "shortenedTo": &text[..text.floor_char_boundary(MAX_TEXT)],
        "bytes": text.len(),
        "sha256": hex(&sha256(text.as_bytes())),
    })
}

/// Appends `name` and `value` as a JSON string; of a long one its beginning, length and digest.
fn text(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push('"');
    if value.len() > MAX_TEXT {
        escape(out, &value[..value.floor_char_boundary(MAX_TEXT)]);
        let _ = write!(out, "... ({} bytes, SHA-256 {})", value.len(), hex(&sha256(value.as_bytes())));
    } else {
        escape(out, value);
    }
    out.push('"');
}

fn escape(out: &mut String, value: &str) {
    let mut rest = value;
    while let Some(at) = rest.bytes().position(|c| c < b' ' || c == b'"' || c == b'\\') {
        out.push_str(&rest[..at]);
        let _ = write!(out, "\\u{:04x}", rest.as_bytes()[at]);
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// `2026-01-31T23:59:58Z`.
pub(super) fn time_text(time_ms: u64) -> String {
    let t = sigv4::time_text(time_ms / 1000);
    format!("{}-{}-{}:{}:{}", &t[..4], &t[4..6], &t[6..11], &t[11..13], &t[13..])
}

/// Why a record could not be written. The call must then fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditError {
    /// The log cannot be written, e.g. a full disk.
    Io(String),
    /// The record is larger than a line may be.
    TooLarge(usize),
    /// An earlier write or sync failed; tried again within a second.
    Down,
    /// The log on disk does not continue the chain: cut, edited or replaced.
    Broken(String),
}

impl std::fmt::Display for AuditError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(what) => write!(f, "the audit log cannot be written: {what}"),
            Self::TooLarge(len) => write!(f, "an audit record of {len} bytes is too large"),
            Self::Down => f.write_str("the audit log cannot be written; it is tried again each second"),
            Self::Broken(what) => write!(f, "the audit log is not whole: {what}"),
        }
    }
}

impl std::error::Error for AuditError {}

/// Takes records. `record` returns `Ok` only when the record is in the log.
pub trait Audit: Send + Sync {
    /// Keeps a place for the one record of a call that is about to begin. On an error the call must not begin.
    fn reserve(&self) -> Result<(), AuditError>;

    /// Writes one record, into the place kept for it: its id.
    fn record(&self, record: &AuditRecord<'_>) -> Result<EventId, AuditError>;
}

/// An audit log in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryAudit {
    lines: parking_lot::Mutex<Vec<Value>>,
}

impl MemoryAudit {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every record so far.
    pub fn records(&self) -> Vec<Value> {
        self.lines.lock().clone()
    }
}

impl Audit for MemoryAudit {
    fn reserve(&self) -> Result<(), AuditError> {
        Ok(())
    }

    fn record(&self, record: &AuditRecord<'_>) -> Result<EventId, AuditError> {
        let (id, mut line) = (EventId::random(), record.to_value());
        line["eventID"] = id.to_string().into();
        self.lines.lock().push(line);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(time_text(951_782_400_000), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn hostile_text_stays_inside_its_string() {
        let mut out = String::new();
        let hostile = "a\"b\\c\nd\u{1}e\u{2028}";
        text(&mut out, "", hostile);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), hostile);
        assert!(!out.contains('\n'));
    }

    #[test]
    fn a_record_of_the_longest_members_fits_a_line() {
        let (long, null) = ("\u{1}".repeat(1024 * 1024), JsonText::null());
        let request = JsonText::of(&serde_json::json!({"keyId": "k", "policy": long, "tags": [long, "t"]}));
        let many = JsonText::of(&vec!["\u{1}\""; 100_000]);
        let mut record = AuditRecord {
            time_ms: 0,
            event_source: &long,
            event_name: &long,
            region: &long,
            identity: Identity {
                kind: "Root",
                arn: &long,
                account: &long,
                access_key_id: Some(&long),
                invoked_by: Some(&long),
            },
            source: &long,
            peer: None,
            user_agent: &long,
            request: &request,
            response: &many,
            additional: &many,
            error: Some((&long, &long)),
            read_only: true,
            resources: &[Resource { arn: &long, account: &long }; 2],
            request_id: &long,
        };
        let mut line = String::new();
        record.write_open(&mut line);
        assert!(line.len() + 1024 < super::super::audit_log::MAX_LINE, "{}", line.len());
        let value = record.to_value();
        let policy = &value["requestParameters"]["policy"];
        assert_eq!(
            (&value["requestParameters"]["keyId"], &policy["bytes"]),
            (&"k".into(), &long.len().into())
        );
        assert_eq!(policy["sha256"], hex(&sha256(long.as_bytes())));
        assert_eq!(value["additionalEventData"]["sha256"], hex(&sha256(many.as_str().as_bytes())));
        assert!(
            value["userAgent"].as_str().unwrap().ends_with(&format!("{})", hex(&sha256(long.as_bytes()))))
        );
        record.request = &null;
        assert_eq!(record.to_value()["requestParameters"], Value::Null);
    }
}
