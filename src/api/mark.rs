//! Marks: numbers that only rise, kept by the daemon for whoever may decrypt a ciphertext.

use super::rule::Rule::{Length, Range};
use super::shape::shape;
use super::{Blob, EncryptionContext};

shape! {
    /// Reads the mark of a ciphertext's owner, and raises it. For users who may decrypt that ciphertext.
    AdvanceMarkRequest for AdvanceMark {
        required {
            /// What names the owner, by the pairs it is bound to.
            ciphertext_blob: Blob [Length(1, 6144)],
        }
        optional {
            /// The pairs it was encrypted with.
            encryption_context: EncryptionContext,
            /// What the mark is raised to; without it, it is only read.
            value: i64 [Range(1, i64::MAX)],
            /// Recorded: the owner goes on from a state that is older than the mark.
            accept_older: bool,
        }
    }
}
