//! Checks of AWS Signature Version 4 on whole requests.
//!
//! Called by the server before anything of the body is parsed. A request that passes names the access key that signed
//! it; whether that key may do what it asks is decided in the pipeline.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::api::sigv4::{
    Authorization, AuthorizationError, Scope, SignedParts, canonical_request, parse_authorization,
    parse_time, string_to_sign, time_text,
};
use crate::api::unhex;
use crate::crypto::{SigningKey, constant_time_eq, sha256};

/// The header of temporary credentials.
const TOKEN: &str = "x-amz-security-token";
/// What the query string of a presigned URL holds.
const QUERY_SIGNATURE: &str = "X-Amz-Signature=";
/// How far the clocks may be apart.
pub const MAX_SKEW_SECONDS: u64 = 15 * 60;
/// The service in the scope.
pub const SERVICE: &str = "kms";
/// Signing keys kept; when full the cache starts anew.
const MAX_CACHED_KEYS: usize = 1024;

/// An access key's secret, wiped on drop.
pub struct AccessKeySecret(Zeroizing<Vec<u8>>);

impl AccessKeySecret {
    /// Takes the secret over.
    pub fn new(secret: Zeroizing<Vec<u8>>) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for AccessKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKeySecret(..)")
    }
}

/// A request as it came in.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// `POST` and so on.
    pub method: &'a str,
    /// Path.
    pub path: &'a str,
    /// Query without `?`.
    pub query: &'a str,
    /// Headers as sent.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body.
    pub body: &'a [u8],
    /// Names of services that the signature may be for.
    pub services: &'static [&'static str],
}

impl<'a> SignedRequest<'a> {
    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// Why a signature was not accepted; the texts are AWS's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureError {
    /// No signature at all.
    Missing,
    /// A signature in the query string.
    InQuery,
    /// The Authorization header cannot be read.
    Incomplete(AuthorizationError),
    /// Neither `X-Amz-Date` nor `Date`.
    NoDate,
    /// The date is not of the form `20260131T235958Z`.
    BadDate(String),
    /// The scope's date is not the request's.
    ScopeDate {
        /// In the scope.
        scope: String,
        /// Of the request.
        request: String,
    },
    /// Another region.
    Region(String),
    /// Another service.
    Service,
    /// Too old: the request's time, the earliest allowed, now.
    Expired(String, String, String),
    /// Too new: the request's time, the latest allowed, now.
    NotYet(String, String, String),
    /// A header that has to be signed is not.
    Unsigned(String),
    /// The access key does not exist or is not active, or its session token is none of ours.
    UnknownKey,
    /// The session has ended.
    ExpiredToken,
    /// `X-Amz-Content-Sha256` is not the hash of the body.
    BodyHash,
    /// The signature is not the one we computed.
    Mismatch,
}

impl SignatureError {
    /// What is wrong with a request that has no Authorization header.
    pub fn absent(query: &str) -> Self {
        if query.contains(QUERY_SIGNATURE) { Self::InQuery } else { Self::Missing }
    }
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("Missing Authentication Token"),
            Self::InQuery => f.write_str(
                "A signature in the query string (a presigned URL) is not taken here; sign in the Authorization header.",
            ),
            Self::Incomplete(error) => error.fmt(f),
            Self::NoDate => f.write_str(
                "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
            ),
            Self::BadDate(date) => write!(
                f,
                "Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
            ),
            Self::ScopeDate { scope, request } => write!(
                f,
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: \
                 '{scope}' != '{}', from '{request}'.",
                request.get(..8).unwrap_or(request)
            ),
            Self::Region(region) => {
                write!(f, "Credential should be scoped to a valid region, not '{region}'.")
            }
            Self::Service => write!(f, "Credential should be scoped to correct service: '{SERVICE}'."),
            Self::Expired(time, earliest, now) => {
                write!(f, "Signature expired: {time} is now earlier than {earliest} ({now} - 15 min.)")
            }
            Self::NotYet(time, latest, now) => {
                write!(f, "Signature not yet current: {time} is still later than {latest} ({now} + 15 min.)")
            }
            Self::Unsigned(header) => {
                write!(f, "'{header}' must be a 'SignedHeader' in the AWS Authorization.")
            }
            Self::UnknownKey => f.write_str("The security token included in the request is invalid."),
            Self::ExpiredToken => f.write_str("The security token included in the request is expired"),
            Self::BodyHash => f.write_str(
                "The value of the header 'X-Amz-Content-Sha256' does not match the hash of the request's body.",
            ),
            Self::Mismatch => f.write_str(
                "The request signature we calculated does not match the signature you provided. Check your AWS \
                 Secret Access Key and signing method. Consult the service documentation for details.",
            ),
        }
    }
}

impl std::error::Error for SignatureError {}

/// Who signed, and for where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// The access key.
    pub access_key_id: &'a str,
    /// The region in the scope.
    pub region: &'a str,
    /// The token of temporary credentials.
    pub session_token: Option<&'a str>,
}

struct CachedKey {
    date: String,
    region: String,
    service: String,
    secret: AccessKeySecret,
    key: Arc<SigningKey>,
}

/// Checks signatures. Keeps the day's signing keys.
#[derive(Default)]
pub struct Verifier {
    keys: Mutex<HashMap<String, CachedKey>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl Verifier {
    /// What the head alone tells: a request that fails here would fail with any body.
    pub fn precheck(
        &self,
        request: &SignedRequest<'_>,
        now_seconds: u64,
        serves: impl Fn(&str) -> bool,
        secret_of: impl Fn(&str, Option<&str>) -> Result<AccessKeySecret, SignatureError>,
    ) -> Result<(), SignatureError> {
        checked_head(request, now_seconds, serves, secret_of).map(drop)
    }

    /// Who signed `request`. `serves` tells whether a region is served, `secret_of` finds the secret of an active
    /// access key.
    pub fn verify<'a>(
        &self,
        request: &SignedRequest<'a>,
        now_seconds: u64,
        serves: impl Fn(&str) -> bool,
        secret_of: impl Fn(&str, Option<&str>) -> Result<AccessKeySecret, SignatureError>,
    ) -> Result<Signed<'a>, SignatureError> {
        let Head { authorization, time, session_token, secret } =
            checked_head(request, now_seconds, serves, secret_of)?;
        let body_hash = check_body(request)?;
        let text = text_to_sign(request, &authorization, &time, &body_hash)?;
        let expected = self.signing_key(&authorization, secret).sign(&text);
        let given = unhex(authorization.signature).ok_or(SignatureError::Mismatch)?;
        if !constant_time_eq(&expected, &given) {
            return Err(SignatureError::Mismatch);
        }
        let Scope { region, .. } = authorization.scope;
        Ok(Signed { access_key_id: authorization.access_key_id, region, session_token })
    }

    fn signing_key(&self, authorization: &Authorization<'_>, secret: AccessKeySecret) -> Arc<SigningKey> {
        let Scope { date, region, service } = authorization.scope;
        let mut keys = self.keys.lock();
        if let Some(cached) = keys.get(authorization.access_key_id)
            && (cached.date.as_str(), cached.region.as_str(), cached.service.as_str())
                == (date, region, service)
            && constant_time_eq(&cached.secret.0, &secret.0)
        {
            return Arc::clone(&cached.key);
        }
        let key = Arc::new(SigningKey::derive(&secret.0, date, region, service));
        if keys.len() >= MAX_CACHED_KEYS {
            keys.clear();
        }
        let (date, region, service) = (date.to_owned(), region.to_owned(), service.to_owned());
        let cached = CachedKey { date, region, service, secret, key: Arc::clone(&key) };
        keys.insert(authorization.access_key_id.to_owned(), cached);
        key
    }
}

/// What the head of a request says of its signer, as far as it can be believed without the body.
struct Head<'a> {
    authorization: Authorization<'a>,
    time: String,
    session_token: Option<&'a str>,
    secret: AccessKeySecret,
}

fn checked_head<'a>(
    request: &SignedRequest<'a>,
    now_seconds: u64,
    serves: impl Fn(&str) -> bool,
    secret_of: impl Fn(&str, Option<&str>) -> Result<AccessKeySecret, SignatureError>,
) -> Result<Head<'a>, SignatureError> {
    let header = request.header("authorization").ok_or_else(|| SignatureError::absent(request.query))?;
    let authorization = parse_authorization(header).map_err(SignatureError::Incomplete)?;
    let time = request_time(request)?;
    check_scope(&authorization.scope, request.services, &time, serves)?;
    check_skew(&time, now_seconds)?;
    check_signed_headers(request, &authorization)?;
    let session_token = request.header(TOKEN);
    let secret = secret_of(authorization.access_key_id, session_token)?;
    Ok(Head { authorization, time, session_token, secret })
}

fn check_scope(
    scope: &Scope<'_>,
    services: &[&str],
    time: &str,
    serves: impl Fn(&str) -> bool,
) -> Result<(), SignatureError> {
    if !serves(scope.region) {
        return Err(SignatureError::Region(scope.region.to_owned()));
    }
    if !services.contains(&scope.service) {
        return Err(SignatureError::Service);
    }
    if time.get(..8) != Some(scope.date) {
        return Err(SignatureError::ScopeDate { scope: scope.date.to_owned(), request: time.to_owned() });
    }
    Ok(())
}

fn request_time(request: &SignedRequest<'_>) -> Result<String, SignatureError> {
    let date = request.header("x-amz-date").or_else(|| request.header("date"));
    let date = date.ok_or(SignatureError::NoDate)?.trim();
    parse_time(date).ok_or_else(|| SignatureError::BadDate(date.to_owned()))?;
    Ok(date.to_owned())
}

fn check_skew(time: &str, now: u64) -> Result<(), SignatureError> {
    let signed_at = parse_time(time).ok_or_else(|| SignatureError::BadDate(time.to_owned()))?;
    let (earliest, latest) = (now.saturating_sub(MAX_SKEW_SECONDS), now + MAX_SKEW_SECONDS);
    if signed_at < earliest {
        return Err(SignatureError::Expired(time.to_owned(), time_text(earliest), time_text(now)));
    }
    if signed_at > latest {
        return Err(SignatureError::NotYet(time.to_owned(), time_text(latest), time_text(now)));
    }
    Ok(())
}

/// The host and everything of Amazon's own must be signed, or it could be changed on the way.
fn check_signed_headers(
    request: &SignedRequest<'_>,
    given: &Authorization<'_>,
) -> Result<(), SignatureError> {
    let is_signed = |name: &str| given.signed.iter().any(|signed| signed.eq_ignore_ascii_case(name));
    if !is_signed("host") {
        return Err(SignatureError::Unsigned("Host".to_owned()));
    }
    for (name, _) in request.headers {
        let own = name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-amz-"));
        if own && !is_signed(name) {
            return Err(SignatureError::Unsigned((*name).to_owned()));
        }
    }
    Ok(())
}

fn check_body(request: &SignedRequest<'_>) -> Result<[u8; 32], SignatureError> {
    let hash = sha256(request.body);
    match request.header("x-amz-content-sha256") {
        Some(claimed) if unhex(claimed.trim()).as_deref() != Some(&hash[..]) => Err(SignatureError::BodyHash),
        _ => Ok(hash),
    }
}

fn text_to_sign(
    request: &SignedRequest<'_>,
    authorization: &Authorization<'_>,
    time: &str,
    body_hash: &[u8; 32],
) -> Result<String, SignatureError> {
    let parts = SignedParts {
        method: request.method,
        path: request.path,
        query: request.query,
        headers: request.headers,
        signed: &authorization.signed,
        body_hash,
    };
    let canonical = canonical_request(&parts).ok_or(SignatureError::Mismatch)?;
    Ok(string_to_sign(time, &authorization.scope, &sha256(canonical.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signed by botocore 1.44.5 (`SigV4Auth`), with the secret below.
    const BODY: &[u8] = br#"{"KeyId":"alias/x","Plaintext":"aGVsbG8="}"#;
    const HEADERS: [(&str, &str); 6] = [
        ("Host", "127.0.0.1:4599"),
        ("Content-Type", "application/x-amz-json-1.1"),
        ("X-Amz-Target", "TrentService.Encrypt"),
        ("X-Amz-Date", "20260131T235958Z"),
        ("User-Agent", "Boto3/1.43 md/x"),
        (
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260131/local/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=bbc78c856cfb76b16410d84cbe236ba7293d71bf93d70a3727fdb3434000c5c1",
        ),
    ];
    const NOW: u64 = 1_769_903_998;

    fn secret_of(id: &str, token: Option<&str>) -> Result<AccessKeySecret, SignatureError> {
        let secret = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec();
        match (id, token) {
            ("AKIDEXAMPLE", None) => Ok(AccessKeySecret::new(Zeroizing::new(secret))),
            _ => Err(SignatureError::UnknownKey),
        }
    }

    fn is_local(region: &str) -> bool {
        region == "local"
    }

    fn request<'a>(headers: &'a [(&'a str, &'a str)], body: &'a [u8]) -> SignedRequest<'a> {
        SignedRequest { method: "POST", path: "/", query: "", headers, body, services: &[SERVICE] }
    }

    fn verify(headers: &[(&str, &str)], body: &[u8], now: u64) -> Result<String, SignatureError> {
        let verified = Verifier::default().verify(&request(headers, body), now, is_local, secret_of);
        verified.map(|signed| signed.access_key_id.to_owned())
    }

    fn with(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        let mut headers = HEADERS.to_vec();
        headers.iter_mut().filter(|(n, _)| *n == name).for_each(|header| header.1 = value);
        headers
    }

    #[test]
    fn what_botocore_signed_is_accepted() {
        assert_eq!(verify(&HEADERS, BODY, NOW).as_deref(), Ok("AKIDEXAMPLE"));
        assert_eq!(verify(&HEADERS, BODY, NOW + MAX_SKEW_SECONDS).as_deref(), Ok("AKIDEXAMPLE"));
        assert_eq!(verify(&HEADERS, BODY, NOW - MAX_SKEW_SECONDS).as_deref(), Ok("AKIDEXAMPLE"));
    }

    #[test]
    fn every_change_of_what_was_signed_is_refused() {
        assert_eq!(verify(&HEADERS, b"{}", NOW), Err(SignatureError::Mismatch));
        for (name, value) in [
            ("Host", "127.0.0.1:9999"),
            ("X-Amz-Target", "TrentService.Decrypt"),
            ("Content-Type", "application/json"),
        ] {
            assert_eq!(verify(&with(name, value), BODY, NOW), Err(SignatureError::Mismatch), "{name}");
        }
        let mut request = request(&HEADERS, BODY);
        request.path = "/other";
        let outcome = Verifier::default().verify(&request, NOW, is_local, secret_of);
        assert_eq!(outcome, Err(SignatureError::Mismatch));
    }

    #[test]
    fn every_flipped_digit_of_the_signature_is_refused() {
        let authorization = HEADERS.iter().find(|(n, _)| *n == "Authorization").unwrap().1;
        let start = authorization.len() - 64;
        for at in start..authorization.len() {
            let mut bytes = authorization.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            let mut headers = HEADERS.to_vec();
            headers.retain(|(n, _)| *n != "Authorization");
            headers.push(("Authorization", &changed));
            assert_eq!(verify(&headers, BODY, NOW), Err(SignatureError::Mismatch));
        }
    }

    #[test]
    fn clocks_too_far_apart_are_told_so_in_the_words_clients_know() {
        let late = verify(&HEADERS, BODY, NOW + MAX_SKEW_SECONDS + 1).unwrap_err();
        assert!(matches!(late, SignatureError::Expired(..)));
        assert!(late.to_string().starts_with("Signature expired: "), "{late}");
        let early = verify(&HEADERS, BODY, NOW - MAX_SKEW_SECONDS - 1).unwrap_err();
        assert!(early.to_string().starts_with("Signature not yet current: "), "{early}");
    }

    #[test]
    fn unsigned_unknown_and_foreign_requests_are_told_apart() {
        let without = |name: &str| HEADERS.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>();
        assert_eq!(verify(&without("Authorization"), BODY, NOW), Err(SignatureError::Missing));
        assert_eq!(verify(&without("X-Amz-Date"), BODY, NOW), Err(SignatureError::NoDate));
        let elsewhere = Verifier::default().verify(&request(&HEADERS, BODY), NOW, |_| false, secret_of);
        assert_eq!(elsewhere, Err(SignatureError::Region("local".into())));
        let nobody = Verifier::default()
            .verify(&request(&HEADERS, BODY), NOW, is_local, |_, _| Err(SignatureError::UnknownKey));
        assert_eq!(nobody, Err(SignatureError::UnknownKey));
        let mut extra = HEADERS.to_vec();
        extra.push(("X-Amz-Via", "other"));
        assert_eq!(verify(&extra, BODY, NOW), Err(SignatureError::Unsigned("X-Amz-Via".into())));
    }

    #[test]
    fn a_changed_secret_is_not_served_from_the_cache() {
        let verifier = Verifier::default();
        let signed = verifier.verify(&request(&HEADERS, BODY), NOW, is_local, secret_of);
        assert_eq!(signed, Ok(Signed { access_key_id: "AKIDEXAMPLE", region: "local", session_token: None }));
        let other = |_: &str, _: Option<&str>| Ok(AccessKeySecret::new(Zeroizing::new(b"other".to_vec())));
        assert_eq!(
            verifier.verify(&request(&HEADERS, BODY), NOW, is_local, other),
            Err(SignatureError::Mismatch)
        );
    }
}
