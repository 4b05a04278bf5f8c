//! From the words of a request to the key it means.
//!
//! Called by the operations before they are authorised. A key of another account is never said to be absent.

use std::sync::Arc;

use crate::api::{Arn, ArnResource, ErrorCode, KeyId, KeyRef, KmsError};

use super::authorise::{Refusal, access_denied};
use super::model::Key;
use super::pipeline::{Call, Kms};

/// The partition of every ARN of this service.
const PARTITION: &str = "aws";

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
    /// ARN of the key `id`.
    pub(super) fn key_arn(&self, id: &impl std::fmt::Display) -> String {
        format!("arn:aws:kms:{}:{}:key/{id}", self.settings.region, self.settings.account)
    }

    /// ARN of the alias `name`, which has its prefix.
    pub(super) fn alias_arn(&self, name: &str) -> String {
        format!("arn:aws:kms:{}:{}:{name}", self.settings.region, self.settings.account)
    }

    /// The key `id` as it is now.
    pub(super) fn key(&self, id: KeyId) -> Option<Arc<Key>> {
        self.state.read().keys.get(&id).cloned()
    }
}

impl Call<'_> {
    /// The key that `text` names; `action` words the refusal where it lies in another account.
    pub(super) fn find<'a>(
        &self,
        text: &'a str,
        aliases: Aliases,
        action: &'static str,
    ) -> Result<Found<'a>, KmsError> {
        let reference = KeyRef::parse(text)
            .map_err(|_| KmsError::new(ErrorCode::NotFoundException, format!("Invalid arn {text}")))?;
        let resource = match reference {
            KeyRef::Id(id) => ArnResource::Key(id),
            KeyRef::Alias(name) => ArnResource::Alias(name),
            KeyRef::Arn(arn, resource) => {
                self.check_home(&arn, text, action)?;
                resource
            }
        };
        match (resource, aliases) {
            (ArnResource::Key(id), _) => self.find_id(id),
            (ArnResource::Alias(name), Aliases::Taken) => self.find_alias(name),
            (ArnResource::Alias(_), Aliases::Refused) => Err(invalid_id(text)),
        }
    }

    fn check_home(&self, arn: &Arn<'_>, text: &str, action: &'static str) -> Result<(), KmsError> {
        let settings = &self.kms.settings;
        if arn.partition != PARTITION {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("Invalid arn {}", arn.partition),
            ));
        }
        if arn.region != settings.region {
            return Err(KmsError::new(ErrorCode::NotFoundException, format!("Invalid arn {}", arn.region)));
        }
        if arn.account != settings.account {
            return Err(access_denied(self.caller, action, text, Refusal::NoKeyPolicy));
        }
        Ok(())
    }

    fn find_id(&self, text: &str) -> Result<Found<'static>, KmsError> {
        let id = KeyId::parse(text).ok_or_else(|| invalid_id(text))?;
        let key = self.kms.key(id).ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("Key '{}' does not exist", self.kms.key_arn(&id)),
            )
        })?;
        Ok(Found { key, alias: None })
    }

    fn find_alias<'a>(&self, name: &'a str) -> Result<Found<'a>, KmsError> {
        let known = self.kms.state.read().alias_target(name);
        let key = match known {
            Some(key) => key,
            None => self.managed_key(name)?.ok_or_else(|| {
                let arn = self.kms.alias_arn(name);
                KmsError::new(ErrorCode::NotFoundException, format!("Alias {arn} is not found."))
            })?,
        };
        Ok(Found { key, alias: Some(name) })
    }
}

fn invalid_id(text: &str) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, format!("Invalid keyId '{text}'"))
}
