//! Somebody edits the lower tree of a real volume; what a mount, a rewrap and the check make of it.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../programs/mod.rs"]
mod programs;

mod planted;
