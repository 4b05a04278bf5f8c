//! Request quotas: a token bucket for each account, region and group of operations.
//!
//! Asked by the pipeline when the key of a call is known. Profile `aws` is the table of the KMS developer guide
//! ("Request quotas"); the default profile only stops a caller that runs wild.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use parking_lot::RwLock;

use crate::api::{ErrorCode, KeySpec, KmsError, Operation};

use super::home::Home;
use super::iam::actions::Service;

/// Most accounts and regions told apart; beyond it all start anew.
const MAX_HOMES: usize = 4096;
const NANOS: f64 = 1e9;

/// Which limits apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum QuotaProfile {
    /// Far beyond what a client that works as it should asks for
    #[default]
    Generous,
    /// The quotas of AWS
    Aws,
    /// None at all
    Off,
}

macro_rules! groups {
    ($($group:ident: $aws:expr, $generous:expr; [$($operation:ident),*];)+) => {
        /// Operations that share a quota.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        enum Group { $($group,)+ }

        impl Group {
            const COUNT: usize = [$(Self::$group,)+].len();

            /// Calls per second.
            fn rate(self, profile: QuotaProfile) -> f64 {
                match (profile, self) {
                    $((QuotaProfile::Aws, Self::$group) => $aws,)+
                    $((_, Self::$group) => $generous,)+
                }
            }

            /// The group of an operation that is not told by its key.
            fn of(operation: Operation) -> Option<Self> {
                match operation {
                    $($(Operation::$operation => Some(Self::$group),)*)+
                    _ => None,
                }
            }
        }
    };
}

/// Symmetric, RSA, elliptic-curve and post-quantum work on keys; the key tells which.
const CRYPTO: f64 = 1e6;
const READS: f64 = 1e5;
const WRITES: f64 = 1e4;

groups! {
    Symmetric: 10_000.0, CRYPTO; [GenerateRandom];
    Rsa: 1_000.0, CRYPTO; [];
    Curve: 1_000.0, CRYPTO; [];
    PairRsa2048: 1.0, WRITES; [];
    PairRsa3072: 0.5, WRITES; [];
    PairRsa4096: 0.1, WRITES; [];
    PairP256: 100.0, WRITES; [];
    PairP384: 100.0, WRITES; [];
    PairP521: 100.0, WRITES; [];
    PairOther: 100.0, WRITES; [];
    CancelKeyDeletion: 5.0, WRITES; [CancelKeyDeletion];
    CreateAlias: 5.0, WRITES; [CreateAlias];
    CreateGrant: 50.0, WRITES; [CreateGrant];
    CreateKey: 5.0, WRITES; [CreateKey];
    DeleteAlias: 15.0, WRITES; [DeleteAlias];
    DeleteImportedKeyMaterial: 15.0, WRITES; [DeleteImportedKeyMaterial];
    DescribeKey: 2_000.0, READS; [DescribeKey];
    DisableKey: 5.0, WRITES; [DisableKey];
    DisableKeyRotation: 5.0, WRITES; [DisableKeyRotation];
    EnableKey: 5.0, WRITES; [EnableKey];
    EnableKeyRotation: 15.0, WRITES; [EnableKeyRotation];
    GetKeyPolicy: 1_000.0, READS; [GetKeyPolicy];
    GetKeyRotationStatus: 1_000.0, READS; [GetKeyRotationStatus];
    GetParametersForImport: 0.25, WRITES; [GetParametersForImport];
    GetPublicKey: 2_000.0, READS; [GetPublicKey];
    ImportKeyMaterial: 15.0, WRITES; [ImportKeyMaterial];
    ListAliases: 500.0, READS; [ListAliases];
    ListGrants: 100.0, READS; [ListGrants];
    ListKeyPolicies: 100.0, READS; [ListKeyPolicies];
    ListKeyRotations: 100.0, READS; [ListKeyRotations];
    ListKeys: 500.0, READS; [ListKeys];
    ListResourceTags: 2_000.0, READS; [ListResourceTags];
    ListRetirableGrants: 100.0, READS; [ListRetirableGrants];
    PutKeyPolicy: 15.0, WRITES; [PutKeyPolicy];
    ReplicateKey: 5.0, WRITES; [ReplicateKey];
    RetireGrant: 30.0, WRITES; [RetireGrant];
    RevokeGrant: 30.0, WRITES; [RevokeGrant];
    RotateKeyOnDemand: 5.0, WRITES; [RotateKeyOnDemand];
    ScheduleKeyDeletion: 15.0, WRITES; [ScheduleKeyDeletion];
    TagResource: 10.0, WRITES; [TagResource];
    UntagResource: 5.0, WRITES; [UntagResource];
    UpdateAlias: 5.0, WRITES; [UpdateAlias];
    UpdateKeyDescription: 5.0, WRITES; [UpdateKeyDescription];
    UpdatePrimaryRegion: 5.0, WRITES; [UpdatePrimaryRegion];
    Identities: 20.0, WRITES; [];
    Sessions: 600.0, CRYPTO; [];
}

impl Group {
    /// The group of a call: by its operation, by the pair it makes, or by the key it uses.
    fn of_call(operation: Operation, spec: Option<KeySpec>, pair: Option<&str>) -> Option<Self> {
        if matches!(
            operation,
            Operation::GenerateDataKeyPair | Operation::GenerateDataKeyPairWithoutPlaintext
        ) {
            return Some(Self::of_pair(pair.unwrap_or_default()));
        }
        Self::of(operation).or_else(|| uses_key(operation).then(|| Self::of_key(spec)))
    }

    fn of_key(spec: Option<KeySpec>) -> Self {
        match spec.map_or("", KeySpec::as_str) {
            name if name.starts_with("RSA") => Self::Rsa,
            name if name.starts_with("ECC") || name.starts_with("ML_") => Self::Curve,
            _ => Self::Symmetric,
        }
    }

    fn of_pair(spec: &str) -> Self {
        match spec {
            "RSA_2048" => Self::PairRsa2048,
            "RSA_3072" => Self::PairRsa3072,
            "RSA_4096" => Self::PairRsa4096,
            "ECC_NIST_P256" => Self::PairP256,
            "ECC_NIST_P384" => Self::PairP384,
            "ECC_NIST_P521" => Self::PairP521,
            _ => Self::PairOther,
        }
    }
}

fn uses_key(operation: Operation) -> bool {
    use Operation::{
        Decapsulate, Decrypt, DeriveSharedSecret, Encapsulate, Encrypt, GenerateDataKey,
        GenerateDataKeyWithoutPlaintext, GenerateMac, ReEncrypt, Sign, Verify, VerifyMac,
    };
    matches!(
        operation,
        Decrypt
            | Encrypt
            | GenerateDataKey
            | GenerateDataKeyWithoutPlaintext
            | ReEncrypt
            | Sign
            | Verify
            | GenerateMac
            | VerifyMac
            | DeriveSharedSecret
            | Encapsulate
            | Decapsulate
    )
}

/// A token bucket as one number: the time at which it would be full again (generic cell rate algorithm).
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes one token at `now` (nanoseconds) from a bucket of one second's worth, and of one at least.
    fn take(&self, now: u64, rate: f64) -> bool {
        let interval = (NANOS / rate) as u64;
        let depth = interval.max(NANOS as u64);
        let step = |full_at: u64| {
            let next = full_at.max(now) + interval;
            (next - now <= depth).then_some(next)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

type Homes = HashMap<String, HashMap<String, Buckets>>;
type Buckets = Arc<[Bucket; Group::COUNT]>;

/// The buckets of all accounts and regions.
#[derive(Debug)]
pub struct Quotas {
    profile: QuotaProfile,
    begin: Instant,
    /// By region, by account.
    homes: RwLock<Homes>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new(QuotaProfile::default())
    }
}

impl Quotas {
    /// Full buckets.
    pub fn new(profile: QuotaProfile) -> Self {
        Self { profile, begin: Instant::now(), homes: RwLock::default() }
    }

    /// Takes the token of one call. `spec` is that of its key, `pair` that of the data key pair it asks for.
    pub(super) fn take(
        &self,
        home: Home<'_>,
        operation: Operation,
        spec: Option<KeySpec>,
        pair: Option<&str>,
    ) -> Result<(), KmsError> {
        Group::of_call(operation, spec, pair).map_or(Ok(()), |group| self.take_of(home, group))
    }

    /// Takes the token of one call to IAM or STS.
    pub(super) fn take_identity(&self, home: Home<'_>, service: Service) -> Result<(), KmsError> {
        self.take_of(home, if service == Service::Iam { Group::Identities } else { Group::Sessions })
    }

    fn take_of(&self, home: Home<'_>, group: Group) -> Result<(), KmsError> {
        if self.profile == QuotaProfile::Off {
            return Ok(());
        }
        let now = u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX / 2);
        if self.take_at(home, group, now) { Ok(()) } else { Err(throttled()) }
    }

    /// Takes a token at `now`, nanoseconds from the beginning.
    fn take_at(&self, home: Home<'_>, group: Group, now: u64) -> bool {
        self.buckets(home)[group as usize].take(now, group.rate(self.profile))
    }

    fn buckets(&self, home: Home<'_>) -> Buckets {
        let known = |homes: &Homes| homes.get(home.region)?.get(home.account).cloned();
        if let Some(buckets) = known(&self.homes.read()) {
            return buckets;
        }
        let mut homes = self.homes.write();
        if homes.values().map(HashMap::len).sum::<usize>() >= MAX_HOMES {
            homes.clear();
        }
        let accounts = homes.entry(home.region.to_owned()).or_default();
        let fresh = || Arc::new(std::array::from_fn(|_| Bucket::default()));
        Arc::clone(accounts.entry(home.account.to_owned()).or_insert_with(fresh))
    }
}

/// What the service says.
pub(super) fn throttled() -> KmsError {
    let message = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
    KmsError::new(ErrorCode::ThrottlingException, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Home<'static> = Home::new("111122223333", "local");

    /// How many of 1000 calls are granted that come all at once.
    fn granted(quotas: &Quotas, home: Home<'_>, group: Group) -> usize {
        (0..1000).filter(|_| quotas.take_at(home, group, 0)).count()
    }

    #[test]
    fn a_bucket_holds_a_second_and_fills_at_its_rate() {
        let bucket = Bucket::default();
        let second = NANOS as u64;
        assert_eq!((0..20).filter(|_| bucket.take(0, 5.0)).count(), 5);
        assert!(!bucket.take(second / 10, 5.0));
        assert_eq!((0..20).filter(|_| bucket.take(second * 2 / 5, 5.0)).count(), 2);
        assert_eq!((0..20).filter(|_| bucket.take(second * 100, 5.0)).count(), 5, "it does not overflow");
        // One call in four seconds, whatever a second's worth is.
        let slow = Bucket::default();
        assert!(slow.take(0, 0.25) && !slow.take(second * 3, 0.25) && slow.take(second * 4, 0.25));
    }

    #[test]
    fn accounts_regions_and_groups_do_not_take_each_others_tokens() {
        let quotas = Quotas::new(QuotaProfile::Aws);
        assert_eq!(granted(&quotas, HOME, Group::CreateKey), 5);
        assert_eq!(granted(&quotas, HOME, Group::CreateAlias), 5);
        let other = Home::new("444455556666", "local");
        assert_eq!(granted(&quotas, other, Group::CreateKey), 5);
        let elsewhere = Home::new("111122223333", "eu-west-1");
        assert_eq!(granted(&quotas, elsewhere, Group::CreateKey), 5);
    }

    #[test]
    fn identities_and_sessions_have_quotas_of_their_own() {
        let quotas = Quotas::new(QuotaProfile::Aws);
        assert!((20..200).contains(&granted(&quotas, HOME, Group::Identities)));
        assert!((600..1000).contains(&granted(&quotas, HOME, Group::Sessions)));
    }

    #[test]
    fn the_key_tells_the_group_of_an_operation_that_uses_one() {
        let of = |operation, spec| Group::of_call(operation, spec, None);
        assert_eq!(of(Operation::Decrypt, Some(KeySpec::SymmetricDefault)), Some(Group::Symmetric));
        let rsa = KeySpec::ALL.iter().copied().find(|spec| spec.as_str() == "RSA_2048");
        assert_eq!(of(Operation::Sign, rsa), Some(Group::Rsa));
        let pair = |spec| Group::of_call(Operation::GenerateDataKeyPair, None, Some(spec));
        assert_eq!(pair("RSA_4096"), Some(Group::PairRsa4096));
        assert_eq!(of(Operation::Explain, None), None);
    }

    #[test]
    fn without_quotas_nothing_is_refused() {
        let quotas = Quotas::new(QuotaProfile::Off);
        assert!((0..1000).all(|_| quotas.take(HOME, Operation::CreateKey, None, None).is_ok()));
        let error = throttled();
        assert_eq!(error.code, ErrorCode::ThrottlingException);
    }
}
