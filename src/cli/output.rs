//! What commands print: tables, sizes, times, JSON.

use serde::Serialize;
use serde_json::Value;

use super::error::CliError;
use crate::api::sigv4::time_text;

/// Prints `value` as JSON, indented.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::failed(e.to_string()))?;
    line(&text)
}

/// Prints one line; a reader that went away is no error worth a trace.
pub fn line(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{text}").map_err(|e| CliError::failed(format!("cannot write: {e}")))
}

/// Prints rows under a heading, in columns.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let format_row = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    line(&format_row(&heading))?;
    rows.iter().try_for_each(|row| line(&format_row(row)))
}

/// Prints names with their values, aligned; values that are missing are left out.
pub fn facts(facts: &[(&str, Option<String>)]) -> Result<(), CliError> {
    let shown = || facts.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown().try_for_each(|(name, value)| line(&format!("{name:<width$}  {value}")))
}

/// The text of a member, whatever its type; `None` when it is absent.
pub fn text(value: &Value, member: &str) -> Option<String> {
    match value.get(member)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The time in a member, for people; `None` when it is absent.
pub fn time(value: &Value, member: &str) -> Option<String> {
    let seconds = value.get(member)?.as_f64().filter(|s| *s >= 0.0)?;
    Some(time_of(seconds as u64))
}

/// `2026-01-31 23:59:58 UTC`.
pub fn time_of(epoch_seconds: u64) -> String {
    let text = time_text(epoch_seconds);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or("");
    let date = [part(0, 4), part(4, 6), part(6, 8)].join("-");
    let time = [part(9, 11), part(11, 13), part(13, 15)].join(":");
    format!("{date} {time} UTC")
}

/// `1.5 GiB`.
#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!([size(0), size(1023), size(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([size(1536), size(1 << 20), size(u64::MAX)], ["1.5 KiB", "1.0 MiB", "16384.0 PiB"]);
        assert_eq!(time_of(1_769_903_998), "2026-01-31 23:59:58 UTC");
    }
}
