//! Randomness from the operating system's generator, by way of aws-lc-rs.

use aws_lc_rs::rand;

use super::{NONCE_LEN, Nonce};

/// Fills `out` with random bytes.
pub fn fill_random(out: &mut [u8]) {
    rand::fill(out).expect("the random generator works once seeded, and seeding failure aborts");
}

/// `N` random bytes.
pub fn random_array<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill_random(&mut out);
    out
}

/// One fresh nonce for each place in `out`, drawn in one call.
pub fn random_nonces(out: &mut [Nonce]) {
    fill_random(out.as_flattened_mut());
    const { assert!(NONCE_LEN == 12) };
}
