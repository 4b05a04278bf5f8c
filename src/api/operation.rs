//! The one list of operations.

/// Namespace of the KMS operations in `X-Amz-Target`.
pub const TARGET_PREFIX: &str = "TrentService.";
/// Namespace of the daemon's own operations.
pub const TARGET_PREFIX_ADMIN: &str = "KmsdAdmin.";

/// Which namespace an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// The KMS protocol; its actions are `kms:NAME`.
    Kms,
    /// The daemon's own; its actions are `kmsd:NAME`.
    Admin,
}

macro_rules! operations {
    ($($family:ident { $($name:ident $effect:ident,)+ })+) => {
        /// Every operation by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Operation {
            $($(#[doc = concat!("`", stringify!($name), "`")] $name,)+)+
        }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// The bare name.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => stringify!($name),)+)+ }
            }

            /// The namespace.
            pub const fn family(self) -> Family {
                match self { $($(Self::$name => Family::$family,)+)+ }
            }

            /// Whether it changes nothing (the audit record tells).
            pub const fn is_read_only(self) -> bool {
                match self { $($(Self::$name => operations!(@effect $effect),)+)+ }
            }

            /// The action that policies name.
            pub const fn action(self) -> &'static str {
                match self { $($(Self::$name => operations!(@action $family $name),)+)+ }
            }

            /// The full value of `X-Amz-Target`.
            pub const fn target(self) -> &'static str {
                match self { $($(Self::$name => operations!(@target $family $name),)+)+ }
            }

            /// By family and name.
            pub fn from_name(family: Family, name: &str) -> Option<Self> {
                match (family, name) {
                    $($((Family::$family, stringify!($name)) => Some(Self::$name),)+)+
                    _ => None,
                }
            }
        }
    };
    (@effect reads) => { true };
    (@effect writes) => { false };
    (@action Kms $name:ident) => { concat!("kms:", stringify!($name)) };
    (@action Admin $name:ident) => { concat!("kmsd:", stringify!($name)) };
    (@target Kms $name:ident) => { concat!("TrentService.", stringify!($name)) };
    (@target Admin $name:ident) => { concat!("KmsdAdmin.", stringify!($name)) };
}

operations! {
    Kms {
        CancelKeyDeletion writes,
        ConnectCustomKeyStore writes,
        CreateAlias writes,
        CreateCustomKeyStore writes,
        CreateGrant writes,
        CreateKey writes,
        Decapsulate reads,
        Decrypt reads,
        DeleteAlias writes,
        DeleteCustomKeyStore writes,
        DeleteImportedKeyMaterial writes,
        DeriveSharedSecret reads,
        DescribeCustomKeyStores reads,
        DescribeKey reads,
        DisableKey writes,
        DisableKeyRotation writes,
        DisconnectCustomKeyStore writes,
        EnableKey writes,
        EnableKeyRotation writes,
        Encapsulate reads,
        Encrypt reads,
        GenerateDataKey reads,
        GenerateDataKeyPair reads,
        GenerateDataKeyPairWithoutPlaintext reads,
        GenerateDataKeyWithoutPlaintext reads,
        GenerateMac reads,
        GenerateRandom reads,
        GetKeyLastUsage reads,
        GetKeyPolicy reads,
        GetKeyRotationStatus reads,
        GetParametersForImport reads,
        GetPublicKey reads,
        ImportKeyMaterial writes,
        ListAliases reads,
        ListGrants reads,
        ListKeyPolicies reads,
        ListKeyRotations reads,
        ListKeys reads,
        ListResourceTags reads,
        ListRetirableGrants reads,
        PutKeyPolicy writes,
        ReEncrypt reads,
        ReplicateKey writes,
        RetireGrant writes,
        RevokeGrant writes,
        RotateKeyOnDemand writes,
        ScheduleKeyDeletion writes,
        Sign reads,
        TagResource writes,
        UntagResource writes,
        UpdateAlias writes,
        UpdateCustomKeyStore writes,
        UpdateKeyDescription writes,
        UpdatePrimaryRegion writes,
        Verify reads,
        VerifyMac reads,
    }
    Admin {
        Explain reads,
        AdvanceMark writes,
        RetireVersion writes,
    }
}

impl Operation {
    /// From the value of `X-Amz-Target`.
    pub fn from_target(target: &str) -> Option<Self> {
        if let Some(name) = target.strip_prefix(TARGET_PREFIX) {
            return Self::from_name(Family::Kms, name);
        }
        target.strip_prefix(TARGET_PREFIX_ADMIN).and_then(|name| Self::from_name(Family::Admin, name))
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_target_and_no_other() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_target(operation.target()), Some(*operation));
        }
        for wrong in [
            "",
            "Encrypt",
            "TrentService.",
            "TrentService.encrypt",
            "TrentService.CreateUser",
            "KmsdAdmin.Encrypt",
        ] {
            assert_eq!(Operation::from_target(wrong), None, "{wrong}");
        }
        let kms = Operation::ALL.iter().filter(|operation| operation.family() == Family::Kms);
        assert_eq!(kms.count(), 56);
    }
}
