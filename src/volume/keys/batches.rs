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
    /// Fetches those keys of `wanted` that are not held, many at a time. `false` where one is not to be had: refused,
    /// throttled or away, as whoever opens the file is told.
    pub(super) fn fetch_ahead(&self, wanted: &[(FileId, WrappedKey)]) -> bool {
        let revocations = self.cache.revocations();
        let is_wanted = |file_id: FileId, wrapped: &WrappedKey| {
            self.is_known(&wrapped.key_arn)
                && !customer::is_customer(&wrapped.key_arn)
                && self.check_unlocked(&wrapped.key_arn).is_ok()
                && !self.is_refused(&wrapped.key_arn)
                && !self.cache.holds(file_id.0, &sha256(&wrapped.blob))
        };
        let wanted: Vec<_> = wanted.iter().filter(|(id, wrapped)| is_wanted(*id, wrapped)).collect();
        wanted.chunks(BATCH).all(|batch| self.fetch_batch(batch, revocations))
    }

    fn fetch_batch(&self, batch: &[&(FileId, WrappedKey)], revocations: u64) -> bool {
        let items = batch.iter().map(|&(id, wrapped)| DecryptItem {
            blob: &wrapped.blob,
            key_id: &wrapped.key_arn,
            context: context::file(self.volume_id, *id),
        });
        let items: Vec<DecryptItem<'_>> = items.collect();
        let answers = self.kms.decrypt_many(&items);
        let mut all = true;
        for (((id, wrapped), item), answer) in batch.iter().zip(items).zip(answers) {
            let Some(decrypted) = answer.ok().filter(|found| found.key_arn == wrapped.key_arn) else {
                all = false;
                continue;
            };
            self.counts.unwraps.add(1);
            self.counts.ahead.add(1);
            // What is held must be known to whoever watches for revocations.
            self.note_use(&wrapped.key_arn, &wrapped.blob, item.context);
            let wrap = sha256(&wrapped.blob);
            self.cache.put_ahead(id.0, wrap, &wrapped.key_arn, decrypted.data_key, revocations);
        }
        all
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;

    use super::*;
    use crate::client::CacheLimits;
    use crate::format::VolumeId;
    use crate::format::record::VolumeSettings;
    use crate::tree::KeyUser;
    use crate::tree::file::tests::new_dir;
    use crate::volume::fake_service_for_tests::{FakeService, KEY_A, KEY_B};

    struct Bench(PathBuf, FakeService);

    impl Bench {
        /// The keys of a mount that has just begun.
        fn keys(&self) -> VolumeKeys {
            let root = OwnedFd::from(std::fs::File::open(&self.0).unwrap());
            let keys = vec![KEY_A.to_owned(), KEY_B.to_owned()];
            let settings = VolumeSettings { default_key: KEY_A.into(), keys, created: 0, bind_names: false };
            let (id, limits) = (VolumeId([1; 16]), CacheLimits::default());
            VolumeKeys::new(self.1.client(), id, root, self.0.clone(), settings, limits)
        }

        fn wrapped(&self, key: &str, count: usize) -> Vec<(FileId, WrappedKey)> {
            let keys = self.keys();
            let made = (0..count).map(|_| keys.generate(key, KeyUser::Mount).unwrap());
            made.map(|fresh| (fresh.file_id, fresh.wrapped)).collect()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_master_key_of_which_only_keys_fetched_ahead_are_held_is_watched() {
        let dir = new_dir();
        let bench = Bench(dir.clone(), FakeService::start(&dir));
        let wanted = bench.wrapped(KEY_B, 3);
        let keys = bench.keys();
        assert!(keys.fetch_ahead(&wanted));
        assert_eq!(keys.held().0, 3);
        assert_eq!(keys.samples().into_iter().map(|(arn, _)| arn).collect::<Vec<_>>(), [KEY_B]);
        assert_eq!(keys.drop_key(KEY_B), 3);
    }

    #[test]
    fn what_is_not_to_be_had_is_told_and_costs_none_of_the_others() {
        let dir = new_dir();
        let bench = Bench(dir.clone(), FakeService::start(&dir));
        let mut wanted = bench.wrapped(KEY_A, 3);
        wanted[1].1.blob[0] ^= 1;
        let keys = bench.keys();
        assert!(!keys.fetch_ahead(&wanted));
        assert_eq!(keys.held().0, 2);
        bench.1.memory.lock().left = Some(0);
        keys.drop_keys(None);
        assert!(!keys.fetch_ahead(&wanted), "the service is away");
        assert_eq!(keys.held().0, 0);
    }
}
