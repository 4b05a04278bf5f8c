//! The operations, one file per family, and the one match that serves them.
//!
//! Called by the pipeline. An operation says which rights it needs (`demands`), and does its work when it is shown
//! [`Allowed`] (`perform`); it never decides who may.

mod access_keys;
mod aliases;
mod crypto;
mod data_keys;
mod deletion;
mod keys;
mod page;
mod policies;
mod rotation;
mod tags;
mod users;

use crate::api::{self, ErrorCode, KeyUsage, KmsError, Operation, Request, Timestamp};

use super::authorise::{Allowed, Demand};
use super::caller::Caller;
use super::lifecycle::{self, Need};
use super::model::Key;
use super::pipeline::{Answer, Call, Kms, Notes, Turn};

pub use access_keys::AccessKeyOwner;
pub(super) use aliases::check_name as check_alias_name;
pub(super) use keys::{NewKey, default_policy};
pub(super) use policies::compile_key_policy;
pub(super) use rotation::DEFAULT_PERIOD_DAYS;
pub(super) use tags::check_tags;

/// One operation: what it needs, what it does.
pub(super) trait Perform: Request {
    /// The rights it needs, on resources found.
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError>;

    /// Its work.
    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError>;

    /// What a caller without the right is told.
    fn refused(&self, error: KmsError) -> KmsError {
        error
    }
}

/// Serves any operation.
pub(super) fn dispatch(
    kms: &Kms,
    caller: &Caller,
    operation: Operation,
    body: &[u8],
    now: Timestamp,
    notes: &mut Notes,
) -> Result<Answer, KmsError> {
    use Operation as O;
    macro_rules! run {
        ($request:ident) => {
            kms.run::<api::$request>(caller, body, now, notes)
        };
    }
    match operation {
        O::Encrypt => run!(EncryptRequest),
        O::Decrypt => run!(DecryptRequest),
        O::ReEncrypt => run!(ReEncryptRequest),
        O::GenerateDataKey => run!(GenerateDataKeyRequest),
        O::GenerateDataKeyWithoutPlaintext => run!(GenerateDataKeyWithoutPlaintextRequest),
        O::GenerateRandom => run!(GenerateRandomRequest),
        O::CreateKey => run!(CreateKeyRequest),
        O::DescribeKey => run!(DescribeKeyRequest),
        O::ListKeys => run!(ListKeysRequest),
        O::EnableKey => run!(EnableKeyRequest),
        O::DisableKey => run!(DisableKeyRequest),
        O::ScheduleKeyDeletion => run!(ScheduleKeyDeletionRequest),
        O::CancelKeyDeletion => run!(CancelKeyDeletionRequest),
        O::UpdateKeyDescription => run!(UpdateKeyDescriptionRequest),
        O::CreateAlias => run!(CreateAliasRequest),
        O::UpdateAlias => run!(UpdateAliasRequest),
        O::DeleteAlias => run!(DeleteAliasRequest),
        O::ListAliases => run!(ListAliasesRequest),
        O::PutKeyPolicy => run!(PutKeyPolicyRequest),
        O::GetKeyPolicy => run!(GetKeyPolicyRequest),
        O::ListKeyPolicies => run!(ListKeyPoliciesRequest),
        O::TagResource => run!(TagResourceRequest),
        O::UntagResource => run!(UntagResourceRequest),
        O::ListResourceTags => run!(ListResourceTagsRequest),
        O::EnableKeyRotation => run!(EnableKeyRotationRequest),
        O::DisableKeyRotation => run!(DisableKeyRotationRequest),
        O::GetKeyRotationStatus => run!(GetKeyRotationStatusRequest),
        O::RotateKeyOnDemand => run!(RotateKeyOnDemandRequest),
        O::ListKeyRotations => run!(ListKeyRotationsRequest),
        O::CreateUser => run!(CreateUserRequest),
        O::DeleteUser => run!(DeleteUserRequest),
        O::ListUsers => run!(ListUsersRequest),
        O::PutUserPolicy => run!(PutUserPolicyRequest),
        O::GetUserPolicy => run!(GetUserPolicyRequest),
        O::DeleteUserPolicy => run!(DeleteUserPolicyRequest),
        O::ListUserPolicies => run!(ListUserPoliciesRequest),
        O::CreateAccessKey => run!(CreateAccessKeyRequest),
        O::UpdateAccessKey => run!(UpdateAccessKeyRequest),
        O::DeleteAccessKey => run!(DeleteAccessKeyRequest),
        O::ListAccessKeys => run!(ListAccessKeysRequest),
        O::ConnectCustomKeyStore
        | O::CreateCustomKeyStore
        | O::DeleteCustomKeyStore
        | O::DescribeCustomKeyStores
        | O::DisconnectCustomKeyStore
        | O::UpdateCustomKeyStore
        | O::CreateGrant
        | O::ListGrants
        | O::ListRetirableGrants
        | O::RetireGrant
        | O::RevokeGrant
        | O::Decapsulate
        | O::Encapsulate
        | O::DeriveSharedSecret
        | O::GenerateDataKeyPair
        | O::GenerateDataKeyPairWithoutPlaintext
        | O::GenerateMac
        | O::VerifyMac
        | O::GetKeyLastUsage
        | O::GetPublicKey
        | O::Sign
        | O::Verify
        | O::DeleteImportedKeyMaterial
        | O::GetParametersForImport
        | O::ImportKeyMaterial
        | O::ReplicateKey
        | O::UpdatePrimaryRegion => Err(unsupported(format!("{operation} is not supported."))),
    }
}

/// The key's usage must be `usage`, and its state must let it be used.
fn usable(key: &Key, usage: KeyUsage, operation: Operation) -> Result<(), KmsError> {
    let record = &key.record;
    if record.usage != usage {
        let message =
            format!("{} key usage is {} which is not valid for {operation}.", record.arn, record.usage);
        return Err(KmsError::new(ErrorCode::InvalidKeyUsageException, message));
    }
    lifecycle::check(Need::Use, record.state, &record.arn)
}

/// The right to change records, which the pipeline gives to every operation that writes.
fn turn<'a>(call: &Call<'a>) -> Result<&'a Turn<'a>, KmsError> {
    call.turn
        .ok_or_else(|| KmsError::new(ErrorCode::KMSInternalException, "the operation is not one that writes"))
}

fn unsupported(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::UnsupportedOperationException, message)
}

fn invalid(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::ValidationException, message)
}

fn limit_exceeded(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::LimitExceededException, message)
}
