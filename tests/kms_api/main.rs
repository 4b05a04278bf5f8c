//! The key service as its callers see it: JSON in, JSON out, for every operation.

mod aliases;
mod authorization;
mod crypto;
mod harness;
mod iam;
mod keys;
mod managed;
mod record;
mod rotation;
mod tags_and_policies;
mod validation;
