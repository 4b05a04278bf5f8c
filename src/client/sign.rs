//! AWS Signature Version 4 of requests to TCP endpoints.
//!
//! Called by [`super::transport`]. Must never print the secret or a derived key.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::Credentials;
use super::transport::CONTENT_TYPE;
use crate::api::hex;
use crate::api::sigv4::{self, Scope, SignedParts};
use crate::crypto::{SigningKey, sha256};

const SERVICE: &str = "kms";

/// Signs for one access key; keeps the day's derived key.
pub struct Signer {
    credentials: Credentials,
    day_key: Mutex<Option<(String, SigningKey)>>,
}

impl Signer {
    /// Signs with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, day_key: Mutex::new(None) }
    }

    /// Appends the headers that authenticate the request.
    pub fn write_headers(&self, host: &str, target: &str, body: &[u8], out: &mut Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let time = sigv4::time_text(now);
        let authorization = self.sign(&time, host, target, body);
        let mut header = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        };
        header("X-Amz-Date", &time);
        if let Some(token) = &self.credentials.session_token {
            header("X-Amz-Security-Token", token);
        }
        header("Authorization", &authorization);
    }

    /// The value of `Authorization` at `time`.
    fn sign(&self, time: &str, host: &str, target: &str, body: &[u8]) -> String {
        let mut headers = vec![
            ("content-type", CONTENT_TYPE),
            ("host", host),
            ("x-amz-date", time),
            ("x-amz-target", target),
        ];
        if let Some(token) = &self.credentials.session_token {
            headers.insert(3, ("x-amz-security-token", token.as_str()));
        }
        let signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let body_hash = sha256(body);
        let parts = SignedParts::of_call(&headers, &signed, &body_hash);
        let canonical =
            sigv4::canonical_request(&parts).expect("every signed header is in the list it was made from");
        let scope = Scope { date: &time[..8], region: &self.credentials.region, service: SERVICE };
        let text = sigv4::string_to_sign(time, &scope, &sha256(canonical.as_bytes()));
        let signature = self.with_day_key(scope.date, |key| key.sign(&text));
        sigv4::authorization(&self.credentials.access_key_id, &scope, &signed, &hex(&signature))
    }

    fn with_day_key(&self, day: &str, sign: impl FnOnce(&SigningKey) -> [u8; 32]) -> [u8; 32] {
        let mut kept = self.day_key.lock();
        match &*kept {
            Some((of, key)) if of == day => sign(key),
            _ => {
                let secret = self.credentials.secret.expose().as_bytes();
                let key = SigningKey::derive(secret, day, &self.credentials.region, SERVICE);
                let signature = sign(&key);
                *kept = Some((day.to_owned(), key));
                signature
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::SecretAccessKey;

    fn signer(session_token: Option<&str>) -> Signer {
        Signer::new(Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret: SecretAccessKey::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: session_token.map(str::to_owned),
            region: "us-east-1".to_owned(),
        })
    }

    #[test]
    fn every_part_of_the_request_changes_the_signature() {
        let sign =
            |time: &str, host: &str, target: &str, body: &[u8]| signer(None).sign(time, host, target, body);
        let base = sign("20200101T000000Z", "h", "TrentService.X", b"{}");
        assert!(
            base.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20200101/us-east-1/kms/aws4_request, ")
        );
        assert!(base.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-target, "));
        assert_eq!(base, sign("20200101T000000Z", "h", "TrentService.X", b"{}"));
        assert_ne!(base, sign("20200101T000001Z", "h", "TrentService.X", b"{}"));
        assert_ne!(base, sign("20200101T000000Z", "i", "TrentService.X", b"{}"));
        assert_ne!(base, sign("20200101T000000Z", "h", "TrentService.Y", b"{}"));
        assert_ne!(base, sign("20200101T000000Z", "h", "TrentService.X", b"{ }"));
    }

    #[test]
    fn a_session_token_is_signed_and_the_day_key_follows_the_date() {
        let signer = signer(Some("tok"));
        let mut out = Vec::new();
        signer.write_headers("h", "TrentService.X", b"{}", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("X-Amz-Security-Token: tok\r\n")
                && text.contains("x-amz-security-token;x-amz-target")
        );
        let first = signer.sign("20200101T000000Z", "h", "t", b"");
        signer.sign("20200102T000000Z", "h", "t", b"");
        assert_eq!(signer.sign("20200101T000000Z", "h", "t", b""), first);
    }
}
