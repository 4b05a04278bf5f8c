//! CreateKey, DescribeKey, ListKeys, EnableKey, DisableKey, UpdateKeyDescription.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{
    CreateKeyRequest, DescribeKeyRequest, DisableKeyRequest, EnableKeyRequest, ErrorCode, KeyId, KeyManager,
    KeyMetadataResponse, KeySpec, KeyState, KeyUsage, KmsError, ListKeysRequest, ListKeysResponse,
    MultiRegionKeyType, Origin, ResourceOwner, Tag, Timestamp, UpdateKeyDescriptionRequest,
};
use crate::crypto::{MaterialKind, random_array};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::caller::root_arn;
use super::super::find::Aliases;
use super::super::home::Home;
use super::super::imports::first_state;
use super::super::kinds::{material_kind, usages};
use super::super::lifecycle::{self, Need};
use super::super::model::{Key, KeyRecord};
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::page::{Size, page};
use super::policies::{check_lockout, compile_key_policy};
use super::tags::check_tags;
use super::{Perform, invalid, limit_exceeded, turn, unsupported};

/// Most keys of a daemon.
pub(in super::super) const MAX_KEYS: usize = 100_000;
const PAGE: Size = Size { default: 100, max: 1000 };

/// What a new key is to be.
#[derive(Debug)]
pub(in super::super) struct NewKey {
    pub(in super::super) id: KeyId,
    pub(in super::super) manager: KeyManager,
    pub(in super::super) origin: Origin,
    pub(in super::super) description: String,
    pub(in super::super) policy: String,
    pub(in super::super) tags: Vec<Tag>,
}

impl NewKey {
    /// A customer's key with a fresh id.
    pub(in super::super) fn of_customer(
        multi_region: bool,
        origin: Origin,
        description: String,
        policy: String,
        tags: Vec<Tag>,
    ) -> Self {
        let id = KeyId::from_random(random_array(), multi_region);
        Self { id, manager: KeyManager::Customer, origin, description, policy, tags }
    }

    /// Its record, before it has material.
    pub(in super::super) fn record(self, home: Home<'_>, now: Timestamp) -> KeyRecord {
        KeyRecord {
            id: self.id,
            arn: home.key_arn(&self.id),
            account: home.account.to_owned(),
            region: home.region.to_owned(),
            created: now,
            description: self.description,
            spec: KeySpec::SymmetricDefault,
            usage: KeyUsage::EncryptDecrypt,
            origin: self.origin,
            manager: self.manager,
            state: first_state(self.origin),
            deletion_date: None,
            policy: self.policy,
            tags: self.tags,
            rotation: None,
            on_demand_rotations: 0,
            materials: Vec::new(),
            primary_region: self.id.multi_region.then(|| home.region.to_owned()),
            pending_window_days: None,
            retired: Vec::new(),
            settles: None,
        }
    }
}

/// The policy of a key made without one: the account's own policies decide.
pub(in super::super) fn default_policy(account: &str) -> String {
    let root = root_arn(account);
    format!(
        "{{\n  \"Version\" : \"2012-10-17\",\n  \"Id\" : \"key-default-1\",\n  \"Statement\" : [ {{\n    \
         \"Sid\" : \"Enable IAM User Permissions\",\n    \"Effect\" : \"Allow\",\n    \"Principal\" : {{\n      \
         \"AWS\" : \"{root}\"\n    }},\n    \"Action\" : \"kms:*\",\n    \"Resource\" : \"*\"\n  }} ]\n}}"
    )
}

impl Perform for CreateKeyRequest {
    fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let spec = self.spec();
        let usage = self.key_usage.unwrap_or(KeyUsage::EncryptDecrypt);
        let tags = self.tags.as_deref().unwrap_or_default();
        let bypass = if self.bypass_policy_lockout_safety_check == Some(true) { "true" } else { "false" };
        let mut facts = vec![
            ("kms:keyspec", Cow::Borrowed(spec.as_str())),
            ("kms:keyusage", Cow::Borrowed(usage.as_str())),
            ("kms:keyorigin", Cow::Borrowed(self.origin.unwrap_or(Origin::AwsKms).as_str())),
            (
                "kms:multiregion",
                Cow::Borrowed(if self.multi_region == Some(true) { "true" } else { "false" }),
            ),
            ("kms:bypasspolicylockoutsafetycheck", Cow::Borrowed(bypass)),
        ];
        if self.multi_region == Some(true) {
            facts.push(("kms:multiregionkeytype", Cow::Borrowed(MultiRegionKeyType::Primary.as_str())));
        }
        let create = Demand { request_tags: tags, facts, ..Demand::new("kms:CreateKey", Resource::Account) };
        let tag = Demand { request_tags: tags, ..Demand::new("kms:TagResource", Resource::Account) };
        Ok(if tags.is_empty() { vec![create] } else { vec![create, tag] })
    }

    /// The material is made before the right to change records is asked for: RSA takes seconds.
    const HOLDS_TURN: bool = false;

    fn perform(self, call: &Call<'_>, _: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let (spec, usage) = (self.spec(), self.usage()?);
        let kind = self.material_kind()?;
        let tags = self.tags.unwrap_or_default();
        check_tags(&tags, &[])?;
        let kms = call.kms;
        check_room(kms)?;
        let is_provided = self.policy.is_some();
        let text = self.policy.unwrap_or_else(|| default_policy(&call.caller.account));
        let policy = compile_key_policy(call, &text, notes)?;
        let origin = self.origin.unwrap_or(Origin::AwsKms);
        let is_multi_region = self.multi_region == Some(true);
        let new =
            NewKey::of_customer(is_multi_region, origin, self.description.unwrap_or_default(), text, tags);
        let record = KeyRecord { spec, usage, ..new.record(call.home(), call.now) };
        let draft = Key { record, policy: policy.clone(), versions: Vec::new() };
        if is_provided && self.bypass_policy_lockout_safety_check != Some(true) {
            check_lockout(call, &draft, &policy)?;
        }
        let material = (origin == Origin::AwsKms).then(|| kms.makers.material(kind)).transpose()?;
        let turn = kms.turn();
        check_room(kms)?;
        let key = kms.insert_key(&turn, draft.record, policy, material.as_ref(), Vec::new())?;
        notes.touched(&key);
        Answer::of(&KeyMetadataResponse { key_metadata: kms.metadata(&key) }, 0)
    }
}

fn check_room(kms: &Kms) -> Result<(), KmsError> {
    if kms.state.read().key_count() >= MAX_KEYS {
        return Err(limit_exceeded(format!("The daemon has {MAX_KEYS} keys already.")));
    }
    Ok(())
}

impl CreateKeyRequest {
    /// What kind of key is asked for, under either name.
    fn spec(&self) -> KeySpec {
        let old = self.customer_master_key_spec.map(KeySpec::from);
        self.key_spec.or(old).unwrap_or(KeySpec::SymmetricDefault)
    }

    /// What it is for, which only symmetric keys need not tell.
    fn usage(&self) -> Result<KeyUsage, KmsError> {
        if self.key_spec.is_some() && self.customer_master_key_spec.is_some() {
            return Err(invalid(
                "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.",
            ));
        }
        let usage = match self.key_usage {
            Some(usage) => usage,
            None if self.spec() == KeySpec::SymmetricDefault => KeyUsage::EncryptDecrypt,
            None => {
                return Err(invalid(
                    "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
                ));
            }
        };
        if !usages(self.spec()).contains(&usage) {
            return Err(invalid(format!("KeyUsage {usage} is not compatible with KeySpec {}", self.spec())));
        }
        Ok(usage)
    }

    /// Refuses kinds that are not served.
    fn material_kind(&self) -> Result<MaterialKind, KmsError> {
        match self.origin.unwrap_or(Origin::AwsKms) {
            Origin::AwsKms | Origin::External
                if self.custom_key_store_id.is_none() && self.xks_key_id.is_none() => {}
            Origin::AwsKms | Origin::External => {
                return Err(unsupported("Custom key stores are not supported."));
            }
            other => return Err(unsupported(format!("Origin {other} is not supported."))),
        }
        material_kind(self.spec(), self.usage()?)
            .ok_or_else(|| unsupported(format!("KeySpec {} is not supported in this Region", self.spec())))
    }
}

impl Perform for DescribeKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let found = call.find(&self.key_id, Aliases::Taken, "kms:DescribeKey")?;
        notes.touched(&found.key);
        let demand = Demand::new("kms:DescribeKey", Resource::Key(found.key));
        Ok(vec![Demand { request_alias: found.alias, ..demand }])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        Answer::of(&KeyMetadataResponse { key_metadata: call.kms.metadata(allowed.key()?) }, 0)
    }
}

impl Perform for ListKeysRequest {
    fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![Demand::new("kms:ListKeys", Resource::Account)])
    }

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        if self.resource_owners.unwrap_or_default().contains(&ResourceOwner::OtherAccountsViaRam) {
            return Err(unsupported("Keys that other accounts share through RAM are not supported."));
        }
        let keys: Vec<Arc<Key>> = call.kms.state.read().realm(call.home()).keys.values().cloned().collect();
        let page = page(keys.iter(), |key| sort_name(key), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        let keys = page.items.into_iter().map(|key| key.entry()).collect();
        Answer::of(&ListKeysResponse { keys, next_marker: page.next_marker, truncated }, 0)
    }
}

/// Orders as the map of keys does.
fn sort_name(key: &Key) -> String {
    let id = key.record.id;
    format!("{}{}", crate::api::hex(&id.bytes), u8::from(id.multi_region))
}

/// A right on a key that is named by id or ARN, without more to say.
pub(super) fn plain_demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    notes: &mut Notes,
) -> Result<Vec<Demand<'a>>, KmsError> {
    let found = call.find(key_id, Aliases::Refused, action)?;
    notes.touched(&found.key);
    Ok(vec![Demand::new(action, Resource::Key(found.key))])
}

impl Perform for EnableKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:EnableKey", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        switch(call, allowed.key()?, KeyState::Enabled)
    }
}

impl Perform for DisableKeyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:DisableKey", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        switch(call, allowed.key()?, KeyState::Disabled)
    }
}

fn switch(call: &Call<'_>, key: &Key, to: KeyState) -> Result<Answer, KmsError> {
    lifecycle::check(Need::Switch, key.record.state, &key.record.arn)?;
    if key.record.state != to {
        call.kms.update_key(turn(call)?, key, |record| record.state = to)?;
    }
    Ok(Answer::empty())
}

impl Perform for UpdateKeyDescriptionRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:UpdateKeyDescription", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        lifecycle::check(Need::Change, key.record.state, &key.record.arn)?;
        call.kms.update_key(turn(call)?, key, |record| record.description = self.description)?;
        Ok(Answer::empty())
    }
}

/// A key that only its service may touch.
pub(super) fn refuse_managed(key: &Key) -> Result<(), KmsError> {
    match key.record.manager {
        KeyManager::Customer => Ok(()),
        KeyManager::Aws => Err(KmsError::new(
            ErrorCode::UnsupportedOperationException,
            format!("{} is managed by its service.", key.record.arn),
        )),
    }
}
