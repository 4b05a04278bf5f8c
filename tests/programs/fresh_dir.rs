//! A directory of the test's own.
#![allow(clippy::unwrap_used)] // A test that cannot go on shall panic.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Makes a new directory below the system's temporary one. Numbers of processes come again: what one of the same number
/// left behind is passed over.
pub fn fresh_dir(label: &str) -> PathBuf {
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kmsfs-{label}-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return path.canonicalize().unwrap(),
            Err(e) => assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{}: {e}", path.display()),
        }
    }
}
