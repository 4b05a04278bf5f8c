//! The text of a key policy: what is taken can be held against a call.
#![no_main]

use std::cell::RefCell;

use kmsfs_fuzz::harness::user;
use kmsfs_fuzz::{World, answer, with_world};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

thread_local!(static WORLD: RefCell<Option<World<String>>> = const { RefCell::new(None) });

fuzz_target!(|policy: &str| {
    with_world(&WORLD, |service| service.key(), |world| {
        let body = json!({"KeyId": world.things, "Policy": policy, "BypassPolicyLockoutSafetyCheck": true});
        if answer(&world.service, "PutKeyPolicy", body.to_string().as_bytes()).0 == 200 {
            let described = json!({"KeyId": world.things}).to_string();
            let reply = world.service.kms.handle(&user("mallory"), "TrentService.DescribeKey", described.as_bytes());
            assert!(matches!(reply.status, 200 | 400));
        }
    });
});
