//! What conditions can ask about: the facts of a call, and the names of condition keys.
//!
//! Facts are gathered by `authorise`; names are compiled by `condition`. A name that is not known is refused when
//! the policy is written: a Deny that hangs on it would never apply.

use std::borrow::Cow;

use crate::api::{EncryptionContext, KeyId, Tag, Timestamp};

use super::super::home::Home;
use super::date;

/// What is known of a call when a policy is evaluated.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The principal: the account root, a user, or the role of a session.
    pub principal_arn: &'a str,
    /// The session of a role or a user.
    pub session: Option<SessionFacts<'a>>,
    /// Its account.
    pub account: &'a str,
    /// Its user name; none for the account root and for roles.
    pub user_name: Option<&'a str>,
    /// Its unique id, with the session's name after a colon; the account of the account root.
    pub user_id: &'a str,
    /// Whether it is the account root.
    pub is_root: bool,
    /// Tags of the principal and of the session.
    pub principal_tags: PrincipalTags<'a>,
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

/// What conditions can ask of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionFacts<'a> {
    /// Its own ARN, for the session of a role; messages and principals of policies name it.
    pub arn: Option<&'a str>,
    /// When it began.
    pub issued: Timestamp,
    /// Who stands behind it.
    pub source_identity: Option<&'a str>,
}

/// Tags of a principal: those of the session hide those of the user or role.
#[derive(Debug, Clone, Copy, Default)]
pub struct PrincipalTags<'a> {
    /// Of the session.
    pub session: &'a [Tag],
    /// Of the user or role.
    pub identity: &'a [Tag],
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
    /// Of a multi-Region key: `PRIMARY` or `REPLICA`.
    pub multi_region_type: Option<&'a str>,
    /// Tags.
    pub tags: &'a [Tag],
    /// Where its aliases are found, if a condition asks.
    pub aliases: &'a dyn AliasNames,
}

/// Facts that only some requests have, by the lower-case name of their condition key.
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
/// Of those, the ones that may have several values.
const MULTIVALUED: &[&str] = &["kms:grantoperations", "sts:transitivetagkeys"];
/// Global condition keys of AWS that no call has here: organisations, networks, other services.
const ABSENT: &[&str] = &[
    "aws:assumedroot",
    "aws:ec2instancesourceprivateipv4",
    "aws:ec2instancesourcevpc",
    "aws:federatedprovider",
    "aws:multifactorauthage",
    "aws:principalorgid",
    "aws:principalorgpaths",
    "aws:principalservicename",
    "aws:principalservicenameslist",
    "aws:referer",
    "aws:resourceorgid",
    "aws:resourceorgpaths",
    "aws:sourceaccount",
    "aws:sourcearn",
    "aws:sourceorgid",
    "aws:sourceorgpaths",
    "aws:sourcevpc",
    "aws:sourcevpcarn",
    "aws:sourcevpce",
    "aws:vpcsourceip",
];
/// Prefixes of further keys that no call has here.
const ABSENT_PREFIXES: &[&str] = &["kms:recipientattestation:"];

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
    CurrentTime,
    TokenIssueTime,
    MultiFactor,
    SourceIdentity,
    CalledVia,
    PrincipalTag(String),
    Context(String),
    ContextKeys,
    RequestAlias,
    ResourceAliases,
    KeySpec,
    KeyUsage,
    KeyOrigin,
    MultiRegion,
    MultiRegionType,
    ResourceTag(String),
    RequestTag(String),
    TagKeys,
    /// Found among the further facts, or absent.
    Request(&'static str),
    /// A key of another service: found among the further facts, or absent.
    Foreign(String),
    /// No call has it.
    Absent,
}

impl Name {
    /// Case does not count, in the part after the prefix neither. `None`: not known here.
    pub(super) fn compile(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
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
            "aws:currenttime" => Self::CurrentTime,
            "aws:tokenissuetime" => Self::TokenIssueTime,
            "aws:multifactorauthpresent" => Self::MultiFactor,
            "aws:sourceidentity" => Self::SourceIdentity,
            "aws:calledvia" | "aws:calledviafirst" | "aws:calledvialast" => Self::CalledVia,
            "kms:encryptioncontextkeys" => Self::ContextKeys,
            "kms:requestalias" => Self::RequestAlias,
            "kms:resourcealiases" => Self::ResourceAliases,
            "kms:keyspec" | "kms:customermasterkeyspec" => Self::KeySpec,
            "kms:keyusage" | "kms:customermasterkeyusage" => Self::KeyUsage,
            "kms:keyorigin" => Self::KeyOrigin,
            "kms:multiregion" => Self::MultiRegion,
            "kms:multiregionkeytype" => Self::MultiRegionType,
            "aws:tagkeys" => Self::TagKeys,
            other => return Self::of_prefix(other),
        })
    }

    /// A lower-case name that is told by its beginning.
    fn of_prefix(lower: &str) -> Option<Self> {
        let tail =
            |prefix: &str| lower.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_owned);
        let (service, rest) = lower.split_once(':')?;
        let known = OF_REQUESTS.iter().copied().find(|name| *name == lower).map(Self::Request);
        known
            .or_else(|| ABSENT.contains(&lower).then_some(Self::Absent))
            .or_else(|| {
                let absent = ABSENT_PREFIXES.iter().any(|prefix| tail(prefix).is_some());
                absent.then_some(Self::Absent)
            })
            .or_else(|| tail("kms:encryptioncontext:").map(Self::Context))
            .or_else(|| tail("aws:resourcetag/").map(Self::ResourceTag))
            .or_else(|| tail("aws:requesttag/").map(Self::RequestTag))
            .or_else(|| tail("aws:principaltag/").map(Self::PrincipalTag))
            .or_else(|| {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
                let foreign = !matches!(service, "aws" | "kms") && service.chars().all(plain);
                let named = !service.is_empty() && !rest.is_empty() && !rest.contains("${");
                (foreign && named).then(|| Self::Foreign(lower.to_owned()))
            })
    }

    /// Whether it may have several values, so that it is no variable.
    pub(super) fn is_multivalued(&self) -> bool {
        match self {
            Self::ContextKeys | Self::ResourceAliases | Self::TagKeys | Self::CalledVia => true,
            Self::Request(name) => MULTIVALUED.contains(name),
            Self::Foreign(name) => MULTIVALUED.contains(&name.as_str()),
            _ => false,
        }
    }

    /// The values of this key in a call; none where the call has no such fact.
    pub(super) fn values<'f>(&self, facts: &Facts<'f>) -> Values<'f> {
        match self {
            Self::PrincipalArn => one(facts.principal_arn),
            Self::CallerAccount => one(facts.account),
            Self::PrincipalType => one(match (facts.is_root, facts.session) {
                (true, _) => "Account",
                (false, Some(SessionFacts { arn: Some(_), .. })) => "AssumedRole",
                (false, _) => "User",
            }),
            Self::PrincipalIsService => flag(false),
            Self::User => Values::of(facts.user_name),
            Self::UserId => one(facts.user_id),
            Self::ViaService | Self::CalledVia => Values::of(facts.via_service),
            Self::ViaAnyService => flag(facts.via_service.is_some()),
            Self::SecureTransport => flag(facts.secure_transport),
            Self::SourceIp => facts.source_ip.map_or(Values::None, |ip| text(ip.to_string())),
            Self::UserAgent => one(facts.user_agent),
            Self::RequestedRegion => one(facts.region),
            Self::ResourceAccount => one(facts.home_account),
            Self::EpochTime => text(facts.now.seconds().to_string()),
            Self::CurrentTime => text(date::text(facts.now.seconds())),
            Self::TokenIssueTime => {
                facts.session.map_or(Values::None, |session| text(date::text(session.issued.seconds())))
            }
            // Present in temporary credentials alone, as with AWS; nobody shows a second factor here.
            Self::MultiFactor => facts.session.map_or(Values::None, |_| flag(false)),
            Self::SourceIdentity => Values::of(facts.session.and_then(|session| session.source_identity)),
            Self::PrincipalTag(key) => principal_tag(facts.principal_tags, key),
            Self::Absent => Values::None,
            of_request => of_request.values_of_request(facts),
        }
    }

    /// The same, for the keys that tell of the request or of the resource.
    fn values_of_request<'f>(&self, facts: &Facts<'f>) -> Values<'f> {
        let asked = |name: &str| {
            let named = facts.request.iter().filter(|(n, _)| *n == name);
            named.map(|(_, value)| Cow::Borrowed(value.as_ref())).collect::<Values<'f>>()
        };
        let of_key = |value: Option<&'f str>, name| value.map_or_else(|| asked(name), one);
        match self {
            Self::Context(key) => in_context(facts.context, key),
            Self::ContextKeys => {
                let keys = facts.context.into_iter().flatten().map(|(key, _)| Cow::Borrowed(key.as_str()));
                keys.collect()
            }
            Self::RequestAlias => Values::of(facts.request_alias),
            Self::ResourceAliases => facts.key.map_or(Values::None, |key| {
                key.aliases.alias_names(key.home, key.id).into_iter().map(Cow::Owned).collect()
            }),
            Self::KeySpec => of_key(facts.key.map(|key| key.spec), "kms:keyspec"),
            Self::KeyUsage => of_key(facts.key.map(|key| key.usage), "kms:keyusage"),
            Self::KeyOrigin => of_key(facts.key.map(|key| key.origin), "kms:keyorigin"),
            Self::MultiRegion => match facts.key {
                Some(key) => flag(key.id.multi_region),
                None => asked("kms:multiregion"),
            },
            Self::MultiRegionType => match facts.key {
                Some(key) => Values::of(key.multi_region_type),
                None => asked("kms:multiregionkeytype"),
            },
            Self::ResourceTag(key) => tagged(facts.key.map_or(&[], |facts| facts.tags), key),
            Self::RequestTag(key) => tagged(facts.request_tags, key),
            Self::TagKeys => {
                let added = facts.request_tags.iter().map(|tag| &tag.tag_key);
                added.chain(facts.removed_tags).map(|key| Cow::Borrowed(key.as_str())).collect()
            }
            Self::Request(name) => asked(name),
            Self::Foreign(name) => asked(name),
            _ => Values::None,
        }
    }
}

/// The values of a condition key in a call; a single one costs no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Values<'f> {
    None,
    One(Cow<'f, str>),
    Many(Vec<Cow<'f, str>>),
}

impl<'f> Values<'f> {
    fn of(value: Option<&'f str>) -> Self {
        value.map_or(Self::None, one)
    }

    pub(super) fn as_slice(&self) -> &[Cow<'f, str>] {
        match self {
            Self::None => &[],
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl<'f> FromIterator<Cow<'f, str>> for Values<'f> {
    fn from_iter<I: IntoIterator<Item = Cow<'f, str>>>(values: I) -> Self {
        let mut values = values.into_iter();
        let Some(first) = values.next() else { return Self::None };
        let Some(second) = values.next() else { return Self::One(first) };
        let mut all = vec![first, second];
        all.extend(values);
        Self::Many(all)
    }
}

fn one(value: &str) -> Values<'_> {
    Values::One(Cow::Borrowed(value))
}

fn text(value: String) -> Values<'static> {
    Values::One(Cow::Owned(value))
}

fn flag(flag: bool) -> Values<'static> {
    one(if flag { "true" } else { "false" })
}

/// The values of the pairs whose key is `key` but for case.
fn in_context<'f>(context: Option<&'f EncryptionContext>, key: &str) -> Values<'f> {
    let pairs = context.into_iter().flatten();
    let named = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(key));
    named.map(|(_, value)| Cow::Borrowed(value.as_str())).collect()
}

/// Finds the aliases of a key.
pub trait AliasNames: std::fmt::Debug {
    /// Their names, with prefix.
    fn alias_names(&self, home: Home<'_>, id: KeyId) -> Vec<String>;
}

fn tagged<'f>(tags: &'f [Tag], key: &str) -> Values<'f> {
    let tags = tags.iter().filter(|tag| tag.tag_key.eq_ignore_ascii_case(key));
    tags.map(|tag| Cow::Borrowed(tag.tag_value.as_str())).collect()
}

fn principal_tag<'f>(tags: PrincipalTags<'f>, key: &str) -> Values<'f> {
    match tagged(tags.session, key) {
        Values::None => tagged(tags.identity, key),
        of_session => of_session,
    }
}

#[cfg(test)]
impl Facts<'static> {
    /// A plain call by a user, for tests to change.
    pub(super) fn sample() -> Self {
        Self {
            principal_arn: "arn:aws:iam::111122223333:user/alice",
            session: None,
            account: "111122223333",
            user_name: Some("alice"),
            user_id: "AIDAALICE",
            is_root: false,
            principal_tags: PrincipalTags { session: &[], identity: &[] },
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
