//! Every identity in memory, with its policies compiled and gathered from wherever they come: its own, those attached,
//! those of its groups.
//!
//! Part of the daemon's state. A change builds the identities it touches anew; a call reads one `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::Tag;

use super::super::policy::Policy;
use super::records::{AccessKeyRecord, EntityRecord, Kind, PolicyRecord};

/// A compiled policy and what messages call it.
#[derive(Debug)]
pub struct Rules {
    /// E.g. `policy "read" of user alice`.
    pub title: String,
    /// Compiled.
    pub policy: Policy,
}

impl Rules {
    /// Compiles a stored document. One that cannot be read any more refuses everything, and the log says which.
    fn stored(
        title: String,
        text: &str,
        compile: fn(&str) -> Result<Policy, super::super::policy::PolicyError>,
    ) -> Arc<Self> {
        let policy = compile(text).unwrap_or_else(|error| {
            log::error!("{title} cannot be read and refuses everything until it is put anew: {error}");
            Policy::refusing()
        });
        Arc::new(Self { title, policy })
    }
}

/// Whom a caller acts as: a user or a role, with all that allows and limits it.
#[derive(Debug)]
pub struct Identity {
    /// Of the user or role.
    pub arn: String,
    /// Unique id.
    pub id: String,
    /// Name, for users.
    pub user_name: Option<String>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// Policies from wherever they come.
    pub policies: Vec<Arc<Rules>>,
    /// Beyond this it may nothing.
    pub boundary: Option<Arc<Rules>>,
}

/// A user, role or group.
#[derive(Debug)]
pub struct Entity {
    /// As stored.
    pub record: EntityRecord,
    /// Its own policies, compiled.
    own: Vec<Arc<Rules>>,
    /// Of a role: who may assume it.
    pub trust: Option<Arc<Rules>>,
    /// Whom its callers act as; of a group, nobody.
    pub identity: Arc<Identity>,
}

impl Entity {
    fn build(record: EntityRecord) -> Self {
        let EntityRecord { kind, name, .. } = &record;
        let of = format!("{} {name}", kind.word());
        let own = record.policies.iter().map(|policy| {
            Rules::stored(
                format!("policy \"{}\" of {of}", policy.name),
                &policy.document,
                Policy::of_identity,
            )
        });
        let own: Vec<_> = own.collect();
        let trust = (*kind == Kind::Role)
            .then(|| Rules::stored(format!("the trust policy of {of}"), &record.trust, Policy::of_trust));
        let identity = Arc::new(Identity {
            arn: record.arn(),
            id: record.id.clone(),
            user_name: (*kind == Kind::User).then(|| name.clone()),
            tags: record.tags.clone(),
            policies: own.clone(),
            boundary: None,
        });
        Self { record, own, trust, identity }
    }
}

/// A managed policy.
#[derive(Debug)]
pub struct Managed {
    /// As stored.
    pub record: PolicyRecord,
    /// Its default version, compiled.
    pub rules: Arc<Rules>,
}

/// What belongs to one account.
#[derive(Debug, Default)]
pub struct Account {
    entities: BTreeMap<Kind, BTreeMap<String, Arc<Entity>>>,
    policies: BTreeMap<String, Arc<Managed>>,
}

static NONE: BTreeMap<String, Arc<Entity>> = BTreeMap::new();

impl Account {
    /// The entities of a kind, by name.
    pub fn all(&self, kind: Kind) -> &BTreeMap<String, Arc<Entity>> {
        self.entities.get(&kind).unwrap_or(&NONE)
    }

    /// The managed policies, by name.
    pub fn policies(&self) -> &BTreeMap<String, Arc<Managed>> {
        &self.policies
    }

    /// The managed policy of that ARN.
    pub fn policy(&self, arn: &str) -> Option<&Arc<Managed>> {
        let name = arn.rsplit('/').next()?;
        self.policies.get(name).filter(|policy| policy.record.arn() == arn)
    }

    /// Whether it has users or roles.
    pub fn has_principals(&self) -> bool {
        [Kind::User, Kind::Role].iter().any(|kind| !self.all(*kind).is_empty())
    }

    /// Gathers the policies of a user or role.
    fn link(&self, entity: &Entity) -> Arc<Identity> {
        let record = &entity.record;
        let mut policies = entity.own.clone();
        let attached = |record: &EntityRecord| {
            let found = record.attached.iter().filter_map(|arn| self.policy(arn));
            found.map(|policy| Arc::clone(&policy.rules)).collect::<Vec<_>>()
        };
        policies.extend(attached(record));
        if record.kind == Kind::User {
            for group in self.all(Kind::Group).values() {
                if group.record.members.contains(&record.name) {
                    policies.extend(group.own.iter().cloned());
                    policies.extend(attached(&group.record));
                }
            }
        }
        let boundary = record.boundary.as_ref().map(|arn| match self.policy(arn) {
            Some(policy) => Arc::clone(&policy.rules),
            None => {
                Arc::new(Rules { title: format!("the missing policy {arn}"), policy: Policy::refusing() })
            }
        });
        let identity = &entity.identity;
        Arc::new(Identity {
            arn: identity.arn.clone(),
            id: identity.id.clone(),
            user_name: identity.user_name.clone(),
            tags: identity.tags.clone(),
            policies,
            boundary,
        })
    }

    fn relink(&mut self, kind: Kind, name: &str) {
        let Some(entity) = self.all(kind).get(name) else { return };
        let linked = Entity {
            record: entity.record.clone(),
            own: entity.own.clone(),
            trust: entity.trust.clone(),
            identity: self.link(entity),
        };
        self.entities.entry(kind).or_default().insert(name.to_owned(), Arc::new(linked));
    }

    fn relink_all(&mut self) {
        for kind in [Kind::User, Kind::Role] {
            let names: Vec<String> = self.all(kind).keys().cloned().collect();
            for name in &names {
                self.relink(kind, name);
            }
        }
    }
}

/// All identities of all accounts.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: BTreeMap<String, Account>,
    access_keys: BTreeMap<String, Arc<AccessKeyRecord>>,
}

static NOBODY: Account = Account { entities: BTreeMap::new(), policies: BTreeMap::new() };

impl Directory {
    /// From the records of a store.
    pub fn load(
        entities: Vec<EntityRecord>,
        policies: Vec<PolicyRecord>,
        keys: Vec<AccessKeyRecord>,
    ) -> Self {
        let mut directory = Self::default();
        for record in policies {
            directory.account_mut(&record.account).insert_policy(record);
        }
        for record in entities {
            let account = directory.account_mut(&record.account);
            let (kind, name) = (record.kind, record.name.clone());
            account.entities.entry(kind).or_default().insert(name, Arc::new(Entity::build(record)));
        }
        directory.accounts.values_mut().for_each(Account::relink_all);
        directory.access_keys = keys.into_iter().map(|key| (key.id.clone(), Arc::new(key))).collect();
        directory
    }

    /// What belongs to `account`.
    pub fn account(&self, account: &str) -> &Account {
        self.accounts.get(account).unwrap_or(&NOBODY)
    }

    fn account_mut(&mut self, account: &str) -> &mut Account {
        self.accounts.entry(account.to_owned()).or_default()
    }

    /// A user, role or group.
    pub fn entity(&self, kind: Kind, account: &str, name: &str) -> Option<&Arc<Entity>> {
        self.account(account).all(kind).get(name)
    }

    /// The identity behind a principal's ARN: of a user or role, or of a role's session.
    pub fn identity_of(&self, principal_arn: &str, account: &str) -> Option<Arc<Identity>> {
        let mut parts = principal_arn.splitn(6, ':').skip(2);
        let (service, _, of, resource) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if of != account {
            return None;
        }
        let mut names = resource.split('/');
        let entity = match (service, names.next()?) {
            ("iam", "user") => self.entity(Kind::User, account, names.next_back()?)?,
            ("iam", "role") => self.entity(Kind::Role, account, names.next_back()?)?,
            ("sts", "assumed-role") => {
                return self.entity(Kind::Role, account, names.next()?).map(|e| Arc::clone(&e.identity));
            }
            _ => return None,
        };
        (entity.identity.arn == principal_arn).then(|| Arc::clone(&entity.identity))
    }

    /// Whether a user or role has that unique id.
    pub fn has_id(&self, id: &str) -> bool {
        let kinds = || [Kind::User, Kind::Role].into_iter();
        let mut entities = self.accounts.values().flat_map(|account| kinds().map(|kind| account.all(kind)));
        entities.any(|entities| entities.values().any(|entity| entity.identity.id == id))
    }

    /// An access key.
    pub fn access_key(&self, id: &str) -> Option<&Arc<AccessKeyRecord>> {
        self.access_keys.get(id)
    }

    /// The access keys of a user, or of the account root.
    pub fn access_keys_of<'a>(
        &'a self,
        account: &'a str,
        user: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<AccessKeyRecord>> {
        let own = move |key: &&Arc<AccessKeyRecord>| key.account == account && key.user.as_deref() == user;
        self.access_keys.values().filter(own)
    }

    /// Puts an entity in place; its documents were compiled before, so that they can be.
    pub fn put_entity(&mut self, record: EntityRecord) {
        let (kind, name) = (record.kind, record.name.clone());
        let account = self.account_mut(&record.account);
        account.entities.entry(kind).or_default().insert(name.clone(), Arc::new(Entity::build(record)));
        match kind {
            Kind::Group => account.relink_all(),
            Kind::User | Kind::Role => account.relink(kind, &name),
        }
    }

    /// Removes an entity.
    pub fn remove_entity(&mut self, kind: Kind, account: &str, name: &str) {
        let account = self.account_mut(account);
        account.entities.entry(kind).or_default().remove(name);
        if kind == Kind::Group {
            account.relink_all();
        }
    }

    /// Puts a managed policy in place.
    pub fn put_policy(&mut self, record: PolicyRecord) {
        let account = self.account_mut(&record.account);
        account.insert_policy(record);
        account.relink_all();
    }

    /// Removes a managed policy.
    pub fn remove_policy(&mut self, account: &str, name: &str) {
        let account = self.account_mut(account);
        account.policies.remove(name);
        account.relink_all();
    }

    /// Puts an access key in place.
    pub fn put_access_key(&mut self, record: AccessKeyRecord) {
        self.access_keys.insert(record.id.clone(), Arc::new(record));
    }

    /// Removes an access key.
    pub fn remove_access_key(&mut self, id: &str) {
        self.access_keys.remove(id);
    }
}

impl Account {
    fn insert_policy(&mut self, record: PolicyRecord) {
        let title = format!("managed policy {}", record.arn());
        let rules = Rules::stored(title, record.document(), Policy::of_identity);
        self.policies.insert(record.name.clone(), Arc::new(Managed { record, rules }));
    }
}
