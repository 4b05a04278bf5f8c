//! Calls to a key service: the daemon's Unix socket, or any endpoint that speaks the KMS protocol.
//!
//! Called by `volume` and `cli`. Never waits for ever, never keeps a plaintext key outside locked or wiped memory,
//! and never decides what an error means to a file.

mod credentials;
mod dek_cache;
mod endpoint;
mod error;
mod http;
mod kms;
mod retry;
#[cfg(feature = "s3")]
pub mod s3;
mod services;
mod sign;
mod stream;
mod transport;

pub use credentials::{Credentials, SecretAccessKey, Variables};
pub use dek_cache::{CacheLimits, DekCache, DekId};
pub use endpoint::{Authority, Endpoint, SYSTEM_SOCKET, USER_SOCKET};
pub use error::ClientError;
pub use kms::{
    DecryptItem, Decrypted, GeneratedKey, KeyFacts, Kms, KmsConfig, Probe, ReEncryptItem, ReEncrypted,
};
pub use retry::{RetryLimits, jitter};
pub use services::Services;
pub use stream::{Timeouts, connect_unix};
