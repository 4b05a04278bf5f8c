//! One object, uploaded in parts.
//!
//! A stream of the same snapshots is the same bytes each time: what is written first is compared with what an interrupted
//! attempt sent, and not sent again. Some parts are on their way at a time, and noted in their order. An object that fits
//! one part is put at once, and leaves nothing behind when that fails.

use std::collections::VecDeque;
use std::io::{self, Write};

use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Store, StoreError, full_text};
use crate::api::hex;
use crate::crypto::sha256;

const NOTE_SUFFIX: &str = ".upload";
/// Parts of one upload, and bytes of each (Amazon S3, multipart upload limits).
const PARTS_MAX: u64 = 10_000;
const PART_MIN: u64 = 5 << 20;
const PART_MAX: u64 = 1 << 30;
/// Bytes of a part where nothing asks for more.
const PART_USUAL: u64 = 16 << 20;
/// Parts on their way at a time, and bytes of all of these where there is more than one.
const LANES_MAX: u64 = 4;
const LANES_BYTES: u64 = 128 << 20;
/// Longest note read: an id of [`PARTS_MAX`] parts each.
const NOTE_MAX: u64 = 4 << 20;

/// How far an upload is.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    upload: String,
    part_bytes: u64,
    parts: Vec<Part>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    id: String,
    sha256: String,
}

/// A part on its way.
struct Going {
    sha256: String,
    task: JoinHandle<object_store::Result<PartId>>,
}

/// Bytes of each part, so that a stream of about `bytes` has room in one upload.
pub fn part_bytes_for(bytes: u64) -> u64 {
    let room = bytes / 4 * 5;
    room.div_ceil(PARTS_MAX).next_multiple_of(1 << 20).clamp(PART_USUAL, PART_MAX)
}

impl Store {
    /// Prepares the upload of the object `name` in parts of `part_bytes`, or goes on with one that was interrupted.
    pub fn upload(&self, name: &str, part_bytes: u64) -> Result<Upload<'_>, StoreError> {
        if self.size(name)?.is_some() {
            return Err(StoreError(format!("'{name}' is at {} already, whole", self.location)));
        }
        let note = self.note(name)?;
        let part_bytes = note.as_ref().map_or(part_bytes, |note| note.part_bytes);
        let earlier = note.as_ref().map_or(0, |note| note.parts.len());
        Ok(Upload {
            store: self,
            name: name.to_owned(),
            note,
            part_bytes,
            earlier,
            sent: 0,
            going: VecDeque::new(),
            waiting: Vec::new(),
        })
    }

    /// Takes away what an interrupted upload of `name` left. Returns whether there was any.
    pub fn abandon(&self, name: &str) -> Result<bool, StoreError> {
        let note = self.note(name)?;
        if let Some(note) = &note {
            self.give_up(name, note)?;
        }
        Ok(note.is_some())
    }

    fn note(&self, name: &str) -> Result<Option<Note>, StoreError> {
        let note_name = format!("{name}{NOTE_SUFFIX}");
        let Some(size) = self.size(&note_name)? else { return Ok(None) };
        let got = self.fetch(&note_name, 0..size.clamp(1, NOTE_MAX), None);
        let (_, text) = got.map_err(|e| self.error(&note_name, &e))?;
        let note: Option<Note> = serde_json::from_slice(&text).ok();
        let note = note.filter(|note| (PART_MIN..=PART_MAX).contains(&note.part_bytes));
        note.map(Some).ok_or_else(|| {
            StoreError(format!("'{note_name}' at {} is not the note of an upload; remove it", self.location))
        })
    }

    fn give_up(&self, name: &str, note: &Note) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.client.abort_multipart(&path, &note.upload)) {
            Err(e) if !is_gone(&e) => Err(self.error(name, &e)),
            _ => self.remove(&format!("{name}{NOTE_SUFFIX}")),
        }
    }
}

/// Whether the store has no such upload.
fn is_gone(e: &object_store::Error) -> bool {
    full_text(e).contains("NoSuchUpload") || matches!(e, object_store::Error::NotFound { .. })
}

/// An object that is being made.
pub struct Upload<'a> {
    store: &'a Store,
    name: String,
    /// None before the first part is full.
    note: Option<Note>,
    part_bytes: u64,
    /// Parts that were there when it was gone on with.
    pub earlier: usize,
    sent: usize,
    /// Parts behind those of the note, in their order.
    going: VecDeque<Going>,
    waiting: Vec<u8>,
}

impl Upload<'_> {
    /// Ends early: waits for what is on its way. Returns how many parts are in the store, for another attempt to go on with.
    pub fn keep(&mut self) -> usize {
        while !self.going.is_empty() {
            let _ = self.settle();
        }
        self.noted()
    }

    fn noted(&self) -> usize {
        self.note.as_ref().map_or(0, |note| note.parts.len())
    }

    fn lanes(&self) -> usize {
        (LANES_BYTES / self.part_bytes).clamp(1, LANES_MAX) as usize
    }

    fn begin(&self) -> Result<Note, StoreError> {
        let path = self.store.path(&self.name)?;
        let begun = self.store.runtime.block_on(self.store.client.create_multipart(&path));
        let upload = begun.map_err(|e| self.store.error(&self.name, &e))?;
        let note = Note { upload, part_bytes: self.part_bytes, parts: Vec::new() };
        match self.write_note(&note) {
            Ok(()) => Ok(note),
            Err(e) => {
                let _ = self.store.give_up(&self.name, &note);
                Err(e)
            }
        }
    }

    fn write_note(&self, note: &Note) -> Result<(), StoreError> {
        let text = serde_json::to_vec(note).expect("strings and numbers");
        self.store.put(&format!("{}{NOTE_SUFFIX}", self.name), text)
    }

    fn end_part(&mut self) -> Result<(), StoreError> {
        let bytes = std::mem::take(&mut self.waiting);
        let hash = hex(&sha256(&bytes));
        let number = self.sent;
        self.sent += 1;
        let known = self.note.as_ref().and_then(|note| note.parts.get(number));
        match known {
            Some(part) if part.sha256 == hash => return Ok(()),
            Some(_) => self.forget(number)?,
            None => {}
        }
        if number as u64 >= PARTS_MAX {
            return Err(StoreError(format!(
                "the stream has more than {PARTS_MAX} parts of {} MiB; --abandon this upload, and name a larger --part-size",
                self.part_bytes >> 20
            )));
        }
        while self.going.len() >= self.lanes() {
            self.settle()?;
        }
        let note = match self.note.take() {
            Some(note) => note,
            None => self.begin()?,
        };
        let (client, path, upload) =
            (self.store.client.clone(), self.store.path(&self.name)?, note.upload.clone());
        self.note = Some(note);
        let put = async move { client.put_part(&path, &upload, number, PutPayload::from(bytes)).await };
        self.going.push_back(Going { sha256: hash, task: self.store.runtime.spawn(put) });
        Ok(())
    }

    /// Waits for the first part on its way, and notes it. When it fails those behind it are given up: a note has no gaps.
    fn settle(&mut self) -> Result<(), StoreError> {
        let (Some(first), Some(mut note)) = (self.going.pop_front(), self.note.take()) else { return Ok(()) };
        let outcome = self.note_part(&mut note, first);
        if outcome.is_err() {
            for behind in self.going.drain(..) {
                behind.task.abort();
                let _ = self.store.runtime.block_on(behind.task);
            }
        }
        if outcome.is_err() && note.parts.is_empty() {
            // Nothing that another attempt could go on with.
            let _ = self.store.give_up(&self.name, &note);
        } else {
            self.note = Some(note);
        }
        outcome
    }

    fn note_part(&self, note: &mut Note, part: Going) -> Result<(), StoreError> {
        let ended = self.store.runtime.block_on(part.task);
        let put = ended.map_err(|e| StoreError(format!("'{}' was not sent: {e}", self.name)))?;
        let id = put.map_err(|e| self.failed(note, &e))?.content_id;
        note.parts.push(Part { id, sha256: part.sha256 });
        self.write_note(note)
    }

    /// What was sent before is of another stream, as part `number` shows.
    fn forget(&mut self, number: usize) -> Result<(), StoreError> {
        if let Some(note) = self.note.take() {
            self.store.give_up(&self.name, &note)?;
        }
        self.earlier = 0;
        if number == 0 {
            return Ok(());
        }
        Err(StoreError(format!(
            "what was sent of '{}' before is not of this stream, and is taken away; the same command begins again",
            self.name
        )))
    }

    /// An error of the upload; one that the store has given up leaves nothing to go on with.
    fn failed(&self, note: &mut Note, e: &object_store::Error) -> StoreError {
        if !full_text(e).contains("NoSuchUpload") {
            return self.store.error(&self.name, e);
        }
        note.parts.clear();
        let name = &self.name;
        StoreError(format!("the store has given up the upload of '{name}'; the same command begins it again"))
    }

    /// Everything is written: makes the object, and looks whether it has the length that was sent.
    pub fn finish(&mut self) -> Result<(), StoreError> {
        if self.note.is_none() {
            let bytes = std::mem::take(&mut self.waiting);
            let length = bytes.len() as u64;
            self.store.put(&self.name, bytes)?;
            return self.check_length(length);
        }
        let length = self.sent as u64 * self.part_bytes + self.waiting.len() as u64;
        if !self.waiting.is_empty() {
            self.end_part()?;
        }
        while !self.going.is_empty() {
            self.settle()?;
        }
        if self.sent < self.noted() {
            self.forget(self.sent)?;
        }
        let Some(mut note) = self.note.take() else { return Ok(()) };
        let outcome = self.complete(&mut note, length);
        if outcome.is_ok() || note.parts.is_empty() {
            return outcome.and(self.store.remove(&format!("{}{NOTE_SUFFIX}", self.name)));
        }
        self.note = Some(note);
        outcome
    }

    fn complete(&self, note: &mut Note, length: u64) -> Result<(), StoreError> {
        let parts = note.parts.iter().map(|part| PartId { content_id: part.id.clone() }).collect();
        let path = self.store.path(&self.name)?;
        let made = self.store.client.complete_multipart(&path, &note.upload, parts);
        match self.store.runtime.block_on(made) {
            // An answer that was lost: the second attempt finds no upload any more, but the object.
            Err(e) if is_gone(&e) && self.store.size(&self.name)? == Some(length) => Ok(()),
            Err(e) => Err(self.failed(note, &e)),
            Ok(_) => self.check_length(length),
        }
    }

    fn check_length(&self, length: u64) -> Result<(), StoreError> {
        match self.store.size(&self.name)? {
            Some(found) if found == length => Ok(()),
            found => Err(StoreError(format!(
                "the store has {} bytes of '{}', of which {length} were sent; remove it there and send again",
                found.unwrap_or(0),
                self.name
            ))),
        }
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = (self.part_bytes as usize).saturating_sub(self.waiting.len());
        let taken = data.len().min(room);
        self.waiting.extend_from_slice(&data[..taken]);
        if self.waiting.len() as u64 >= self.part_bytes {
            self.end_part()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
