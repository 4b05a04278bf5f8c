//! The mount: kernel requests to operations of the tree, and back.
//!
//! The only user of `fuser`. Called by `cli`. Translates; decides nothing about names, contents or keys.

mod adapter;
mod attr;
mod dirs;
mod errno;
mod files;
mod handles;
mod ioctl;
mod kernel_cache;
mod mount;
mod refusals;
mod reply;
mod seeker;
mod server;
mod session;
mod traffic;

pub use errno::damage_seen;
pub use session::{MountOptions, Session, SessionHandle};
pub use traffic::TrafficNow;
