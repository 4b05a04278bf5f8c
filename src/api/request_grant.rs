//! Requests that make, list and end grants.

use super::request_data::KEY_REF;
use super::rule::Rule::{self, Each, Form, Length, Range};
use super::rule::{ALIAS_NAME, MARKER, PRINCIPAL, SERVICE_PRINCIPAL, SOURCE_ARN};
use super::shape::shape;
use super::{EncryptionContext, GrantOperation};

const PRINCIPALS: [Rule; 2] = [Length(1, 256), Form(&PRINCIPAL)];
const SERVICES: [Rule; 2] = [Length(1, 128), Form(&SERVICE_PRINCIPAL)];
const GRANT_ID: Rule = Length(1, 128);
const LIMIT: Rule = Range(1, 1000);
const MARKERS: [Rule; 2] = [Length(1, 1024), Form(&MARKER)];

shape! {
    /// When a grant counts.
    #[derive(Clone, PartialEq, Eq, serde::Deserialize)]
    GrantConstraints {
        optional {
            /// The encryption context must hold these pairs.
            encryption_context_subset: EncryptionContext,
            /// The encryption context must be these pairs.
            encryption_context_equals: EncryptionContext,
            /// The resource for which a service asks.
            source_arn: String [Length(20, 512), Form(&SOURCE_ARN)],
        }
    }

    /// Lets a principal use a key.
    CreateGrantRequest for CreateGrant {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
            /// What it may be used for.
            operations: Vec<GrantOperation>,
        }
        optional {
            /// Who.
            grantee_principal: String [PRINCIPALS[0], PRINCIPALS[1]],
            /// Who may end it.
            retiring_principal: String [PRINCIPALS[0], PRINCIPALS[1]],
            /// When.
            constraints: GrantConstraints,
            /// Tokens of grants to be used at once.
            grant_tokens: Vec<String> [Length(0, 10), Each(&[Length(1, 8192)])],
            /// Makes a retry return the same grant.
            name: String [Length(1, 256), Form(&ALIAS_NAME)],
            /// Check, and do nothing.
            dry_run: bool,
            /// Who, if it is a service.
            grantee_service_principal: String [SERVICES[0], SERVICES[1]],
            /// Who may end it, if it is a service.
            retiring_service_principal: String [SERVICES[0], SERVICES[1]],
        }
    }

    /// Lists the grants of a key.
    ListGrantsRequest for ListGrants {
        required {
            /// The key: id or ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
            /// This one only.
            grant_id: String [GRANT_ID],
            /// Of this principal only.
            grantee_principal: String [PRINCIPALS[0], PRINCIPALS[1]],
            /// Of this service only.
            grantee_service_principal: String [SERVICES[0], SERVICES[1]],
        }
    }

    /// Lists the grants that a principal may retire.
    ListRetirableGrantsRequest for ListRetirableGrants {
        optional {
            /// Most entries of a page.
            limit: i64 [LIMIT],
            /// Where the page before ended.
            marker: String [MARKERS[0], MARKERS[1]],
            /// The principal.
            retiring_principal: String [PRINCIPALS[0], PRINCIPALS[1]],
            /// Or the service.
            retiring_service_principal: String [SERVICES[0], SERVICES[1]],
        }
    }

    /// Ends a grant, by one whom it names.
    RetireGrantRequest for RetireGrant {
        optional {
            /// The grant, by its token.
            grant_token: String [Length(1, 8192)],
            /// Its key, by ARN.
            key_id: String [KEY_REF],
            /// The grant, by its id.
            grant_id: String [GRANT_ID],
            /// Check, and do nothing.
            dry_run: bool,
        }
    }

    /// Ends a grant, by one who administers the key.
    RevokeGrantRequest for RevokeGrant {
        required {
            /// Its key: id or ARN.
            key_id: String [KEY_REF],
            /// The grant.
            grant_id: String [GRANT_ID],
        }
        optional {
            /// Check, and do nothing.
            dry_run: bool,
        }
    }
}
