//! Import tokens: the private half of a wrapping key, sealed, with what it is good for.
//!
//! Made and opened by the operations that import key material. The daemon keeps nothing of a token: it is opened
//! with the store's own keys, for the one key it was made for.
//!
//! ```text
//! 0  1  version, 1
//! 1  1  wrapping: 1 OAEP SHA-1, 2 OAEP SHA-256, 3 AES key wrap SHA-1, 4 AES key wrap SHA-256
//! 2  1  bits: 1 2048, 2 3072, 3 4096
//! 3  8  expires, milliseconds since the epoch, LE
//! 11 n  private key, PKCS#8
//! ```
//! Sealed as a secret ([`Root::seal_secret`]) whose owner is `import/` and the ARN of the key.

use zeroize::Zeroizing;

use crate::api::Timestamp;
use crate::crypto::{OaepHash, RsaBits, Wrapping, WrappingKey};

use super::root::Root;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 11;
/// How long a token is good: 24 hours.
const VALID_DAYS: i64 = 1;
const WRAPPINGS: [(u8, Wrapping); 4] = [
    (1, Wrapping::Oaep(OaepHash::Sha1)),
    (2, Wrapping::Oaep(OaepHash::Sha256)),
    (3, Wrapping::AesKeyWrap(OaepHash::Sha1)),
    (4, Wrapping::AesKeyWrap(OaepHash::Sha256)),
];
const BITS: [(u8, RsaBits); 3] = [(1, RsaBits::B2048), (2, RsaBits::B3072), (3, RsaBits::B4096)];

/// A token that was opened.
#[derive(Debug)]
pub struct ImportToken {
    /// Until when it is good.
    pub expires: Timestamp,
    /// How material is wrapped for it.
    pub wrapping: Wrapping,
    /// The wrapping key.
    pub key: WrappingKey,
}

/// A token that was made.
#[derive(Debug)]
pub struct NewImportToken {
    /// The token, sealed.
    pub sealed: Vec<u8>,
    /// The public wrapping key.
    pub public_key: Vec<u8>,
    /// Until when both are good.
    pub expires: Timestamp,
}

/// No token of this daemon for that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenError;

fn owner(key_arn: &str) -> String {
    format!("import/{key_arn}")
}

impl ImportToken {
    /// Makes a wrapping key and its token for the key `key_arn`. Takes seconds for 4096 bits.
    pub fn make(
        root: &Root,
        key_arn: &str,
        wrapping: Wrapping,
        bits: RsaBits,
        now: Timestamp,
    ) -> Result<NewImportToken, TokenError> {
        let private = WrappingKey::generate(bits).map_err(|_| TokenError)?;
        let key = WrappingKey::open(bits, &private).map_err(|_| TokenError)?;
        let expires = now.plus_days(VALID_DAYS);
        let number =
            |table: &[(u8, Wrapping)]| table.iter().find(|(_, known)| *known == wrapping).map(|n| n.0);
        let bits_number = BITS.iter().find(|(_, known)| *known == bits).map(|n| n.0);
        let mut body = Zeroizing::new(Vec::with_capacity(HEAD_LEN + private.len()));
        body.extend_from_slice(&[
            VERSION,
            number(&WRAPPINGS).ok_or(TokenError)?,
            bits_number.ok_or(TokenError)?,
        ]);
        body.extend_from_slice(&expires.millis().to_le_bytes());
        body.extend_from_slice(&private);
        let sealed = root.seal_secret(&owner(key_arn), &body);
        Ok(NewImportToken { sealed, public_key: key.public_key().to_vec(), expires })
    }

    /// Opens a token that was made for the key `key_arn`. Whether it is still good is another matter.
    pub fn open(root: &Root, key_arn: &str, sealed: &[u8]) -> Result<Self, TokenError> {
        let body = root.open_secret(&owner(key_arn), sealed).map_err(|_| TokenError)?;
        let (head, private) = body.split_at_checked(HEAD_LEN).ok_or(TokenError)?;
        if head[0] != VERSION {
            return Err(TokenError);
        }
        let wrapping = WRAPPINGS.iter().find(|(number, _)| *number == head[1]).ok_or(TokenError)?.1;
        let bits = BITS.iter().find(|(number, _)| *number == head[2]).ok_or(TokenError)?.1;
        let millis = head[3..HEAD_LEN].try_into().map_err(|_| TokenError)?;
        let key = WrappingKey::open(bits, private).map_err(|_| TokenError)?;
        Ok(Self { expires: Timestamp::from_millis(i64::from_le_bytes(millis)), wrapping, key })
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;
    use crate::crypto::RootKey;

    #[test]
    fn a_token_opens_for_its_own_key_and_daemon_only() {
        let root = Root::open(RootKey::random(), &MemoryStore::new()).unwrap();
        let other = Root::open(RootKey::random(), &MemoryStore::new()).unwrap();
        let wrapping = Wrapping::AesKeyWrap(OaepHash::Sha1);
        let now = Timestamp::from_millis(5);
        let made = ImportToken::make(&root, "arn:1", wrapping, RsaBits::B2048, now).unwrap();
        assert!(made.sealed.len() <= 6144, "longer than the protocol takes");
        let opened = ImportToken::open(&root, "arn:1", &made.sealed).unwrap();
        assert_eq!((opened.expires, opened.wrapping), (now.plus_days(1), wrapping));
        assert_eq!(opened.key.public_key(), made.public_key);
        assert!(ImportToken::open(&root, "arn:2", &made.sealed).is_err());
        assert!(ImportToken::open(&other, "arn:1", &made.sealed).is_err());
        let mut changed = made.sealed.clone();
        changed[30] ^= 1;
        assert!(ImportToken::open(&root, "arn:1", &changed).is_err());
        assert!(ImportToken::open(&root, "arn:1", b"").is_err());
    }
}
