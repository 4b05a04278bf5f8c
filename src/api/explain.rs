//! The daemon's own question: would this principal be allowed this, and what decides?

use serde::{Deserialize, Serialize};

use super::EncryptionContext;
use super::request_data::KEY_REF;
use super::rule::PRINCIPAL;
use super::rule::Rule::{Form, Length};
use super::shape::shape;

shape! {
    /// Asks what decides about an action of a principal on a key.
    ExplainRequest for Explain {
        required {
            /// ARN of the principal.
            principal_arn: String [Length(1, 256), Form(&PRINCIPAL)],
            /// `kms:NAME`.
            action: String [Length(1, 128)],
            /// The key: id, ARN, alias or alias ARN.
            key_id: String [KEY_REF],
        }
        optional {
            /// The encryption context of the call.
            encryption_context: EncryptionContext,
            /// The service that asks, as `kms:ViaService` has it.
            via_service: String [Length(1, 128)],
            /// The address that the call comes from.
            source_ip: String [Length(1, 64)],
        }
    }
}

/// What decides.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExplainResponse {
    /// Whether it would be allowed.
    pub allowed: bool,
    /// The statement, grant or rule that decides; for a refusal without an explicit deny, what is missing.
    pub decided_by: String,
    /// What the caller would be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// ARN of the key.
    pub key_arn: String,
}
