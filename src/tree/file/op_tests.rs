//! Operations on a file, for tests that make them up: what they do to the file, and to a plain byte vector.
#![cfg(test)]

use proptest::prelude::*;

use super::lower::fault::{self, Fault};
use super::lower::trace;
use super::{Allocate, FileIo};
use crate::format::layout::BLOCK;
use crate::tree::FsError;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Write(u64, usize, u8),
    Truncate(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Reserve(u64, u64, bool),
    Read(u64, usize),
    Seal,
    Sync,
    /// A sync, during which somebody else does something.
    SyncWhile(Box<Op>),
    /// An operation of which one lower call fails, that many after the first.
    Failing(u32, Box<Op>),
    /// What waits is put in place.
    Flush,
    /// The log goes on in its other half.
    TurnLog,
    Remount,
    DropKeys,
}

/// Offsets around the places where the layout changes: blocks, the inline limit, head tags, groups.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..20_000_u64,
        2 => (0..8_u64, 0..64_u64).prop_map(|(n, d)| n * BLOCK + d),
        2 => (90..100_u64, 0..8192_u64).prop_map(|(n, d)| n * BLOCK + d),
        1 => (236..244_u64, 0..8192_u64).prop_map(|(n, d)| n * BLOCK + d),
        1 => 0..1_700_000_u64,
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let len =
        || prop_oneof![3 => 1..5000_u64, 1 => 1..200_000_u64, 1 => Just(BLOCK), 1 => 600_000..700_000_u64];
    prop_oneof![
        8 => (place(), len(), any::<u8>()).prop_map(|(o, l, b)| Op::Write(o, l as usize, b)),
        3 => place().prop_map(Op::Truncate),
        2 => (place(), len()).prop_map(|(o, l)| Op::Punch(o, l)),
        1 => (place(), len(), any::<bool>()).prop_map(|(o, l, k)| Op::Zero(o, l, k)),
        1 => (place(), len(), any::<bool>()).prop_map(|(o, l, k)| Op::Reserve(o, l, k)),
        4 => (place(), len()).prop_map(|(o, l)| Op::Read(o, l as usize)),
        1 => Just(Op::Seal),
        1 => Just(Op::Sync),
        2 => Just(Op::Remount),
        1 => Just(Op::DropKeys),
    ]
}

pub(super) fn pattern(offset: u64, len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64).map(|i| ((offset + i) % 251) as u8 ^ seed).collect()
}

/// What the operation does to a plain file.
pub(super) fn apply_to_model(model: &mut Vec<u8>, op: &Op) {
    let clear = |model: &mut Vec<u8>, offset: u64, len: u64| {
        let end = ((offset + len) as usize).min(model.len());
        let start = (offset as usize).min(end);
        model[start..end].fill(0);
    };
    match *op {
        Op::SyncWhile(ref other) | Op::Failing(_, ref other) => apply_to_model(model, other),
        Op::Write(offset, len, seed) => {
            let end = offset as usize + len;
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].copy_from_slice(&pattern(offset, len, seed));
        }
        Op::Truncate(size) => model.resize(size as usize, 0),
        Op::Punch(offset, len) => clear(model, offset, len),
        Op::Zero(offset, len, keep) => {
            clear(model, offset, len);
            if !keep {
                model.resize(model.len().max((offset + len) as usize), 0);
            }
        }
        Op::Reserve(offset, len, keep) if !keep => model.resize(model.len().max((offset + len) as usize), 0),
        _ => {}
    }
}

pub(super) fn apply_to_file(file: &FileIo, op: &Op) -> Result<(), FsError> {
    apply_telling(file, op, &|| {})
}

/// The same; a sync calls `durable` when whoever waits for it is answered.
pub(super) fn apply_telling(file: &FileIo, op: &Op, durable: &dyn Fn()) -> Result<(), FsError> {
    match *op {
        Op::Write(offset, len, seed) => file.write(offset, &pattern(offset, len, seed)),
        Op::Truncate(size) => file.truncate(size),
        Op::Punch(offset, len) => file.allocate(Allocate::Punch, offset, len),
        Op::Zero(offset, len, keep_size) => file.allocate(Allocate::Zero { keep_size }, offset, len),
        Op::Reserve(offset, len, keep_size) => file.allocate(Allocate::Reserve { keep_size }, offset, len),
        Op::Seal => file.seal(),
        Op::Sync => file.sync_telling(true, durable),
        Op::SyncWhile(ref what) => {
            let (other, what) = (file.me.upgrade().unwrap(), what.clone());
            let inode = lower_inode(file);
            trace::during_sync(inode, move || apply_to_file(&other, &what).unwrap());
            let done = file.sync(true);
            // The log was enough: then it comes after the sync.
            trace::sync_has_begun(inode);
            done
        }
        Op::Failing(at, ref what) => {
            fault::after(Some((at, Fault::Full)));
            let done = apply_to_file(file, what);
            fault::clear();
            done
        }
        Op::Flush => file.flush(),
        Op::TurnLog => {
            file.context.log.as_ref().unwrap().leave_half();
            Ok(())
        }
        Op::DropKeys => {
            file.drop_keys();
            Ok(())
        }
        Op::Read(..) | Op::Remount => Ok(()),
    }
}

pub(super) fn lower_inode(file: &FileIo) -> u64 {
    rustix::fs::fstat(file.lower_fd()).unwrap().st_ino
}
