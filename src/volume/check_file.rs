//! The check of one lower file: header, key, commitment, seal, data.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fstat};
use rustix::io::{Errno, pread};

use super::check::Class;
use super::{Volume, lower_file};
use crate::crypto::{FileKeys, constant_time_eq};
use crate::format::header::{SLOTS_LEN, SUPERBLOCK_LEN, Slots};
use crate::format::layout::{BLOCK, BLOCK_LEN, lower_len, plain_size};
use crate::format::seal::{Seal, State};
use crate::tree::{KeyError, KeySource};

/// What a file without errors is like.
pub struct FileVerdict {
    /// Plaintext size in bytes.
    pub size: u64,
    /// Whether it was not closed cleanly.
    pub unsettled: bool,
}

type Trouble = (Class, String);

/// Checks the file `name` of `dir`. Without a volume: its structure alone.
pub fn check_file(
    dir: BorrowedFd<'_>,
    name: &CStr,
    volume: Option<&Volume>,
    _data: bool,
) -> Result<FileVerdict, Trouble> {
    let unreadable = |e: Errno| (Class::Unreadable, e.to_string());
    let file = lower_file::open(dir, name, OFlags::RDONLY).map_err(unreadable)?;
    let length = fstat(file.as_fd()).map_err(unreadable)?.st_size as u64;
    if length == 0 {
        return Ok(FileVerdict { size: 0, unsettled: false });
    }
    let page = read_header_page(&file).map_err(unreadable)?;
    let slots: &[u8; SLOTS_LEN] = page[..SLOTS_LEN].try_into().expect("a page is longer than its slots");
    let slots = Slots::parse(slots).map_err(|e| (Class::Header, e.to_string()))?;
    let size = plain_size(length);
    let Some(volume) = volume else {
        let unsettled = lower_len(size) != length;
        return Ok(FileVerdict { size, unsettled });
    };
    check_belonging(&slots, volume)?;
    let keys = file_keys(&slots, volume)?;
    let superblock: &[u8; SUPERBLOCK_LEN] =
        page[..SUPERBLOCK_LEN].try_into().expect("it is the first part of a page");
    let seal = Seal::latest(&keys, superblock, &page);
    let seal = seal.ok_or_else(|| (Class::Data, "neither seal opens".to_owned()))?;
    if seal.state == State::Clean && lower_len(seal.size) != length {
        let why = format!(
            "it was cut or extended: sealed at {} bytes, but {length} lower bytes are there",
            seal.size
        );
        return Err((Class::Data, why));
    }
    Ok(FileVerdict { size: seal.size, unsettled: seal.state != State::Clean })
}

fn check_belonging(slots: &Slots, volume: &Volume) -> Result<(), Trouble> {
    if slots.superblock.volume_id == volume.id {
        return Ok(());
    }
    Err((Class::Header, format!("it belongs to another volume, {}", slots.superblock.volume_id)))
}

fn file_keys(slots: &Slots, volume: &Volume) -> Result<FileKeys, Trouble> {
    let file_id = slots.superblock.file_id;
    let data_key = volume
        .keys
        .unwrap(file_id, &slots.active().wrapped)
        .map_err(|e: KeyError| (Class::Key, e.to_string()))?;
    let keys = FileKeys::derive(&data_key, &file_id.0);
    if !constant_time_eq(keys.commitment(), &slots.superblock.commitment) {
        return Err((Class::Key, "the wrapped key is another file's".to_owned()));
    }
    Ok(keys)
}

fn read_header_page(file: &OwnedFd) -> Result<[u8; BLOCK_LEN], Errno> {
    let mut page = [0; BLOCK_LEN];
    let mut filled = 0;
    while filled < BLOCK as usize {
        match pread(file.as_fd(), &mut page[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(page)
}
