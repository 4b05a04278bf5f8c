//! Users, roles and groups: make, show, list, change, remove; their tags and boundaries.

use crate::api::Tag;

use super::super::policy::{MAX_POLICY_BYTES, Policy, PolicyError};
use super::answer::Node;
use super::call::IamCall;
use super::directory::Entity;
use super::error::IamError;
use super::params::Params;
use super::records::{EntityRecord, Kind};

/// Most entities of a kind in an account.
const MAX_ENTITIES: usize = 10_000;
/// Most tags of an entity.
const MAX_TAGS: usize = 50;
/// Most entries of a page.
const PAGE: u32 = 1000;
/// Most entries of a page, where nobody says.
const DEFAULT_PAGE: u32 = 100;
/// Paths that belong to the principals of Unix users, which are no entities.
const RESERVED_PATH: &str = "/unix/";

impl Kind {
    /// The parameter that names one.
    pub const fn name_member(self) -> &'static str {
        match self {
            Self::User => "UserName",
            Self::Role => "RoleName",
            Self::Group => "GroupName",
        }
    }

    const fn id_member(self) -> &'static str {
        match self {
            Self::User => "UserId",
            Self::Role => "RoleId",
            Self::Group => "GroupId",
        }
    }
}

/// Refuses names that AWS refuses.
pub fn check_name(member: &str, name: &str, max: usize) -> Result<(), IamError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
    if !name.is_empty() && name.len() <= max && plain {
        return Ok(());
    }
    let (first, rest) = member.split_at(1);
    Err(IamError::validation(format!(
        "The specified value for {}{rest} is invalid. It must contain only alphanumeric characters and/or the \
         following: +=,.@_- and have 1 to {max} characters",
        first.to_ascii_lowercase()
    )))
}

/// The path asked for.
pub fn path_of(params: &Params) -> Result<String, IamError> {
    let path = params.get("Path").unwrap_or("/");
    let plain = path.bytes().all(|b| (b'!'..=b'~').contains(&b) && !b"*?:".contains(&b));
    let framed = path.starts_with('/') && path.ends_with('/') && !path.contains("//");
    if plain && framed && path.len() <= 512 && !path.starts_with(RESERVED_PATH) {
        return Ok(path.to_owned());
    }
    Err(IamError::validation(
        "The specified value for path is invalid. It must begin and end with / and contain only alphanumeric \
         characters and/or / characters, and not begin with /unix/.",
    ))
}

/// Compiles a document that a caller brings, to see whether it can be.
pub fn check_document(text: &str, compile: fn(&str) -> Result<Policy, PolicyError>) -> Result<(), IamError> {
    if text.len() > MAX_POLICY_BYTES {
        return Err(IamError::limit(format!("A policy may have {MAX_POLICY_BYTES} bytes at most.")));
    }
    compile(text).map(|_| ()).map_err(|error| IamError::new("MalformedPolicyDocument", error.to_string()))
}

/// The ARN of a managed policy of the account.
pub fn known_policy(call: &IamCall<'_>, arn: &str) -> Result<String, IamError> {
    let state = call.kms.state.read();
    let known = state.iam.account(call.account()).policy(arn).map(|policy| policy.record.arn());
    known.ok_or_else(|| {
        IamError::new("NoSuchEntity", format!("Policy {arn} does not exist or is not attachable."))
    })
}

/// An entity as answers show it.
pub fn show(record: &EntityRecord, whole: bool) -> Node {
    let kind = record.kind;
    let mut members = vec![
        ("Path", record.path.as_str().into()),
        (kind.name_member(), record.name.as_str().into()),
        (kind.id_member(), record.id.as_str().into()),
        ("Arn", record.arn().into()),
        ("CreateDate", record.created.into()),
    ];
    if kind == Kind::Role {
        members.push(("AssumeRolePolicyDocument", Node::Document(record.trust.clone())));
        members.push(("MaxSessionDuration", record.max_session.to_string().into()));
    }
    if let Some(description) = &record.description {
        members.push(("Description", description.as_str().into()));
    }
    if let Some(arn) = record.boundary.as_ref().filter(|_| whole) {
        let boundary = vec![
            ("PermissionsBoundaryType", Node::from("PermissionsBoundaryPolicy")),
            ("PermissionsBoundaryArn", arn.as_str().into()),
        ];
        members.push(("PermissionsBoundary", Node::Map(boundary)));
    }
    if whole && !record.tags.is_empty() {
        members.push(("Tags", record.tags.as_slice().into()));
    }
    Node::Map(members)
}

pub fn create(call: &IamCall<'_>) -> Result<Node, IamError> {
    let (kind, params, account) = (call.kind(), call.params, call.account());
    let name = params.need(kind.name_member())?;
    check_name(kind.name_member(), name, if kind == Kind::Group { 128 } else { 64 })?;
    if call.find(kind, name).is_ok() {
        let message = format!("{} with name {name} already exists.", kind.title());
        return Err(IamError::new("EntityAlreadyExists", message));
    }
    if call.kms.state.read().iam.account(account).all(kind).len() >= MAX_ENTITIES {
        return Err(IamError::limit(format!("There are {MAX_ENTITIES} {}s already.", kind.word())));
    }
    let mut record = EntityRecord::new(kind, account, name, call.now);
    record.path = path_of(params)?;
    if kind != Kind::Group {
        record.tags = params.tags("Tags")?;
        record.boundary = params.get("PermissionsBoundary").map(|arn| known_policy(call, arn)).transpose()?;
    }
    if kind == Kind::Role {
        let trust = params.need("AssumeRolePolicyDocument")?;
        check_document(trust, Policy::of_trust)?;
        trust.clone_into(&mut record.trust);
        record.description = params.get("Description").map(str::to_owned);
        record.max_session = params.number("MaxSessionDuration", 3600, 43_200)?.unwrap_or(3600);
    }
    let shown = Node::of(kind.title(), show(&record, true));
    call.kms.put_entity(call.turn()?, record)?;
    Ok(shown)
}

pub fn get(call: &IamCall<'_>) -> Result<Node, IamError> {
    let root = call.caller.is_root && call.params.get("UserName").is_none();
    if call.kind() == Kind::User && root {
        let account = call.account();
        let arn = &call.caller.principal_arn;
        let user = vec![("UserId", account.into()), ("Arn", Node::from(arn.as_str()))];
        return Ok(Node::of("User", Node::Map(user)));
    }
    let entity = call.entity()?;
    Ok(Node::of(call.kind().title(), show(&entity.record, true)))
}

pub fn list_users(call: &IamCall<'_>) -> Result<Node, IamError> {
    list(call, Kind::User, "Users")
}

pub fn list_roles(call: &IamCall<'_>) -> Result<Node, IamError> {
    list(call, Kind::Role, "Roles")
}

pub fn list_groups(call: &IamCall<'_>) -> Result<Node, IamError> {
    list(call, Kind::Group, "Groups")
}

fn list(call: &IamCall<'_>, kind: Kind, member: &'static str) -> Result<Node, IamError> {
    let prefix = call.params.get("PathPrefix").unwrap_or("/");
    let state = call.kms.state.read();
    let all = state.iam.account(call.account()).all(kind).values();
    let wanted = all.filter(|entity| entity.record.path.starts_with(prefix));
    page(
        call.params,
        member,
        wanted,
        |entity| entity.record.name.clone(),
        |entity| show(&entity.record, false),
    )
}

/// A page of a list that is ordered by name.
pub fn page<T>(
    params: &Params,
    member: &'static str,
    items: impl Iterator<Item = T>,
    name: impl Fn(&T) -> String,
    show: impl Fn(&T) -> Node,
) -> Result<Node, IamError> {
    let size = params.number("MaxItems", 1, PAGE)?.unwrap_or(DEFAULT_PAGE) as usize;
    let after = params.get("Marker").unwrap_or_default();
    let mut rest = items.filter(|item| name(item).as_str() > after);
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let more = rest.next().is_some();
    let mut members =
        vec![(member, Node::List(page.iter().map(show).collect())), ("IsTruncated", more.into())];
    if let Some(last) = page.last().filter(|_| more) {
        members.push(("Marker", name(last).into()));
    }
    Ok(Node::Map(members))
}

pub fn delete(call: &IamCall<'_>) -> Result<Node, IamError> {
    let entity = call.entity()?;
    let record = &entity.record;
    let state = call.kms.state.read();
    let account = state.iam.account(call.account());
    let in_group = |group: &std::sync::Arc<Entity>| group.record.members.contains(&record.name);
    let has_keys = state.iam.access_keys_of(call.account(), Some(&record.name)).next().is_some();
    let first = match record.kind {
        _ if !record.policies.is_empty() => Some("must delete policies first"),
        _ if !record.attached.is_empty() => Some("must detach all policies first"),
        Kind::User if has_keys => Some("must delete access keys first"),
        Kind::User if account.all(Kind::Group).values().any(in_group) => {
            Some("must remove users from group first")
        }
        Kind::Group if !record.members.is_empty() => Some("must remove users from group first"),
        _ => None,
    };
    drop(state);
    if let Some(first) = first {
        return Err(IamError::conflict(format!("Cannot delete entity, {first}.")));
    }
    call.kms.remove_entity(call.turn()?, record)?;
    Ok(Node::empty())
}

/// Changes the entity the call is about.
pub fn change(call: &IamCall<'_>, change: impl FnOnce(&mut EntityRecord)) -> Result<Node, IamError> {
    let mut record = call.entity()?.record.clone();
    change(&mut record);
    call.kms.put_entity(call.turn()?, record)?;
    Ok(Node::empty())
}

pub fn update_trust(call: &IamCall<'_>) -> Result<Node, IamError> {
    let trust = call.params.need("PolicyDocument")?;
    check_document(trust, Policy::of_trust)?;
    change(call, |record| trust.clone_into(&mut record.trust))
}

pub fn update_role(call: &IamCall<'_>) -> Result<Node, IamError> {
    let seconds = call.params.number("MaxSessionDuration", 3600, 43_200)?;
    change(call, |record| {
        record.max_session = seconds.unwrap_or(record.max_session);
        if let Some(description) = call.params.get("Description") {
            record.description = Some(description.to_owned());
        }
    })
}

pub fn put_boundary(call: &IamCall<'_>) -> Result<Node, IamError> {
    let arn = known_policy(call, call.params.need("PermissionsBoundary")?)?;
    change(call, |record| record.boundary = Some(arn))
}

pub fn delete_boundary(call: &IamCall<'_>) -> Result<Node, IamError> {
    change(call, |record| record.boundary = None)
}

pub fn tag(call: &IamCall<'_>) -> Result<Node, IamError> {
    let mut tags = call.entity()?.record.tags.clone();
    for new in call.params.tags("Tags")? {
        tags.retain(|old: &Tag| !old.tag_key.eq_ignore_ascii_case(&new.tag_key));
        tags.push(new);
    }
    if tags.len() > MAX_TAGS {
        return Err(IamError::limit(format!("There would be more than {MAX_TAGS} tags.")));
    }
    change(call, |record| record.tags = tags)
}

pub fn untag(call: &IamCall<'_>) -> Result<Node, IamError> {
    let keys = call.params.list("TagKeys", "");
    change(call, |record| {
        record.tags.retain(|tag| !keys.iter().any(|key| tag.tag_key.eq_ignore_ascii_case(key)));
    })
}

pub fn list_tags(call: &IamCall<'_>) -> Result<Node, IamError> {
    let entity = call.entity()?;
    Ok(Node::Map(vec![("Tags", entity.record.tags.as_slice().into()), ("IsTruncated", false.into())]))
}

/// There are none here; clients ask before they remove a role.
pub fn no_instance_profiles(call: &IamCall<'_>) -> Result<Node, IamError> {
    call.entity()?;
    Ok(Node::Map(vec![("InstanceProfiles", Node::List(Vec::new())), ("IsTruncated", false.into())]))
}
