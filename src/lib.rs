//! kmsfs: an encrypted filesystem whose file keys live in a local key management service.
//!
//! This file is the map; it holds no code.
//!
//! ```text
//! process      kmsd               kmsfs
//! front end    kms                fuse, cli          translate; only kms decides who may
//! use case     kms::ops           volume             init, open, rewrap, check, snapshot, copy, registry
//! mechanism    kms::store, root   tree, client       key records | lower directory by dirfd, key calls
//! pure         kms::blob          format             bytes on disk
//! leaf         api, crypto        api, crypto        wire types; typed keys and ciphers
//! kernel       sys                sys                system calls, hardening; the only unsafe
//! ```
//!
//! Imports run downward only (`tests/layering.rs` holds the table and checks it):
//! `cli -> fuse, volume, client, api` · `fuse -> tree, volume` · `volume -> tree, format, client, crypto, api` ·
//! `tree -> format, crypto, sys` · `format -> crypto, api` · `client -> api, crypto, sys` ·
//! `kms -> api, crypto, sys` · `crypto -> sys`.
//!
//! # Glossary
//! | word | meaning |
//! |---|---|
//! | CMK, key | a customer master key: id, ARN, aliases, state, policy, tags, and one or more versions of key material |
//! | key material, version | the secret behind a CMK; a rotation adds a version, older ones still decrypt |
//! | DEK, data key | the 256-bit key of one file or of the volume record; only ever stored wrapped |
//! | wrapped DEK, blob | the ciphertext blob `kmsd` returns; it names its key and version |
//! | encryption context | public key-value pairs bound as additional authenticated data |
//! | volume | one ciphertext tree with its volume record |
//! | lower directory | where the ciphertext lies; any POSIX filesystem |
//! | header, key slot, seal | see `docs/FORMAT.md` |
//! | rewrap | write a header anew under the current key version, or another CMK; data untouched |
//! | reencrypt | give a file a new DEK and encrypt its data anew |
//! | principal | who calls: an ARN made from the Unix peer, or the owner of an access key |

pub mod api;
pub mod crypto;
pub mod logging;
pub mod sys;

#[cfg(feature = "kms")]
pub mod kms;

#[cfg(feature = "fuse")]
pub mod cli;
#[cfg(feature = "fuse")]
pub mod client;
#[cfg(feature = "fuse")]
pub mod format;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "fuse")]
pub mod tree;
#[cfg(feature = "fuse")]
pub mod volume;
