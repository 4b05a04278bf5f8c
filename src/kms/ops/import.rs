//! GetParametersForImport, ImportKeyMaterial, DeleteImportedKeyMaterial.

use std::borrow::Cow;

use crate::api::{
    Blob, DeleteImportedKeyMaterialRequest, ErrorCode, ExpirationModel, GetParametersForImportRequest,
    GetParametersForImportResponse, ImportKeyMaterialRequest, ImportType, KeyMaterialResponse, KeySpec,
    KmsError, Origin, Timestamp, WrappingAlgorithm, WrappingKeySpec, hex,
};
use crate::crypto::{MaterialBytes, OaepHash, RsaBits, UnwrapError, Wrapping};

use super::super::authorise::{Allowed, Demand};
use super::super::import_token::ImportToken;
use super::super::imports::{Arrival, NotTaken};
use super::super::kinds::material_kind;
use super::super::lifecycle::{self, Need};
use super::super::model::Key;
use super::super::pipeline::{Answer, Call, Notes};
use super::keys::plain_demand;
use super::{Perform, internal, invalid, turn, unsupported};

/// Longest time after which imported material may expire.
const MAX_VALID_DAYS: i64 = 365;

/// Only keys made for it take imported material.
fn check_origin(key: &Key) -> Result<(), KmsError> {
    match key.record.origin {
        Origin::External => Ok(()),
        other => Err(unsupported(format!(
            "{} origin is {other} which is not valid for this operation.",
            key.record.arn
        ))),
    }
}

/// The wrapping that a request asks for, if material of such a key can be wrapped so.
/// Source: "Select a wrapping algorithm" in the developer guide.
fn wrapping_of(
    spec: KeySpec,
    algorithm: WrappingAlgorithm,
    key: WrappingKeySpec,
) -> Result<(Wrapping, RsaBits), KmsError> {
    use KeySpec as S;
    let refuse = || {
        let message = format!(
            "Wrapping algorithm {algorithm} with wrapping key spec {key} is not supported for key spec {spec}."
        );
        unsupported(message)
    };
    let bits = match key {
        WrappingKeySpec::Rsa2048 => RsaBits::B2048,
        WrappingKeySpec::Rsa3072 => RsaBits::B3072,
        WrappingKeySpec::Rsa4096 => RsaBits::B4096,
        WrappingKeySpec::Sm2 => return Err(refuse()),
    };
    let wrapping = match algorithm {
        WrappingAlgorithm::RsaesOaepSha1 => Wrapping::Oaep(OaepHash::Sha1),
        WrappingAlgorithm::RsaesOaepSha256 => Wrapping::Oaep(OaepHash::Sha256),
        WrappingAlgorithm::RsaAesKeyWrapSha1 => Wrapping::AesKeyWrap(OaepHash::Sha1),
        WrappingAlgorithm::RsaAesKeyWrapSha256 => Wrapping::AesKeyWrap(OaepHash::Sha256),
        WrappingAlgorithm::RsaesPkcs1V15 | WrappingAlgorithm::Sm2pke => return Err(refuse()),
    };
    let is_short = matches!(spec, S::SymmetricDefault | S::Hmac224 | S::Hmac256 | S::Hmac384 | S::Hmac512);
    let fits = match wrapping {
        Wrapping::Oaep(_) => match spec {
            S::Rsa2048 | S::Rsa3072 | S::Rsa4096 => false,
            S::EccNistP521 => bits != RsaBits::B2048,
            _ => true,
        },
        Wrapping::AesKeyWrap(_) => !is_short,
    };
    if fits { Ok((wrapping, bits)) } else { Err(refuse()) }
}

impl Perform for GetParametersForImportRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:GetParametersForImport", notes)?;
        for demand in &mut demands {
            demand.facts.push(("kms:wrappingalgorithm", Cow::Borrowed(self.wrapping_algorithm.as_str())));
            demand.facts.push(("kms:wrappingkeyspec", Cow::Borrowed(self.wrapping_key_spec.as_str())));
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, _: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_origin(key)?;
        lifecycle::check(Need::Import, key.record.state, &key.record.arn)?;
        let (wrapping, bits) = wrapping_of(key.record.spec, self.wrapping_algorithm, self.wrapping_key_spec)?;
        let made = ImportToken::make(&call.kms.root, &key.record.arn, wrapping, bits, call.now);
        let made = made.map_err(|_| internal())?;
        let size = made.sealed.len() + made.public_key.len();
        let answer = GetParametersForImportResponse {
            key_id: key.record.arn.clone(),
            import_token: Blob(made.sealed),
            public_key: Blob(made.public_key),
            parameters_valid_to: made.expires,
        };
        Answer::of(&answer, size)
    }
}

impl Perform for ImportKeyMaterialRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        let mut demands = plain_demand(call, &self.key_id, "kms:ImportKeyMaterial", notes)?;
        let model = self.expiration_model.unwrap_or(ExpirationModel::Expires);
        for demand in &mut demands {
            demand.facts.push(("kms:expirationmodel", Cow::Borrowed(model.as_str())));
            if let Some(valid_to) = self.valid_to {
                demand.facts.push(("kms:validto", Cow::Owned(valid_to.seconds().to_string())));
            }
        }
        Ok(demands)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_origin(key)?;
        lifecycle::check(Need::Import, key.record.state, &key.record.arn)?;
        let valid_to = expiry(&self, call.now)?;
        check_options(&self, key)?;
        let material = unwrap(&self, call, key)?;
        let id = hex(&material.id(&key.record.id.bytes));
        if self.key_material_id.as_ref().is_some_and(|wanted| *wanted != id) {
            return Err(incorrect(format!("The key material is not the one with the id {id}.")));
        }
        let arrival = Arrival {
            id: id.clone(),
            material,
            kind: self.import_type,
            valid_to,
            description: self.key_material_description,
            at: call.now,
        };
        call.kms.take_imported(turn(call)?, key, arrival)?.map_err(|why| not_taken(why, key, &id))?;
        notes.material_id = Some(id.clone());
        Answer::of(&answer(key, id), 0)
    }
}

/// When the material expires; nothing if it does not.
fn expiry(request: &ImportKeyMaterialRequest, now: Timestamp) -> Result<Option<Timestamp>, KmsError> {
    match (request.expiration_model.unwrap_or(ExpirationModel::Expires), request.valid_to) {
        (ExpirationModel::DoesNotExpire, None) => Ok(None),
        (ExpirationModel::DoesNotExpire, Some(_)) => Err(invalid(
            "The parameter ValidTo cannot be specified for a key with an expiration model of \
             KEY_MATERIAL_DOES_NOT_EXPIRE",
        )),
        (ExpirationModel::Expires, None) => {
            Err(invalid("A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"))
        }
        (ExpirationModel::Expires, Some(valid_to)) if valid_to <= now => {
            Err(invalid("ValidTo must be in the future"))
        }
        (ExpirationModel::Expires, Some(valid_to)) if valid_to > now.plus_days(MAX_VALID_DAYS) => {
            Err(invalid(format!("ValidTo must be within {MAX_VALID_DAYS} days of the request")))
        }
        (ExpirationModel::Expires, valid_to) => Ok(valid_to),
    }
}

/// Only symmetric keys have several materials, and names and descriptions of them.
fn check_options(request: &ImportKeyMaterialRequest, key: &Key) -> Result<(), KmsError> {
    let asked = [
        ("ImportType", request.import_type.is_some()),
        ("KeyMaterialDescription", request.key_material_description.is_some()),
        ("KeyMaterialId", request.key_material_id.is_some()),
    ];
    if key.record.spec != KeySpec::SymmetricDefault
        && let Some((name, _)) = asked.iter().find(|(_, asked)| *asked)
    {
        return Err(unsupported(format!("{name} is not supported for key spec {}.", key.record.spec)));
    }
    if request.import_type == Some(ImportType::NewKeyMaterial) && request.key_material_id.is_some() {
        return Err(invalid("KeyMaterialId cannot be specified when ImportType is NEW_KEY_MATERIAL."));
    }
    Ok(())
}

fn unwrap(request: &ImportKeyMaterialRequest, call: &Call<'_>, key: &Key) -> Result<MaterialBytes, KmsError> {
    let token = ImportToken::open(&call.kms.root, &key.record.arn, &request.import_token.0);
    let token = token.map_err(|_| KmsError::new(ErrorCode::InvalidImportTokenException, ""))?;
    if token.expires <= call.now {
        return Err(KmsError::new(ErrorCode::ExpiredImportTokenException, ""));
    }
    let opened = token.key.unwrap(token.wrapping, &request.encrypted_key_material.0);
    let opened = opened.map_err(|error| match error {
        UnwrapError::Length => invalid("Invalid encrypted key size."),
        UnwrapError::NotAuthentic => KmsError::new(ErrorCode::InvalidCiphertextException, ""),
    })?;
    let kind = material_kind(key.record.spec, key.record.usage).ok_or_else(internal)?;
    MaterialBytes::import(kind, &opened)
        .map_err(|_| incorrect(format!("The key material is not valid for key spec {}.", key.record.spec)))
}

fn incorrect(message: impl Into<String>) -> KmsError {
    KmsError::new(ErrorCode::IncorrectKeyMaterialException, message)
}

fn not_taken(why: NotTaken, key: &Key, id: &str) -> KmsError {
    let arn = &key.record.arn;
    match why {
        NotTaken::Unknown => incorrect(format!(
            "Key material (id: {id}) was not imported into KMS key {arn} before; only the same material can be \
             imported again."
        )),
        NotTaken::Known => incorrect(format!(
            "Key material (id: {id}) is not new to KMS key {arn}; import it as EXISTING_KEY_MATERIAL."
        )),
        NotTaken::Pending(other) => KmsError::new(
            ErrorCode::KMSInvalidStateException,
            format!(
                "New key material (id: {id}) cannot be imported into KMS key {arn}, because another key material \
                 (id: {other}) is pending rotation."
            ),
        ),
    }
}

fn answer(key: &Key, id: String) -> KeyMaterialResponse {
    let is_symmetric = key.record.spec == KeySpec::SymmetricDefault;
    KeyMaterialResponse { key_id: key.record.arn.clone(), key_material_id: is_symmetric.then_some(id) }
}

impl Perform for DeleteImportedKeyMaterialRequest {
    fn demands<'a>(&'a self, call: &Call<'_>, notes: &mut Notes) -> Result<Vec<Demand<'a>>, KmsError> {
        plain_demand(call, &self.key_id, "kms:DeleteImportedKeyMaterial", notes)
    }

    fn perform(self, call: &Call<'_>, allowed: &Allowed, notes: &mut Notes) -> Result<Answer, KmsError> {
        let key = allowed.key()?;
        check_origin(key)?;
        lifecycle::check(Need::DeleteMaterial, key.record.state, &key.record.arn)?;
        let materials = &key.record.materials;
        let place = match &self.key_material_id {
            Some(id) => Some(materials.iter().position(|material| material.id == *id).ok_or_else(|| {
                let message = format!("Key material {id} of {} does not exist", key.record.arn);
                KmsError::new(ErrorCode::NotFoundException, message)
            })?),
            None => key.record.current_material(),
        };
        let Some(place) = place else {
            // Nothing was ever imported.
            return Answer::of(
                &KeyMaterialResponse { key_id: key.record.arn.clone(), key_material_id: None },
                0,
            );
        };
        call.kms.drop_imported(turn(call)?, key, &[place])?;
        notes.material_id = Some(materials[place].id.clone());
        Answer::of(&answer(key, materials[place].id.clone()), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn material_is_wrapped_as_the_developer_guide_says() {
        use WrappingAlgorithm as A;
        let fits = |spec, algorithm, key| wrapping_of(spec, algorithm, key).is_ok();
        let (small, large) = (WrappingKeySpec::Rsa2048, WrappingKeySpec::Rsa4096);
        for spec in KeySpec::ALL {
            let is_rsa = spec.as_str().starts_with("RSA");
            assert_eq!(fits(*spec, A::RsaesOaepSha256, large), !is_rsa, "{spec}");
            let is_short = *spec == KeySpec::SymmetricDefault || spec.as_str().starts_with("HMAC");
            assert_eq!(fits(*spec, A::RsaAesKeyWrapSha256, small), !is_short, "{spec}");
            assert!(!fits(*spec, A::RsaesPkcs1V15, large) && !fits(*spec, A::Sm2pke, WrappingKeySpec::Sm2));
        }
        assert!(!fits(KeySpec::EccNistP521, A::RsaesOaepSha1, small));
        assert!(fits(KeySpec::EccNistP521, A::RsaesOaepSha1, WrappingKeySpec::Rsa3072));
    }
}
