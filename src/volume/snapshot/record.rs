//! What a snapshot says of itself.
//!
//! ```text
//! .kmsfs.snapshot in the root of the snapshot: one line of JSON, one line of 32 hex digits
//! MAC = GCM-SIV tag (directory record key, nonce = 0, aad = "snapshot" || the JSON, empty message)
//! ```

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::api::hex;
use crate::crypto::{VolumeKey, constant_time_eq};
use crate::sys::at;
use crate::volume::record_file::replace;
use crate::volume::{Volume, VolumeError};

/// Name of the record.
pub const SNAPSHOT_RECORD: &str = ".kmsfs.snapshot";
/// Longest record read.
const RECORD_MAX: u64 = 16 * 1024;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume_id: String,
    /// The moment, in milliseconds since 1970.
    pub created: u64,
    /// Whether it was taken of a mount that went on.
    pub live: bool,
    /// How long changes were held up, in microseconds.
    pub held_us: u64,
    /// Files in it, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Bytes that were copied; the rest is shared with the volume.
    pub copied_bytes: u64,
}

fn mac(key: &VolumeKey, json: &[u8]) -> [u8; 16] {
    key.dir_record.mac(&[0; 12], &[&b"snapshot"[..], json].concat())
}

fn read_text(dir: &OwnedFd) -> std::io::Result<Option<String>> {
    let file = match at::open_regular(dir, SNAPSHOT_RECORD.as_bytes(), OFlags::RDONLY, 0) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => std::fs::File::from(other?),
    };
    let mut text = String::new();
    file.take(RECORD_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// The record in `dir`, not authenticated.
pub(super) fn read(dir: &OwnedFd) -> Option<SnapshotRecord> {
    let text = read_text(dir).ok()??;
    serde_json::from_str(text.lines().next()?).ok()
}

/// Writes the record of the snapshot in `dir`.
pub(super) fn write(dir: &OwnedFd, key: &VolumeKey, record: &SnapshotRecord) -> std::io::Result<()> {
    let json = serde_json::to_string(record)?;
    let text = format!("{json}\n{}\n", hex(&mac(key, json.as_bytes())));
    replace(dir.as_fd(), SNAPSHOT_RECORD, text.as_bytes())
}

/// The record of the snapshot that `volume` is, if it is one; an error where the record is not the volume's own.
pub fn of_volume(volume: &Volume) -> Result<Option<SnapshotRecord>, VolumeError> {
    let place = volume.path().join(SNAPSHOT_RECORD);
    let text = read_text(&volume.root()?).map_err(|e| VolumeError::io("read", &place, e))?;
    let Some(text) = text else { return Ok(None) };
    let mut lines = text.lines();
    let (json, found) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let expected = hex(&mac(&volume.key, json.as_bytes()));
    let record: Option<SnapshotRecord> = serde_json::from_str(json).ok();
    match record.filter(|record| record.volume_id == volume.id.to_string()) {
        Some(record) if constant_time_eq(found.as_bytes(), expected.as_bytes()) => Ok(Some(record)),
        _ => {
            let why = std::io::Error::other("the record of the snapshot was not written by this volume");
            Err(VolumeError::io("use", &place, why))
        }
    }
}
