//! A service in memory, with a clock that tests move.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsfs::api::Timestamp;
use kmsfs::crypto::RootKey;
use kmsfs::kms::audit::MemoryAudit;
use kmsfs::kms::root::Root;
use kmsfs::kms::store::{MemoryStore, Store};
use kmsfs::kms::{Caller, Kms, Parts, SettableClock, Settings, Source, root_arn, user_arn};
use serde_json::Value;

pub const ACCOUNT: &str = "111122223333";
pub const REGION: &str = "local";
/// 2023-11-14 22:13:20 UTC.
pub const START: Timestamp = Timestamp::from_millis(1_700_000_000_250);

/// A service and the things behind it.
pub struct Service {
    pub kms: Kms,
    pub clock: Arc<SettableClock>,
    pub audit: Arc<MemoryAudit>,
    pub store: Arc<dyn Store>,
}

/// An error as a client sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: u16,
    pub code: String,
    pub message: String,
}

pub fn service() -> Service {
    over(Arc::new(MemoryStore::new()), RootKey::random())
}

/// A service whose key policies and grants name only users and roles that are there, as `kmsd` runs it.
pub fn strict() -> Service {
    assemble(Arc::new(MemoryStore::new()), RootKey::random(), |settings| {
        settings.takes_unknown_principals = false;
    })
}

/// A service where new replicas and moved primary keys take `millis` to settle.
pub fn settling(millis: i64) -> Service {
    assemble(Arc::new(MemoryStore::new()), RootKey::random(), |settings| settings.settle_millis = millis)
}

pub fn over(store: Arc<dyn Store>, root: RootKey) -> Service {
    assemble(store, root, |_| {})
}

fn assemble(store: Arc<dyn Store>, root: RootKey, change: impl FnOnce(&mut Settings)) -> Service {
    let clock = Arc::new(SettableClock::new(START));
    let audit = Arc::new(MemoryAudit::new());
    let root = Root::open(root, &*store).unwrap();
    let mut settings = Settings {
        account: ACCOUNT.into(),
        region: REGION.into(),
        further_regions: vec!["*".into()],
        settle_millis: 0,
        // Most callers of these tests are users whom nobody made.
        takes_unknown_principals: true,
    };
    change(&mut settings);
    let parts =
        Parts { settings, store: Arc::clone(&store), root, audit: audit.clone(), clock: clock.clone() };
    Service { kms: Kms::open(parts).unwrap(), clock, audit, store }
}

pub fn root() -> Caller {
    Caller {
        principal_arn: root_arn(ACCOUNT),
        account: ACCOUNT.into(),
        region: REGION.into(),
        is_root: true,
        access_key_id: None,
        source: Source::Unix { uid: 0, gid: 0, pid: 1 },
        user_agent: "test".into(),
        via_service: None,
        secure_transport: true,
        session: None,
        barred: None,
    }
}

pub fn user(name: &str) -> Caller {
    Caller {
        principal_arn: user_arn(ACCOUNT, name),
        is_root: false,
        source: Source::Unix { uid: 1000, gid: 1000, pid: 2 },
        ..root()
    }
}

impl Service {
    /// A call that must succeed, by the account root.
    pub fn ok(&self, operation: &str, body: Value) -> Value {
        self.ok_as(&root(), operation, body)
    }

    /// A call that must succeed.
    pub fn ok_as(&self, caller: &Caller, operation: &str, body: Value) -> Value {
        match self.call(caller, operation, &body.to_string()) {
            Ok(answer) => answer,
            Err(failure) => panic!("{operation} {body} failed: {failure:?}"),
        }
    }

    /// A call that must fail, by the account root: its code and message.
    pub fn fails(&self, operation: &str, body: Value) -> (String, String) {
        self.fails_as(&root(), operation, body)
    }

    /// A call that must fail: its code and message.
    pub fn fails_as(&self, caller: &Caller, operation: &str, body: Value) -> (String, String) {
        match self.call(caller, operation, &body.to_string()) {
            Ok(answer) => panic!("{operation} {body} succeeded: {answer}"),
            Err(failure) => (failure.code, failure.message),
        }
    }

    pub fn call(&self, caller: &Caller, operation: &str, body: &str) -> Result<Value, Failure> {
        if let Some(("iam" | "sts", action)) = operation.split_once('.') {
            return self.query(caller, action, &serde_json::from_str(body).unwrap());
        }
        let target = match operation.split_once('.') {
            Some(_) => operation.to_owned(),
            None => format!("TrentService.{operation}"),
        };
        let reply = self.kms.handle(caller, &target, body.as_bytes());
        assert_eq!(reply.request_id.len(), 36);
        let value =
            if reply.body.is_empty() { Value::Null } else { serde_json::from_slice(&reply.body).unwrap() };
        if reply.status == 200 {
            assert_eq!(reply.error, None);
            return Ok(value);
        }
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let code = text("__type").unwrap();
        assert_eq!(reply.error.unwrap().name(), code);
        let message = text(if code == "AccessDeniedException" { "Message" } else { "message" });
        assert_ne!(message.as_deref(), Some(""), "what has no message has no member for it");
        let message = message.unwrap_or_default();
        Err(Failure { status: reply.status, code, message })
    }

    /// A call to IAM or STS, whose form is `body` with lists as `NAME.member.1`.
    pub fn query(&self, caller: &Caller, action: &str, body: &Value) -> Result<Value, Failure> {
        let mut pairs = vec![("Action".to_owned(), action.to_owned())];
        for (name, value) in body.as_object().unwrap() {
            pairs.push((name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
        let form = kmsfs::kms::iam::params::encode(&pairs);
        let reply = self.kms.handle_iam(caller, form.as_bytes(), true);
        let value: Value = serde_json::from_slice(&reply.body).unwrap();
        if reply.status == 200 {
            return Ok(value[format!("{action}Response")][format!("{action}Result")].clone());
        }
        let text = |name: &str| value["Error"][name].as_str().unwrap().to_owned();
        Err(Failure { status: reply.status, code: text("Code"), message: text("Message") })
    }

    /// A new key: its id.
    pub fn key(&self) -> String {
        self.key_with(serde_json::json!({}))
    }

    pub fn key_with(&self, body: Value) -> String {
        self.ok("CreateKey", body)["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    /// A user with one policy that says `statement`.
    pub fn user_with(&self, name: &str, statement: &Value) -> Caller {
        self.ok("iam.CreateUser", serde_json::json!({"UserName": name}));
        let document = serde_json::json!({"Version": "2012-10-17", "Statement": [statement]}).to_string();
        let policy = serde_json::json!({"UserName": name, "PolicyName": "p", "PolicyDocument": document});
        self.ok("iam.PutUserPolicy", policy);
        user(name)
    }
}

/// A key policy that leaves everything to the account, with `statement` beside.
pub fn root_policy_and(statement: &Value) -> String {
    let own = serde_json::json!(
        {"Effect": "Allow", "Principal": {"AWS": root_arn(ACCOUNT)}, "Action": "kms:*", "Resource": "*"});
    serde_json::json!({"Version": "2012-10-17", "Statement": [own, statement]}).to_string()
}

pub fn arn(id: &str) -> String {
    format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{id}")
}

pub fn alias_arn(name: &str) -> String {
    format!("arn:aws:kms:{REGION}:{ACCOUNT}:{name}")
}

pub fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub fn unb64(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// As `fails` returns it.
pub fn failure(code: &str, message: &str) -> (String, String) {
    (code.to_owned(), message.to_owned())
}
