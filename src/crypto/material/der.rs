//! The little DER that no library at hand writes: SubjectPublicKeyInfo and PKCS#8 of ML-KEM, an EC private key from its scalar.
//!
//! Called by the modules beside. Writes only; what is read is compared with what would be written, or left to a library
//! that is told first where it ends.

use zeroize::Zeroizing;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
/// `[0]` IMPLICIT, primitive.
const CONTEXT_0: u8 = 0x80;

/// Tag, length, content.
fn tlv(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(len + 4));
    out.push(tag);
    match len {
        0..0x80 => out.push(len as u8),
        0x80..0x100 => out.extend_from_slice(&[0x81, len as u8]),
        _ => {
            assert!(len < 0x1_0000, "nothing here is longer than a few KiB");
            out.push(0x82);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// Whether `bytes` are one value, of up to 64 KiB, and nothing behind it.
pub fn is_one_value(bytes: &[u8]) -> bool {
    let (head, len) = match *bytes {
        [_, len @ 0..=0x7f, ..] => (2, usize::from(len)),
        [_, 0x81, len, ..] => (3, usize::from(len)),
        [_, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return false,
    };
    bytes.len() == head + len
}

/// SubjectPublicKeyInfo of a key whose algorithm has no parameters.
pub fn public_key_info(oid: &[u8], key: &[u8]) -> Vec<u8> {
    let algorithm = tlv(SEQUENCE, &[&tlv(OID, &[oid])]);
    tlv(SEQUENCE, &[&algorithm, &tlv(BIT_STRING, &[&[0], key])]).to_vec()
}

/// PKCS#8 v1 of a key whose algorithm has no parameters and whose private key is a seed: `[0] OCTET STRING` within
/// the OCTET STRING (RFC 9935).
pub fn private_key_info_of_seed(oid: &[u8], seed: &[u8]) -> Zeroizing<Vec<u8>> {
    let algorithm = tlv(SEQUENCE, &[&tlv(OID, &[oid])]);
    let seed = tlv(CONTEXT_0, &[seed]);
    tlv(SEQUENCE, &[&tlv(INTEGER, &[&[0]]), &algorithm, &tlv(OCTET_STRING, &[&seed])])
}

/// ECPrivateKey (RFC 5915) without parameters and public key.
pub fn ec_private_key(scalar: &[u8]) -> Zeroizing<Vec<u8>> {
    tlv(SEQUENCE, &[&tlv(INTEGER, &[&[1]]), &tlv(OCTET_STRING, &[scalar])])
}
