//! Plaintext operations on the ciphertext tree, by directory descriptor.
//!
//! Called by `fuse` and `volume`. Never talks to the key daemon itself: it asks a [`KeySource`].

mod error;
pub mod file;
mod key_source;

pub use error::FsError;
pub use key_source::{FreshKey, KeyError, KeySource};
