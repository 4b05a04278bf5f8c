//! Reading a TOML file strictly: bounded, no unknown names, errors that name the line.
//!
//! Called for the seed file and the map of Unix users.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;

/// Longest file read.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Why a file was refused.
#[derive(Debug)]
pub enum TomlError {
    /// It cannot be read.
    Io(std::io::Error),
    /// It is too long.
    TooLong,
    /// It is not what was expected.
    Invalid {
        /// Where, from 1 on.
        line: usize,
        /// What.
        message: String,
    },
    /// Others may write it, and so decide who is who.
    Writable(u32),
    /// It belongs to a user that is neither root nor the daemon's.
    Foreign(u32),
    /// Its parts do not fit together.
    Contradiction(String),
}

impl fmt::Display for TomlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::TooLong => write!(f, "longer than {MAX_BYTES} bytes"),
            Self::Invalid { line, message } => write!(f, "line {line}: {message}"),
            Self::Writable(mode) => {
                write!(f, "mode {mode:04o} lets others write it; run `chmod go-w` on it")
            }
            Self::Foreign(uid) => {
                write!(f, "it belongs to user {uid}; give it to root or to the user that kmsd runs as")
            }
            Self::Contradiction(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for TomlError {}

/// Reads `path` as a `T`. Both kinds of file say who may do what, so nobody else may be able to write them.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TomlError> {
    let mut text = String::new();
    let file = File::open(path).map_err(TomlError::Io)?;
    check_owner(&file)?;
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(TomlError::Io)?;
    if length as u64 > MAX_BYTES {
        return Err(TomlError::TooLong);
    }
    parse(&text)
}

fn check_owner(file: &File) -> Result<(), TomlError> {
    let facts = file.metadata().map_err(TomlError::Io)?;
    if facts.mode() & 0o022 != 0 && facts.is_file() {
        return Err(TomlError::Writable(facts.mode() & 0o777));
    }
    if facts.uid() != 0 && facts.uid() != rustix::process::geteuid().as_raw() {
        return Err(TomlError::Foreign(facts.uid()));
    }
    Ok(())
}

/// Reads `text` as a `T`.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, TomlError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text[..text.floor_char_boundary(start)].matches('\n').count() + 1;
        TomlError::Invalid { line, message: error.message().replace('\n', "; ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Known {
        #[allow(dead_code, reason = "only its name matters")]
        name: String,
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_line() {
        let error = parse::<Known>("name = \"x\"\n\nnmae = \"y\"\n").unwrap_err().to_string();
        assert!(error.starts_with("line 3: ") && error.contains("nmae"), "{error}");
        let error = parse::<Known>("name = \n").unwrap_err().to_string();
        assert!(error.starts_with("line 1: "), "{error}");
    }
}
