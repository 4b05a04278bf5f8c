//! Hostile input, by the ten thousand: what callers send is changed at random places, and the service must stay whole.
//!
//! Bounded here; `scripts/fuzz` runs the same for as long as it is told to, with a fresh seed each time. Whatever comes
//! in, a call ends with an answer that is JSON, no fault of the service's own (`KMSInternalException` is what a panic
//! becomes), and never with somebody's plaintext for something that was not exactly the right ciphertext.

use std::time::{Duration, Instant};

use kmsfs::kms::sigv4::{AccessKeySecret, SignedRequest, Verifier};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::harness::{Service, b64, root, service, unb64};
use crate::imports::Import;

const ROUNDS: usize = 1500;
const MAX_EDITS: u64 = 4;

/// What to run: so many rounds, or for `KMSFS_FUZZ_SECONDS`, from `KMSFS_FUZZ_SEED`.
struct Plan {
    random: Random,
    until: Option<Instant>,
    left: usize,
}

impl Plan {
    fn new(name: &str) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("KMSFS_FUZZ_SEED").unwrap_or(2026);
        let until = number("KMSFS_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
        if until.is_some() {
            println!("{name}: KMSFS_FUZZ_SEED={seed}");
        }
        Self { random: Random(seed | 1), until, left: ROUNDS }
    }

    fn goes_on(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.until.map_or(self.left > 0, |until| Instant::now() < until)
    }
}

/// xorshift64*: the same seed gives the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// `bytes` with a few edits: flips, cuts, repeats, insertions of what parsers trip over.
    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        const WORDS: [&[u8]; 16] = [
            b"\"",
            b"{",
            b"[",
            b"\\u0000",
            b"\\ud800",
            b"null",
            b"-1",
            b"1e999",
            b"99999999999999999999",
            b"*",
            b"\0",
            b"\xff\xfe",
            b"${",
            b"arn:aws:",
            b",",
            b":",
        ];
        let mut out = bytes.to_vec();
        for _ in 0..=self.next() % MAX_EDITS {
            let at = self.below(out.len() + 1).min(out.len());
            match self.next() % 6 {
                0 if at < out.len() => out[at] ^= 1 << (self.next() % 8),
                1 if at < out.len() => out[at] = self.next() as u8,
                2 => out.truncate(at),
                3 => {
                    let end = (at + self.below(32)).min(out.len());
                    let part = out[at..end].to_vec();
                    out.splice(at..at, part);
                }
                4 => drop(out.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
                _ => drop(out.drain(at..(at + self.below(16)).min(out.len()))),
            }
        }
        out
    }
}

/// Makes the call; whatever it is, the answer is in order.
fn answer(s: &Service, operation: &str, body: &[u8]) -> (u16, Value) {
    let reply = s.kms.handle(&root(), &format!("TrentService.{operation}"), body);
    let value: Value = if reply.body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&reply.body).expect("every answer is JSON")
    };
    assert_ne!(value["__type"], "KMSInternalException", "{operation} {}", String::from_utf8_lossy(body));
    assert_eq!(reply.status == 200, value.get("__type").is_none());
    (reply.status, value)
}

#[test]
fn bodies_of_every_shape() {
    let mut plan = Plan::new("bodies");
    let s = service();
    let (key, sealed) = sealed(&s);
    let policy = s.ok("GetKeyPolicy", json!({"KeyId": key}))["Policy"].clone();
    let bodies: Vec<(&str, String)> = [
        ("Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x"), "EncryptionContext": {"a": "b"}, "GrantTokens": ["t"]})),
        ("Decrypt", json!({"CiphertextBlob": sealed, "EncryptionContext": {"a": "b"}})),
        ("GenerateDataKey", json!({"KeyId": key, "NumberOfBytes": 64, "DryRun": false})),
        ("CreateKey", json!({"Tags": [{"TagKey": "a", "TagValue": "b"}], "Description": "d"})),
        ("PutKeyPolicy", json!({"KeyId": key, "Policy": policy, "PolicyName": "default"})),
        ("CreateGrant", json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::111122223333:user/a",
            "Operations": ["Decrypt"], "Constraints": {"EncryptionContextSubset": {"a": "b"}}})),
        ("ListAliases", json!({"KeyId": key, "Limit": 5, "Marker": "YQ"})),
        ("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key})),
        ("ScheduleKeyDeletion", json!({"KeyId": "arn:aws:kms:local:111122223333:key/none", "PendingWindowInDays": 7})),
    ]
    .into_iter()
    .map(|(operation, body)| (operation, body.to_string()))
    .collect();
    while plan.goes_on() {
        let (operation, body) = &bodies[plan.random.below(bodies.len())];
        let body = plan.random.mutate(body.as_bytes());
        answer(&s, operation, &body);
    }
}

fn sealed(s: &Service) -> (String, String) {
    let key = s.key();
    let body = json!({"KeyId": key, "Plaintext": b64(b"a secret"), "EncryptionContext": {"a": "b"}});
    let blob = s.ok("Encrypt", body)["CiphertextBlob"].as_str().unwrap().to_owned();
    (key, blob)
}

#[test]
fn ciphertext_blobs() {
    let mut plan = Plan::new("blobs");
    let s = service();
    let blob = unb64(&sealed(&s).1.into());
    while plan.goes_on() {
        let changed = plan.random.mutate(&blob);
        let body = json!({"CiphertextBlob": b64(&changed), "EncryptionContext": {"a": "b"}}).to_string();
        let (status, _) = answer(&s, "Decrypt", body.as_bytes());
        assert_eq!(status == 200, changed == blob);
    }
}

#[test]
fn every_bit_of_a_blob_and_of_its_context_counts() {
    let s = service();
    let blob = unb64(&sealed(&s).1.into());
    let opens = |blob: &[u8], context: Value| {
        let body = json!({"CiphertextBlob": b64(blob), "EncryptionContext": context}).to_string();
        answer(&s, "Decrypt", body.as_bytes()).0 == 200
    };
    assert!(opens(&blob, json!({"a": "b"})));
    for bit in 0..blob.len() * 8 {
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&changed, json!({"a": "b"})), "bit {bit} of the blob");
    }
    for bit in 0..7 {
        let flipped = |c: u8| char::from(c ^ (1 << bit)).to_string();
        assert!(!opens(&blob, json!({flipped(b'a'): "b"})), "bit {bit} of the key");
        assert!(!opens(&blob, json!({"a": flipped(b'b')})), "bit {bit} of the value");
    }
}

#[test]
fn policies() {
    let mut plan = Plan::new("policies");
    let s = service();
    let key = s.key();
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Sid":"s","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:root","*"]},
        "Action":["kms:*","kms:De?rypt"],"Resource":"*","Condition":{"ForAnyValue:StringLikeIfExists":{"kms:EncryptionContextKeys":["a*${aws:username}"]},
        "IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"DateLessThan":{"aws:CurrentTime":"2030-01-01T00:00:00Z"},"NumericEquals":{"kms:X":"1"},
        "Bool":{"aws:SecureTransport":"true"},"Null":{"kms:ViaService":"true"}}}]}"#;
    while plan.goes_on() {
        let text = String::from_utf8_lossy(&plan.random.mutate(policy.as_bytes())).into_owned();
        let body = json!({"KeyId": key, "Policy": text, "BypassPolicyLockoutSafetyCheck": true}).to_string();
        let (status, _) = answer(&s, "PutKeyPolicy", body.as_bytes());
        if status == 200 {
            // Whatever was taken can be held against a call.
            let user = crate::harness::user("mallory");
            let reply =
                s.kms.handle(&user, "TrentService.DescribeKey", json!({"KeyId": key}).to_string().as_bytes());
            assert!(matches!(reply.status, 200 | 400));
        }
    }
}

#[test]
fn signature_headers() {
    let mut plan = Plan::new("signatures");
    let headers = [
        ("host", "127.0.0.1:4599"),
        ("x-amz-date", "20260131T235958Z"),
        ("x-amz-target", "TrentService.ListKeys"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260131/local/kms/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-target, \
             Signature=bbc78c856cfb76b16410d84cbe236ba7293d71bf93d70a3727fdb3434000c5c1",
        ),
    ];
    let secret = |_: &str, _: Option<&str>| Ok(AccessKeySecret::new(Zeroizing::new(b"secret".to_vec())));
    let verifier = Verifier::default();
    while plan.goes_on() {
        let changed: Vec<(&str, String)> = headers
            .iter()
            .map(|(name, value)| {
                (*name, String::from_utf8_lossy(&plan.random.mutate(value.as_bytes())).into_owned())
            })
            .collect();
        let kept = plan.random.below(headers.len());
        let all: Vec<(&str, &str)> = changed
            .iter()
            .enumerate()
            .map(|(at, (name, value))| (*name, if at == kept { headers[at].1 } else { value.as_str() }))
            .collect();
        let request = SignedRequest {
            method: "POST",
            path: "/",
            query: "",
            headers: &all,
            body: b"{}",
            services: &["kms"],
        };
        assert!(verifier.verify(&request, 1_769_903_998, |_| true, secret).is_err());
        let _ = verifier.precheck(&request, 1_769_903_998, |_| true, secret);
    }
}

/// PKCS#8 and SubjectPublicKeyInfo as the service itself makes them.
fn pair(s: &Service, spec: &str) -> (Vec<u8>, Vec<u8>) {
    let made = s.ok("GenerateDataKeyPair", json!({"KeyId": s.key(), "KeyPairSpec": spec}));
    (unb64(&made["PrivateKeyPlaintext"]), unb64(&made["PublicKey"]))
}

#[test]
fn public_keys() {
    let mut plan = Plan::new("public keys");
    let s = service();
    let usage = "KEY_AGREEMENT";
    let known: Vec<(String, Vec<u8>)> = ["ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"]
        .iter()
        .map(|spec| (s.key_with(json!({"KeySpec": spec, "KeyUsage": usage})), pair(&s, spec).1))
        .collect();
    while plan.goes_on() {
        let (key, public) = &known[plan.random.below(known.len())];
        let changed = plan.random.mutate(public);
        let body = json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(&changed)});
        let (status, found) = answer(&s, "DeriveSharedSecret", body.to_string().as_bytes());
        assert!(status == 200 || changed != *public);
        if status == 200 {
            // A point has a hybrid form too (X9.62); nothing else is taken for it.
            let known = json!({"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(public)});
            assert_eq!(
                found["SharedSecret"],
                s.ok("DeriveSharedSecret", known)["SharedSecret"],
                "{changed:02x?}"
            );
        }
    }
}

#[test]
fn private_keys() {
    let mut plan = Plan::new("private keys");
    let s = service();
    let fresh = |spec: &str| {
        let key = s.key_with(json!({"Origin": "EXTERNAL", "KeySpec": spec, "KeyUsage": "SIGN_VERIFY"}));
        let import = Import::begin(&s, &key, "RSA_AES_KEY_WRAP_SHA_256", "RSA_2048");
        (key, import)
    };
    let mut known: Vec<_> = ["ECC_NIST_P256", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "RSA_2048"]
        .iter()
        .map(|spec| (*spec, pair(&s, spec).0, fresh(spec)))
        .collect();
    // Unwrapping costs an RSA operation, so there are fewer rounds of it.
    plan.left /= 5;
    while plan.goes_on() {
        let place = plan.random.below(known.len());
        let (spec, pkcs8, (key, import)) = &known[place];
        let changed = plan.random.mutate(pkcs8);
        if changed.is_empty() {
            continue;
        }
        let request = import.request(key, &changed).to_string();
        if answer(&s, "ImportKeyMaterial", request.as_bytes()).0 == 200 {
            // What was taken can be used, and is in the way of the next.
            let public = json!({"KeyId": key}).to_string();
            assert_eq!(answer(&s, "GetPublicKey", public.as_bytes()).0, 200);
            known[place].2 = fresh(spec);
        }
    }
}

#[test]
fn import_tokens_and_wrapped_material() {
    let mut plan = Plan::new("imports");
    let s = service();
    let key = s.key_with(json!({"Origin": "EXTERNAL"}));
    let request = Import::begin(&s, &key, "RSAES_OAEP_SHA_256", "RSA_2048").request(&key, &[7; 32]);
    let (token, wrapped) = (unb64(&request["ImportToken"]), unb64(&request["EncryptedKeyMaterial"]));
    // Opening a token costs an RSA operation, so there are fewer rounds of it.
    plan.left /= 5;
    while plan.goes_on() {
        let mut body = request.clone();
        let which = plan.random.next().is_multiple_of(2);
        let (name, bytes) = if which { ("ImportToken", &token) } else { ("EncryptedKeyMaterial", &wrapped) };
        let changed = plan.random.mutate(bytes);
        body[name] = b64(&changed).into();
        let (status, _) = answer(&s, "ImportKeyMaterial", body.to_string().as_bytes());
        assert_eq!(status == 200, changed == *bytes, "{name}");
        if status == 200 {
            answer(&s, "DeleteImportedKeyMaterial", json!({"KeyId": key}).to_string().as_bytes());
        }
    }
}
