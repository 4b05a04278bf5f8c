//! The key daemon: who may do what with which key, and everything that stands behind the answer.
//!
//! Called by `bin/kmsd.rs` only. Never linked into the FUSE daemon.

pub mod audit;
pub mod audit_chain;
pub mod audit_log;
pub mod blob;
pub mod http;
pub mod peer;
pub mod root;
pub mod sealed;
pub mod server;
pub mod sigv4;
pub mod sqlite;
pub mod state_dir;
pub mod store;
