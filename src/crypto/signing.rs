//! The signing key of AWS Signature Version 4.
//!
//! `key = HMAC(HMAC(HMAC(HMAC("AWS4" || secret, date), region), service), "aws4_request")`, all HMAC-SHA-256.

use zeroize::Zeroizing;

use super::{Hmac256, hmac_sha256};

/// Signs requests of one access key on one day in one region. Wiped with its HMAC state by the library.
#[derive(Debug)]
pub struct SigningKey(Hmac256);

impl SigningKey {
    /// Derives the key for `date` (`YYYYMMDD`), `region` and `service`.
    pub fn derive(secret: &[u8], date: &str, region: &str, service: &str) -> Self {
        let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        first.extend_from_slice(b"AWS4");
        first.extend_from_slice(secret);
        let of_date = Zeroizing::new(hmac_sha256(&first, date.as_bytes()));
        let of_region = Zeroizing::new(hmac_sha256(&*of_date, region.as_bytes()));
        let of_service = Zeroizing::new(hmac_sha256(&*of_region, service.as_bytes()));
        let key = Zeroizing::new(hmac_sha256(&*of_service, b"aws4_request"));
        Self(Hmac256::new(&*key))
    }

    /// The signature of a string to sign.
    pub fn sign(&self, text: &str) -> [u8; 32] {
        self.0.sign(&[text.as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_of_the_published_example() {
        // The example of AWS's documentation of Signature Version 4 (IAM ListUsers).
        let key =
            SigningKey::derive(b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830", "us-east-1", "iam");
        let text = "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
                    f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        let expected = [
            0x5d, 0x67, 0x2d, 0x79, 0xc1, 0x5b, 0x13, 0x16, 0x2d, 0x92, 0x79, 0xb0, 0x85, 0x5c, 0xfb, 0xa6,
            0x78, 0x9a, 0x8e, 0xdb, 0x4c, 0x82, 0xc4, 0x00, 0xe0, 0x6b, 0x59, 0x24, 0xa6, 0xf2, 0xb5, 0xd7,
        ];
        assert_eq!(key.sign(text), expected);
    }
}
