//! The check of extended attributes: their names and values open under the keys of what has them.
//!
//! Called by `check` for directories, links and special files, and by `check_file`. What is not ours is passed over.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::crypto::{Aead, VolumeKey};
use crate::format::xattr::{NO_OWNER, PREFIX, SPECIAL_PREFIX, open_value, plain_name};
use crate::sys::at;

/// What is wrong with an attribute of the file or directory `fd`, if anything is; values are under `values`, for `owner`.
pub fn trouble(fd: impl AsFd, key: &VolumeKey, values: &Aead, owner: &[u8; 16]) -> Option<String> {
    trouble_behind(PREFIX, fd, key, values, owner)
}

/// The same of the link or special file `name` of `dir`. Only root sees attributes of these.
pub fn trouble_of_special(dir: BorrowedFd<'_>, name: &CStr, key: &VolumeKey) -> Option<String> {
    // One that cannot be opened so is gone.
    let fd = at::open_path(dir, name.to_bytes()).ok()?;
    trouble_behind(SPECIAL_PREFIX, fd, key, &key.special_xattr, &NO_OWNER)
}

/// A live mount may take attributes away meanwhile, and changes each in one step.
fn trouble_behind(
    prefix: &str,
    fd: impl AsFd,
    key: &VolumeKey,
    values: &Aead,
    owner: &[u8; 16],
) -> Option<String> {
    let names = match at::list_xattrs(&fd) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return None,
        Err(e) => return Some(format!("its extended attributes cannot be listed: {e}")),
    };
    names.iter().find_map(|lower| {
        let shown = String::from_utf8_lossy(lower);
        let Ok(name) = plain_name(key, prefix, lower)? else {
            return Some(format!(
                "the name of the extended attribute {shown} is damaged or of another volume"
            ));
        };
        let why = match at::xattr(&fd, lower) {
            Ok(value) if open_value(values, owner, &name, &value).is_ok() => return None,
            Err(Errno::NODATA) => return None,
            Ok(_) => "is damaged or of another file".to_owned(),
            Err(e) => format!("cannot be read: {e}"),
        };
        Some(format!(
            "the value of the extended attribute {} ({shown}) {why}",
            String::from_utf8_lossy(&name)
        ))
    })
}
