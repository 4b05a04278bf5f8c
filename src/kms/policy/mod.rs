//! Policies: IAM's JSON documents, compiled when they are written and evaluated on every call.
//!
//! Called by `authorise` (evaluation) and by the operations that put a policy (compilation). Pure: no state, no clock.
//! Whatever cannot be understood is refused when written, never passed over when evaluated.

mod compare;
mod condition;
mod date;
mod document;
mod facts;
mod json;
mod principal;
mod template;
mod wildcard;

pub use condition::MAX_CONDITIONS;
pub use date::text as date_text;
pub use document::{Effect, MAX_POLICY_BYTES, MAX_STATEMENTS, Match, Policy, PolicyError};
pub use facts::{AliasNames, Facts, KeyFacts, PrincipalTags, SessionFacts};
pub use principal::{NamedPrincipal, Reach};
pub use wildcard::Wildcard;
