//! System calls that need `unsafe`, and process hardening: the only unsafe code.
//!
//! Called from every layer. Knows nothing of keys, files or protocols.
#![allow(unsafe_code)]

mod memory;

pub use memory::LockedBytes;
