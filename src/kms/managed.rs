//! The key that kmsfs itself manages: made when the service first names its alias, usable through the service only.
//!
//! Called by `find` when an alias is unknown.

use std::sync::Arc;

use crate::api::{KeyId, KeyManager, KmsError, Origin};
use crate::crypto::{MaterialBytes, random_array};

use super::caller::root_arn;
use super::home::Home;
use super::model::{AliasRecord, Key, Rotation};
use super::ops::{DEFAULT_PERIOD_DAYS, NewKey, parse_key_policy};
use super::pipeline::Call;

/// The alias of the managed key.
pub const MANAGED_ALIAS: &str = "alias/aws/kmsfs";

/// The service that may use the managed key of `region`, as it stands in `kms:ViaService`.
fn managed_service(region: &str) -> String {
    format!("kmsfs.{region}.amazonaws.com")
}

fn managed_policy(home: Home<'_>) -> String {
    let (account, service) = (home.account, managed_service(home.region));
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
    "Action" : [ "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:CreateGrant",
    "kms:DescribeKey" ],
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

impl Call<'_> {
    /// The managed key, made now if `name` is its alias and the service asks for it.
    pub(super) fn managed_key(&self, name: &str) -> Result<Option<Arc<Key>>, KmsError> {
        let kms = self.kms;
        if name != MANAGED_ALIAS
            || self.caller.via_service.as_deref() != Some(&managed_service(&self.caller.region))
        {
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
        if let Some(key) = kms.state.alias_target(self.home(), name) {
            return Ok(Some(key));
        }
        let text = managed_policy(self.home());
        let policy = parse_key_policy(&text)?;
        let new = NewKey {
            id: KeyId::from_random(random_array(), false),
            manager: KeyManager::Aws,
            origin: Origin::AwsKms,
            description: String::from(
                "Default key that protects my kmsfs volumes when no other key is defined",
            ),
            policy: text,
            tags: Vec::new(),
        };
        let mut record = new.record(self.home(), self.now);
        let next = self.now.plus_days(DEFAULT_PERIOD_DAYS);
        record.rotation = Some(Rotation { period_days: DEFAULT_PERIOD_DAYS, next });
        let alias = AliasRecord::new(self.home(), name.to_owned(), record.id, self.now);
        let make = || {
            kms.insert_key(turn, record, policy, Some(&MaterialBytes::take(&mut random_array())), vec![alias])
        };
        kms.act_making(self.home(), self.now, make).map(Some)
    }
}
