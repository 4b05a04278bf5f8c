//! Answers about grants.

use serde::{Deserialize, Serialize};

use super::{GrantConstraints, GrantOperation, Timestamp};

/// Answer of `CreateGrant`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateGrantResponse {
    /// Makes the grant count at once wherever it is shown.
    pub grant_token: String,
    /// Its id.
    pub grant_id: String,
}

/// A grant in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GrantListEntry {
    /// ARN of the key.
    pub key_id: String,
    /// Its id.
    pub grant_id: String,
    /// As it was named; empty where it was not.
    pub name: String,
    /// When it was made.
    pub creation_date: Timestamp,
    /// Who may use the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grantee_principal: Option<String>,
    /// Who may end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring_principal: Option<String>,
    /// The account root in whose name it was made.
    pub issuing_account: String,
    /// What the key may be used for.
    pub operations: Vec<GrantOperation>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<GrantConstraints>,
    /// Who may use the key, if it is a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grantee_service_principal: Option<String>,
    /// Who may end it, if it is a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring_service_principal: Option<String>,
}

/// Answer of `ListGrants` and `ListRetirableGrants`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListGrantsResponse {
    /// The page.
    pub grants: Vec<GrantListEntry>,
    /// Where it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
    /// Whether there is more.
    #[serde(default)]
    pub truncated: bool,
}
