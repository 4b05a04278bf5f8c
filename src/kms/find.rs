//! From the words of a request to the key it means.
//!
//! Called by the operations before they are authorised. A key of another account is never said to be absent.

use std::sync::Arc;

use crate::api::{Arn, ArnResource, ErrorCode, KeyId, KeyRef, KmsError};

use super::decision::{Refusal, access_denied};
use super::home::Home;
use super::model::Key;
use super::pipeline::{Call, Kms};

/// The partition of every ARN of this service.
const PARTITION: &str = "aws";

/// Actions that reach keys of other accounts, if those allow it; every other one is for the own account only.
/// Source: "Cross-account use" of each operation in the API reference.
const CROSS_ACCOUNT: &[&str] = &[
    "kms:CreateGrant",
    "kms:Decapsulate",
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:DescribeKey",
    "kms:Encapsulate",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateMac",
    "kms:GetKeyRotationStatus",
    "kms:GetPublicKey",
    "kms:ListGrants",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:RetireGrant",
    "kms:RevokeGrant",
    "kms:Sign",
    "kms:Verify",
    "kms:VerifyMac",
];

/// Whether an operation takes aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aliases {
    /// It does.
    Taken,
    /// Key ids and key ARNs only.
    Refused,
}

/// A key, and the alias by which it was named.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) key: Arc<Key>,
    pub(super) alias: Option<&'a str>,
}

impl Kms {
    /// The key `id` of `home` as it is now.
    pub(super) fn key(&self, home: Home<'_>, id: KeyId) -> Option<Arc<Key>> {
        self.state.key(home, id)
    }

    /// The key `id` of that region, in the home's account before any other.
    pub(super) fn key_in_region(&self, home: Home<'_>, id: KeyId) -> Option<Arc<Key>> {
        self.key(home, id).or_else(|| self.state.read().key_in_region(home.region, id))
    }
}

impl Call<'_> {
    /// Where names without an ARN are looked for.
    pub(super) fn home(&self) -> Home<'_> {
        self.caller.home()
    }

    /// The key that `text` names; `action` words the refusal where it lies in another account.
    pub(super) fn find<'a>(
        &self,
        text: &'a str,
        aliases: Aliases,
        action: &'static str,
    ) -> Result<Found<'a>, KmsError> {
        let reference = KeyRef::parse(text)
            .map_err(|_| KmsError::new(ErrorCode::NotFoundException, format!("Invalid arn {text}")))?;
        let (home, resource) = match reference {
            KeyRef::Id(id) => (self.home(), ArnResource::Key(id)),
            KeyRef::Alias(name) => (self.home(), ArnResource::Alias(name)),
            KeyRef::Arn(arn, resource) => {
                self.check_home(&arn)?;
                (Home::new(arn.account, arn.region), resource)
            }
        };
        let is_foreign = home != self.home();
        if is_foreign && !CROSS_ACCOUNT.contains(&action) {
            return Err(access_denied(self.caller, action, text, Refusal::NoKeyPolicy));
        }
        let found = match (resource, aliases) {
            (ArnResource::Key(id), _) => self.find_id(home, id, id == text),
            (ArnResource::Alias(name), Aliases::Taken) => self.find_alias(home, name, action),
            (ArnResource::Alias(_), Aliases::Refused) => Err(no_alias()),
        };
        let found = found.and_then(|found| Ok(Found { key: self.caught_up(found.key)?, ..found }));
        if is_foreign {
            return found.map_err(|_| access_denied(self.caller, action, text, Refusal::NoKeyPolicy));
        }
        found
    }

    /// `key` as it is now.
    pub(super) fn caught_up(&self, key: Arc<Key>) -> Result<Arc<Key>, KmsError> {
        self.kms.caught_up(self.turn, key, self.now)
    }

    fn check_home(&self, arn: &Arn<'_>) -> Result<(), KmsError> {
        if arn.partition != PARTITION {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("Invalid arn {}", arn.partition),
            ));
        }
        if arn.region != self.caller.region {
            return Err(KmsError::new(ErrorCode::NotFoundException, format!("Invalid arn {}", arn.region)));
        }
        Ok(())
    }

    /// `is_bare` tells an id by itself from one in an ARN: messages quote the one and not the other.
    fn find_id(&self, home: Home<'_>, text: &str, is_bare: bool) -> Result<Found<'static>, KmsError> {
        let absent = || {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("Key '{}' does not exist", home.key_arn(&text)),
            )
        };
        let id = KeyId::parse(text).ok_or_else(|| match KeyId::parse(&text.to_ascii_lowercase()) {
            Some(_) => absent(),
            None if is_bare => invalid_id(text),
            None => KmsError::new(ErrorCode::NotFoundException, format!("Invalid keyId {text}")),
        })?;
        let key = self.kms.key(home, id).ok_or_else(absent)?;
        Ok(Found { key, alias: None })
    }

    fn find_alias<'a>(
        &self,
        home: Home<'_>,
        name: &'a str,
        action: &'static str,
    ) -> Result<Found<'a>, KmsError> {
        let known = self.kms.state.alias_target(home, name);
        let key = match known {
            Some(key) => key,
            None if home != self.home() => return Err(invalid_id(name)),
            None => self.managed_key(name, action)?.ok_or_else(|| {
                let arn = home.alias_arn(name);
                KmsError::new(ErrorCode::NotFoundException, format!("Alias {arn} is not found."))
            })?,
        };
        Ok(Found { key, alias: Some(name) })
    }
}

fn no_alias() -> KmsError {
    KmsError::new(ErrorCode::InvalidArnException, "Key Aliases are not supported for this operation.")
}

fn invalid_id(text: &str) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, format!("Invalid keyId '{text}'"))
}
