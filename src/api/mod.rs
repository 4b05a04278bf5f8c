//! (api: see lib.rs)
