//! Users and their policies: the identities that key policies delegate to.

use std::sync::Arc;

use crate::api::{
    CreateUserRequest, DeleteUserPolicyRequest, DeleteUserRequest, ErrorCode, GetUserPolicyRequest,
    GetUserPolicyResponse, KmsError, ListUserPoliciesRequest, ListUserPoliciesResponse, ListUsersRequest,
    ListUsersResponse, Operation, PutUserPolicyRequest, UserEntry, UserResponse,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::caller::user_arn;
use super::super::iam::{Entity, EntityRecord, Kind, NamedPolicy};
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::super::policy::{MAX_POLICY_BYTES, Policy};
use super::page::{Size, page};
use super::{Perform, limit_exceeded, turn};

/// Most users of a daemon.
const MAX_USERS: usize = 10_000;
/// Most policies of a user.
const MAX_POLICIES: usize = 20;
const PAGE: Size = Size { default: 100, max: 1000 };

/// The right to administer the daemon.
pub(super) fn admin_demand<'a>(operation: Operation) -> Vec<Demand<'a>> {
    vec![Demand::new(operation.action(), Resource::Daemon)]
}

/// The user, if there is one.
pub(super) fn find_user(kms: &Kms, name: &str) -> Result<Arc<Entity>, KmsError> {
    let known = kms.state.read().iam.entity(Kind::User, &kms.settings.account, name).cloned();
    known.ok_or_else(|| no_such("user", name))
}

pub(super) fn no_such(what: &str, name: &str) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, format!("The {what} with name {name} cannot be found."))
}

pub(super) fn conflict(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::ConflictException, message)
}

fn entry(kms: &Kms, record: &EntityRecord) -> UserEntry {
    UserEntry {
        user_name: record.name.clone(),
        arn: user_arn(&kms.settings.account, &record.name),
        create_date: record.created,
    }
}

macro_rules! administers {
    () => {
        fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
            Ok(super::users::admin_demand(<Self as crate::api::Request>::OPERATION))
        }
    };
}
pub(super) use administers;

impl Perform for CreateUserRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let kms = call.kms;
        if kms.state.read().iam.entity(Kind::User, &kms.settings.account, &self.user_name).is_some() {
            let message = format!("User with name {} already exists.", self.user_name);
            return Err(KmsError::new(ErrorCode::AlreadyExistsException, message));
        }
        if kms.state.read().iam.account(&kms.settings.account).all(Kind::User).len() >= MAX_USERS {
            return Err(limit_exceeded(format!("There are {MAX_USERS} users already.")));
        }
        let record = EntityRecord::new(Kind::User, &kms.settings.account, &self.user_name, call.now);
        let user = entry(kms, &record);
        kms.put_entity(turn(call)?, record)?;
        Answer::of(&UserResponse { user }, 0)
    }
}

impl Perform for DeleteUserRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let kms = call.kms;
        let user = find_user(kms, &self.user_name)?;
        if !user.record.policies.is_empty() {
            return Err(conflict("Cannot delete entity, must delete policies first."));
        }
        if kms.state.read().iam.access_keys_of(&kms.settings.account, Some(&self.user_name)).next().is_some()
        {
            return Err(conflict("Cannot delete entity, must delete access keys first."));
        }
        kms.remove_entity(turn(call)?, &user.record)?;
        Ok(Answer::empty())
    }
}

impl Perform for ListUsersRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let users: Vec<_> = call
            .kms
            .state
            .read()
            .iam
            .account(&call.kms.settings.account)
            .all(Kind::User)
            .values()
            .cloned()
            .collect();
        let page =
            page(users.iter(), |user| user.record.name.clone(), PAGE, self.limit, self.marker.as_deref())?;
        let truncated = page.truncated();
        let users = page.items.into_iter().map(|user| entry(call.kms, &user.record)).collect();
        Answer::of(&ListUsersResponse { users, next_marker: page.next_marker, truncated }, 0)
    }
}

impl Perform for PutUserPolicyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let user = find_user(call.kms, &self.user_name)?;
        if self.policy_document.len() > MAX_POLICY_BYTES {
            return Err(limit_exceeded(format!("A policy may have {MAX_POLICY_BYTES} bytes at most.")));
        }
        Policy::of_identity(&self.policy_document)
            .map_err(|error| KmsError::new(ErrorCode::MalformedPolicyDocumentException, error.to_string()))?;
        let mut record = user.record.clone();
        record.policies.retain(|policy| policy.name != self.policy_name);
        if record.policies.len() >= MAX_POLICIES {
            return Err(limit_exceeded(format!("A user may have {MAX_POLICIES} policies at most.")));
        }
        record.policies.push(NamedPolicy { name: self.policy_name, document: self.policy_document });
        call.kms.put_entity(turn(call)?, record)?;
        Ok(Answer::empty())
    }
}

impl Perform for GetUserPolicyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let user = find_user(call.kms, &self.user_name)?;
        let known = user.record.policies.iter().find(|policy| policy.name == self.policy_name);
        let policy_document =
            known.ok_or_else(|| no_such("user policy", &self.policy_name))?.document.clone();
        let (user_name, policy_name) = (self.user_name, self.policy_name);
        Answer::of(&GetUserPolicyResponse { user_name, policy_name, policy_document }, 0)
    }
}

impl Perform for DeleteUserPolicyRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let user = find_user(call.kms, &self.user_name)?;
        let mut record = user.record.clone();
        record.policies.retain(|policy| policy.name != self.policy_name);
        if record.policies.len() == user.record.policies.len() {
            return Err(no_such("user policy", &self.policy_name));
        }
        call.kms.put_entity(turn(call)?, record)?;
        Ok(Answer::empty())
    }
}

impl Perform for ListUserPoliciesRequest {
    administers!();

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let user = find_user(call.kms, &self.user_name)?;
        let policy_names = user.record.policies.iter().map(|policy| policy.name.clone()).collect();
        Answer::of(&ListUserPoliciesResponse { policy_names }, 0)
    }
}
