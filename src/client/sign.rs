//! AWS Signature Version 4 of requests to TCP endpoints.
//!
//! Called by [`super::transport`]. Must never print the secret or a derived key.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::Credentials;
use crate::crypto::{Secret, hmac_sha256, sha256};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kms";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// Signs for one access key; keeps the day's derived key.
pub struct Signer {
    credentials: Credentials,
    day_key: Mutex<Option<(String, Secret<32>)>>,
}

impl Signer {
    /// Signs with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, day_key: Mutex::new(None) }
    }

    /// Appends the headers that authenticate the request.
    pub fn write_headers(&self, host: &str, target: &str, body: &[u8], out: &mut Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (date, authorization) = self.sign(now, host, target, body);
        let mut header = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        };
        header("X-Amz-Date", &date);
        if let Some(token) = &self.credentials.session_token {
            header("X-Amz-Security-Token", token);
        }
        header("Authorization", &authorization);
    }

    /// The values of `X-Amz-Date` and `Authorization`.
    fn sign(&self, epoch_seconds: u64, host: &str, target: &str, body: &[u8]) -> (String, String) {
        let date = basic_date(epoch_seconds);
        let token = self.credentials.session_token.as_deref();
        let (canonical, signed_headers) = canonical_request(&date, host, target, token, body);
        let scope = format!("{}/{}/{SERVICE}/aws4_request", &date[..8], self.credentials.region);
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
        let signature = self.with_day_key(&date[..8], |key| hmac_sha256(key, to_sign.as_bytes()));
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={}",
            self.credentials.access_key_id,
            hex(&signature)
        );
        (date, authorization)
    }

    fn with_day_key(&self, day: &str, sign: impl FnOnce(&[u8; 32]) -> [u8; 32]) -> [u8; 32] {
        let mut kept = self.day_key.lock();
        let fresh = kept.as_ref().is_none_or(|(of, _)| of != day);
        if fresh {
            *kept = Some((day.to_owned(), self.derive(day)));
        }
        kept.as_ref().map_or([0; 32], |(_, key)| sign(key.expose()))
    }

    fn derive(&self, day: &str) -> Secret<32> {
        let start = zeroize::Zeroizing::new(format!("AWS4{}", self.credentials.secret.expose()));
        let step = |key: &Secret<32>, text: &str| Secret::take(&mut hmac_sha256(key.expose(), text.as_bytes()));
        let date = Secret::take(&mut hmac_sha256(start.as_bytes(), day.as_bytes()));
        let region = step(&date, &self.credentials.region);
        step(&step(&region, SERVICE), "aws4_request")
    }
}

fn canonical_request(
    date: &str,
    host: &str,
    target: &str,
    token: Option<&str>,
    body: &[u8],
) -> (String, String) {
    let mut headers =
        vec![("content-type", CONTENT_TYPE), ("host", host), ("x-amz-date", date), ("x-amz-target", target)];
    if let Some(token) = token {
        headers.insert(3, ("x-amz-security-token", token));
    }
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    (format!("POST\n/\n\n{lines}\n{names}\n{}", hex(&sha256(body))), names)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// `YYYYMMDDTHHMMSSZ` in UTC. Civil date from days by Howard Hinnant's era arithmetic.
fn basic_date(epoch_seconds: u64) -> String {
    let (days, second) = (epoch_seconds / 86_400, epoch_seconds % 86_400);
    let shifted = days + 719_468;
    let era_day = shifted % 146_097;
    let era_year = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let shifted_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era_year + shifted / 146_097 * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::SecretAccessKey;

    #[test]
    fn dates_are_civil() {
        assert_eq!(basic_date(0), "19700101T000000Z");
        assert_eq!(basic_date(951_782_399), "20000228T235959Z");
        assert_eq!(basic_date(951_782_400), "20000229T000000Z");
        assert_eq!(basic_date(1_369_353_600), "20130524T000000Z");
        assert_eq!(basic_date(4_102_444_799), "20991231T235959Z");
    }

    #[test]
    fn the_day_key_is_the_one_aws_publishes() {
        // "Examples of how to derive a signing key for Signature Version 4", AWS General Reference.
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret: SecretAccessKey::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
            region: "us-east-1".to_owned(),
        };
        let key = |service: &str| {
            let mut k = hmac_sha256(b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", b"20120215").to_vec();
            for part in ["us-east-1", service, "aws4_request"] {
                k = hmac_sha256(&k, part.as_bytes()).to_vec();
            }
            hex(&k)
        };
        assert_eq!(key("iam"), "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d");
        assert_eq!(hex(Signer::new(credentials).derive("20120215").expose()), key(SERVICE));
    }

    #[test]
    fn the_token_is_signed_between_its_neighbours() {
        let (text, names) = canonical_request("20200101T000000Z", "h", "TrentService.X", Some("tok"), b"{}");
        assert_eq!(names, "content-type;host;x-amz-date;x-amz-security-token;x-amz-target");
        assert!(text.starts_with("POST\n/\n\ncontent-type:application/x-amz-json-1.1\nhost:h\nx-amz-date:"));
    }
}
