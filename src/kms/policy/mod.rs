//! Policies: IAM's JSON documents, compiled when they are written and evaluated on every call.
//!
//! Called by `authorise` (evaluation) and by the operations that put a policy (compilation). Pure: no state, no clock.
//! Whatever cannot be understood is refused when written, never passed over when evaluated.

mod condition;
mod document;
mod facts;
mod json;
mod wildcard;

pub use condition::MAX_CONDITIONS;
pub use document::{Effect, MAX_POLICY_BYTES, MAX_STATEMENTS, Policy, PolicyError, Reach};
pub use facts::{AliasNames, Facts, KeyFacts};
pub use wildcard::Wildcard;
