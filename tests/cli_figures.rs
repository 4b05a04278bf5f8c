//! What a mount tells of itself: figures in its status, to a scraper on its socket, and by `kmsfs top`.
#![allow(clippy::unwrap_used)]

mod programs;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use programs::{Desk, eventually};
use serde_json::Value;

fn status(desk: &Desk) -> Value {
    desk.kmsfs("status {mnt} --json").json()
}

fn say(socket: &str, words: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The number of a line of the scraped text.
#[track_caller]
fn scraped(socket: &str, name: &str) -> u64 {
    let answer = say(socket, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (metric, value) = line.rsplit_once(' ').unwrap();
        assert!(metric.starts_with("kmsfs_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
}

/// Reads the file without the kernel's cache.
fn read_anew(desk: &Desk, path: &Path) -> bool {
    desk.kmsfs("lock {mnt} --once").ok();
    fs::read(path).is_ok()
}

#[test]
fn keys_of_files_that_come_next_in_a_directory_are_fetched_before_they_are_opened() {
    const FILES: usize = 100;
    let desk = Desk::with_volume("ahead");
    let mnt = desk.mount();
    for n in 0..FILES {
        fs::write(mnt.join(format!("{n}")), vec![n as u8; 100]).unwrap();
    }
    let order: Vec<_> = fs::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().path()).collect();
    let ahead = || status(&desk)["figures"]["keys"]["ahead"].as_u64().unwrap();
    assert_eq!(ahead(), 0);
    // Again where the machine is so busy that there are pauses between the opens.
    eventually("keys were fetched ahead", || {
        desk.kmsfs("lock {mnt} --once").ok();
        order[..FILES / 2].iter().for_each(|path| drop(fs::read(path).unwrap()));
        ahead() > 0
    });
    for path in &order {
        let n: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(fs::read(path).unwrap(), vec![n as u8; 100]);
    }
    assert!(desk.kmsfs("status {mnt}").ok().contains("ahead of need"));
}

#[test]
fn a_mount_counts_what_it_does_and_tells_it_to_scrapers() {
    let desk = Desk::with_volume("figures");
    let mnt = desk.mount();
    let file = mnt.join("file");
    fs::write(&file, vec![7; 100_000]).unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    assert!(read_anew(&desk, &file));
    let told = status(&desk);
    let figures = &told["figures"];
    assert!(figures["written_bytes"].as_u64() >= Some(100_000), "{figures}");
    assert!(figures["read_bytes"].as_u64() >= Some(100_000), "{figures}");
    assert!(
        figures["keys"]["made"].as_u64() >= Some(1) && figures["keys"]["unwraps"].as_u64() >= Some(1),
        "{figures}"
    );
    let key = figures["keys"]["in_use"][0]["key_arn"].as_str().unwrap();
    assert_eq!(key, told["default_key"].as_str().unwrap());

    let socket = told["socket"].as_str().unwrap();
    assert!(scraped(socket, "kmsfs_written_bytes_total") >= 100_000);
    assert!(scraped(socket, "kmsfs_request_duration_seconds_count{kind=\"write\"}") >= 1);
    assert_eq!(scraped(socket, &format!("kmsfs_key_refused{{key=\"{key}\"}}")), 0);
    let printed = desk.kmsfs("status {mnt} --prometheus").ok();
    assert!(printed.contains("# TYPE kmsfs_request_duration_seconds histogram"), "{printed}");
    assert!(say(socket, "nonsense\n").contains("not a request"));

    desk.kmsfs("key disable alias/k").ok();
    eventually("the mount is told no", || {
        scraped(socket, &format!("kmsfs_key_refused{{key=\"{key}\"}}")) == 1
    });
    assert!(!read_anew(&desk, &file));
    assert!(scraped(socket, "kmsfs_key_refusals_total{reason=\"disabled\"}") >= 1);
    assert!(desk.kmsfs("status {mnt}").ok().contains("key disabled or locked"));
}

#[test]
fn the_timeline_tells_who_opened_a_file() {
    let desk = Desk::with_volume("timeline");
    let mnt = desk.mount();
    fs::write(mnt.join("one"), "1").unwrap();
    fs::write(mnt.join("two"), "2").unwrap();
    assert!(read_anew(&desk, &mnt.join("one")) && read_anew(&desk, &mnt.join("two")));
    let id = desk.kmsfs("info {mnt/one} --json").json()["file_id"].as_str().unwrap().to_owned();
    let mut command = std::process::Command::new(programs::KMSD);
    command.args(["audit", "--dir"]).arg(desk.path("state")).args(["timeline", "--file", &id]);
    let told = programs::run(&mut command).ok();
    let opened: Vec<&str> = told.lines().filter(|line| line.contains("  Decrypt  ")).collect();
    assert!(!opened.is_empty(), "{told}");
    for line in told.lines() {
        assert!(line.contains(&format!("file {id} of volume")) && line.contains("  allowed"), "{line}");
        assert!(line.contains(" through kmsfs.local.amazonaws.com"), "{line}");
    }
}

#[test]
fn top_shows_what_goes_on_and_work_that_was_told_of() {
    let desk = Desk::with_volume("top");
    let mnt = desk.mount();
    let socket = status(&desk)["socket"].as_str().unwrap().to_owned();
    // It is news for some seconds.
    let work = || {
        let said =
            say(&socket, "{\"command\": \"working\", \"what\": \"rewrap\", \"done\": 3, \"total\": 9}\n");
        assert!(said.contains("noted"), "{said}");
    };
    eventually("the status tells of the work", || {
        work();
        status(&desk)["work"]["done"] == 3
    });
    eventually("the work is shown", || {
        work();
        let shown = desk.kmsfs("top {mnt} --batch 1").ok();
        assert!(shown.contains(mnt.to_str().unwrap()) && shown.contains("operations"), "{shown}");
        shown.contains("rewrap: 3 of 9 files")
    });
    desk.kmsfs("top {home} --batch 1").fails(1, "is not a mount point of kmsfs");
}
