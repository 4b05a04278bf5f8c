//! `kmsd`, the key daemon: hands its arguments to [`kmsfs::kms`].

fn main() {}
