//! (volume: see lib.rs)
