//! The key daemon: who may do what with which key, and everything that stands behind the answer.
//!
//! Called by `bin/kmsd.rs` only. Never linked into the FUSE daemon.
//!
//! A call: `server` and `http` take it in and prove who calls (`peer`, `sigv4`); `pipeline` parses it, finds the keys
//! (`find`), has it authorised (`authorise`, `policy`), performed (`ops`), and records it (`audit`) before the answer
//! leaves. Records live in memory (`state`, `model`) and are written through (`change`) to the `store`. `cli` and
//! `daemon` start and stop all of this; `worker` does what comes due.

mod admin;
mod admin_socket;
mod alert;
pub mod audit;
pub mod audit_chain;
mod audit_command;
pub mod audit_head;
pub mod audit_log;
mod audit_retention;
mod audit_search;
mod audit_writer;
pub mod authorise;
mod background;
mod backup;
mod backup_command;
mod bench;
pub mod blob;
pub mod caller;
pub mod change;
mod changes;
mod cli;
pub mod clock;
mod connection;
mod daemon;
pub mod decision;
mod failure;
pub mod faults;
mod find;
pub mod grants;
mod guarded;
pub mod home;
pub mod http;
pub mod iam;
mod image;
mod import_token;
mod imports;
mod keeper;
mod kinds;
mod last_usage;
pub mod lifecycle;
mod listen;
pub mod maintenance;
mod makers;
mod managed;
pub mod materials;
mod metrics;
pub mod model;
mod notify;
mod ops;
mod own_acts;
pub mod peer;
pub mod pipeline;
mod places;
pub mod policy;
pub mod quota;
mod records;
mod related;
pub mod root;
mod seal_source;
pub mod sealed;
pub mod seed;
pub mod seeding;
pub mod server;
mod settings;
pub mod sigv4;
pub mod sqlite;
mod sqlite_check;
pub mod state;
pub mod state_dir;
pub mod store;
mod tls;
pub mod toml_file;
mod wire;
mod worker;

pub use caller::{Caller, Session, Source, root_arn, user_arn};
pub use cli::run;
pub use clock::{Clock, SettableClock, SystemClock};
pub use managed::MANAGED_ALIAS;
pub use pipeline::{Kms, Parts, Reply, Settings};
