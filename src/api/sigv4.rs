//! AWS Signature Version 4 as text: canonical request, string to sign, the Authorization header, its dates.
//!
//! Used by the daemon to check and by the client to sign. Pure: computes no hash and no MAC, and sees no secret.

use super::hex;

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Ends every credential scope.
pub const TERMINATOR: &str = "aws4_request";
/// Most headers that may be signed.
pub const MAX_SIGNED_HEADERS: usize = 64;

/// The part of a request that is signed. Header names may come in any case, values as sent.
#[derive(Debug, Clone, Copy)]
pub struct SignedParts<'a> {
    /// `POST` and so on.
    pub method: &'a str,
    /// Path as sent, without the query.
    pub path: &'a str,
    /// Query as sent, without `?`.
    pub query: &'a str,
    /// Every header of the request.
    pub headers: &'a [(&'a str, &'a str)],
    /// Lower-case names of the headers signed, sorted.
    pub signed: &'a [&'a str],
    /// SHA-256 of the body.
    pub body_hash: &'a [u8; 32],
}

impl<'a> SignedParts<'a> {
    /// A call of the JSON protocol: a `POST` to `/` whose `headers` are all signed, as `signed` names them.
    pub fn of_call(
        headers: &'a [(&'a str, &'a str)],
        signed: &'a [&'a str],
        body_hash: &'a [u8; 32],
    ) -> Self {
        Self { method: "POST", path: "/", query: "", headers, signed, body_hash }
    }
}

/// The canonical request, to be hashed with SHA-256. `None` when a signed header is not in the request.
pub fn canonical_request(parts: &SignedParts<'_>) -> Option<String> {
    let mut out = String::with_capacity(512);
    out.push_str(parts.method);
    out.push('\n');
    push_path(&mut out, parts.path);
    out.push('\n');
    push_query(&mut out, parts.query);
    out.push('\n');
    for name in parts.signed {
        push_header(&mut out, parts.headers, name)?;
    }
    out.push('\n');
    push_joined(&mut out, parts.signed);
    out.push('\n');
    out.push_str(&hex(parts.body_hash));
    Some(out)
}

/// What the signing key signs.
pub fn string_to_sign(time: &str, scope: &Scope<'_>, canonical_hash: &[u8; 32]) -> String {
    let Scope { date, region, service } = scope;
    format!("{ALGORITHM}\n{time}\n{date}/{region}/{service}/{TERMINATOR}\n{}", hex(canonical_hash))
}

/// Where and when a signature is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// `YYYYMMDD`.
    pub date: &'a str,
    /// Region.
    pub region: &'a str,
    /// Service, `kms` here.
    pub service: &'a str,
}

/// A parsed Authorization header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// Who signed.
    pub access_key_id: &'a str,
    /// Scope of the credential.
    pub scope: Scope<'a>,
    /// Names of the signed headers, in the order given.
    pub signed: Vec<&'a str>,
    /// 64 hexadecimal digits.
    pub signature: &'a str,
}

/// What is wrong with an Authorization header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationError {
    /// Not `AWS4-HMAC-SHA256 ...`.
    OtherAlgorithm,
    /// Parameters that are missing, by name.
    Missing(Vec<&'static str>),
    /// The credential is not `id/date/region/service/aws4_request`.
    Credential(String),
    /// More signed headers than anybody needs.
    TooManyHeaders,
}

impl std::fmt::Display for AuthorizationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OtherAlgorithm => write!(f, "Authorization header requires the algorithm '{ALGORITHM}'."),
            Self::Missing(names) => {
                for (index, name) in names.iter().enumerate() {
                    let gap = if index == 0 { "" } else { " " };
                    write!(f, "{gap}Authorization header requires '{name}' parameter.")?;
                }
                Ok(())
            }
            Self::Credential(text) => write!(
                f,
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{text}'"
            ),
            Self::TooManyHeaders => f.write_str("Authorization header signs too many headers."),
        }
    }
}

impl std::error::Error for AuthorizationError {}

/// Reads an Authorization header.
pub fn parse_authorization(header: &str) -> Result<Authorization<'_>, AuthorizationError> {
    let rest = header.trim().strip_prefix(ALGORITHM).ok_or(AuthorizationError::OtherAlgorithm)?;
    let (mut credential, mut signed, mut signature) = (None, None, None);
    for part in rest.split(',') {
        match part.trim().split_once('=') {
            Some(("Credential", value)) => credential = Some(value),
            Some(("SignedHeaders", value)) => signed = Some(value),
            Some(("Signature", value)) => signature = Some(value),
            _ => {}
        }
    }
    let (Some(credential), Some(signed), Some(signature)) = (credential, signed, signature) else {
        let found = [("Credential", credential), ("Signature", signature), ("SignedHeaders", signed)];
        let missing = found.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name);
        return Err(AuthorizationError::Missing(missing.collect()));
    };
    if signed.split(';').count() > MAX_SIGNED_HEADERS {
        return Err(AuthorizationError::TooManyHeaders);
    }
    let (access_key_id, scope) = split_credential(credential)?;
    Ok(Authorization { access_key_id, scope, signed: signed.split(';').collect(), signature })
}

/// Writes an Authorization header.
pub fn authorization(access_key_id: &str, scope: &Scope<'_>, signed: &[&str], signature: &str) -> String {
    let Scope { date, region, service } = scope;
    let mut out = format!(
        "{ALGORITHM} Credential={access_key_id}/{date}/{region}/{service}/{TERMINATOR}, SignedHeaders="
    );
    push_joined(&mut out, signed);
    out.push_str(", Signature=");
    out.push_str(signature);
    out
}

fn split_credential(credential: &str) -> Result<(&str, Scope<'_>), AuthorizationError> {
    let parts: Vec<&str> = credential.splitn(6, '/').collect();
    let [id, date, region, service, terminator] = parts[..] else {
        return Err(AuthorizationError::Credential(credential.to_owned()));
    };
    if terminator != TERMINATOR || id.is_empty() {
        return Err(AuthorizationError::Credential(credential.to_owned()));
    }
    Ok((id, Scope { date, region, service }))
}

/// Each byte but unreserved ones and `/` percent-encoded (a path that is encoded already is encoded once more).
fn push_path(out: &mut String, path: &str) {
    if path.is_empty() {
        out.push('/');
    }
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex(&[byte]).to_ascii_uppercase());
        }
    }
}

fn push_query(out: &mut String, query: &str) {
    if query.is_empty() {
        return;
    }
    let mut pairs: Vec<(&str, &str)> =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
}

/// `name:value`, values of the same name joined by commas, runs of blanks made one.
fn push_header(out: &mut String, headers: &[(&str, &str)], name: &str) -> Option<()> {
    let mut values = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
    out.push_str(name);
    out.push(':');
    push_folded(out, values.next()?);
    for value in values {
        out.push(',');
        push_folded(out, value);
    }
    out.push('\n');
    Some(())
}

fn push_folded(out: &mut String, value: &str) {
    for (index, word) in value.split_ascii_whitespace().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        out.push_str(word);
    }
}

fn push_joined(out: &mut String, names: &[&str]) {
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out.push(';');
        }
        out.push_str(name);
    }
}

/// `20260131T235958Z`, by the civil calendar (days from 0000-03-01 in eras of 400 years).
pub fn time_text(epoch_seconds: u64) -> String {
    let (days, of_day) = (epoch_seconds / 86_400 + 719_468, epoch_seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Seconds since the epoch of a `20260131T235958Z` between 1970 and 9999; `None` for anything else.
pub fn parse_time(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0u64, |n, c| c.is_ascii_digit().then(|| n * 10 + u64::from(c - b'0')))
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let march_year = if month <= 2 { year.checked_sub(1)? } else { year };
    let march_month = (month + 9) % 12;
    let (era, of_era) = (march_year / 400, march_year % 400);
    let of_year = (153 * march_month + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let seconds = days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second;
    // What does not come back the same was not a date: 30 February, hour 25.
    (time_text(seconds) == text).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_there_and_back() {
        for (text, seconds) in
            [("19700101T000000Z", 0), ("20000229T000000Z", 951_782_400), ("21000301T000000Z", 4_107_542_400)]
        {
            assert_eq!(time_text(seconds), text);
            assert_eq!(parse_time(text), Some(seconds));
        }
        for bad in [
            "20010229T000000Z",
            "20000230T000000Z",
            "20000101T250000Z",
            "2000-01-01T00:00",
            "",
            "2é000101T00000Z",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_canonical_request_is_the_one_of_the_published_example() {
        // The example of AWS's documentation of Signature Version 4 (IAM ListUsers).
        let headers = [
            ("Host", "iam.amazonaws.com"),
            ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("X-Amz-Date", "20150830T123600Z"),
        ];
        let empty = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
            0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
        ];
        let parts = SignedParts {
            method: "GET",
            path: "/",
            query: "Version=2010-05-08&Action=ListUsers",
            headers: &headers,
            signed: &["content-type", "host", "x-amz-date"],
            body_hash: &empty,
        };
        let expected = "GET\n/\nAction=ListUsers&Version=2010-05-08\n\
             content-type:application/x-www-form-urlencoded; charset=utf-8\nhost:iam.amazonaws.com\n\
             x-amz-date:20150830T123600Z\n\ncontent-type;host;x-amz-date\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(canonical_request(&parts).as_deref(), Some(expected));
        let signed = &["x-amz-target"][..];
        assert_eq!(canonical_request(&SignedParts { signed, ..parts }), None);
    }

    #[test]
    fn an_authorization_header_there_and_back() {
        let scope = Scope { date: "20150830", region: "local", service: "kms" };
        let text = authorization("AKID", &scope, &["host", "x-amz-date"], "00ff");
        let parsed = parse_authorization(&text).unwrap();
        assert_eq!(parsed.access_key_id, "AKID");
        assert_eq!((parsed.scope, parsed.signature), (scope, "00ff"));
        assert_eq!(parsed.signed, ["host", "x-amz-date"]);
    }

    #[test]
    fn a_broken_authorization_header_says_what_it_lacks() {
        use AuthorizationError::{Credential, Missing, OtherAlgorithm};
        assert_eq!(parse_authorization("Basic abc"), Err(OtherAlgorithm));
        let missing = Missing(vec!["Signature", "SignedHeaders"]);
        assert_eq!(parse_authorization("AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request"), Err(missing));
        let text = "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=0";
        assert_eq!(parse_authorization(text), Err(Credential("a/b/c".into())));
    }
}
