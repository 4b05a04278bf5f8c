//! A ciphertext blob that nobody made: it never opens.
#![no_main]

use std::cell::RefCell;

use kmsfs_fuzz::harness::b64;
use kmsfs_fuzz::{World, answer, with_world};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

thread_local!(static WORLD: RefCell<Option<World<String>>> = const { RefCell::new(None) });

fuzz_target!(|blob: &[u8]| {
    with_world(&WORLD, |service| service.key(), |world| {
        for body in [json!({"CiphertextBlob": b64(blob)}), json!({"CiphertextBlob": b64(blob), "KeyId": world.things})] {
            assert_ne!(answer(&world.service, "Decrypt", body.to_string().as_bytes()).0, 200, "forged");
        }
    });
});
