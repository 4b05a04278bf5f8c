//! Keys many at a time: made for files that are about to be created, and fetched for files that are about to be opened.
//!
//! Called by the threads that work ahead of need. Must never keep a key past a revocation that came meanwhile.

use std::time::Duration;

use super::{VolumeKeys, uid_of};
use crate::client::DecryptItem;
use crate::crypto::{random_array, sha256};
use crate::format::{FileId, WrappedKey, customer};
use crate::tree::FreshKey;
use crate::volume::context;
use crate::volume::key_error;
use crate::volume::pool::Refill;

/// How long the refill thread sleeps at most before it looks whether the volume was closed.
const REFILL_PATIENCE: Duration = Duration::from_secs(5);
/// Keys made, or fetched ahead of need, in one pipelined batch.
const BATCH: usize = 32;

impl VolumeKeys {
    /// Fetches those keys of `wanted` that are not held, many at a time.
    pub(super) fn fetch_ahead(&self, wanted: &[(FileId, WrappedKey)]) {
        let revocations = self.cache.revocations();
        let is_wanted = |file_id: FileId, wrapped: &WrappedKey| {
            self.is_known(&wrapped.key_arn)
                && !customer::is_customer(&wrapped.key_arn)
                && self.check_unlocked(&wrapped.key_arn).is_ok()
                && !self.is_refused(&wrapped.key_arn)
                && !self.cache.holds(file_id.0, &sha256(&wrapped.blob))
        };
        let wanted: Vec<_> = wanted.iter().filter(|(id, wrapped)| is_wanted(*id, wrapped)).collect();
        for batch in wanted.chunks(BATCH) {
            let items = batch.iter().map(|&(id, wrapped)| DecryptItem {
                blob: &wrapped.blob,
                key_id: &wrapped.key_arn,
                context: context::file(self.volume_id, *id),
            });
            let items: Vec<DecryptItem<'_>> = items.collect();
            for ((id, wrapped), answer) in batch.iter().zip(self.kms.decrypt_many(&items)) {
                // Refused, throttled or away: whoever opens the file is told so.
                let Ok(decrypted) = answer else { return };
                if decrypted.key_arn == wrapped.key_arn {
                    self.counts.unwraps.add(1);
                    self.counts.ahead.add(1);
                    let wrap = sha256(&wrapped.blob);
                    self.cache.put_ahead(id.0, wrap, &wrapped.key_arn, decrypted.data_key, revocations);
                }
            }
        }
    }

    fn generate_batch(&self, refill: &Refill) -> Vec<FreshKey> {
        if self.check_unlocked(&refill.key).is_err() {
            return Vec::new();
        }
        if customer::is_customer(&refill.key) {
            return self.generate(&refill.key, refill.user).into_iter().collect();
        }
        let ids: Vec<FileId> = (0..refill.count.min(BATCH)).map(|_| FileId(random_array())).collect();
        let contexts: Vec<_> = ids.iter().map(|id| context::file(self.volume_id, *id)).collect();
        match self.kms.generate_data_keys(&refill.key, &contexts, uid_of(refill.user)) {
            Ok(keys) => {
                let made = ids.into_iter().zip(contexts).zip(keys);
                made.map(|((id, context), key)| self.accept(id, key, context, refill.user)).collect()
            }
            Err(e) => {
                self.counts.refused(key_error(&e));
                Vec::new()
            }
        }
    }

    /// Fills the pool as keys are taken, until [`Self::close`]. Run on a thread of its own.
    pub(in crate::volume) fn refill_until_closed(&self) {
        while !self.pool.is_closed() {
            if let Some(refill) = self.pool.wait(REFILL_PATIENCE) {
                self.pool.fill(&refill, self.generate_batch(&refill));
            }
        }
    }
}
