//! (client: see lib.rs)
