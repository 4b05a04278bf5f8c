//! (kms: see lib.rs)
