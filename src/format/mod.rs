//! Every byte kmsfs stores, as pure functions. Called by `tree` and `volume`. Does no I/O.

pub mod customer;
pub mod dir;
pub mod header;
mod id;
pub mod layout;
pub mod link;
pub mod name;
pub mod record;
pub mod seal;
pub mod tags;
mod text;
pub mod xattr;

pub use id::{FileId, VolumeId};

/// A data key as it is stored: which master key wrapped it, and the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// ARN of the CMK.
    pub key_arn: String,
    /// The CMK's key material id (32 bytes) the blob is under; `None` where the endpoint does not tell.
    pub material_id: Option<[u8; 32]>,
    /// The opaque ciphertext blob.
    pub blob: Vec<u8>,
}
