//! TLS on TCP, with a certificate that the client is told to trust.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::certificate::certificate;
use crate::kmsd_support::port::free_address;
use crate::kmsd_support::{Kmsd, assert_fails, assert_ok};

const SEED: &str = r#"
[[users]]
name = "alice"
access_keys = [{ id = "AKIDALICE00000000", secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" }]
[users.policies]
all = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}'
"#;

fn kmsfs(endpoint: &str, trusted: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(arguments)
        .args(["--kms", endpoint])
        .env("SSL_CERT_FILE", trusted)
        .env("AWS_ACCESS_KEY_ID", "AKIDALICE00000000")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
        .env("AWS_REGION", "local")
        .output()
        .unwrap()
}

#[test]
fn a_client_that_trusts_the_certificate_is_served_and_no_other() {
    let daemon = Kmsd::initialised();
    let (certificate_file, key) = certificate(&daemon.base, "server");
    let (other, _) = certificate(&daemon.base, "other");
    let (seed, address) = (daemon.base.join("seed.toml"), free_address());
    fs::write(&seed, SEED).unwrap();
    let daemon = daemon.with(&[
        "--listen",
        &address.to_string(),
        "--tls-cert",
        certificate_file.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
        "--seed",
        seed.to_str().unwrap(),
    ]);
    daemon.start();
    let endpoint = format!("https://localhost:{}", address.port());
    assert_ok(&kmsfs(&endpoint, &certificate_file, &["key", "create", "--alias", "alias/over-tls"]));
    let listed = kmsfs(&endpoint, &certificate_file, &["key", "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("alias/over-tls"), "{listed:?}");
    assert!(!kmsfs(&endpoint, &other, &["key", "list"]).status.success());
    // In clear, nothing is answered.
    let mut clear = TcpStream::connect(address).unwrap();
    clear.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    // A renewed certificate takes over without a restart.
    fs::copy(&other, &certificate_file).unwrap();
    fs::remove_file(&key).unwrap();
    fs::copy(daemon.base.join("other.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    let pid = rustix::process::Pid::from_raw(daemon.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    crate::kmsd_support::wait_until(|| kmsfs(&endpoint, &other, &["key", "list"]).status.success());
}

#[test]
fn files_that_are_no_pair_or_open_to_others_are_refused() {
    let daemon = Kmsd::initialised();
    let (certificate_file, key) = certificate(&daemon.base, "one");
    let (_, other) = certificate(&daemon.base, "two");
    let address = free_address().to_string();
    let serve = |certificate: &Path, key: &Path| {
        let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        daemon.serve(&["--listen", &address, "--tls-cert", certificate, "--tls-key", key], None)
    };
    assert_fails(&serve(&certificate_file, &other), 6, "does not go with the certificate");
    assert_fails(&serve(&key, &key), 6, "holds no certificate");
    fs::set_permissions(&certificate_file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_fails(&serve(&certificate_file, &certificate_file), 6, "chmod 0400");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_fails(&serve(&certificate_file, &key), 6, "chmod 0400");
    assert_fails(&serve(&daemon.base.join("none"), &key), 6, "none");
}
