//! What one block, tag page, header, seal, name, cached key and request cost, without a filesystem or a key daemon.
//!
//!     micro [--quick] [--json]        (scripts/bench micro)
//!
//! Each line is the median of batches that run for a while each, after one that is thrown away; the spread is that of
//! the middle half. Called by `scripts/bench`. Never writes a file.
#![allow(clippy::cast_precision_loss)] // Times and sizes here stay below 2^52.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kmsfs::api::{self, DecryptRequest};
use kmsfs::client::{CacheLimits, DekCache};
use kmsfs::crypto::{DataKey, FileKeys, Secret, VolumeKey, random_array};
use kmsfs::format::header::{Slots, Superblock};
use kmsfs::format::layout::BLOCK_LEN;
use kmsfs::format::seal::{Seal, State};
use kmsfs::format::tags::{TagPage, open_block, seal_block};
use kmsfs::format::{FileId, VolumeId, WrappedKey, name};

const BATCHES: usize = 15;
const ARN: &str = "arn:aws:kms:local:000000000000:key/00000000-0000-4000-8000-000000000000";

/// Runs things over and over, and tells what once costs.
struct Bench {
    batch: Duration,
    json: bool,
}

impl Bench {
    /// Tells the time of `work`; of `bytes`, where it handles that many.
    fn run<R>(&self, group: &str, what: &str, bytes: usize, mut work: impl FnMut() -> R) {
        let mut rounds = 1_u64;
        let nanos = loop {
            let nanos = time(rounds, &mut work);
            if nanos >= self.batch.as_nanos() as f64 {
                break nanos / rounds as f64;
            }
            rounds *= 2;
        };
        let rounds = (self.batch.as_nanos() as f64 / nanos).max(1.0) as u64;
        let mut each: Vec<f64> = (0..BATCHES).map(|_| time(rounds, &mut work) / rounds as f64).collect();
        each.sort_by(f64::total_cmp);
        let (low, median, high) = (each[BATCHES / 4], each[BATCHES / 2], each[BATCHES - 1 - BATCHES / 4]);
        if self.json {
            println!(
                r#"{{"group":"{group}","what":"{what}","ns":{median:.1},"low":{low:.1},"high":{high:.1}}}"#
            );
            return;
        }
        let rate = if bytes > 0 { format!("{:8.2} GB/s", bytes as f64 / median) } else { String::new() };
        println!("{group:<8}{what:<44}{median:>10.0} ns  ({low:.0} to {high:.0}){rate}");
    }
}

fn time<R>(rounds: u64, work: &mut impl FnMut() -> R) -> f64 {
    let begin = Instant::now();
    for _ in 0..rounds {
        black_box(work());
    }
    begin.elapsed().as_nanos() as f64
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asked = |word: &str| words.iter().any(|given| given == word);
    let batch = Duration::from_millis(if asked("--quick") { 2 } else { 40 });
    let bench = Bench { batch, json: asked("--json") };
    let data_key = DataKey::random();
    let file_id = FileId(random_array());
    let keys = FileKeys::derive(&data_key, &file_id.0);
    blocks(&bench, &keys, file_id);
    headers(&bench, &data_key, &keys, file_id);
    names(&bench);
    cache(&bench, file_id);
    wire(&bench);
}

fn blocks(bench: &Bench, keys: &FileKeys, file_id: FileId) {
    let (nonce, mut data, mut out) = (random_array(), vec![7; BLOCK_LEN], vec![0; BLOCK_LEN]);
    bench.run("codec", "seal a block", BLOCK_LEN, || seal_block(keys, file_id, 5, &nonce, &mut data));
    let entry = seal_block(keys, file_id, 5, &nonce, &mut data);
    bench.run("codec", "open a block", BLOCK_LEN, || {
        open_block(keys, file_id, 5, &entry, &data, &mut out).expect("it was just sealed");
    });
    let mut page = TagPage::empty(1);
    for index in 0..page.entries().len() {
        page.set(index, random_array());
    }
    bench.run("codec", "MAC of a tag page", 0, || page.mac(keys, 1));
    let mac = page.mac(keys, 1);
    bench.run("codec", "term of a tag page in the root", 0, || page.root_term(keys, 1, &mac));
    let stored = page.encode(&mac);
    bench.run("codec", "check a tag page", 0, || {
        TagPage::parse(keys, 1, &stored[..]).expect("it was just made")
    });
}

fn headers(bench: &Bench, data_key: &DataKey, keys: &FileKeys, file_id: FileId) {
    let superblock = Superblock::new(VolumeId(random_array()), file_id, *keys.commitment());
    let bytes = superblock.encode();
    let wrapped = WrappedKey { key_arn: ARN.into(), material_id: None, blob: vec![9; 140] };
    let slots = Slots::new(superblock, wrapped);
    let stored = slots.encode().expect("it fits");
    bench.run("header", "superblock and slots, parsed", 0, || Slots::parse(&stored).expect("just made"));
    bench.run("header", "keys of a file, derived", 0, || FileKeys::derive(data_key, &file_id.0));
    let seal = Seal {
        epoch: 2,
        size: 10_000,
        root: [3; 16],
        state: State::Clean,
        firm: 0,
        session: 1,
        place: [0; 16],
    };
    bench.run("header", "seal, written", 0, || seal.encode(keys, &bytes));
    let sealed = seal.encode(keys, &bytes);
    bench.run("header", "seal, opened", 0, || Seal::parse(keys, &bytes, &sealed).expect("just made"));
}

fn names(bench: &Bench) {
    let dir = VolumeKey::new(Secret::random()).dir_key(&random_array());
    for (what, plain) in [("a name of 12", "source_a.txt".to_owned()), ("a name of 200", "n".repeat(200))] {
        let lower = name::encrypt(&dir, plain.as_bytes()).expect("a good name");
        let text = lower.sidecar.map_or(lower.entry, |sidecar| sidecar.target);
        bench.run("names", &format!("{what}, encrypted"), 0, || name::encrypt(&dir, plain.as_bytes()));
        bench.run("names", &format!("{what}, decrypted"), 0, || name::decrypt(&dir, text.as_bytes()));
    }
}

fn cache(bench: &Bench, file_id: FileId) {
    let held = DekCache::<()>::new(CacheLimits { capacity: 10_000, ttl: Duration::from_mins(10) });
    let wrap = [1; 32];
    for _ in 0..9_999 {
        held.put(random_array(), wrap, ARN, DataKey::random());
    }
    held.put(file_id.0, wrap, ARN, DataKey::random());
    bench.run("cache", "a data key of 10,000, found", 0, || held.get(file_id.0, &wrap));
    bench.run("cache", "a data key, not found", 0, || held.get([0; 16], &wrap));
}

fn wire(bench: &Bench) {
    let body = format!(
        r#"{{"CiphertextBlob":"{}","EncryptionContext":{{"kmsfs:volume":"{1}","kmsfs:file":"{1}","kmsfs:purpose":"file-data"}},"KeyId":"{ARN}"}}"#,
        "QUJD".repeat(47),
        "0123456789abcdef0123456789abcdef",
    );
    bench.run("wire", "a Decrypt request, parsed and checked", 0, || {
        api::parse::<DecryptRequest>(body.as_bytes()).expect("a good request")
    });
    let request = api::parse::<DecryptRequest>(body.as_bytes()).expect("a good request");
    let context = request.encryption_context.expect("it has one");
    bench.run("wire", "its encryption context, canonical", 0, || context.canonical());
}
