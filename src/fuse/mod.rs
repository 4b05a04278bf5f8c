//! (fuse: see lib.rs)
