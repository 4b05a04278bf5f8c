//! The key that kmsfs itself manages: made when the service first names its alias, usable through the service only.
//!
//! Called by `find` when an alias is unknown.

use std::sync::Arc;

use crate::api::{KeyId, KeyManager, KmsError};
use crate::crypto::{BackingKey, random_array};

use super::caller::root_arn;
use super::model::{AliasRecord, Key, Rotation};
use super::ops::{DEFAULT_PERIOD_DAYS, NewKey, compile_key_policy};
use super::pipeline::{Call, Kms};

/// The alias of the managed key.
pub const MANAGED_ALIAS: &str = "alias/aws/kmsfs";

impl Kms {
    /// The service that may use the managed key, as it stands in `kms:ViaService`.
    pub fn managed_service(&self) -> String {
        format!("kmsfs.{}.amazonaws.com", self.settings.region)
    }

    fn managed_policy(&self) -> String {
        let (account, service) = (&self.settings.account, self.managed_service());
        let root = root_arn(account);
        format!(
            r#"{{
  "Version" : "2012-10-17",
  "Id" : "auto-kmsfs-1",
  "Statement" : [ {{
    "Sid" : "Allow access through kmsfs for all principals in the account that are authorized to use kmsfs",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "*"
    }},
    "Action" : [ "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey" ],
    "Resource" : "*",
    "Condition" : {{
      "StringEquals" : {{
        "kms:CallerAccount" : "{account}",
        "kms:ViaService" : "{service}"
      }}
    }}
  }}, {{
    "Sid" : "Allow direct access to key metadata to the account",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "{root}"
    }},
    "Action" : [ "kms:Describe*", "kms:Get*", "kms:List*" ],
    "Resource" : "*"
  }} ]
}}"#
        )
    }
}

impl Call<'_> {
    /// The managed key, made now if `name` is its alias and the service asks for it.
    pub(super) fn managed_key(&self, name: &str) -> Result<Option<Arc<Key>>, KmsError> {
        let kms = self.kms;
        if name != MANAGED_ALIAS || self.caller.via_service.as_deref() != Some(&kms.managed_service()) {
            return Ok(None);
        }
        let own;
        let turn = if let Some(turn) = self.turn {
            turn
        } else {
            own = kms.turn();
            &own
        };
        // Another call may have made it while this one waited.
        if let Some(key) = kms.state.read().alias_target(name) {
            return Ok(Some(key));
        }
        let text = kms.managed_policy();
        let policy = compile_key_policy(&text)?;
        let new = NewKey {
            id: KeyId::from_random(random_array(), false),
            manager: KeyManager::Aws,
            description: String::from(
                "Default key that protects my kmsfs volumes when no other key is defined",
            ),
            policy: text,
            tags: Vec::new(),
        };
        let mut record = new.record(kms, self.now);
        let next = self.now.plus_days(DEFAULT_PERIOD_DAYS);
        record.rotation = Some(Rotation { period_days: DEFAULT_PERIOD_DAYS, next });
        let alias =
            AliasRecord { name: name.to_owned(), target: record.id, created: self.now, updated: self.now };
        kms.insert_key(turn, record, policy, &BackingKey::random(), vec![alias]).map(Some)
    }
}
