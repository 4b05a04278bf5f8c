//! The body of every operation: the first byte chooses which.
#![no_main]

use std::cell::RefCell;

use kmsfs::api::Operation;
use kmsfs_fuzz::{World, answer, with_world};
use libfuzzer_sys::fuzz_target;

thread_local!(static WORLD: RefCell<Option<World<()>>> = const { RefCell::new(None) });

/// Key pairs are made by the second; nothing is learnt from them here.
const SLOW: &[&str] = &["CreateKey", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "GetParametersForImport"];

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let operation = Operation::ALL[usize::from(*first) % Operation::ALL.len()];
    let is_slow = SLOW.contains(&operation.name()) && body.windows(4).any(|part| part == b"RSA_");
    if operation.target().starts_with("TrentService.") && !is_slow {
        with_world(&WORLD, |service| drop(service.key()), |world| {
            answer(&world.service, operation.name(), body);
        });
    }
});
