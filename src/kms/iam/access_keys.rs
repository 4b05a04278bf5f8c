//! Access keys: made for a user or the account root, shown once, kept sealed.

use zeroize::Zeroizing;

use crate::api::{AccessKeyStatus, hex, unhex};
use crate::crypto::fill_random;

use super::super::caller::Source;
use super::super::pipeline::Kms;
use super::answer::{Node, Secret};
use super::call::IamCall;
use super::entities::page;
use super::error::IamError;
use super::records::{AccessKeyRecord, Kind};

/// Most access keys of a user, as with AWS.
const MAX_ACCESS_KEYS: usize = 2;
/// Letters of a made id, after its prefix.
const ID_LETTERS: usize = 16;
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Random bytes of a made secret; 40 characters in base64.
const SECRET_BYTES: usize = 30;
/// What ids of long-lived keys begin with.
const ID_PREFIX: &str = "AKIA";

/// A new id.
pub fn made_id(prefix: &str) -> String {
    let mut random = [0; ID_LETTERS];
    fill_random(&mut random);
    let letters = random.iter().map(|byte| char::from(ID_ALPHABET[usize::from(byte & 31)]));
    prefix.chars().chain(letters).collect()
}

/// A secret of letters, digits, `+` and `/`.
pub fn made_secret() -> Zeroizing<String> {
    use base64::Engine;
    let mut random = Zeroizing::new([0; SECRET_BYTES]);
    fill_random(&mut *random);
    let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES / 3 * 4));
    base64::engine::general_purpose::STANDARD.encode_string(*random, &mut text);
    text
}

impl Kms {
    /// The access key `id`, if it may sign.
    pub(super) fn active_access_key(&self, id: &str) -> Option<std::sync::Arc<AccessKeyRecord>> {
        let known = self.state.read_early().iam.access_key(id).cloned();
        known.filter(|record| record.status == AccessKeyStatus::Active)
    }

    /// The secret of an access key.
    pub(super) fn open_access_key(&self, record: &AccessKeyRecord) -> Option<Zeroizing<Vec<u8>>> {
        let opened = self.root.open_secret(&record.id, &unhex(&record.sealed_secret)?);
        let id = &record.id;
        opened.map_err(|error| log::error!("the secret of access key {id} does not open: {error}")).ok()
    }
}

/// Whose access keys the call is about; the account root's where it names no user.
fn owner(call: &IamCall<'_>) -> Result<Option<String>, IamError> {
    if call.caller.is_root && call.params.get("UserName").is_none() {
        return Ok(None);
    }
    let name = call.entity_name()?;
    call.find(Kind::User, name).map(|user| Some(user.record.name.clone()))
}

/// The access key that the call names, of the user that it means.
fn find(call: &IamCall<'_>) -> Result<AccessKeyRecord, IamError> {
    let id = call.params.need("AccessKeyId")?;
    let known = call.kms.state.read().iam.access_key(id).map(|record| (**record).clone());
    let named = match call.params.get("UserName") {
        // The root of an account may name a key alone.
        None if call.caller.is_root => known.as_ref().and_then(|record| record.user.clone()),
        _ => owner(call)?,
    };
    let own = known.filter(|record| record.account == call.account() && record.user == named);
    own.ok_or_else(|| IamError::new("NoSuchEntity", format!("The Access Key with id {id} cannot be found")))
}

fn show(record: &AccessKeyRecord, secret: Option<Zeroizing<String>>) -> Node {
    let mut members = vec![
        ("AccessKeyId", record.id.as_str().into()),
        ("Status", record.status.as_str().into()),
        ("CreateDate", record.created.into()),
    ];
    if let Some(user) = &record.user {
        members.insert(0, ("UserName", user.as_str().into()));
    }
    if let Some(secret) = secret {
        members.push(("SecretAccessKey", Node::Secret(Secret(secret))));
    }
    Node::Map(members)
}

/// An id and a secret that the operator chose, as in a seed file.
fn chosen(call: &IamCall<'_>) -> Result<Option<(String, Zeroizing<String>)>, IamError> {
    let local = call.caller.is_root && !matches!(call.caller.source, Source::Tcp(_));
    let (id, secret) = match (call.params.get("AccessKeyId"), call.params.get("SecretAccessKey")) {
        (None, None) => return Ok(None),
        (Some(id), Some(secret)) if local => (id, secret),
        _ => {
            return Err(IamError::validation(
                "AccessKeyId and SecretAccessKey go together, and only the operator on the daemon's host chooses them.",
            ));
        }
    };
    let plain = (16..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !plain || secret.is_empty() || secret.len() > 128 || id.starts_with(super::session::ID_PREFIX) {
        return Err(IamError::validation(
            "An access key id has 16 to 128 letters and digits and does not begin with ASIA; a secret has 1 to 128 \
             characters.",
        ));
    }
    if call.kms.state.read().iam.access_key(id).is_some() {
        return Err(IamError::new("EntityAlreadyExists", format!("Access key {id} already exists.")));
    }
    Ok(Some((id.to_owned(), Zeroizing::new(secret.to_owned()))))
}

pub fn create(call: &IamCall<'_>) -> Result<Node, IamError> {
    let user = owner(call)?;
    let chosen = chosen(call)?;
    let count = call.kms.state.read().iam.access_keys_of(call.account(), user.as_deref()).count();
    if count >= MAX_ACCESS_KEYS {
        return Err(IamError::limit(format!("Cannot exceed quota for AccessKeysPerUser: {MAX_ACCESS_KEYS}")));
    }
    let (id, secret) = chosen.unwrap_or_else(|| (made_id(ID_PREFIX), made_secret()));
    let record = AccessKeyRecord {
        sealed_secret: hex(&call.kms.root.seal_secret(&id, secret.as_bytes())),
        id,
        account: call.account().to_owned(),
        user,
        status: AccessKeyStatus::Active,
        created: call.now,
    };
    let shown = Node::of("AccessKey", show(&record, Some(secret)));
    call.kms.put_access_key(call.turn()?, record)?;
    Ok(shown)
}

pub fn update(call: &IamCall<'_>) -> Result<Node, IamError> {
    let text = call.params.need("Status")?;
    let status = AccessKeyStatus::parse(text).ok_or_else(|| {
        IamError::validation(format!(
            "1 validation error detected: Value '{text}' at 'status' failed to satisfy constraint: Member must \
             satisfy enum value set: [Active, Inactive]"
        ))
    })?;
    call.kms.put_access_key(call.turn()?, AccessKeyRecord { status, ..find(call)? })?;
    Ok(Node::empty())
}

pub fn delete(call: &IamCall<'_>) -> Result<Node, IamError> {
    let record = find(call)?;
    call.kms.remove_access_key(call.turn()?, &record.id)?;
    Ok(Node::empty())
}

pub fn list(call: &IamCall<'_>) -> Result<Node, IamError> {
    let user = owner(call)?;
    let state = call.kms.state.read();
    let keys = state.iam.access_keys_of(call.account(), user.as_deref());
    page(call.params, "AccessKeyMetadata", keys, |key| key.id.clone(), |key| show(key, None))
}
