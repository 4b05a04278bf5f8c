//! Counts of what the daemon does, and their text for Prometheus.
//!
//! Written on every call by relaxed atomics, read by the admin socket. Names no key, no principal and no address.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::{ErrorCode, Operation};
use crate::sys::figures::{Count, Timed, write_head};

use super::iam::actions::{Action, Service};

/// The text format's version, as scrapers want it announced.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Default)]
struct PerOperation {
    calls: Timed,
    errors: Vec<Count>,
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    /// By operation; the last one stands for unknown ones.
    operations: Vec<PerOperation>,
    /// Of IAM and STS, by operation; the names are those of the list of actions, so there are no more.
    identities: Mutex<BTreeMap<String, PerAction>>,
}

/// The counters of an operation of IAM or STS.
#[derive(Debug, Default)]
struct PerAction {
    counts: Timed,
    errors: BTreeMap<&'static str, u64>,
}

/// What is read at the moment of asking.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    /// Keys in the store.
    pub keys: usize,
    /// Connections.
    pub connections: usize,
    /// Audit records that are not synced yet.
    pub audit_lag: u64,
    /// Whether calls can be recorded.
    pub audit_up: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let one = || PerOperation {
            errors: ErrorCode::ALL.iter().map(|_| Count::default()).collect(),
            ..PerOperation::default()
        };
        let operations = (0..=Operation::ALL.len()).map(|_| one()).collect();
        Self { operations, identities: Mutex::default() }
    }
}

impl Metrics {
    /// Counts one call.
    pub fn count(&self, operation: Option<Operation>, error: Option<ErrorCode>, took: Duration) {
        let place = operation.map_or(Operation::ALL.len(), |operation| operation as usize);
        let entry = &self.operations[place];
        entry.calls.note(took);
        if let Some(code) = error {
            entry.errors[code as usize].add(1);
        }
    }

    /// Counts one call to IAM or STS.
    pub fn count_identity(&self, action: Option<&Action>, error: Option<&'static str>, took: Duration) {
        let name = action.map_or_else(
            || String::from("iam:unknown"),
            |action| {
                let prefix = if action.service == Service::Iam { "iam" } else { "sts" };
                format!("{prefix}:{}", action.name)
            },
        );
        let mut identities = self.identities.lock();
        let entry = identities.entry(name).or_default();
        entry.counts.note(took);
        if let Some(code) = error {
            *entry.errors.entry(code).or_default() += 1;
        }
    }

    /// The text for a scraper.
    pub fn text(&self, gauges: Gauges) -> String {
        let mut out = String::with_capacity(16 * 1024);
        write_gauges(&mut out, gauges);
        let names = Operation::ALL.iter().map(|operation| operation.name()).chain(["unknown"]);
        let used: Vec<(&str, &PerOperation)> =
            names.zip(&self.operations).filter(|(_, entry)| entry.calls.read().count > 0).collect();
        write_head(&mut out, "kmsd_errors_total", "counter", "Calls that failed, by operation and error.");
        for (name, entry) in &used {
            for (code, count) in
                ErrorCode::ALL.iter().zip(&entry.errors).filter(|(_, count)| count.read() > 0)
            {
                let _ = writeln!(
                    out,
                    "kmsd_errors_total{{operation=\"{name}\",error=\"{code}\"}} {}",
                    count.read()
                );
            }
        }
        let identities = self.identities.lock();
        for (name, entry) in &*identities {
            for (code, count) in &entry.errors {
                let _ = writeln!(out, "kmsd_errors_total{{operation=\"{name}\",error=\"{code}\"}} {count}");
            }
        }
        let of = |code: &str| identities.values().filter_map(|entry| entry.errors.get(code)).sum::<u64>();
        let denied = ("kmsd_denied_total", "Calls that no policy or grant allowed.");
        self.write_total(&mut out, denied, ErrorCode::AccessDeniedException, of("AccessDenied"));
        let throttled = ("kmsd_throttled_total", "Calls beyond their quota.");
        self.write_total(&mut out, throttled, ErrorCode::ThrottlingException, of("Throttling"));
        write_head(
            &mut out,
            "kmsd_call_duration_seconds",
            "histogram",
            "Time from request to answer, the audit record included.",
        );
        for (name, entry) in &used {
            write_histogram(&mut out, name, &entry.calls);
        }
        for (name, entry) in &*identities {
            write_histogram(&mut out, name, &entry.counts);
        }
        out
    }

    fn write_total(&self, out: &mut String, (name, help): (&str, &str), code: ErrorCode, further: u64) {
        let total: u64 = self.operations.iter().map(|entry| entry.errors[code as usize].read()).sum();
        write_head(out, name, "counter", help);
        let _ = writeln!(out, "{name} {}", total + further);
    }
}

fn write_gauges(out: &mut String, gauges: Gauges) {
    for (name, help, value) in [
        ("kmsd_keys", "Keys in the store.", gauges.keys as u64),
        ("kmsd_connections", "Open connections.", gauges.connections as u64),
        ("kmsd_audit_lag_records", "Audit records written but not synced to disk.", gauges.audit_lag),
        (
            "kmsd_audit_up",
            "1 while calls can be recorded; every call fails otherwise.",
            gauges.audit_up.into(),
        ),
    ] {
        write_head(out, name, "gauge", help);
        let _ = writeln!(out, "{name} {value}");
    }
}

fn write_histogram(out: &mut String, operation: &str, calls: &Timed) {
    calls.read().write_histogram(out, "kmsd_call_duration_seconds", &format!("operation=\"{operation}\""));
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAUGES: Gauges = Gauges { keys: 7, connections: 3, audit_lag: 2, audit_up: true };

    #[test]
    fn every_line_is_of_the_text_format_and_sums_are_right() {
        let metrics = Metrics::default();
        for (micros, error) in
            [(20, None), (20, Some(ErrorCode::AccessDeniedException)), (300, None), (9_000_000, None)]
        {
            metrics.count(Some(Operation::Decrypt), error, Duration::from_micros(micros));
        }
        metrics.count(None, Some(ErrorCode::UnknownOperationException), Duration::ZERO);
        metrics.count(Some(Operation::Encrypt), Some(ErrorCode::ThrottlingException), Duration::ZERO);
        let assume = crate::kms::iam::actions::find("AssumeRole");
        metrics.count_identity(assume, Some("AccessDenied"), Duration::from_micros(20));
        metrics.count_identity(None, Some("Throttling"), Duration::ZERO);
        let text = metrics.text(GAUGES);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok() && name.starts_with("kmsd_"), "{line}");
        }
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        has("kmsd_keys 7");
        has("kmsd_errors_total{operation=\"Decrypt\",error=\"AccessDeniedException\"} 1");
        has("kmsd_errors_total{operation=\"unknown\",error=\"UnknownOperationException\"} 1");
        has("kmsd_denied_total 2");
        has("kmsd_throttled_total 2");
        has("kmsd_errors_total{operation=\"sts:AssumeRole\",error=\"AccessDenied\"} 1");
        has("kmsd_call_duration_seconds_count{operation=\"sts:AssumeRole\"} 1");
        has("kmsd_call_duration_seconds_bucket{operation=\"Decrypt\",le=\"0.000025\"} 2");
        has("kmsd_call_duration_seconds_bucket{operation=\"Decrypt\",le=\"0.0005\"} 3");
        has("kmsd_call_duration_seconds_bucket{operation=\"Decrypt\",le=\"+Inf\"} 4");
        has("kmsd_call_duration_seconds_count{operation=\"Decrypt\"} 4");
        assert!(!text.contains("operation=\"Sign\""), "what was not called does not fill the page");
    }
}
