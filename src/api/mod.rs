//! (api: see lib.rs)

mod hex;
pub mod sigv4;

pub use hex::{hex, unhex};
