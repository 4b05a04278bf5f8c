//! Making a volume: its record, its root directory record, its recovery sheet.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, XattrFlags, fsync, symlinkat, unlinkat};

use super::open::{MountLock, open_lower};
use super::{VolumeError, context, key_error, record_file};
use crate::api::ErrorCode;
use crate::client::{ClientError, GeneratedKey, Kms};
use crate::crypto::{Secret, VolumeKey, random_array};
use crate::format::dir::{self, DIR_RECORD, DIR_RECORD_COPY};
use crate::format::name::{LOWER_NAME_MAX, TEMPORARY_PREFIX};
use crate::format::record::{VOLUME_RECORD, VOLUME_RECORD_COPY, VolumeRecord, VolumeSettings};
use crate::format::{VolumeId, WrappedKey};
use crate::sys::at;

/// The key that the service manages for this filesystem; made by the service on first use.
pub const SERVICE_KEY: &str = "alias/aws/kmsfs";
/// Largest recovery sheet read.
const SHEET_MAX: u64 = 256 * 1024;
/// A file system's own directory, which does not count.
const LOST_AND_FOUND: &str = "lost+found";
const SHEET_BEGIN: &str = "-----BEGIN KMSFS VOLUME RECORD-----";
const SHEET_END: &str = "-----END KMSFS VOLUME RECORD-----";

/// How to make a volume.
#[derive(Debug)]
pub struct InitOptions {
    /// The master key: alias, id or ARN.
    pub key: String,
    /// Directory for the recovery sheet; must lie outside the lower directory.
    pub sheet_dir: PathBuf,
    /// Whether files, directories and links are bound to their directory and name.
    pub bind_names: bool,
    /// Identity of the volume, where it was noted before; else it gets one.
    pub id: Option<VolumeId>,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The new volume's identity.
    pub id: VolumeId,
    /// ARN of its key.
    pub key_arn: String,
    /// Where the recovery sheet is.
    pub sheet: PathBuf,
}

/// Makes a volume in `lower`, which is an empty directory or none yet.
pub fn init(lower: &Path, kms: &Kms, options: &InitOptions) -> Result<Made, VolumeError> {
    check_new(lower)?;
    let id = options.id.unwrap_or_else(new_id);
    // The key first: a service that says no leaves nothing behind.
    let generated = kms
        .generate_data_key(&options.key, &context::record(id), None)
        .map_err(|e| not_made(&options.key, &e))?;
    let key_arn = generated.key_arn.clone();
    let volume_key = VolumeKey::new(Secret::random()).binding_names(options.bind_names);
    let record = seal(lower, id, generated, &volume_key)?;
    let made_dir = !lower.exists();
    if made_dir {
        std::fs::create_dir(lower).map_err(|e| VolumeError::io("make", lower, e))?;
    }
    let written = write_sheet(lower, &options.sheet_dir, &record, &key_arn).and_then(|sheet| {
        populate(lower, &record, &volume_key).map(|()| sheet.clone()).inspect_err(|_| {
            let _ = std::fs::remove_file(&sheet);
        })
    });
    match written {
        Ok(sheet) => Ok(Made { id, key_arn, sheet }),
        Err(e) => {
            undo(lower, made_dir);
            Err(e)
        }
    }
}

/// An identity that no volume has yet.
pub fn new_id() -> VolumeId {
    VolumeId(random_array())
}

/// Whether a volume can be made in `lower`: an empty directory or none yet, in a place where one may be.
pub fn check_new(lower: &Path) -> Result<(), VolumeError> {
    check_empty(lower)?;
    check_place(lower)
}

/// Whether `lower` holds the volume `id` with its record whole: its making had nothing left to do there.
pub fn is_made(lower: &Path, id: &str) -> bool {
    let whole = open_lower(lower).is_ok_and(|root| record_file::is_whole(root.as_fd(), lower));
    whole && super::open::peek(lower).is_ok_and(|record| record.volume_id.to_string() == id)
}

/// Takes out of `lower` what the interrupted making of the volume `id` left there, and its recovery sheet. Refused while
/// it is mounted, and where anything else has come to be there.
pub fn take_back(lower: &Path, id: &str, sheet_dir: &Path) -> Result<(), VolumeError> {
    let failed = |e: std::io::Error| VolumeError::io("clear", lower, e);
    if !lower.try_exists().map_err(failed)? {
        return Ok(());
    }
    let _lock = MountLock::take(lower)?;
    let listing = std::fs::read_dir(lower).map_err(failed)?;
    let names = listing.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let names: Vec<_> = names.into_iter().filter(|name| name != LOST_AND_FOUND).collect();
    let is_another = super::open::peek(lower).is_ok_and(|record| record.volume_id.to_string() != id);
    // Whatever a mount has written has other names.
    if is_another || !names.iter().all(|name| is_of_making(name.as_bytes())) {
        return Err(VolumeError::NotEmpty(lower.to_owned()));
    }
    let root = open_lower(lower)?;
    names.iter().try_for_each(|name| at::unlink(&root, name.as_bytes())).map_err(|e| failed(e.into()))?;
    match std::fs::remove_file(sheet_dir.join(format!("{id}.txt"))) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(VolumeError::io("remove", sheet_dir, e)),
        _ => Ok(()),
    }
}

/// The recovery sheet of the volume in `lower` that is in `dir`, written where it is missing.
pub fn sheet_of(lower: &Path, dir: &Path) -> Result<PathBuf, VolumeError> {
    let record = super::open::peek(lower)?;
    let path = dir.join(format!("{}.txt", record.volume_id));
    if path.exists() {
        return Ok(path);
    }
    write_sheet(lower, dir, &record, &record.active().wrapped.key_arn)
}

fn is_of_making(name: &[u8]) -> bool {
    let records = [VOLUME_RECORD, VOLUME_RECORD_COPY, DIR_RECORD];
    records.iter().any(|record| record.as_bytes() == name) || name.starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// Why there is no data key under `key`.
fn not_made(key: &str, error: &ClientError) -> VolumeError {
    if key == SERVICE_KEY && error.code() == Some(ErrorCode::NotFoundException) {
        let why = "the key service makes it for services that it trusts alone; its operator marks your user as kmsfs under \
                   [services] in the file of 'kmsd serve --map', or take a key of your own with --key";
        return VolumeError::UnfitKey(key.to_owned(), why.to_owned());
    }
    VolumeError::Key(key.to_owned(), key_error(error))
}

fn seal(
    lower: &Path,
    id: VolumeId,
    key: GeneratedKey,
    volume_key: &VolumeKey,
) -> Result<VolumeRecord, VolumeError> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let GeneratedKey { data_key, blob, key_arn, material_id } = key;
    let settings = VolumeSettings {
        default_key: key_arn.clone(),
        keys: vec![key_arn.clone()],
        created,
        bind_names: volume_key.binds_names(),
    };
    let wrapped = WrappedKey { key_arn, material_id, blob };
    VolumeRecord::seal(id, &data_key, wrapped, volume_key, &settings)
        .and_then(|record| record.encode().map(|_| record))
        .map_err(|e| VolumeError::Record(lower.to_owned(), e))
}

fn check_empty(lower: &Path) -> Result<(), VolumeError> {
    let mut entries = match std::fs::read_dir(lower) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(VolumeError::io("read", lower, e)),
    };
    let foreign = entries.any(|entry| entry.map_or(true, |e| e.file_name() != LOST_AND_FOUND));
    if foreign { Err(VolumeError::NotEmpty(lower.to_owned())) } else { Ok(()) }
}

/// No volume may lie in the lower tree of another one, nor where its names do not fit.
fn check_place(lower: &Path) -> Result<(), VolumeError> {
    let place = std::path::absolute(lower).map_err(|e| VolumeError::io("find", lower, e))?;
    // What the nearest directory that exists really is.
    let existing = place.ancestors().find_map(|at| std::fs::canonicalize(at).ok()).unwrap_or_default();
    let holds = |at: &Path, name| std::fs::symlink_metadata(at.join(name)).is_ok();
    let is_volume = |at: &&Path| holds(at, VOLUME_RECORD) || holds(at, DIR_RECORD);
    if let Some(volume) = existing.ancestors().find(is_volume) {
        return Err(VolumeError::InsideVolume(lower.to_owned(), volume.to_owned()));
    }
    let figures = rustix::fs::statvfs(&existing).map_err(|e| VolumeError::io("examine", &existing, e))?;
    fits_names(lower, figures.f_namemax)
}

fn fits_names(lower: &Path, most: u64) -> Result<(), VolumeError> {
    if most < LOWER_NAME_MAX as u64 { Err(VolumeError::ShortNames(lower.to_owned(), most)) } else { Ok(()) }
}

fn populate(lower: &Path, record: &VolumeRecord, volume_key: &VolumeKey) -> Result<(), VolumeError> {
    let root = open_lower(lower)?;
    // The record last: without it the directory is not a volume.
    let target = dir::seal(volume_key, &random_array(), volume_key.root_place().as_ref());
    let copied = at::set_xattr(&root, DIR_RECORD_COPY.as_bytes(), target.as_bytes(), XattrFlags::empty());
    if copied.is_err() && volume_key.binds_names() {
        return Err(VolumeError::NamesNotBound(lower.to_owned()));
    }
    symlinkat(target, root.as_fd(), DIR_RECORD)
        .and_then(|()| fsync(root.as_fd()))
        .map_err(|e| VolumeError::io("write", &lower.join(DIR_RECORD), e))?;
    record_file::write(root.as_fd(), lower, record)?;
    let parent = lower.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|e| VolumeError::io("sync", parent, e))
}

/// Removes what an attempt that failed may have left.
fn undo(lower: &Path, made_dir: bool) {
    if let Ok(root) = open_lower(lower) {
        for name in [VOLUME_RECORD, VOLUME_RECORD_COPY, DIR_RECORD] {
            let _ = unlinkat(root.as_fd(), name, AtFlags::empty());
        }
    }
    if made_dir {
        let _ = std::fs::remove_dir(lower);
    }
}

fn write_sheet(
    lower: &Path,
    dir: &Path,
    record: &VolumeRecord,
    key_arn: &str,
) -> Result<PathBuf, VolumeError> {
    let failed = |path: &Path, e: std::io::Error| VolumeError::io("write the recovery sheet", path, e);
    let real_lower = std::fs::canonicalize(lower).map_err(|e| failed(lower, e))?;
    // Before anything is made there: what the nearest directory that exists really is.
    let existing = dir.ancestors().find_map(|at| std::fs::canonicalize(at).ok());
    if existing.is_some_and(|at| at.starts_with(&real_lower)) {
        return Err(VolumeError::SheetInside(dir.to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    let path = dir.join(format!("{}.txt", record.volume_id));
    let text = sheet_text(lower, record, key_arn)?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|e| failed(&path, e))?;
    Ok(path)
}

fn sheet_text(lower: &Path, record: &VolumeRecord, key_arn: &str) -> Result<String, VolumeError> {
    let body = record.to_text().map_err(|e| VolumeError::Record(lower.to_owned(), e))?;
    let place = at::resolved(lower);
    Ok(format!(
        "Recovery sheet of a kmsfs volume\n\n\
         volume         {}\n\
         lower directory {}\n\
         key            {key_arn}\n\n\
         Keep this outside the volume, on paper or on another disk. It replaces a lost volume record:\n\
         \x20   kmsfs init --restore THIS_FILE LOWER\n\
         It opens nothing by itself: whoever reads files of the volume needs the key above as well.\n\n\
         {SHEET_BEGIN}\n{body}\n{SHEET_END}\n",
        record.volume_id,
        place.display(),
    ))
}

/// Puts the record from a recovery sheet back into `lower`. Returns what was restored.
pub fn restore(lower: &Path, sheet: &Path, kms: &Kms) -> Result<VolumeId, VolumeError> {
    use std::io::Read;
    let unreadable = |e| VolumeError::io("read", sheet, e);
    let mut text = String::new();
    let file = std::fs::File::open(sheet).map_err(unreadable)?;
    file.take(SHEET_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let body =
        text.split_once(SHEET_BEGIN).and_then(|(_, rest)| rest.split_once(SHEET_END)).map(|(body, _)| body);
    let record = VolumeRecord::from_text(body.unwrap_or_default())
        .map_err(|e| VolumeError::Record(sheet.to_owned(), e))?;
    // A record that does not open would lock the user out for good.
    let (key, _) = super::open::open_record(kms, &record, sheet)?;
    let root = open_lower(lower)?;
    let _lock = record_file::ChangeLock::take(root.as_fd(), lower)?;
    check_root_record(root.as_fd(), lower, &key)?;
    record_file::write(root.as_fd(), lower, &record)?;
    Ok(record.volume_id)
}

/// The root's directory record must be of the volume that the sheet describes.
fn check_root_record(root: BorrowedFd<'_>, lower: &Path, key: &VolumeKey) -> Result<(), VolumeError> {
    let place = lower.join(DIR_RECORD);
    let target = rustix::fs::readlinkat(root, DIR_RECORD, Vec::new())
        .map_err(|e| VolumeError::io("read", &place, e))?;
    dir::open(key, target.as_bytes(), key.root_place().as_ref()).map(|_| ()).map_err(|_| {
        let why = std::io::Error::other("the directory record is not of the volume on the recovery sheet");
        VolumeError::io("restore", &place, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_of_short_names_is_refused_and_told() {
        assert!(fits_names(Path::new("/lower"), 255).is_ok());
        let refused = fits_names(Path::new("/lower"), 143).unwrap_err().to_string();
        assert!(refused.contains("at most 143 bytes") && refused.contains("/lower"), "{refused}");
    }
}
