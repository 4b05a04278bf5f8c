//! Calls over a bounded pool of kept connections: one at a time, or many pipelined on one connection.
//!
//! Called by [`super::Kms`]. Moves bytes; knows neither JSON nor what is worth trying again.

use std::borrow::Cow;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::http::{Answer, Connection};
use super::sign::Signer;
use super::stream::{Connector, Timeouts};
use super::{ClientError, Credentials, Endpoint};

/// Connections kept for reuse.
const MAX_IDLE: usize = 16;
/// Bytes of requests sent ahead of their answers; far below what a socket buffers, so that both sides never block.
const PIPELINE_BYTES: usize = 48 * 1024;
/// Requests sent ahead of their answers.
pub const PIPELINE_DEPTH: usize = 64;
/// After a time-out, calls fail at once for this long; then one at a time tries whether the service answers again.
const DOWN_TIME: Duration = Duration::from_secs(1);
pub(super) const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const USER_AGENT: &str = concat!("kmsfs/", env!("CARGO_PKG_VERSION"));

/// One request: the operation's `X-Amz-Target`, and its JSON.
pub struct Call {
    /// `TrentService.Decrypt` and the like.
    pub target: &'static str,
    /// JSON; wiped on drop, since it may hold a plaintext.
    pub body: Zeroizing<Vec<u8>>,
    /// Whether doing it twice does no harm, so that a broken connection is worth a second one.
    pub idempotent: bool,
    /// The Unix user on whose behalf it is made; `None` for our own.
    pub user: Option<u32>,
}

/// The connections to one endpoint.
pub struct Transport {
    connector: Connector,
    endpoint: Endpoint,
    host: String,
    signer: Option<Signer>,
    via_service: bool,
    /// As whom calls are made that are not for a user.
    pub(super) mount_principal: Option<String>,
    idle: Mutex<Vec<Connection>>,
    /// How long a call may take that tries whether the service answers again.
    trial_time: Duration,
    down: Mutex<Option<Down>>,
}

/// A service that let a call wait in vain, and has not answered since.
struct Down {
    /// Until then calls fail at once, with this.
    until: Instant,
    error: ClientError,
}

impl Transport {
    /// Prepares calls to `endpoint`; no connection is made yet.
    pub fn new(
        endpoint: Endpoint,
        timeouts: Timeouts,
        credentials: Option<Credentials>,
        via_service: bool,
    ) -> Result<Self, ClientError> {
        let host = match &endpoint {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Http(authority) | Endpoint::Https(authority) => authority.host_header(),
        };
        let signer = match (&endpoint, credentials) {
            (Endpoint::Unix(_), _) => None,
            (_, Some(credentials)) => Some(Signer::new(credentials)),
            (_, None) => return Err(ClientError::Credentials("none were given".to_owned())),
        };
        let via_service = via_service && endpoint.is_unix();
        let connector = Connector::new(endpoint.clone(), timeouts)?;
        let idle = Mutex::new(Vec::new());
        let trial_time = timeouts.connect + 2 * timeouts.io;
        let down = Mutex::new(None);
        let mount_principal = None;
        Ok(Self { connector, endpoint, host, signer, via_service, mount_principal, idle, trial_time, down })
    }

    /// The endpoint called.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// One call and its answer.
    pub fn exchange(&self, call: &Call) -> Result<Answer, ClientError> {
        self.fail_fast()?;
        self.exchange_anyway(call)
    }

    /// The same, though the service may seem to be down: for callers who ask whether it is back.
    pub fn exchange_anyway(&self, call: &Call) -> Result<Answer, ClientError> {
        let request = self.request(call);
        if let Some(connection) = self.take_idle().filter(|_| call.idempotent) {
            match self.round_trip(connection, &request) {
                // The service may close a kept connection at any time; then a fresh one decides.
                Err(e) if is_closed(&e) => {}
                outcome => return self.answered(outcome),
            }
        }
        let connection = self.watch(self.open())?;
        self.answered(self.round_trip(connection, &request))
    }

    /// Many calls on one connection, each sent before the answers of those ahead of it have come.
    /// After the connection breaks the rest fail; which of those were carried out is not known.
    pub fn exchange_many(&self, calls: &[Call]) -> Vec<Result<Answer, ClientError>> {
        let mut outcomes = Vec::with_capacity(calls.len());
        let failure = match self.try_exchange_many(calls, &mut outcomes) {
            Ok(()) => return outcomes,
            Err(failure) => failure,
        };
        outcomes.resize_with(calls.len(), || Err(failure.clone()));
        outcomes
    }

    fn try_exchange_many(
        &self,
        calls: &[Call],
        outcomes: &mut Vec<Result<Answer, ClientError>>,
    ) -> Result<(), ClientError> {
        self.fail_fast()?;
        let mut connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.watch(self.open())?,
        };
        let mut sent = 0;
        while outcomes.len() < calls.len() {
            let mut requests = Zeroizing::new(Vec::with_capacity(PIPELINE_BYTES));
            let mut batch = 0;
            while sent < calls.len()
                && batch < PIPELINE_DEPTH
                && (batch == 0 || requests.len() < PIPELINE_BYTES / 2)
            {
                self.write_request(&calls[sent], &mut requests);
                sent += 1;
                batch += 1;
            }
            self.watch(connection.send(&requests))?;
            while outcomes.len() < sent {
                outcomes.push(Ok(self.answered(connection.receive())?));
            }
            if sent < calls.len() && !connection.is_reusable() {
                connection = self.watch(self.open())?;
            }
        }
        self.give_back(connection);
        Ok(())
    }

    fn open(&self) -> io::Result<Connection> {
        Ok(Connection::new(self.connector.open()?))
    }

    fn round_trip(&self, mut connection: Connection, request: &[u8]) -> io::Result<Answer> {
        connection.send(request)?;
        let answer = connection.receive()?;
        self.give_back(connection);
        Ok(answer)
    }

    fn take_idle(&self) -> Option<Connection> {
        loop {
            let connection = self.idle.lock().pop()?;
            if connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if connection.is_reusable() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    fn fail_fast(&self) -> Result<(), ClientError> {
        let mut down = self.down.lock();
        let Some(down) = &mut *down else { return Ok(()) };
        let now = Instant::now();
        if now < down.until {
            return Err(down.error.clone());
        }
        // This call is the trial; the others fail at once until it is decided.
        down.until = now + self.trial_time;
        Ok(())
    }

    /// Notes a service that answers.
    fn answered(&self, outcome: io::Result<Answer>) -> Result<Answer, ClientError> {
        if outcome.is_ok() {
            *self.down.lock() = None;
        }
        self.watch(outcome)
    }

    /// Turns an I/O error into ours, and notes a service that let us wait in vain.
    fn watch<T>(&self, outcome: io::Result<T>) -> Result<T, ClientError> {
        outcome.map_err(|e| {
            let error = ClientError::unreachable(&self.endpoint, &e);
            let mut down = self.down.lock();
            // After a trial, its outcome counts, whatever it is.
            if matches!(error, ClientError::TimedOut(_)) || down.is_some() {
                *down = Some(Down { until: Instant::now() + DOWN_TIME, error: error.clone() });
            }
            error
        })
    }

    fn request(&self, call: &Call) -> Zeroizing<Vec<u8>> {
        let mut request = Zeroizing::new(Vec::with_capacity(1024 + call.body.len()));
        self.write_request(call, &mut request);
        request
    }

    fn write_request(&self, call: &Call, out: &mut Vec<u8>) {
        let head = [
            "POST / HTTP/1.1\r\nHost: ",
            &self.host,
            "\r\nUser-Agent: ",
            USER_AGENT,
            "\r\nContent-Type: ",
            CONTENT_TYPE,
            "\r\nX-Amz-Target: ",
            call.target,
            "\r\nContent-Length: ",
            &call.body.len().to_string(),
            "\r\n",
        ];
        for part in head {
            out.extend_from_slice(part.as_bytes());
        }
        if self.via_service {
            out.extend_from_slice(b"X-Kms-Via-Service: kmsfs\r\n");
        }
        let behalf = call.user.map(|user| Cow::Owned(user.to_string()));
        if let Some(behalf) = behalf.or_else(|| self.mount_principal.as_deref().map(Cow::Borrowed)) {
            out.extend_from_slice(format!("X-Kms-On-Behalf-Of: {behalf}\r\n").as_bytes());
        }
        if let Some(signer) = &self.signer {
            signer.write_headers(&self.host, call.target, &call.body, out);
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&call.body);
    }
}

/// Whether the peer had closed the connection, which an idle one may be at any time.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
