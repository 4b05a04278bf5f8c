//! The AWS clients that people have, unchanged, against `kmsd serve --listen`: boto3, the AWS command line in versions
//! 1 (PyPI) and 2 (Debian), and the AWS Encryption SDK. The cases are in `tests/aws_clients/`; this file starts the
//! daemon. `scripts/test` installs the clients; a missing one fails the test.

#![cfg(feature = "kms")]

#[path = "kmsd_support/certificate.rs"]
mod certificate;
#[path = "kmsd_support/port.rs"]
mod port;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use certificate::certificate;
use port::free_address;

const ACCOUNT: &str = "111122223333";
const REGION: &str = "local";
const ELSEWHERE: &str = "eu-west-2";
const KEY_ID: &str = "0a1b2c3d-1111-4222-8333-444455556666";
const OTHER_KEY_ID: &str = "0a1b2c3d-1111-4222-8333-444455557777";
const USER: (&str, &str) = ("AKIAUSER234567ABCDEF", "user-secret-user-secret-user-secret-abcd");
const OTHER_ACCOUNT: &str = "444455556666";
const ADMIN: (&str, &str) = ("AKIAADMIN234567ABCDE", "admin-secret-admin-secret-admin-secret-ab");
const OTHER_ADMIN: (&str, &str) = ("AKIAOTHER234567ABCDE", "other-secret-other-secret-other-secret-ab");
const READER: (&str, &str) = ("AKIAREADER234567ABCD", "reader-secret-reader-secret-reader-abcde");

/// A daemon of the test's own, stopped and removed when it goes out of scope.
struct Daemon {
    dir: PathBuf,
    port: u16,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further options of `kmsd serve`.
    fn start_with(options: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("kmsfs-aws-clients-{}", std::process::id()));
        let dir = dir.with_extension(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        let port = free_address().port();
        let daemon = Self { dir, port };
        fs::write(daemon.dir.join("seed.toml"), seed()).expect("the seed file is written");
        let state = daemon.path("state");
        let key = format!("keyfile:{}", daemon.path("root.key"));
        kmsd(&["init", "--dir", &state, "--account", ACCOUNT, "--region", REGION, "--seal", &key]);
        let listen = format!("127.0.0.1:{port}");
        let (socket, seed) = (daemon.path("kmsd.sock"), daemon.path("seed.toml"));
        let mut serve =
            vec!["serve", "--dir", &state, "--socket", &socket, "--listen", &listen, "--seed", &seed];
        serve.extend_from_slice(options);
        serve.push("--background");
        kmsd(&serve);
        daemon
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("the temporary directory is UTF-8").to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let state = self.dir.join("state");
        let _ = Command::new(env!("CARGO_BIN_EXE_kmsd")).args(["stop", "--dir"]).arg(state).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn kmsd(arguments: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_kmsd"))
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .expect("kmsd was built");
    assert!(done.success(), "kmsd {}: {done}", arguments.join(" "));
}

fn seed() -> String {
    format!(
        r#"
[[users]]
name = "tester"
access_keys = [{{ id = "{}", secret = "{}" }}]
[users.policies]
all = '{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"kms:*","Resource":"*"}}]}}'

[[users]]
name = "reader"
access_keys = [{{ id = "{}", secret = "{}" }}]
[users.policies.read]
Version = "2012-10-17"
Statement = [{{ Effect = "Allow", Action = ["kms:DescribeKey", "kms:List*"], Resource = "*" }}]

[[users]]
name = "admin"
access_keys = [{{ id = "{}", secret = "{}" }}]
[users.policies]
all = '{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"*","Resource":"*"}}]}}'

[[users]]
name = "admin"
account = "{OTHER_ACCOUNT}"
access_keys = [{{ id = "{}", secret = "{}" }}]
[users.policies]
all = '{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"*","Resource":"*"}}]}}'

[[keys]]
id = "{KEY_ID}"
aliases = ["alias/seeded"]

[[keys]]
id = "{OTHER_KEY_ID}"
"#,
        USER.0, USER.1, READER.0, READER.1, ADMIN.0, ADMIN.1, OTHER_ADMIN.0, OTHER_ADMIN.1
    )
}

fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/test, which installs it", python.display());
    python
}

#[test]
fn boto3_and_both_command_lines_work_unchanged() {
    let python = python();
    let daemon = Daemon::start();
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/suite.py");
    let done = Command::new(&python)
        .arg(suite)
        .env("KMSD_ENDPOINT", format!("http://127.0.0.1:{}", daemon.port))
        .env("KMSD_REGION", REGION)
        .env("KMSD_ACCOUNT", ACCOUNT)
        .env("KMSD_KEY_ID", KEY_ID)
        .env("KMSD_USER_ID", USER.0)
        .env("KMSD_USER_SECRET", USER.1)
        .env("KMSD_READER_ID", READER.0)
        .env("KMSD_READER_SECRET", READER.1)
        .env("KMSD_ADMIN_ID", ADMIN.0)
        .env("KMSD_ADMIN_SECRET", ADMIN.1)
        .env("KMSD_AWS_V1", python.with_file_name("aws"))
        .env("KMSD_AWS_V2", "/usr/bin/aws")
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
    let ran = said.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(ran > 22, "only {ran} cases ran:\n{said}");
    assert!(!said.contains("skipped"), "a case was skipped:\n{said}");
}

#[test]
fn who_may_do_what_is_decided_as_aws_documents_it() {
    let python = python();
    let daemon = Daemon::start();
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/access.py");
    let done = Command::new(&python)
        .arg(suite)
        .env("KMSD_ENDPOINT", format!("http://127.0.0.1:{}", daemon.port))
        .env("KMSD_REGION", REGION)
        .env("KMSD_ACCOUNT", ACCOUNT)
        .env("KMSD_OTHER_ACCOUNT", OTHER_ACCOUNT)
        .env("KMSD_ADMIN_ID", ADMIN.0)
        .env("KMSD_ADMIN_SECRET", ADMIN.1)
        .env("KMSD_OTHER_ID", OTHER_ADMIN.0)
        .env("KMSD_OTHER_SECRET", OTHER_ADMIN.1)
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
    assert!(said.contains("Ran 4 tests"), "{said}");
}

#[test]
fn the_encryption_sdk_works_unchanged() {
    let python = python();
    let daemon = Daemon::start();
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/encryption_sdk.py");
    let arn = |id: &str| format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{id}");
    let done = Command::new(&python)
        .arg(suite)
        .env("AWS_ENDPOINT_URL_KMS", format!("http://127.0.0.1:{}", daemon.port))
        .env("AWS_ACCESS_KEY_ID", USER.0)
        .env("AWS_SECRET_ACCESS_KEY", USER.1)
        .env("KMSD_ARN", arn(KEY_ID))
        .env("KMSD_OTHER_ARN", arn(OTHER_KEY_ID))
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
    assert!(said.contains("Ran 7 tests"), "{said}");
}

#[test]
fn every_operation_member_and_constraint_of_the_model_is_known() {
    let daemon = Daemon::start();
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/model.py");
    let done = Command::new(python())
        .arg(suite)
        .env("KMSD_ENDPOINT", format!("http://127.0.0.1:{}", daemon.port))
        .env("KMSD_REGION", REGION)
        .env("KMSD_USER_ID", USER.0)
        .env("KMSD_USER_SECRET", USER.1)
        .env("KMSD_DOCS", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/KMS.md"))
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
    assert!(said.contains("Ran 5 tests"), "{said}");
}

/// Runs one class of answers.py.
fn answers(daemon: &Daemon, class: &str, fault: &str) -> String {
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/answers.py");
    let done = Command::new(python())
        .args([suite, class])
        .env("KMSD_ENDPOINT", format!("http://127.0.0.1:{}", daemon.port))
        .env("KMSD_REGION", REGION)
        .env("KMSD_ELSEWHERE", ELSEWHERE)
        .env("KMSD_ACCOUNT", ACCOUNT)
        .env("KMSD_USER_ID", USER.0)
        .env("KMSD_USER_SECRET", USER.1)
        .env("KMSD_FAULT", fault)
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stdout));
    said.into_owned()
}

#[test]
fn every_answer_and_every_declared_error_is_of_the_model() {
    let daemon = Daemon::start_with(&["--region", ELSEWHERE]);
    let said = answers(&daemon, "Answers", "");
    assert!(said.contains("Ran 2 tests"), "{said}");
}

#[test]
fn faults_that_are_made_on_purpose_are_of_the_model() {
    for fault in ["DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException"] {
        let daemon = Daemon::start_with(&["--inject", &format!("*:{fault}:100%")]);
        let said = answers(&daemon, "Faults", fault);
        assert!(said.contains("Ran 1 test"), "{said}");
    }
}

#[test]
fn clients_trust_the_certificate_that_they_are_given() {
    let dir = std::env::temp_dir().join(format!("kmsfs-aws-tls-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("the temporary directory is writable");
    let (certificate, key) = certificate(&dir, "server");
    let path = |file: &Path| file.to_str().expect("the temporary directory is UTF-8").to_owned();
    let (certificate, key) = (path(&certificate), path(&key));
    let daemon = Daemon::start_with(&["--tls-cert", &certificate, "--tls-key", &key]);
    let done = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws_clients/tls.py"))
        .env("KMSD_ENDPOINT", format!("https://localhost:{}", daemon.port))
        .env("KMSD_CERTIFICATE", &certificate)
        .env("KMSD_AWS_V1", python().with_file_name("aws"))
        .env("KMSD_AWS_V2", "/usr/bin/aws")
        .env("AWS_ACCESS_KEY_ID", USER.0)
        .env("AWS_SECRET_ACCESS_KEY", USER.1)
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_MAX_ATTEMPTS", "1")
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter runs");
    let _ = fs::remove_dir_all(&dir);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("Ran 3 tests"), "{said}");
}

#[test]
fn the_seed_file_of_local_kms_is_taken_over() {
    let dir = std::env::temp_dir().join(format!("kmsfs-local-kms-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("the temporary directory is writable");
    let (old, new) = (dir.join("seed.yaml"), dir.join("seed.toml"));
    let id = "bc436485-5092-42b8-92a3-0aa8b93536dc";
    let yaml = format!(
        "Keys:\n  Symmetric:\n    Aes:\n      - Metadata:\n          KeyId: {id}\n        BackingKeys:\n          - \
         5cdaead27fe7da2de47945d73cd6d79e36494e73802f3cd3869f1d2cb0b5d7a9\nAliases:\n  - AliasName: alias/testing\n    \
         TargetKeyId: {id}\n"
    );
    fs::write(&old, yaml).expect("the file is written");
    let made = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/local-kms-seed"))
        .arg(&old)
        .output()
        .expect("the interpreter runs");
    assert!(made.status.success(), "{made:?}");
    fs::write(&new, &made.stdout).expect("the file is written");
    let path = |name: &str| dir.join(name).to_str().expect("the temporary directory is UTF-8").to_owned();
    let (state, socket) = (path("state"), path("kmsd.sock"));
    kmsd(&["init", "--dir", &state, "--region", REGION, "--seal", &format!("keyfile:{}", path("root.key"))]);
    kmsd(&["serve", "--dir", &state, "--socket", &socket, "--seed", &path("seed.toml"), "--background"]);
    let described = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "describe", "alias/testing", "--json", "--kms", &format!("unix:{socket}")])
        .output()
        .expect("kmsfs was built");
    kmsd(&["stop", "--dir", &state]);
    let _ = fs::remove_dir_all(&dir);
    let shown = String::from_utf8_lossy(&described.stdout);
    assert!(shown.contains(id), "{described:?}");
}
