//! Grants: what they allow, and the index that finds the one that counts without looking at the others.
//!
//! Part of the daemon's state; asked by `authorise` when no policy allows, changed by the operations on grants. A grant
//! never denies. How long a search takes depends on the context of the request, not on how many grants a key has.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::api::{EncryptionContext, GrantConstraints, GrantListEntry, GrantOperation, Timestamp};

/// A grant, as stored (table Grant, row id = its id).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// ARN of the key.
    pub key: String,
    /// As the caller named it, so that a retry makes no second one.
    pub name: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// Who may use the key by it: ARN of a principal, or the name of a service.
    pub grantee: String,
    /// Whether `grantee` is a service.
    #[serde(default)]
    pub grantee_is_service: bool,
    /// Who may retire it, if somebody was named.
    pub retiring: Option<String>,
    /// Whether `retiring` is a service.
    #[serde(default)]
    pub retiring_is_service: bool,
    /// ARN of the account root in whose name it was made.
    pub issuer: String,
    /// What it allows.
    pub operations: Vec<GrantOperation>,
    /// Pairs that the context must hold.
    #[serde(default)]
    pub subset: Option<EncryptionContext>,
    /// Pairs that the context must be.
    #[serde(default)]
    pub equals: Option<EncryptionContext>,
    /// The resource for which a service must ask.
    #[serde(default)]
    pub source_arn: Option<String>,
}

impl GrantRecord {
    /// Whether it says the same as another, but for its id and time.
    pub fn same_as(&self, other: &Self) -> bool {
        let bare =
            |record: &Self| Self { id: String::new(), created: Timestamp::default(), ..record.clone() };
        bare(self) == bare(other)
    }

    /// Whether the context of a request meets the constraints.
    pub fn permits(&self, context: Option<&EncryptionContext>) -> bool {
        let none = EncryptionContext::new();
        let context = context.unwrap_or(&none);
        self.equals.as_ref().is_none_or(|wanted| wanted == context)
            && self.subset.as_ref().is_none_or(|wanted| contains(context, wanted))
    }

    /// Whether a grant with these operations and constraints allows nothing that this one does not.
    pub fn covers(
        &self,
        operations: &[GrantOperation],
        subset: Option<&EncryptionContext>,
        equals: Option<&EncryptionContext>,
    ) -> bool {
        let fewer = operations.iter().all(|operation| self.operations.contains(operation));
        let as_strict = match (&self.equals, &self.subset) {
            (None, None) => true,
            (Some(wanted), _) => equals == Some(wanted),
            (None, Some(wanted)) => equals.or(subset).is_some_and(|given| contains(given, wanted)),
        };
        fewer && as_strict
    }

    /// As lists show it.
    pub fn entry(&self) -> GrantListEntry {
        let constrained = self.subset.is_some() || self.equals.is_some() || self.source_arn.is_some();
        let named = |text: &String, is: bool| is.then(|| text.clone());
        let retiring = |service: bool| {
            self.retiring.as_ref().and_then(|text| named(text, self.retiring_is_service == service))
        };
        GrantListEntry {
            key_id: self.key.clone(),
            grant_id: self.id.clone(),
            // AWS shows an empty name where none was given.
            name: self.name.clone().unwrap_or_default(),
            creation_date: self.created,
            grantee_principal: named(&self.grantee, !self.grantee_is_service),
            retiring_principal: retiring(false),
            issuing_account: self.issuer.clone(),
            operations: self.operations.clone(),
            constraints: constrained.then(|| GrantConstraints {
                encryption_context_subset: self.subset.clone(),
                encryption_context_equals: self.equals.clone(),
                source_arn: self.source_arn.clone(),
            }),
            grantee_service_principal: named(&self.grantee, self.grantee_is_service),
            retiring_service_principal: retiring(true),
        }
    }
}

fn contains(context: &EncryptionContext, wanted: &EncryptionContext) -> bool {
    wanted.iter().all(|(key, value)| context.get(key) == Some(value))
}

/// The operation of grants that an action is, if grants can allow it.
pub fn operation_of(action: &str) -> Option<GrantOperation> {
    GrantOperation::parse(action.strip_prefix("kms:")?)
}

/// Whether requests of this operation have an encryption context, so that constraints count.
pub fn has_context(operation: GrantOperation) -> bool {
    use GrantOperation as O;
    matches!(
        operation,
        O::Decrypt
            | O::Encrypt
            | O::GenerateDataKey
            | O::GenerateDataKeyWithoutPlaintext
            | O::GenerateDataKeyPair
            | O::GenerateDataKeyPairWithoutPlaintext
            | O::ReEncryptFrom
            | O::ReEncryptTo
    )
}

fn bit(operation: GrantOperation) -> u32 {
    1 << (operation as u32)
}

fn mask(operations: &[GrantOperation]) -> u32 {
    operations.iter().fold(0, |mask, operation| mask | bit(*operation))
}

/// Grants by what they allow: those that allow the same stand together.
type Groups = Vec<(u32, Vec<Arc<GrantRecord>>)>;

fn add(groups: &mut Groups, grant: &Arc<GrantRecord>) {
    let mask = mask(&grant.operations);
    match groups.iter_mut().find(|(known, _)| *known == mask) {
        Some((_, grants)) => grants.push(Arc::clone(grant)),
        None => groups.push((mask, vec![Arc::clone(grant)])),
    }
}

fn take(groups: &mut Groups, grant: &GrantRecord) {
    for (_, grants) in groups.iter_mut() {
        if let Some(place) = grants.iter().position(|known| known.id == grant.id) {
            grants.swap_remove(place);
        }
    }
    groups.retain(|(_, grants)| !grants.is_empty());
}

/// The grants of one grantee on one key.
#[derive(Debug, Default)]
struct Bucket {
    /// All, for operations without a context.
    all: Groups,
    /// Those without constraints.
    free: Groups,
    /// The others, by one pair that the context must have.
    by_pair: HashMap<u64, Groups>,
}

/// The grants of one key.
#[derive(Debug, Default)]
struct KeyGrants {
    all: BTreeMap<String, Arc<GrantRecord>>,
    by_name: HashMap<String, Vec<Arc<GrantRecord>>>,
    by_grantee: HashMap<String, Bucket>,
}

impl KeyGrants {
    /// Takes a grant out of the indices.
    fn forget(&mut self, grant: &GrantRecord, pair: Option<u64>) {
        if let Some(name) = &grant.name
            && let Some(named) = self.by_name.get_mut(name)
        {
            named.retain(|known| known.id != grant.id);
            if named.is_empty() {
                self.by_name.remove(name);
            }
        }
        let Some(bucket) = self.by_grantee.get_mut(&grant.grantee) else { return };
        take(&mut bucket.all, grant);
        match pair {
            Some(pair) => {
                let left = bucket.by_pair.get_mut(&pair).is_some_and(|groups| {
                    take(groups, grant);
                    !groups.is_empty()
                });
                if !left {
                    bucket.by_pair.remove(&pair);
                }
            }
            None => take(&mut bucket.free, grant),
        }
        if bucket.all.is_empty() {
            self.by_grantee.remove(&grant.grantee);
        }
    }
}

/// Every grant.
#[derive(Debug, Default)]
pub struct Grants {
    keys: HashMap<String, KeyGrants>,
    key_of: HashMap<String, String>,
    by_retiring: HashMap<String, BTreeSet<String>>,
    hasher: RandomState,
}

impl Grants {
    /// The grants of a key, by id.
    pub fn of_key(&self, key: &str) -> impl Iterator<Item = &Arc<GrantRecord>> {
        self.keys.get(key).into_iter().flat_map(|grants| grants.all.values())
    }

    /// How many grants a key has.
    pub fn count(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, |grants| grants.all.len())
    }

    /// A grant by its id.
    pub fn get(&self, id: &str) -> Option<&Arc<GrantRecord>> {
        self.keys.get(self.key_of.get(id)?)?.all.get(id)
    }

    /// The grants that `principal` may retire as the one named for it, by id.
    pub fn retirable(&self, principal: &str) -> impl Iterator<Item = &Arc<GrantRecord>> {
        self.by_retiring.get(principal).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// A grant that says the same as `wanted` and has its name.
    pub fn twin(&self, wanted: &GrantRecord) -> Option<&Arc<GrantRecord>> {
        let named = self.keys.get(&wanted.key)?.by_name.get(wanted.name.as_ref()?)?;
        named.iter().find(|known| known.same_as(wanted))
    }

    /// A grant on `key` to `grantee` that allows `operation` in this context.
    pub fn find(
        &self,
        key: &str,
        grantee: &str,
        operation: GrantOperation,
        context: Option<&EncryptionContext>,
    ) -> Option<&Arc<GrantRecord>> {
        let bucket = self.keys.get(key)?.by_grantee.get(grantee)?;
        let bit = bit(operation);
        let with = |groups: &'_ Groups| groups.iter().any(|(mask, _)| mask & bit != 0);
        if !with(&bucket.all) {
            return None;
        }
        if !has_context(operation) {
            return first(&bucket.all, bit, |_| true);
        }
        let permits = |grant: &GrantRecord| grant.permits(context);
        first(&bucket.free, bit, permits).or_else(|| {
            let pairs = context.into_iter().flatten();
            pairs
                .filter_map(|pair| bucket.by_pair.get(&self.hasher.hash_one(pair)))
                .find_map(|groups| first(groups, bit, permits))
        })
    }

    /// Every grant of `grantee` on `key` that allows making grants; for what a new one may not exceed.
    pub fn parents<'a>(&'a self, key: &str, grantee: &str) -> impl Iterator<Item = &'a Arc<GrantRecord>> {
        let bucket = self.keys.get(key).and_then(|grants| grants.by_grantee.get(grantee));
        let groups = bucket.into_iter().flat_map(|bucket| &bucket.all);
        groups.filter(|(mask, _)| mask & bit(GrantOperation::CreateGrant) != 0).flat_map(|(_, grants)| grants)
    }

    /// Puts a grant in place.
    pub fn insert(&mut self, record: GrantRecord) {
        let grant = Arc::new(record);
        self.key_of.insert(grant.id.clone(), grant.key.clone());
        if let Some(retiring) = &grant.retiring {
            self.by_retiring.entry(retiring.clone()).or_default().insert(grant.id.clone());
        }
        let pair = self.pair_of(&grant);
        let grants = self.keys.entry(grant.key.clone()).or_default();
        if let Some(name) = &grant.name {
            grants.by_name.entry(name.clone()).or_default().push(Arc::clone(&grant));
        }
        if !grant.grantee_is_service {
            let bucket = grants.by_grantee.entry(grant.grantee.clone()).or_default();
            add(&mut bucket.all, &grant);
            match pair {
                Some(pair) => add(bucket.by_pair.entry(pair).or_default(), &grant),
                None => add(&mut bucket.free, &grant),
            }
        }
        grants.all.insert(grant.id.clone(), grant);
    }

    /// Removes a grant.
    pub fn remove(&mut self, id: &str) {
        let Some(key) = self.key_of.remove(id) else { return };
        let Some(grant) = self.keys.get_mut(&key).and_then(|grants| grants.all.remove(id)) else { return };
        if let Some(retiring) = &grant.retiring {
            let left =
                self.by_retiring.get_mut(retiring).is_some_and(|ids| ids.remove(id) && !ids.is_empty());
            if !left {
                self.by_retiring.remove(retiring);
            }
        }
        let pair = self.pair_of(&grant);
        let Some(grants) = self.keys.get_mut(&key) else { return };
        grants.forget(&grant, pair);
        if grants.all.is_empty() {
            self.keys.remove(&key);
        }
    }

    /// Removes every grant of a key. Their ids.
    pub fn remove_key(&mut self, key: &str) -> Vec<String> {
        let ids: Vec<String> = self.of_key(key).map(|grant| grant.id.clone()).collect();
        self.keys.remove(key);
        for id in &ids {
            self.key_of.remove(id);
        }
        for retirable in self.by_retiring.values_mut() {
            retirable.retain(|id| self.key_of.contains_key(id));
        }
        self.by_retiring.retain(|_, ids| !ids.is_empty());
        ids
    }

    /// The pair by which a constrained grant is found: of its longest value, which tells the most apart.
    fn pair_of(&self, grant: &GrantRecord) -> Option<u64> {
        let pairs = grant.equals.as_ref().or(grant.subset.as_ref())?;
        let pair = pairs.iter().max_by_key(|(_, value)| value.len())?;
        Some(self.hasher.hash_one(pair))
    }
}

fn first(groups: &Groups, bit: u32, permits: impl Fn(&GrantRecord) -> bool) -> Option<&Arc<GrantRecord>> {
    let allowing = groups.iter().filter(|(mask, _)| mask & bit != 0);
    allowing.flat_map(|(_, grants)| grants).find(|grant| permits(grant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(pairs: &[(String, String)]) -> EncryptionContext {
        pairs.iter().cloned().collect()
    }

    type Drawn = (u8, u32, u8, Vec<(String, String)>);

    fn record(number: usize, (grantee, operations, kind, pairs): &Drawn) -> GrantRecord {
        let pairs = context(pairs);
        GrantRecord {
            id: format!("{number:064x}"),
            key: "key".into(),
            name: Some(format!("n{}", number % 3)),
            created: Timestamp::default(),
            grantee: format!("g{}", grantee % 3),
            grantee_is_service: false,
            retiring: None,
            retiring_is_service: false,
            issuer: String::new(),
            operations: GrantOperation::ALL.iter().copied().filter(|o| operations & bit(*o) != 0).collect(),
            subset: (kind % 3 == 1).then(|| pairs.clone()),
            equals: (kind % 3 == 2).then_some(pairs),
            source_arn: None,
        }
    }

    fn drawn() -> impl Strategy<Value = Drawn> {
        let pairs = prop::collection::vec(("[ab]", "[xy]{1,2}"), 0..3);
        (any::<u8>(), any::<u32>(), any::<u8>(), pairs)
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_look_at_every_grant_finds(
            grants in prop::collection::vec(drawn(), 0..30),
            removed in prop::collection::vec(0..30_usize, 0..10),
            asked in prop::collection::vec(("[ab]", "[xy]{1,2}"), 0..3),
        ) {
            let mut index = Grants::default();
            let mut all: Vec<GrantRecord> = grants.iter().enumerate().map(|(n, g)| record(n, g)).collect();
            all.iter().cloned().for_each(|grant| index.insert(grant));
            for number in removed {
                let id = format!("{number:064x}");
                index.remove(&id);
                all.retain(|grant| grant.id != id);
            }
            let asked = context(&asked);
            for operation in GrantOperation::ALL.iter().copied() {
                for grantee in ["g0", "g1", "g2", "g3"] {
                    let plain = all.iter().any(|grant| {
                        grant.grantee == grantee
                            && grant.operations.contains(&operation)
                            && (!has_context(operation) || grant.permits(Some(&asked)))
                    });
                    let found = index.find("key", grantee, operation, Some(&asked));
                    prop_assert_eq!(found.is_some(), plain, "{} {}", operation, grantee);
                }
            }
            prop_assert_eq!(index.count("key"), all.len());
            let ids = index.remove_key("key");
            prop_assert_eq!((ids.len(), index.count("key"), index.key_of.len()), (all.len(), 0, 0));
        }
    }

    #[test]
    fn a_child_covers_no_more_than_its_parent() {
        use GrantOperation::{CreateGrant, Decrypt, Encrypt};
        let pairs = |list: &[(&str, &str)]| -> EncryptionContext { list.iter().copied().collect() };
        let parent = |subset: Option<EncryptionContext>, equals: Option<EncryptionContext>| GrantRecord {
            operations: vec![Decrypt, CreateGrant],
            subset,
            equals,
            ..record(0, &(0, 0, 0, vec![]))
        };
        let (a, ab) = (pairs(&[("a", "1")]), pairs(&[("a", "1"), ("b", "2")]));
        let free = parent(None, None);
        assert!(free.covers(&[Decrypt], None, None) && free.covers(&[Decrypt], Some(&a), None));
        assert!(!free.covers(&[Decrypt, Encrypt], None, None), "an operation more");
        let subset = parent(Some(a.clone()), None);
        assert!(subset.covers(&[Decrypt], Some(&ab), None) && subset.covers(&[Decrypt], None, Some(&a)));
        assert!(!subset.covers(&[Decrypt], None, None), "no constraint");
        assert!(!subset.covers(&[Decrypt], Some(&pairs(&[("a", "2")])), None), "another one");
        let equals = parent(None, Some(a.clone()));
        assert!(equals.covers(&[Decrypt], None, Some(&a)));
        assert!(!equals.covers(&[Decrypt], Some(&a), None), "a subset is wider than that context alone");
    }
}
