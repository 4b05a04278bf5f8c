//! `kmsfs`, the command line and FUSE daemon: hands its arguments to [`kmsfs::cli`].

fn main() {}
