//! System calls that need `unsafe`, and process hardening: the only unsafe code.
//!
//! Called from every layer. Knows nothing of keys, files or protocols.
#![allow(unsafe_code)]

mod allocator;
pub mod at;
pub mod btrfs;
pub mod figures;
pub mod harden;
mod memory;
pub mod mount;
pub mod priority;
pub mod quota;
mod stack;
#[cfg(test)]
pub mod steps;
mod terminal;
mod user;

pub use allocator::give_back_memory;
pub use memory::LockedBytes;
pub use stack::on_deep_stack;
pub use terminal::ask_secret;
pub use user::user_name;
