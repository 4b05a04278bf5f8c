//! The headers of a signature: lines of the input. None is good but the one that was made with the secret.
#![no_main]

use kmsfs::kms::sigv4::{AccessKeySecret, SignedRequest, Verifier};
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

/// 2026-01-31T23:59:58Z.
const NOW: u64 = 1_769_903_998;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let headers: Vec<(&str, &str)> = text.lines().take(64).filter_map(|line| line.split_once(':')).collect();
    let request =
        SignedRequest { method: "POST", path: "/", query: "", headers: &headers, body: b"{}", services: &["kms"] };
    let secret = |_: &str, _: Option<&str>| Ok(AccessKeySecret::new(Zeroizing::new(b"unknown to all".to_vec())));
    let verifier = Verifier::default();
    let _ = verifier.precheck(&request, NOW, |_| true, secret);
    assert!(verifier.verify(&request, NOW, |_| true, secret).is_err(), "forged");
});
