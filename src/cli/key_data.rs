//! The `key` commands that move bytes through a key. Plaintext buffers are wiped.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::error::CliError;
use super::key_args::{Bytes, DataKeyArgs, DecryptArgs, EncryptArgs, RandomArgs, ReEncryptArgs};
use super::output::{line, text};
use crate::api::Operation;
use crate::client::Kms;

/// Most bytes read for one call; the service's own limits are lower.
const MAX_INPUT: u64 = 64 * 1024;

pub(super) fn encrypt(kms: &Kms, args: &EncryptArgs) -> Result<(), CliError> {
    let plaintext = read_input(&args.bytes)?;
    let mut request = json!({ "KeyId": args.key, "Plaintext": STANDARD.encode(&*plaintext) });
    add_context(&mut request, "EncryptionContext", &args.bytes.context);
    let answer = kms.call_json(Operation::Encrypt, &request);
    wipe(&mut request["Plaintext"]);
    write_output(&args.bytes, &answer?, "CiphertextBlob")
}

pub(super) fn decrypt(kms: &Kms, args: &DecryptArgs) -> Result<(), CliError> {
    let mut request = json!({ "CiphertextBlob": STANDARD.encode(read_ciphertext(&args.bytes)?) });
    if let Some(key) = &args.key {
        request["KeyId"] = key.as_str().into();
    }
    add_context(&mut request, "EncryptionContext", &args.bytes.context);
    let mut answer = kms.call_json(Operation::Decrypt, &request)?;
    let written = write_plaintext(&args.bytes, &answer);
    wipe(&mut answer["Plaintext"]);
    written
}

pub(super) fn re_encrypt(kms: &Kms, args: &ReEncryptArgs) -> Result<(), CliError> {
    let blob = STANDARD.encode(read_ciphertext(&args.bytes)?);
    let mut request = json!({ "CiphertextBlob": blob, "DestinationKeyId": args.key });
    add_context(&mut request, "SourceEncryptionContext", &args.bytes.context);
    add_context(&mut request, "DestinationEncryptionContext", &args.bytes.context);
    write_output(&args.bytes, &kms.call_json(Operation::ReEncrypt, &request)?, "CiphertextBlob")
}

pub(super) fn data_key(kms: &Kms, args: &DataKeyArgs) -> Result<(), CliError> {
    let mut request = json!({ "KeyId": args.key, "KeySpec": "AES_256" });
    add_context(&mut request, "EncryptionContext", &args.context);
    let operation =
        if args.plaintext { Operation::GenerateDataKey } else { Operation::GenerateDataKeyWithoutPlaintext };
    let mut answer = kms.call_json(operation, &request)?;
    line(&format!("wrapped  {}", text(&answer, "CiphertextBlob").unwrap_or_default()))?;
    if !args.plaintext {
        return Ok(());
    }
    let plaintext = Zeroizing::new(text(&answer, "Plaintext").unwrap_or_default());
    wipe(&mut answer["Plaintext"]);
    line(&Zeroizing::new(format!("plain    {}", *plaintext)))
}

pub(super) fn random(kms: &Kms, args: &RandomArgs) -> Result<(), CliError> {
    let mut answer = kms.call_json(Operation::GenerateRandom, &json!({ "NumberOfBytes": args.bytes }))?;
    let bytes = Zeroizing::new(text(&answer, "Plaintext").unwrap_or_default());
    wipe(&mut answer["Plaintext"]);
    line(&bytes)
}

fn wipe(value: &mut Value) {
    if let Value::String(text) = value {
        text.zeroize();
    }
}

fn add_context(request: &mut Value, member: &str, pairs: &[(String, String)]) {
    if !pairs.is_empty() {
        let context: Map<String, Value> = pairs.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        request[member] = context.into();
    }
}

fn read_input(bytes: &Bytes) -> Result<Zeroizing<Vec<u8>>, CliError> {
    read_limited(bytes.input.as_deref().unwrap_or(Path::new("-")), MAX_INPUT)
}

/// Text of a file, or of standard input for `-`.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, CliError> {
    let bytes = read_limited(path, limit)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| CliError::failed(format!("{} is not text", path.display())))
}

fn read_limited(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, CliError> {
    // At its full size from the start, so that no copy is left behind in a buffer that moved.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    let failed = |e: std::io::Error| CliError::failed(format!("cannot read {}: {e}", path.display()));
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    }
    if bytes.len() as u64 > limit {
        return Err(CliError::failed(format!("{} is longer than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// A ciphertext as it is, or as the base64 that the commands here print.
fn read_ciphertext(bytes: &Bytes) -> Result<Vec<u8>, CliError> {
    let input = read_input(bytes)?;
    let packed: Vec<u8> = input.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    Ok(STANDARD.decode(&packed).unwrap_or_else(|_| input.to_vec()))
}

fn write_output(bytes: &Bytes, answer: &Value, member: &str) -> Result<(), CliError> {
    let encoded = text(answer, member).unwrap_or_default();
    match &bytes.output {
        None => line(&encoded),
        Some(path) => {
            let raw = STANDARD.decode(&encoded).map_err(|_| CliError::failed("the answer is not base64"))?;
            write_private(path, &raw)
        }
    }
}

/// Plaintext goes out as it is, so that it can be piped on.
fn write_plaintext(bytes: &Bytes, answer: &Value) -> Result<(), CliError> {
    let encoded = Zeroizing::new(text(answer, "Plaintext").unwrap_or_default());
    let decoded =
        STANDARD.decode(encoded.as_bytes()).map_err(|_| CliError::failed("the answer is not base64"));
    let plaintext = Zeroizing::new(decoded?);
    if let Some(path) = &bytes.output {
        return write_private(path, &plaintext);
    }
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&plaintext).and_then(|()| out.flush());
    written.map_err(|e| CliError::failed(format!("cannot write: {e}")))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|e| CliError::failed(format!("cannot write {}: {e}", path.display())))
}
