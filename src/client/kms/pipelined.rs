//! Many calls at a time: sent together and answered together, so that a round trip is waited for once.
//!
//! For new files' keys, for keys ahead of need, and for a rewrap. Nothing is tried again but what says so.

use serde::Serialize;

use super::{
    Answer, Base64, Call, Decrypt, Decrypted, GenerateDataKey, GeneratedKey, Kms, check, decrypted, encode,
    encode_for, generated, is_worth_retrying, missing, parse_data, parse_material,
};
use crate::api::{EncryptionContext, Operation};
use crate::client::ClientError;

/// A wrapped key to unwrap.
pub struct DecryptItem<'a> {
    /// The wrapped key.
    pub blob: &'a [u8],
    /// The master key it is under.
    pub key_id: &'a str,
    /// Its context.
    pub context: EncryptionContext,
}

/// A wrapped key to move to another version or another master key.
pub struct ReEncryptItem<'a> {
    /// The wrapped key.
    pub blob: &'a [u8],
    /// The master key it is under.
    pub source_key: &'a str,
    /// The master key to go under.
    pub destination_key: &'a str,
    /// The context of both.
    pub context: &'a EncryptionContext,
}

/// A wrapped key that was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReEncrypted {
    /// The new wrapped key.
    pub blob: Vec<u8>,
    /// ARN of the master key it is under.
    pub key_arn: String,
    /// The version that wrapped it.
    pub material_id: Option<[u8; 32]>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReEncrypt<'a> {
    ciphertext_blob: Base64<'a>,
    source_encryption_context: &'a EncryptionContext,
    source_key_id: &'a str,
    destination_key_id: &'a str,
    destination_encryption_context: &'a EncryptionContext,
}

impl Kms {
    /// As many fresh data keys as there are contexts, pipelined. Ends at the first error, which is returned when
    /// nothing was made.
    pub fn generate_data_keys(
        &self,
        key_id: &str,
        contexts: &[EncryptionContext],
        user: Option<u32>,
    ) -> Result<Vec<GeneratedKey>, ClientError> {
        let encode_one = |context| {
            let request = GenerateDataKey { key_id, encryption_context: context, key_spec: "AES_256" };
            encode_for(user, Operation::GenerateDataKey, &request)
        };
        let calls: Vec<Call> = contexts.iter().map(encode_one).collect();
        let mut made = Vec::with_capacity(calls.len());
        for answer in self.of(key_id).transport.exchange_many(&calls) {
            match answer.and_then(check).and_then(|answer| generated(&answer)) {
                Ok(key) => made.push(key),
                Err(e) if made.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        Ok(made)
    }

    /// Unwraps many data keys, pipelined, in this process's own name. Nothing is tried again.
    pub fn decrypt_many(&self, items: &[DecryptItem<'_>]) -> Vec<Result<Decrypted, ClientError>> {
        let encode_one = |item: &DecryptItem<'_>| {
            let (ciphertext_blob, encryption_context) = (Base64(item.blob), &item.context);
            let request =
                Decrypt { ciphertext_blob, encryption_context, key_id: item.key_id, dry_run: false };
            encode_for(None, Operation::Decrypt, &request)
        };
        let of_one_service =
            |a: &DecryptItem<'_>, b: &DecryptItem<'_>| std::ptr::eq(self.of(a.key_id), self.of(b.key_id));
        let answers = items.chunk_by(of_one_service).flat_map(|run| {
            let calls: Vec<Call> = run.iter().map(encode_one).collect();
            self.of(run[0].key_id).transport.exchange_many(&calls)
        });
        answers.map(|answer| decrypted(&answer.and_then(check)?)).collect()
    }

    /// Moves many wrapped keys, pipelined. What was throttled or lost on the way is tried again one by one.
    pub fn re_encrypt_many(&self, items: &[ReEncryptItem<'_>]) -> Vec<Result<ReEncrypted, ClientError>> {
        let both = |item: &ReEncryptItem<'_>| self.check_both(item.source_key, item.destination_key);
        let mut outcomes: Vec<Option<Result<ReEncrypted, ClientError>>> =
            items.iter().map(|item| both(item).err().map(Err)).collect();
        for service in self.each() {
            let here = |place: &usize| {
                outcomes[*place].is_none() && std::ptr::eq(self.of(items[*place].source_key), service)
            };
            let places: Vec<usize> = (0..items.len()).filter(here).collect();
            let calls: Vec<Call> = places.iter().map(|place| re_encryption(&items[*place])).collect();
            if !calls.is_empty() {
                let moved = service.re_encrypt_here(&calls);
                places.into_iter().zip(moved).for_each(|(place, moved)| outcomes[place] = Some(moved));
            }
        }
        let unanswered = || Err(ClientError::Protocol("no answer".to_owned()));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unanswered)).collect()
    }

    fn re_encrypt_here(&self, calls: &[Call]) -> Vec<Result<ReEncrypted, ClientError>> {
        let answers = self.transport.exchange_many(calls);
        let outcomes = answers.into_iter().zip(calls).map(|(answer, call)| {
            let first = answer.and_then(check);
            let settled = match first {
                Err(e) if is_worth_retrying(&e) => {
                    self.throttled.add(1);
                    self.with_retries(call)
                }
                other => other,
            };
            re_encrypted(&settled?)
        });
        outcomes.collect()
    }
}

fn re_encryption(item: &ReEncryptItem<'_>) -> Call {
    let request = ReEncrypt {
        ciphertext_blob: Base64(item.blob),
        source_encryption_context: item.context,
        source_key_id: item.source_key,
        destination_key_id: item.destination_key,
        destination_encryption_context: item.context,
    };
    encode(Operation::ReEncrypt, &request)
}

fn re_encrypted(answer: &Answer) -> Result<ReEncrypted, ClientError> {
    let answer = parse_data(answer)?;
    Ok(ReEncrypted {
        blob: answer.ciphertext_blob.ok_or_else(|| missing("CiphertextBlob"))?.0,
        key_arn: answer.key_id.into_owned(),
        material_id: answer.destination_key_material_id.as_deref().and_then(parse_material),
    })
}
