//! The operations, one file per family, and the one match that serves them.
//!
//! Called by the pipeline. An operation says which rights it needs (`demands`), and does its work when it is shown
//! [`Allowed`] (`perform`); it never decides who may.

mod aliases;
mod crypto;
mod data_keys;
mod deletion;
mod explain;
mod grants;
mod import;
mod keys;
mod marks;
mod page;
mod policies;
mod replicas;
mod rotation;
mod tags;

use crate::api::{self, ErrorCode, KeyUsage, KmsError, Operation, Request, Timestamp};

use super::authorise::{Allowed, Demand};
use super::caller::Caller;
use super::lifecycle::{self, Need};
use super::model::Key;
use super::pipeline::{Answer, Call, Kms, Notes, Turn};

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

    /// What a caller is told who lacks the right demanded in that place.
    fn refused(&self, _place: usize, error: KmsError) -> KmsError {
        error
    }
}

/// Makes the one match over all operations: those served, with their requests, and those that are not served yet.
macro_rules! serve {
    ($operation:expr, $run:ident,
     served { $($served:ident: $request:ident,)+ }
     not_yet { $($not_yet:ident,)+ }) => {
        match $operation {
            $(Operation::$served => $run!($request),)+
            $(Operation::$not_yet)|+ => Err(unsupported(format!("{} is not supported.", $operation))),
        }
    };
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
    macro_rules! run {
        ($request:ident) => {
            kms.run::<api::$request>(caller, body, now, notes)
        };
    }
    serve! { operation, run,
        served {
            Encrypt: EncryptRequest, Decrypt: DecryptRequest, ReEncrypt: ReEncryptRequest,
            GenerateDataKey: GenerateDataKeyRequest,
            GenerateDataKeyWithoutPlaintext: GenerateDataKeyWithoutPlaintextRequest,
            GenerateRandom: GenerateRandomRequest,
            CreateKey: CreateKeyRequest, DescribeKey: DescribeKeyRequest, ListKeys: ListKeysRequest,
            EnableKey: EnableKeyRequest, DisableKey: DisableKeyRequest,
            ScheduleKeyDeletion: ScheduleKeyDeletionRequest, CancelKeyDeletion: CancelKeyDeletionRequest,
            UpdateKeyDescription: UpdateKeyDescriptionRequest,
            CreateAlias: CreateAliasRequest, UpdateAlias: UpdateAliasRequest,
            DeleteAlias: DeleteAliasRequest, ListAliases: ListAliasesRequest,
            PutKeyPolicy: PutKeyPolicyRequest, GetKeyPolicy: GetKeyPolicyRequest,
            ListKeyPolicies: ListKeyPoliciesRequest,
            TagResource: TagResourceRequest, UntagResource: UntagResourceRequest,
            ListResourceTags: ListResourceTagsRequest,
            EnableKeyRotation: EnableKeyRotationRequest, DisableKeyRotation: DisableKeyRotationRequest,
            GetKeyRotationStatus: GetKeyRotationStatusRequest,
            RotateKeyOnDemand: RotateKeyOnDemandRequest, ListKeyRotations: ListKeyRotationsRequest,
            CreateGrant: CreateGrantRequest, ListGrants: ListGrantsRequest,
            ListRetirableGrants: ListRetirableGrantsRequest,
            RetireGrant: RetireGrantRequest, RevokeGrant: RevokeGrantRequest,
            GetParametersForImport: GetParametersForImportRequest,
            ImportKeyMaterial: ImportKeyMaterialRequest,
            DeleteImportedKeyMaterial: DeleteImportedKeyMaterialRequest,
            ReplicateKey: ReplicateKeyRequest, UpdatePrimaryRegion: UpdatePrimaryRegionRequest,
            Explain: ExplainRequest,
            AdvanceMark: AdvanceMarkRequest,
        }
        not_yet {
            ConnectCustomKeyStore, CreateCustomKeyStore, DeleteCustomKeyStore, DescribeCustomKeyStores,
            DisconnectCustomKeyStore, UpdateCustomKeyStore,
            Decapsulate, Encapsulate, DeriveSharedSecret, GetPublicKey, Sign, Verify, GenerateMac, VerifyMac,
            GenerateDataKeyPair, GenerateDataKeyPairWithoutPlaintext, GetKeyLastUsage,
        }
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

fn internal() -> KmsError {
    KmsError::new(ErrorCode::KMSInternalException, "")
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
