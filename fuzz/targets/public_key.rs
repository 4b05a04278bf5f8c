//! SubjectPublicKeyInfo, given to DeriveSharedSecret. The first byte chooses the curve.
#![no_main]

use std::cell::RefCell;

use kmsfs_fuzz::harness::b64;
use kmsfs_fuzz::{World, answer, key, with_world};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

thread_local!(static WORLD: RefCell<Option<World<Vec<String>>>> = const { RefCell::new(None) });

const CURVES: [&str; 3] = ["ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"];

fuzz_target!(|data: &[u8]| {
    let Some((first, public)) = data.split_first() else { return };
    let prepare = |service: &_| CURVES.iter().map(|spec| key(service, spec, "KEY_AGREEMENT", "AWS_KMS")).collect();
    with_world(&WORLD, prepare, |world| {
        let key = &world.things[usize::from(*first) % CURVES.len()];
        let body = json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(public)});
        answer(&world.service, "DeriveSharedSecret", body.to_string().as_bytes());
    });
});
