//! Where a key lives: an account in a region. Keys, aliases and lists of one home know nothing of another.
//!
//! Used by everything that names keys. A home is what the caller's signature says, or what an ARN says.

use std::fmt::Display;

/// Longest name of a region.
const MAX_REGION: usize = 32;
/// Stands for every region in a list of regions.
pub const ANY_REGION: &str = "*";

/// An account in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home<'a> {
    /// Twelve digits.
    pub account: &'a str,
    /// As it stands in ARNs.
    pub region: &'a str,
}

impl<'a> Home<'a> {
    /// From its parts.
    pub const fn new(account: &'a str, region: &'a str) -> Self {
        Self { account, region }
    }

    /// ARN of the key `id`.
    pub fn key_arn(self, id: &impl Display) -> String {
        format!("arn:aws:kms:{}:{}:key/{id}", self.region, self.account)
    }

    /// ARN of the alias `name`, which has its prefix.
    pub fn alias_arn(self, name: &str) -> String {
        format!("arn:aws:kms:{}:{}:{name}", self.region, self.account)
    }

    /// Row id of the record `id` of this home in a store whose own home is `own`: records of the own home are named
    /// as they were when a store had one home only.
    pub fn row(self, own: Home<'_>, id: &impl Display) -> String {
        if self == own { id.to_string() } else { format!("{}/{}/{id}", self.region, self.account) }
    }
}

/// Whether `text` can be the name of a region.
pub fn is_region(text: &str) -> bool {
    (1..=MAX_REGION).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_homes_never_share_a_name() {
        let own = Home::new("000000000000", "local");
        let other = Home::new("111122223333", "eu-west-1");
        assert_eq!(own.row(own, &"alias/a"), "alias/a");
        assert_eq!(other.row(own, &"alias/a"), "eu-west-1/111122223333/alias/a");
        assert_eq!(other.key_arn(&"k"), "arn:aws:kms:eu-west-1:111122223333:key/k");
        assert_eq!(other.alias_arn("alias/a"), "arn:aws:kms:eu-west-1:111122223333:alias/a");
    }

    #[test]
    fn regions_have_the_form_of_host_names() {
        assert!(["local", "eu-west-1", "us-gov-west-1"].into_iter().all(is_region));
        assert!(!["", "EU", "a/b", "a:b", "*", &"a".repeat(33)].into_iter().any(is_region));
    }
}
