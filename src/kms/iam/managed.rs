//! Managed policies and their versions.

use super::super::policy::Policy;
use super::answer::Node;
use super::call::IamCall;
use super::entities::{check_document, check_name, page, path_of};
use super::error::IamError;
use super::records::{Kind, PolicyRecord, PolicyVersion, made_id};

/// Most managed policies of an account.
const MAX_POLICIES: usize = 5_000;
/// Most versions of a policy.
const MAX_VERSIONS: usize = 5;

/// How often a policy is attached, and how often it is a boundary.
fn uses(call: &IamCall<'_>, arn: &str) -> (usize, usize) {
    let state = call.kms.state.read();
    let account = state.iam.account(call.account());
    let all = Kind::ALL.iter().flat_map(|kind| account.all(*kind).values());
    all.fold((0, 0), |(attached, boundary), entity| {
        let record = &entity.record;
        (
            attached + usize::from(record.attached.iter().any(|known| known == arn)),
            boundary + usize::from(record.boundary.as_deref() == Some(arn)),
        )
    })
}

fn show(call: &IamCall<'_>, record: &PolicyRecord, whole: bool) -> Node {
    let (attached, boundaries) = uses(call, &record.arn());
    let mut members = vec![
        ("PolicyName", record.name.as_str().into()),
        ("PolicyId", record.id.as_str().into()),
        ("Arn", record.arn().into()),
        ("Path", record.path.as_str().into()),
        ("DefaultVersionId", record.default_version.as_str().into()),
        ("AttachmentCount", attached.to_string().into()),
        ("PermissionsBoundaryUsageCount", boundaries.to_string().into()),
        ("IsAttachable", true.into()),
        ("CreateDate", record.created.into()),
        ("UpdateDate", record.updated.into()),
    ];
    if whole {
        if let Some(description) = &record.description {
            members.push(("Description", description.as_str().into()));
        }
        members.push(("Tags", record.tags.as_slice().into()));
    }
    Node::Map(members)
}

fn show_version(record: &PolicyRecord, version: &PolicyVersion, whole: bool) -> Node {
    let mut members = vec![
        ("VersionId", version.id.as_str().into()),
        ("IsDefaultVersion", (version.id == record.default_version).into()),
        ("CreateDate", version.created.into()),
    ];
    if whole {
        members.insert(0, ("Document", Node::Document(version.document.clone())));
    }
    Node::Map(members)
}

fn find(call: &IamCall<'_>) -> Result<PolicyRecord, IamError> {
    let arn = call.params.need("PolicyArn")?;
    let state = call.kms.state.read();
    let known = state.iam.account(call.account()).policy(arn).map(|policy| policy.record.clone());
    known.ok_or_else(|| IamError::new("NoSuchEntity", format!("Policy {arn} was not found.")))
}

pub fn create(call: &IamCall<'_>) -> Result<Node, IamError> {
    let params = call.params;
    let (name, document) = (params.need("PolicyName")?, params.need("PolicyDocument")?);
    check_name("PolicyName", name, 128)?;
    check_document(document, Policy::of_identity)?;
    let state = call.kms.state.read();
    let known = state.iam.account(call.account()).policies();
    if known.contains_key(name) {
        let message = format!("A policy called {name} already exists. Duplicate names are not allowed.");
        return Err(IamError::new("EntityAlreadyExists", message));
    }
    if known.len() >= MAX_POLICIES {
        return Err(IamError::limit(format!("There are {MAX_POLICIES} policies already.")));
    }
    drop(state);
    let version = PolicyVersion { id: "v1".into(), document: document.to_owned(), created: call.now };
    let record = PolicyRecord {
        name: name.to_owned(),
        account: call.account().to_owned(),
        path: path_of(params)?,
        id: made_id("ANPA"),
        created: call.now,
        updated: call.now,
        description: params.get("Description").map(str::to_owned),
        tags: params.tags("Tags")?,
        versions: vec![version],
        default_version: "v1".into(),
    };
    let shown = Node::of("Policy", show(call, &record, true));
    call.kms.put_managed(call.turn()?, record)?;
    Ok(shown)
}

pub fn get(call: &IamCall<'_>) -> Result<Node, IamError> {
    Ok(Node::of("Policy", show(call, &find(call)?, true)))
}

pub fn list(call: &IamCall<'_>) -> Result<Node, IamError> {
    let prefix = call.params.get("PathPrefix").unwrap_or("/");
    // There are no policies of AWS here.
    let own = call.params.get("Scope") != Some("AWS");
    let state = call.kms.state.read();
    let all = state.iam.account(call.account()).policies().values();
    let wanted: Vec<PolicyRecord> = all
        .filter(|policy| own && policy.record.path.starts_with(prefix))
        .map(|policy| policy.record.clone())
        .collect();
    drop(state);
    page(
        call.params,
        "Policies",
        wanted.iter(),
        |policy| policy.name.clone(),
        |policy| show(call, policy, false),
    )
}

pub fn delete(call: &IamCall<'_>) -> Result<Node, IamError> {
    let record = find(call)?;
    if uses(call, &record.arn()) != (0, 0) {
        return Err(IamError::conflict("Cannot delete a policy attached to entities."));
    }
    if record.versions.len() > 1 {
        return Err(IamError::conflict(
            "This policy has more than one version. Before you delete a policy, you must delete the policy's \
             versions. The default version is deleted with the policy.",
        ));
    }
    call.kms.remove_managed(call.turn()?, &record)?;
    Ok(Node::empty())
}

pub fn create_version(call: &IamCall<'_>) -> Result<Node, IamError> {
    let mut record = find(call)?;
    let document = call.params.need("PolicyDocument")?;
    check_document(document, Policy::of_identity)?;
    if record.versions.len() >= MAX_VERSIONS {
        return Err(IamError::limit(format!(
            "A managed policy can have up to {MAX_VERSIONS} versions. Before you create a new version, you must \
             delete an existing version."
        )));
    }
    let number = |version: &PolicyVersion| version.id.trim_start_matches('v').parse::<u32>().unwrap_or(0);
    let next = record.versions.iter().map(number).max().unwrap_or(0) + 1;
    let version = PolicyVersion { id: format!("v{next}"), document: document.to_owned(), created: call.now };
    if call.params.get("SetAsDefault") == Some("true") {
        record.default_version.clone_from(&version.id);
        record.updated = call.now;
    }
    record.versions.push(version.clone());
    let shown = Node::of("PolicyVersion", show_version(&record, &version, false));
    call.kms.put_managed(call.turn()?, record)?;
    Ok(shown)
}

fn version_of<'a>(call: &IamCall<'_>, record: &'a PolicyRecord) -> Result<&'a PolicyVersion, IamError> {
    let id = call.params.need("VersionId")?;
    let version = record.versions.iter().find(|version| version.id == id);
    version.ok_or_else(|| {
        let message = format!("Policy {} version {id} does not exist or is not attachable.", record.arn());
        IamError::new("NoSuchEntity", message)
    })
}

pub fn get_version(call: &IamCall<'_>) -> Result<Node, IamError> {
    let record = find(call)?;
    let version = version_of(call, &record)?;
    Ok(Node::of("PolicyVersion", show_version(&record, version, true)))
}

pub fn list_versions(call: &IamCall<'_>) -> Result<Node, IamError> {
    let record = find(call)?;
    let versions = record.versions.iter().rev().map(|version| show_version(&record, version, false));
    Ok(Node::Map(vec![("Versions", Node::List(versions.collect())), ("IsTruncated", false.into())]))
}

pub fn delete_version(call: &IamCall<'_>) -> Result<Node, IamError> {
    let mut record = find(call)?;
    let id = version_of(call, &record)?.id.clone();
    if id == record.default_version {
        return Err(IamError::conflict("Cannot delete the default version of a policy."));
    }
    record.versions.retain(|version| version.id != id);
    call.kms.put_managed(call.turn()?, record)?;
    Ok(Node::empty())
}

pub fn set_default(call: &IamCall<'_>) -> Result<Node, IamError> {
    let mut record = find(call)?;
    let id = version_of(call, &record)?.id.clone();
    record.default_version = id;
    record.updated = call.now;
    call.kms.put_managed(call.turn()?, record)?;
    Ok(Node::empty())
}

pub fn list_entities(call: &IamCall<'_>) -> Result<Node, IamError> {
    let arn = find(call)?.arn();
    let state = call.kms.state.read();
    let account = state.iam.account(call.account());
    let of = |kind: Kind, id_member: &'static str| {
        let all = account.all(kind).values().filter(|entity| entity.record.attached.contains(&arn));
        let show = |entity: &std::sync::Arc<super::Entity>| {
            let record = &entity.record;
            Node::Map(vec![
                (kind.name_member(), record.name.as_str().into()),
                (id_member, record.id.as_str().into()),
            ])
        };
        Node::List(all.map(show).collect())
    };
    Ok(Node::Map(vec![
        ("PolicyGroups", of(Kind::Group, "GroupId")),
        ("PolicyUsers", of(Kind::User, "UserId")),
        ("PolicyRoles", of(Kind::Role, "RoleId")),
        ("IsTruncated", false.into()),
    ]))
}
