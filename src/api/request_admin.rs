//! Requests of the daemon's own administration: users, their policies and access keys.

use super::rule::Rule::{self, Form, Length, Range};
use super::rule::{ACCESS_KEY_ID, IAM_NAME, MARKER, POLICY_TEXT};
use super::shape::shape;
use super::{AccessKeyStatus, SecretBlob};

const NAME: [Rule; 2] = [Length(1, 64), Form(&IAM_NAME)];
const POLICY_NAME: [Rule; 2] = [Length(1, 128), Form(&IAM_NAME)];
const DOCUMENT: [Rule; 2] = [Length(1, 131_072), Form(&POLICY_TEXT)];
const ACCESS_KEY: [Rule; 2] = [Length(16, 128), Form(&ACCESS_KEY_ID)];
const LIMIT: Rule = Range(1, 1000);
const MARKERS: [Rule; 2] = [Length(1, 1024), Form(&MARKER)];

shape! {
    /// Makes a user.
    CreateUserRequest for CreateUser {
        required {
            /// Its name.
            user_name: String [NAME[0], NAME[1]],
        }
    }

    /// Removes a user that has no access keys and no policies.
    DeleteUserRequest for DeleteUser {
        required {
            /// Its name.
            user_name: String [NAME[0], NAME[1]],
        }
    }

    /// Lists users.
    ListUsersRequest for ListUsers {
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
        }
    }

    /// Adds or replaces a policy of a user.
    PutUserPolicyRequest for PutUserPolicy {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
            /// The policy's name.
            policy_name: String [POLICY_NAME[0], POLICY_NAME[1]],
            /// The document.
            policy_document: String [DOCUMENT[0], DOCUMENT[1]],
        }
    }

    /// Shows a policy of a user.
    GetUserPolicyRequest for GetUserPolicy {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
            /// The policy's name.
            policy_name: String [POLICY_NAME[0], POLICY_NAME[1]],
        }
    }

    /// Removes a policy of a user.
    DeleteUserPolicyRequest for DeleteUserPolicy {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
            /// The policy's name.
            policy_name: String [POLICY_NAME[0], POLICY_NAME[1]],
        }
    }

    /// Lists the names of a user's policies.
    ListUserPoliciesRequest for ListUserPolicies {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
        }
    }

    /// Makes an access key for a user.
    CreateAccessKeyRequest for CreateAccessKey {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
        }
        optional {
            /// A chosen id; made where absent.
            access_key_id: String [ACCESS_KEY[0], ACCESS_KEY[1]],
            /// A chosen secret; made where absent. Together with the id.
            secret_access_key: SecretBlob [Length(1, 128)],
        }
    }

    /// Lets an access key sign, or stops it.
    UpdateAccessKeyRequest for UpdateAccessKey {
        required {
            /// The access key.
            access_key_id: String [ACCESS_KEY[0], ACCESS_KEY[1]],
            /// What it shall be.
            status: AccessKeyStatus,
        }
    }

    /// Removes an access key.
    DeleteAccessKeyRequest for DeleteAccessKey {
        required {
            /// The access key.
            access_key_id: String [ACCESS_KEY[0], ACCESS_KEY[1]],
        }
    }

    /// Lists the access keys of a user.
    ListAccessKeysRequest for ListAccessKeys {
        required {
            /// The user.
            user_name: String [NAME[0], NAME[1]],
        }
    }
}
