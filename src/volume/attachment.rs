//! The grants of an attached volume: by them alone its mount may use master keys, and only for this volume.
//!
//! Begun by the mount of a volume that has a name, in the name of whoever attaches it; the mount then calls the key
//! service as a principal of its own, which has no other rights. Every grant is noted in the registry before it is made,
//! so that whatever ends a mount leaves none that the next attach, or [`collect`], does not find. Must never retire a
//! grant of an attachment that is not this host's.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use super::registry::{Attachment, Entry, Given, Registry, RegistryError};
use super::{VolumeError, context, key_error, open};
use crate::api::{ErrorCode, NOT_TRUSTED, Operation, hex};
use crate::client::{ClientError, Kms, Probe};
use crate::crypto::random_array;
use crate::format::{VolumeId, customer};
use crate::tree::KeyError;

/// What a mount needs: to open and make files, to learn which version of a key is the current one, and to end the grant.
const OPERATIONS: [&str; 4] = ["Decrypt", "GenerateDataKey", "DescribeKey", "RetireGrant"];
/// Grants asked for at once; the most that the service gives.
const PAGE: usize = 100;
/// Pages looked through: more grants than a key can have.
const PAGES_MAX: usize = 1000;

/// Gives a client of the key service at that endpoint, which calls for whoever runs this process, or as the principal of
/// that ARN.
pub type Connect<'a> = &'a dyn Fn(&str, Option<&str>) -> Result<Arc<Kms>, ClientError>;

/// The grants of one mount.
pub struct MountGrants {
    registry: Registry,
    name: String,
    principal: String,
    volume_id: VolumeId,
    /// Calls in the name of whoever attached the volume.
    own: Arc<Kms>,
    /// Calls as the mount.
    mount: Arc<Kms>,
    given: Mutex<Vec<Given>>,
}

impl MountGrants {
    /// Begins an attachment of the volume `name`: retires what an earlier one left, and makes a grant on the key of its
    /// record. `None` where the service does not let this process call as a mount; it then has its own right alone.
    /// The caller holds the volume's mount lock.
    pub fn begin(
        registry: Registry,
        name: &str,
        own: Arc<Kms>,
        connect: Connect<'_>,
    ) -> Result<Option<Self>, VolumeError> {
        if !own.is_local() {
            return Ok(None);
        }
        let entry = registry.find(name)?;
        collect(&registry, &entry, connect)?;
        let record = open::peek(&entry.lower)?;
        let wrapped = &record.active().wrapped;
        let principal = principal_for(&wrapped.key_arn, record.volume_id);
        let mount = connect(&own.services().to_string(), Some(&principal))?;
        let probe =
            mount.probe_decrypt(&wrapped.blob, &wrapped.key_arn, &context::record(record.volume_id), None);
        match probe {
            Probe::Refused(e) if e.message.starts_with(NOT_TRUSTED) => return Ok(None),
            Probe::Unknown(e) => return Err(VolumeError::Key(wrapped.key_arn.clone(), key_error(&e))),
            // Refused until there is a grant; allowed already by the policy of a key that the service manages.
            Probe::Refused(_) | Probe::Usable => {}
        }
        let grants = Self {
            registry,
            name: name.to_owned(),
            principal,
            volume_id: record.volume_id,
            own,
            mount,
            given: Mutex::default(),
        };
        grants.ensure(&wrapped.key_arn)?;
        Ok(Some(grants))
    }

    /// Calls as the mount.
    pub fn kms(&self) -> Arc<Kms> {
        Arc::clone(&self.mount)
    }

    /// The principal that the mount calls as.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Makes the grant on a master key where there is none yet.
    pub fn ensure(&self, key_arn: &str) -> Result<(), VolumeError> {
        let mut given = self.given.lock();
        if customer::is_customer(key_arn) || given.iter().any(|one| one.key_arn == key_arn) {
            return Ok(());
        }
        let place = given.len();
        given.push(Given { key_arn: key_arn.to_owned(), grant_id: None });
        let made = self.note(&given).and_then(|()| self.make(key_arn));
        match made {
            Ok(id) => given[place].grant_id = Some(id),
            Err(e) => {
                given.pop();
                // Where no answer came there may be one all the same.
                if !matches!(e, VolumeError::NoGrant(_, KeyError::Unavailable(_))) {
                    self.note(&given)?;
                }
                return Err(e);
            }
        }
        self.note(&given)
    }

    fn make(&self, key_arn: &str) -> Result<String, VolumeError> {
        let request = json!({
            "KeyId": key_arn,
            "GranteePrincipal": self.principal,
            "Operations": OPERATIONS,
            "Constraints": { "EncryptionContextSubset": { context::VOLUME: self.volume_id.to_string() } },
            "Name": format!("kmsfs:{}", self.volume_id),
        });
        let made = self.own.call_json(Operation::CreateGrant, &request);
        let made = made.map_err(|e| VolumeError::NoGrant(key_arn.to_owned(), key_error(&e)))?;
        let id = made.get("GrantId").and_then(serde_json::Value::as_str);
        let missing = || ClientError::Protocol("the member GrantId is missing".to_owned());
        Ok(id.ok_or_else(missing)?.to_owned())
    }

    /// Notes in the registry what is to be retired one day.
    fn note(&self, given: &[Given]) -> Result<(), VolumeError> {
        let attachment = (!given.is_empty()).then(|| Attachment {
            kms: self.own.services().to_string(),
            principal: self.principal.clone(),
            grants: given.to_vec(),
        });
        note(&self.registry, &self.name, attachment)
    }

    /// Retires the grants, when nothing is left to be done by them. What cannot be retired now stays noted.
    pub fn end(&self) {
        let mut given = self.given.lock();
        given.retain(|one| match retire_one(&self.own, &self.mount, &self.principal, one) {
            Ok(()) => false,
            Err(e) => {
                log::warn!("the grant on {} stays until 'kmsfs volume gc': {e}", one.key_arn);
                true
            }
        });
        if let Err(e) = self.note(&given) {
            log::warn!("{e}");
        }
    }
}

fn note(registry: &Registry, name: &str, attachment: Option<Attachment>) -> Result<(), VolumeError> {
    let changing = registry.change()?;
    let entry = registry.find(name)?;
    if entry.attachment == attachment {
        return Ok(());
    }
    Ok(changing.put(&Entry { attachment, ..entry })?)
}

/// Retires the grants that an attachment of `entry` left behind, of which the caller knows that it has ended. How many.
pub fn collect(registry: &Registry, entry: &Entry, connect: Connect<'_>) -> Result<usize, VolumeError> {
    let Some(left) = &entry.attachment else { return Ok(0) };
    let (own, mount) = (connect(&left.kms, None)?, connect(&left.kms, Some(&left.principal))?);
    for one in &left.grants {
        retire_one(&own, &mount, &left.principal, one)
            .map_err(|e| VolumeError::GrantLeft(one.key_arn.clone(), key_error(&e)))?;
    }
    note(registry, &entry.name, None)?;
    Ok(left.grants.len())
}

/// Retires one grant, as its grantee; one whose making was not seen to the end is looked for.
fn retire_one(own: &Kms, mount: &Kms, principal: &str, one: &Given) -> Result<(), ClientError> {
    match &one.grant_id {
        Some(id) => retire(mount, &one.key_arn, id),
        None => find(own, &one.key_arn, principal)?.iter().try_for_each(|id| retire(mount, &one.key_arn, id)),
    }
}

fn retire(mount: &Kms, key_arn: &str, id: &str) -> Result<(), ClientError> {
    let request = json!({ "KeyId": key_arn, "GrantId": id });
    match mount.call_json(Operation::RetireGrant, &request) {
        Ok(_) => Ok(()),
        // The grant, or its key, is gone.
        Err(e) if is_gone(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

fn is_gone(error: &ClientError) -> bool {
    matches!(error.code(), Some(ErrorCode::NotFoundException | ErrorCode::InvalidGrantIdException))
}

/// The grants that a principal has on a key.
fn find(own: &Kms, key_arn: &str, principal: &str) -> Result<Vec<String>, ClientError> {
    let mut found = Vec::new();
    let mut request = json!({ "KeyId": key_arn, "GranteePrincipal": principal, "Limit": PAGE });
    for _ in 0..PAGES_MAX {
        let page = match own.call_json(Operation::ListGrants, &request) {
            Err(e) if is_gone(&e) => return Ok(found),
            listed => listed?,
        };
        let grants = page.get("Grants").and_then(serde_json::Value::as_array).into_iter().flatten();
        found.extend(grants.filter_map(|grant| Some(grant.get("GrantId")?.as_str()?.to_owned())));
        match page.get("NextMarker").filter(|marker| marker.is_string()) {
            Some(marker) => request["Marker"] = marker.clone(),
            None => break,
        }
    }
    Ok(found)
}

/// The principal of a new attachment: in the account of the volume's key, with a number that no other one has.
fn principal_for(key_arn: &str, volume: VolumeId) -> String {
    let account = key_arn.split(':').nth(4).unwrap_or_default();
    let number = hex(&random_array::<8>());
    format!("arn:aws:sts::{account}:assumed-role/aws:kmsfs-mount/{volume}.{number}")
}

impl From<RegistryError> for VolumeError {
    fn from(e: RegistryError) -> Self {
        Self::Registry(e)
    }
}
