//! A volume's data keys: [`KeySource`] over the key service, the cache and the pool.
//!
//! Called by `tree` through the trait. Must never accept a wrap under a master key that the volume record does not
//! name, nor hand out a cached key once its master key was found revoked.

mod batches;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::attachment::MountGrants;
use super::context::{self, FILE};
use super::customer::CustomerKeys;
use super::pool::Pool;
use super::record_file::{self, Stamp};
use super::refusal::{KeyCounts, KeyFigures, KeyInUse, unopened};
use super::rights::{Holder, Rights, Use};
use super::{VolumeError, key_error};
use crate::api::{EncryptionContext, NOT_TRUSTED};
use crate::client::{CacheLimits, ClientError, DekCache, GeneratedKey, Kms, Probe};
use crate::crypto::{DataKey, random_array, sha256};
use crate::format::record::{KEYS_MAX, VolumeSettings};
use crate::format::{FileId, VolumeId, WrappedKey, customer};
use crate::tree::{FreshKey, KeyError, KeyNeed, KeySource, KeyUser};

/// The keys of one open volume.
pub struct VolumeKeys {
    kms: Arc<Kms>,
    volume_id: VolumeId,
    root: OwnedFd,
    path: PathBuf,
    settings: RwLock<VolumeSettings>,
    stamp: Mutex<Option<Stamp>>,
    cache: DekCache<KeyError>,
    pool: Pool,
    /// For each master key in use, one wrapped key by which to ask whether it may still be used.
    samples: Mutex<HashMap<String, Sample>>,
    /// What users were allowed, where callers are told apart.
    rights: Rights,
    locked: RwLock<Locked>,
    grants: OnceLock<Arc<MountGrants>>,
    counts: KeyCounts,
    pub(super) customers: CustomerKeys,
}

/// What was locked, until it is unlocked.
#[derive(Default)]
struct Locked {
    all: bool,
    keys: HashSet<String>,
}

/// A wrapped key to probe with.
#[derive(Clone)]
pub(super) struct Sample {
    pub blob: Vec<u8>,
    pub context: EncryptionContext,
    /// Data keys unwrapped and made under it.
    pub uses: u64,
    /// Whether the last word on the key was no.
    pub refused: bool,
}

impl VolumeKeys {
    pub(super) fn new(
        kms: Arc<Kms>,
        volume_id: VolumeId,
        root: OwnedFd,
        path: PathBuf,
        settings: VolumeSettings,
        limits: CacheLimits,
    ) -> Self {
        let stamp = Mutex::new(record_file::stamp(std::os::fd::AsFd::as_fd(&root)));
        Self {
            kms,
            volume_id,
            root,
            path,
            settings: RwLock::new(settings),
            stamp,
            cache: DekCache::new(limits),
            pool: Pool::default(),
            samples: Mutex::new(HashMap::new()),
            rights: Rights::default(),
            locked: RwLock::default(),
            grants: OnceLock::new(),
            counts: KeyCounts::default(),
            customers: CustomerKeys::default(),
        }
    }

    /// Has the mount of these keys make a grant for each master key, those it has now and those to come.
    pub fn use_grants(&self, grants: Arc<MountGrants>) {
        if self.grants.set(grants).is_ok() {
            self.grant_all();
        }
    }

    /// One key without a grant costs the files under it, and not the mount.
    fn grant_all(&self) {
        let Some(grants) = self.grants.get() else { return };
        for key_arn in self.known_keys() {
            if let Err(e) = grants.ensure(&key_arn) {
                log::error!("files under {key_arn} cannot be opened: {e}");
            }
        }
    }

    /// The key service.
    pub fn kms(&self) -> &Arc<Kms> {
        &self.kms
    }

    /// ARN of the key that new files take.
    pub fn default_key(&self) -> String {
        self.settings.read().default_key.clone()
    }

    /// ARNs of the keys that files may be wrapped under.
    pub fn known_keys(&self) -> Vec<String> {
        self.settings.read().keys.clone()
    }

    /// Each of them with the version that encrypts now.
    pub fn current_versions(&self) -> Result<Vec<(String, Option<String>)>, VolumeError> {
        let version = |arn: String| {
            let facts =
                self.kms.describe_key(&arn).map_err(|e| VolumeError::Key(arn.clone(), key_error(&e)))?;
            Ok((arn, facts.current_key_material_id))
        };
        self.known_keys().into_iter().map(version).collect()
    }

    /// Data keys held now, cached and fresh.
    pub fn held(&self) -> (usize, usize) {
        (self.cache.len(), self.pool.len())
    }

    /// How often keys were to be had, and why not.
    pub fn figures(&self) -> KeyFigures {
        let samples = self.samples.lock();
        let in_use = |(arn, sample): (&String, &Sample)| KeyInUse {
            key_arn: arn.clone(),
            uses: sample.uses,
            refused: sample.refused,
        };
        self.counts.read(samples.iter().map(in_use).collect(), &self.kms)
    }

    /// Drops and wipes every data key, or those under one master key. Returns how many were cached.
    pub fn drop_keys(&self, key_arn: Option<&str>) -> usize {
        if let Some(key_arn) = key_arn {
            return self.drop_key(key_arn);
        }
        self.pool.clear();
        self.cache.clear()
    }

    /// Lets nothing be fetched or made, under one master key or under any, until [`Self::unlock`].
    pub fn lock(&self, key_arn: Option<&str>) {
        let mut locked = self.locked.write();
        match key_arn {
            Some(key_arn) => drop(locked.keys.insert(key_arn.to_owned())),
            None => locked.all = true,
        }
    }

    /// Ends a lock: that of one master key, or all of them. `false` where there is none to end.
    pub fn unlock(&self, key_arn: Option<&str>) -> bool {
        let mut locked = self.locked.write();
        if let Some(key_arn) = key_arn {
            return locked.keys.remove(key_arn);
        }
        let before = std::mem::take(&mut *locked);
        before.all || !before.keys.is_empty()
    }

    /// What is locked: everything, and master keys.
    pub fn locked(&self) -> (bool, Vec<String>) {
        let locked = self.locked.read();
        (locked.all, locked.keys.iter().cloned().collect())
    }

    fn check_unlocked(&self, key_arn: &str) -> Result<(), KeyError> {
        let locked = self.locked.read();
        if !locked.all && !locked.keys.contains(key_arn) {
            return Ok(());
        }
        let why = "the mount was locked by 'kmsfs lock'; 'kmsfs unlock' lets keys be fetched again";
        Err(KeyError::Disabled(why.to_owned()))
    }

    /// Drops and wipes every data key under `key_arn`.
    pub(super) fn drop_key(&self, key_arn: &str) -> usize {
        self.pool.clear();
        self.cache.revoke(key_arn)
    }

    /// Drops and wipes the keys made ahead of need.
    pub(super) fn drop_fresh(&self) {
        self.pool.clear();
    }

    /// Drops and wipes keys past their age.
    pub(super) fn expire(&self) {
        self.cache.expire();
        self.pool.expire();
    }

    /// Reads the volume record again when it was replaced. Returns whether it was.
    pub fn reload_if_changed(&self) -> Result<bool, VolumeError> {
        let now = record_file::stamp(std::os::fd::AsFd::as_fd(&self.root));
        if now.is_none() || *self.stamp.lock() == now {
            return Ok(false);
        }
        // A rewrap replaces the record to say that keys made before it are under an old version.
        self.pool.clear();
        let root = std::os::fd::AsFd::as_fd(&self.root);
        let record = record_file::read(root, &self.path)?;
        if let Some(grants) = self.grants.get() {
            grants.ensure(&record.active().wrapped.key_arn)?;
        }
        let (_, settings) = super::open::open_record(&self.kms, &record, &self.path)?;
        *self.settings.write() = settings;
        self.grant_all();
        *self.stamp.lock() = now;
        // And those that were asked for under the old settings.
        self.pool.clear();
        Ok(true)
    }

    /// Each master key in use with its sample.
    pub(super) fn samples(&self) -> Vec<(String, Sample)> {
        self.samples.lock().iter().map(|(arn, sample)| (arn.clone(), sample.clone())).collect()
    }

    fn is_refused(&self, key_arn: &str) -> bool {
        self.samples.lock().get(key_arn).is_some_and(|sample| sample.refused)
    }

    /// Notes the last word on a master key. Returns whether it is news.
    pub(super) fn note_refused(&self, key_arn: &str, refused: bool) -> bool {
        self.samples
            .lock()
            .get_mut(key_arn)
            .is_some_and(|s| std::mem::replace(&mut s.refused, refused) != refused)
    }

    pub(super) fn note_use(&self, key_arn: &str, blob: &[u8], context: EncryptionContext) {
        let mut samples = self.samples.lock();
        if let Some(sample) = samples.get_mut(key_arn) {
            (sample.refused, sample.uses) = (false, sample.uses + 1);
            // The volume record's own is none that users are asked for.
            if sample.context.get(FILE).is_none() && context.get(FILE).is_some() {
                (sample.blob, sample.context) = (blob.to_vec(), context);
            }
        } else if samples.len() < KEYS_MAX {
            let sample = Sample { blob: blob.to_vec(), context, uses: 1, refused: false };
            samples.insert(key_arn.to_owned(), sample);
        }
    }

    fn is_known(&self, key_arn: &str) -> bool {
        self.settings.read().keys.iter().any(|known| known == key_arn)
    }

    /// A wrap may only name a key of the record; a rewrap to another key adds it there first.
    fn check_known(&self, key_arn: &str) -> Result<(), KeyError> {
        if self.is_known(key_arn) {
            return Ok(());
        }
        if let Err(e) = self.reload_if_changed() {
            log::warn!("the volume record cannot be read again: {e}");
        }
        if self.is_known(key_arn) {
            return Ok(());
        }
        Err(KeyError::Invalid(format!("the file names the key {key_arn}, which is not one of this volume's")))
    }

    fn fetch(&self, file_id: FileId, wrapped: &WrappedKey, user: KeyUser) -> Result<DataKey, KeyError> {
        self.check_unlocked(&wrapped.key_arn)?;
        let context = context::file(self.volume_id, file_id);
        if customer::is_customer(&wrapped.key_arn) {
            return self.customers.unwrap(wrapped, &context).map_err(|e| self.counts.refused(e));
        }
        let asked = self.rights.moment();
        let decrypted = self.kms.decrypt(&wrapped.blob, &wrapped.key_arn, &context, uid_of(user));
        let decrypted = decrypted.map_err(|e| self.counts.refused(unopened(&e, wrapped)));
        self.note_said(user, &wrapped.key_arn, Use::Open, asked, decrypted.as_ref().err());
        let decrypted = decrypted?;
        self.counts.unwraps.add(1);
        if decrypted.key_arn != wrapped.key_arn {
            return Err(KeyError::Invalid(format!("it is under {}", decrypted.key_arn)));
        }
        self.note_use(&wrapped.key_arn, &wrapped.blob, context);
        Ok(decrypted.data_key)
    }

    /// The data key of a file, fetched in the name of `user` where it is not held. What the mount itself may not have,
    /// it asks for in the name of users who may, since their files wait for it.
    fn unwrap_for(&self, file_id: FileId, wrapped: &WrappedKey, user: KeyUser) -> Result<DataKey, KeyError> {
        self.check_known(&wrapped.key_arn)?;
        let wrap = sha256(&wrapped.blob);
        let get = |user| {
            let fetch = || self.fetch(file_id, wrapped, user);
            self.cache.get_or_fetch(file_id.0, &wrap, &wrapped.key_arn, uid_of(user), fetch)
        };
        match get(user) {
            Err(refused @ KeyError::Denied(_)) if user == KeyUser::Mount => {
                let mut others = self.rights.stand_ins(&wrapped.key_arn, Use::Open).into_iter();
                others.find_map(|uid| get(KeyUser::User(uid)).ok()).ok_or(refused)
            }
            outcome => outcome,
        }
    }

    /// Asks the service whether user `uid` may have the data key of a file.
    fn decide(&self, uid: u32, file_id: FileId, wrapped: &WrappedKey) -> Result<(), KeyError> {
        self.check_known(&wrapped.key_arn)?;
        let context = context::file(self.volume_id, file_id);
        self.ask(uid, &wrapped.key_arn, Use::Open, || {
            self.kms.probe_decrypt(&wrapped.blob, &wrapped.key_arn, &context, Some(uid))
        })
    }

    /// Asks by `probe`, and notes what was said. A service that is away leaves a permission in force for a while.
    pub(super) fn ask(
        &self,
        uid: u32,
        key_arn: &str,
        wanted: Use,
        probe: impl FnOnce() -> Probe,
    ) -> Result<(), KeyError> {
        let asked = self.rights.moment();
        let said = match probe() {
            Probe::Usable => Ok(()),
            Probe::Refused(e) => Err(key_error(&ClientError::Kms(e))),
            Probe::Unknown(_) if self.rights.prolong(uid, key_arn, wanted) => return Ok(()),
            Probe::Unknown(e) => return Err(self.counts.refused(key_error(&e))),
        };
        self.rights.note(uid, key_arn, wanted, asked, said.as_ref().copied());
        said
    }

    /// Notes what a call in a user's name says of its right; an absent service says nothing.
    fn note_said(
        &self,
        user: KeyUser,
        key_arn: &str,
        wanted: Use,
        asked: super::rights::Moment,
        error: Option<&KeyError>,
    ) {
        let KeyUser::User(uid) = user else { return };
        match error {
            None => self.rights.note(uid, key_arn, wanted, asked, Ok(())),
            Some(e @ (KeyError::Denied(_) | KeyError::Disabled(_))) => {
                self.rights.note(uid, key_arn, wanted, asked, Err(e));
            }
            Some(_) => {}
        }
    }

    /// Whether the service lets this process ask for others, as a shared mount has to; the refusal if not.
    pub fn check_trusted(&self) -> Result<(), VolumeError> {
        let own = rustix::process::geteuid().as_raw();
        for (key_arn, sample) in self.samples() {
            let said = self.kms.probe_decrypt(&sample.blob, &key_arn, &sample.context, Some(own));
            if let Probe::Refused(e) = said
                && e.message.starts_with(NOT_TRUSTED)
            {
                return Err(VolumeError::Key(key_arn, KeyError::Denied(e.message)));
            }
        }
        Ok(())
    }

    /// Users who may have files open under a master key.
    pub(super) fn holders(&self, key_arn: &str) -> Vec<Holder> {
        self.rights.holders(key_arn)
    }

    /// Something has changed at the service: every decision must be asked for again.
    pub(super) fn outdate(&self) {
        self.rights.outdate();
    }

    /// Whether user `uid` has lost its rights on a master key.
    pub(super) fn is_barred(&self, uid: u32, key_arn: &str) -> bool {
        self.rights.held(uid, key_arn).is_some_and(|held| held.is_err())
    }

    /// Whether it has, told once for each time.
    pub(super) fn take_loss(&self, uid: u32, key_arn: &str) -> bool {
        self.rights.take_loss(uid, key_arn)
    }

    /// Asks whether a user may still make files under a master key.
    pub(super) fn probe_make(&self, uid: u32, key_arn: &str, context: &EncryptionContext) -> Probe {
        self.kms.probe_generate(key_arn, context, Some(uid))
    }

    fn accept(
        &self,
        file_id: FileId,
        generated: GeneratedKey,
        context: EncryptionContext,
        user: KeyUser,
    ) -> FreshKey {
        self.note_use(&generated.key_arn, &generated.blob, context);
        self.counts.made.add(1);
        let GeneratedKey { data_key, blob, key_arn, material_id } = generated;
        FreshKey { user, file_id, data_key, wrapped: WrappedKey { key_arn, material_id, blob } }
    }

    fn generate(&self, key: &str, user: KeyUser) -> Result<FreshKey, KeyError> {
        self.check_unlocked(key)?;
        let file_id = FileId(random_array());
        let context = context::file(self.volume_id, file_id);
        if customer::is_customer(key) {
            let data_key = DataKey::random();
            let wrapped =
                self.customers.wrap(key, &data_key, &context).map_err(|e| self.counts.refused(e))?;
            return Ok(FreshKey { user, file_id, data_key, wrapped });
        }
        let asked = self.rights.moment();
        let generated = self.kms.generate_data_key(key, &context, uid_of(user));
        let generated = generated.map_err(|e| self.counts.refused(key_error(&e)));
        self.note_said(user, key, Use::Make, asked, generated.as_ref().err());
        Ok(self.accept(file_id, generated?, context, user))
    }

    pub(super) fn close(&self) {
        self.pool.close();
        self.cache.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }
}

impl KeySource for VolumeKeys {
    fn fresh(&self, key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let fresh = match key {
            Some(key) => self.generate(key, user)?,
            None => self.generate(&self.default_key(), user)?,
        };
        self.check_known(&fresh.wrapped.key_arn)?;
        let wrap = sha256(&fresh.wrapped.blob);
        self.cache.put(fresh.file_id.0, wrap, &fresh.wrapped.key_arn, fresh.data_key.duplicate());
        Ok(fresh)
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.unwrap_for(file_id, wrapped, KeyUser::Mount)
    }
}

impl VolumeKeys {
    /// A key for a new file out of the pool.
    fn pooled(&self, key: &str, user: KeyUser) -> Option<FreshKey> {
        let fresh = self.pool.take(user, key).filter(|fresh| fresh.wrapped.key_arn == key)?;
        let wrap = sha256(&fresh.wrapped.blob);
        self.cache.put(fresh.file_id.0, wrap, &fresh.wrapped.key_arn, fresh.data_key.duplicate());
        Some(fresh)
    }

    /// Makes a key for a new file and puts it into the pool.
    fn stock(&self, key: &str, user: KeyUser) -> Result<(), KeyError> {
        let refill = self.pool.one(user, key);
        let fresh = match self.generate(key, user) {
            Err(refused @ KeyError::Denied(_)) if user == KeyUser::Mount => {
                let mut others = self.rights.stand_ins(key, Use::Make).into_iter();
                others.find_map(|uid| self.generate(key, KeyUser::User(uid)).ok()).ok_or(refused)
            }
            made => made,
        }?;
        self.check_known(&fresh.wrapped.key_arn)?;
        self.pool.fill(&refill, vec![fresh]);
        Ok(())
    }
}

/// The same keys for a mount, whose files ask under their locks: what is not held is absent, and fetched without them.
pub struct MountKeys(pub(super) Arc<VolumeKeys>);

impl KeySource for MountKeys {
    fn fresh(&self, key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
        let pooled = match key {
            Some(key) => self.0.pooled(key, user),
            None => self.0.pooled(&self.0.default_key(), user),
        };
        pooled.ok_or_else(|| KeyError::Absent(Box::new(KeyNeed::Fresh(key.map(str::to_owned))), user))
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let held = if self.0.is_known(&wrapped.key_arn) {
            self.0.cache.get(file_id.0, &sha256(&wrapped.blob))
        } else {
            None
        };
        if held.is_some() {
            self.0.counts.hits.add(1);
        }
        held.ok_or_else(|| {
            KeyError::Absent(Box::new(KeyNeed::Unwrapped(file_id, wrapped.clone())), KeyUser::Mount)
        })
    }

    fn knows(&self, key_arn: &str) -> bool {
        self.0.check_known(key_arn).is_ok()
    }

    fn obtain(&self, need: &KeyNeed, user: KeyUser) -> Result<(), KeyError> {
        match (need, user) {
            (KeyNeed::Unwrapped(file_id, wrapped), _) => self.0.unwrap_for(*file_id, wrapped, user).map(drop),
            (KeyNeed::Fresh(Some(key)), _) => self.0.stock(key, user),
            (KeyNeed::Fresh(None), _) => self.0.stock(&self.0.default_key(), user),
            (KeyNeed::Permission(file_id, wrapped), KeyUser::User(uid)) => {
                self.0.decide(uid, *file_id, wrapped)
            }
            (KeyNeed::Permission(..), KeyUser::Mount) => Ok(()),
        }
    }

    fn permit(&self, uid: u32, file_id: FileId, wrapped: &WrappedKey) -> Result<(), KeyError> {
        if customer::is_customer(&wrapped.key_arn) {
            // Nobody is asked: whoever brought it to the mount lets in whom the mode lets in.
            return Ok(());
        }
        self.0.rights.verdict(uid, &wrapped.key_arn, Use::Open).unwrap_or_else(|| {
            let need = KeyNeed::Permission(file_id, wrapped.clone());
            Err(KeyError::Absent(Box::new(need), KeyUser::User(uid)))
        })
    }

    fn room_ahead(&self) -> usize {
        self.0.cache.room_ahead()
    }

    fn fetch_ahead(&self, wanted: &[(FileId, WrappedKey)]) -> bool {
        self.0.fetch_ahead(wanted)
    }

    fn check_holder(&self, uid: u32, file_id: FileId, wrapped: &WrappedKey) -> Result<(), KeyError> {
        self.0.rights.held(uid, &wrapped.key_arn).unwrap_or_else(|| self.permit(uid, file_id, wrapped))
    }
}

/// As calls name a user: none where they are made in the mount's own name.
const fn uid_of(user: KeyUser) -> Option<u32> {
    match user {
        KeyUser::Mount => None,
        KeyUser::User(uid) => Some(uid),
    }
}
