//! What the fuzz targets share: a key service in memory, and what must be so of every answer; and the checks of the lower
//! formats.
//!
//! The targets feed them with what libFuzzer makes up. tests/kms_api/hostile.rs and tests/hostile_bytes.rs ask the same,
//! bounded, on every change.

use std::cell::RefCell;

use serde_json::{Value, json};

#[path = "../../tests/kms_api/harness.rs"]
pub mod harness;
#[path = "../../tests/lower_formats/mod.rs"]
pub mod lower_formats;

use harness::{Service, root, service};

/// Calls after which the service is made anew: it remembers each.
const CALLS_OF_A_SERVICE: usize = 5_000;

/// A service, and the keys that a target uses.
pub struct World<T> {
    /// The service.
    pub service: Service,
    /// What `prepare` made in it.
    pub things: T,
    calls: usize,
}

impl<T> World<T> {
    fn new(prepare: fn(&Service) -> T) -> Self {
        let service = service();
        Self { things: prepare(&service), service, calls: 0 }
    }
}

/// Runs `use_it` with a service that `prepare` has made keys in.
pub fn with_world<T: 'static>(
    world: &'static std::thread::LocalKey<RefCell<Option<World<T>>>>,
    prepare: fn(&Service) -> T,
    use_it: impl FnOnce(&World<T>),
) {
    world.with_borrow_mut(|world| {
        if world.as_ref().is_none_or(|world| world.calls >= CALLS_OF_A_SERVICE) {
            *world = Some(World::new(prepare));
        }
        if let Some(world) = world {
            world.calls += 1;
            use_it(world);
        }
    });
}

/// Makes the call. Whatever it is, the answer is JSON, and no fault of the service's own.
pub fn answer(service: &Service, operation: &str, body: &[u8]) -> (u16, Value) {
    let reply = service.kms.handle(&root(), &format!("TrentService.{operation}"), body);
    let value: Value = match &reply.body[..] {
        [] => Value::Null,
        body => serde_json::from_slice(body).expect("every answer is JSON"),
    };
    assert_ne!(value["__type"], "KMSInternalException", "{operation}");
    assert_eq!(reply.status == 200, value.get("__type").is_none(), "{operation}");
    (reply.status, value)
}

/// A key of `spec`.
pub fn key(service: &Service, spec: &str, usage: &str, origin: &str) -> String {
    service.key_with(json!({"KeySpec": spec, "KeyUsage": usage, "Origin": origin}))
}
