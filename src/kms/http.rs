//! One HTTP request to one call, one answer to one HTTP response. Translates and decides nothing.
//!
//! Called by the server for each request of a connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::api::{ErrorCode, KmsError, hex};
use crate::crypto::random_array;
use crate::logging::RateLimit;

use super::changes::{AWAIT_CHANGE, Watch};
use super::sigv4::{AccessKeySecret, SERVICE, SignatureError, SignedRequest, Verifier};
use super::wire::Wire;

/// Longest body of an ordinary call.
pub const MAX_BODY: usize = 64 * 1024;
/// Longest body of a call that carries a policy: 131,072 characters, each escaped.
pub const MAX_POLICY_BODY: usize = 1024 * 1024;
/// Bodies up to this length are read without asking; a connection can hold one of them.
const SMALL_BODY: usize = 4 * 1024;
/// Memory for longer bodies of callers on TCP, and of those on the Unix socket, so that neither starves the other.
const BODY_MEMORY: usize = 64 * 1024 * 1024;
/// Unit in which that memory is given out.
const BODY_UNIT: usize = 1024;
/// Longest text of a header that is looked at.
const MAX_HEADER_TEXT: usize = 8 * 1024;

const REQUEST_ID: &str = "x-amzn-requestid";
const VIA_SERVICE: &str = "x-kms-via-service";
/// The Unix user for whom a service calls.
const ON_BEHALF_OF: &str = "x-kms-on-behalf-of";
/// The region of an unsigned call; a signed one tells it in its scope.
const ASKED_REGION: &str = "x-kms-region";
/// The account in whose name the operator calls, unsigned.
const ASKED_ACCOUNT: &str = "x-kms-account";
/// How long one who waits for a change waits at most; below what callers take for a dead service.
const CHANGE_PATIENCE: Duration = Duration::from_secs(20);
/// Longest form of a call to IAM or STS: a policy with each byte escaped, and some more.
const MAX_FORM: usize = 128 * 1024;

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A process on this host, by the kernel's word.
    Unix {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Process id at connect.
        pid: i32,
    },
    /// A TCP peer.
    Tcp {
        /// Its address.
        address: std::net::IpAddr,
        /// Whether nobody on the way can read along.
        is_tls: bool,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { uid, pid, .. } => write!(f, "user {uid}, process {pid}"),
            Self::Tcp { address, is_tls: false } => address.fmt(f),
            Self::Tcp { address, is_tls: true } => write!(f, "{address} over TLS"),
        }
    }
}

/// A call whose sender is known.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Where it came from.
    pub origin: &'a Origin,
    /// The access key that signed it; `None` for an unsigned call of a Unix peer.
    pub access_key_id: Option<&'a str>,
    /// The region it is for, which is one that is served; `None` for an unsigned call that names none.
    pub region: Option<&'a str>,
    /// The token of temporary credentials.
    pub session_token: Option<&'a str>,
    /// The account in whose name an operator calls, unsigned.
    pub account: Option<&'a str>,
    /// The protocol.
    pub wire: Wire,
    /// `X-Amz-Target`.
    pub target: &'a str,
    /// `User-Agent`.
    pub user_agent: &'a str,
    /// The service a Unix peer says it is.
    pub via_service: Option<&'a str>,
    /// The user for whom it says it calls.
    pub on_behalf_of: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// An answer to a call.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON.
    pub body: Zeroizing<Vec<u8>>,
    /// The id in the audit record.
    pub request_id: String,
}

/// What stands behind the protocol.
pub trait Service: Send + Sync + 'static {
    /// Answers one call. May block for as long as a disk takes.
    fn call(&self, call: &Call<'_>) -> Answer;

    /// Whether callers may ask in `region`.
    fn serves(&self, region: &str) -> bool;

    /// The secret of an active access key, or of temporary credentials with their token.
    fn secret_of(&self, access_key_id: &str, token: Option<&str>) -> Result<AccessKeySecret, SignatureError>;

    /// A place to wait for changes at.
    fn changes(&self) -> Watch;

    /// Whether `target` waits for a disk, or makes keys: such calls must not hold up the others.
    fn blocks(&self, target: &str) -> bool;
}

/// Who signed a request, and for which region.
struct Signer {
    access_key_id: String,
    region: String,
    session_token: Option<String>,
}

/// Turns requests into calls.
pub struct Front {
    service: Arc<dyn Service>,
    verifier: Verifier,
    body_timeout: Duration,
    unix_bodies: Semaphore,
    tcp_bodies: Semaphore,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Front(..)")
    }
}

/// A response with its whole body.
pub type HttpResponse = Response<Full<Bytes>>;

impl Front {
    /// A front of `service`.
    pub fn new(service: Arc<dyn Service>, body_timeout: Duration) -> Self {
        let memory = || Semaphore::new(BODY_MEMORY / BODY_UNIT);
        let verifier = Verifier::default();
        Self { service, verifier, body_timeout, unix_bodies: memory(), tcp_bodies: memory() }
    }

    /// Answers one request.
    pub async fn answer(&self, origin: &Origin, request: Request<Incoming>) -> HttpResponse {
        let (head, body) = request.into_parts();
        let wire = Wire::of(&head.headers);
        if head.method != Method::POST || head.uri.path() != "/" {
            let error = KmsError::new(ErrorCode::UnknownOperationException, "");
            return refusal(Wire::Target, &error, Some(StatusCode::NOT_FOUND), false);
        }
        let target = text(&head.headers, "x-amz-target").unwrap_or_default();
        let (length, limit) = (announced(&head.headers, &body), body_limit(wire, target));
        if length.is_some_and(|length| length > limit as u64) {
            return refusal_of(wire, &too_large(limit), true);
        }
        // Nobody's bytes are taken in before it is clear that somebody may be behind them.
        if let Err(error) = self.precheck(origin, &head, length) {
            log_refusal(origin, &error);
            return refusal_of(wire, &signature_error(&error), true);
        }
        let (body, _memory) = match self.read_body(origin, length, limit, body).await {
            Ok(read) => read,
            Err(error) => return refusal_of(wire, &error, true),
        };
        let signer = match self.identify(origin, &head, &body) {
            Ok(signer) => signer,
            Err(error) => {
                log_refusal(origin, &error);
                return refusal_of(wire, &signature_error(&error), false);
            }
        };
        self.call(origin, signer, target, &head.headers, body).await
    }

    /// Makes the call: here where it only calculates, in the pool where it waits.
    async fn call(
        &self,
        origin: &Origin,
        signer: Option<Signer>,
        target: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> HttpResponse {
        let via_service = match origin {
            Origin::Unix { .. } => text(headers, VIA_SERVICE),
            Origin::Tcp { .. } => None,
        };
        let wire = Wire::of(headers);
        let region = match &signer {
            // Identities belong to no region, and clients sign for one of AWS.
            Some(signer) => Some(signer.region.as_str()).filter(|_| wire == Wire::Target),
            None => text(headers, ASKED_REGION),
        };
        if let Some(region) = region.filter(|region| !self.service.serves(region)) {
            let message = format!("Region '{region}' is not served here.");
            return refusal_of(wire, &KmsError::new(ErrorCode::ValidationException, message), false);
        }
        let user_agent = text(headers, "user-agent").unwrap_or_default();
        let access_key_id = signer.as_ref().map(|signer| signer.access_key_id.as_str());
        let call = Call {
            origin,
            access_key_id,
            region,
            session_token: signer.as_ref().and_then(|signer| signer.session_token.as_deref()),
            account: if signer.is_none() { text(headers, ASKED_ACCOUNT) } else { None },
            wire,
            target,
            user_agent,
            via_service,
            on_behalf_of: text(headers, ON_BEHALF_OF),
            body: &body,
        };
        if wire == Wire::Target && target == AWAIT_CHANGE {
            return self.await_change(&body).await;
        }
        if wire == Wire::Target && !self.service.blocks(target) {
            return respond(wire, self.service.call(&call));
        }
        let (service, owned) = (Arc::clone(&self.service), OwnedCall::of(&call, body.clone()));
        match tokio::task::spawn_blocking(move || service.call(&owned.as_call())).await {
            Ok(answer) => respond(wire, answer),
            Err(_) => refusal_of(wire, &KmsError::new(ErrorCode::KMSInternalException, ""), false),
        }
    }

    /// Answers when something has changed that the caller does not know of, or after a while. No key is touched and
    /// nothing is recorded.
    async fn await_change(&self, body: &[u8]) -> HttpResponse {
        let known: Known = match serde_json::from_slice(body) {
            Ok(known) => known,
            Err(error) => {
                let error = KmsError::new(ErrorCode::SerializationException, error.to_string());
                return refusal_of(Wire::Target, &error, false);
            }
        };
        let mut watch = self.service.changes();
        // Without a change in time the answer is the token that the caller knows.
        let _ = tokio::time::timeout(CHANGE_PATIENCE, watch.beyond(&known.since)).await;
        let answer = serde_json::json!({ "Token": watch.token() });
        let body = Zeroizing::new(answer.to_string().into_bytes());
        respond(Wire::Target, Answer { status: 200, body, request_id: request_id() })
    }

    /// What can be told of a TCP caller from the head alone. A short body is cheaper read than doubted.
    fn precheck(&self, origin: &Origin, head: &Parts, length: Option<u64>) -> Result<(), SignatureError> {
        if matches!(origin, Origin::Unix { .. }) {
            return Ok(());
        }
        if !head.headers.contains_key(AUTHORIZATION) {
            return Err(SignatureError::absent(head.uri.query().unwrap_or_default()));
        }
        if length.is_some_and(|length| length <= SMALL_BODY as u64) {
            return Ok(());
        }
        let headers = header_texts(&head.headers);
        let request = signed_request(head, &headers, &[]);
        let serves = |region: &str| request.services != [SERVICE] || self.service.serves(region);
        self.verifier.precheck(&request, now_seconds(), serves, |id, token| self.service.secret_of(id, token))
    }

    /// The body, and the memory that it is counted against.
    async fn read_body(
        &self,
        origin: &Origin,
        length: Option<u64>,
        limit: usize,
        body: Incoming,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), KmsError> {
        let cut = |what: &str| KmsError::new(ErrorCode::SerializationException, what);
        let expected = length.map_or(limit, |length| usize::try_from(length).unwrap_or(limit));
        let reading = async {
            let memory = if expected <= SMALL_BODY { None } else { self.body_memory(origin, expected).await };
            (Limited::new(body, limit).collect().await, memory)
        };
        let Ok((collected, memory)) = tokio::time::timeout(self.body_timeout, reading).await else {
            return Err(cut("The request's body took too long."));
        };
        match collected {
            Ok(body) => Ok((body.to_bytes(), memory)),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
            Err(_) => Err(cut("The request's body is cut short.")),
        }
    }

    /// Waits until there is memory for `expected` bytes.
    async fn body_memory(&self, origin: &Origin, expected: usize) -> Option<SemaphorePermit<'_>> {
        let memory = match origin {
            Origin::Unix { .. } => &self.unix_bodies,
            Origin::Tcp { .. } => &self.tcp_bodies,
        };
        let units = u32::try_from(expected.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        memory.acquire_many(units).await.ok()
    }

    /// Who signed; `None` for an unsigned request where the kernel vouches for the peer.
    fn identify(&self, origin: &Origin, head: &Parts, body: &[u8]) -> Result<Option<Signer>, SignatureError> {
        let signed = head.headers.contains_key(AUTHORIZATION);
        if !signed && matches!(origin, Origin::Unix { .. }) {
            return Ok(None);
        }
        let headers = header_texts(&head.headers);
        let request = signed_request(head, &headers, body);
        let serves = |region: &str| request.services != [SERVICE] || self.service.serves(region);
        let secret_of = |id: &str, token: Option<&str>| self.service.secret_of(id, token);
        let signed = self.verifier.verify(&request, now_seconds(), serves, secret_of)?;
        Ok(Some(Signer {
            access_key_id: signed.access_key_id.to_owned(),
            region: signed.region.to_owned(),
            session_token: signed.session_token.map(str::to_owned),
        }))
    }
}

/// What one who waits for a change knows of.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Known {
    #[serde(default)]
    since: String,
}

/// A call that may outlive its request.
struct OwnedCall {
    origin: Origin,
    access_key_id: Option<String>,
    region: Option<String>,
    session_token: Option<String>,
    account: Option<String>,
    wire: Wire,
    target: String,
    user_agent: String,
    via_service: Option<String>,
    on_behalf_of: Option<String>,
    body: Bytes,
}

impl OwnedCall {
    fn of(call: &Call<'_>, body: Bytes) -> Self {
        Self {
            origin: call.origin.clone(),
            access_key_id: call.access_key_id.map(str::to_owned),
            region: call.region.map(str::to_owned),
            session_token: call.session_token.map(str::to_owned),
            account: call.account.map(str::to_owned),
            wire: call.wire,
            target: call.target.to_owned(),
            user_agent: call.user_agent.to_owned(),
            via_service: call.via_service.map(str::to_owned),
            on_behalf_of: call.on_behalf_of.map(str::to_owned),
            body,
        }
    }

    fn as_call(&self) -> Call<'_> {
        Call {
            origin: &self.origin,
            access_key_id: self.access_key_id.as_deref(),
            region: self.region.as_deref(),
            session_token: self.session_token.as_deref(),
            account: self.account.as_deref(),
            wire: self.wire,
            target: &self.target,
            user_agent: &self.user_agent,
            via_service: self.via_service.as_deref(),
            on_behalf_of: self.on_behalf_of.as_deref(),
            body: &self.body,
        }
    }
}

fn header_texts(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())).collect()
}

fn signed_request<'a>(
    head: &'a Parts,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
) -> SignedRequest<'a> {
    SignedRequest {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        headers,
        body,
        services: Wire::of(&head.headers).services(),
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How long the body says it is; `None` when it comes in pieces.
fn announced(headers: &HeaderMap, body: &Incoming) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()).or(body.size_hint().exact())
}

/// The response to a connection beyond the limit, written without reading a request.
pub const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/x-amz-json-1.1\r\n\
    content-length: 99\r\nconnection: close\r\n\r\n\
    {\"__type\":\"ServiceUnavailableException\",\"message\":\"Too many connections to kmsd; try again later.\"}";

fn body_limit(wire: Wire, target: &str) -> usize {
    if wire != Wire::Target {
        return MAX_FORM;
    }
    match target.rsplit('.').next() {
        Some("CreateKey" | "PutKeyPolicy" | "ReplicateKey") => MAX_POLICY_BODY,
        _ => MAX_BODY,
    }
}

fn too_large(limit: usize) -> KmsError {
    let message = format!("The request's body is longer than {limit} bytes.");
    KmsError::new(ErrorCode::RequestEntityTooLargeException, message)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| text.len() <= MAX_HEADER_TEXT)
}

fn respond(wire: Wire, answer: Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    build(wire, status, Bytes::from_owner(answer.body), &answer.request_id)
}

fn refusal_of(wire: Wire, error: &KmsError, close: bool) -> HttpResponse {
    refusal(wire, error, None, close)
}

fn refusal(wire: Wire, error: &KmsError, status: Option<StatusCode>, close: bool) -> HttpResponse {
    let id = request_id();
    let (own, body) = wire.error(error, &id);
    let status = status.or(StatusCode::from_u16(own).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = build(wire, status, Bytes::from_owner(body), &id);
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn build(wire: Wire, status: StatusCode, body: Bytes, request_id: &str) -> HttpResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, wire.content_type());
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn request_id() -> String {
    let id = hex(&random_array::<16>());
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

/// The one table from signature errors to codes of the protocol.
fn signature_error(error: &SignatureError) -> KmsError {
    use SignatureError::{
        BadDate, BodyHash, Expired, ExpiredToken, InQuery, Incomplete, Mismatch, Missing, NoDate, NotYet,
        Region, ScopeDate, Service, UnknownKey, Unsigned,
    };
    let code = match error {
        Missing => ErrorCode::MissingAuthenticationTokenException,
        InQuery | Incomplete(_) | NoDate | BadDate(_) => ErrorCode::IncompleteSignature,
        UnknownKey => ErrorCode::UnrecognizedClientException,
        ExpiredToken => ErrorCode::ExpiredTokenException,
        ScopeDate { .. }
        | Region(_)
        | Service
        | Expired(..)
        | NotYet(..)
        | Unsigned(_)
        | BodyHash
        | Mismatch => ErrorCode::InvalidSignatureException,
    };
    KmsError::new(code, error.to_string())
}

fn log_refusal(origin: &Origin, error: &SignatureError) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(held_back) = LIMIT.admit() {
        log::warn!("refused a request from {origin}: {error} ({held_back} more before it)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_response_says_how_long_it_is() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
