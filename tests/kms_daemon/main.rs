//! The daemon as its operators meet it: what it holds on to, what it bounds, what it says of itself.
#![allow(clippy::unwrap_used)] // A test that cannot go on shall panic.
#![allow(missing_docs)] // A binary of tests.

#[path = "../kmsd_support/certificate.rs"]
mod certificate;
#[path = "../kmsd_support/mod.rs"]
mod kmsd_support;

mod audit;
mod bounds;
mod operations;
mod services;
mod store;
mod tls;
