//! The one list of the operations of IAM and STS: what each is about, what it needs, and who performs it.
//!
//! Read by `call` for each request, and by `kmsd iam` for its command line.

use super::answer::Node;
use super::call::IamCall;
use super::error::IamError;
use super::records::Kind;
use super::{access_keys, entities, groups, managed, policies, sts};

/// Which service an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Identities.
    Iam,
    /// Sessions.
    Sts,
}

impl Service {
    /// Namespace of its answers.
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Iam => "https://iam.amazonaws.com/doc/2010-05-08/",
            Self::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }

    /// As audit records call it.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Iam => "iam.amazonaws.com",
            Self::Sts => "sts.amazonaws.com",
        }
    }
}

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// A user, role or group, by name.
    Entity(Kind),
    /// The access keys of a user or of the account root.
    AccessKeys,
    /// A managed policy to be made.
    PolicyName,
    /// A managed policy.
    PolicyArn,
    /// Nothing in particular.
    Anything,
    /// The caller; the operation decides itself who may.
    Caller,
}

/// An operation.
#[derive(Debug)]
pub struct Action {
    /// Its service.
    pub service: Service,
    /// Its name.
    pub name: &'static str,
    /// Whether it changes nothing.
    pub reads: bool,
    /// What it is about.
    pub on: On,
    /// Parameters that must be there; on the command line they come in this order.
    pub required: &'static [&'static str],
    /// Its work.
    pub run: fn(&IamCall<'_>) -> Result<Node, IamError>,
}

/// The operation of that name.
pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

macro_rules! actions {
    ($($service:ident { $($name:ident $effect:ident $on:expr, [$($required:ident)*], $run:path;)+ })+) => {
        /// Every operation.
        pub const ACTIONS: &[Action] = &[$($(Action {
            service: Service::$service,
            name: stringify!($name),
            reads: actions!(@$effect),
            on: $on,
            required: &[$(stringify!($required)),*],
            run: $run,
        },)+)+];
    };
    (@reads) => { true };
    (@writes) => { false };
}

const USER: On = On::Entity(Kind::User);
const ROLE: On = On::Entity(Kind::Role);
const GROUP: On = On::Entity(Kind::Group);

actions! {
    Iam {
        CreateUser writes USER, [UserName], entities::create;
        GetUser reads USER, [], entities::get;
        ListUsers reads On::Anything, [], entities::list_users;
        DeleteUser writes USER, [UserName], entities::delete;
        TagUser writes USER, [UserName], entities::tag;
        UntagUser writes USER, [UserName], entities::untag;
        ListUserTags reads USER, [UserName], entities::list_tags;
        PutUserPermissionsBoundary writes USER, [UserName PermissionsBoundary], entities::put_boundary;
        DeleteUserPermissionsBoundary writes USER, [UserName], entities::delete_boundary;
        PutUserPolicy writes USER, [UserName PolicyName PolicyDocument], policies::put;
        GetUserPolicy reads USER, [UserName PolicyName], policies::get;
        DeleteUserPolicy writes USER, [UserName PolicyName], policies::delete;
        ListUserPolicies reads USER, [UserName], policies::list;
        AttachUserPolicy writes USER, [UserName PolicyArn], policies::attach;
        DetachUserPolicy writes USER, [UserName PolicyArn], policies::detach;
        ListAttachedUserPolicies reads USER, [UserName], policies::list_attached;
        ListGroupsForUser reads USER, [UserName], groups::list_for_user;

        CreateAccessKey writes On::AccessKeys, [], access_keys::create;
        UpdateAccessKey writes On::AccessKeys, [AccessKeyId Status], access_keys::update;
        DeleteAccessKey writes On::AccessKeys, [AccessKeyId], access_keys::delete;
        ListAccessKeys reads On::AccessKeys, [], access_keys::list;

        CreateRole writes ROLE, [RoleName AssumeRolePolicyDocument], entities::create;
        GetRole reads ROLE, [RoleName], entities::get;
        ListRoles reads On::Anything, [], entities::list_roles;
        DeleteRole writes ROLE, [RoleName], entities::delete;
        UpdateRole writes ROLE, [RoleName], entities::update_role;
        UpdateAssumeRolePolicy writes ROLE, [RoleName PolicyDocument], entities::update_trust;
        TagRole writes ROLE, [RoleName], entities::tag;
        UntagRole writes ROLE, [RoleName], entities::untag;
        ListRoleTags reads ROLE, [RoleName], entities::list_tags;
        PutRolePermissionsBoundary writes ROLE, [RoleName PermissionsBoundary], entities::put_boundary;
        DeleteRolePermissionsBoundary writes ROLE, [RoleName], entities::delete_boundary;
        PutRolePolicy writes ROLE, [RoleName PolicyName PolicyDocument], policies::put;
        GetRolePolicy reads ROLE, [RoleName PolicyName], policies::get;
        DeleteRolePolicy writes ROLE, [RoleName PolicyName], policies::delete;
        ListRolePolicies reads ROLE, [RoleName], policies::list;
        AttachRolePolicy writes ROLE, [RoleName PolicyArn], policies::attach;
        DetachRolePolicy writes ROLE, [RoleName PolicyArn], policies::detach;
        ListAttachedRolePolicies reads ROLE, [RoleName], policies::list_attached;
        ListInstanceProfilesForRole reads ROLE, [RoleName], entities::no_instance_profiles;

        CreateGroup writes GROUP, [GroupName], entities::create;
        GetGroup reads GROUP, [GroupName], groups::get;
        ListGroups reads On::Anything, [], entities::list_groups;
        DeleteGroup writes GROUP, [GroupName], entities::delete;
        AddUserToGroup writes GROUP, [GroupName UserName], groups::add_user;
        RemoveUserFromGroup writes GROUP, [GroupName UserName], groups::remove_user;
        PutGroupPolicy writes GROUP, [GroupName PolicyName PolicyDocument], policies::put;
        GetGroupPolicy reads GROUP, [GroupName PolicyName], policies::get;
        DeleteGroupPolicy writes GROUP, [GroupName PolicyName], policies::delete;
        ListGroupPolicies reads GROUP, [GroupName], policies::list;
        AttachGroupPolicy writes GROUP, [GroupName PolicyArn], policies::attach;
        DetachGroupPolicy writes GROUP, [GroupName PolicyArn], policies::detach;
        ListAttachedGroupPolicies reads GROUP, [GroupName], policies::list_attached;

        CreatePolicy writes On::PolicyName, [PolicyName PolicyDocument], managed::create;
        GetPolicy reads On::PolicyArn, [PolicyArn], managed::get;
        ListPolicies reads On::Anything, [], managed::list;
        DeletePolicy writes On::PolicyArn, [PolicyArn], managed::delete;
        CreatePolicyVersion writes On::PolicyArn, [PolicyArn PolicyDocument], managed::create_version;
        GetPolicyVersion reads On::PolicyArn, [PolicyArn VersionId], managed::get_version;
        ListPolicyVersions reads On::PolicyArn, [PolicyArn], managed::list_versions;
        DeletePolicyVersion writes On::PolicyArn, [PolicyArn VersionId], managed::delete_version;
        SetDefaultPolicyVersion writes On::PolicyArn, [PolicyArn VersionId], managed::set_default;
        ListEntitiesForPolicy reads On::PolicyArn, [PolicyArn], managed::list_entities;
    }
    Sts {
        GetCallerIdentity reads On::Caller, [], sts::get_caller_identity;
        AssumeRole reads On::Caller, [RoleArn RoleSessionName], sts::assume_role;
        GetSessionToken reads On::Caller, [], sts::get_session_token;
        GetAccessKeyInfo reads On::Caller, [AccessKeyId], sts::get_access_key_info;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_stands_once_and_writers_are_told_by_their_names() {
        for (place, action) in ACTIONS.iter().enumerate() {
            assert!(ACTIONS[..place].iter().all(|other| other.name != action.name), "{}", action.name);
            let reads = ["Get", "List", "Assume"].iter().any(|prefix| action.name.starts_with(prefix));
            assert_eq!(action.reads, reads, "{}", action.name);
        }
    }
}
