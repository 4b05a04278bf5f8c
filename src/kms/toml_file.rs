//! Reading a TOML file strictly: bounded, no unknown names, errors that name the line.
//!
//! Called for the seed file and the map of Unix users.

use std::fmt;
use std::io::Read;
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
    /// Its parts do not fit together.
    Contradiction(String),
}

impl fmt::Display for TomlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::TooLong => write!(f, "longer than {MAX_BYTES} bytes"),
            Self::Invalid { line, message } => write!(f, "line {line}: {message}"),
            Self::Contradiction(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for TomlError {}

/// Reads `path` as a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TomlError> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(TomlError::Io)?;
    let length = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(TomlError::Io)?;
    if length as u64 > MAX_BYTES {
        return Err(TomlError::TooLong);
    }
    parse(&text)
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
