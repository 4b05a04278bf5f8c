//! `kmsd bench`: how many calls a second a running daemon answers, and how long each takes.
//!
//! Called by the command line. One thread and one connection each, one call in flight on each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::api::Operation;

use super::admin;
use super::connection::Connection;
use super::failure::Failure;

/// Most latencies kept a connection; beyond it every further one is only counted.
const MAX_SAMPLES: usize = 4_000_000;
/// Time before the measurement.
const WARM_UP: Duration = Duration::from_millis(500);

/// The operation measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchOperation {
    /// GenerateDataKey, AES_256
    #[value(name = "GenerateDataKey")]
    GenerateDataKey,
    /// Decrypt of a data key
    #[value(name = "Decrypt")]
    Decrypt,
    /// Encrypt of 32 bytes
    #[value(name = "Encrypt")]
    Encrypt,
    /// DescribeKey
    #[value(name = "DescribeKey")]
    DescribeKey,
}

/// A measurement.
#[derive(Debug)]
pub struct BenchPlan {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Connections.
    pub connections: usize,
    /// Duration.
    pub seconds: u64,
    /// What to call.
    pub operation: BenchOperation,
    /// With which key.
    pub key: Option<String>,
    /// JSON instead of text.
    pub json: bool,
}

/// Measures and prints.
pub fn run(plan: &BenchPlan) -> Result<(), Failure> {
    let key = plan.key.clone().map_or_else(|| make_key(&plan.socket), Ok)?;
    let outcome = prepare(plan, &key).and_then(|(operation, body)| measure(plan, operation, &body));
    if plan.key.is_none() {
        forget_key(&plan.socket, &key)?;
    }
    print(plan, &outcome?);
    Ok(())
}

fn make_key(socket: &Path) -> Result<String, Failure> {
    let answer = admin::call(socket, Operation::CreateKey, &json!({ "Description": "kmsd bench" }))?;
    let id = answer["KeyMetadata"]["KeyId"].as_str();
    id.map(str::to_owned).ok_or_else(|| Failure::Refused("the daemon's answer names no key".into()))
}

fn forget_key(socket: &Path, key: &str) -> Result<(), Failure> {
    let request = json!({ "KeyId": key, "PendingWindowInDays": 7 });
    admin::call(socket, Operation::ScheduleKeyDeletion, &request).map(|_| ())
}

fn context() -> Value {
    json!({ "volume": "7f3c1a5e9b2d4860", "file": "00112233445566778899aabbccddeeff", "purpose": "file" })
}

fn prepare(plan: &BenchPlan, key: &str) -> Result<(Operation, String), Failure> {
    let data_key = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context() });
    let (operation, request) = match plan.operation {
        BenchOperation::GenerateDataKey => (Operation::GenerateDataKey, data_key),
        BenchOperation::Decrypt => {
            let made = admin::call(&plan.socket, Operation::GenerateDataKeyWithoutPlaintext, &data_key)?;
            let request = json!({ "CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context() });
            (Operation::Decrypt, request)
        }
        BenchOperation::Encrypt => {
            let plaintext = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
            let request = json!({ "KeyId": key, "Plaintext": plaintext, "EncryptionContext": context() });
            (Operation::Encrypt, request)
        }
        BenchOperation::DescribeKey => (Operation::DescribeKey, json!({ "KeyId": key })),
    };
    Ok((operation, request.to_string()))
}

#[derive(Default)]
struct Tally {
    calls: u64,
    elapsed: Duration,
    /// Nanoseconds, sorted at the end.
    latencies: Vec<u32>,
}

fn measure(plan: &BenchPlan, operation: Operation, body: &str) -> Result<Tally, Failure> {
    let barrier = Barrier::new(plan.connections);
    let length = Duration::from_secs(plan.seconds);
    let outcomes: Vec<io::Result<Tally>> = std::thread::scope(|scope| {
        let one = || scope.spawn(|| drive(&plan.socket, operation, body, length, &barrier));
        let threads: Vec<_> = (0..plan.connections).map(|_| one()).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the measurement died")))
            })
            .collect()
    });
    let mut total = Tally::default();
    for outcome in outcomes {
        let tally = outcome.map_err(|e| Failure::System("the measurement".into(), e))?;
        total.calls += tally.calls;
        total.elapsed = total.elapsed.max(tally.elapsed);
        total.latencies.extend(tally.latencies);
    }
    total.latencies.sort_unstable();
    Ok(total)
}

fn drive(
    socket: &Path,
    operation: Operation,
    body: &str,
    length: Duration,
    barrier: &Barrier,
) -> io::Result<Tally> {
    // Every thread meets at the barrier, or the others would wait for ever.
    let opened = Connection::open(socket);
    barrier.wait();
    let (mut connection, mut out, mut tally) = (opened?, Vec::new(), Tally::default());
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        expect_ok(connection.call(operation.target(), body.as_bytes(), &mut out)?, &out)?;
    }
    let start = Instant::now();
    let mut now = start;
    while now.duration_since(start) < length {
        expect_ok(connection.call(operation.target(), body.as_bytes(), &mut out)?, &out)?;
        let after = Instant::now();
        tally.calls += 1;
        if tally.latencies.len() < MAX_SAMPLES {
            tally.latencies.push(u32::try_from((after - now).as_nanos()).unwrap_or(u32::MAX));
        }
        now = after;
    }
    tally.elapsed = now.duration_since(start);
    Ok(tally)
}

fn expect_ok(status: u16, body: &[u8]) -> io::Result<()> {
    if status == 200 {
        return Ok(());
    }
    Err(io::Error::other(format!("the daemon answered {status}: {}", String::from_utf8_lossy(body))))
}

fn print(plan: &BenchPlan, tally: &Tally) {
    let rate = tally.calls * 1000 / (tally.elapsed.as_millis() as u64).max(1);
    let at = |per_mille: usize| {
        let place = tally.latencies.len() * per_mille / 1000;
        let nanos = tally.latencies.get(place.min(tally.latencies.len().saturating_sub(1)));
        f64::from(nanos.copied().unwrap_or(0)) / 1000.0
    };
    let (p50, p99, p999) = (at(500), at(990), at(999));
    let (operation, connections) = (format!("{:?}", plan.operation), plan.connections);
    if plan.json {
        let line = json!({
            "operation": operation, "connections": connections, "calls": tally.calls, "rate": rate,
            "p50_us": p50, "p99_us": p99, "p999_us": p999,
        });
        println!("{line}");
    } else {
        println!(
            "{operation}, {connections} connections: {rate} calls/s, p50 {p50:.0} us, p99 {p99:.0} us, p99.9 {p999:.0} us"
        );
    }
}
