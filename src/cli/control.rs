//! The control socket of a mount: one JSON line each way. Open to the mount's owner and to root.
//!
//! Must never hand out a key, nor wait for a client that does not speak.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use super::error::CliError;
use super::figures::{self, Figures};
use super::mount_plan::mount_table;
use super::reencrypt_job::ReencryptState;
use super::runtime_dir;
use super::snapshot_job::SnapshotState;
use crate::client::connect_unix;
use crate::sys::at;
use crate::volume::ReencryptOptions;

/// Longest line taken.
const MAX_LINE: u64 = 64 * 1024;
/// A client that says nothing is dropped after this long.
const SERVER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a command waits for a mount's answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for each mount where it looks at all of them: one that stands still is none that answers.
const LISTING_PATIENCE: Duration = Duration::from_secs(5);

/// A socket that nobody listens on is removed at this age.
const DEAD_AGE: Duration = Duration::from_mins(1);

/// What a mount is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Tell about yourself.
    Status,
    /// Drop data keys, and fetch none again until it is unlocked.
    Lock {
        /// ARN of the master key; without it, every key.
        key: Option<String>,
        /// Drop them once, and go on.
        once: bool,
    },
    /// Let keys be fetched again.
    Unlock {
        /// ARN of the master key; without it, every lock ends.
        key: Option<String>,
    },
    /// Read the volume record again, if it was replaced.
    Reload,
    /// Begin a snapshot.
    Snapshot {
        /// Name for it.
        name: String,
    },
    /// How far the snapshot is.
    SnapshotState,
    /// End the snapshot that is being made.
    SnapshotCancel,
    /// Begin a re-encryption.
    Reencrypt(ReencryptOptions),
    /// How far the re-encryption is.
    ReencryptState,
    /// End the re-encryption that is under way.
    ReencryptCancel,
    /// How far some work is, for whoever asks the mount.
    Working(Work),
    /// Where the lower file of this plaintext path is.
    Locate {
        /// Relative to the mount point.
        path: PathBuf,
    },
}

/// What a mount answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To `Status`.
    Status(Box<Status>),
    /// To `Lock`: how many data keys were dropped.
    Locked(usize),
    /// To `Unlock`: whether there was a lock.
    Unlocked(bool),
    /// To `Reload`: whether there was news.
    Reloaded(bool),
    /// To `Snapshot`, `SnapshotState` and `SnapshotCancel`.
    Snapshot(Box<SnapshotState>),
    /// To `Reencrypt`, `ReencryptState` and `ReencryptCancel`.
    Reencrypt(Box<ReencryptState>),
    /// To `Working`.
    Noted,
    /// To `Locate`: relative to the lower directory.
    Located(PathBuf),
    /// It did not work, and why.
    Failed(String),
}

/// A running mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Mount point.
    pub mountpoint: PathBuf,
    /// Lower directory.
    pub lower: PathBuf,
    /// Identity of the volume.
    pub volume_id: String,
    /// Key service.
    pub kms: String,
    /// ARN of the key for new files.
    pub default_key: String,
    /// Process id.
    pub pid: u32,
    /// Whether changes are refused.
    pub read_only: bool,
    /// When it was mounted, in seconds since 1970.
    pub since: u64,
    /// Unwrapped data keys in the cache.
    pub cached_keys: usize,
    /// Fresh data keys in stock.
    pub fresh_keys: usize,
    /// Whether everything is locked.
    #[serde(default)]
    pub locked: bool,
    /// ARNs of master keys that are locked.
    #[serde(default)]
    pub locked_keys: Vec<String>,
    /// Whether each caller's own right to keys counts.
    #[serde(default)]
    pub per_caller: bool,
    /// Files open.
    pub open_files: usize,
    /// Inodes the kernel knows.
    pub inodes: usize,
    /// Requests that met damaged ciphertext.
    #[serde(default)]
    pub damage_seen: u64,
    /// Idle time after which it unmounts itself, in seconds.
    pub idle_seconds: Option<u64>,
    /// Where it answers, scrapers too.
    #[serde(default)]
    pub socket: PathBuf,
    /// What was counted since it began.
    #[serde(default)]
    pub figures: Figures,
    /// Work on the volume from outside of the mount.
    #[serde(default)]
    pub work: Option<Work>,
}

/// Work on a mounted volume by another process, which told of it a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Such as rewrap.
    pub what: String,
    /// Files done.
    pub done: u64,
    /// Of how many, where they were counted.
    pub total: u64,
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.done)?;
        if self.total > 0 { write!(f, " of {} files", self.total) } else { write!(f, " files") }
    }
}

/// The listening socket of one mount; removed on drop.
pub struct Server {
    path: PathBuf,
}

impl Server {
    /// Listens for `mountpoint` and answers by `handle` on a thread of its own.
    pub fn start(
        mountpoint: &Path,
        handle: impl Fn(Request) -> Answer + Send + 'static,
    ) -> Result<Self, CliError> {
        let path = socket_of(mountpoint)?;
        let failed =
            |e: std::io::Error| CliError::failed(format!("cannot listen on {}: {e}", path.display()));
        // The mount point is ours alone by now, so a socket there is a dead mount's.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let serve = move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => serve_one(&stream, &handle),
                    // Out of descriptors, for one: no reason to spin.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        std::thread::Builder::new().name("control".into()).spawn(serve).map_err(failed)?;
        Ok(Self { path })
    }
}

/// Where the mount at `mountpoint` answers.
pub fn socket_of(mountpoint: &Path) -> Result<PathBuf, CliError> {
    Ok(runtime_dir::make()?.join(format!("{}.sock", runtime_dir::stem(mountpoint))))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve_one(stream: &UnixStream, handle: &impl Fn(Request) -> Answer) {
    let line = admit(stream).and_then(|()| read_line(stream, SERVER_PATIENCE));
    let answer = match line {
        Ok(line) if line.starts_with("GET ") => return scraped(stream, handle(Request::Status)),
        Ok(line) => parse(&line).map_or_else(Answer::Failed, handle),
        Err(why) => Answer::Failed(why),
    };
    let _ = write_line(stream, &answer);
}

/// Answers a scraper, whatever path it asked for. What else it said stays unread.
fn scraped(stream: &UnixStream, answer: Answer) {
    let Answer::Status(status) = answer else { return };
    let (text, kind) = (figures::prometheus(&status), figures::CONTENT_TYPE);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    let _ = stream.set_write_timeout(Some(SERVER_PATIENCE));
    let mut to = stream;
    let _ = to.write_all((head + &text).as_bytes());
    // Unread bytes would turn the end of the stream into a reset, before the scraper has read.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = std::io::copy(&mut stream.take(MAX_LINE), &mut std::io::sink());
}

/// Only the mount's own user and root may ask.
fn admit(stream: &UnixStream) -> Result<(), String> {
    let peer = socket_peercred(stream).map_err(|e| e.to_string())?;
    let own = rustix::process::geteuid();
    if peer.uid == own || peer.uid.is_root() {
        Ok(())
    } else {
        Err("this mount is somebody else's".to_owned())
    }
}

fn parse<T: for<'de> Deserialize<'de>>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|e| format!("not a request: {e}"))
}

fn read_line(stream: &UnixStream, patience: Duration) -> Result<String, String> {
    stream.set_read_timeout(Some(patience)).map_err(|e| e.to_string())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).map_err(|e| e.to_string())?;
    Ok(line)
}

fn write_line(stream: &UnixStream, value: &impl Serialize) -> std::io::Result<()> {
    stream.set_write_timeout(Some(SERVER_PATIENCE))?;
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut stream = stream;
    stream.write_all(&line)
}

fn ask_socket(path: &Path, request: &Request, patience: Duration) -> Result<Answer, String> {
    let stream = connect_unix(path, patience).map_err(|e| e.to_string())?;
    write_line(&stream, request).map_err(|e| e.to_string())?;
    parse(&read_line(&stream, patience)?)
}

/// Every mount that answers, with its socket.
fn answering() -> Vec<(PathBuf, Status)> {
    let is_ours =
        |name: &str| name.strip_prefix("mount-").is_some_and(|rest| rest.strip_suffix(".sock").is_some());
    let listed =
        runtime_dir::all().into_iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let sockets =
        listed.filter(|entry| entry.file_name().to_str().is_some_and(is_ours)).map(|entry| entry.path());
    let mut found: Vec<(PathBuf, Status)> = sockets
        .filter_map(|path| match ask_socket(&path, &Request::Status, LISTING_PATIENCE) {
            Ok(Answer::Status(status)) => Some((path, *status)),
            Ok(_) => None,
            Err(_) => {
                remove_if_dead(&path);
                None
            }
        })
        .collect();
    found.sort_by(|a, b| a.1.mountpoint.cmp(&b.1.mountpoint));
    found
}

/// Removes the socket that a killed mount left. A young one may belong to a mount that is about to listen.
fn remove_if_dead(path: &Path) {
    let dialled = connect_unix(path, Duration::ZERO);
    let refused = dialled.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    let age = std::fs::metadata(path).and_then(|stat| stat.modified()).map(|at| at.elapsed());
    let old = matches!(age, Ok(Ok(age)) if age > DEAD_AGE);
    if refused && old {
        let _ = std::fs::remove_file(path);
        // Its log, where nothing was written to it.
        let log = path.with_extension("log");
        if std::fs::symlink_metadata(&log).is_ok_and(|stat| stat.is_file() && stat.len() == 0) {
            let _ = std::fs::remove_file(log);
        }
    }
}

/// The mounts of this user, and for root all of the system's.
pub fn mounts() -> Vec<Status> {
    answering().into_iter().map(|(_, status)| status).collect()
}

/// Asks every mount that answers the same. Those that did.
pub fn ask_all(request: &Request) -> Vec<Status> {
    let ask = |(socket, status): (PathBuf, Status)| match ask_socket(&socket, request, CLIENT_PATIENCE) {
        Ok(Answer::Failed(_)) | Err(_) => None,
        Ok(_) => Some(status),
    };
    answering().into_iter().filter_map(ask).collect()
}

/// The mount at `mountpoint` by its own socket: no other mount, which may stand still, is asked.
fn by_its_socket(mountpoint: &Path) -> Option<(PathBuf, Status)> {
    let name = format!("{}.sock", runtime_dir::stem(mountpoint));
    let mut sockets = runtime_dir::all().into_iter().map(|dir| dir.join(&name));
    let ask = |socket: PathBuf| match ask_socket(&socket, &Request::Status, CLIENT_PATIENCE) {
        Ok(Answer::Status(status)) if status.mountpoint == mountpoint => Some((socket, *status)),
        _ => None,
    };
    sockets.find_map(ask)
}

fn at_place(mountpoint: &Path) -> Option<(PathBuf, Status)> {
    let wanted = at::resolved(mountpoint);
    let others = || answering().into_iter().find(|(_, status)| status.mountpoint == wanted);
    by_its_socket(&wanted).or_else(others)
}

/// The mount at `mountpoint`.
pub fn mount_at(mountpoint: &Path) -> Result<Status, CliError> {
    at_place(mountpoint).map(|(_, status)| status).ok_or_else(|| no_mount_at(mountpoint))
}

/// The mount of the lower directory `lower`, which is resolved, if it has one that we may ask.
pub fn of_lower(lower: &Path) -> Option<Status> {
    let table = mount_table().into_iter().filter(|(_, below)| below == lower);
    let mut near = table.filter_map(|(mountpoint, _)| by_its_socket(&mountpoint)).map(|(_, status)| status);
    let is_it = |status: &Status| status.lower == lower;
    // One that this process does not see mounted may be seen by others.
    near.find(is_it).or_else(|| mounts().into_iter().find(is_it))
}

/// The mount that holds `path`, and the rest of the path below its mount point.
pub fn holding(path: &Path) -> Option<(Status, PathBuf)> {
    let path = at::resolved(path);
    let depth = |mountpoint: &Path| mountpoint.components().count();
    let above = mount_table().into_iter().filter(|(mountpoint, _)| path.starts_with(mountpoint));
    let (mountpoint, _) = above.max_by_key(|(mountpoint, _)| depth(mountpoint))?;
    let near = by_its_socket(&mountpoint).map(|(_, status)| status);
    let deepest = || {
        let above = mounts().into_iter().filter(|status| path.starts_with(&status.mountpoint));
        above.max_by_key(|status| depth(&status.mountpoint))
    };
    let status = near.or_else(deepest)?;
    let rest = path.strip_prefix(&status.mountpoint).ok()?.to_owned();
    Some((status, rest))
}

fn no_mount_at(mountpoint: &Path) -> CliError {
    CliError::failed(format!("{} is not a mount point of kmsfs that you may ask", mountpoint.display()))
}

/// Asks the mount at `mountpoint`.
pub fn ask(mountpoint: &Path, request: &Request) -> Result<Answer, CliError> {
    let (socket, _) = at_place(mountpoint).ok_or_else(|| no_mount_at(mountpoint))?;
    match ask_socket(&socket, request, CLIENT_PATIENCE) {
        Ok(Answer::Failed(why)) | Err(why) => Err(CliError::failed(why)),
        Ok(answer) => Ok(answer),
    }
}
