//! PutKeyPolicy, GetKeyPolicy, ListKeyPolicies.

use std::borrow::Cow;

use crate::api::{
    ErrorCode, GetKeyPolicyRequest, GetKeyPolicyResponse, KmsError, ListKeyPoliciesRequest,
    ListKeyPoliciesResponse, PutKeyPolicyRequest,
};

use super::super::authorise::{Allowed, Demand, Resource};
use super::super::decision::decide_under;
use super::super::model::Key;
use super::super::peer::{UNIX_USER, mount_of};
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::super::policy::{MAX_POLICY_BYTES, NamedPrincipal, Policy, PolicyError};
use super::keys::plain_demand;
use super::{Perform, limit_exceeded, turn};

/// The one name a key policy can have.
const NAME: &str = "default";

/// Compiles a key policy that a caller brings. Whom it names must be there.
pub(super) fn compile_key_policy(call: &Call<'_>, text: &str, notes: &mut Notes) -> Result<Policy, KmsError> {
    let policy = parse_key_policy(text)?;
    if let Some(unknown) = policy.named_principals().find(|named| !call.kms.is_principal(*named)) {
        let (NamedPrincipal::Arn(name) | NamedPrincipal::Id(name)) = unknown;
        notes.reason = Some(format!("the policy names {name}, which is not there").into());
        return Err(malformed(PolicyError::Principal(name.to_owned()).to_string()));
    }
    Ok(policy)
}

/// Compiles a key policy, whoever it names.
pub(in super::super) fn parse_key_policy(text: &str) -> Result<Policy, KmsError> {
    if text.len() > MAX_POLICY_BYTES {
        return Err(limit_exceeded(format!("A key policy may have {MAX_POLICY_BYTES} bytes at most.")));
    }
    Policy::of_key(text).map_err(|error| malformed(error.to_string()))
}

impl Kms {
    /// Whether a key policy or a grant may name this principal: it must be there, as far as that can be told. Of an
    /// account without users and roles of its own nothing is known but that of the daemon; Unix users and federated
    /// ones are kept nowhere.
    pub(super) fn is_principal(&self, named: NamedPrincipal<'_>) -> bool {
        if self.settings.takes_unknown_principals {
            return true;
        }
        let state = self.state.read_early();
        match named {
            NamedPrincipal::Id(id) => state.iam.has_id(id),
            NamedPrincipal::Arn(arn) => {
                let mut parts = arn.splitn(6, ':').skip(4);
                let (Some(account), Some(resource)) = (parts.next(), parts.next()) else { return false };
                let is_kept = account == self.settings.account || state.iam.account(account).has_principals();
                !is_kept
                    || resource == "root"
                    || resource.starts_with(UNIX_USER)
                    || resource.starts_with("federated-user/")
                    || mount_of("kmsfs", arn).is_some()
                    || state.iam.identity_of(arn, account).is_some()
            }
        }
    }
}

fn malformed(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::MalformedPolicyDocumentException, message)
}

/// Refuses a policy under which its author could not put another one.
pub(super) fn check_lockout(call: &Call<'_>, key: &Key, policy: &Policy) -> Result<(), KmsError> {
    let demand = Demand::new("kms:PutKeyPolicy", Resource::Account);
    let identity = call.kms.identity_of(call.caller);
    decide_under(&call.asker(identity.as_deref()), &demand, key, policy).map_err(|_| {
        malformed("The new key policy will not allow you to update the key policy in the future.")
    })
}

fn check_policy_name(name: Option<&str>) -> Result<(), KmsError> {
    match name {
        None | Some(NAME) => Ok(()),
        Some(_) => Err(KmsError::new(ErrorCode::NotFoundException, "No such policy exists")),
    }
}

impl Perform for PutKeyPolicyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:PutKeyPolicy", notes)?;
        let bypass = if self.bypass_policy_lockout_safety_check == Some(true) { "true" } else { "false" };
        let fact = ("kms:bypasspolicylockoutsafetycheck", Cow::Borrowed(bypass));
        for demand in &mut demands {
            demand.facts.push(fact.clone());
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        check_policy_name(self.policy_name.as_deref())?;
        let key = allowed.key()?;
        let policy = compile_key_policy(call, &self.policy, notes)?;
        if self.bypass_policy_lockout_safety_check != Some(true) {
            check_lockout(call, key, &policy)?;
        }
        call.kms.update_policy(turn(call)?, key, self.policy, policy)?;
        Ok(Answer::empty())
    }
}

impl Perform for GetKeyPolicyRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:GetKeyPolicy", notes)
    }

    fn perform(self, _: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        check_policy_name(self.policy_name.as_deref())?;
        let policy = allowed.key()?.record.policy.clone();
        Answer::of(&GetKeyPolicyResponse { policy, policy_name: NAME.into() }, 0)
    }
}

impl Perform for ListKeyPoliciesRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:ListKeyPolicies", notes)
    }

    fn perform(self, _: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        Answer::of(&ListKeyPoliciesResponse { policy_names: vec![NAME.into()], truncated: false }, 0)
    }
}
