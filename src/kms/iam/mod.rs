//! Who may call: accounts, users, roles, groups, their policies and access keys, and the sessions made from them; with
//! the operations of AWS IAM and STS that manage them.
//!
//! `records` is how they are stored, `directory` how they stand in memory, `change` how one becomes the other. A call:
//! `call` parses it (`params`), finds the operation (`actions`), authorises and records it; `answer` writes what comes of
//! it. Sessions are not stored: all of one is sealed in its token (`session`).

mod access_keys;
pub mod actions;
mod answer;
mod call;
mod change;
pub mod directory;
mod entities;
pub mod error;
mod groups;
mod managed;
pub mod params;
mod policies;
pub mod records;
mod seeding;
pub mod session;
mod sts;

pub use answer::Envelope;
pub use call::IamReply;
pub use directory::{Directory, Entity, Identity, Rules};
pub use error::IamError;
pub use params::Params;
pub use records::{AccessKeyRecord, EntityRecord, Kind, NamedPolicy, PolicyRecord};
pub use session::{Sessions, Signer};
