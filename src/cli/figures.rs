//! What a mount has counted, for people (`kmsfs status`), for programs (`--json`) and for Prometheus.
//!
//! Filled by the mount's own process, shown by commands. Names no user and no file.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::control::Status;
use crate::fuse::TrafficNow;
use crate::sys::figures::{Timing, write_head};
use crate::volume::KeyFigures;

/// The text format's version, as scrapers want it announced.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Numbers of a mount since it began.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Reads of the kernel.
    pub reads: Timing,
    /// Writes of the kernel.
    pub writes: Timing,
    /// Its other requests.
    pub others: Timing,
    /// Bytes given to it.
    pub read_bytes: u64,
    /// Bytes taken from it.
    pub written_bytes: u64,
    /// How often data keys were to be had, and why not.
    pub keys: KeyFigures,
}

impl Figures {
    /// Puts together what the session and the keys have counted.
    pub fn new(traffic: &TrafficNow, keys: KeyFigures) -> Self {
        Self {
            reads: traffic.reads,
            writes: traffic.writes,
            others: traffic.others,
            read_bytes: traffic.read_bytes,
            written_bytes: traffic.written_bytes,
            keys,
        }
    }

    /// All requests together.
    pub fn requests(&self) -> Timing {
        self.reads.and(&self.writes).and(&self.others)
    }
}

/// The lines of `kmsfs status MNT` that are about figures.
pub fn lines(figures: &Figures) -> Vec<(&'static str, Option<String>)> {
    let timed = |timing: &Timing| {
        let bound = |share| timing.percentile(share).map_or_else(|| "over 1 s".to_owned(), micros);
        let times = format!(", half within {}, 99 of 100 within {}", bound(50), bound(99));
        format!("{}{}", timing.count, if timing.count > 0 { times } else { String::new() })
    };
    let keys = &figures.keys;
    let in_use = keys.in_use.iter().map(|key| {
        format!("{} ({} uses{})", key.key_arn, key.uses, if key.refused { ", refused now" } else { "" })
    });
    let refused = [
        (keys.denied, "denied"),
        (keys.disabled, "key disabled or locked"),
        (keys.invalid, "do not open"),
        (keys.unavailable, "service away"),
        (keys.throttled, "throttled"),
    ];
    let refused: Vec<String> =
        refused.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    vec![
        ("requests", Some(timed(&figures.requests()))),
        ("read", Some(super::output::size(figures.read_bytes))),
        ("written", Some(super::output::size(figures.written_bytes))),
        (
            "data keys",
            Some(format!(
                "{} found, {} unwrapped ({} of them ahead of need), {} made",
                keys.hits, keys.unwraps, keys.ahead, keys.made
            )),
        ),
        ("key calls", Some(timed(&keys.service))),
        ("refused", (!refused.is_empty()).then(|| refused.join(", "))),
        ("keys in use", Some(in_use.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())),
    ]
}

/// Microseconds as people read them.
pub fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

/// The text for a scraper.
pub fn prometheus(status: &Status) -> String {
    let mut out = String::with_capacity(8 * 1024);
    let figures = &status.figures;
    let keys = &figures.keys;
    let gauges = [
        ("kmsfs_open_files", "Files open.", status.open_files as u64),
        ("kmsfs_inodes", "Inodes that the kernel knows.", status.inodes as u64),
        ("kmsfs_cached_data_keys", "Unwrapped data keys in the cache.", status.cached_keys as u64),
        ("kmsfs_fresh_data_keys", "Data keys made ahead of need.", status.fresh_keys as u64),
        ("kmsfs_locked", "1 while everything is locked.", status.locked.into()),
    ];
    for (name, help, value) in gauges {
        one(&mut out, name, "gauge", help, value);
    }
    let counters = [
        ("kmsfs_read_bytes_total", "Bytes given to the kernel.", figures.read_bytes),
        ("kmsfs_written_bytes_total", "Bytes taken from the kernel.", figures.written_bytes),
        ("kmsfs_data_key_hits_total", "Data keys found in the cache.", keys.hits),
        ("kmsfs_data_keys_unwrapped_total", "Data keys unwrapped by the key service.", keys.unwraps),
        ("kmsfs_data_keys_ahead_total", "Those of them unwrapped before anybody needed them.", keys.ahead),
        ("kmsfs_data_keys_made_total", "Data keys made by the key service.", keys.made),
        ("kmsfs_key_throttled_total", "Answers of the key service that asked for patience.", keys.throttled),
        ("kmsfs_corrupt_total", "Requests that met damaged ciphertext.", status.damage_seen),
    ];
    for (name, help, value) in counters {
        one(&mut out, name, "counter", help, value);
    }
    write_head(
        &mut out,
        "kmsfs_key_refusals_total",
        "counter",
        "Data keys that were not to be had, by reason.",
    );
    for (reason, count) in [
        ("denied", keys.denied),
        ("disabled", keys.disabled),
        ("invalid", keys.invalid),
        ("unavailable", keys.unavailable),
    ] {
        let _ = writeln!(out, "kmsfs_key_refusals_total{{reason=\"{reason}\"}} {count}");
    }
    write_head(&mut out, "kmsfs_key_uses_total", "counter", "Data keys unwrapped and made, by master key.");
    for key in &keys.in_use {
        let _ = writeln!(out, "kmsfs_key_uses_total{{key=\"{}\"}} {}", key.key_arn, key.uses);
    }
    write_head(&mut out, "kmsfs_key_refused", "gauge", "1 where the last word on a master key was no.");
    for key in &keys.in_use {
        let _ = writeln!(out, "kmsfs_key_refused{{key=\"{}\"}} {}", key.key_arn, u8::from(key.refused));
    }
    let name = "kmsfs_request_duration_seconds";
    write_head(&mut out, name, "histogram", "Time in which requests of the kernel were done.");
    for (kind, timing) in [("read", &figures.reads), ("write", &figures.writes), ("other", &figures.others)] {
        timing.write_histogram(&mut out, name, &format!("kind=\"{kind}\""));
    }
    let name = "kmsfs_key_call_duration_seconds";
    write_head(&mut out, name, "histogram", "Time of calls to the key service.");
    keys.service.write_histogram(&mut out, name, "service=\"kms\"");
    out
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    write_head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}
