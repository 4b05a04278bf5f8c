//! The gate: the only maker of [`Allowed`], which every operation demands.
//!
//! Called by the pipeline once per call, with everything the call needs a right for. What decides is in `decision`.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{EncryptionContext, ErrorCode, GrantOperation, KmsError, Tag, Timestamp};

use super::caller::Caller;
use super::decision::{Basis, Denial, access_denied, decide};
use super::grants::GrantRecord;
use super::iam::Identity;
use super::model::Key;
use super::policy::AliasNames;

/// What a right is asked on.
#[derive(Debug, Clone)]
pub enum Resource {
    /// A key; its policy decides with the caller's own.
    Key(Arc<Key>),
    /// The end of a grant on a key; the grant itself says who may.
    Grant(Arc<Key>, Arc<GrantRecord>),
    /// An alias, by ARN; the caller's own policies decide.
    Alias(String),
    /// No key in particular; the caller's own policies decide.
    Account,
    /// The daemon itself; the account root over the Unix socket only.
    Daemon,
}

/// One right that a call needs.
#[derive(Debug)]
pub struct Demand<'a> {
    /// `kms:NAME`.
    pub action: &'static str,
    /// On what.
    pub resource: Resource,
    /// The encryption context of the request.
    pub context: Option<&'a EncryptionContext>,
    /// The alias by which the request named the key.
    pub request_alias: Option<&'a str>,
    /// Tags that the request brings.
    pub request_tags: &'a [Tag],
    /// Names of tags that the request removes.
    pub removed_tags: &'a [String],
    /// Further facts for conditions, by the lower-case name of their key.
    pub facts: Vec<(&'static str, Cow<'static, str>)>,
}

impl Demand<'_> {
    /// A right on `resource` and nothing more to say.
    pub fn new(action: &'static str, resource: Resource) -> Self {
        Self {
            action,
            resource,
            context: None,
            request_alias: None,
            request_tags: &[],
            removed_tags: &[],
            facts: Vec::new(),
        }
    }
}

/// Proof that the caller may do what it asked for. Made here only; holds the keys it is good for.
#[derive(Debug)]
pub struct Allowed {
    keys: Vec<Arc<Key>>,
    bases: Vec<Basis>,
}

impl Allowed {
    /// The key the call may use; of several, the one demanded first.
    pub fn key(&self) -> Result<&Arc<Key>, KmsError> {
        self.nth_key(0)
    }

    /// What allowed each right, in the order of the demands.
    pub fn bases(&self) -> &[Basis] {
        &self.bases
    }

    /// The key demanded in that place.
    pub fn nth_key(&self, place: usize) -> Result<&Arc<Key>, KmsError> {
        self.keys
            .get(place)
            .ok_or_else(|| KmsError::new(ErrorCode::KMSInternalException, "no key was demanded"))
    }
}

/// Where a decision looks up what is not in the policies.
pub trait Records: AliasNames {
    /// A grant on the key to one of `principals` that allows `operation` in this context, and its place among them.
    fn grant_for(
        &self,
        key_arn: &str,
        principals: &[&str],
        operation: GrantOperation,
        context: Option<&EncryptionContext>,
    ) -> Option<(Arc<GrantRecord>, usize)>;
}

/// Who asks, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// The user or role the caller acts as, if there is one.
    pub identity: Option<&'a Identity>,
    /// When.
    pub now: Timestamp,
    /// The account of the daemon's operator.
    pub operator: &'a str,
    /// Where aliases and grants are found.
    pub records: &'a dyn Records,
}

/// A demand that was not granted.
#[derive(Debug)]
pub struct Denied {
    /// Which one, in the order of the demands.
    pub place: usize,
    /// What is to be said.
    pub error: KmsError,
    /// What decided.
    pub denial: Denial,
}

/// Holds all demands of a call against the policies and grants.
pub fn authorise(asker: &Asker<'_>, demands: &[Demand<'_>]) -> Result<Allowed, Denied> {
    let mut allowed =
        Allowed { keys: Vec::with_capacity(demands.len()), bases: Vec::with_capacity(demands.len()) };
    for (place, demand) in demands.iter().enumerate() {
        let basis = decide(asker, demand).map_err(|denial| {
            let resource = demand.resource.arn();
            let error = access_denied(asker.caller, demand.action, resource, denial.refusal);
            Denied { place, error, denial }
        })?;
        allowed.bases.push(basis);
        if let Resource::Key(key) = &demand.resource {
            allowed.keys.push(Arc::clone(key));
        }
    }
    Ok(allowed)
}

impl Resource {
    /// As policies and messages name it.
    pub fn arn(&self) -> &str {
        match self {
            Self::Key(key) | Self::Grant(key, _) => &key.record.arn,
            Self::Alias(arn) => arn,
            Self::Account | Self::Daemon => "*",
        }
    }
}
