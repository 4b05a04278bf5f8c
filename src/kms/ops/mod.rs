//! The operations, one file per family, and the one match that serves them.
//!
//! Called by the pipeline. An operation says which rights it needs (`demands`), and does its work when it is shown
//! [`Allowed`] (`perform`); it never decides who may.

mod agreement;
mod aliases;
mod crypto;
mod data_keys;
mod data_pairs;
mod deletion;
mod explain;
mod grants;
mod import;
mod keys;
mod last_usage;
mod mac;
mod marks;
mod page;
mod policies;
mod public_key;
mod replicas;
mod retire;
mod rotation;
mod sealing;
mod signing;
mod tags;

use crate::api::{
    self, ErrorCode, KeySpec, KeyUsage, KmsError, Operation, RecipientInfo, Request, Timestamp,
};

use super::authorise::{Allowed, Demand};
use super::caller::Caller;
use super::lifecycle::{self, Need};
use super::model::Key;
use super::pipeline::{Answer, Call, Kms, Notes, Turn};

pub(super) use aliases::check_name as check_alias_name;
pub(super) use keys::{NewKey, default_policy};
pub(super) use policies::parse_key_policy;
pub(super) use rotation::DEFAULT_PERIOD_DAYS;
pub(super) use tags::check_tags;

/// One operation: what it needs, what it does.
pub(super) trait Perform: Request {
    /// Whether the right to change records is held from the start. An operation that changes records and takes its
    /// time before it does asks for the right itself.
    const HOLDS_TURN: bool = !Self::OPERATION.is_read_only();

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
            GenerateDataKeyPair: GenerateDataKeyPairRequest,
            GenerateDataKeyPairWithoutPlaintext: GenerateDataKeyPairWithoutPlaintextRequest,
            Sign: SignRequest, Verify: VerifyRequest, GetPublicKey: GetPublicKeyRequest,
            GenerateMac: GenerateMacRequest, VerifyMac: VerifyMacRequest,
            DeriveSharedSecret: DeriveSharedSecretRequest,
            Encapsulate: EncapsulateRequest, Decapsulate: DecapsulateRequest,
            GetKeyLastUsage: GetKeyLastUsageRequest,
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
            RetireVersion: RetireVersionRequest,
        }
        not_yet {
            ConnectCustomKeyStore, CreateCustomKeyStore, DeleteCustomKeyStore, DescribeCustomKeyStores,
            DisconnectCustomKeyStore, UpdateCustomKeyStore,
        }
    }
}

/// The key's usage must be `usage`.
fn check_usage(key: &Key, usage: KeyUsage, operation: Operation) -> Result<(), KmsError> {
    let record = &key.record;
    if record.usage == usage {
        return Ok(());
    }
    let message = format!("{} key usage is {} which is not valid for {operation}.", record.arn, record.usage);
    Err(KmsError::new(ErrorCode::InvalidKeyUsageException, message))
}

/// The key's state must let it be used.
fn check_state(key: &Key) -> Result<(), KmsError> {
    lifecycle::check(Need::Use, key.record.state, &key.record.arn)
}

/// An algorithm that keys of that spec do not have.
fn incompatible(algorithm: &str, spec: KeySpec) -> KmsError {
    let message = format!("Algorithm {algorithm} is incompatible with key spec {spec}.");
    KmsError::new(ErrorCode::InvalidKeyUsageException, message)
}

/// An answer encrypted to an enclave needs a root of trust for its evidence, and none can be configured.
fn refuse_recipient(recipient: Option<&RecipientInfo>) -> Result<(), KmsError> {
    match recipient {
        None => Ok(()),
        Some(_) => Err(unsupported(
            "Recipient is not supported: no root of trust for attestation documents is configured.",
        )),
    }
}

/// A dry run that got this far.
fn dry_run() -> KmsError {
    let message = "The request would have succeeded, but the DryRun option is set.";
    KmsError::new(ErrorCode::DryRunOperationException, message)
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
