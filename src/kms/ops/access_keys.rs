//! Access keys: made for a user, shown once, kept sealed, looked up by the verifier of signatures.

use zeroize::Zeroizing;

use crate::api::{
    AccessKeyEntry, AccessKeyResponse, AccessKeyStatus, CreateAccessKeyRequest, DeleteAccessKeyRequest,
    ErrorCode, KmsError, ListAccessKeysRequest, ListAccessKeysResponse, NewAccessKey, SecretBlob,
    UpdateAccessKeyRequest, hex, unhex,
};
use crate::crypto::fill_random;

use super::super::authorise::{Allowed, Demand};
use super::super::caller::{root_arn, user_arn};
use super::super::iam::AccessKeyRecord;
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::users::{administers, find_user, no_such};
use super::{Perform, invalid, limit_exceeded, turn};

/// Most access keys of a user.
const MAX_ACCESS_KEYS: usize = 10;
/// Letters of a made id, after its prefix.
const ID_LETTERS: usize = 16;
const ID_PREFIX: &str = "AKIA";
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Random bytes of a made secret; 40 characters in base64.
const SECRET_BYTES: usize = 30;

/// Who signs with an access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKeyOwner {
    /// ARN of the principal.
    pub principal_arn: String,
    /// Whether it is the account root.
    pub is_root: bool,
}

impl Kms {
    /// Who signs with the access key `id`, if it may sign.
    pub fn access_key_owner(&self, id: &str) -> Option<AccessKeyOwner> {
        let record = self.active_access_key(id)?;
        let account = &self.settings.account;
        Some(match &record.user {
            Some(name) => AccessKeyOwner { principal_arn: user_arn(account, name), is_root: false },
            None => AccessKeyOwner { principal_arn: root_arn(account), is_root: true },
        })
    }

    /// The secret of the access key `id`, if it may sign.
    pub fn access_key_secret(&self, id: &str) -> Option<Zeroizing<Vec<u8>>> {
        let record = self.active_access_key(id)?;
        let opened = self.root.open_secret(&record.id, &unhex(&record.sealed_secret)?);
        opened.map_err(|error| log::error!("the secret of access key {id} does not open: {error}")).ok()
    }

    fn active_access_key(&self, id: &str) -> Option<std::sync::Arc<AccessKeyRecord>> {
        let known = self.state.read().iam.access_key(id).cloned();
        known.filter(|record| record.status == AccessKeyStatus::Active)
    }

    fn find_access_key(&self, id: &str) -> Result<std::sync::Arc<AccessKeyRecord>, KmsError> {
        self.state.read().iam.access_key(id).cloned().ok_or_else(|| no_such("access key", id))
    }
}

fn made_id() -> String {
    let mut random = [0; ID_LETTERS];
    fill_random(&mut random);
    let letters = random.iter().map(|byte| char::from(ID_ALPHABET[usize::from(byte & 31)]));
    ID_PREFIX.chars().chain(letters).collect()
}

/// A secret of letters, digits, `+` and `/`.
fn made_secret() -> Zeroizing<Vec<u8>> {
    use base64::Engine;
    let mut random = Zeroizing::new([0; SECRET_BYTES]);
    fill_random(&mut *random);
    let mut text = Zeroizing::new(vec![0; SECRET_BYTES / 3 * 4]);
    let written = base64::engine::general_purpose::STANDARD.encode_slice(*random, &mut text);
    written.expect("40 bytes hold the base64 of 30");
    text
}

impl Perform for CreateAccessKeyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let kms = call.kms;
        find_user(kms, &self.user_name)?;
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(invalid("AccessKeyId and SecretAccessKey go together."));
        }
        let account = &kms.settings.account;
        if kms.state.read().iam.access_keys_of(account, Some(&self.user_name)).count() >= MAX_ACCESS_KEYS {
            return Err(limit_exceeded(format!("A user may have {MAX_ACCESS_KEYS} access keys at most.")));
        }
        let id = self.access_key_id.unwrap_or_else(made_id);
        let secret = self.secret_access_key.map_or_else(made_secret, |secret| secret.0);
        if kms.state.read().iam.access_key(&id).is_some() {
            let message = format!("Access key {id} already exists.");
            return Err(KmsError::new(ErrorCode::AlreadyExistsException, message));
        }
        let record = AccessKeyRecord {
            id: id.clone(),
            account: account.clone(),
            user: Some(self.user_name.clone()),
            status: AccessKeyStatus::Active,
            created: call.now,
            sealed_secret: hex(&kms.root.seal_secret(&id, &secret)),
        };
        kms.put_access_key(turn(call)?, record)?;
        let size = secret.len();
        let access_key = NewAccessKey {
            user_name: self.user_name,
            access_key_id: id,
            status: AccessKeyStatus::Active,
            secret_access_key: SecretBlob(secret),
            create_date: call.now,
        };
        Answer::of(&AccessKeyResponse { access_key }, size)
    }
}

impl Perform for UpdateAccessKeyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let record = call.kms.find_access_key(&self.access_key_id)?;
        call.kms.put_access_key(turn(call)?, AccessKeyRecord { status: self.status, ..(*record).clone() })?;
        Ok(Answer::empty())
    }
}

impl Perform for DeleteAccessKeyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        call.kms.find_access_key(&self.access_key_id)?;
        call.kms.remove_access_key(turn(call)?, &self.access_key_id)?;
        Ok(Answer::empty())
    }
}

impl Perform for ListAccessKeysRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        find_user(call.kms, &self.user_name)?;
        let state = call.kms.state.read();
        let of_user = state.iam.access_keys_of(&call.kms.settings.account, Some(&self.user_name));
        let access_key_metadata = of_user
            .map(|record| AccessKeyEntry {
                user_name: self.user_name.clone(),
                access_key_id: record.id.clone(),
                status: record.status,
                create_date: record.created,
            })
            .collect();
        drop(state);
        Answer::of(&ListAccessKeysResponse { access_key_metadata }, 0)
    }
}
