//! Making keys that take their time: a few at once, so that the other calls go on.
//!
//! Called by CreateKey and GenerateDataKeyPair. An RSA key of 4096 bits takes seconds of a core; without a bound a
//! handful of callers would hold them all.

use parking_lot::{Condvar, Mutex};

use crate::api::{ErrorCode, KmsError};
use crate::crypto::{DataKeyPair, DataKeyPairKind, MaterialBytes, MaterialError, MaterialKind};

/// The places at which slow keys are made.
#[derive(Debug)]
pub struct Makers {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Default for Makers {
    /// One place for each core but one.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { free: Mutex::new(cores.saturating_sub(1).max(1)), freed: Condvar::new() }
    }
}

impl Makers {
    /// Fresh material. Waits for a place if it takes its time; those before it are done within seconds.
    pub fn material(&self, kind: MaterialKind) -> Result<MaterialBytes, KmsError> {
        let is_slow = matches!(kind, MaterialKind::RsaSign(_) | MaterialKind::RsaEncrypt(_));
        self.run(is_slow, || MaterialBytes::generate(kind))
    }

    /// A fresh data key pair; the same.
    pub fn data_key_pair(&self, kind: DataKeyPairKind) -> Result<DataKeyPair, KmsError> {
        self.run(matches!(kind, DataKeyPairKind::Rsa(_)), || DataKeyPair::generate(kind))
    }

    fn run<T>(&self, is_slow: bool, make: impl FnOnce() -> Result<T, MaterialError>) -> Result<T, KmsError> {
        let _place = is_slow.then(|| self.place());
        make().map_err(|error| {
            log::error!("a key could not be made: {error}");
            KmsError::new(ErrorCode::KMSInternalException, "")
        })
    }

    fn place(&self) -> Place<'_> {
        let mut free = self.free.lock();
        while *free == 0 {
            self.freed.wait(&mut free);
        }
        *free -= 1;
        Place(self)
    }
}

/// A place that is taken.
struct Place<'a>(&'a Makers);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_after_its_key_was_made() {
        let makers = Makers { free: Mutex::new(1), freed: Condvar::new() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| drop(makers.place()));
            }
        });
        assert_eq!(*makers.free.lock(), 1);
    }
}
