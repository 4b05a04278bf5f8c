//! (cli: see lib.rs)
