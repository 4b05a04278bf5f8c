//! The enumerations of the protocol: each value with its one spelling.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! choice {
    (@listed $name:ident) => { $name::ALL };
    (@listed $name:ident $like:ident) => { $like::LISTED_BY_OTHERS };
    ($($(#[$meta:meta])* $name:ident $(listed as $like:ident)? { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* #[doc = concat!("`", $text, "`")] $variant,)+
        }

        impl $name {
            /// Every value, in the order in which messages list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As it is written on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// From the spelling on the wire.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).ok_or_else(|| de::Error::custom(format_args!("unknown {} {text}", stringify!($name))))
            }
        }

        impl super::shape::Choice for $name {
            fn from_text(text: &str) -> Option<Self> { Self::parse(text) }
            fn text(&self) -> &'static str { self.as_str() }
            fn listed() -> String {
                let all: Vec<_> = choice!(@listed $name $($like)?).iter().map(|value| value.as_str()).collect();
                all.join(", ")
            }
        }
    )+};
}

choice! {
    /// Where a key stands in its life.
    KeyState {
        Creating = "Creating",
        Enabled = "Enabled",
        Disabled = "Disabled",
        PendingDeletion = "PendingDeletion",
        PendingImport = "PendingImport",
        PendingReplicaDeletion = "PendingReplicaDeletion",
        Unavailable = "Unavailable",
        Updating = "Updating",
    }
    /// What kind of material a key has. The order is the one in which the service's messages list the values.
    KeySpec {
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
        EccNistP256 = "ECC_NIST_P256",
        EccNistP384 = "ECC_NIST_P384",
        EccNistP521 = "ECC_NIST_P521",
        EccSecgP256K1 = "ECC_SECG_P256K1",
        EccNistEdwards25519 = "ECC_NIST_EDWARDS25519",
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        Hmac224 = "HMAC_224",
        Hmac256 = "HMAC_256",
        Hmac384 = "HMAC_384",
        Hmac512 = "HMAC_512",
        Sm2 = "SM2",
        MlDsa44 = "ML_DSA_44",
        MlDsa65 = "ML_DSA_65",
        MlDsa87 = "ML_DSA_87",
        MlKem512 = "ML_KEM_512",
        MlKem768 = "ML_KEM_768",
        MlKem1024 = "ML_KEM_1024",
    }
    /// The old name of `KeySpec`, which has no newer values.
    CustomerMasterKeySpec {
        Rsa2048 = "RSA_2048",
        EccNistP384 = "ECC_NIST_P384",
        EccNistP256 = "ECC_NIST_P256",
        EccNistP521 = "ECC_NIST_P521",
        Hmac384 = "HMAC_384",
        Rsa3072 = "RSA_3072",
        EccSecgP256K1 = "ECC_SECG_P256K1",
        Rsa4096 = "RSA_4096",
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        Hmac256 = "HMAC_256",
        Hmac224 = "HMAC_224",
        Hmac512 = "HMAC_512",
        Sm2 = "SM2",
    }
    /// What a key is for.
    KeyUsage {
        EncryptDecrypt = "ENCRYPT_DECRYPT",
        SignVerify = "SIGN_VERIFY",
        GenerateVerifyMac = "GENERATE_VERIFY_MAC",
        KeyAgreement = "KEY_AGREEMENT",
        EncapsulateDecapsulate = "ENCAPSULATE_DECAPSULATE",
    }
    /// Where the material comes from.
    Origin {
        AwsKms = "AWS_KMS",
        External = "EXTERNAL",
        AwsCloudHsm = "AWS_CLOUDHSM",
        ExternalKeyStore = "EXTERNAL_KEY_STORE",
    }
    /// Who manages the key.
    KeyManager {
        Aws = "AWS",
        Customer = "CUSTOMER",
    }
    /// Length of a generated data key. Messages list the specs of keys, of which none is taken: so does the service.
    DataKeySpec listed as KeySpec {
        Aes256 = "AES_256",
        Aes128 = "AES_128",
    }
    /// What kind of key pair is generated.
    DataKeyPairSpec {
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
        EccNistP256 = "ECC_NIST_P256",
        EccNistP384 = "ECC_NIST_P384",
        EccNistP521 = "ECC_NIST_P521",
        EccSecgP256K1 = "ECC_SECG_P256K1",
        Sm2 = "SM2",
        EccNistEdwards25519 = "ECC_NIST_EDWARDS25519",
        MlKem512 = "ML_KEM_512",
        MlKem768 = "ML_KEM_768",
        MlKem1024 = "ML_KEM_1024",
    }
    /// How a signature is made.
    SigningAlgorithm {
        RsassaPssSha256 = "RSASSA_PSS_SHA_256",
        RsassaPssSha384 = "RSASSA_PSS_SHA_384",
        RsassaPssSha512 = "RSASSA_PSS_SHA_512",
        RsassaPkcs1Sha256 = "RSASSA_PKCS1_V1_5_SHA_256",
        RsassaPkcs1Sha384 = "RSASSA_PKCS1_V1_5_SHA_384",
        RsassaPkcs1Sha512 = "RSASSA_PKCS1_V1_5_SHA_512",
        EcdsaSha256 = "ECDSA_SHA_256",
        EcdsaSha384 = "ECDSA_SHA_384",
        EcdsaSha512 = "ECDSA_SHA_512",
        Ed25519Sha512 = "ED25519_SHA_512",
        Ed25519PhSha512 = "ED25519_PH_SHA_512",
        Sm2dsa = "SM2DSA",
        MlDsaShake256 = "ML_DSA_SHAKE_256",
    }
    /// What the message of a signature is.
    MessageType {
        Raw = "RAW",
        Digest = "DIGEST",
        ExternalMu = "EXTERNAL_MU",
    }
    /// How a MAC is made. The order is the one in which the service's messages list the values.
    MacAlgorithm {
        HmacSha384 = "HMAC_SHA_384",
        HmacSha256 = "HMAC_SHA_256",
        HmacSha224 = "HMAC_SHA_224",
        HmacSha512 = "HMAC_SHA_512",
    }
    /// How two key pairs agree on a secret.
    KeyAgreementAlgorithm {
        Ecdh = "ECDH",
    }
    /// How a secret is encapsulated for a key pair.
    EncapsulationAlgorithm {
        MlKem = "ML_KEM",
    }
    /// How an answer is encrypted to an enclave.
    KeyEncryptionMechanism {
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
    }
    /// What a dry run passes over.
    DryRunModifier {
        IgnoreCiphertext = "IGNORE_CIPHERTEXT",
    }
    /// How a plaintext is encrypted under a key.
    EncryptionAlgorithm {
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
        Sm2pke = "SM2PKE",
        SymmetricDefault = "SYMMETRIC_DEFAULT",
    }
    /// Whether imported material expires.
    ExpirationModel {
        Expires = "KEY_MATERIAL_EXPIRES",
        DoesNotExpire = "KEY_MATERIAL_DOES_NOT_EXPIRE",
    }
    /// What set a rotation off.
    RotationType {
        Automatic = "AUTOMATIC",
        OnDemand = "ON_DEMAND",
    }
    /// Whose keys `ListKeys` lists.
    ResourceOwner {
        Own = "SELF",
        OtherAccountsViaRam = "OTHER_ACCOUNTS_VIA_RAM",
    }
    /// Which materials `ListKeyRotations` tells of.
    IncludeKeyMaterial {
        AllKeyMaterial = "ALL_KEY_MATERIAL",
        RotationsOnly = "ROTATIONS_ONLY",
    }
    /// Whether a version of the material is the one that encrypts.
    MaterialState {
        NonCurrent = "NON_CURRENT",
        Current = "CURRENT",
        PendingRotation = "PENDING_ROTATION",
        PendingMultiRegionImport = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION",
    }
    /// How imported material is wrapped.
    WrappingAlgorithm {
        RsaesPkcs1V15 = "RSAES_PKCS1_V1_5",
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
        RsaAesKeyWrapSha1 = "RSA_AES_KEY_WRAP_SHA_1",
        RsaAesKeyWrapSha256 = "RSA_AES_KEY_WRAP_SHA_256",
        Sm2pke = "SM2PKE",
    }
    /// What kind of key wraps imported material.
    WrappingKeySpec {
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
        Sm2 = "SM2",
    }
    /// Whether the key had imported material before.
    ImportType {
        NewKeyMaterial = "NEW_KEY_MATERIAL",
        ExistingKeyMaterial = "EXISTING_KEY_MATERIAL",
    }
    /// Whether imported material is here.
    ImportState {
        Imported = "IMPORTED",
        PendingImport = "PENDING_IMPORT",
    }
    /// What a key is among the keys of a multi-Region key.
    MultiRegionKeyType {
        Primary = "PRIMARY",
        Replica = "REPLICA",
    }
    /// Whether an access key may sign.
    AccessKeyStatus {
        Active = "Active",
        Inactive = "Inactive",
    }
    /// What a grant can allow.
    GrantOperation {
        Decrypt = "Decrypt",
        Encrypt = "Encrypt",
        GenerateDataKey = "GenerateDataKey",
        GenerateDataKeyWithoutPlaintext = "GenerateDataKeyWithoutPlaintext",
        ReEncryptFrom = "ReEncryptFrom",
        ReEncryptTo = "ReEncryptTo",
        Sign = "Sign",
        Verify = "Verify",
        GetPublicKey = "GetPublicKey",
        CreateGrant = "CreateGrant",
        RetireGrant = "RetireGrant",
        DescribeKey = "DescribeKey",
        GenerateDataKeyPair = "GenerateDataKeyPair",
        GenerateDataKeyPairWithoutPlaintext = "GenerateDataKeyPairWithoutPlaintext",
        GenerateMac = "GenerateMac",
        VerifyMac = "VerifyMac",
        DeriveSharedSecret = "DeriveSharedSecret",
        Encapsulate = "Encapsulate",
        Decapsulate = "Decapsulate",
    }
}

impl KeySpec {
    /// What messages about the spec of a data key list: the specs up to ML-DSA, as recorded from the service.
    const LISTED_BY_OTHERS: &'static [Self] = Self::ALL.split_at(17).0;
}

impl From<CustomerMasterKeySpec> for KeySpec {
    fn from(old: CustomerMasterKeySpec) -> Self {
        Self::parse(old.as_str()).expect("every value of the old name is one of the new")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_old_spec_is_a_spec() {
        for old in CustomerMasterKeySpec::ALL {
            assert_eq!(KeySpec::from(*old).as_str(), old.as_str());
        }
    }
}
