//! Streams to and from an S3-compatible store: in parts, interrupted, as a chain, verified without keys, refused.
//! The store is `tests/aws_clients/store.py`; `scripts/test` installs what it needs.
#![allow(clippy::unwrap_used)]

#[path = "kmsd_support/certificate.rs"]
mod certificate;
mod programs;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use programs::{Desk, Said, manifest, run};
use serde_json::{Value, json};

/// A store of the test's own, with the bucket `backups`.
struct Store {
    server: Child,
    answers: BufReader<ChildStdout>,
    endpoint: String,
    key: (String, String),
}

impl Store {
    fn start(tls: &[&Path]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("target/venv/bin/python"));
        command.arg(root.join("tests/aws_clients/store.py")).args(tls);
        let mut server =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python is there");
        let mut answers = BufReader::new(server.stdout.take().unwrap());
        let said = read(&mut answers);
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        Self { server, answers, endpoint: text("endpoint"), key: (text("id"), text("secret")) }
    }

    fn ask(&mut self, line: &str) -> Value {
        writeln!(self.server.stdin.as_mut().unwrap(), "{line}").unwrap();
        read(&mut self.answers)
    }

    /// Runs `kmsfs` with the variables of AWS, and `more`.
    fn kmsfs_with(&self, desk: &Desk, line: &str, more: &[(&str, &str)]) -> Said {
        let mut command = desk.command_of(line);
        for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"] {
            command.env_remove(name);
        }
        command.env("AWS_ENDPOINT_URL", &self.endpoint).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", &self.key.0).env("AWS_SECRET_ACCESS_KEY", &self.key.1);
        run(command.envs(more.iter().copied()))
    }

    fn kmsfs(&self, desk: &Desk, line: &str) -> Said {
        self.kmsfs_with(desk, line, &[])
    }
}

fn read(from: &mut impl BufRead) -> Value {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    serde_json::from_str(&line).expect("the store has started and answers")
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

/// A volume with two snapshots: of `size` bytes, and of a little more. Unmounted.
fn two_snapshots(label: &str, size: usize) -> Desk {
    let desk = Desk::with_volume(label);
    let mnt = desk.mount();
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("dir/large"), vec![7; size]).unwrap();
    fs::write(mnt.join("small"), "one").unwrap();
    desk.kmsfs("snapshot create {mnt} monday").ok();
    fs::write(mnt.join("small"), "two").unwrap();
    desk.kmsfs("snapshot create {mnt} tuesday").ok();
    desk.umount();
    desk
}

const MONDAY: &str = "send {lower}@monday --part-size 5 --output s3://backups/vol";
const TUESDAY: &str = "send {lower}@tuesday --from monday --output s3://backups/vol/";

#[test]
fn a_chain_of_snapshots_goes_to_a_store_and_comes_back_whatever_interrupts_it() {
    let desk = two_snapshots("store", 12 << 20);
    let mut store = Store::start(&[]);
    store.ask("limit 1");
    let said = store.kmsfs(&desk, MONDAY).fails(1, "Interrupted: no more parts now");
    assert!(said.err.contains("kept there (parts: 1): the same command goes on"), "{said:?}");
    assert_eq!(store.ask("list"), json!(["vol/monday.kmsfs.upload", "upload of vol/monday.kmsfs"]));
    store.ask("limit");
    store.ask("lose");
    let said = store.kmsfs(&desk, MONDAY);
    assert!(said.err.contains("sent before (parts: 1)"), "{said:?}");
    said.ok();
    assert_eq!(store.ask("parts"), 3, "the part that was there was sent again");
    let said = store.kmsfs(&desk, TUESDAY);
    assert!(!said.err.contains("has no stream"), "{said:?}");
    said.ok();
    assert_eq!(store.ask("list"), json!(["vol/monday.kmsfs", "vol/tuesday.kmsfs"]));
    store.kmsfs(&desk, MONDAY).fails(1, "already, whole");

    desk.stop_kmsd();
    let whole = store.kmsfs(&desk, "receive --check --input s3://backups/vol --json").json();
    assert_eq!((&whole[0]["snapshot"], &whole[1]["snapshot"]), (&json!("monday"), &json!("tuesday")));
    store.kmsfs(&desk, "receive --check --input s3://backups/vol/tuesday.kmsfs").ok();
    store.kmsfs(&desk, "receive {back} --input s3://backups/vol/tuesday.kmsfs").fails(1, "monday");
    store.kmsfs(&desk, "receive {back} --input s3://backups/vol").ok();
    let again = store.kmsfs(&desk, "receive {back} --input s3://backups/vol").ok();
    assert!(again.contains("received before"), "{again}");
    for name in ["monday", "tuesday"] {
        let source = manifest(&desk.path(&format!("lower/.kmsfs.snapshots/{name}")));
        assert!(manifest(&desk.path(&format!("back/{name}"))) == source, "{name}");
    }
}

#[test]
fn nothing_half_done_stays_in_a_store_unasked() {
    let desk = two_snapshots("store-half", 6 << 20);
    let mut store = Store::start(&[]);
    store.ask("limit 0");
    let said = store.kmsfs(&desk, MONDAY).fails(1, "no more parts now");
    assert!(!said.err.contains("kept"), "{said:?}");
    assert_eq!(store.ask("list"), json!([]));

    // What was sent of another snapshot of that name is replaced.
    store.ask("limit 1");
    store.kmsfs(&desk, MONDAY).fails(1, "kept");
    store.ask("limit");
    desk.kmsfs("snapshot delete {lower} monday").ok();
    desk.kmsfs("snapshot create {lower} monday").ok();
    store.kmsfs(&desk, MONDAY).ok();
    assert_eq!(store.ask("list"), json!(["vol/monday.kmsfs"]));

    let elsewhere = MONDAY.replace("vol", "other");
    store.ask("limit 1");
    store.kmsfs(&desk, &elsewhere).fails(1, "kept");
    let abandoned = store.kmsfs(&desk, &format!("{elsewhere} --abandon")).ok();
    assert!(abandoned.contains("taken away"), "{abandoned}");
    assert_eq!(store.ask("list"), json!(["vol/monday.kmsfs"]));
    assert!(store.kmsfs(&desk, &format!("{elsewhere} --abandon")).ok().contains("nothing"));
}

#[test]
fn a_store_that_says_no_is_told_as_it_is() {
    let desk = two_snapshots("store-refused", 1);
    let tls = certificate::certificate(&desk.dir, "store");
    let store = Store::start(&[&tls.0, &tls.1]);
    let trusted = ("SSL_CERT_FILE", tls.0.to_str().unwrap());
    let kmsfs = |line: &str| store.kmsfs_with(&desk, line, &[trusted]);
    let send = |place: &str| format!("send {{lower}}@tuesday --output {place}");
    kmsfs(&send("s3://nowhere/x")).fails(1, "there is no bucket 'nowhere'");
    kmsfs("receive {back} --input s3://nowhere/x").fails(1, "there is no bucket 'nowhere'");
    kmsfs("receive {back} --input s3://backups/none").fails(1, "no streams");
    kmsfs("receive {back} --input s3://backups/none.kmsfs").fails(1, "no object 'none.kmsfs'");
    kmsfs("send {lower}@tuesday --from monday --output s3://backups/y").ok();
    kmsfs("receive {back} --input s3://backups/y").fails(1, "goes on from the snapshot 'monday'");
    let wrong = [trusted, ("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")];
    let said = store.kmsfs_with(&desk, &send("s3://backups/x"), &wrong).fails(1, "refuses the access key");
    assert!(said.err.contains("SignatureDoesNotMatch") && !said.err.contains("a-wrong-secret"), "{said:?}");
    let nobody = [trusted, ("AWS_ACCESS_KEY_ID", "")];
    store.kmsfs_with(&desk, &send("s3://backups/x"), &nobody).fails(1, "AWS_ACCESS_KEY_ID");
    // A store that none of the system's certificates speaks for, and one that is not there.
    store.kmsfs(&desk, &send("s3://backups/x")).fails(1, "certificate");
    kmsfs(&(send("s3://backups/x") + " --endpoint http://127.0.0.1:1")).fails(1, "refused");

    let profile =
        format!("[store]\naws_access_key_id={}\naws_secret_access_key={}\n", store.key.0, store.key.1);
    fs::write(desk.path("credentials"), profile).unwrap();
    let file = desk.path("credentials");
    let by_profile = [
        trusted,
        ("AWS_PROFILE", "store"),
        ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_ENDPOINT_URL", ""),
    ];
    let line = send("s3://backups/x") + " --endpoint " + &store.endpoint;
    store.kmsfs_with(&desk, &line, &by_profile).ok();
    // The profile may name the store's address, too.
    let profile = fs::read_to_string(&file).unwrap() + "endpoint_url = " + &store.endpoint + "\n";
    fs::write(&file, profile).unwrap();
    store.kmsfs_with(&desk, &send("s3://backups/z"), &by_profile).ok();
}

#[test]
fn a_place_that_is_none_is_told_before_anything_is_asked() {
    let desk = two_snapshots("store-usage", 1);
    for (line, words) in [
        ("send {lower}@monday --output s3://", "s3://BUCKET/PREFIX"),
        ("receive {back} --input s3:///x", "s3://BUCKET/PREFIX"),
        ("send {lower}@monday --output s3://b/x --part-size 1", "1 is not in"),
        ("send {lower}@monday --output {file} --endpoint http://b", "for a store alone"),
        ("receive {back} --input {file} --endpoint http://b", "for a store alone"),
    ] {
        desk.kmsfs(line).fails(2, words);
    }
    desk.kmsfs("send {lower}@monday --output s3://b/x --endpoint b").fails(1, "not an http:// or https://");
}
