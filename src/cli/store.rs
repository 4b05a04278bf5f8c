//! `kmsfs send` and `kmsfs receive` with an S3-compatible store.

use std::collections::BTreeMap;
use std::path::Path;

use super::args::SendArgs;
use super::error::{CliError, Exit};
use crate::client::s3::{Location, OBJECT_SUFFIX, Store, StoreError, part_bytes_for};
use crate::volume::Progress;
use crate::volume::stream::{self, Begins, Received, SendOptions, Sent};

fn open(place: &str, endpoint: Option<&str>) -> Result<Store, CliError> {
    let location: Location = place.parse().map_err(|why: String| CliError::new(Exit::Usage, why))?;
    Ok(Store::open(location, endpoint, &|name| std::env::var(name).ok())?)
}

impl From<StoreError> for CliError {
    fn from(e: StoreError) -> Self {
        Self::failed(e.to_string())
    }
}

fn object_of(snapshot: &Path) -> String {
    format!("{}{OBJECT_SUFFIX}", snapshot.file_name().unwrap_or_default().to_string_lossy())
}

/// Sends a snapshot to `place`, as an object of its name.
pub fn send(
    snapshot: &Path,
    base: Option<&Path>,
    place: &str,
    args: &SendArgs,
    progress: &Progress,
) -> Result<Sent, CliError> {
    let store = open(place, args.endpoint.as_deref())?;
    if let Some(base) = base
        && store.size(&object_of(base))?.is_none()
    {
        eprintln!("kmsfs: {place} has no stream of {}, which this one goes on from", base.display());
    }
    let part_bytes = args.part_size.map_or_else(|| part_bytes_for(used_bytes(snapshot)), |mib| mib << 20);
    let mut upload = store.upload(&object_of(snapshot), part_bytes)?;
    if upload.earlier > 0 {
        eprintln!("kmsfs: goes on with what was sent before (parts: {})", upload.earlier);
    }
    let sent = stream::send(snapshot, base, &mut upload, &SendOptions::default(), progress);
    let outcome = sent.map_err(CliError::from).and_then(|sent| Ok(upload.finish().map(|()| sent)?));
    outcome.map_err(|e| match upload.keep() {
        0 => e,
        parts => e.with_hint(&format!(
            "what was sent is kept there (parts: {parts}): the same command goes on, with --abandon it is taken away"
        )),
    })
}

/// Takes away what an interrupted upload left.
pub fn abandon(snapshot: &Path, place: &str, endpoint: Option<&str>) -> Result<bool, CliError> {
    Ok(open(place, endpoint)?.abandon(&object_of(snapshot))?)
}

/// No stream is much longer than what its filesystem holds.
fn used_bytes(snapshot: &Path) -> u64 {
    rustix::fs::statvfs(snapshot).map_or(0, |stat| (stat.f_blocks - stat.f_bfree) * stat.f_frsize)
}

/// Receives into `dir` the stream that `place` names, or all that lie there and are not in `dir`, each after the one that it
/// goes on from. Without `dir` they are only verified.
pub fn receive(dir: Option<&Path>, place: &str, endpoint: Option<&str>) -> Result<Vec<Received>, CliError> {
    if let Some((above, name)) = place.rsplit_once('/').filter(|(_, name)| name.ends_with(OBJECT_SUFFIX)) {
        return Ok(vec![receive_one(&open(above, endpoint)?, name, dir)?]);
    }
    let store = open(place, endpoint)?;
    let streams = streams_of(&store, place)?;
    match dir {
        Some(dir) => receive_chain(&store, place, streams, dir),
        None => streams.keys().map(|name| receive_one(&store, name, None)).collect(),
    }
}

/// The streams at `place`, by the names of their objects.
fn streams_of(store: &Store, place: &str) -> Result<BTreeMap<String, Begins>, CliError> {
    let mut streams = BTreeMap::new();
    for name in store.list()? {
        let begins = stream::begins(store.reader(&name)).map_err(|e| in_object(e.into(), &name))?;
        streams.insert(name, begins);
    }
    let mut volumes = streams.values().map(|begins| &begins.volume_id);
    let Some(first) = volumes.next() else {
        return Err(CliError::failed(format!("there are no streams at {place}")));
    };
    if volumes.any(|other| other != first) {
        let text =
            format!("at {place} lie streams of several volumes; name them one by one, as {place}/NAME.kmsfs");
        return Err(CliError::failed(text));
    }
    Ok(streams)
}

fn receive_chain(
    store: &Store,
    place: &str,
    mut waiting: BTreeMap<String, Begins>,
    dir: &Path,
) -> Result<Vec<Received>, CliError> {
    let is_there = |snapshot: &str| dir.join(snapshot).is_dir();
    let mut received = Vec::new();
    loop {
        waiting.retain(|_, begins| !is_there(&begins.snapshot));
        let ready = |begins: &Begins| begins.base.as_deref().is_none_or(is_there);
        let next = waiting.iter().find(|(_, begins)| ready(begins)).map(|(name, _)| name.clone());
        let Some(name) = next else { break };
        received.push(receive_one(store, &name, Some(dir))?);
    }
    match waiting.into_iter().next() {
        None => Ok(received),
        Some((name, begins)) => Err(CliError::failed(format!(
            "'{name}' goes on from the snapshot '{}', which is neither in {} nor at {place}",
            begins.base.unwrap_or_default(),
            dir.display()
        ))),
    }
}

fn receive_one(store: &Store, name: &str, dir: Option<&Path>) -> Result<Received, CliError> {
    let from = store.reader(name);
    let received = match dir {
        Some(dir) => stream::receive(dir, from),
        None => stream::check(from),
    };
    received.map_err(|e| in_object(e.into(), name))
}

fn in_object(e: CliError, name: &str) -> CliError {
    e.with_hint(&format!("the stream is '{name}'"))
}
