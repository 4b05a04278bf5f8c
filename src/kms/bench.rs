//! `kmsd bench`: how many calls a second a running daemon answers, and how long each takes.
//!
//! Called by the command line. Few threads wait for many connections, as an event-driven client does: a thread for
//! each connection would measure the scheduler. One call is in flight on each connection.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};

use crate::api::Operation;
use crate::crypto::{Material, MaterialBytes, MaterialKind, RsaBits, Sha2, SignInput, SignScheme};

use super::admin;
use super::connection::{Stream, Target};
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
    /// Sign with RSA 2048, PKCS#1 v1.5, SHA-256
    #[value(name = "Sign")]
    Sign,
    /// The same signatures by the library alone, in this process, on one thread
    #[value(name = "BareSign")]
    BareSign,
}

/// A measurement.
#[derive(Debug)]
pub struct BenchPlan {
    /// Who is measured.
    pub target: Target,
    /// Connections.
    pub connections: usize,
    /// Threads that share them.
    pub threads: usize,
    /// Calls a second on all connections together; as many as go where absent.
    pub rate: Option<u32>,
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
    if plan.operation == BenchOperation::BareSign {
        print(plan, &sign_alone(plan.seconds).ok_or_else(|| Failure::Refused("no signature".into()))?);
        return Ok(());
    }
    let key = plan.key.clone().map_or_else(|| make_key(plan), Ok)?;
    let outcome = prepare(plan, &key).and_then(|(operation, body)| measure(plan, operation, &body));
    if plan.key.is_none() {
        forget_key(&plan.target, &key)?;
    }
    print(plan, &outcome?);
    Ok(())
}

fn make_key(plan: &BenchPlan) -> Result<String, Failure> {
    let mut request = json!({ "Description": "kmsd bench" });
    if plan.operation == BenchOperation::Sign {
        (request["KeySpec"], request["KeyUsage"]) = (json!("RSA_2048"), json!("SIGN_VERIFY"));
    }
    let answer = admin::call_at(&plan.target, Operation::CreateKey, &request)?;
    let id = answer["KeyMetadata"]["KeyId"].as_str();
    id.map(str::to_owned).ok_or_else(|| Failure::Refused("the daemon's answer names no key".into()))
}

fn forget_key(target: &Target, key: &str) -> Result<(), Failure> {
    let request = json!({ "KeyId": key, "PendingWindowInDays": 7 });
    admin::call_at(target, Operation::ScheduleKeyDeletion, &request).map(|_| ())
}

/// What the library does without anything around it.
fn sign_alone(seconds: u64) -> Option<Tally> {
    let kind = MaterialKind::RsaSign(RsaBits::B2048);
    let key = Material::open(kind, &MaterialBytes::generate(kind).ok()?).ok()?;
    let sign = || key.sign(SignScheme::RsaPkcs1(Sha2::Sha256), SignInput::Digest(&[7; 32])).ok();
    sign()?;
    let (mut tally, start) = (Tally::default(), Instant::now());
    while tally.elapsed < Duration::from_secs(seconds) {
        let begin = Instant::now();
        sign()?;
        tally.latencies.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
        tally.calls += 1;
        tally.elapsed = start.elapsed();
    }
    tally.latencies.sort_unstable();
    Some(tally)
}

fn context() -> Value {
    json!({ "volume": "7f3c1a5e9b2d4860", "file": "00112233445566778899aabbccddeeff", "purpose": "file" })
}

fn prepare(plan: &BenchPlan, key: &str) -> Result<(Operation, String), Failure> {
    let data_key = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context() });
    let (operation, request) = match plan.operation {
        BenchOperation::GenerateDataKey => (Operation::GenerateDataKey, data_key),
        BenchOperation::Decrypt => {
            let made = admin::call_at(&plan.target, Operation::GenerateDataKeyWithoutPlaintext, &data_key)?;
            let request = json!({ "CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context() });
            (Operation::Decrypt, request)
        }
        BenchOperation::Encrypt => {
            let plaintext = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
            let request = json!({ "KeyId": key, "Plaintext": plaintext, "EncryptionContext": context() });
            (Operation::Encrypt, request)
        }
        BenchOperation::Sign | BenchOperation::BareSign => {
            let digest = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
            let algorithm = "RSASSA_PKCS1_V1_5_SHA_256";
            let request = json!({ "KeyId": key, "Message": digest, "MessageType": "DIGEST", "SigningAlgorithm": algorithm });
            (Operation::Sign, request)
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
    let threads = plan.threads.clamp(1, plan.connections);
    let barrier = Barrier::new(threads);
    let outcomes: Vec<io::Result<Tally>> = std::thread::scope(|scope| {
        let one = |number: usize| {
            let (count, barrier) = (share(plan.connections, threads, number), &barrier);
            scope.spawn(move || {
                Driver::open(plan, operation, body, count).and_then(|driver| driver.run(plan, barrier))
            })
        };
        let threads: Vec<_> = (0..threads).map(one).collect();
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

/// A small number.
fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// How many of `all` fall to thread `number` of `threads`.
fn share(all: usize, threads: usize, number: usize) -> usize {
    all / threads + usize::from(number < all % threads)
}

/// The connections of one thread.
struct Driver<'a> {
    lanes: Vec<Lane>,
    poll: OwnedFd,
    target: &'a Target,
    operation: Operation,
    body: &'a str,
    request: Vec<u8>,
    /// When the request was written: a signature is good for a while.
    written: Instant,
    /// Time between two calls of one lane.
    interval: Duration,
}

/// One connection.
struct Lane {
    stream: Stream,
    got: Vec<u8>,
    sent: Instant,
    /// When its last call should have begun. A lane keeps its step, so that lanes that once waited for the same thing do
    /// not go on calling all at once.
    slot: Instant,
    /// When the next call may begin; nothing while one is in flight.
    due: Option<Instant>,
}

impl<'a> Driver<'a> {
    fn open(plan: &'a BenchPlan, operation: Operation, body: &'a str, count: usize) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let now = Instant::now();
        let mut lanes = Vec::with_capacity(count);
        for number in 0..count {
            let stream = dial(&plan.target, &poll, number)?;
            lanes.push(Lane { stream, got: Vec::with_capacity(8192), sent: now, slot: now, due: Some(now) });
        }
        let interval = plan.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs(1).mul_f64(float(plan.connections) / f64::from(rate.max(1)))
        });
        // Calls at a rate are spread over the interval.
        for (number, lane) in lanes.iter_mut().enumerate() {
            lane.slot = now + interval.mul_f64(float(number) / float(count));
            lane.due = Some(lane.slot);
        }
        let mut request = Vec::new();
        plan.target.write_request(operation.target(), body.as_bytes(), &mut request)?;
        Ok(Self { lanes, poll, target: &plan.target, operation, body, request, written: now, interval })
    }

    fn run(mut self, plan: &BenchPlan, barrier: &Barrier) -> io::Result<Tally> {
        barrier.wait();
        self.pass(WARM_UP, &mut Tally::default())?;
        let mut tally = Tally::default();
        let start = Instant::now();
        self.pass(Duration::from_secs(plan.seconds), &mut tally)?;
        tally.elapsed = start.elapsed();
        Ok(tally)
    }

    /// Calls for `length`.
    fn pass(&mut self, length: Duration, tally: &mut Tally) -> io::Result<()> {
        let end = Instant::now() + length;
        let mut events = Vec::with_capacity(self.lanes.len());
        while Instant::now() < end {
            let wait = self.begin_due()?.min(end.saturating_duration_since(Instant::now()));
            let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            events.clear();
            epoll::wait(&self.poll, spare_capacity(&mut events), Some(&timeout))?;
            for event in &events {
                self.receive(event.data.u64() as usize, tally)?;
            }
        }
        Ok(())
    }

    /// Begins the calls that are due; returns how long there is nothing to begin.
    fn begin_due(&mut self) -> io::Result<Duration> {
        let now = Instant::now();
        if now.duration_since(self.written) > Duration::from_secs(1) {
            self.target.write_request(self.operation.target(), self.body.as_bytes(), &mut self.request)?;
            self.written = now;
        }
        let mut next = Duration::from_secs(1);
        for lane in &mut self.lanes {
            match lane.due {
                Some(due) if due <= now => {
                    (lane.due, lane.sent) = (None, Instant::now());
                    // A request is far smaller than what a socket buffers.
                    lane.stream.write_all(&self.request)?;
                }
                Some(due) => next = next.min(due - now),
                None => {}
            }
        }
        Ok(next)
    }

    fn receive(&mut self, number: usize, tally: &mut Tally) -> io::Result<()> {
        let lane = &mut self.lanes[number];
        let mut space = [0; 8192];
        match lane.stream.read(&mut space) {
            Ok(0) => return Err(io::Error::other("the daemon closed the connection")),
            Ok(read) => lane.got.extend_from_slice(&space[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let Some((status, closes)) = whole_response(&lane.got)? else { return Ok(()) };
        expect_ok(status, &lane.got)?;
        lane.got.clear();
        if closes {
            lane.stream = dial(self.target, &self.poll, number)?;
        }
        let now = Instant::now();
        tally.calls += 1;
        if tally.latencies.len() < MAX_SAMPLES {
            let nanos = now.duration_since(lane.sent).as_nanos();
            tally.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
        lane.slot = next_slot(lane.slot, self.interval, now);
        lane.due = Some(lane.slot);
        Ok(())
    }
}

/// The step after `slot`, or the first one that is not yet over.
fn next_slot(slot: Instant, interval: Duration, now: Instant) -> Instant {
    if interval.is_zero() {
        return now;
    }
    let late = now.saturating_duration_since(slot + interval);
    let missed = u32::try_from(late.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
    slot + interval * missed.saturating_add(1)
}

/// A connection that `poll` tells of by its number.
fn dial(target: &Target, poll: &OwnedFd, number: usize) -> io::Result<Stream> {
    let stream = target.dial()?;
    stream.set_nonblocking()?;
    epoll::add(poll, &stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
    Ok(stream)
}

/// The status of the response in `got` when it is there whole, and whether its connection ends with it.
fn whole_response(got: &[u8]) -> io::Result<Option<(u16, bool)>> {
    let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let garbled = || io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP with a length");
    let head = std::str::from_utf8(&got[..end]).map_err(|_| garbled())?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(garbled)?;
    let header = |wanted: &str| {
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let length: usize = header("content-length").and_then(|text| text.parse().ok()).ok_or_else(garbled)?;
    let closes = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok((got.len() >= end + 4 + length).then_some((status, closes)))
}

fn expect_ok(status: u16, answer: &[u8]) -> io::Result<()> {
    if status == 200 {
        return Ok(());
    }
    Err(io::Error::other(format!("the daemon answered {status}: {}", String::from_utf8_lossy(answer))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_keeps_its_step_when_it_was_late() {
        let (start, step) = (Instant::now(), Duration::from_millis(10));
        let next = |after: u64| next_slot(start, step, start + Duration::from_millis(after)) - start;
        assert_eq!(next(3), step, "the call was answered in time");
        assert_eq!(next(19), step, "what is due begins at once");
        assert_eq!(next(35), step * 3, "what was missed is not made up for");
        assert_eq!(
            next_slot(start, Duration::ZERO, start + step),
            start + step,
            "without a rate there are no steps"
        );
    }
}
