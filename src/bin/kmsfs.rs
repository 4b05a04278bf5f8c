//! `kmsfs`, the command line and FUSE daemon: hands its arguments to [`kmsfs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kmsfs::cli::run()
}
