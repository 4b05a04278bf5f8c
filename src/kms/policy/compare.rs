//! What conditions compare with beside texts: numbers in order, ARNs part by part, address ranges.
//!
//! Compiled and asked by `condition`.

use std::net::IpAddr;

use super::document::PolicyError;
use super::facts::Facts;
use super::template::{Part, expand, parts};
use super::wildcard::{Wildcard, mark};

/// Of numbers and dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    /// From the lower-case name of an operator, without its kind. `notequals` is `Equal`, negated by the caller.
    pub(super) fn compile(name: &str) -> Option<Self> {
        Some(match name {
            "equals" | "notequals" => Self::Equal,
            "lessthan" => Self::Less,
            "lessthanequals" => Self::LessOrEqual,
            "greaterthan" => Self::Greater,
            "greaterthanequals" => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    pub(super) fn holds<T: PartialOrd + Copy>(self, given: T, number: T) -> bool {
        match self {
            Self::Equal => given == number,
            Self::Less => given < number,
            Self::LessOrEqual => given <= number,
            Self::Greater => given > number,
            Self::GreaterOrEqual => given >= number,
        }
    }
}

/// An ARN, perhaps with variables.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ArnText {
    Fixed(ArnPattern),
    Template(Vec<Part>),
}

impl ArnText {
    pub(super) fn compile(text: &str, variables: bool) -> Result<Self, PolicyError> {
        if variables && text.contains("${") {
            return parts(text, true).map(Self::Template);
        }
        ArnPattern::marked(&mark(text)).map(Self::Fixed)
    }

    pub(super) fn matches(&self, text: &str, facts: &Facts<'_>) -> bool {
        match self {
            Self::Fixed(pattern) => pattern.matches(text),
            Self::Template(parts) => expand(parts, facts)
                .and_then(|pattern| ArnPattern::marked(&pattern).ok())
                .is_some_and(|pattern| pattern.matches(text)),
        }
    }
}

/// An ARN whose six parts are matched one by one, so that `*` does not run over a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArnPattern(Vec<Wildcard>);

impl ArnPattern {
    fn marked(text: &str) -> Result<Self, PolicyError> {
        if text.len() > super::wildcard::MAX_PATTERN_BYTES {
            return Err(PolicyError::Syntax("a pattern is too long"));
        }
        let parts = text.splitn(6, ':').map(|part| Wildcard::marked(part, false));
        Ok(Self(parts.collect::<Result<_, _>>()?))
    }

    fn matches(&self, text: &str) -> bool {
        if let [any] = self.0.as_slice() {
            return any.matches(text);
        }
        let mut parts = text.splitn(6, ':');
        self.0.iter().all(|pattern| parts.next().is_some_and(|part| pattern.matches(part)))
            && parts.next().is_none()
    }
}

/// An address range in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    base: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    pub(super) fn parse(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Syntax("a condition wants an address range");
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let width: u32 = if address.is_ipv4() { 32 } else { 128 };
        let length: u32 = length.map_or(Ok(width), |l| l.parse().map_err(|_| bad()))?;
        if length > width {
            return Err(bad());
        }
        let mask = u128::MAX.checked_shl(width - length).unwrap_or(0);
        Ok(Self { base: bits(address) & mask, mask, is_v4: address.is_ipv4() })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4 && bits(address) & self.mask == self.base
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}
