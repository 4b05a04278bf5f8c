//! The key daemon: who may do what with which key, and everything that stands behind the answer.
//!
//! Called by `bin/kmsd.rs` only. Never linked into the FUSE daemon.
//!
//! A call: `pipeline` parses it, finds the keys (`find`), has it authorised (`authorise`, `policy`), performed
//! (`ops`), and records it (`audit`) before the answer leaves. Records live in memory (`state`, `model`) and are
//! written through (`change`) to the `store`.

pub mod audit;
pub mod audit_chain;
pub mod audit_log;
pub mod authorise;
pub mod blob;
pub mod caller;
pub mod change;
pub mod clock;
mod find;
pub mod http;
pub mod lifecycle;
pub mod maintenance;
mod managed;
pub mod materials;
pub mod model;
mod ops;
pub mod peer;
pub mod pipeline;
pub mod policy;
pub mod root;
pub mod sealed;
pub mod seeding;
pub mod server;
pub mod sigv4;
pub mod sqlite;
pub mod state;
pub mod state_dir;
pub mod store;

pub use caller::{Caller, Source, root_arn, user_arn};
pub use clock::{Clock, SettableClock, SystemClock};
pub use managed::MANAGED_ALIAS;
pub use ops::AccessKeyOwner;
pub use pipeline::{Kms, Parts, Reply, Settings};
