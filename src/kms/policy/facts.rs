//! What conditions can ask about: the facts of a call, and the names of condition keys.
//!
//! Facts are gathered by `authorise`; names are compiled by `condition`. A name that is not known is refused when
//! the policy is written: a Deny that hangs on it would never apply.

use std::borrow::Cow;

use crate::api::{EncryptionContext, KeyId, Tag, Timestamp};

use super::super::home::Home;

/// What is known of a call when a policy is evaluated.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The principal.
    pub principal_arn: &'a str,
    /// Its account.
    pub account: &'a str,
    /// Its user name; none for the account root.
    pub user_name: Option<&'a str>,
    /// Whether it is the account root.
    pub is_root: bool,
    /// The service that asks for it.
    pub via_service: Option<&'a str>,
    /// Whether nobody can listen in.
    pub secure_transport: bool,
    /// The address of a TCP peer.
    pub source_ip: Option<std::net::IpAddr>,
    /// What the caller's program calls itself.
    pub user_agent: &'a str,
    /// The region asked in.
    pub region: &'a str,
    /// The account that owns the resource.
    pub home_account: &'a str,
    /// The time.
    pub now: Timestamp,
    /// The encryption context of the request.
    pub context: Option<&'a EncryptionContext>,
    /// The alias by which the request named the key.
    pub request_alias: Option<&'a str>,
    /// Facts of the key: spec, usage, origin.
    pub key: Option<KeyFacts<'a>>,
    /// Tags that the request brings.
    pub request_tags: &'a [Tag],
    /// Names of tags that the request removes.
    pub removed_tags: &'a [String],
    /// Further facts of the request, by the lower-case name of their condition key.
    pub request: &'a [(&'static str, Cow<'static, str>)],
}

/// What conditions can ask of a key.
#[derive(Debug, Clone, Copy)]
pub struct KeyFacts<'a> {
    /// Its id.
    pub id: KeyId,
    /// Where it lives.
    pub home: Home<'a>,
    /// `KeySpec`.
    pub spec: &'a str,
    /// `KeyUsage`.
    pub usage: &'a str,
    /// `Origin`.
    pub origin: &'a str,
    /// Tags.
    pub tags: &'a [Tag],
    /// Where its aliases are found, if a condition asks.
    pub aliases: &'a dyn AliasNames,
}

/// Facts that only some requests have, by the lower-case name of their condition key. Those of operations that are
/// not served (grants, imports, signatures) are known and absent, as they are from every other call to AWS too.
const OF_REQUESTS: &[&str] = &[
    "kms:bypasspolicylockoutsafetycheck",
    "kms:datakeypairspec",
    "kms:encryptionalgorithm",
    "kms:expirationmodel",
    "kms:grantconstrainttype",
    "kms:granteeprincipal",
    "kms:grantisforawsresource",
    "kms:grantoperations",
    "kms:keyagreementalgorithm",
    "kms:macalgorithm",
    "kms:messagetype",
    "kms:primaryregion",
    "kms:reencryptonsamekey",
    "kms:replicaregion",
    "kms:retiringprincipal",
    "kms:rotationperiodindays",
    "kms:schedulekeydeletionpendingwindowindays",
    "kms:signingalgorithm",
    "kms:validto",
    "kms:wrappingalgorithm",
    "kms:wrappingkeyspec",
];

/// A condition key, told apart when the policy is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    PrincipalArn,
    CallerAccount,
    PrincipalType,
    PrincipalIsService,
    User,
    UserId,
    ViaService,
    ViaAnyService,
    SecureTransport,
    SourceIp,
    UserAgent,
    RequestedRegion,
    ResourceAccount,
    EpochTime,
    Context(String),
    ContextKeys,
    RequestAlias,
    ResourceAliases,
    KeySpec,
    KeyUsage,
    KeyOrigin,
    MultiRegion,
    ResourceTag(String),
    RequestTag(String),
    TagKeys,
    /// Found among the further facts, or absent.
    Request(&'static str),
}

impl Name {
    /// Case does not count, in the part after the prefix neither. `None`: not known here.
    pub(super) fn compile(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let tail =
            |prefix: &str| lower.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_owned);
        Some(match lower.as_str() {
            "aws:principalarn" => Self::PrincipalArn,
            "kms:calleraccount" | "aws:principalaccount" => Self::CallerAccount,
            "aws:principaltype" => Self::PrincipalType,
            "aws:principalisawsservice" => Self::PrincipalIsService,
            "aws:username" => Self::User,
            "aws:userid" => Self::UserId,
            "kms:viaservice" => Self::ViaService,
            "aws:viaawsservice" => Self::ViaAnyService,
            "aws:securetransport" => Self::SecureTransport,
            "aws:sourceip" => Self::SourceIp,
            "aws:useragent" => Self::UserAgent,
            "aws:requestedregion" => Self::RequestedRegion,
            "aws:resourceaccount" => Self::ResourceAccount,
            "aws:epochtime" => Self::EpochTime,
            "kms:encryptioncontextkeys" => Self::ContextKeys,
            "kms:requestalias" => Self::RequestAlias,
            "kms:resourcealiases" => Self::ResourceAliases,
            "kms:keyspec" | "kms:customermasterkeyspec" => Self::KeySpec,
            "kms:keyusage" | "kms:customermasterkeyusage" => Self::KeyUsage,
            "kms:keyorigin" => Self::KeyOrigin,
            "kms:multiregion" => Self::MultiRegion,
            "aws:tagkeys" => Self::TagKeys,
            other => {
                let known = OF_REQUESTS.iter().copied().find(|name| *name == other).map(Self::Request);
                return known
                    .or_else(|| tail("kms:encryptioncontext:").map(Self::Context))
                    .or_else(|| tail("aws:resourcetag/").map(Self::ResourceTag))
                    .or_else(|| tail("aws:requesttag/").map(Self::RequestTag));
            }
        })
    }

    /// The values of this key in a call; none where the call has no such fact.
    pub(super) fn values(&self, facts: &Facts<'_>) -> Vec<String> {
        let one = |value: Option<&str>| value.map(str::to_owned).into_iter().collect::<Vec<_>>();
        let flag = |flag: bool| one(Some(if flag { "true" } else { "false" }));
        let asked = |name: &str| facts.request.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_ref());
        match self {
            Self::PrincipalArn => one(Some(facts.principal_arn)),
            Self::CallerAccount => one(Some(facts.account)),
            Self::PrincipalType => one(Some(if facts.is_root { "Account" } else { "User" })),
            Self::PrincipalIsService => flag(false),
            Self::User => one(facts.user_name),
            Self::UserId => one(Some(facts.user_name.unwrap_or(facts.account))),
            Self::ViaService => one(facts.via_service),
            Self::ViaAnyService => flag(facts.via_service.is_some()),
            Self::SecureTransport => flag(facts.secure_transport),
            Self::SourceIp => facts.source_ip.iter().map(ToString::to_string).collect(),
            Self::UserAgent => one(Some(facts.user_agent)),
            Self::RequestedRegion => one(Some(facts.region)),
            Self::ResourceAccount => one(Some(facts.home_account)),
            Self::EpochTime => vec![facts.now.seconds().to_string()],
            Self::Context(key) => in_context(facts.context, key),
            Self::ContextKeys => facts.context.into_iter().flatten().map(|(key, _)| key.clone()).collect(),
            Self::RequestAlias => one(facts.request_alias),
            Self::ResourceAliases => {
                facts.key.map_or_else(Vec::new, |key| key.aliases.alias_names(key.home, key.id))
            }
            Self::KeySpec => one(facts.key.map(|key| key.spec).or_else(|| asked("kms:keyspec"))),
            Self::KeyUsage => one(facts.key.map(|key| key.usage).or_else(|| asked("kms:keyusage"))),
            Self::KeyOrigin => one(facts.key.map(|key| key.origin).or_else(|| asked("kms:keyorigin"))),
            Self::MultiRegion => match facts.key {
                Some(key) => flag(key.id.multi_region),
                None => one(asked("kms:multiregion")),
            },
            Self::ResourceTag(key) => facts.key.map_or_else(Vec::new, |facts| tagged(facts.tags, key)),
            Self::RequestTag(key) => tagged(facts.request_tags, key),
            Self::TagKeys => {
                let added = facts.request_tags.iter().map(|tag| &tag.tag_key);
                added.chain(facts.removed_tags).cloned().collect()
            }
            Self::Request(name) => one(asked(name)),
        }
    }
}

/// The values of the pairs whose key is `key` but for case.
fn in_context(context: Option<&EncryptionContext>, key: &str) -> Vec<String> {
    let pairs = context.into_iter().flatten();
    pairs.filter(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.clone()).collect()
}

/// Finds the aliases of a key.
pub trait AliasNames: std::fmt::Debug {
    /// Their names, with prefix.
    fn alias_names(&self, home: Home<'_>, id: KeyId) -> Vec<String>;
}

fn tagged(tags: &[Tag], key: &str) -> Vec<String> {
    let tags = tags.iter().filter(|tag| tag.tag_key.eq_ignore_ascii_case(key));
    tags.map(|tag| tag.tag_value.clone()).collect()
}

#[cfg(test)]
impl Facts<'static> {
    /// A plain call by a user, for tests to change.
    pub(super) fn sample() -> Self {
        Self {
            principal_arn: "arn:aws:iam::111122223333:user/alice",
            account: "111122223333",
            user_name: Some("alice"),
            is_root: false,
            via_service: None,
            secure_transport: true,
            source_ip: None,
            user_agent: "test/1",
            region: "local",
            home_account: "111122223333",
            now: Timestamp::from_millis(1_700_000_000_250),
            context: None,
            request_alias: None,
            key: None,
            request_tags: &[],
            removed_tags: &[],
            request: &[],
        }
    }
}
