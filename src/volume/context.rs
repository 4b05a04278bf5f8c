//! The encryption contexts that bind a wrapped key to its place (R3). Stored nowhere: they follow from the ids.

use crate::api::EncryptionContext;
use crate::format::{FileId, VolumeId};

const FORMAT: &str = "1";
/// The pair that names the volume.
pub const VOLUME: &str = "kmsfs:volume";
/// The pair that names the file.
pub const FILE: &str = "kmsfs:file";

fn context(volume: VolumeId, purpose: &str) -> EncryptionContext {
    let mut context = EncryptionContext::new();
    context.insert(VOLUME, volume.to_string());
    context.insert("kmsfs:purpose", purpose);
    context.insert("kmsfs:format", FORMAT);
    context
}

/// Of the data key of one file.
pub fn file(volume: VolumeId, file: FileId) -> EncryptionContext {
    let mut context = context(volume, "file-data");
    context.insert(FILE, file.to_string());
    context
}

/// Of the data key of the volume record.
pub fn record(volume: VolumeId) -> EncryptionContext {
    context(volume, "volume-record")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_contexts_stay() {
        let json = |context: &EncryptionContext| serde_json::to_string(context).unwrap();
        assert_eq!(
            json(&file(VolumeId([1; 16]), FileId([0xab; 16]))),
            r#"{"kmsfs:file":"abababababababababababababababab","kmsfs:format":"1","kmsfs:purpose":"file-data","kmsfs:volume":"01010101010101010101010101010101"}"#
        );
        assert_eq!(
            json(&record(VolumeId([1; 16]))),
            r#"{"kmsfs:format":"1","kmsfs:purpose":"volume-record","kmsfs:volume":"01010101010101010101010101010101"}"#
        );
    }
}
