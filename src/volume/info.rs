//! What the header of one lower file tells, without its key.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::{VolumeError, lower_file};
use crate::api::hex;
use crate::format::header::{HeaderError, Slots};
use crate::format::layout::plain_size;

/// One key slot.
#[derive(Debug, Clone, Serialize)]
pub struct SlotInfo {
    /// `A` or `B`.
    pub slot: char,
    /// Whether it is the one that counts.
    pub active: bool,
    /// Counts rewraps.
    pub generation: u64,
    /// ARN of the key.
    pub key_arn: String,
    /// Version of it.
    pub material_id: Option<String>,
    /// Bytes of the wrapped key.
    pub wrapped_bytes: usize,
}

/// One lower file.
#[derive(Debug, Clone, Serialize)]
pub struct FileInfo {
    /// Its lower path.
    pub lower_path: std::path::PathBuf,
    /// Plaintext size in bytes, as the lower length tells it.
    pub size: u64,
    /// Lower length in bytes.
    pub lower_size: u64,
    /// Bytes taken on disk.
    pub allocated: u64,
    /// Identity; none for an empty file that has no header yet.
    pub file_id: Option<String>,
    /// The volume it belongs to.
    pub volume_id: Option<String>,
    /// Version of the format.
    pub format: u16,
    /// Cipher of the data.
    pub cipher: &'static str,
    /// Bytes of a block.
    pub block_size: u32,
    /// The slots that are whole.
    pub slots: Vec<SlotInfo>,
}

/// Reads the header of the lower file at `path`.
pub fn file_info(path: &Path) -> Result<FileInfo, VolumeError> {
    let failed = |e: std::io::Error| VolumeError::io("read", path, e);
    let file = std::fs::File::open(path).map_err(failed)?;
    let stat = file.metadata().map_err(failed)?;
    if !stat.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file, so it has no key of its own")));
    }
    let bytes = lower_file::read_slots(file.as_fd()).map_err(|e| failed(e.into()))?;
    let parsed = bytes.map(|bytes| Slots::parse(&bytes)).transpose();
    let parsed = parsed.map_err(|e: HeaderError| failed(std::io::Error::other(e.to_string())))?;
    Ok(FileInfo {
        lower_path: path.to_owned(),
        size: plain_size(stat.len()),
        lower_size: stat.len(),
        allocated: stat.blocks() * 512,
        file_id: parsed.as_ref().map(|slots| slots.superblock.file_id.to_string()),
        volume_id: parsed.as_ref().map(|slots| slots.superblock.volume_id.to_string()),
        format: 1,
        cipher: "AES-256-GCM-SIV",
        block_size: crate::format::layout::BLOCK as u32,
        slots: parsed.as_ref().map(slot_infos).unwrap_or_default(),
    })
}

fn slot_infos(slots: &Slots) -> Vec<SlotInfo> {
    let active = slots.active_index();
    let shown = slots.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.as_ref()?)));
    shown
        .map(|(at, slot)| SlotInfo {
            slot: if at == 0 { 'A' } else { 'B' },
            active: at == active,
            generation: slot.generation,
            key_arn: slot.wrapped.key_arn.clone(),
            material_id: slot.wrapped.material_id.map(|id| hex(&id)),
            wrapped_bytes: slot.wrapped.blob.len(),
        })
        .collect()
}
