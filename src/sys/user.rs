//! Names of users by number, by the system's own database (passwd, LDAP and so on).
//!
//! Called by the key daemon, which names its Unix callers `user/NAME`.

use std::ffi::CStr;
use std::mem::MaybeUninit;

/// Longest entry of the user database that is read.
const MAX_ENTRY: usize = 16 * 1024;

/// The name of user `uid`; `None` when the database has none, or one that is not UTF-8.
pub fn user_name(uid: u32) -> Option<String> {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0u8; MAX_ENTRY];
    let mut found = std::ptr::null_mut();
    // SAFETY: entry, buffer and found are ours and outlive the call; the length given is the buffer's.
    let code = unsafe {
        libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found)
    };
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: on success `found` points at the filled entry, whose name is a C string inside `buffer`.
    let name = unsafe { CStr::from_ptr((*found).pw_name) };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superuser_has_a_name_and_a_made_up_number_none() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(3_999_999_999), None);
    }
}
