//! One volume, keys of several key services and of several accounts.
#![allow(clippy::unwrap_used)]

mod kmsd_support;
mod programs;

use std::fs;

use kmsd_support::{Http, request_bytes};
use programs::{Desk, Said, eventually, refusal};
use serde_json::{Value, json};

/// Where the second service has its keys.
const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-west-1";

/// A desk with a volume under a key of its own service, the desk of a second service, and that one's key.
struct Two {
    desk: Desk,
    other: Desk,
    key: String,
}

impl Two {
    fn new(label: &str) -> Self {
        let desk = Desk::with_volume(label);
        let other = Desk::made(label, &["--account", ACCOUNT, "--region", REGION]);
        let key = other.key("k");
        Self { desk, other, key }
    }

    fn beside(&self) -> String {
        format!("--kms arn:aws:kms:{REGION}:{ACCOUNT}:=unix:{}", self.other.path("kmsd.sock").display())
    }

    /// Runs `kmsfs` with the second service beside the first.
    fn kmsfs(&self, line: &str) -> Said {
        self.desk.kmsfs(&format!("{line} {}", self.beside()))
    }
}

/// Errors that are no refusal of the file but of its key's service.
const AWAY: Option<i32> = Some(libc::EHOSTDOWN);
const NO_KEY: Option<i32> = Some(libc::ENOKEY);

#[test]
fn a_volume_holds_files_under_keys_of_two_services_and_each_is_asked_for_its_own() {
    let two = Two::new("two");
    let (desk, other) = (&two.desk, &two.other);
    let mnt = desk.path("mnt");
    desk.try_mount(&two.beside()).ok();
    fs::create_dir(mnt.join("there")).unwrap();
    // The mount knows its services; whoever asks it need not.
    desk.kmsfs(&format!("default {{mnt}}/there --key {}", two.key)).ok();
    for name in ["here", "cold", "there/file", "there/cold"] {
        fs::write(mnt.join(name), "text").unwrap();
    }
    assert_eq!((desk.key_of("there/file"), desk.key_of("here")), (two.key.clone(), desk.arn("k")));
    let services = desk.kmsfs("status {mnt} --json").json()["kms"].as_str().unwrap().to_owned();
    assert!(services.ends_with(&other.path("kmsd.sock").display().to_string()), "{services}");
    // Neither service is asked for a key of the other.
    let asked = |desk: &Desk, key: &str| desk.audit(&["--key", key]).len();
    assert!(asked(other, &two.key) > 0);
    assert_eq!((asked(desk, &two.key), asked(other, &desk.arn("k"))), (0, 0));
    // Rotation of both, and nothing goes from one to the other.
    desk.kmsfs("key rotate alias/k").ok();
    other.kmsfs("key rotate alias/k").ok();
    let report = desk.kmsfs("rewrap {mnt} --json").json();
    assert_eq!((&report["moved"], &report["failed"]), (&4.into(), &0.into()), "{report}");
    two.kmsfs(&format!("rewrap {{mnt}} --to-key {}", two.key)).fails(1, "two key services");
    let report = desk.kmsfs("rewrap {mnt} --json").json();
    assert_eq!((&report["moved"], &report["current"]), (&0.into(), &4.into()), "{report}");
    // A key withdrawn at one, and a service away, cost the files under it.
    other.kmsfs("key disable alias/k").ok();
    eventually("the second service is heard", || refusal(&mnt.join("there/file")) == NO_KEY);
    assert_eq!(refusal(&mnt.join("here")), None);
    other.kmsfs("key enable alias/k").ok();
    eventually("and again", || refusal(&mnt.join("there/file")).is_none());
    desk.umount();
    desk.try_mount(&two.beside()).ok();
    other.stop_kmsd();
    assert_eq!((refusal(&mnt.join("there/cold")), refusal(&mnt.join("cold"))), (AWAY, None));
    other.start_kmsd();
    eventually("it is back", || refusal(&mnt.join("there/cold")).is_none());
}

#[test]
fn without_the_service_of_some_files_the_others_open_and_nothing_is_lost() {
    let two = Two::new("one-of-two");
    let desk = &two.desk;
    let mnt = desk.mount();
    fs::create_dir(mnt.join("there")).unwrap();
    let hint = "--kms ARN-BEGINNING=ENDPOINT";
    desk.kmsfs(&format!("default {{mnt}}/there --key {}", two.key)).fails(4, hint);
    desk.umount();
    desk.try_mount(&two.beside()).ok();
    desk.kmsfs(&format!("default {{mnt}}/there --key {}", two.key)).ok();
    for name in ["here", "there/file"] {
        fs::write(mnt.join(name), "text").unwrap();
    }
    desk.umount();
    desk.try_mount("--idle 1h").ok();
    assert_eq!((refusal(&mnt.join("here")), refusal(&mnt.join("there/file"))), (None, NO_KEY));
    assert_eq!(fs::write(mnt.join("there/new"), "x").unwrap_err().raw_os_error(), NO_KEY);
    desk.umount();
    desk.kmsfs("fsck {lower}").fails(4, "Invalid arn");
    two.kmsfs("fsck {lower}").ok();
    // As in fstab.
    let options = format!("-o idle=1h,{}", two.beside().replace("--kms ", "kms="));
    desk.try_mount(&options).ok();
    assert_eq!(refusal(&mnt.join("there/file")), None);
    desk.umount();
    desk.try_mount("--kms arn:aws:kms:eu-west-1:=nowhere").fails(2, "ARN-BEGINNING=ENDPOINT");
}

#[test]
fn an_attached_volume_has_grants_at_both_services() {
    let two = Two::new("grants-of-two");
    let run = |line: &str| {
        programs::run(two.desk.command_of(line).env("KMSFS_STATE_DIR", two.desk.path("registry")))
    };
    let attach = format!("volume attach v {{mnt}} {}", two.beside());
    fs::create_dir(two.desk.path("mnt")).unwrap();
    run("volume add v {lower}").ok();
    run(&attach).ok();
    two.desk.adopt(two.desk.path("mnt"));
    let file = two.desk.path("mnt/there/file");
    fs::create_dir(two.desk.path("mnt/there")).unwrap();
    run(&format!("default {{mnt}}/there --key {}", two.key)).ok();
    fs::write(&file, "text").unwrap();
    let grants = || {
        let mut http = Http::unix(&two.other.path("kmsd.sock"));
        http.call("ListGrants", &json!({ "KeyId": two.key })).1["Grants"].as_array().unwrap().clone()
    };
    assert_eq!(grants().len(), 1);
    assert!(grants()[0]["GranteePrincipal"].as_str().unwrap().contains(":assumed-role/aws:kmsfs-mount/"));
    run("volume detach v").ok();
    assert_eq!(grants().len(), 0);
    run(&attach).ok();
    assert_eq!(refusal(&file), None);
    run("volume detach v").ok();
}

#[test]
fn a_volume_holds_files_under_keys_of_two_accounts_of_one_service() {
    let desk = Desk::with_volume("accounts");
    let mnt = desk.mount();
    let root = "arn:aws:iam::000000000000:root";
    let foreign = "arn:aws:iam::444455556666:root";
    let policy = |callers: &[&str]| {
        json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": foreign}, "Action": "kms:*", "Resource": "*"},
            {"Effect": "Allow", "Principal": {"AWS": callers}, "Resource": "*",
                "Action": ["kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey", "kms:ReEncrypt*"]}]})
        .to_string()
    };
    let call = |operation: &str, request: &Value| {
        let mut http = Http::unix(&desk.path("kmsd.sock"));
        http.send(&request_bytes(
            operation,
            &[("x-kms-account", "444455556666")],
            request.to_string().as_bytes(),
        ));
        let answer = http.receive().json();
        assert!(answer.get("__type").is_none(), "{operation}: {answer}");
        answer
    };
    let made = call("CreateKey", &json!({ "Policy": policy(&[root]) }));
    let key = made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    assert!(key.contains(":444455556666:"), "{key}");
    fs::create_dir(mnt.join("there")).unwrap();
    desk.kmsfs(&format!("default {{mnt}}/there --key {key}")).ok();
    for name in ["here", "there/file"] {
        fs::write(mnt.join(name), "text").unwrap();
    }
    assert_eq!(desk.key_of("there/file"), key);
    call("RotateKeyOnDemand", &json!({ "KeyId": key }));
    let report = desk.kmsfs("rewrap {mnt} --json").json();
    assert_eq!((&report["moved"], &report["failed"]), (&1.into(), &0.into()), "{report}");
    // The other account takes its word back.
    call("PutKeyPolicy", &json!({ "KeyId": key, "PolicyName": "default", "Policy": policy(&[foreign]) }));
    eventually("the mount is refused", || refusal(&mnt.join("there/file")) == Some(libc::EACCES));
    assert_eq!(refusal(&mnt.join("here")), None);
}
