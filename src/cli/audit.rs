//! `kmsfs audit`: hands over to `kmsd audit`, which knows the log; this program holds nothing that could read a key store.
//!
//! Called by the command line. Does not return when it succeeds.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::error::CliError;

const KMSD: &str = "kmsd";

/// Becomes `kmsd audit` with the same arguments.
pub fn run(arguments: &[OsString]) -> Result<(), CliError> {
    let program = beside_us().unwrap_or_else(|| KMSD.into());
    let error = Command::new(&program).arg("audit").args(arguments).exec();
    let what = match error.kind() {
        io::ErrorKind::NotFound => {
            "kmsd is not installed on this host; the audit log is where kmsd runs".to_owned()
        }
        _ => format!("{}: {error}", program.display()),
    };
    Err(CliError::failed(what))
}

/// The `kmsd` in the directory of this program.
fn beside_us() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(KMSD);
    path.exists().then_some(path)
}
