//! Keys that services manage: made when their service first names the alias, usable through the service only.
//!
//! Called by `find` when an alias is unknown. One is that of kmsfs. The others are AWS's, which clients look up by
//! DescribeKey before they configure a service with them, so that makes them too.

use std::sync::Arc;

use crate::api::{KeyId, KeyManager, KmsError, Origin};
use crate::crypto::{MaterialBytes, random_array};

use super::authorise::{Demand, Resource, authorise};
use super::caller::root_arn;
use super::home::Home;
use super::model::{AliasRecord, Key, Rotation};
use super::ops::{DEFAULT_PERIOD_DAYS, NewKey, parse_key_policy};
use super::pipeline::Call;

/// The alias of the managed key.
pub const MANAGED_ALIAS: &str = "alias/aws/kmsfs";

/// A service with a key of its own.
struct Manager {
    /// What its alias ends in.
    alias: &'static str,
    /// Its name in `kms:ViaService`.
    service: &'static str,
    /// What its key protects.
    what: &'static str,
}

const KMSFS: Manager = Manager::new("kmsfs", "kmsfs", "kmsfs volumes");
/// Source: "AWS managed keys" in the guides of these services.
const OF_AWS: &[Manager] = &[
    Manager::new("acm", "acm", "ACM private keys"),
    Manager::new("backup", "backup", "Backup vaults"),
    Manager::new("dynamodb", "dynamodb", "DynamoDB data"),
    Manager::new("ebs", "ec2", "EBS volumes"),
    Manager::new("elasticfilesystem", "elasticfilesystem", "EFS filesystems"),
    Manager::new("es", "es", "Elasticsearch data"),
    Manager::new("fsx", "fsx", "FSx resources"),
    Manager::new("glue", "glue", "Glue data"),
    Manager::new("kinesis", "kinesis", "Kinesis data"),
    Manager::new("kinesisvideo", "kinesisvideo", "Kinesis Video data"),
    Manager::new("lambda", "lambda", "Lambda functions"),
    Manager::new("rds", "rds", "RDS database volumes"),
    Manager::new("redshift", "redshift", "Redshift clusters"),
    Manager::new("s3", "s3", "S3 objects"),
    Manager::new("secretsmanager", "secretsmanager", "Secrets Manager data"),
    Manager::new("sns", "sns", "SNS data"),
    Manager::new("sqs", "sqs", "SQS messages"),
    Manager::new("ssm", "ssm", "SSM parameters"),
    Manager::new("workspaces", "workspaces", "WorkSpaces volumes"),
    Manager::new("xray", "xray", "X-Ray data"),
];

impl Manager {
    const fn new(alias: &'static str, service: &'static str, what: &'static str) -> Self {
        Self { alias, service, what }
    }

    fn of(alias: &str) -> Option<&'static Self> {
        let name = alias.strip_prefix("alias/aws/")?;
        std::iter::once(&KMSFS).chain(OF_AWS).find(|manager| manager.alias == name)
    }

    /// As it stands in `kms:ViaService`.
    fn via(&self, region: &str) -> String {
        format!("{}.{region}.amazonaws.com", self.service)
    }
}

fn managed_policy(manager: &Manager, home: Home<'_>) -> String {
    let (account, service) = (home.account, manager.via(home.region));
    let (root, Manager { alias, what, .. }) = (root_arn(account), manager);
    format!(
        r#"{{
  "Version" : "2012-10-17",
  "Id" : "auto-{alias}-1",
  "Statement" : [ {{
    "Sid" : "Allow access through the service of {what} for all principals in the account that may use it",
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
    /// The managed key, made now if `name` is its alias and one asks for it who may: its service, and whoever may
    /// describe keys, of one of AWS's.
    pub(super) fn managed_key(&self, name: &str, action: &'static str) -> Result<Option<Arc<Key>>, KmsError> {
        let kms = self.kms;
        let Some(manager) = Manager::of(name) else { return Ok(None) };
        let is_service = self.caller.via_service.as_deref() == Some(&manager.via(&self.caller.region));
        if !is_service && (manager.alias == KMSFS.alias || !self.may_describe(name, action)) {
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
        let text = managed_policy(manager, self.home());
        let policy = parse_key_policy(&text)?;
        let new = NewKey {
            id: KeyId::from_random(random_array(), false),
            manager: KeyManager::Aws,
            origin: Origin::AwsKms,
            description: format!(
                "Default key that protects my {} when no other key is defined",
                manager.what
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

    /// Whether the caller's own policies let it describe the key of that alias; its key policy is not there yet.
    fn may_describe(&self, alias: &str, action: &'static str) -> bool {
        let demand = Demand::new(action, Resource::Alias(self.home().alias_arn(alias)));
        let identity = self.kms.identity_of(self.caller);
        action == "kms:DescribeKey" && authorise(&self.asker(identity.as_deref()), &[demand]).is_ok()
    }
}
