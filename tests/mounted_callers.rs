//! One mount, users of different rights: the key service decides for each of them. Needs root, to be several users.
#![allow(clippy::unwrap_used)]

mod kmsd_support;
mod programs;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kmsd_support::Http;
use programs::{Desk, eventually, run};
use serde_json::json;

/// May make and read files.
const ALICE: u32 = 20_001;
/// May read files.
const BOB: u32 = 20_002;
/// May nothing.
const CAROL: u32 = 20_003;
/// May make files, and read none.
const DAVE: u32 = 20_004;
const ROOT: u32 = 0;
/// Opens of one file by one user, within the life of a decision.
const OPENS: usize = 20;
const ACCOUNT_ROOT: &str = "arn:aws:iam::000000000000:root";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn arn(uid: u32) -> String {
    format!("arn:aws:iam::000000000000:user/unix/uid-{uid}")
}

/// Root manages the key and opens the volume; makers and readers are who the files are for.
fn policy(makers: &[u32], readers: &[u32]) -> String {
    let arns = |uids: &[u32]| uids.iter().map(|uid| arn(*uid)).collect::<Vec<_>>();
    let mut statements = vec![
        json!({"Effect": "Allow", "Principal": {"AWS": ACCOUNT_ROOT}, "Resource": "*", "Action":
            ["kms:Put*", "kms:Describe*", "kms:Disable*", "kms:Enable*", "kms:Schedule*", "kms:*Grant", "kms:ListGrants"]}),
        json!({"Effect": "Allow", "Principal": {"AWS": ACCOUNT_ROOT}, "Resource": "*",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Condition": {"StringEquals": {"kms:EncryptionContext:kmsfs:purpose": "volume-record"}}}),
    ];
    for (uids, action) in [(makers, "kms:GenerateDataKey"), (readers, "kms:Decrypt")] {
        if !uids.is_empty() {
            let who = arns(uids);
            statements.push(
                json!({"Effect": "Allow", "Principal": {"AWS": who}, "Action": action, "Resource": "*",
                    "Condition": {"StringEquals": {"kms:ViaService": "kmsfs.local.amazonaws.com"}}}),
            );
        }
    }
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

struct Shared {
    desk: Desk,
    key: String,
}

impl Shared {
    /// A volume that everybody may enter, mounted for all, under a key with that policy.
    fn new(label: &str, makers: &[u32], readers: &[u32]) -> Self {
        let desk = Desk::new(label);
        let key = desk.key("k");
        let shared = Self { desk, key };
        shared.put_policy(makers, readers);
        shared.desk.kmsfs("init {lower} --key alias/k").ok();
        shared.mount("mount {lower} {mnt} --allow-other");
        fs::set_permissions(shared.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        shared
    }

    fn mount(&self, line: &str) {
        let mountpoint = self.desk.path("mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        self.desk.kmsfs(line).ok();
        self.desk.adopt(mountpoint);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path("mnt").join(name)
    }

    fn put_policy(&self, makers: &[u32], readers: &[u32]) {
        let policy = policy(makers, readers);
        let file = self.desk.path("policy.json");
        fs::write(&file, policy).unwrap();
        self.desk.kmsfs("key policy put alias/k {policy.json}").ok();
    }
}

fn shell(uid: u32, script: &str, at: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("sh").arg(at).uid(uid).gid(uid).current_dir("/");
    command
}

/// Why `script` fails for user `uid`, in the words of the shell; `None` where it goes well.
fn refusal(uid: u32, script: &str, at: &Path) -> Option<String> {
    let said = run(&mut shell(uid, script, at));
    (said.code != 0).then_some(said.err)
}

#[track_caller]
fn goes(uid: u32, script: &str, at: &Path) {
    assert_eq!(refusal(uid, script, at), None, "user {uid}: {script}");
}

#[track_caller]
fn is_denied(uid: u32, script: &str, at: &Path) {
    let why = refusal(uid, script, at).unwrap_or_else(|| panic!("user {uid} was let through: {script}"));
    assert!(why.contains("Permission denied"), "user {uid}: {script}: {why}");
}

/// A shell of user `uid` that holds a file open and reads it when it is told to.
struct Holder(Child);

impl Holder {
    /// To read and write.
    fn new(uid: u32, at: &Path) -> Self {
        Self::open(uid, "<>", at)
    }

    fn open(uid: u32, how: &str, at: &Path) -> Self {
        let reading = "dd bs=4096 count=1 skip=1 <&3 >/dev/null 2>&1 && echo read || echo refused";
        let script = format!("exec 3{how}\"$1\"; echo open; while read word; do {reading}; done");
        let mut command = shell(uid, &script, at);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut holder = Self(child);
        assert_eq!(holder.line(), "open");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        // One byte at a time: the reader is made anew for each line.
        BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn reads(&mut self) -> bool {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        match self.line().as_str() {
            "read" => true,
            "refused" => false,
            other => panic!("{other}"),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn each_user_may_what_the_key_policy_says_whatever_the_mode_and_root_too() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("callers", &[ALICE], &[ALICE, BOB]);
    let file = shared.path("file");
    goes(ALICE, "umask 0; echo secret > \"$1\"", &file);
    for _ in 0..2 {
        for uid in [ALICE, BOB] {
            goes(uid, "test \"$(cat \"$1\")\" = secret", &file);
        }
        for uid in [CAROL, ROOT] {
            for script in [
                "cat \"$1\"",
                "echo x >> \"$1\"",
                ": > \"$1\"",
                "truncate -s 1 \"$1\"",
                "cp \"$1\" \"$1.copy\"",
            ] {
                is_denied(uid, script, &file);
            }
            // What needs no key of a file is the mode's to decide.
            goes(
                uid,
                "stat \"$1\" && ls \"$(dirname \"$1\")\" && chmod -f 666 \"$1\"; touch \"$1\"; true",
                &file,
            );
        }
    }
    assert_eq!(fs::metadata(&file).unwrap().len(), 7, "nobody has changed it");
    // A new file takes the right to make data keys.
    is_denied(BOB, "echo x > \"$1\"", &shared.path("bobs"));
    assert!(!shared.path("bobs").exists());
    goes(BOB, ": >> \"$1\"", &file);
}

#[test]
fn the_record_names_the_user_for_whom_it_was_decided() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("record", &[ALICE], &[ALICE, BOB]);
    let file = shared.path("file");
    goes(ALICE, "umask 0; echo secret > \"$1\"", &file);
    for _ in 0..OPENS {
        goes(BOB, "cat \"$1\" > /dev/null", &file);
    }
    is_denied(CAROL, "cat \"$1\"", &file);
    let made = shared.desk.audit(&["--operation", "GenerateDataKey"]);
    assert!(
        made.iter().any(|r| r["userIdentity"]["arn"] == arn(ALICE).as_str() && r.get("errorCode").is_none())
    );
    let asked = shared.desk.audit(&["--operation", "Decrypt"]);
    let of =
        |uid: u32| asked.iter().filter(|r| r["userIdentity"]["arn"] == arn(uid).as_str()).collect::<Vec<_>>();
    // Once, and again when a change was told: the first answer of a service that tells of changes counts as one.
    assert!((1..OPENS).contains(&of(BOB).len()), "decided for each open: {:?}", of(BOB));
    assert_eq!(of(BOB)[0]["userIdentity"]["invokedBy"], "kmsfs.local.amazonaws.com");
    assert_eq!(of(CAROL)[0]["errorCode"], "AccessDeniedException");
}

#[test]
fn a_right_that_is_withdrawn_ends_new_and_open_files_of_that_user_and_no_other() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("withdrawn", &[ALICE], &[ALICE, BOB]);
    let file = shared.path("file");
    goes(ALICE, "umask 0; head -c 100000 /dev/zero > \"$1\"", &file);
    let (mut alices, mut bobs) = (Holder::new(ALICE, &file), Holder::new(BOB, &file));
    assert!(alices.reads() && bobs.reads());
    shared.put_policy(&[ALICE], &[ALICE]);
    eventually("bob is refused", || refusal(BOB, "cat \"$1\" > /dev/null", &file).is_some());
    is_denied(BOB, "cat \"$1\"", &file);
    eventually("bob's open file is refused", || !bobs.reads());
    goes(ALICE, "cat \"$1\" > /dev/null", &file);
    assert!(alices.reads());
    shared.put_policy(&[ALICE], &[ALICE, BOB]);
    eventually("bob is let in again", || refusal(BOB, "cat \"$1\" > /dev/null", &file).is_none());
    eventually("and his open file", || bobs.reads());
}

#[test]
fn a_file_that_was_empty_when_it_was_opened_is_decided_when_it_is_read() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("empty", &[ALICE], &[ALICE, BOB]);
    let file = shared.path("file");
    goes(ALICE, "umask 0; : > \"$1\"", &file);
    let (mut bobs, mut carols) = (Holder::open(BOB, "<", &file), Holder::open(CAROL, "<", &file));
    goes(ALICE, "head -c 100000 /dev/zero > \"$1\"; sync \"$1\"", &file);
    // The kernel has the pages of the writer; what it has not it asks for in the name of whoever opened the file.
    shared.desk.kmsfs("lock {mnt} --once").ok();
    assert!(!carols.reads());
    assert!(bobs.reads());
}

/// A descriptor that user `uid` opens, for whoever it is handed to.
fn open_as(uid: u32, how: &fs::OpenOptions, at: &Path) -> fs::File {
    let (how, at) = (how.clone(), at.to_owned());
    // The identity is that of a thread, which ends with it.
    let opened = std::thread::spawn(move || {
        let id = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(id, id, id).unwrap();
        how.open(at).unwrap()
    });
    opened.join().unwrap()
}

#[test]
fn a_copy_between_descriptors_takes_the_right_of_each_for_its_own_file() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("handed", &[ALICE, DAVE], &[ALICE, BOB]);
    let (file, out) = (shared.path("file"), shared.path("out"));
    goes(ALICE, "umask 0; : > \"$1\"", &file);
    let reading = fs::File::options().read(true).clone();
    let writing = fs::File::options().write(true).create(true).mode(0o666).clone();
    // Not decided yet, since there is nothing to decide on.
    let carols = open_as(CAROL, &reading, &file);
    goes(ALICE, "head -c 100000 /dev/zero > \"$1\"; sync \"$1\"", &file);
    let (bobs, alices) = (open_as(BOB, &reading, &file), open_as(ALICE, &writing, &out));
    let daves = open_as(DAVE, &writing, &shared.path("daves"));
    let copy = |from: &fs::File, to: &fs::File| {
        rustix::fs::copy_file_range(from, Some(&mut 0), to, Some(&mut 0), 100_000)
    };
    // Whom a descriptor for writing was handed to reads by it nothing that his own for reading does not give.
    assert_eq!(copy(&carols, &alices), Err(rustix::io::Errno::ACCESS));
    assert_eq!(alices.metadata().unwrap().len(), 0);
    // And who may read copies to whoever may write.
    assert_eq!(copy(&bobs, &alices), Ok(100_000));
    assert_eq!(copy(&bobs, &daves), Ok(100_000));
}

#[test]
fn a_grant_lets_in_and_its_end_shuts_out() {
    if !is_root() {
        return;
    }
    let shared = Shared::new("granted", &[ALICE], &[ALICE]);
    let file = shared.path("file");
    goes(ALICE, "umask 0; echo secret > \"$1\"", &file);
    is_denied(BOB, "cat \"$1\"", &file);
    let mut http = Http::unix(&shared.desk.path("kmsd.sock"));
    let grant = json!({"KeyId": shared.key, "GranteePrincipal": arn(BOB), "Operations": ["Decrypt"]});
    let (status, granted) = http.call("CreateGrant", &grant);
    assert_eq!(status, 200, "{granted}");
    eventually("bob is let in", || refusal(BOB, "cat \"$1\"", &file).is_none());
    assert_eq!(http.call("RevokeGrant", &json!({"KeyId": shared.key, "GrantId": granted["GrantId"]})).0, 200);
    eventually("bob is shut out", || refusal(BOB, "cat \"$1\"", &file).is_some());
}

#[test]
fn a_mount_that_is_no_service_is_refused_unless_its_own_right_shall_count() {
    if !is_root() {
        return;
    }
    let desk = Desk::with_volume("untrusted");
    desk.stop_kmsd();
    fs::write(desk.path("map.toml"), "[services]\nkmsfs = [\"20009\"]\n").unwrap();
    desk.start_kmsd_with(&["--map", desk.path("map.toml").to_str().unwrap()]);
    fs::create_dir_all(desk.path("mnt")).unwrap();
    desk.kmsfs("mount {lower} {mnt} --allow-other").fails(4, "Service principal not trusted");
    desk.kmsfs("mount {lower} {mnt} --allow-other -o decide=mount").ok();
    desk.adopt(desk.path("mnt"));
    fs::set_permissions(desk.path("mnt"), fs::Permissions::from_mode(0o777)).unwrap();
    goes(CAROL, "umask 0; echo x > \"$1\" && cat \"$1\"", &desk.path("mnt/file"));
}
