//! RSA: signatures (PSS, PKCS#1 v1.5) and encryption (OAEP), by aws-lc.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::{
    KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaParameters,
};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::{MaterialError, Sha2, SignInput, SignScheme};

/// Length of the modulus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaBits {
    /// 2048 bits.
    B2048,
    /// 3072 bits.
    B3072,
    /// 4096 bits.
    B4096,
}

impl RsaBits {
    const fn size(self) -> KeySize {
        match self {
            Self::B2048 => KeySize::Rsa2048,
            Self::B3072 => KeySize::Rsa3072,
            Self::B4096 => KeySize::Rsa4096,
        }
    }

    /// Bytes of the modulus.
    pub const fn modulus_len(self) -> usize {
        match self {
            Self::B2048 => 256,
            Self::B3072 => 384,
            Self::B4096 => 512,
        }
    }
}

/// The hash of OAEP, for the label and for MGF1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OaepHash {
    /// SHA-1, which OAEP does not need to be collision-free.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl OaepHash {
    const fn algorithm(self) -> &'static OaepAlgorithm {
        match self {
            Self::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Self::Sha256 => &OAEP_SHA256_MGF1SHA256,
        }
    }
}

/// PKCS#8 of a fresh key pair.
pub fn generate(bits: RsaBits) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    to_pkcs8(&KeyPair::generate(bits.size())?)
}

/// The canonical PKCS#8 of an imported one.
pub fn import(bits: RsaBits, pkcs8: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let pair = KeyPair::from_pkcs8(pkcs8)?;
    if pair.public_modulus_len() != bits.modulus_len() {
        return Err(MaterialError);
    }
    to_pkcs8(&pair)
}

fn to_pkcs8(pair: &KeyPair) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let der: Pkcs8V1Der<'_> = pair.as_der()?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

/// An RSA key pair that signs.
pub struct RsaSigner {
    pair: KeyPair,
    spki: Vec<u8>,
}

impl std::fmt::Debug for RsaSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RsaSigner(..)")
    }
}

impl RsaSigner {
    pub(super) fn open(pkcs8: &[u8]) -> Result<Self, MaterialError> {
        let pair = KeyPair::from_pkcs8(pkcs8)?;
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
        let spki = der.as_ref().to_vec();
        Ok(Self { pair, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    pub(super) fn sign(&self, scheme: SignScheme, input: SignInput<'_>) -> Result<Vec<u8>, MaterialError> {
        let (encoding, _, hash) = algorithm(scheme)?;
        let mut signature = vec![0; self.pair.public_modulus_len()];
        match input {
            SignInput::Raw(message) => {
                self.pair.sign(encoding, &rand::SystemRandom::new(), message, &mut signature)?;
            }
            SignInput::Digest(value) => {
                let value = digest::Digest::import_less_safe(value, hash)?;
                self.pair.sign_digest(encoding, &value, &mut signature)?;
            }
            SignInput::Mu(_) => return Err(MaterialError),
        }
        Ok(signature)
    }

    pub(super) fn verify(&self, scheme: SignScheme, input: SignInput<'_>, signature: &[u8]) -> bool {
        let Ok((_, parameters, hash)) = algorithm(scheme) else { return false };
        let Ok(key) = ParsedPublicKey::new(parameters, &self.spki) else { return false };
        match input {
            SignInput::Raw(message) => key.verify_sig(message, signature).is_ok(),
            SignInput::Digest(value) => digest::Digest::import_less_safe(value, hash)
                .is_ok_and(|value| key.verify_digest_sig(&value, signature).is_ok()),
            SignInput::Mu(_) => false,
        }
    }
}

type Algorithm = (&'static dyn RsaEncoding, &'static RsaParameters, &'static digest::Algorithm);

fn algorithm(scheme: SignScheme) -> Result<Algorithm, MaterialError> {
    Ok(match scheme {
        SignScheme::RsaPss(Sha2::Sha256) => (&RSA_PSS_SHA256, &RSA_PSS_2048_8192_SHA256, &digest::SHA256),
        SignScheme::RsaPss(Sha2::Sha384) => (&RSA_PSS_SHA384, &RSA_PSS_2048_8192_SHA384, &digest::SHA384),
        SignScheme::RsaPss(Sha2::Sha512) => (&RSA_PSS_SHA512, &RSA_PSS_2048_8192_SHA512, &digest::SHA512),
        SignScheme::RsaPkcs1(Sha2::Sha256) => {
            (&RSA_PKCS1_SHA256, &RSA_PKCS1_2048_8192_SHA256, &digest::SHA256)
        }
        SignScheme::RsaPkcs1(Sha2::Sha384) => {
            (&RSA_PKCS1_SHA384, &RSA_PKCS1_2048_8192_SHA384, &digest::SHA384)
        }
        SignScheme::RsaPkcs1(Sha2::Sha512) => {
            (&RSA_PKCS1_SHA512, &RSA_PKCS1_2048_8192_SHA512, &digest::SHA512)
        }
        _ => return Err(MaterialError),
    })
}

/// An RSA key pair that encrypts and decrypts.
pub struct RsaDecrypter {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    spki: Vec<u8>,
}

impl std::fmt::Debug for RsaDecrypter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RsaDecrypter(..)")
    }
}

impl RsaDecrypter {
    pub(super) fn open(pkcs8: &[u8]) -> Result<Self, MaterialError> {
        let private = PrivateDecryptingKey::from_pkcs8(pkcs8)?;
        let public = private.public_key();
        let der: PublicKeyX509Der<'_> = public.as_der()?;
        let spki = der.as_ref().to_vec();
        let public = OaepPublicEncryptingKey::new(public)?;
        Ok(Self { private: OaepPrivateDecryptingKey::new(private)?, public, spki })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// Longest plaintext.
    pub fn max_plaintext(&self, hash: OaepHash) -> usize {
        self.public.max_plaintext_size(hash.algorithm())
    }

    /// Encrypts with an empty label.
    pub fn encrypt(&self, hash: OaepHash, plaintext: &[u8]) -> Result<Vec<u8>, MaterialError> {
        let mut out = vec![0; self.public.ciphertext_size()];
        self.public.encrypt(hash.algorithm(), plaintext, &mut out, None)?;
        Ok(out)
    }

    /// Decrypts what was encrypted with an empty label.
    pub fn decrypt(&self, hash: OaepHash, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let mut out = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let len = self.private.decrypt(hash.algorithm(), ciphertext, &mut out, None)?.len();
        out.truncate(len);
        Ok(out)
    }
}
