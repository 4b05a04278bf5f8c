//! What the daemon's parts call: the key service with its peers, its seed and its audit log around it.
//!
//! Made by the daemon. Turns a call of the server into a [`Caller`] and a target; decides nothing.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::api::{ErrorCode, KeyId, KmsError, NOT_TRUSTED, Operation, Tag};
use crate::crypto::MaterialBytes;

use super::audit_log::AuditLog;
use super::audit_retention::Retention;
use super::caller::{Caller, Source};
use super::changes::Watch;
use super::clock::{Clock, SystemClock};
use super::failure::Failure;
use super::faults::Fault;
use super::home::Home;
use super::http::{Answer, Call, Origin, Service};
use super::iam::{IamReply, Signer};
use super::metrics::{Gauges, Metrics};
use super::peer::{self, PeerMap};
use super::pipeline::{Kms, Parts, Reply, Settings};
use super::quota::{QuotaProfile, Quotas};
use super::root::Root;
use super::seed::Seed;
use super::seeding::{SeedKey, Seeded};
use super::sigv4::{AccessKeySecret, SignatureError};
use super::state::LoadError;
use super::store::{Store, StoreError};
use super::toml_file::TomlError;
use super::wire::Wire;

/// Keys of a seed that are looked for one by one, rather than among all.
const MAX_KEYS_LOOKED_UP: usize = 100;

/// The key service and what surrounds it.
#[derive(Debug)]
pub struct Keeper {
    kms: Kms,
    settings: Settings,
    audit: Arc<AuditLog>,
    peers: PeerMap,
    metrics: Metrics,
    bounds: Bounds,
}

/// What the command line says about how much callers get, and how long records are kept.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// Request quotas.
    pub quotas: QuotaProfile,
    /// Faults on demand.
    pub faults: Vec<Fault>,
    /// How long the audit log is kept.
    pub retention: Retention,
}

impl Keeper {
    /// Loads all records.
    pub fn open(
        settings: Settings,
        store: Arc<dyn Store>,
        root: Root,
        audit: Arc<AuditLog>,
        peers: PeerMap,
        bounds: Bounds,
    ) -> Result<Self, Failure> {
        let parts = Parts {
            settings: settings.clone(),
            store,
            root,
            audit: Arc::clone(&audit) as _,
            clock: Arc::new(SystemClock),
        };
        let kms = Kms::open(parts).map_err(load_failure)?;
        let kms = kms.bounded_by(Quotas::new(bounds.quotas), bounds.faults.clone());
        Ok(Self { kms, settings, audit, peers, metrics: Metrics::default(), bounds })
    }

    /// Reads the records that `open` has left, beside the calls. After an error nothing is answered any more.
    pub fn read_rest(&self) -> Result<(), Failure> {
        self.kms.read_rest().map_err(load_failure)
    }

    /// Stores what keys were last used for.
    pub fn store_last_usage(&self) {
        if let Err(error) = self.kms.store_last_usage() {
            log::error!("the last uses of keys could not be stored: {error}");
        }
    }

    /// Whether that has not come to its end yet.
    pub fn is_reading(&self) -> bool {
        self.kms.is_reading()
    }

    /// Prepares the next start: at the end, or when nothing has changed since this was last called.
    pub fn vouch(&self, is_end: bool) {
        if let Err(error) = self.kms.vouch(is_end) {
            log::error!("the next start will read every row first: {error}");
        }
    }

    /// Does what has come due: deletions, rotations.
    pub fn do_due(&self) {
        let done = self.kms.run_due(SystemClock.now());
        if done.deleted + done.rotated + done.expired > 0 {
            log::info!(
                "keys deleted: {}, rotated: {}, without their expired material: {}",
                done.deleted,
                done.rotated,
                done.expired
            );
        }
    }

    /// Removes what the audit log no longer has to keep.
    pub fn prune_audit(&self) {
        if let Err(error) = self.audit.prune(self.bounds.retention, SystemTime::now()) {
            log::error!("old audit segments could not be removed: {error}");
        }
    }

    /// Everything in the store, sealed for `kmsd restore`. `root_file` is the sealed root file as it stands.
    pub fn back_up(&self, root_file: &[u8]) -> Result<Vec<u8>, Failure> {
        self.kms.back_up(root_file).map_err(Failure::Store)
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What is so at this moment.
    pub fn gauges(&self, connections: usize) -> Gauges {
        Gauges {
            keys: self.kms.key_count(),
            connections,
            audit_lag: self.audit.lag(),
            audit_up: self.trouble().is_none(),
        }
    }

    /// Why calls fail now, if they all do.
    pub fn trouble(&self) -> Option<String> {
        self.audit.trouble().map(|error| error.to_string())
    }

    /// Makes the audit log durable up to here.
    pub fn sync_audit(&self) {
        if let Err(error) = self.audit.sync() {
            log::error!("{error}");
        }
    }

    /// Whether all that `seed` names is there, which can be told before everything is read: there is nothing to make.
    pub fn holds(&self, seed: &Seed) -> bool {
        let own = self.settings.home();
        let is_own = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        is_own(&seed.account, own.account)
            && is_own(&seed.region, own.region)
            && seed.keys.len() <= MAX_KEYS_LOOKED_UP
            && self.kms.holds_identities(seed, own)
            && seed.keys.iter().all(|key| self.holds_key(key))
    }

    fn holds_key(&self, key: &super::seed::SeedKey) -> bool {
        let own = self.settings.home();
        let home = Home::new(
            key.account.as_deref().unwrap_or(own.account),
            key.region.as_deref().unwrap_or(own.region),
        );
        let found = match (&key.id, key.aliases.first()) {
            (Some(id), _) => KeyId::parse(id).and_then(|id| self.kms.key(home, id)),
            (None, Some(alias)) => self.kms.state.alias_target(home, alias),
            (None, None) => None,
        };
        self.settings.serves(home.region) && found.is_some() && key.material_bytes().is_ok()
    }

    /// Makes what `seed` describes and is not there.
    pub fn apply(&self, seed: &Seed) -> Result<(), TomlError> {
        let own = [
            ("account", &seed.account, &self.settings.account),
            ("region", &seed.region, &self.settings.region),
        ];
        for (what, wanted, is) in own {
            if wanted.as_ref().is_some_and(|wanted| wanted != is) {
                let wanted = wanted.as_deref().unwrap_or_default();
                let message = format!("it is for {what} {wanted}, but this store has {what} {is}");
                return Err(TomlError::Contradiction(message));
            }
        }
        self.kms.seed_identities(seed, self.settings.home())?;
        seed.keys.iter().try_for_each(|key| self.seed_key(key))
    }

    fn seed_key(&self, key: &super::seed::SeedKey) -> Result<(), TomlError> {
        let wrong = |error| contradiction(&format!("key {}", key.name()), &error);
        let id = key.id.as_ref().map(|text| parse_id(text)).transpose()?;
        let own = self.settings.home();
        let account = key.account.as_deref().unwrap_or(own.account);
        let home = Home::new(account, key.region.as_deref().unwrap_or(own.region));
        if !self.settings.serves(home.region) {
            let (name, region) = (key.name(), home.region);
            let message = format!("key {name}: region {region} is not served; name it with --region");
            return Err(TomlError::Contradiction(message));
        }
        let seeded = self.kms.seed_key(SeedKey {
            id,
            account: key.account.clone(),
            region: key.region.clone(),
            description: key.description.clone(),
            policy: key.policy.as_ref().map(super::seed::Document::text),
            tags: key
                .tags
                .iter()
                .map(|(key, value)| Tag { tag_key: key.clone(), tag_value: value.clone() })
                .collect(),
            aliases: key.aliases.clone(),
            material: key.material_bytes()?.map(|mut bytes| MaterialBytes::take(&mut bytes)),
        });
        let made = match seeded.map_err(wrong)? {
            Seeded::Made(id) => id,
            Seeded::Present(_) => return Ok(()),
            Seeded::Destroyed(id) => {
                log::warn!("key {id} of the seed was destroyed and is not made again");
                return Ok(());
            }
        };
        let Some(days) = key.rotation_days else { return Ok(()) };
        let request = json!({ "KeyId": made.to_string(), "RotationPeriodInDays": days });
        self.make(home, Operation::EnableKeyRotation, &request).map(|_| ()).map_err(wrong)
    }

    /// A call of the daemon itself; `false` when what it makes is there already.
    fn make(&self, home: Home<'_>, operation: Operation, request: &Value) -> Result<bool, KmsError> {
        let caller = Caller::internal(home);
        let body = Zeroizing::new(request.to_string());
        let Reply { body, error, .. } = self.kms.handle(&caller, operation.target(), body.as_bytes());
        match error {
            None => Ok(true),
            Some(ErrorCode::AlreadyExistsException) => Ok(false),
            Some(code) => {
                let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                let message = answer.get("message").or(answer.get("Message")).and_then(Value::as_str);
                Err(KmsError::new(code, message.unwrap_or_default()))
            }
        }
    }

    /// Who makes `call`; `None` for a Unix user whom the map refuses.
    fn caller(&self, call: &Call<'_>) -> Option<Caller> {
        let signer = match (call.access_key_id, call.origin) {
            (Some(id), _) => self.kms.signer(id, call.session_token).ok()?,
            (None, Origin::Unix { uid, .. }) => self.peers.principal_of(*uid)?.in_account(call.account),
            (None, Origin::Tcp { .. }) => return None,
        };
        let via_service = self.service_of(call);
        let (signer, barred) = match call.on_behalf_of {
            Some(user) => self.on_behalf_of(call, signer, user),
            None => (signer, None),
        };
        let Signer { principal_arn, account, is_root, session } = signer;
        let region = call.region.unwrap_or(&self.settings.region);
        let source = match *call.origin {
            Origin::Unix { uid, gid, pid } => Source::Unix { uid, gid, pid },
            Origin::Tcp { address, .. } => Source::Tcp(address),
        };
        Some(Caller {
            principal_arn,
            account,
            region: region.to_owned(),
            is_root,
            access_key_id: call.access_key_id.map(str::to_owned),
            secure_transport: !matches!(call.origin, Origin::Tcp { is_tls: false, .. }),
            session,
            source,
            user_agent: call.user_agent.to_owned(),
            via_service: via_service.map(|name| format!("{name}.{region}.amazonaws.com")),
            barred,
        })
    }

    /// The service that makes `call`, as far as it is trusted to be that one. Others speak for themselves.
    fn service_of<'a>(&self, call: &Call<'a>) -> Option<&'a str> {
        let Origin::Unix { uid, .. } = call.origin else { return None };
        call.via_service.filter(|name| call.access_key_id.is_none() && self.peers.is_service(*uid, name))
    }

    /// Who stands behind `call` of the service `own`, by its word that it calls for `user`; or why that is not taken.
    fn on_behalf_of(&self, call: &Call<'_>, own: Signer, user: &str) -> (Signer, Option<String>) {
        let Some(service) = self.service_of(call) else {
            let why = format!(
                "{NOT_TRUSTED}: {} may not call on behalf of others{}. The operator of the key service \
                 names those that may under [services] in the file of 'kmsd serve --map'.",
                own.principal_arn,
                call.via_service.map(|name| format!(" as the service {name}")).unwrap_or_default()
            );
            return (own, Some(why));
        };
        if let Some(mount) = peer::mount_of(service, user) {
            return (mount, None);
        }
        let Some(uid) = user.parse().ok().filter(|uid| *uid != u32::MAX) else {
            return (
                own,
                Some(String::from(
                    "The header X-Kms-On-Behalf-Of holds neither the id of a user nor the principal of a mount.",
                )),
            );
        };
        match self.peers.principal_of(uid) {
            Some(principal) => (principal.in_account(None), None),
            None => (
                own,
                Some(format!("No calls are taken from user {uid}, nor for that user through {service}.")),
            ),
        }
    }

    /// Lets those go on who wait for a change, when the daemon ends.
    pub fn end_watches(&self) {
        self.kms.changes.tell_anyway();
    }

    fn answer(&self, call: &Call<'_>) -> Answer {
        let Some(caller) = self.caller(call) else {
            let error =
                KmsError::new(ErrorCode::MissingAuthenticationTokenException, "Missing Authentication Token");
            return refusal(call, &error);
        };
        let begin = Instant::now();
        if let Wire::Query { json } = call.wire {
            let IamReply { status, body, request_id, action, error } =
                self.kms.handle_iam(&caller, call.body, json);
            self.metrics.count_identity(action, error, begin.elapsed());
            return Answer { status, body, request_id };
        }
        let Reply { status, body, request_id, error } = self.kms.handle(&caller, call.target, call.body);
        self.metrics.count(Operation::from_target(call.target), error, begin.elapsed());
        Answer { status, body, request_id }
    }
}

impl Service for Keeper {
    fn call(&self, call: &Call<'_>) -> Answer {
        let answer = self.answer(call);
        if self.kms.is_broken() {
            // What was found may rest on a record that somebody put there.
            return refusal(call, &KmsError::new(ErrorCode::KMSInternalException, ""));
        }
        answer
    }

    fn changes(&self) -> Watch {
        self.kms.changes.watch()
    }

    fn serves(&self, region: &str) -> bool {
        self.settings.serves(region)
    }

    fn secret_of(&self, id: &str, token: Option<&str>) -> Result<AccessKeySecret, SignatureError> {
        self.kms.signing_secret(id, token).map(AccessKeySecret::new)
    }

    fn blocks(&self, target: &str) -> bool {
        let slow = |operation: Operation| {
            !operation.is_read_only()
                || matches!(
                    operation,
                    Operation::GenerateDataKeyPair
                        | Operation::GenerateDataKeyPairWithoutPlaintext
                        | Operation::GetParametersForImport
                )
                || self.bounds.faults.iter().any(|fault| fault.delays() && fault.may_hit(operation))
        };
        // Until all is read, a call may have to wait for it.
        self.audit.syncs_each() || self.kms.is_reading() || Operation::from_target(target).is_some_and(slow)
    }
}

fn load_failure(error: LoadError) -> Failure {
    match error {
        LoadError::Store(error) => Failure::Store(error),
        error @ LoadError::Record { .. } => Failure::Store(StoreError::Tampered(error.to_string())),
    }
}

fn refusal(call: &Call<'_>, error: &KmsError) -> Answer {
    let request_id = crate::api::uuid_text(crate::crypto::random_array());
    let (status, body) = call.wire.error(error, &request_id);
    Answer { status, body, request_id }
}

fn parse_id(text: &str) -> Result<KeyId, TomlError> {
    let wrong =
        || TomlError::Contradiction(format!("key {text}: the id is neither a UUID nor mrk- and 32 digits"));
    KeyId::parse(text).ok_or_else(wrong)
}

fn contradiction(what: &str, error: &KmsError) -> TomlError {
    TomlError::Contradiction(format!("{what}: {}: {}", error.code, error.message))
}
