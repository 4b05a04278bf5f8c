//! The KMS wire protocol as data: operations, requests and responses, references to keys, errors.
//!
//! Used by `kms` (which parses requests and writes responses) and by `client` (the other way round).
//! Holds no state, does no I/O and decides nothing about who may do what.

mod blob;
mod choice;
mod context;
mod error;
mod explain;
mod hex;
mod key_ref;
mod mark;
mod operation;
mod parameters;
mod request;
mod request_data;
mod request_grant;
mod request_import;
mod request_key;
mod request_pair;
mod response;
mod response_grant;
mod response_import;
mod response_pair;
mod retire;
mod rule;
mod shape;
pub mod sigv4;
mod timestamp;

pub use blob::{Blob, SecretBlob};
pub use choice::{
    AccessKeyStatus, CustomerMasterKeySpec, DataKeyPairSpec, DataKeySpec, DryRunModifier,
    EncapsulationAlgorithm, EncryptionAlgorithm, ExpirationModel, GrantOperation, ImportState, ImportType,
    IncludeKeyMaterial, KeyAgreementAlgorithm, KeyEncryptionMechanism, KeyManager, KeySpec, KeyState,
    KeyUsage, MacAlgorithm, MaterialState, MessageType, MultiRegionKeyType, Origin, ResourceOwner,
    RotationType, SigningAlgorithm, WrappingAlgorithm, WrappingKeySpec,
};
pub use context::EncryptionContext;
pub use error::{ErrorBody, ErrorCode, KmsError, NOT_TRUSTED};
pub use explain::*;
pub use hex::{hex, unhex};
pub use key_ref::{Arn, ArnError, ArnResource, KeyId, KeyRef, uuid_text};
pub use mark::AdvanceMarkRequest;
pub use operation::{Family, Operation, TARGET_PREFIX, TARGET_PREFIX_ADMIN};
pub use parameters::{Parameters, Shown, lower_first};
pub use request::{Request, Violation, parse};
pub use request_data::*;
pub use request_grant::*;
pub use request_import::*;
pub use request_key::*;
pub use request_pair::*;
pub use response::*;
pub use response_grant::*;
pub use response_import::*;
pub use response_pair::*;
pub use retire::RetireVersionRequest;
pub use rule::{Pattern, Rule};
pub use shape::Member;
pub use timestamp::Timestamp;
