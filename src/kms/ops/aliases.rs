//! CreateAlias, UpdateAlias, DeleteAlias, ListAliases.

use std::sync::Arc;

use crate::api::{
    AliasListEntry, CreateAliasRequest, DeleteAliasRequest, ErrorCode, KeyRef, KeySpec, KmsError,
    ListAliasesRequest, ListAliasesResponse, UpdateAliasRequest,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::find::Aliases;
use super::super::home::Home;
use super::super::kinds::is_pair;
use super::super::lifecycle::{self, Need};
use super::super::model::{AliasRecord, Key};
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::keys::refuse_managed;
use super::page::{Size, page};
use super::{Perform, invalid, limit_exceeded, turn};

/// Most aliases of a key.
const MAX_ALIASES: usize = 50;
const PREFIX: &str = "alias/";
/// Aliases of keys that a service manages.
const RESERVED: &str = "alias/aws/";
const PAGE: Size = Size { default: 50, max: 100 };

/// Refuses names that are no alias names, and those that belong to services.
pub(in super::super) fn check_name(name: &str) -> Result<(), KmsError> {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Err(invalid(
            "Alias must start with the prefix \"alias/\". Please see \
             https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html",
        ));
    };
    if name.starts_with(RESERVED) || rest == "aws" {
        return Err(KmsError::new(ErrorCode::NotAuthorizedException, ""));
    }
    if rest.is_empty() {
        return Err(KmsError::new(ErrorCode::InvalidAliasNameException, "Invalid alias name"));
    }
    if rest.contains(':') {
        return Err(invalid(format!("{name} contains invalid characters for an alias")));
    }
    Ok(())
}

/// The key an alias shall point to, which must be named by id or ARN.
fn find_target(
    call: &Call<'_>,
    text: &str,
    action: &'static str,
    notes: &mut Notes,
) -> Result<Arc<Key>, KmsError> {
    if matches!(KeyRef::parse(text), Ok(KeyRef::Alias(_) | KeyRef::Arn(_, crate::api::ArnResource::Alias(_))))
    {
        return Err(invalid("Aliases must refer to keys. Not aliases"));
    }
    let found = call.find(text, Aliases::Refused, action)?;
    notes.touched(&found.key);
    Ok(found.key)
}

impl Kms {
    fn alias(&self, home: Home<'_>, name: &str) -> Result<Arc<AliasRecord>, KmsError> {
        let known = self.state.read().realm(home).aliases.get(name).cloned();
        known.ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!("Alias {} is not found.", home.alias_arn(name)),
            )
        })
    }
}

impl Perform for CreateAliasRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        check_name(&self.alias_name)?;
        let key = find_target(call, &self.target_key_id, "kms:CreateAlias", notes)?;
        let alias = Resource::Alias(call.home().alias_arn(&self.alias_name));
        Ok(vec![Demand::new("kms:CreateAlias", Resource::Key(key)), Demand::new("kms:CreateAlias", alias)])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let (kms, key) = (call.kms, allowed.key()?);
        if kms.state.read().realm(call.home()).aliases.contains_key(&self.alias_name) {
            let message =
                format!("An alias with the name {} already exists", call.home().alias_arn(&self.alias_name));
            return Err(KmsError::new(ErrorCode::AlreadyExistsException, message));
        }
        refuse_managed(key)?;
        lifecycle::check(Need::Change, key.record.state, &key.record.arn)?;
        check_room(kms, key)?;
        let alias = AliasRecord::new(call.home(), self.alias_name, key.record.id, call.now);
        kms.put_alias(turn(call)?, alias)?;
        Ok(Answer::empty())
    }
}

fn check_room(kms: &Kms, key: &Key) -> Result<(), KmsError> {
    if kms.aliases_of(key.record.home(), key.record.id).len() >= MAX_ALIASES {
        return Err(limit_exceeded(format!("A key may have {MAX_ALIASES} aliases at most.")));
    }
    Ok(())
}

/// What an alias stays with: symmetric keys, HMAC keys or key pairs, of whatever spec.
fn family(key: &Key) -> (bool, bool) {
    (key.record.spec == KeySpec::SymmetricDefault, is_pair(key.record.spec))
}

impl Perform for UpdateAliasRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        check_name(&self.alias_name)?;
        let old = call.kms.alias(call.home(), &self.alias_name)?;
        let new = find_target(call, &self.target_key_id, "kms:UpdateAlias", notes)?;
        let mut demands = vec![Demand::new("kms:UpdateAlias", Resource::Key(new))];
        if let Some(old) = call.kms.key(call.home(), old.target) {
            notes.touched(&old);
            demands.push(Demand::new("kms:UpdateAlias", Resource::Key(old)));
        }
        let alias = Resource::Alias(call.home().alias_arn(&self.alias_name));
        demands.push(Demand::new("kms:UpdateAlias", alias));
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let (kms, key) = (call.kms, allowed.key()?);
        let alias = kms.alias(call.home(), &self.alias_name)?;
        refuse_managed(key)?;
        lifecycle::check(Need::Change, key.record.state, &key.record.arn)?;
        if let Ok(old) = allowed.nth_key(1)
            && (family(old), old.record.usage) != (family(key), key.record.usage)
        {
            let message =
                format!("Alias {} cannot be changed to a key of another type or usage.", self.alias_name);
            return Err(invalid(message));
        }
        if alias.target != key.record.id {
            check_room(kms, key)?;
            let next = AliasRecord { target: key.record.id, updated: call.now, ..(*alias).clone() };
            kms.put_alias(turn(call)?, next)?;
        }
        Ok(Answer::empty())
    }
}

impl Perform for DeleteAliasRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        check_name(&self.alias_name)?;
        let alias = call.kms.alias(call.home(), &self.alias_name)?;
        let mut demands = Vec::new();
        if let Some(key) = call.kms.key(call.home(), alias.target) {
            notes.touched(&key);
            demands.push(Demand::new("kms:DeleteAlias", Resource::Key(key)));
        }
        demands
            .push(Demand::new("kms:DeleteAlias", Resource::Alias(call.home().alias_arn(&self.alias_name))));
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let alias = call.kms.alias(call.home(), &self.alias_name)?;
        call.kms.remove_alias(turn(call)?, &alias)?;
        Ok(Answer::empty())
    }
}

impl Perform for ListAliasesRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        if let Some(key_id) = &self.key_id {
            let found = call.find(key_id, Aliases::Refused, "kms:ListAliases")?;
            notes.touched(&found.key);
        }
        Ok(vec![Demand::new("kms:ListAliases", Resource::Account)])
    }

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let of_key = match &self.key_id {
            Some(key_id) => Some(call.find(key_id, Aliases::Refused, "kms:ListAliases")?.key.record.id),
            None => None,
        };
        let aliases: Vec<_> = call.kms.state.read().realm(call.home()).aliases.values().cloned().collect();
        let wanted = aliases.iter().filter(|alias| of_key.is_none_or(|id| alias.target == id));
        let page = page(wanted, |alias| alias.name.clone(), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        let aliases = page.items.into_iter().map(|alias| entry(alias)).collect();
        Answer::of(&ListAliasesResponse { aliases, next_marker: page.next_marker, truncated }, 0)
    }
}

fn entry(alias: &AliasRecord) -> AliasListEntry {
    AliasListEntry {
        alias_name: alias.name.clone(),
        alias_arn: alias.home().alias_arn(&alias.name),
        target_key_id: Some(alias.target.to_string()),
        creation_date: Some(alias.created),
        last_updated_date: Some(alias.updated),
    }
}
