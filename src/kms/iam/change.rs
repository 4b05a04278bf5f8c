//! Changes of identities: committed to the store first, then put in place in memory.
//!
//! Called by the operations of IAM. Each change demands the [`Turn`], so that what was read before it is still so.

use crate::api::KmsError;

use super::super::change::put;
use super::super::pipeline::{Kms, Turn};
use super::super::store::{Change, Table};
use super::records::{AccessKeyRecord, EntityRecord, PolicyRecord, entity_row};

impl Kms {
    /// Puts a user, role or group in place. Its documents have been compiled before, so that they can be.
    pub(in super::super) fn put_entity(
        &self,
        _turn: &Turn<'_>,
        record: EntityRecord,
    ) -> Result<(), KmsError> {
        let row = entity_row(&record, &self.settings.account);
        self.commit(&[put(Table::User, row, &record)?])?;
        self.state.write().iam.put_entity(record);
        Ok(())
    }

    /// Removes a user, role or group.
    pub(in super::super) fn remove_entity(
        &self,
        _turn: &Turn<'_>,
        record: &EntityRecord,
    ) -> Result<(), KmsError> {
        let id = entity_row(record, &self.settings.account);
        self.commit(&[Change::Delete { table: Table::User, id }])?;
        self.state.write().iam.remove_entity(record.kind, &record.account, &record.name);
        Ok(())
    }

    /// Puts a managed policy in place.
    pub(in super::super) fn put_managed(
        &self,
        _turn: &Turn<'_>,
        record: PolicyRecord,
    ) -> Result<(), KmsError> {
        self.commit(&[put(Table::Policy, record.row(), &record)?])?;
        self.state.write().iam.put_policy(record);
        self.sessions.clear();
        Ok(())
    }

    /// Removes a managed policy.
    pub(in super::super) fn remove_managed(
        &self,
        _turn: &Turn<'_>,
        record: &PolicyRecord,
    ) -> Result<(), KmsError> {
        self.commit(&[Change::Delete { table: Table::Policy, id: record.row() }])?;
        self.state.write().iam.remove_policy(&record.account, &record.name);
        self.sessions.clear();
        Ok(())
    }

    /// Puts an access key in place.
    pub(in super::super) fn put_access_key(
        &self,
        _turn: &Turn<'_>,
        record: AccessKeyRecord,
    ) -> Result<(), KmsError> {
        self.commit(&[put(Table::AccessKey, record.id.clone(), &record)?])?;
        self.state.write().iam.put_access_key(record);
        Ok(())
    }

    /// Removes an access key.
    pub(in super::super) fn remove_access_key(&self, _turn: &Turn<'_>, id: &str) -> Result<(), KmsError> {
        self.commit(&[Change::Delete { table: Table::AccessKey, id: id.to_owned() }])?;
        self.state.write().iam.remove_access_key(id);
        Ok(())
    }
}
