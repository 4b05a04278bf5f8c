//! What a store is for: its account and its regions. Set at init, never changed.
//!
//! Called by the daemon at init and at start.

use super::home::{ANY_REGION, Home, is_region};
use super::pipeline::Settings;
use super::store::{Change, Store, StoreError, Table};

const ACCOUNT: &str = "account";
const REGION: &str = "region";
/// Further regions, one a line; absent in stores that have none.
const FURTHER_REGIONS: &str = "further-regions";

impl Settings {
    /// The home of callers and records that do not tell theirs.
    pub fn home(&self) -> Home<'_> {
        Home::new(&self.account, &self.region)
    }

    /// Whether callers may ask in `region`.
    pub fn serves(&self, region: &str) -> bool {
        region == self.region
            || self.further_regions.iter().any(|further| further == region)
            || (self.further_regions.iter().any(|further| further == ANY_REGION) && is_region(region))
    }

    /// Writes the settings of a new store.
    pub fn save(&self, store: &dyn Store) -> Result<(), StoreError> {
        let put = |id: &str, text: &str| Change::Put {
            table: Table::Setting,
            id: id.to_owned(),
            body: text.as_bytes().to_vec(),
        };
        let mut changes = vec![put(ACCOUNT, &self.account), put(REGION, &self.region)];
        if !self.further_regions.is_empty() {
            changes.push(put(FURTHER_REGIONS, &self.further_regions.join("\n")));
        }
        store.commit(&changes)
    }

    /// Reads them back.
    pub fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let rows = store.load(Table::Setting)?;
        let known = |name: &str| {
            let row = rows.iter().find(|row| row.id == name)?;
            String::from_utf8(row.body.clone()).ok()
        };
        let text = |name: &str| {
            known(name).ok_or_else(|| StoreError::Tampered(format!("the setting {name:?} is missing")))
        };
        let further = known(FURTHER_REGIONS).unwrap_or_default();
        let further_regions = further.lines().map(str::to_owned).collect();
        Ok(Self {
            account: text(ACCOUNT)?,
            region: text(REGION)?,
            further_regions,
            settle_millis: 0,
            takes_unknown_principals: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;

    fn settings(further: &[&str]) -> Settings {
        Settings {
            account: "123456789012".into(),
            region: "local".into(),
            further_regions: further.iter().map(ToString::to_string).collect(),
            settle_millis: 0,
            takes_unknown_principals: false,
        }
    }

    #[test]
    fn settings_there_and_back() {
        let store = MemoryStore::new();
        assert!(Settings::load(&store).is_err());
        for further in [&[][..], &["eu-west-1", "us-east-1"]] {
            let store = MemoryStore::new();
            settings(further).save(&store).unwrap();
            assert_eq!(Settings::load(&store).unwrap(), settings(further));
        }
    }

    #[test]
    fn only_regions_that_are_named_are_served() {
        let served = |further: &[&str], region| settings(further).serves(region);
        assert!(served(&[], "local") && !served(&[], "eu-west-1"));
        assert!(served(&["eu-west-1"], "eu-west-1") && !served(&["eu-west-1"], "eu-west-2"));
        assert!(served(&["*"], "eu-west-2") && !served(&["*"], "EU/WEST"));
    }
}
