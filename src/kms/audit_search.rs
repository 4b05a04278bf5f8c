//! Finding records: by key, principal, operation, error and time, in the order in which they were written.
//!
//! Called by `kmsd audit search`. Reads only, and no secret is needed: whether the log is whole is asked by `verify`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use clap::Args;
use serde_json::Value;

use crate::api::{ErrorCode, sigv4};

use super::audit_chain::{segment_path, segments};
use super::audit_log::MAX_LINE;
use super::iam::error::CODES;

/// Pairs of the encryption context by which kmsfs names a file and its volume.
const FILE_PAIR: &str = "kmsfs:file";
const VOLUME_PAIR: &str = "kmsfs:volume";

/// What to look for; all of it must fit.
#[derive(Debug, Clone, Default, Args)]
pub struct Query {
    /// Key id, key ARN, or alias as the caller named it
    #[arg(long)]
    key: Option<String>,
    /// ARN of the principal, or the end of it, e.g. user/alice
    #[arg(long)]
    principal: Option<String>,
    /// Name of the operation, e.g. Decrypt
    #[arg(long)]
    operation: Option<String>,
    /// Name of the error, e.g. AccessDeniedException; "any" for every failed call
    #[arg(long)]
    error: Option<String>,
    /// Id of a file of kmsfs, as 'kmsfs info' tells it
    #[arg(long, value_name = "ID")]
    file: Option<String>,
    /// Request id that a client was given
    #[arg(long)]
    request: Option<String>,
    /// Not before this time: 2026-01-31T23:59:58Z, a day of it, or an age such as 90m, 12h, 7d
    #[arg(long, value_parser = moment)]
    since: Option<String>,
    /// Before this time
    #[arg(long, value_parser = moment)]
    until: Option<String>,
    /// Stop after this many
    #[arg(short = 'n', long, default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
}

impl Query {
    /// The error looked for, where no operation of any service here gives it.
    pub fn unknown_error(&self) -> Option<&str> {
        let name = self.error.as_deref().filter(|name| *name != "any")?;
        let is = |code: &str| code.eq_ignore_ascii_case(name);
        let known =
            ErrorCode::ALL.iter().any(|code| is(code.name())) || CODES.iter().any(|(code, _)| is(code));
        (!known).then_some(name)
    }

    /// Whether `record` is one of those looked for.
    fn fits(&self, record: &Value) -> bool {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let time = text("/eventTime");
        let wanted = |want: &Option<String>, holds: &dyn Fn(&str) -> bool| want.as_deref().is_none_or(holds);
        wanted(&self.operation, &|name| name.eq_ignore_ascii_case(text("/eventName")))
            && wanted(&self.request, &|id| id == text("/requestID"))
            && wanted(&self.principal, &|name| is_end(text("/userIdentity/arn"), name))
            && wanted(&self.error, &|name| match text("/errorCode") {
                "" => false,
                code => name == "any" || name.eq_ignore_ascii_case(code),
            })
            && wanted(&self.since, &|since| time >= since)
            && wanted(&self.until, &|until| time < until)
            && wanted(&self.key, &|key| names_key(record, key))
            && wanted(&self.file, &|file| file.eq_ignore_ascii_case(in_context(record, FILE_PAIR)))
    }
}

/// Whether `arn` is `name`, or ends with it as a whole part.
fn is_end(arn: &str, name: &str) -> bool {
    arn.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with([':', '/']))
}

/// A value of the encryption context that the record tells.
fn in_context<'a>(record: &'a Value, pair: &str) -> &'a str {
    record["requestParameters"]["encryptionContext"][pair].as_str().unwrap_or_default()
}

fn names_key(record: &Value, key: &str) -> bool {
    let resources = record["resources"].as_array().into_iter().flatten();
    let mut arns = resources.filter_map(|resource| resource["ARN"].as_str());
    let asked = ["keyId", "targetKeyId", "aliasName", "sourceKeyId", "destinationKeyId"];
    arns.any(|arn| is_end(arn, key))
        || asked.iter().any(|name| record["requestParameters"][name].as_str() == Some(key))
}

/// Writes the records that fit, one a line as they stand; returns how many.
pub fn search(dir: &Path, query: &Query, out: &mut impl Write) -> io::Result<u64> {
    each(dir, query, |line, _| out.write_all(line))
}

/// Writes one line for people for each record that fits: when, what, who, on which key, file or volume, and how it ended.
pub fn timeline(dir: &Path, query: &Query, out: &mut impl Write) -> io::Result<u64> {
    each(dir, query, |_, record| {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let service = text("/userIdentity/invokedBy");
        let via = if service.is_empty() { String::new() } else { format!(" through {service}") };
        let key = text("/resources/0/ARN");
        let key = key.rsplit(":key/").next().unwrap_or(key);
        let (file, volume) = (in_context(record, FILE_PAIR), in_context(record, VOLUME_PAIR));
        let of = match (file, volume) {
            ("", "") => String::new(),
            ("", volume) => format!("  volume {volume}"),
            (file, volume) => format!("  file {file} of volume {volume}"),
        };
        let outcome = match text("/errorCode") {
            "" => "allowed",
            "DryRunOperationException" => "allowed (only asked)",
            error => error,
        };
        let (time, name, who) = (text("/eventTime"), text("/eventName"), text("/userIdentity/arn"));
        writeln!(out, "{time}  {name}  {who}{via}  key {key}{of}  {outcome}")
    })
}

fn each(dir: &Path, query: &Query, mut show: impl FnMut(&[u8], &Value) -> io::Result<()>) -> io::Result<u64> {
    let mut found = 0;
    for first in segments(dir).map_err(|error| io::Error::other(error.to_string()))? {
        let mut input = BufReader::with_capacity(1 << 20, File::open(segment_path(dir, first))?);
        let mut line = Vec::new();
        while found < query.limit {
            line.clear();
            if (&mut input).take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            // A torn last line is no record.
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if query.fits(&record) {
                show(&line, &record)?;
                found += 1;
            }
        }
    }
    Ok(found)
}

/// A time as records write it.
fn moment(text: &str) -> Result<String, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(usize::from(!text.is_empty())));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    if seconds > 0
        && let Ok(number) = number.parse::<u64>()
    {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        return Ok(super::audit::time_text(now.saturating_sub(number.saturating_mul(seconds)) * 1000));
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    let compact: String = full.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    if full.len() == 20 && sigv4::parse_time(&compact).is_some() {
        return Ok(full);
    }
    Err("a time is 2026-01-31T23:59:58Z, a day such as 2026-01-31, or an age such as 90m, 12h or 7d".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_condition_must_hold() {
        let record = json!({
            "eventTime": "2026-01-31T23:59:58Z", "eventName": "Decrypt", "errorCode": "AccessDeniedException",
            "userIdentity": {"arn": "arn:aws:iam::000000000000:user/alice"}, "requestID": "r-1",
            "requestParameters": {"keyId": "alias/app", "encryptionContext": {"kmsfs:file": "ab12"}},
            "resources": [{"ARN": "arn:aws:kms:local:000000000000:key/1234"}],
        });
        let some = |text: &str| Some(text.to_owned());
        let fits = |query: Query| query.fits(&record);
        let every = Query { limit: 1, ..Query::default() };
        assert!(fits(every.clone()));
        for (good, bad) in [
            (Query { key: some("1234"), ..every.clone() }, Query { key: some("234"), ..every.clone() }),
            (
                Query { key: some("alias/app"), ..every.clone() },
                Query { key: some("alias/ap"), ..every.clone() },
            ),
            (
                Query { principal: some("user/alice"), ..every.clone() },
                Query { principal: some("lice"), ..every.clone() },
            ),
            (
                Query { operation: some("decrypt"), ..every.clone() },
                Query { operation: some("Encrypt"), ..every.clone() },
            ),
            (
                Query { error: some("any"), ..every.clone() },
                Query { error: some("NotFoundException"), ..every.clone() },
            ),
            (Query { file: some("AB12"), ..every.clone() }, Query { file: some("ab1"), ..every.clone() }),
            (Query { request: some("r-1"), ..every.clone() }, Query { request: some("r"), ..every.clone() }),
            (
                Query { since: some("2026-01-31T23:59:58Z"), ..every.clone() },
                Query { until: some("2026-01-31T23:59:58Z"), ..every.clone() },
            ),
        ] {
            assert!(fits(good.clone()), "{good:?}");
            assert!(!fits(bad.clone()), "{bad:?}");
        }
    }

    #[test]
    fn times_are_taken_whole_by_day_and_by_age() {
        assert_eq!(moment("2026-01-31T23:59:58Z").unwrap(), "2026-01-31T23:59:58Z");
        assert_eq!(moment("2026-01-31").unwrap(), "2026-01-31T00:00:00Z");
        assert!(moment("7d").unwrap() < moment("1h").unwrap());
        for wrong in ["", "x", "d", "31.1.2026", "2026-13-01", "2026-01-31T23:59:58"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
