//! One HTTP request to one call, one answer to one HTTP response. Translates and decides nothing.
//!
//! Called by the server for each request of a connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::api::{ErrorCode, KmsError, hex};
use crate::crypto::random_array;
use crate::logging::RateLimit;

use super::sigv4::{AccessKeySecret, SignatureError, SignedRequest, Verifier};

/// Longest body of an ordinary call.
pub const MAX_BODY: usize = 64 * 1024;
/// Longest body of a call that carries a policy: 131,072 characters, each escaped.
pub const MAX_POLICY_BODY: usize = 1024 * 1024;
/// Bodies beyond [`MAX_BODY`] that are read at the same time.
const MAX_LARGE_BODIES: usize = 32;
/// Longest text of a header that is looked at.
const MAX_HEADER_TEXT: usize = 8 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");
const REQUEST_ID: &str = "x-amzn-requestid";
const VIA_SERVICE: &str = "x-kms-via-service";
/// The region of an unsigned call; a signed one tells it in its scope.
const ASKED_REGION: &str = "x-kms-region";

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
    Tcp(std::net::IpAddr),
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
    /// `X-Amz-Target`.
    pub target: &'a str,
    /// `User-Agent`.
    pub user_agent: &'a str,
    /// The service a Unix peer says it calls for.
    pub via_service: Option<&'a str>,
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

    /// The secret of an active access key.
    fn secret_of(&self, access_key_id: &str) -> Option<AccessKeySecret>;

    /// Whether `target` waits for a disk: such calls must not hold up the others.
    fn blocks(&self, target: &str) -> bool;
}

/// Who signed a request, and for which region.
struct Signer {
    access_key_id: String,
    region: String,
}

/// Turns requests into calls.
pub struct Front {
    service: Arc<dyn Service>,
    verifier: Verifier,
    body_timeout: Duration,
    large_bodies: Semaphore,
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
        let large_bodies = Semaphore::new(MAX_LARGE_BODIES);
        Self { service, verifier: Verifier::default(), body_timeout, large_bodies }
    }

    /// Answers one request.
    pub async fn answer(&self, origin: &Origin, request: Request<Incoming>) -> HttpResponse {
        let (head, body) = request.into_parts();
        if head.method != Method::POST || head.uri.path() != "/" {
            let error = KmsError::new(ErrorCode::UnknownOperationException, "");
            return refusal(&error, StatusCode::NOT_FOUND, false);
        }
        let target = text(&head.headers, "x-amz-target").unwrap_or_default();
        let body = match self.read_body(target, &head.headers, body).await {
            Ok(body) => body,
            Err(error) => return refusal_of(&error, true),
        };
        let signer = match self.identify(origin, &head, &body) {
            Ok(signer) => signer,
            Err(error) => {
                log_refusal(origin, &error);
                return refusal_of(&signature_error(&error), false);
            }
        };
        let via_service = match origin {
            Origin::Unix { .. } => text(&head.headers, VIA_SERVICE),
            Origin::Tcp(_) => None,
        };
        let region = match &signer {
            Some(signer) => Some(signer.region.as_str()),
            None => text(&head.headers, ASKED_REGION),
        };
        if let Some(region) = region.filter(|region| !self.service.serves(region)) {
            let message = format!("Region '{region}' is not served here.");
            return refusal_of(&KmsError::new(ErrorCode::ValidationException, message), false);
        }
        let user_agent = text(&head.headers, "user-agent").unwrap_or_default();
        let call = Call {
            origin,
            access_key_id: signer.as_ref().map(|signer| signer.access_key_id.as_str()),
            region,
            target,
            user_agent,
            via_service,
            body: &body,
        };
        let answer = if self.service.blocks(target) {
            tokio::task::block_in_place(|| self.service.call(&call))
        } else {
            self.service.call(&call)
        };
        respond(answer)
    }

    async fn read_body(&self, target: &str, headers: &HeaderMap, body: Incoming) -> Result<Bytes, KmsError> {
        let limit = body_limit(target);
        let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let expected = announced.or(body.size_hint().upper()).unwrap_or(u64::MAX);
        if announced.is_some_and(|len| len > limit as u64) {
            return Err(too_large(limit));
        }
        let _permit = self.large_permit(expected, limit)?;
        let collected = tokio::time::timeout(self.body_timeout, Limited::new(body, limit).collect()).await;
        match collected {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
            Ok(Err(_)) => {
                Err(KmsError::new(ErrorCode::SerializationException, "The request's body is cut short."))
            }
            Err(_) => {
                Err(KmsError::new(ErrorCode::SerializationException, "The request's body took too long."))
            }
        }
    }

    fn large_permit(&self, expected: u64, limit: usize) -> Result<Option<SemaphorePermit<'_>>, KmsError> {
        if limit <= MAX_BODY || expected <= MAX_BODY as u64 {
            return Ok(None);
        }
        let busy = |_| KmsError::new(ErrorCode::ThrottlingException, "Too many large requests at once.");
        self.large_bodies.try_acquire().map(Some).map_err(busy)
    }

    /// Who signed; `None` for an unsigned request where the kernel vouches for the peer.
    fn identify(
        &self,
        origin: &Origin,
        head: &hyper::http::request::Parts,
        body: &[u8],
    ) -> Result<Option<Signer>, SignatureError> {
        let signed = head.headers.contains_key("authorization");
        if !signed && matches!(origin, Origin::Unix { .. }) {
            return Ok(None);
        }
        let headers: Vec<(&str, &str)> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        let request = SignedRequest {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &headers,
            body,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let serves = |region: &str| self.service.serves(region);
        let signed = self.verifier.verify(&request, now, serves, |id| self.service.secret_of(id))?;
        Ok(Some(Signer { access_key_id: signed.access_key_id.to_owned(), region: signed.region.to_owned() }))
    }
}

/// The response to a connection beyond the limit, written without reading a request.
pub const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/x-amz-json-1.1\r\n\
    content-length: 99\r\nconnection: close\r\n\r\n\
    {\"__type\":\"ServiceUnavailableException\",\"message\":\"Too many connections to kmsd; try again later.\"}";

fn body_limit(target: &str) -> usize {
    match target.rsplit('.').next() {
        Some("CreateKey" | "PutKeyPolicy" | "PutUserPolicy" | "ReplicateKey") => MAX_POLICY_BODY,
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

fn respond(answer: Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    build(status, Bytes::from_owner(answer.body), &answer.request_id)
}

fn refusal_of(error: &KmsError, close: bool) -> HttpResponse {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    refusal(error, status, close)
}

fn refusal(error: &KmsError, status: StatusCode, close: bool) -> HttpResponse {
    let mut response = build(status, Bytes::from(error.body()), &request_id());
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn build(status: StatusCode, body: Bytes, request_id: &str) -> HttpResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
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
        BadDate, BodyHash, Expired, Incomplete, Mismatch, Missing, NoDate, NotYet, Region, ScopeDate,
        Service, UnknownKey, Unsigned,
    };
    let code = match error {
        Missing => ErrorCode::MissingAuthenticationTokenException,
        Incomplete(_) | NoDate | BadDate(_) => ErrorCode::IncompleteSignature,
        UnknownKey => ErrorCode::UnrecognizedClientException,
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
        log::warn!("refused a request from {origin:?}: {error} ({held_back} more before it)");
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
