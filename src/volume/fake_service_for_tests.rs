//! A key service within the test: two master keys, their versions, and marks. It can be made to go away.
//!
//! What it calls a wrapped key is the number under which it remembers the key.
#![cfg(test)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::Blob;
use crate::client::{Endpoint, Kms, KmsConfig, RetryLimits, Timeouts};
use crate::crypto::random_array;

/// Two master keys.
pub const KEY_A: &str = "arn:aws:kms:local:000000000000:key/00000000-0000-4000-8000-00000000000a";
pub const KEY_B: &str = "arn:aws:kms:local:000000000000:key/00000000-0000-4000-8000-00000000000b";

/// What it remembers.
#[derive(Clone, Default)]
pub struct Memory {
    /// How often each key was rotated.
    pub rotations: HashMap<String, u64>,
    /// By master key.
    marks: HashMap<String, u64>,
    wrapped: HashMap<Vec<u8>, Value>,
    /// Requests that are still answered; all of them where that is not said.
    pub left: Option<u32>,
}

/// The service, which ends with the test.
pub struct FakeService {
    socket: PathBuf,
    pub memory: Arc<Mutex<Memory>>,
}

impl FakeService {
    /// Listens in `dir`.
    pub fn start(dir: &Path) -> Self {
        let (socket, memory) = (dir.join("service"), Arc::new(Mutex::new(Memory::default())));
        let listener = UnixListener::bind(&socket).unwrap();
        let served = Arc::clone(&memory);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = Arc::clone(&served);
                std::thread::spawn(move || serve(&stream, &served));
            }
        });
        Self { socket, memory }
    }

    pub fn client(&self) -> Arc<Kms> {
        let config = KmsConfig {
            endpoint: Endpoint::Unix(self.socket.clone()),
            timeouts: Timeouts::default(),
            retry: RetryLimits::default(),
            via_service: false,
            credentials: None,
            mount_principal: None,
        };
        Arc::new(Kms::new(config).unwrap())
    }
}

/// Answers one connection; `None` at its end.
fn serve(stream: &UnixStream, memory: &Mutex<Memory>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut operation) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if line.trim_end().is_empty() {
                break;
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else { continue };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "x-amz-target" => operation = value.rsplit('.').next()?.to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let mut memory = memory.lock();
        match &mut memory.left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        let (status, answer) = match memory.answer(&operation, &serde_json::from_slice(&body).unwrap()) {
            Some(answer) => ("200 OK", answer),
            None => ("400 Bad Request", json!({ "__type": "InvalidCiphertextException" })),
        };
        let answer = answer.to_string();
        let length = answer.len();
        write!(&mut &*stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{answer}").ok()?;
    }
}

impl Memory {
    fn version(&self, key: &str) -> String {
        format!("{:064x}", self.rotations.get(key).copied().unwrap_or_default() + 1)
    }

    fn wrap(&mut self, key: &Value, context: &Value, plain: &Value) -> (Value, String) {
        let version = self.version(key.as_str().unwrap());
        let number = random_array::<16>().to_vec();
        self.wrapped.insert(number.clone(), json!({ "key": key, "context": context, "plain": plain }));
        (json!(Blob(number)), version)
    }

    /// `None` refuses.
    fn answer(&mut self, operation: &str, request: &Value) -> Option<Value> {
        let unwrap = |memory: &Self, context: &str| {
            let Blob(number) = serde_json::from_value(request["CiphertextBlob"].clone()).ok()?;
            memory.wrapped.get(&number).filter(|wrapped| wrapped["context"] == request[context]).cloned()
        };
        Some(match operation {
            "GenerateDataKey" => {
                let (key, plain) = (&request["KeyId"], json!(Blob(random_array::<32>().to_vec())));
                let (blob, version) = self.wrap(key, &request["EncryptionContext"], &plain);
                json!({ "KeyId": key, "Plaintext": plain, "CiphertextBlob": blob, "KeyMaterialId": version })
            }
            "Decrypt" => {
                let wrapped = unwrap(self, "EncryptionContext")?;
                json!({ "KeyId": wrapped["key"], "Plaintext": wrapped["plain"] })
            }
            "ReEncrypt" => {
                let (wrapped, key) = (unwrap(self, "SourceEncryptionContext")?, &request["DestinationKeyId"]);
                let context = &request["DestinationEncryptionContext"];
                let (blob, version) = self.wrap(key, context, &wrapped["plain"]);
                json!({ "KeyId": key, "CiphertextBlob": blob, "DestinationKeyMaterialId": version })
            }
            "DescribeKey" => json!({ "KeyMetadata": {
                "Arn": request["KeyId"], "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT",
                "KeySpec": "SYMMETRIC_DEFAULT",
                "CurrentKeyMaterialId": self.version(request["KeyId"].as_str()?),
            } }),
            "AdvanceMark" => {
                let wrapped = unwrap(self, "EncryptionContext")?;
                let mark = self.marks.entry(wrapped["key"].as_str()?.to_owned()).or_default();
                *mark = (*mark).max(request["Value"].as_u64().unwrap_or_default());
                json!({ "Value": *mark })
            }
            other => panic!("{other} is not served"),
        })
    }
}
