//! How a request names a key: id, key ARN, alias, alias ARN.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::hex;

const ALIAS_PREFIX: &str = "alias/";
const KEY_PREFIX: &str = "key/";
const MRK_PREFIX: &str = "mrk-";
const ID_LEN: usize = 16;
/// Places of the hyphens in the 36 characters of a UUID.
const UUID_HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// The id of a key: 128 bits, written as a UUID, or as `mrk-` and 32 digits for a multi-Region key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId {
    /// The bits.
    pub bytes: [u8; ID_LEN],
    /// Whether it names a multi-Region key.
    pub multi_region: bool,
}

impl KeyId {
    /// From random bytes: a version 4 UUID.
    pub fn from_random(mut bytes: [u8; ID_LEN], multi_region: bool) -> Self {
        if !multi_region {
            bytes[6] = (bytes[6] & 0x0f) | 0x40;
            bytes[8] = (bytes[8] & 0x3f) | 0x80;
        }
        Self { bytes, multi_region }
    }

    /// From its text form; lower case only, as keys are compared by their text elsewhere.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(digits) = text.strip_prefix(MRK_PREFIX) {
            return hex16(digits.as_bytes()).map(|bytes| Self { bytes, multi_region: true });
        }
        let text = text.as_bytes();
        if text.len() != 36 || UUID_HYPHENS.iter().any(|at| text[*at] != b'-') {
            return None;
        }
        let mut digits = [0; 2 * ID_LEN];
        let kept =
            text.iter().enumerate().filter(|(at, _)| !UUID_HYPHENS.contains(at)).map(|(_, byte)| *byte);
        digits.iter_mut().zip(kept).for_each(|(to, from)| *to = from);
        hex16(&digits).map(|bytes| Self { bytes, multi_region: false })
    }
}

fn hex16(digits: &[u8]) -> Option<[u8; ID_LEN]> {
    if digits.len() != 2 * ID_LEN {
        return None;
    }
    let mut bytes = [0; ID_LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

const fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.multi_region {
            f.write_str(MRK_PREFIX)?;
            return f.write_str(&hex(&self.bytes));
        }
        f.write_str(&uuid_text(self.bytes))
    }
}

/// 128 bits written as a UUID is: 8-4-4-4-12 digits.
pub fn uuid_text(bytes: [u8; ID_LEN]) -> String {
    let mut text = hex(&bytes);
    for at in UUID_HYPHENS {
        text.insert(at, '-');
    }
    text
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not a key id"))
    }
}

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    /// `aws` in nearly all cases.
    pub partition: &'a str,
    /// `kms`, `iam`, `sts`.
    pub service: &'a str,
    /// Empty for global services.
    pub region: &'a str,
    /// The account.
    pub account: &'a str,
    /// The rest, colons included.
    pub resource: &'a str,
}

/// What a KMS ARN names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArnResource<'a> {
    /// `key/ID`: the id.
    Key(&'a str),
    /// `alias/NAME`: with its prefix.
    Alias(&'a str),
}

/// The text is no ARN of that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArnError;

impl<'a> Arn<'a> {
    /// Splits `text`.
    pub fn parse(text: &'a str) -> Result<Self, ArnError> {
        let rest = text.strip_prefix("arn:").ok_or(ArnError)?;
        let mut parts = rest.splitn(5, ':');
        let mut next = || parts.next().ok_or(ArnError);
        let arn = Self {
            partition: next()?,
            service: next()?,
            region: next()?,
            account: next()?,
            resource: next()?,
        };
        if arn.partition.is_empty() || arn.service.is_empty() || arn.resource.is_empty() {
            return Err(ArnError);
        }
        Ok(arn)
    }

    /// The key or alias it names, for an ARN of the service `kms`.
    pub fn kms_resource(&self) -> Result<ArnResource<'a>, ArnError> {
        if self.service != "kms" {
            return Err(ArnError);
        }
        if let Some(id) = self.resource.strip_prefix(KEY_PREFIX) {
            return Ok(ArnResource::Key(id));
        }
        if self.resource.starts_with(ALIAS_PREFIX) {
            return Ok(ArnResource::Alias(self.resource));
        }
        Err(ArnError)
    }
}

/// A request's `KeyId` member, told apart by its form. Whether it exists is another matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRef<'a> {
    /// Anything without a prefix: should be a key id.
    Id(&'a str),
    /// `alias/NAME`, with its prefix.
    Alias(&'a str),
    /// A key ARN or an alias ARN.
    Arn(Arn<'a>, ArnResource<'a>),
}

impl<'a> KeyRef<'a> {
    /// Tells the forms apart.
    pub fn parse(text: &'a str) -> Result<Self, ArnError> {
        if text.starts_with("arn:") {
            let arn = Arn::parse(text)?;
            return Ok(Self::Arn(arn, arn.kms_resource()?));
        }
        Ok(if text.starts_with(ALIAS_PREFIX) { Self::Alias(text) } else { Self::Id(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_have_one_text_form() {
        for text in ["1234abcd-12ab-34cd-56ef-1234567890ab", "mrk-1234abcd12ab34cd56ef1234567890ab"] {
            assert_eq!(KeyId::parse(text).unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "1234ABCD-12ab-34cd-56ef-1234567890ab",
            "1234abcd-12ab-34cd-56ef-1234567890a",
            "1234abcd-12ab-34cd-56ef-1234567890abc",
            "1234abcd012ab-34cd-56ef-1234567890ab",
            "mrk-1234abcd12ab34cd56ef1234567890a",
            "mrk-1234abcd-12ab-34cd-56ef-1234567890ab",
            "ü234abcd-12ab-34cd-56ef-1234567890a",
        ] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn random_ids_are_version_4_uuids() {
        let text = KeyId::from_random([0xff; 16], false).to_string();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn the_four_ways_to_name_a_key_are_told_apart() {
        assert_eq!(KeyRef::parse("1234"), Ok(KeyRef::Id("1234")));
        assert_eq!(KeyRef::parse("alias/a/b"), Ok(KeyRef::Alias("alias/a/b")));
        let Ok(KeyRef::Arn(arn, resource)) = KeyRef::parse("arn:aws:kms:local:000000000000:key/1234") else {
            panic!("an ARN")
        };
        assert_eq!((arn.region, arn.account, resource), ("local", "000000000000", ArnResource::Key("1234")));
        for wrong in [
            "arn:",
            "arn:aws:kms",
            "arn:aws:s3:::bucket",
            "arn:aws:kms:local:0:grant/1",
            "arn:aws:kms:local:0:",
        ] {
            assert_eq!(KeyRef::parse(wrong), Err(ArnError), "{wrong}");
        }
    }
}
