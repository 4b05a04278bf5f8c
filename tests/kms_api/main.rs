//! The key service as its callers see it: JSON in, JSON out, for every operation.
#![allow(clippy::unwrap_used)] // A test that cannot go on shall panic.
#![allow(clippy::needless_pass_by_value)] // `json!` values are made at the call.
#![allow(missing_docs)] // A binary of tests.

mod aliases;
mod authorization;
mod crypto;
mod grants;
mod harness;
mod hostile;
mod iam;
mod imports;
mod key_pairs;
mod keys;
mod macs;
mod managed;
mod marks;
mod precedence;
mod principals;
mod record;
mod regions;
mod replicas;
mod rotation;
mod states;
mod tags_and_policies;
mod validation;
mod wycheproof;
