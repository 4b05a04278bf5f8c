//! Keys that customers bring along to each mount, as for S3's SSE-C: no key service holds them, and none is asked.
//!
//! Called by `keys` for files under such a key, and by the mount that they are brought to. Must never store a key, nor take
//! another one in its place.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use zeroize::Zeroizing;

use super::{Volume, VolumeError, rewrap};
use crate::api::EncryptionContext;
use crate::crypto::{CustomerKey, DataKey};
use crate::format::{WrappedKey, customer};
use crate::tree::KeyError;

/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Longest file that may hold a key: base64 with a line feed, and some more.
const FILE_MAX: usize = 128;

/// The keys that were brought along, by id.
#[derive(Default)]
pub(super) struct CustomerKeys(RwLock<HashMap<String, CustomerKey>>);

impl CustomerKeys {
    fn with<R>(&self, id: &str, act: impl FnOnce(&CustomerKey) -> R) -> Result<R, KeyError> {
        let name = customer::name_of(id).unwrap_or_default();
        let missing = || {
            let how = format!("--customer-key {name}=FILE of 'kmsfs mount' and 'kmsfs fsck' does");
            KeyError::Disabled(format!("nobody has brought the customer key '{name}' along; {how}"))
        };
        self.0.read().get(id).map(act).ok_or_else(missing)
    }

    /// A wrap of `data_key`, bound to its context.
    pub fn wrap(
        &self,
        id: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KeyError> {
        let blob = self.with(id, |key| key.wrap(data_key, &context.canonical()))?;
        Ok(WrappedKey { key_arn: id.to_owned(), material_id: None, blob })
    }

    /// The data key in a wrap.
    pub fn unwrap(&self, wrapped: &WrappedKey, context: &EncryptionContext) -> Result<DataKey, KeyError> {
        let opened = self.with(&wrapped.key_arn, |key| key.unwrap(&wrapped.blob, &context.canonical()))?;
        opened.ok_or_else(|| {
            KeyError::Invalid("the customer key does not open the file's wrapped key".to_owned())
        })
    }
}

/// Reads a key from a file, or from the descriptor N where `from` is `fd:N`: 32 bytes, or their base64.
fn read_customer_key(from: &Path) -> Result<CustomerKey, VolumeError> {
    let fd =
        from.to_str().and_then(|text| text.strip_prefix("fd:")).map(|number| format!("/dev/fd/{number}"));
    let path = fd.as_deref().map_or(from, Path::new);
    let failed = |e| VolumeError::io("read the customer key in", from, e);
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX + 1));
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let decoded = Zeroizing::new(STANDARD.decode(bytes.trim_ascii()).unwrap_or_default());
    let found = [bytes.as_slice(), decoded.as_slice()].into_iter().find(|key| key.len() == KEY_LEN);
    let Some(found) = found else {
        return Err(failed(std::io::Error::other("it holds neither 32 bytes nor their base64")));
    };
    let mut key = Zeroizing::new([0; KEY_LEN]);
    key.copy_from_slice(found);
    Ok(CustomerKey::take(&mut key))
}

impl Volume {
    /// Brings along the keys in these files, by name.
    pub fn bring_all(&self, keys: &[(String, PathBuf)], read_only: bool) -> Result<(), VolumeError> {
        keys.iter().try_for_each(|(name, file)| self.bring(name, read_customer_key(file)?, read_only))
    }

    /// Brings `key` along under `name`. Where the volume knows that name it must be the same key; else, unless it is
    /// `read_only`, the volume learns it.
    fn bring(&self, name: &str, key: CustomerKey, read_only: bool) -> Result<(), VolumeError> {
        let refused = |why: &str| VolumeError::CustomerKey(name.to_owned(), why.to_owned());
        if !customer::is_name(name) {
            return Err(refused(
                "a customer key's name has 1 to 32 letters, digits, dots, hyphens and underscores",
            ));
        }
        let id = match self.customer_key(name) {
            Some(id) if customer::fits(&id, &key) => id,
            Some(_) => return Err(refused("the volume's key of that name is another one; bring that one")),
            None if read_only => return Err(refused("the volume knows no customer key of that name")),
            None => {
                let id = customer::make_id(name, &key);
                rewrap::name_key(self, &id)?;
                id
            }
        };
        self.keys.customers.0.write().insert(id, key);
        Ok(())
    }

    /// The id of the customer key `name`, if the volume knows it.
    pub fn customer_key(&self, name: &str) -> Option<String> {
        let known = self.keys.known_keys();
        known.into_iter().find(|id| customer::is_customer(id) && customer::name_of(id) == Some(name))
    }
}
