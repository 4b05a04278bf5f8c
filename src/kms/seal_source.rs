//! `--seal`: where the secret that seals the root key comes from.
//!
//! Called by `init` and `serve`. Secrets are read into wiped memory and never shown.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::api::hex;
use crate::crypto::random_array;
use crate::sys::{ask_secret, at};

use super::failure::Failure;
use super::sealed::{SealInfo, SealKind, SealSecret};

/// Fewest bytes of a key file: 256 bits.
const MIN_KEY_FILE: usize = 32;
/// Longest key file or passphrase.
const MAX_SECRET: u64 = 64 * 1024;
/// Shortest passphrase accepted at init.
const MIN_PASSPHRASE: usize = 8;

/// A parsed `--seal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealSource {
    /// `keyfile:PATH`.
    KeyFile(PathBuf),
    /// `passphrase` (asked for, or read from standard input) or `passphrase:FILE`.
    Passphrase(Option<PathBuf>),
}

/// `--seal` could not be read.
#[derive(Debug, PartialEq, Eq)]
pub struct SealSourceError;

impl fmt::Display for SealSourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("use keyfile:PATH, passphrase or passphrase:FILE")
    }
}

impl std::error::Error for SealSourceError {}

impl FromStr for SealSource {
    type Err = SealSourceError;

    fn from_str(text: &str) -> Result<Self, SealSourceError> {
        match text.split_once(':') {
            None if text == "passphrase" => Ok(Self::Passphrase(None)),
            Some(("keyfile", path)) if !path.is_empty() => Ok(Self::KeyFile(path.into())),
            Some(("passphrase", path)) if !path.is_empty() => Ok(Self::Passphrase(Some(path.into()))),
            _ => Err(SealSourceError),
        }
    }
}

/// A secret that was read.
pub struct Secret {
    kind: SealKind,
    bytes: Zeroizing<Vec<u8>>,
    hint: String,
}

impl Secret {
    /// As the root file takes it.
    pub fn as_seal(&self) -> SealSecret<'_> {
        SealSecret { kind: self.kind, bytes: &self.bytes, hint: &self.hint }
    }

    /// A passphrase that has to be handed to a child; `None` for a key file, which the child reads itself.
    pub fn passphrase(&self) -> Option<&[u8]> {
        (self.kind == SealKind::Passphrase).then_some(&self.bytes)
    }
}

impl SealSource {
    /// What the store says of its own sealing, for a `serve` without `--seal`.
    pub fn from_info(info: &SealInfo) -> Self {
        match info.kind {
            SealKind::KeyFile => Self::KeyFile(PathBuf::from(&info.hint)),
            SealKind::Passphrase => Self::Passphrase(None),
        }
    }

    /// Reads the secret of an existing store.
    pub fn read(&self) -> Result<Secret, Failure> {
        match self {
            Self::KeyFile(path) => key_file(path),
            Self::Passphrase(Some(path)) => passphrase_file(path),
            Self::Passphrase(None) => passphrase(ask_once()?),
        }
    }

    /// Makes or reads the secret of a new store: a missing key file is made, a typed passphrase asked for twice.
    pub fn establish(&self) -> Result<Secret, Failure> {
        let secret = match self {
            Self::KeyFile(path) if !path.exists() => {
                make_key_file(path).map_err(|e| Failure::System(path.display().to_string(), e))?;
                key_file(path)?
            }
            Self::Passphrase(None) if io::stdin().is_terminal() => passphrase(ask_twice()?)?,
            _ => self.read()?,
        };
        if secret.kind == SealKind::Passphrase && secret.bytes.len() < MIN_PASSPHRASE {
            return Err(Failure::Secret(format!(
                "the passphrase is shorter than {MIN_PASSPHRASE} bytes; use a longer one"
            )));
        }
        Ok(secret)
    }
}

fn key_file(path: &Path) -> Result<Secret, Failure> {
    let bytes = read_private(path)?;
    if bytes.len() < MIN_KEY_FILE {
        return Err(Failure::Secret(format!(
            "{} is shorter than {MIN_KEY_FILE} bytes, so it is no key file",
            path.display()
        )));
    }
    let absolute = at::resolved(path);
    Ok(Secret { kind: SealKind::KeyFile, bytes, hint: absolute.display().to_string() })
}

fn passphrase_file(path: &Path) -> Result<Secret, Failure> {
    passphrase(first_line(read_private(path)?))
}

fn passphrase(bytes: Zeroizing<Vec<u8>>) -> Result<Secret, Failure> {
    if bytes.is_empty() {
        return Err(Failure::Secret("the passphrase is empty; give one".into()));
    }
    Ok(Secret { kind: SealKind::Passphrase, bytes, hint: String::new() })
}

/// Reads a file that must be ours (or root's) alone.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let wrong = |what: String| Failure::Secret(format!("{}: {what}", path.display()));
    let file = fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong("there is no such file; give its path with --seal".into()),
        _ => wrong(error.to_string()),
    })?;
    let facts = file.metadata().map_err(|e| wrong(e.to_string()))?;
    if facts.is_file() && facts.mode() & 0o077 != 0 {
        return Err(wrong(format!("others may read it; run `chmod 0400 {}`", path.display())));
    }
    let own = rustix::process::geteuid().as_raw();
    if facts.uid() != own && facts.uid() != 0 {
        return Err(wrong(format!("it belongs to user {}, not to user {own}", facts.uid())));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    file.take(MAX_SECRET).read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
    Ok(bytes)
}

/// 256 random bits as a line of text, so that it can be printed and typed in again.
fn make_key_file(path: &Path) -> io::Result<()> {
    let key = Zeroizing::new(random_array::<32>());
    let line = Zeroizing::new(format!("{}\n", hex(&*key)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

fn ask_once() -> Result<Zeroizing<Vec<u8>>, Failure> {
    if io::stdin().is_terminal() {
        return ask("Passphrase of the key store: ");
    }
    let mut line = Zeroizing::new(Vec::with_capacity(4096));
    let input = io::stdin().lock();
    input
        .take(MAX_SECRET)
        .read_until(b'\n', &mut line)
        .map_err(|e| Failure::System("standard input".into(), e))?;
    Ok(first_line(line))
}

fn ask_twice() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let first = ask("New passphrase of the key store: ")?;
    if first != ask("Once more: ")? {
        return Err(Failure::Secret("the two passphrases differ; try again".into()));
    }
    Ok(first)
}

fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    ask_secret(prompt).map_err(|e| Failure::System("the terminal".into(), e))
}

fn first_line(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if let Some(end) = bytes.iter().position(|c| *c == b'\n') {
        bytes.truncate(end);
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_option_is_read_strictly() {
        assert_eq!("keyfile:/a:b".parse(), Ok(SealSource::KeyFile("/a:b".into())));
        assert_eq!("passphrase".parse(), Ok(SealSource::Passphrase(None)));
        assert_eq!("passphrase:f".parse(), Ok(SealSource::Passphrase(Some("f".into()))));
        for wrong in ["", "keyfile", "keyfile:", "passphrase:", "tpm", "Passphrase"] {
            assert_eq!(wrong.parse::<SealSource>(), Err(SealSourceError), "{wrong}");
        }
    }

    #[test]
    fn a_passphrase_is_the_first_line_without_its_end() {
        let line = |text: &str| first_line(Zeroizing::new(text.as_bytes().to_vec())).to_vec();
        assert_eq!(line("secret\nmore"), b"secret");
        assert_eq!(line("secret\r\n"), b"secret");
        assert_eq!(line("secret"), b"secret");
    }
}
