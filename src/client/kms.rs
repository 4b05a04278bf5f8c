//! Typed calls: what the filesystem needs on its hot path, and any operation as JSON for the command line.
//!
//! Called by `volume` and `cli`. Retries what passes with time, within the limits it was given.

mod pipelined;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::http::Answer;
use super::retry::{Backoff, RetryLimits};
use super::transport::{Call, Transport};
use super::{ClientError, Credentials, Endpoint, Timeouts};
use crate::api::{Blob, EncryptionContext, ErrorBody, ErrorCode, KmsError, Operation, SecretBlob};
use crate::crypto::DataKey;
use crate::sys::figures::{Count, Timed, Timing};

pub use pipelined::{DecryptItem, ReEncryptItem, ReEncrypted};

/// The operation of kmsd that waits for changes.
const AWAIT_CHANGE: &str = "KmsdAdmin.AwaitChange";
/// How long its answer may take: kmsd's own patience and some more.
const CHANGE_PATIENCE: Duration = Duration::from_secs(25);
/// Longest text of an error that is not JSON, as shown.
const MAX_SHOWN: usize = 200;

/// Which service to call, and how.
#[derive(Debug)]
pub struct KmsConfig {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// How often a call is tried.
    pub retry: RetryLimits,
    /// Whether calls are made on behalf of the filesystem (`kms:ViaService`), as opposed to by the user.
    pub via_service: bool,
    /// Who signs; TCP endpoints need it.
    pub credentials: Option<Credentials>,
    /// ARN of the mount's own principal, as which calls are made that are not for a user. Unix endpoints only.
    pub mount_principal: Option<String>,
}

/// A key service, and perhaps others beside it that have some of the keys.
pub struct Kms {
    transport: Transport,
    retry: RetryLimits,
    calls: Timed,
    throttled: Count,
    /// By the beginning of the ARNs of their keys; none of them has others.
    pub(super) others: Vec<(String, Kms)>,
}

/// A fresh data key, plain and wrapped.
pub struct GeneratedKey {
    /// The plaintext.
    pub data_key: DataKey,
    /// The wrapped key.
    pub blob: Vec<u8>,
    /// ARN of the master key.
    pub key_arn: String,
    /// The version of it that wrapped; not every service tells.
    pub material_id: Option<[u8; 32]>,
}

/// An unwrapped data key.
pub struct Decrypted {
    /// The plaintext.
    pub data_key: DataKey,
    /// ARN of the master key.
    pub key_arn: String,
}

/// What the filesystem asks of `DescribeKey`. Text, so that values a newer service adds are no errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyFacts {
    /// The key's ARN.
    pub arn: String,
    /// `Enabled` and so on.
    #[serde(default)]
    pub key_state: String,
    /// `ENCRYPT_DECRYPT` and so on.
    #[serde(default)]
    pub key_usage: String,
    /// `SYMMETRIC_DEFAULT` and so on.
    #[serde(default)]
    pub key_spec: String,
    /// Id of the version that encrypts now; not every service tells.
    pub current_key_material_id: Option<String>,
}

impl KeyFacts {
    /// The id of the version that encrypts now.
    pub fn current_material(&self) -> Option<[u8; 32]> {
        self.current_key_material_id.as_deref().and_then(parse_material)
    }
}

/// What a dry run of a decryption said.
#[derive(Debug, Clone)]
pub enum Probe {
    /// The caller may decrypt with the key now.
    Usable,
    /// The service says no, and would say so to a real call.
    Refused(KmsError),
    /// Nothing is known.
    Unknown(ClientError),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GenerateDataKey<'a> {
    key_id: &'a str,
    encryption_context: &'a EncryptionContext,
    key_spec: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypt<'a> {
    ciphertext_blob: Base64<'a>,
    encryption_context: &'a EncryptionContext,
    key_id: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

/// Borrowed bytes as base64.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::engine::general_purpose::STANDARD;
        serializer.collect_str(&base64::display::Base64Display::new(self.0, &STANDARD))
    }
}

/// The members of data-plane answers that are used here; anything else a service adds is ignored.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DataAnswer<'a> {
    ciphertext_blob: Option<Blob>,
    plaintext: Option<SecretBlob>,
    #[serde(borrow)]
    key_id: Cow<'a, str>,
    #[serde(borrow)]
    key_material_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    destination_key_material_id: Option<Cow<'a, str>>,
}

impl Kms {
    /// Prepares calls; no connection is made yet.
    pub fn new(config: KmsConfig) -> Result<Self, ClientError> {
        let mut transport =
            Transport::new(config.endpoint, config.timeouts, config.credentials, config.via_service)?;
        transport.mount_principal = config.mount_principal;
        let (calls, throttled) = (Timed::default(), Count::default());
        Ok(Self { transport, retry: config.retry, calls, throttled, others: Vec::new() })
    }

    /// Calls that were answered and how long they took, pipelined ones aside; and how many answers asked for patience.
    pub fn figures(&self) -> (Timing, u64) {
        let one = |kms: &Self| (kms.calls.read(), kms.throttled.read());
        self.others.iter().fold(one(self), |(calls, throttled), (_, other)| {
            let (more, further) = one(other);
            (calls.and(&more), throttled + further)
        })
    }

    /// A client of each service for [`Self::await_change`], which outlasts the time-outs of other calls. `None` for one
    /// whose calls are signed: such services are asked now and then.
    pub fn waiting(&self) -> Vec<Option<Self>> {
        self.each().map(Self::waiting_here).collect()
    }

    fn waiting_here(&self) -> Option<Self> {
        let endpoint = self.endpoint().clone();
        let config = KmsConfig {
            timeouts: Timeouts { io: CHANGE_PATIENCE, ..Timeouts::default() },
            retry: self.retry,
            via_service: false,
            credentials: None,
            mount_principal: None,
            endpoint,
        };
        if self.endpoint().is_unix() { Self::new(config).ok() } else { None }
    }

    /// The endpoint called for keys that no other service has.
    pub fn endpoint(&self) -> &Endpoint {
        self.transport.endpoint()
    }

    /// What a key is: id, ARN, alias or alias ARN will do.
    pub fn describe_key(&self, key_id: &str) -> Result<KeyFacts, ClientError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Described {
            key_metadata: KeyFacts,
        }
        let answer = self.of(key_id).call(Operation::DescribeKey, &serde_json::json!({ "KeyId": key_id }))?;
        let described: Described =
            serde_json::from_slice(&answer.body).map_err(|e| ClientError::Protocol(e.to_string()))?;
        Ok(described.key_metadata)
    }

    /// Any operation, as JSON both ways.
    pub fn call_json(
        &self,
        operation: Operation,
        request: &serde_json::Value,
    ) -> Result<serde_json::Value, ClientError> {
        let key_id = request.get("KeyId").and_then(serde_json::Value::as_str).unwrap_or_default();
        let answer = self.of(key_id).call(operation, request)?;
        if answer.body.is_empty() {
            return Ok(serde_json::Value::Object(serde_json::Map::new()));
        }
        serde_json::from_slice(&answer.body).map_err(|e| ClientError::Protocol(e.to_string()))
    }

    /// A fresh 256-bit data key under `key_id`. Here and below, `user` is the Unix user for whom the service is asked to
    /// decide; `None` for this process itself.
    pub fn generate_data_key(
        &self,
        key_id: &str,
        context: &EncryptionContext,
        user: Option<u32>,
    ) -> Result<GeneratedKey, ClientError> {
        let request = GenerateDataKey { key_id, encryption_context: context, key_spec: "AES_256" };
        generated(&self.of(key_id).with_retries(&encode_for(user, Operation::GenerateDataKey, &request))?)
    }

    /// Unwraps a data key that `key_id` wrapped.
    pub fn decrypt(
        &self,
        blob: &[u8],
        key_id: &str,
        context: &EncryptionContext,
        user: Option<u32>,
    ) -> Result<Decrypted, ClientError> {
        let request =
            Decrypt { ciphertext_blob: Base64(blob), encryption_context: context, key_id, dry_run: false };
        decrypted(&self.of(key_id).with_retries(&encode_for(user, Operation::Decrypt, &request))?)
    }

    /// Asks whether [`Self::decrypt`] would be allowed, without doing it. Never retried: the next probe is near.
    pub fn probe_decrypt(
        &self,
        blob: &[u8],
        key_id: &str,
        context: &EncryptionContext,
        user: Option<u32>,
    ) -> Probe {
        let request =
            Decrypt { ciphertext_blob: Base64(blob), encryption_context: context, key_id, dry_run: true };
        self.of(key_id).probe(&encode_for(user, Operation::Decrypt, &request))
    }

    fn probe(&self, dry_run: &Call) -> Probe {
        match self.transport.exchange_anyway(dry_run).and_then(check) {
            Ok(_) => Probe::Usable,
            Err(ClientError::Kms(e)) if e.code == ErrorCode::DryRunOperationException => Probe::Usable,
            Err(ClientError::Kms(e)) if super::error::is_transient(e.code) => {
                Probe::Unknown(ClientError::Kms(e))
            }
            Err(ClientError::Kms(e)) => Probe::Refused(e),
            Err(e) => Probe::Unknown(e),
        }
    }

    /// Asks whether [`Self::generate_data_key`] would be allowed, in the same way.
    pub fn probe_generate(&self, key_id: &str, context: &EncryptionContext, user: Option<u32>) -> Probe {
        let request = serde_json::json!(
            { "KeyId": key_id, "KeySpec": "AES_256", "EncryptionContext": context, "DryRun": true }
        );
        self.of(key_id).probe(&encode_for(user, Operation::GenerateDataKey, &request))
    }

    /// Waits until something has changed by which an answer of the service may change, and that `since` does not stand
    /// for; gives what stands for it, perhaps `since` after a while. `None` where the service does not tell of changes.
    pub fn await_change(&self, since: &str) -> Result<Option<String>, ClientError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Change {
            token: String,
        }
        let body = serde_json::json!({ "Since": since }).to_string().into_bytes();
        let call = Call { target: AWAIT_CHANGE, body: body.into(), idempotent: true, user: None };
        match self.transport.exchange_anyway(&call).and_then(check) {
            Err(e) if is_unserved(&e) => Ok(None),
            Err(e) => Err(e),
            Ok(answer) => {
                let change: Change =
                    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Protocol(e.to_string()))?;
                Ok(Some(change.token))
            }
        }
    }

    /// Where the mark of the blob's owner stands, after raising it to `value`; `key_id` wrapped the blob. Only kmsd has
    /// marks: `Ok(None)` where the service does not know them. `accept_older` says, for its log, that an older state is used
    /// on purpose.
    pub fn advance_mark(
        &self,
        blob: &[u8],
        key_id: &str,
        context: &EncryptionContext,
        value: Option<u64>,
        accept_older: bool,
    ) -> Result<Option<u64>, ClientError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Mark {
            value: u64,
        }
        let mut request = serde_json::json!({ "CiphertextBlob": Base64(blob), "EncryptionContext": context });
        if let Some(value) = value {
            request["Value"] = value.into();
        }
        if accept_older {
            request["AcceptOlder"] = true.into();
        }
        match self.of(key_id).call(Operation::AdvanceMark, &request) {
            Err(e) if is_unserved(&e) => Ok(None),
            Err(e) => Err(e),
            Ok(answer) => {
                let mark: Mark =
                    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Protocol(e.to_string()))?;
                Ok(Some(mark.value))
            }
        }
    }

    fn call(&self, operation: Operation, request: &impl Serialize) -> Result<Answer, ClientError> {
        self.with_retries(&encode(operation, request))
    }

    fn with_retries(&self, call: &Call) -> Result<Answer, ClientError> {
        let mut backoff = Backoff::new(self.retry);
        loop {
            match self.try_call(call) {
                Err(e) if call.idempotent && is_worth_retrying(&e) => match backoff.next_wait() {
                    Some(wait) => std::thread::sleep(wait),
                    None => return Err(e),
                },
                outcome => return outcome,
            }
        }
    }

    fn try_call(&self, call: &Call) -> Result<Answer, ClientError> {
        let begin = Instant::now();
        let answer = self.transport.exchange(call);
        if answer.is_ok() {
            self.calls.note(begin.elapsed());
        }
        let checked = answer.and_then(check);
        if checked.as_ref().is_err_and(is_worth_retrying) {
            self.throttled.add(1);
        }
        checked
    }
}

impl std::fmt::Debug for Kms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kms({})", self.services())
    }
}

/// The service said "later"; a lost connection is not retried here, so that a dead daemon fails fast.
fn is_worth_retrying(error: &ClientError) -> bool {
    matches!(error, ClientError::Kms(e) if super::error::is_transient(e.code))
}

/// The service does not know an operation that only kmsd has.
fn is_unserved(error: &ClientError) -> bool {
    let unserved = [ErrorCode::UnknownOperationException, ErrorCode::UnsupportedOperationException];
    matches!(error, ClientError::Unknown(..)) || error.code().is_some_and(|code| unserved.contains(&code))
}

fn encode(operation: Operation, request: &impl Serialize) -> Call {
    encode_for(None, operation, request)
}

fn encode_for(user: Option<u32>, operation: Operation, request: &impl Serialize) -> Call {
    let mut body = Zeroizing::new(Vec::with_capacity(2048));
    serde_json::to_writer(&mut *body, request).expect("requests have string keys and no failing members");
    let idempotent = operation.is_read_only() || !makes_anew(operation);
    Call { target: operation.target(), body, idempotent, user }
}

/// Operations that done twice make two of something, or fail the second time.
fn makes_anew(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::CreateKey
            | Operation::CreateAlias
            | Operation::CreateGrant
            | Operation::RotateKeyOnDemand
            | Operation::DeleteAlias
            | Operation::ScheduleKeyDeletion
            | Operation::CancelKeyDeletion
            | Operation::ReplicateKey
    )
}

fn check(answer: Answer) -> Result<Answer, ClientError> {
    if answer.status == 200 {
        return Ok(answer);
    }
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&answer.body) else {
        let text: String = String::from_utf8_lossy(&answer.body).chars().take(MAX_SHOWN).collect();
        return Err(ClientError::Protocol(format!("HTTP status {}: {}", answer.status, text.trim())));
    };
    match ErrorCode::from_type(&body.error_type) {
        Some(code) => Err(ClientError::Kms(KmsError::new(code, body.message))),
        None => Err(ClientError::Unknown(body.error_type, body.message)),
    }
}

fn parse_data(answer: &Answer) -> Result<DataAnswer<'_>, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Protocol(e.to_string()))
}

fn decrypted(answer: &Answer) -> Result<Decrypted, ClientError> {
    let answer = parse_data(answer)?;
    Ok(Decrypted { data_key: data_key(answer.plaintext)?, key_arn: answer.key_id.into_owned() })
}

fn generated(answer: &Answer) -> Result<GeneratedKey, ClientError> {
    let answer = parse_data(answer)?;
    Ok(GeneratedKey {
        data_key: data_key(answer.plaintext)?,
        blob: answer.ciphertext_blob.ok_or_else(|| missing("CiphertextBlob"))?.0,
        key_arn: answer.key_id.into_owned(),
        material_id: answer.key_material_id.as_deref().and_then(parse_material),
    })
}

fn data_key(plaintext: Option<SecretBlob>) -> Result<DataKey, ClientError> {
    let plaintext = plaintext.ok_or_else(|| missing("Plaintext"))?;
    let mut bytes = Zeroizing::new([0; 32]);
    if plaintext.0.len() != bytes.len() {
        return Err(ClientError::Protocol(format!("a data key of {} bytes", plaintext.0.len())));
    }
    bytes.copy_from_slice(&plaintext.0);
    Ok(DataKey::take(&mut bytes))
}

fn missing(member: &str) -> ClientError {
    ClientError::Protocol(format!("the member {member} is missing"))
}

/// A key material id: 64 hexadecimal digits.
fn parse_material(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut id = [0; 32];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(id)
}
