//! What a store is for: its account and its region. Set at init, never changed.
//!
//! Called by the daemon at init and at start.

use super::pipeline::Settings;
use super::store::{Change, Store, StoreError, Table};

const ACCOUNT: &str = "account";
const REGION: &str = "region";

impl Settings {
    /// Writes the settings of a new store.
    pub fn save(&self, store: &dyn Store) -> Result<(), StoreError> {
        let put = |id: &str, text: &str| Change::Put {
            table: Table::Setting,
            id: id.to_owned(),
            body: text.as_bytes().to_vec(),
        };
        store.commit(&[put(ACCOUNT, &self.account), put(REGION, &self.region)])
    }

    /// Reads them back.
    pub fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let rows = store.load(Table::Setting)?;
        let text = |name: &str| {
            let row = rows.iter().find(|row| row.id == name);
            let text = row.and_then(|row| String::from_utf8(row.body.clone()).ok());
            text.ok_or_else(|| StoreError::Tampered(format!("the setting {name:?} is missing")))
        };
        Ok(Self { account: text(ACCOUNT)?, region: text(REGION)? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;

    #[test]
    fn settings_there_and_back() {
        let store = MemoryStore::new();
        assert!(Settings::load(&store).is_err());
        let settings = Settings { account: "123456789012".into(), region: "local".into() };
        settings.save(&store).unwrap();
        assert_eq!(Settings::load(&store).unwrap(), settings);
    }
}
