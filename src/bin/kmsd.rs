//! `kmsd`, the key daemon: hands its arguments to [`kmsfs::kms`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kmsfs::kms::run()
}
