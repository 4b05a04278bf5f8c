//! GetCallerIdentity, AssumeRole, GetSessionToken, GetAccessKeyInfo.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::{Tag, Timestamp};

use super::super::authorise::{Demand, Resource};
use super::super::decision::{facts, limits, own_allow, own_deny};
use super::super::policy::{Effect, Policy, Reach};
use super::answer::{Node, Secret};
use super::call::IamCall;
use super::directory::Entity;
use super::entities::{check_document, known_policy};
use super::error::IamError;
use super::records::Kind;
use super::session::{Issued, Sealed};

/// Shortest session, in seconds.
const MIN_SECONDS: u32 = 900;
/// Longest session of a role.
const MAX_ROLE_SECONDS: u32 = 43_200;
/// Longest session of a role that another role assumed.
const MAX_CHAINED_SECONDS: u32 = 3600;
/// Longest session of a user.
const MAX_USER_SECONDS: u32 = 129_600;
/// Session of a user where nobody says.
const USER_SECONDS: u32 = 43_200;
/// Longest document of a session.
const MAX_DOCUMENT: usize = 2048;
/// Most managed policies of a session.
const MAX_MANAGED: usize = 10;
/// Most tags of a session.
const MAX_TAGS: usize = 50;

#[allow(clippy::unnecessary_wraps, reason = "every operation has this form")]
pub fn get_caller_identity(call: &IamCall<'_>) -> Result<Node, IamError> {
    let caller = call.caller;
    let user_id = match (&caller.session, &call.identity) {
        (Some(session), _) => session.user_id.clone(),
        (None, Some(identity)) if caller.is_role_session() => {
            let name = caller.principal_arn.rsplit('/').next().unwrap_or_default();
            format!("{}:{name}", identity.id)
        }
        (None, Some(identity)) => identity.id.clone(),
        (None, None) => caller.account.clone(),
    };
    Ok(Node::Map(vec![
        ("Arn", caller.principal_arn.as_str().into()),
        ("UserId", user_id.into()),
        ("Account", caller.account.as_str().into()),
    ]))
}

pub fn get_access_key_info(call: &IamCall<'_>) -> Result<Node, IamError> {
    let id = call.params.need("AccessKeyId")?;
    let known = call.kms.state.read().iam.access_key(id).map(|key| key.account.clone());
    let account =
        known.ok_or_else(|| IamError::validation(format!("The Access Key with id {id} cannot be found")))?;
    Ok(Node::of("Account", account))
}

fn credentials(issued: Issued, expires: i64) -> Node {
    Node::Map(vec![
        ("AccessKeyId", issued.id.into()),
        ("SecretAccessKey", Node::Secret(Secret(issued.secret))),
        ("SessionToken", issued.token.into()),
        ("Expiration", Timestamp::from_millis(expires).into()),
    ])
}

pub fn get_session_token(call: &IamCall<'_>) -> Result<Node, IamError> {
    let caller = call.caller;
    if caller.session.is_some() || caller.is_role_session() {
        return Err(IamError::new("AccessDenied", "Cannot call GetSessionToken with session credentials"));
    }
    let longest = if caller.is_root { MAX_CHAINED_SECONDS } else { MAX_USER_SECONDS };
    let asked = call.params.number("DurationSeconds", MIN_SECONDS, MAX_USER_SECONDS)?;
    let mut sealed = Sealed::new(call.account(), call.now, asked.unwrap_or(USER_SECONDS).min(longest));
    if !caller.is_root {
        let no_user =
            || IamError::new("AccessDenied", "Only IAM users and account roots have session tokens here.");
        let identity = call.identity.as_ref().ok_or_else(no_user)?;
        sealed.user = Some(identity.user_name.clone().ok_or_else(no_user)?);
        sealed.id.clone_from(&identity.id);
    }
    let expires = sealed.expires;
    let issued = call.kms.issue(sealed)?;
    Ok(Node::of("Credentials", credentials(issued, expires)))
}

/// What a caller asks for who assumes a role.
struct Wanted<'a> {
    role_arn: &'a str,
    name: &'a str,
    tags: Vec<Tag>,
    transitive: Vec<&'a str>,
    source_identity: Option<&'a str>,
    seconds: Option<u32>,
}

pub fn assume_role(call: &IamCall<'_>) -> Result<Node, IamError> {
    let wanted = Wanted::read(call)?;
    if call.caller.is_root {
        return Err(IamError::new("AccessDenied", "Roles may not be assumed by root accounts."));
    }
    let denied = |action: &str| {
        let (who, arn) = (&call.caller.principal_arn, wanted.role_arn);
        let message = format!("User: {who} is not authorized to perform: {action} on resource: {arn}");
        IamError::new("AccessDenied", message)
    };
    let role = find_role(call, wanted.role_arn).ok_or_else(|| denied("sts:AssumeRole"))?;
    let mut actions = vec!["sts:AssumeRole"];
    if !wanted.tags.is_empty() {
        actions.push("sts:TagSession");
    }
    if wanted.source_identity.is_some() {
        actions.push("sts:SetSourceIdentity");
    }
    for action in actions {
        if !is_trusted(call, &role, &wanted, action) {
            return Err(denied(action));
        }
    }
    let sealed = wanted.seal(call, &role)?;
    let (expires, id) = (sealed.expires, format!("{}:{}", sealed.id, sealed.name));
    let arn = format!("arn:aws:sts::{}:assumed-role/{}/{}", sealed.account, role.record.name, sealed.name);
    let source_identity = sealed.source_identity.clone();
    let has_policies = !sealed.policies.is_empty() || !sealed.managed.is_empty() || !sealed.tags.is_empty();
    let issued = call.kms.issue(sealed)?;
    let packed = issued.packed;
    let user = Node::Map(vec![("AssumedRoleId", id.into()), ("Arn", arn.into())]);
    let mut members = vec![("Credentials", credentials(issued, expires)), ("AssumedRoleUser", user)];
    if has_policies {
        members.push(("PackedPolicySize", packed.to_string().into()));
    }
    if let Some(source) = source_identity {
        members.push(("SourceIdentity", source.into()));
    }
    Ok(Node::Map(members))
}

fn find_role(call: &IamCall<'_>, arn: &str) -> Option<Arc<Entity>> {
    let (account, name) = (arn.split(':').nth(4)?, arn.rsplit('/').next()?);
    let known = call.kms.state.read().iam.entity(Kind::Role, account, name).cloned();
    known.filter(|role| role.record.arn() == arn)
}

fn checked_text<'a>(
    call: &'a IamCall<'_>,
    member: &str,
    min: usize,
    max: usize,
) -> Result<Option<&'a str>, IamError> {
    let Some(text) = call.params.get(member) else { return Ok(None) };
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b) || (max > 64 && b":/".contains(&b)));
    if plain && (min..=max).contains(&text.len()) {
        return Ok(Some(text));
    }
    let (first, rest) = member.split_at(1);
    Err(IamError::validation(format!(
        "1 validation error detected: Value '{text}' at '{}{rest}' failed to satisfy constraint: Member must satisfy \
         regular expression pattern: [\\w+=,.@-]{{{min},{max}}}",
        first.to_ascii_lowercase()
    )))
}

impl<'a> Wanted<'a> {
    fn read(call: &'a IamCall<'_>) -> Result<Self, IamError> {
        let params = call.params;
        let missing = |member| move || params.need(member).err().unwrap_or_else(|| IamError::invalid(member));
        let name = checked_text(call, "RoleSessionName", 2, 64)?.ok_or_else(missing("RoleSessionName"))?;
        checked_text(call, "ExternalId", 2, 1224)?;
        let own = call.caller.session.as_ref().and_then(|session| session.source_identity.as_deref());
        let source_identity = checked_text(call, "SourceIdentity", 2, 64)?;
        if own.is_some() && source_identity.is_some() && own != source_identity {
            let message = "The source identity of a session cannot be changed.";
            return Err(IamError::new("AccessDenied", message));
        }
        Ok(Self {
            role_arn: params.need("RoleArn")?,
            name,
            tags: params.tags("Tags")?,
            transitive: params.list("TransitiveTagKeys", ""),
            source_identity,
            seconds: params.number("DurationSeconds", MIN_SECONDS, MAX_ROLE_SECONDS)?,
        })
    }

    fn seal(&self, call: &IamCall<'_>, role: &Entity) -> Result<Sealed, IamError> {
        let record = &role.record;
        let is_chained = call.caller.is_role_session();
        let seconds = self.seconds.unwrap_or(MAX_CHAINED_SECONDS);
        if is_chained && seconds > MAX_CHAINED_SECONDS {
            return Err(IamError::validation(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
            ));
        }
        if seconds > record.max_session {
            return Err(IamError::validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        let mut sealed = Sealed::new(&record.account, call.now, seconds);
        sealed.role = Some(record.name.clone());
        sealed.id.clone_from(&record.id);
        self.name.clone_into(&mut sealed.name);
        (sealed.tags, sealed.transitive) = self.all_tags(call)?;
        let inherited = call.caller.session.as_ref().and_then(|session| session.source_identity.clone());
        sealed.source_identity = self.source_identity.map(str::to_owned).or(inherited);
        if let Some(text) = call.params.get("Policy") {
            if text.len() > MAX_DOCUMENT {
                let message = format!("A session policy may have {MAX_DOCUMENT} bytes at most.");
                return Err(IamError::new("PackedPolicyTooLarge", message));
            }
            check_document(text, Policy::of_identity)?;
            sealed.policies.push(text.to_owned());
        }
        let arns = call.params.list("PolicyArns", "arn");
        if arns.len() > MAX_MANAGED {
            return Err(IamError::validation(format!("There may be {MAX_MANAGED} policy ARNs at most.")));
        }
        for arn in arns {
            sealed.managed.push(known_policy(call, arn)?);
        }
        Ok(sealed)
    }

    /// The tags of the session, with those it inherits, and the names of those it hands on.
    fn all_tags(&self, call: &IamCall<'_>) -> Result<(Vec<Tag>, Vec<String>), IamError> {
        let session = call.caller.session.as_deref();
        let handed_on = |tag: &&Tag| {
            session.is_some_and(|s| s.transitive.iter().any(|key| key.eq_ignore_ascii_case(&tag.tag_key)))
        };
        let inherited: Vec<&Tag> =
            session.map_or(&[][..], |session| &session.tags).iter().filter(handed_on).collect();
        let is_inherited = |key: &str| inherited.iter().any(|tag| tag.tag_key.eq_ignore_ascii_case(key));
        if let Some(tag) = self.tags.iter().find(|tag| is_inherited(&tag.tag_key)) {
            let message = format!("The transitive tag {} of the session cannot be changed.", tag.tag_key);
            return Err(IamError::invalid(message));
        }
        for key in &self.transitive {
            if !is_inherited(key) && !self.tags.iter().any(|tag| tag.tag_key.eq_ignore_ascii_case(key)) {
                return Err(IamError::invalid(format!(
                    "The transitive tag key {key} is no tag of the session."
                )));
            }
        }
        let mut transitive: Vec<String> = inherited.iter().map(|tag| tag.tag_key.clone()).collect();
        transitive.extend(self.transitive.iter().filter(|key| !is_inherited(key)).map(ToString::to_string));
        let tags: Vec<Tag> = inherited.into_iter().cloned().chain(self.tags.iter().cloned()).collect();
        if tags.len() > MAX_TAGS {
            return Err(IamError::invalid(format!("There would be more than {MAX_TAGS} tags.")));
        }
        Ok((tags, transitive))
    }
}

/// Whether the role trusts the caller with `action`, and the caller's own policies have their say where they must.
fn is_trusted(call: &IamCall<'_>, role: &Entity, wanted: &Wanted<'_>, action: &str) -> bool {
    let asker = call.asker();
    let mut demand = Demand { request_tags: &wanted.tags, ..Demand::new("sts:*", Resource::Account) };
    let mut fact = |name: &'static str, value: Option<&str>| {
        if let Some(value) = value {
            demand.facts.push((name, Cow::Owned(value.to_owned())));
        }
    };
    fact("sts:externalid", call.params.get("ExternalId"));
    fact("sts:rolesessionname", Some(wanted.name));
    fact("sts:sourceidentity", wanted.source_identity);
    let seconds = wanted.seconds.unwrap_or(MAX_CHAINED_SECONDS).to_string();
    fact("sts:durationseconds", Some(&seconds));
    wanted.transitive.iter().for_each(|key| fact("sts:transitivetagkeys", Some(key)));
    let mut facts = facts(&asker, &demand, None);
    facts.home_account = &role.record.account;
    let (arn, Some(trust)) = (wanted.role_arn, &role.trust) else { return false };
    let denied = trust.policy.find(Effect::Deny, action, arn, &facts).is_some()
        || own_deny(&asker, action, arn, &facts).is_err();
    let reach = trust.policy.reach(Effect::Allow, action, arn, &facts);
    let is_home = call.caller.account == role.record.account;
    !denied
        && match reach {
            Reach::None => false,
            Reach::Direct if is_home => true,
            Reach::Role if is_home => limits(&asker, action, arn, &facts).is_ok(),
            _ => own_allow(&asker, action, arn, &facts).is_ok(),
        }
}
