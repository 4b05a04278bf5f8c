//! A `kmsd` of its own for each test: made, started, killed and removed; and a plain HTTP client for its sockets.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::must_use_candidate, reason = "a failed step is a failed test")]

#[allow(clippy::duplicate_mod, reason = "some test files use both supports")]
#[path = "../programs/fresh_dir.rs"]
mod fresh_dir;
#[allow(clippy::duplicate_mod, reason = "some test files use both supports")]
#[path = "../programs/kill.rs"]
mod kill;
pub mod port;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use fresh_dir::fresh_dir;

/// Nothing waits longer.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A state directory and the daemon on it, both gone at the end.
pub struct Kmsd {
    pub base: PathBuf,
    extra: Vec<String>,
    input: Option<&'static str>,
}

impl Kmsd {
    /// A fresh directory, not initialised.
    pub fn bare() -> Self {
        Self { base: fresh_dir("kmsd"), extra: Vec::new(), input: None }
    }

    /// Initialised with a key file, not running.
    pub fn initialised() -> Self {
        let kmsd = Self::bare();
        assert_ok(&kmsd.init(&["--seal", &format!("keyfile:{}", kmsd.base.join("key").display())]));
        kmsd
    }

    /// Running.
    pub fn running() -> Self {
        let kmsd = Self::initialised();
        kmsd.start();
        kmsd
    }

    /// With further arguments of `serve` from now on.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }

    pub fn state(&self) -> PathBuf {
        self.base.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.base.join("sock")
    }

    pub fn init(&self, arguments: &[&str]) -> Output {
        let state = self.state();
        let mut all = vec!["init", "--dir", state.to_str().unwrap()];
        all.extend(arguments);
        kmsd(&all, None)
    }

    /// `serve --background`, whatever comes of it.
    pub fn serve(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let (state, socket) = (self.state(), self.socket());
        let mut all = vec!["serve", "--background", "--dir", state.to_str().unwrap()];
        all.extend(["--socket", socket.to_str().unwrap()]);
        all.extend(self.extra.iter().map(String::as_str));
        all.extend(arguments);
        kmsd(&all, input)
    }

    pub fn start(&self) {
        assert_ok(&self.serve(&[], self.input));
    }

    pub fn stop(&self) -> Output {
        kmsd(&["stop", "--dir", self.state().to_str().unwrap()], None)
    }

    pub fn verify_audit(&self) -> Output {
        kmsd(&["audit", "--dir", self.state().to_str().unwrap(), "verify"], None)
    }

    pub fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.state().join("kmsd.lock")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        kill::kill(self.pid(), PATIENCE);
    }

    pub fn connect(&self) -> Http<UnixStream> {
        Http::unix(&self.socket())
    }

    /// One call on a connection of its own.
    pub fn call(&self, operation: &str, request: &Value) -> (u16, Value) {
        self.connect().call(operation, request)
    }

    /// One call that must succeed.
    pub fn ok(&self, operation: &str, request: &Value) -> Value {
        let (status, answer) = self.call(operation, request);
        assert_eq!(status, 200, "{operation}: {answer}");
        answer
    }

    pub fn create_key(&self) -> String {
        self.ok("CreateKey", &json!({}))["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.state().join("kmsd.log")).unwrap_or_default()
    }
}

impl Drop for Kmsd {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// Runs `kmsd` to its end.
pub fn kmsd(arguments: &[&str], input: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmsd"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().unwrap();
    if let Some(text) = input {
        // Who needs no input may have ended before it came.
        let written = child.stdin.take().unwrap().write_all(text.as_bytes());
        assert!(written.is_ok() || written.is_err_and(|e| e.kind() == ErrorKind::BrokenPipe));
    }
    child.wait_with_output().unwrap()
}

#[track_caller]
pub fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// It failed with `code` and one line that holds `needle`.
#[track_caller]
pub fn assert_fails(output: &Output, code: i32, needle: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(needle), "{text:?} does not say {needle:?}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

/// Waits for something that comes soon.
#[track_caller]
pub fn wait_until(mut came: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !came() {
        assert!(Instant::now() < deadline, "it did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One HTTP connection.
pub struct Http<S: Read + Write> {
    pub stream: BufReader<S>,
}

/// One response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(&self) -> Value {
        if self.body.is_empty() { Value::Null } else { serde_json::from_slice(&self.body).unwrap() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Http<UnixStream> {
    pub fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }
}

impl<S: Read + Write> Http<S> {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn receive(&mut self) -> Response {
        self.try_receive().expect("an answer")
    }

    /// `None` when the other side closed the connection.
    pub fn try_receive(&mut self) -> Option<Response> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => break,
            }
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
        self.stream.read_exact(&mut body).ok()?;
        Some(Response { status, headers, body })
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).unwrap_or(0);
        (read > 0).then(|| line.trim_end().to_owned())
    }

    pub fn call(&mut self, operation: &str, request: &Value) -> (u16, Value) {
        self.send(&request_bytes(operation, &[], request.to_string().as_bytes()));
        let response = self.receive();
        (response.status, response.json())
    }
}

/// A whole request. `operation` without a namespace is one of KMS.
pub fn request_bytes(operation: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let namespace = if operation.contains('.') { "" } else { "TrentService." };
    let mut out = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: {namespace}{operation}\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        out.extend([name, ": ", value, "\r\n"]);
    }
    out.push_str("\r\n");
    let mut bytes = out.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
