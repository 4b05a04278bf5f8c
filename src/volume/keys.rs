//! A volume's data keys: [`KeySource`] over the key service, the cache and the pool.
//!
//! Called by `tree` through the trait. Must never accept a wrap under a master key that the volume record does not
//! name, nor hand out a cached key once its master key was found revoked.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::pool::Pool;
use super::record_file::{self, Stamp};
use super::{VolumeError, context, key_error};
use crate::api::EncryptionContext;
use crate::client::{CacheLimits, DekCache, GeneratedKey, Kms};
use crate::crypto::{DataKey, random_array, sha256};
use crate::format::record::{KEYS_MAX, VolumeSettings};
use crate::format::{FileId, VolumeId, WrappedKey};
use crate::logging::RateLimit;
use crate::tree::{FreshKey, KeyError, KeyNeed, KeySource};

/// How long the refill thread sleeps at most before it looks whether the volume was closed.
const REFILL_PATIENCE: Duration = Duration::from_secs(5);
/// Keys made in one pipelined batch.
const REFILL_BATCH: usize = 32;
static UNAVAILABLE: RateLimit = RateLimit::new();
static REFUSED: RateLimit = RateLimit::new();

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
}

/// A wrapped key to probe with.
#[derive(Clone)]
pub(super) struct Sample {
    pub blob: Vec<u8>,
    pub context: EncryptionContext,
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

    /// Data keys held now, cached and fresh.
    pub fn held(&self) -> (usize, usize) {
        (self.cache.len(), self.pool.len())
    }

    /// Drops and wipes every data key. Returns how many were cached.
    pub fn lock(&self) -> usize {
        self.pool.clear();
        self.cache.clear()
    }

    /// Drops and wipes every data key under `key_arn`.
    pub(super) fn drop_key(&self, key_arn: &str) -> usize {
        self.pool.clear();
        self.cache.revoke(key_arn)
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
        let (_, settings) = super::open::open_record(&self.kms, &record, &self.path)?;
        *self.settings.write() = settings;
        *self.stamp.lock() = now;
        // And those that were asked for under the old settings.
        self.pool.clear();
        Ok(true)
    }

    /// Each master key in use with its sample.
    pub(super) fn samples(&self) -> Vec<(String, Sample)> {
        self.samples.lock().iter().map(|(arn, sample)| (arn.clone(), sample.clone())).collect()
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
            sample.refused = false;
        } else if samples.len() < KEYS_MAX {
            samples.insert(key_arn.to_owned(), Sample { blob: blob.to_vec(), context, refused: false });
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

    fn fetch(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let context = context::file(self.volume_id, file_id);
        let decrypted = self.kms.decrypt(&wrapped.blob, &wrapped.key_arn, &context);
        let decrypted = decrypted.map_err(|e| log_refusal(key_error(&e)))?;
        if decrypted.key_arn != wrapped.key_arn {
            return Err(KeyError::Invalid(format!("it is under {}", decrypted.key_arn)));
        }
        self.note_use(&wrapped.key_arn, &wrapped.blob, context);
        Ok(decrypted.data_key)
    }

    fn accept(&self, file_id: FileId, generated: GeneratedKey, context: EncryptionContext) -> FreshKey {
        self.note_use(&generated.key_arn, &generated.blob, context);
        let GeneratedKey { data_key, blob, key_arn, material_id } = generated;
        FreshKey { file_id, data_key, wrapped: WrappedKey { key_arn, material_id, blob } }
    }

    fn generate(&self, key: &str) -> Result<FreshKey, KeyError> {
        let file_id = FileId(random_array());
        let context = context::file(self.volume_id, file_id);
        let generated = self.kms.generate_data_key(key, &context).map_err(|e| log_refusal(key_error(&e)))?;
        Ok(self.accept(file_id, generated, context))
    }

    fn generate_batch(&self, count: usize) -> Vec<FreshKey> {
        let ids: Vec<FileId> = (0..count.min(REFILL_BATCH)).map(|_| FileId(random_array())).collect();
        let contexts: Vec<_> = ids.iter().map(|id| context::file(self.volume_id, *id)).collect();
        match self.kms.generate_data_keys(&self.default_key(), &contexts) {
            Ok(keys) => {
                let made = ids.into_iter().zip(contexts).zip(keys);
                made.map(|((id, context), key)| self.accept(id, key, context)).collect()
            }
            Err(e) => {
                log_refusal(key_error(&e));
                Vec::new()
            }
        }
    }

    /// Fills the pool as keys are taken, until [`Self::close`]. Run on a thread of its own.
    pub(super) fn refill_until_closed(&self) {
        while !self.pool.is_closed() {
            if let Some(refill) = self.pool.wait(REFILL_PATIENCE) {
                self.pool.fill(&refill, self.generate_batch(refill.count));
            }
        }
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
    fn fresh(&self, key: Option<&str>) -> Result<FreshKey, KeyError> {
        let fresh = match key {
            Some(key) => self.generate(key)?,
            None => self.generate(&self.default_key())?,
        };
        self.check_known(&fresh.wrapped.key_arn)?;
        let wrap = sha256(&fresh.wrapped.blob);
        self.cache.put(fresh.file_id.0, wrap, &fresh.wrapped.key_arn, fresh.data_key.duplicate());
        Ok(fresh)
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.check_known(&wrapped.key_arn)?;
        let wrap = sha256(&wrapped.blob);
        self.cache.get_or_fetch(file_id.0, &wrap, &wrapped.key_arn, || self.fetch(file_id, wrapped))
    }
}

impl VolumeKeys {
    /// A key for a new file out of the pool.
    fn pooled(&self) -> Option<FreshKey> {
        let default = self.default_key();
        let fresh = self.pool.take().filter(|fresh| fresh.wrapped.key_arn == default)?;
        let wrap = sha256(&fresh.wrapped.blob);
        self.cache.put(fresh.file_id.0, wrap, &fresh.wrapped.key_arn, fresh.data_key.duplicate());
        Some(fresh)
    }

    /// Makes a key for a new file and puts it into the pool.
    fn stock(&self) -> Result<(), KeyError> {
        let refill = self.pool.one();
        let fresh = self.generate(&self.default_key())?;
        self.check_known(&fresh.wrapped.key_arn)?;
        self.pool.fill(&refill, vec![fresh]);
        Ok(())
    }
}

/// The same keys for a mount, whose files ask under their locks: what is not held is absent, and fetched without them.
pub struct MountKeys(pub(super) Arc<VolumeKeys>);

impl KeySource for MountKeys {
    fn fresh(&self, key: Option<&str>) -> Result<FreshKey, KeyError> {
        match key {
            None => self.0.pooled().ok_or_else(|| KeyError::Absent(Box::new(KeyNeed::Fresh))),
            Some(_) => self.0.fresh(key),
        }
    }

    fn unwrap(&self, file_id: FileId, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let held = if self.0.is_known(&wrapped.key_arn) {
            self.0.cache.get(file_id.0, &sha256(&wrapped.blob))
        } else {
            None
        };
        held.ok_or_else(|| KeyError::Absent(Box::new(KeyNeed::Unwrapped(file_id, wrapped.clone()))))
    }

    fn obtain(&self, need: &KeyNeed) -> Result<(), KeyError> {
        match need {
            KeyNeed::Unwrapped(file_id, wrapped) => self.0.unwrap(*file_id, wrapped).map(drop),
            KeyNeed::Fresh => self.0.stock(),
        }
    }
}

/// Says once a second why files cannot be opened; the caller's own error is the same for each.
fn log_refusal(error: KeyError) -> KeyError {
    let limit = match error {
        KeyError::Unavailable(_) => &UNAVAILABLE,
        KeyError::Denied(_) | KeyError::Disabled(_) | KeyError::Invalid(_) => &REFUSED,
        KeyError::Absent(_) => return error,
    };
    if let Some(held_back) = limit.admit() {
        let more = if held_back > 0 { format!(" ({held_back} more like it)") } else { String::new() };
        log::error!("{error}{more}");
    }
    error
}
