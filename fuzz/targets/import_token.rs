//! An import token that nobody made: none is good.
#![no_main]

use std::cell::RefCell;

use kmsfs_fuzz::harness::b64;
use kmsfs_fuzz::{World, answer, key, with_world};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

thread_local!(static WORLD: RefCell<Option<World<String>>> = const { RefCell::new(None) });

fuzz_target!(|token: &[u8]| {
    let prepare = |service: &_| key(service, "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "EXTERNAL");
    with_world(&WORLD, prepare, |world| {
        let body = json!({
            "KeyId": world.things, "ImportToken": b64(token), "EncryptedKeyMaterial": b64(&[1; 256]),
            "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
        });
        assert_ne!(answer(&world.service, "ImportKeyMaterial", body.to_string().as_bytes()).0, 200, "forged");
    });
});
