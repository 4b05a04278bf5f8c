//! (api: see lib.rs)

mod hex;

pub use hex::{hex, unhex};
