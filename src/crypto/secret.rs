//! Secret bytes: in locked memory, wiped on drop, never cloned, never printed.

use zeroize::Zeroize;

use crate::sys::LockedBytes;

/// `N` secret bytes in locked memory that is left out of core dumps. Wiped on drop.
pub struct Secret<const N: usize>(LockedBytes<N>);

impl<const N: usize> Secret<N> {
    /// Made in place: `fill` writes the bytes where they stay.
    pub fn new_with(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut bytes = LockedBytes::zeroed();
        fill(&mut bytes);
        Self(bytes)
    }

    /// Takes a copy of `source` and wipes `source`.
    pub fn take(source: &mut [u8; N]) -> Self {
        let secret = Self::new_with(|bytes| bytes.copy_from_slice(source));
        source.zeroize();
        secret
    }

    /// Fresh random bytes.
    pub fn random() -> Self {
        Self::new_with(|bytes| super::fill_random(bytes))
    }

    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> std::fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
