//! Several key services at once: which of them has a key, by how its ARN begins.
//!
//! Called by `cli`, which reads what the user named, and by [`super::Kms`], which asks here whom to call. A key that no
//! beginning fits, and every name that is no ARN, is of the first service. Must never call one service for a key of
//! another: a wrapped key and its context are nobody else's business.

use std::fmt;

use super::kms::Kms;
use super::{ClientError, Endpoint};

/// How ARNs begin; in the text of [`Services`] it begins the second and later services.
const ARN: &str = "arn:";
/// Services besides the first one.
const OTHERS_MAX: usize = 16;

/// Key services, as `--kms` names them: `ENDPOINT [ARN-BEGINNING=ENDPOINT]...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// The one for all keys but those of the others.
    pub first: Endpoint,
    /// The others, each with the beginning of the ARNs of its keys.
    pub others: Vec<(String, Endpoint)>,
}

impl Services {
    /// Reads the text; `first` gives the first service where that names others only.
    pub fn parse(text: &str, first: impl FnOnce() -> Endpoint) -> Result<Self, ClientError> {
        let mut parts = split(text);
        let own = match parts.first() {
            Some(part) if !part.starts_with(ARN) => parts.remove(0).parse()?,
            _ => first(),
        };
        if parts.len() > OTHERS_MAX {
            return Err(ClientError::Endpoint(text.to_owned()));
        }
        Ok(Self { first: own, others: parts.into_iter().map(other).collect::<Result<_, _>>()? })
    }

    /// Whether one of them is at this endpoint.
    pub fn name(&self, endpoint: &Endpoint) -> bool {
        self.first == *endpoint || self.others.iter().any(|(_, other)| other == endpoint)
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.others.iter().try_for_each(|(beginning, endpoint)| write!(f, " {beginning}={endpoint}"))
    }
}

/// At spaces before an ARN: paths of sockets may have spaces, too.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while let Some(at) = rest.find(" arn:") {
        parts.push(rest[..at].trim());
        rest = rest[at..].trim_start();
    }
    parts.push(rest);
    parts.retain(|part| !part.is_empty());
    parts
}

fn other(part: &str) -> Result<(String, Endpoint), ClientError> {
    let bad = || ClientError::Endpoint(part.to_owned());
    let (beginning, endpoint) = part.split_once('=').ok_or_else(bad)?;
    let plain = |c: char| c.is_ascii_graphic() && c != '*';
    if !beginning.starts_with(ARN) || !beginning.chars().all(plain) {
        return Err(bad());
    }
    Ok((beginning.to_owned(), endpoint.parse()?))
}

/// Whether `arn` begins with these parts: `arn:aws:kms:eu-west-1` is no beginning of a key in `eu-west-10`.
fn fits(beginning: &str, arn: &str) -> bool {
    arn.strip_prefix(beginning).is_some_and(|rest| {
        rest.is_empty() || beginning.ends_with([':', '/']) || rest.starts_with([':', '/'])
    })
}

impl Kms {
    /// The same with other services beside it, each with the beginning of the ARNs of its keys.
    #[must_use]
    pub fn beside(mut self, others: Vec<(String, Self)>) -> Self {
        self.others = others;
        // The longest beginning that fits is found first.
        self.others.sort_by_key(|(beginning, _)| std::cmp::Reverse(beginning.len()));
        self
    }

    /// The service that has the key: itself, or one beside it.
    pub(super) fn of(&self, key_id: &str) -> &Self {
        let found = self.others.iter().find(|(beginning, _)| fits(beginning, key_id));
        found.map_or(self, |(_, other)| other)
    }

    /// All of them.
    pub(super) fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.others.iter().map(|(_, other)| other))
    }

    /// Whether every one is a kmsd on its Unix socket.
    pub fn is_local(&self) -> bool {
        self.each().all(|one| one.endpoint().is_unix())
    }

    /// Checks that one service has both keys: a wrapped key goes from one service to another by no call of theirs.
    pub fn check_both(&self, from: &str, to: &str) -> Result<(), ClientError> {
        let (from, to) = (self.of(from), self.of(to));
        if std::ptr::eq(from, to) {
            return Ok(());
        }
        Err(ClientError::Apart(from.endpoint().to_string(), to.endpoint().to_string()))
    }

    /// Where the service of a key listens.
    pub fn endpoint_of(&self, key_id: &str) -> &Endpoint {
        self.of(key_id).endpoint()
    }

    /// Their names, as a command takes them.
    pub fn services(&self) -> Services {
        let other = |(beginning, other): &(String, Self)| (beginning.clone(), other.endpoint().clone());
        Services { first: self.endpoint().clone(), others: self.others.iter().map(other).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Services, ClientError> {
        Services::parse(text, || Endpoint::Unix("/first".into()))
    }

    #[test]
    fn services_are_read_and_printed_alike() {
        for text in [
            "unix:/a",
            "unix:/with space arn:aws:kms:eu-west-1:=https://kms.eu-west-1.amazonaws.com",
            "http://h:80 arn:aws:kms:a:1:key/x=unix:/b arn:aws:kms:a:2:=unix:/c",
        ] {
            assert_eq!(parse(text).unwrap().to_string().replace(":80", ""), text.replace(":80", ""));
        }
        assert_eq!(parse("arn:a:=unix:/b").unwrap().to_string(), "unix:/first arn:a:=unix:/b");
        for text in ["unix:/a arn:b", "unix:/a arn:*=unix:/b", "unix:/a arn:b=nowhere", "arn:=", "x=unix:/a"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&" arn:a=unix:/b".repeat(OTHERS_MAX + 1)).is_err());
    }

    #[test]
    fn a_beginning_ends_where_a_part_of_the_name_does() {
        let key = "arn:aws:kms:eu-west-10:111122223333:key/abc";
        for beginning in
            ["arn:aws:kms:eu-west-10", "arn:aws:kms:eu-west-10:1111", key, "arn:aws:kms:eu-west-10:"]
        {
            assert_eq!(fits(beginning, key), beginning != "arn:aws:kms:eu-west-10:1111", "{beginning}");
        }
        assert!(!fits("arn:aws:kms:eu-west-1", key) && !fits("arn:aws:kms:eu-west-10", "alias/x"));
    }
}
