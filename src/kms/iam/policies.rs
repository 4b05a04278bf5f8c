//! Policies of a user, role or group: its own, and the managed ones attached to it.

use super::super::policy::Policy;
use super::answer::Node;
use super::call::IamCall;
use super::entities::{change, check_document, check_name, known_policy, page};
use super::error::IamError;
use super::records::NamedPolicy;

/// Most policies of an entity, of its own and attached each.
const MAX_POLICIES: usize = 20;

pub fn put(call: &IamCall<'_>) -> Result<Node, IamError> {
    let name = call.params.need("PolicyName")?;
    let document = call.params.need("PolicyDocument")?;
    check_name("PolicyName", name, 128)?;
    check_document(document, Policy::of_identity)?;
    let mut policies = call.entity()?.record.policies.clone();
    policies.retain(|policy| policy.name != name);
    if policies.len() >= MAX_POLICIES {
        return Err(IamError::limit(format!("There may be {MAX_POLICIES} policies at most.")));
    }
    policies.push(NamedPolicy { name: name.to_owned(), document: document.to_owned() });
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    change(call, |record| record.policies = policies)
}

fn no_such(call: &IamCall<'_>, name: &str) -> IamError {
    IamError::no_such(&format!("{} policy", call.kind().word()), name)
}

pub fn get(call: &IamCall<'_>) -> Result<Node, IamError> {
    let entity = call.entity()?;
    let name = call.params.need("PolicyName")?;
    let policy = entity.record.policies.iter().find(|policy| policy.name == name);
    let policy = policy.ok_or_else(|| no_such(call, name))?;
    Ok(Node::Map(vec![
        (call.kind().name_member(), entity.record.name.as_str().into()),
        ("PolicyName", name.into()),
        ("PolicyDocument", Node::Document(policy.document.clone())),
    ]))
}

pub fn delete(call: &IamCall<'_>) -> Result<Node, IamError> {
    let name = call.params.need("PolicyName")?;
    if !call.entity()?.record.policies.iter().any(|policy| policy.name == name) {
        return Err(no_such(call, name));
    }
    change(call, |record| record.policies.retain(|policy| policy.name != name))
}

pub fn list(call: &IamCall<'_>) -> Result<Node, IamError> {
    let entity = call.entity()?;
    let names = entity.record.policies.iter().map(|policy| policy.name.as_str());
    page(call.params, "PolicyNames", names, |name| (*name).to_owned(), |name| (*name).into())
}

pub fn attach(call: &IamCall<'_>) -> Result<Node, IamError> {
    let arn = known_policy(call, call.params.need("PolicyArn")?)?;
    let attached = &call.entity()?.record.attached;
    if !attached.contains(&arn) && attached.len() >= MAX_POLICIES {
        return Err(IamError::limit(format!("There may be {MAX_POLICIES} attached policies at most.")));
    }
    change(call, |record| {
        if !record.attached.contains(&arn) {
            record.attached.push(arn);
        }
    })
}

pub fn detach(call: &IamCall<'_>) -> Result<Node, IamError> {
    let arn = call.params.need("PolicyArn")?;
    if !call.entity()?.record.attached.iter().any(|attached| attached == arn) {
        return Err(IamError::new("NoSuchEntity", format!("Policy {arn} was not found.")));
    }
    change(call, |record| record.attached.retain(|attached| attached != arn))
}

pub fn list_attached(call: &IamCall<'_>) -> Result<Node, IamError> {
    let entity = call.entity()?;
    let mut attached = entity.record.attached.clone();
    attached.sort();
    let show = |arn: &String| {
        let name = arn.rsplit('/').next().unwrap_or_default();
        Node::Map(vec![("PolicyName", name.into()), ("PolicyArn", arn.as_str().into())])
    };
    page(call.params, "AttachedPolicies", attached.into_iter(), Clone::clone, show)
}
