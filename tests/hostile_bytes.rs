//! Whatever bytes lie in the lower tree, the parsers answer: no panic, no memory out of proportion, no accepted forgery.
//! The same checks as in fuzz/, on seeds that are damaged at random. `PROPTEST_CASES` asks for a long run
//! (`scripts/fuzz`), `KMSFS_FUZZ_CORPUS` for the seeds, to begin such a run with.
#![allow(clippy::unwrap_used, missing_docs)]

mod lower_formats;

use std::fs;
use std::path::Path;

use lower_formats::{ALL, check_of};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    // The same cases each time, unless a long run is asked for.
    let few = || ProptestConfig { rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(300) };
    if asked { ProptestConfig::default() } else { few() }
}

/// Some bytes changed at a few places of a seed, some added or cut off: what passes magic numbers and lengths, and goes
/// wrong behind them. Or bytes that are like nothing.
fn damaged(name: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = ALL.iter().find(|format| format.name == name).map(|format| (format.seeds)()).unwrap();
    let edits = proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    let more = proptest::collection::vec(any::<u8>(), 0..12);
    let seed = (proptest::sample::select(seeds), edits, more, any::<Index>()).prop_map(
        |(mut bytes, edits, more, cut)| {
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(bytes.len() * 4).min(bytes.len() - 1) / 8);
            bytes.extend(more);
            bytes
        },
    );
    prop_oneof![9 => seed, 1 => proptest::collection::vec(any::<u8>(), 0..4200)]
}

macro_rules! formats {
    ($($name:ident)*) => {
        proptest! {
            #![proptest_config(config())]
            $(#[test]
            fn $name(bytes in damaged(stringify!($name))) {
                check_of(stringify!($name))(&bytes);
            })*
        }

        #[test]
        fn every_format_is_here_and_its_seeds_are_taken() {
            assert_eq!(ALL.iter().map(|format| format.name).collect::<Vec<_>>(), [$(stringify!($name)),*]);
            for format in ALL {
                let seeds = (format.seeds)();
                let taken = seeds.iter().filter(|seed| (format.check)(seed)).count();
                // The others are there to be refused.
                assert!(taken * 2 >= seeds.len(), "{}: {taken} of {}", format.name, seeds.len());
                if let Some(corpus) = std::env::var_os("KMSFS_FUZZ_CORPUS") {
                    let dir = Path::new(&corpus).join(format.name);
                    fs::create_dir_all(&dir).unwrap();
                    for (number, seed) in seeds.iter().enumerate() {
                        fs::write(dir.join(format!("seed-{number}")), seed).unwrap();
                    }
                }
            }
        }
    };
}

formats! { header_page tag_page seal volume_record dir_record names sealed_file tag_log }
