//! Constraints of members, and their wording when one is broken.

use std::fmt::Write;

/// A regular expression of the protocol: its text for the message, and a matcher written by hand.
#[derive(Debug)]
pub struct Pattern {
    /// As messages show it.
    pub text: &'static str,
    /// Whether a value matches as a whole.
    pub matches: fn(&str) -> bool,
}

/// One constraint of a member. Bounds are inclusive.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Characters of a text, bytes of a blob, elements of a list.
    Length(usize, usize),
    /// Value of a number.
    Range(i64, i64),
    /// Form of a text.
    Form(&'static Pattern),
    /// Rules for each element of a list.
    Each(&'static [Rule]),
    /// Several rules for one value.
    All(&'static [Rule]),
}

/// Names of keys, in any of their forms.
pub static KEY_NAME: Pattern =
    Pattern { text: "^\\p{ASCII}+$", matches: |text| !text.is_empty() && text.is_ascii() };

/// Alias names.
pub static ALIAS_NAME: Pattern = Pattern {
    text: "^[a-zA-Z0-9:/_-]+$",
    matches: |text| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'_' | b'-'))
    },
};

/// Paging markers.
pub static MARKER: Pattern = Pattern {
    text: "[\\u0020-\\u00FF]*",
    matches: |text| text.chars().all(|c| ('\u{20}'..='\u{ff}').contains(&c)),
};

/// Names of key policies.
pub static POLICY_NAME: Pattern = Pattern {
    text: "[\\w]+",
    matches: |text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
};

/// Texts of policies.
pub static POLICY_TEXT: Pattern = Pattern {
    text: "[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+",
    matches: |text| {
        !text.is_empty() && text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}'))
    },
};

/// ARNs of principals.
pub static PRINCIPAL: Pattern = Pattern {
    text: "^[\\w+=,.@:/-]+$",
    matches: |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
        !text.is_empty() && text.bytes().all(plain)
    },
};

/// Ids of key material.
pub static KEY_MATERIAL_ID: Pattern = Pattern {
    text: "^[a-f0-9]+$",
    matches: |text| !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
};

/// Descriptions of key material.
pub static KEY_MATERIAL_DESCRIPTION: Pattern = Pattern {
    text: "^[a-zA-Z0-9:/_\\s.-]+$",
    matches: |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b":/_.- \t\n\r\x0b\x0c".contains(&b);
        !text.is_empty() && text.bytes().all(plain)
    },
};

/// Names of services.
pub static SERVICE_PRINCIPAL: Pattern = Pattern {
    text: "^([A-Za-z0-9\\-]+)\\.([A-Za-z0-9\\-]+)(\\.[A-Za-z0-9\\-]+)+$",
    matches: |text| {
        let plain =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        text.split('.').count() >= 3 && text.split('.').all(plain)
    },
};

/// ARNs of the resources for which services ask.
pub static SOURCE_ARN: Pattern = Pattern {
    text: "^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$",
    matches: |text| {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let plain =
            |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let [arn, partition, service, region, account, resource] = parts[..] else { return false };
        arn == "arn"
            && partition.strip_prefix("aws").is_some_and(plain)
            && !service.is_empty()
            && plain(service)
            && plain(region)
            && account.len() == 12
            && account.bytes().all(|b| b.is_ascii_digit())
            && !resource.is_empty()
    },
};

/// Names of regions. A daemon may be given names of any kind, so the matcher takes more than the text tells.
pub static REGION: Pattern = Pattern {
    text: "^([a-z]+-){2,3}\\d+$",
    matches: |text| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    },
};

impl Rule {
    /// The sentence for each constraint in this rule, upper bound first.
    pub(super) fn sentences(&self) -> Vec<String> {
        match self {
            Self::Length(min, max) => vec![
                format!("Member must have length less than or equal to {max}"),
                format!("Member must have length greater than or equal to {min}"),
            ],
            Self::Range(min, max) => vec![
                format!("Member must have value less than or equal to {max}"),
                format!("Member must have value greater than or equal to {min}"),
            ],
            Self::Form(pattern) => {
                vec![format!("Member must satisfy regular expression pattern: {}", pattern.text)]
            }
            Self::Each(rules) => vec![each_sentence(rules.iter().flat_map(Self::sentences))],
            Self::All(rules) => rules.iter().flat_map(Self::sentences).collect(),
        }
    }
}

/// The sentence that wraps the constraints on the elements of a list.
pub(super) fn each_sentence(inner: impl Iterator<Item = String>) -> String {
    let mut out = String::from("Member must satisfy constraint: [");
    for (at, sentence) in inner.enumerate() {
        let _ = write!(out, "{}{sentence}", if at == 0 { "" } else { ", " });
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_accept_and_refuse_as_their_text_says() {
        for (pattern, yes, no) in [
            (&KEY_NAME, vec!["alias/a b"], vec!["", "é"]),
            (&ALIAS_NAME, vec!["alias/aws/s3", "a:b", "_"], vec!["", "alias/é", "a b", "a.b"]),
            (&MARKER, vec!["", " ÿ~"], vec!["\n", "Ā"]),
            (&POLICY_NAME, vec!["default", "A_1"], vec!["", "a-b"]),
            (&POLICY_TEXT, vec!["{\n\t}", "ÿ"], vec!["", "\u{7}", "Ā"]),
            (&KEY_MATERIAL_ID, vec!["0af"], vec!["", "AF", "g"]),
            (&KEY_MATERIAL_DESCRIPTION, vec!["a b", "A:/_.-9"], vec!["", "é", "a+b"]),
            (&REGION, vec!["eu-west-1", "local"], vec!["", "EU", "a_b"]),
            (&PRINCIPAL, vec!["arn:aws:iam::1:user/a-b"], vec!["", "a b", "a*"]),
            (&SERVICE_PRINCIPAL, vec!["a.amazonaws.com"], vec!["a.b", "a..b.c", ""]),
            (&SOURCE_ARN, vec!["arn:aws:rds:eu-1:111122223333:db:x"], vec!["arn:aws:rds:eu:1:x", "x"]),
        ] {
            assert!(yes.iter().all(|text| (pattern.matches)(text)), "{}", pattern.text);
            assert!(!no.iter().any(|text| (pattern.matches)(text)), "{}", pattern.text);
        }
    }
}
