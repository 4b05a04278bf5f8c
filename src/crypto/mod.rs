//! Keys, one type per purpose, and the only use of cipher crates.
//!
//! Called by every layer above `sys`. Must never print, copy or keep key bytes outside [`Secret`].

mod aead;
mod hash;
mod keys;
#[cfg(feature = "kms")]
mod kms;
#[cfg(feature = "kms")]
mod material;
mod random;
mod secret;
mod signing;

pub use aead::{Aead, NONCE_LEN, Nonce, OpenError, TAG_LEN, Tag};
pub use hash::{Hmac256, constant_time_eq, hmac_sha256, sha256};
pub use keys::{CustomerKey, DataKey, DirKey, FileKeys, Place, RecordKey, VolumeKey};
#[cfg(feature = "kms")]
pub use kms::{
    AuditKey, BackingKey, BackupKey, CostError, DomainKey, DomainWrap, MATERIAL_LEN, PassphraseCost, RootKey,
    SALT_LEN, SEALED_KEY_LEN, SealKey, StoreKeys,
};
#[cfg(feature = "kms")]
pub use material::{
    Curve, DataKeyPair, DataKeyPairKind, EcAgreer, EcSigner, EdwardsSigner, MacKey, Material, MaterialBytes,
    MaterialError, MaterialKind, MlDsaSet, MlDsaSigner, MlKemKey, MlKemSet, OaepHash, RsaBits, RsaDecrypter,
    RsaSigner, Sha2, SignInput, SignScheme, UnwrapError, Wrapping, WrappingKey,
};
pub use random::{fill_random, random_array, random_nonces};
pub use secret::Secret;
pub use signing::SigningKey;
