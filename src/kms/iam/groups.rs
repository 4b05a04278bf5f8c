//! Who is in a group.

use super::answer::Node;
use super::call::IamCall;
use super::entities::{change, page, show};
use super::error::IamError;
use super::records::Kind;

pub fn get(call: &IamCall<'_>) -> Result<Node, IamError> {
    let group = call.entity()?;
    let users: Vec<_> =
        group.record.members.iter().filter_map(|name| call.find(Kind::User, name).ok()).collect();
    let name = |user: &std::sync::Arc<super::Entity>| user.record.name.clone();
    let Node::Map(mut members) =
        page(call.params, "Users", users.into_iter(), name, |user| show(&user.record, false))?
    else {
        return Ok(Node::empty());
    };
    members.insert(0, ("Group", show(&group.record, false)));
    Ok(Node::Map(members))
}

pub fn add_user(call: &IamCall<'_>) -> Result<Node, IamError> {
    let user = call.find(Kind::User, call.params.need("UserName")?)?;
    change(call, |group| {
        if !group.members.contains(&user.record.name) {
            group.members.push(user.record.name.clone());
            group.members.sort();
        }
    })
}

pub fn remove_user(call: &IamCall<'_>) -> Result<Node, IamError> {
    let user = call.find(Kind::User, call.params.need("UserName")?)?;
    if !call.entity()?.record.members.contains(&user.record.name) {
        return Err(IamError::no_such("user", &user.record.name));
    }
    change(call, |group| group.members.retain(|name| *name != user.record.name))
}

pub fn list_for_user(call: &IamCall<'_>) -> Result<Node, IamError> {
    let user = call.entity()?;
    let state = call.kms.state.read();
    let all = state.iam.account(call.account()).all(Kind::Group).values();
    let groups = all.filter(|group| group.record.members.contains(&user.record.name));
    page(call.params, "Groups", groups, |group| group.record.name.clone(), |group| show(&group.record, false))
}
