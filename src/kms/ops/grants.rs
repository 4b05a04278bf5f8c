//! CreateGrant, ListGrants, ListRetirableGrants, RetireGrant, RevokeGrant.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::{
    CreateGrantRequest, CreateGrantResponse, EncryptionContext, ErrorCode, GrantListEntry, GrantOperation,
    KeyUsage, KmsError, ListGrantsRequest, ListGrantsResponse, ListRetirableGrantsRequest,
    RetireGrantRequest, RevokeGrantRequest, hex,
};
use crate::crypto::random_array;

use super::super::authorise::{Allowed, Demand, Records, Resource};
use super::super::caller::root_arn;
use super::super::decision::Basis;
use super::super::find::Aliases;
use super::super::grants::GrantRecord;
use super::super::lifecycle::{self, Need};
use super::super::model::Key;
use super::super::pipeline::{Answer, Call, Kms, Notes};
use super::super::policy::NamedPrincipal;
use super::keys::refuse_managed;
use super::page::{Size, page};
use super::{Perform, dry_run, invalid, limit_exceeded, turn};

/// Most grants of a key.
const MAX_GRANTS: usize = 50_000;
/// Most pairs of a constraint.
const MAX_PAIRS: usize = 8;
/// Most characters of a value in a constraint.
const MAX_VALUE: usize = 384;
/// Digits of a grant's id.
const ID_DIGITS: usize = 64;
const PAGE: Size = Size { default: 50, max: 100 };
/// Whom sealed tokens are bound to.
const TOKEN_OWNER: &str = "grant token";

impl Kms {
    /// A fresh token of a grant.
    fn grant_token(&self, id: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.root.seal_secret(TOKEN_OWNER, id.as_bytes()))
    }

    /// The id of the grant that a token is for.
    fn granted_by(&self, token: &str) -> Result<String, KmsError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        let opened = bytes.and_then(|bytes| self.root.open_secret(TOKEN_OWNER, &bytes).ok());
        let id = opened.and_then(|id| String::from_utf8(id.to_vec()).ok());
        id.ok_or_else(|| KmsError::new(ErrorCode::InvalidGrantTokenException, "Invalid grant token"))
    }

    /// Refuses tokens that are none of ours. A grant counts from the moment it is made, so that a true token adds nothing.
    pub(in super::super) fn check_grant_tokens(&self, tokens: &[String]) -> Result<(), KmsError> {
        tokens.iter().try_for_each(|token| self.granted_by(token).map(|_| ()))
    }

    fn grant(&self, id: &str) -> Option<Arc<GrantRecord>> {
        self.state.read().grants.get(id).cloned()
    }
}

impl Records for Kms {
    fn grant_for(
        &self,
        key_arn: &str,
        principals: &[&str],
        operation: GrantOperation,
        context: Option<&EncryptionContext>,
    ) -> Option<(Arc<GrantRecord>, usize)> {
        let state = self.state.read();
        principals.iter().enumerate().find_map(|(place, principal)| {
            let found = state.grants.find(key_arn, principal, operation, context)?;
            Some((Arc::clone(found), place))
        })
    }
}

/// A right on a key that grants are about.
fn grant_demand<'a>(
    call: &Call<'_>,
    key_id: &'a str,
    action: &'static str,
    notes: &mut Notes,
) -> Result<Demand<'a>, KmsError> {
    let found = call.find(key_id, Aliases::Refused, action)?;
    notes.touched(&found.key);
    let mut demand = Demand::new(action, Resource::Key(found.key));
    let for_service = if call.caller.via_service.is_some() { "true" } else { "false" };
    demand.facts.push(("kms:grantisforawsresource", Cow::Borrowed(for_service)));
    Ok(demand)
}

impl Perform for CreateGrantRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demand = grant_demand(call, &self.key_id, "kms:CreateGrant", notes)?;
        let facts = &mut demand.facts;
        for operation in &self.operations {
            facts.push(("kms:grantoperations", Cow::Borrowed(operation.as_str())));
        }
        let owned = |text: &String| Cow::Owned(text.clone());
        if let Some(grantee) = self.grantee_principal.as_ref().or(self.grantee_service_principal.as_ref()) {
            facts.push(("kms:granteeprincipal", owned(grantee)));
        }
        if let Some(retiring) = self.retiring_principal.as_ref().or(self.retiring_service_principal.as_ref())
        {
            facts.push(("kms:retiringprincipal", owned(retiring)));
        }
        if let Some(constraints) = &self.constraints {
            // A subset of no pairs constrains nothing, and pleases no policy that wants a constraint.
            let by_subset = constraints.encryption_context_subset.as_ref().is_some_and(has_pairs);
            if by_subset {
                facts.push(("kms:grantconstrainttype", Cow::Borrowed("EncryptionContextSubset")));
            }
            if constraints
                .encryption_context_equals
                .as_ref()
                .is_some_and(|pairs| has_pairs(pairs) || !by_subset)
            {
                facts.push(("kms:grantconstrainttype", Cow::Borrowed("EncryptionContextEquals")));
            }
        }
        Ok(vec![demand])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let (kms, key) = (call.kms, allowed.key()?);
        let is_dry = self.dry_run == Some(true);
        let record = self.into_record(call, key)?;
        refuse_managed_grant(call, key)?;
        lifecycle::check(Need::Use, key.record.state, &key.record.arn)?;
        if let Some(Basis::Grant(parent)) = allowed.bases().first() {
            check_narrower(kms, parent, &record)?;
        }
        if is_dry {
            return Err(dry_run());
        }
        let twin = kms.state.read().grants.twin(&record).map(|grant| grant.id.clone());
        let grant_id = if let Some(id) = twin {
            id
        } else {
            if kms.state.read().grants.count(&key.record.arn) >= MAX_GRANTS {
                return Err(limit_exceeded(format!("The key has {MAX_GRANTS} grants already.")));
            }
            let id = record.id.clone();
            kms.put_grant(turn(call)?, record)?;
            id
        };
        let grant_token = kms.grant_token(&grant_id);
        Answer::of(&CreateGrantResponse { grant_token, grant_id }, 0)
    }
}

impl CreateGrantRequest {
    fn into_record(self, call: &Call<'_>, key: &Key) -> Result<GrantRecord, KmsError> {
        let (grantee, grantee_is_service) = match (self.grantee_principal, self.grantee_service_principal) {
            (Some(principal), None) => (present_principal(call, principal)?, false),
            (None, Some(service)) => (service, true),
            (Some(_), Some(_)) => {
                return Err(invalid("GranteePrincipal and GranteeServicePrincipal exclude each other."));
            }
            (None, None) => return Err(invalid("GranteePrincipal or GranteeServicePrincipal is required.")),
        };
        let (retiring, retiring_is_service) = match (self.retiring_principal, self.retiring_service_principal)
        {
            (Some(_), Some(_)) => {
                return Err(invalid("RetiringPrincipal and RetiringServicePrincipal exclude each other."));
            }
            (None, Some(service)) => (Some(service), true),
            (principal, None) => {
                (principal.map(|principal| present_principal(call, principal)).transpose()?, false)
            }
        };
        let mut operations = Vec::with_capacity(self.operations.len());
        for operation in self.operations {
            check_suits(key, operation)?;
            if !operations.contains(&operation) {
                operations.push(operation);
            }
        }
        if operations.is_empty() {
            return Err(invalid("Operations must name an operation at least."));
        }
        let (subset, equals, source_arn) = self.constraints.map_or((None, None, None), |constraints| {
            let GrantConstraintsParts { subset, equals, source_arn } = constraints.into();
            (subset, equals, source_arn)
        });
        check_constraints(key, subset.as_ref(), equals.as_ref())?;
        if source_arn.is_some() && !grantee_is_service {
            return Err(invalid("SourceArn constrains grants of service principals only."));
        }
        Ok(GrantRecord {
            id: hex(&random_array::<{ ID_DIGITS / 2 }>()),
            key: key.record.arn.clone(),
            name: self.name,
            created: call.now,
            grantee,
            grantee_is_service,
            retiring,
            retiring_is_service,
            issuer: root_arn(&call.caller.account),
            operations,
            subset,
            equals,
            source_arn,
        })
    }
}

struct GrantConstraintsParts {
    subset: Option<EncryptionContext>,
    equals: Option<EncryptionContext>,
    source_arn: Option<String>,
}

fn has_pairs(context: &EncryptionContext) -> bool {
    context.iter().next().is_some()
}

impl From<crate::api::GrantConstraints> for GrantConstraintsParts {
    fn from(from: crate::api::GrantConstraints) -> Self {
        // Clients send the one that is not set as no pairs. No pairs alone mean what they say: no context at all.
        let by_subset = from.encryption_context_subset.as_ref().is_some_and(has_pairs);
        let by_equals = from.encryption_context_equals.as_ref().is_some_and(has_pairs);
        Self {
            subset: from.encryption_context_subset.filter(|_| by_subset || !by_equals),
            equals: from.encryption_context_equals.filter(|_| by_equals || !by_subset),
            source_arn: from.source_arn,
        }
    }
}

/// The ARN of a principal that can be named by a grant.
fn checked_principal(text: String) -> Result<String, KmsError> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let is_principal = match parts[..] {
        ["arn", "aws", service, "", account, resource] => {
            let named = |kind: &str| resource.strip_prefix(kind).is_some_and(|name| !name.is_empty());
            let known = match service {
                "iam" => resource == "root" || named("user/") || named("role/"),
                "sts" => named("assumed-role/") || named("federated-user/"),
                _ => false,
            };
            known && account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit())
        }
        _ => false,
    };
    if is_principal { Ok(text) } else { Err(no_principal(&text)) }
}

/// The same of one that is there.
fn present_principal(call: &Call<'_>, text: String) -> Result<String, KmsError> {
    let arn = checked_principal(text)?;
    if call.kms.is_principal(NamedPrincipal::Arn(&arn)) { Ok(arn) } else { Err(no_principal(&arn)) }
}

fn no_principal(text: &str) -> KmsError {
    let message = format!("ARN does not refer to a valid principal: {text}");
    KmsError::new(ErrorCode::InvalidArnException, message)
}

/// Grants may allow only what the key can do.
fn check_suits(key: &Key, operation: GrantOperation) -> Result<(), KmsError> {
    use GrantOperation as O;
    let usage = key.record.usage;
    let is_symmetric = key.record.spec == crate::api::KeySpec::SymmetricDefault;
    let suits = match operation {
        O::CreateGrant | O::RetireGrant | O::DescribeKey => true,
        O::Encrypt | O::Decrypt | O::ReEncryptFrom | O::ReEncryptTo => usage == KeyUsage::EncryptDecrypt,
        O::GenerateDataKey
        | O::GenerateDataKeyWithoutPlaintext
        | O::GenerateDataKeyPair
        | O::GenerateDataKeyPairWithoutPlaintext => is_symmetric,
        O::Sign | O::Verify => usage == KeyUsage::SignVerify,
        O::GenerateMac | O::VerifyMac => usage == KeyUsage::GenerateVerifyMac,
        O::DeriveSharedSecret => usage == KeyUsage::KeyAgreement,
        O::Encapsulate | O::Decapsulate => usage == KeyUsage::EncapsulateDecapsulate,
        O::GetPublicKey => !is_symmetric && usage != KeyUsage::GenerateVerifyMac,
    };
    if suits {
        return Ok(());
    }
    let (spec, usage) = (key.record.spec, key.record.usage);
    Err(invalid(format!(
        "The operation {operation} is not valid for a key of spec {spec} and usage {usage}."
    )))
}

fn check_constraints(
    key: &Key,
    subset: Option<&EncryptionContext>,
    equals: Option<&EncryptionContext>,
) -> Result<(), KmsError> {
    if subset.is_some() && equals.is_some() {
        return Err(invalid("EncryptionContextSubset and EncryptionContextEquals exclude each other."));
    }
    let Some(pairs) = subset.or(equals) else { return Ok(()) };
    if key.record.spec != crate::api::KeySpec::SymmetricDefault {
        return Err(invalid("Encryption context constraints are for symmetric encryption keys only."));
    }
    if pairs.iter().count() > MAX_PAIRS {
        return Err(invalid(format!("A constraint may hold {MAX_PAIRS} pairs at most.")));
    }
    if pairs.iter().any(|(_, value)| value.chars().count() > MAX_VALUE) {
        return Err(invalid(format!("A value of a constraint may have {MAX_VALUE} characters at most.")));
    }
    Ok(())
}

/// Under a grant one can hand on what it allows and no more. Any grant that lets the grantee make grants will do.
fn check_narrower(kms: &Kms, parent: &GrantRecord, child: &GrantRecord) -> Result<(), KmsError> {
    let state = kms.state.read();
    let covers =
        |grant: &GrantRecord| grant.covers(&child.operations, child.subset.as_ref(), child.equals.as_ref());
    if covers(parent) || state.grants.parents(&parent.key, &parent.grantee).any(|grant| covers(grant)) {
        return Ok(());
    }
    let message = format!(
        "The grant {} allows grants on {} with no more operations and no weaker constraints than its own.",
        parent.id, parent.key
    );
    Err(KmsError::new(ErrorCode::AccessDeniedException, message))
}

/// On keys that a service manages only the service makes grants.
fn refuse_managed_grant(call: &Call<'_>, key: &Key) -> Result<(), KmsError> {
    if call.caller.via_service.is_some() { Ok(()) } else { refuse_managed(key) }
}

impl Perform for ListGrantsRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![grant_demand(call, &self.key_id, "kms:ListGrants", notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        if let Some(id) = &self.grant_id {
            check_id(id)?;
        }
        let state = call.kms.state.read();
        let wanted = |grant: &&Arc<GrantRecord>| {
            let of = |text: &String, service| grant.grantee == *text && grant.grantee_is_service == service;
            self.grant_id.as_ref().is_none_or(|id| grant.id == *id)
                && self.grantee_principal.as_ref().is_none_or(|text| of(text, false))
                && self.grantee_service_principal.as_ref().is_none_or(|text| of(text, true))
        };
        let grants = state.grants.of_key(&key.record.arn).filter(wanted);
        list(grants, self.limit, self.marker.as_deref())
    }
}

impl Perform for ListRetirableGrantsRequest {
    fn demands<'a>(&'a self, _: &Call<'_>, _: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![Demand::new("kms:ListRetirableGrants", Resource::Account)])
    }

    fn perform(self, call: &Call<'_>, _: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let (principal, is_service) = match (self.retiring_principal, self.retiring_service_principal) {
            (Some(principal), None) => (checked_principal(principal)?, false),
            (None, Some(service)) => (service, true),
            _ => return Err(invalid("Either RetiringPrincipal or RetiringServicePrincipal is required.")),
        };
        let home = call.home();
        let prefix = home.key_arn(&"");
        let state = call.kms.state.read();
        let here = |grant: &&Arc<GrantRecord>| {
            grant.retiring_is_service == is_service && grant.key.starts_with(&prefix)
        };
        list(state.grants.retirable(&principal).filter(here), self.limit, self.marker.as_deref())
    }
}

fn list<'a>(
    grants: impl Iterator<Item = &'a Arc<GrantRecord>>,
    limit: Option<i64>,
    marker: Option<&str>,
) -> Result<Answer, KmsError> {
    let page = page(grants, |grant| grant.id.clone(), PAGE, limit, marker)?;
    let truncated = page.truncated();
    let grants: Vec<GrantListEntry> = page.items.into_iter().map(|grant| grant.entry()).collect();
    Answer::of(&ListGrantsResponse { grants, next_marker: page.next_marker, truncated }, 0)
}

fn check_id(id: &str) -> Result<(), KmsError> {
    if id.len() == ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(KmsError::new(ErrorCode::InvalidGrantIdException, format!("Invalid grant ID '{id}'")))
}

fn no_grant(id: &str) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, format!("Grant ID {id} not found"))
}

/// The grant of that id on that key.
fn find_grant(call: &Call<'_>, key: &Key, id: &str) -> Result<Arc<GrantRecord>, KmsError> {
    check_id(id)?;
    let grant = call.kms.grant(id).filter(|grant| grant.key == key.record.arn);
    grant.ok_or_else(|| no_grant(id))
}

impl Perform for RevokeGrantRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        Ok(vec![grant_demand(call, &self.key_id, "kms:RevokeGrant", notes)?])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let grant = find_grant(call, allowed.key()?, &self.grant_id)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        call.kms.remove_grant(turn(call)?, &grant.id)?;
        Ok(Answer::empty())
    }
}

impl Perform for RetireGrantRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let grant = match (&self.grant_token, &self.key_id, &self.grant_id) {
            (Some(token), None, None) => {
                let id = call.kms.granted_by(token)?;
                call.kms.grant(&id).ok_or_else(|| no_grant(&id))?
            }
            (None, Some(key), Some(id)) => {
                let found = call.find(key, Aliases::Refused, "kms:RetireGrant")?;
                find_grant(call, &found.key, id)?
            }
            (None, _, _) => return Err(invalid("Grant token OR (grant ID, key ID) must be specified")),
            (Some(_), _, _) => {
                return Err(invalid("Grant token and grant ID with key ID exclude each other"));
            }
        };
        let found = call.find(&grant.key, Aliases::Refused, "kms:RetireGrant")?;
        notes.touched(&found.key);
        Ok(vec![Demand::new("kms:RetireGrant", Resource::Grant(found.key, grant))])
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let Some(Basis::NamedByGrant(grant)) = allowed.bases().first() else {
            return Err(KmsError::new(ErrorCode::KMSInternalException, "no grant was demanded"));
        };
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        call.kms.remove_grant(turn(call)?, &grant.id)?;
        Ok(Answer::empty())
    }
}
