//! The two protocols of the endpoint, told apart by a request's head: the JSON of KMS, and the forms of IAM and STS.
//!
//! Used by `http`, for answers and for what it refuses itself.

use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use crate::api::KmsError;

use super::iam::actions::Service;
use super::iam::{Envelope, IamError};
use super::sigv4::SERVICE;

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");
const PLAIN_JSON: HeaderValue = HeaderValue::from_static("application/json");
const XML: HeaderValue = HeaderValue::from_static("text/xml");
const FORM: &str = "application/x-www-form-urlencoded";

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// JSON 1.1: the operation is in `X-Amz-Target`.
    Target,
    /// AWS Query: the operation is in the form.
    Query {
        /// Whether the answer is JSON instead of XML.
        json: bool,
    },
}

impl Wire {
    /// Which one a request speaks.
    pub fn of(headers: &HeaderMap) -> Self {
        let starts = |name, wanted: &str| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
                .is_some_and(|v| v.starts_with(wanted))
        };
        if headers.contains_key("x-amz-target") || !starts(CONTENT_TYPE, FORM) {
            return Self::Target;
        }
        Self::Query { json: starts(ACCEPT, "application/json") }
    }

    /// Names of services that a signature may be for.
    pub const fn services(self) -> &'static [&'static str] {
        match self {
            Self::Target => &[SERVICE],
            Self::Query { .. } => &["sts", "iam"],
        }
    }

    /// What its answers are.
    pub const fn content_type(self) -> HeaderValue {
        match self {
            Self::Target => JSON,
            Self::Query { json: true } => PLAIN_JSON,
            Self::Query { json: false } => XML,
        }
    }

    /// Status and body of an error.
    pub fn error(self, error: &KmsError, request_id: &str) -> (u16, Zeroizing<Vec<u8>>) {
        match self {
            Self::Target => (error.code.status(), Zeroizing::new(error.body())),
            Self::Query { json } => {
                let error = IamError::from(error.clone());
                let namespace = Service::Sts.namespace();
                let envelope = Envelope { action: "", namespace, request_id, json };
                let status = error.status();
                (status, envelope.error(error.code, &error.message, status >= 500))
            }
        }
    }
}
