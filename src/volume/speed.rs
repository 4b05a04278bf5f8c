//! How fast the ciphers are here, in the way files use them.

use std::time::{Duration, Instant};

use crate::crypto::{Aead, DataKey, FileKeys, random_array, random_nonces};
use crate::format::layout::BLOCK_LEN;

/// Each figure is measured for this long.
const MEASURE: Duration = Duration::from_millis(400);
/// Blocks worked on between two looks at the clock.
const ROUND: u32 = 64;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// What was measured.
    pub what: &'static str,
    /// How much of it in a second.
    pub rate: f64,
    /// What is counted.
    pub unit: &'static str,
}

/// Measures all.
#[allow(clippy::cast_precision_loss, reason = "small constants")]
pub fn measure() -> Vec<Figure> {
    let aead = Aead::new(&random_array());
    let mut block = vec![0; BLOCK_LEN];
    let mib = BLOCK_LEN as f64 / f64::from(1 << 20);
    let sealing = rate(|| {
        aead.seal(&random_array(), b"", &mut block);
    });
    let (nonce, mut out) = (random_array(), vec![0; BLOCK_LEN]);
    let tag = aead.seal(&nonce, b"", &mut block);
    let opening = rate(|| {
        let _ = std::hint::black_box(aead.open(&nonce, b"", &block, &tag, &mut out));
    });
    let data_key = DataKey::random();
    let deriving = rate(|| {
        std::hint::black_box(FileKeys::derive(&data_key, &[0; 16]));
    });
    let mut nonces = [[0; 12]; 256];
    let drawing = rate(|| random_nonces(&mut nonces)) * nonces.len() as f64;
    vec![
        Figure { what: "AES-256-GCM-SIV encrypt, 4 KiB blocks", rate: sealing * mib, unit: "MiB/s" },
        Figure { what: "AES-256-GCM-SIV decrypt, 4 KiB blocks", rate: opening * mib, unit: "MiB/s" },
        Figure { what: "keys of one file from its data key", rate: deriving, unit: "/s" },
        Figure { what: "random nonces", rate: drawing, unit: "/s" },
    ]
}

/// How often `work` can be done in a second.
fn rate(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut done = 0.0;
    while start.elapsed() < MEASURE {
        for _ in 0..ROUND {
            work();
        }
        done += f64::from(ROUND);
    }
    done / start.elapsed().as_secs_f64()
}
