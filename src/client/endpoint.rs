//! Where the key service listens: parsing and printing of endpoint names.
//!
//! Called by the command line and by [`super::stream`]. Must never open a connection.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::ClientError;

/// The system-wide socket of `kmsd`.
pub const SYSTEM_SOCKET: &str = "/run/kmsfs/kmsd.sock";
/// The socket's place below a user's runtime directory.
pub const USER_SOCKET: &str = "kmsfs/kmsd.sock";
/// Longest path a Unix socket address can hold.
const MAX_SOCKET_PATH: usize = 107;

/// A key service: the daemon's Unix socket, or any HTTP endpoint that speaks the KMS protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:PATH`: callers are known by their peer credentials; requests are not signed.
    Unix(PathBuf),
    /// `http://HOST:PORT`: signed, not encrypted.
    Http(Authority),
    /// `https://HOST[:PORT]`: signed and encrypted.
    Https(Authority),
}

/// Host and port of a TCP endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    default_port: u16,
}

impl Authority {
    fn parse(text: &str, default_port: u16) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(default_port), |p| p.parse().ok().filter(|p| *p != 0))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        let valid = !host.is_empty() && host.chars().all(plain);
        valid.then(|| Self { host: host.to_owned(), port, default_port })
    }

    /// The `Host` header, which leaves out the scheme's own port as browsers and SDKs do.
    pub fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// The region in an AWS host name such as `kms.eu-west-1.amazonaws.com`.
    pub fn region(&self) -> Option<&str> {
        let rest = self.host.strip_prefix("kms.").or_else(|| self.host.strip_prefix("kms-fips."))?;
        rest.split_once(".amazonaws.").or_else(|| rest.split_once(".api.aws")).map(|(region, _)| region)
    }
}

impl Endpoint {
    /// Whether callers are known by their socket, so that requests go unsigned.
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// The socket to use where none is named: the user's when it exists or the user is not root, else the system's.
    pub fn default_socket(runtime_dir: Option<&OsStr>, is_root: bool) -> Self {
        let user = runtime_dir
            .filter(|d| d.as_bytes().starts_with(b"/"))
            .map(|d| PathBuf::from(d).join(USER_SOCKET));
        let system = PathBuf::from(SYSTEM_SOCKET);
        match user {
            Some(path) if path.exists() => Self::Unix(path),
            Some(path) if !is_root && !system.exists() => Self::Unix(path),
            _ => Self::Unix(system),
        }
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Endpoint(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let fits = path.starts_with('/') && path.len() <= MAX_SOCKET_PATH;
            return if fits { Ok(Self::Unix(PathBuf::from(path))) } else { Err(bad()) };
        }
        if let Some(rest) = text.strip_prefix("https://") {
            return Authority::parse(rest, 443).map(Self::Https).ok_or_else(bad);
        }
        let rest = text.strip_prefix("http://").ok_or_else(bad)?;
        Authority::parse(rest, 80).map(Self::Http).ok_or_else(bad)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(authority) => write!(f, "http://{}", authority.host_header()),
            Self::Https(authority) => write!(f, "https://{}", authority.host_header()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_printed_alike() {
        for text in [
            "unix:/run/kmsfs/kmsd.sock",
            "http://127.0.0.1:4599",
            "https://kms.eu-west-1.amazonaws.com",
            "http://[::1]:8080",
            "https://localhost:4566",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("http://host/".parse::<Endpoint>().unwrap().to_string(), "http://host");
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for text in [
            "",
            "kmsd.sock",
            "unix:",
            "unix:relative",
            "ftp://x",
            "http://",
            "http://:80",
            "http://h:0",
            "http://h:99999",
            "http://h/path",
            "http://user@h",
            "http://[::1",
            "http://a b",
        ] {
            assert!(matches!(text.parse::<Endpoint>(), Err(ClientError::Endpoint(_))), "{text}");
        }
        assert!(format!("unix:/{}", "x".repeat(120)).parse::<Endpoint>().is_err());
    }

    #[test]
    fn the_region_is_read_from_aws_host_names() {
        let region = |text: &str| match text.parse().unwrap() {
            Endpoint::Https(authority) => authority.region().map(str::to_owned),
            _ => None,
        };
        assert_eq!(region("https://kms.eu-west-1.amazonaws.com").as_deref(), Some("eu-west-1"));
        assert_eq!(region("https://kms-fips.us-gov-west-1.amazonaws.com").as_deref(), Some("us-gov-west-1"));
        assert_eq!(region("https://localhost:4566"), None);
    }

    #[test]
    fn without_a_runtime_directory_the_system_socket_is_meant() {
        let system = Endpoint::Unix(PathBuf::from(SYSTEM_SOCKET));
        assert_eq!(Endpoint::default_socket(None, true), system);
        assert_eq!(Endpoint::default_socket(Some(OsStr::new("relative")), false), system);
    }
}
