//! Answers, and flags, in the library's terms.

use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, ReplyXattr,
};

use super::attr::file_attr;
use super::errno::report;
use crate::tree::{Allocate, Attr, FsError};

/// Answers with a new or found entry.
pub fn reply_entry(reply: ReplyEntry, ttl: Duration, parent: INodeNo, made: Result<(Attr, u32), FsError>) {
    match made {
        Ok((attr, generation)) => reply.entry(&ttl, &file_attr(&attr), Generation(generation.into())),
        Err(e) => reply.error(report(parent.0, &e)),
    }
}

/// Answers with attributes.
pub fn reply_attr(reply: ReplyAttr, ttl: Duration, id: INodeNo, done: Result<Attr, FsError>) {
    match done {
        Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
        Err(e) => reply.error(report(id.0, &e)),
    }
}

/// Answers with success or why not.
pub fn reply_empty(reply: ReplyEmpty, id: INodeNo, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(report(id.0, &e)),
    }
}

/// Answers with the bytes read.
pub fn reply_data(reply: ReplyData, id: INodeNo, read: Result<Vec<u8>, FsError>) {
    match read {
        Ok(data) => reply.data(&data),
        Err(e) => reply.error(report(id.0, &e)),
    }
}

/// Answers with how many bytes were written.
pub fn reply_written(reply: ReplyWrite, id: INodeNo, written: Result<usize, FsError>) {
    match written {
        Ok(len) => reply.written(len as u32),
        Err(e) => reply.error(report(id.0, &e)),
    }
}

/// Gives a value of which the caller said how much fits; 0 asks for the length.
pub fn reply_sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    match room as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// How the kernel treats an open file: the cache stays valid, as no one else changes the file.
pub fn open_flags(flags: i32) -> FopenFlags {
    if flags & libc::O_DIRECT == 0 {
        FopenFlags::FOPEN_KEEP_CACHE
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    }
}

/// What fallocate(2) asks for; `None` for what is not offered (collapse, insert, unshare).
pub fn allocation(mode: i32) -> Option<Allocate> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(Allocate::Reserve { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Allocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::Zero { keep_size }),
        _ => None,
    }
}

/// "No such entry", which the kernel may remember.
pub fn absent_entry(reply: ReplyEntry, ttl: Duration) {
    reply.entry(&ttl, &nameless(0, FileType::RegularFile), Generation(0));
}

/// Attributes for an answer that names no inode.
pub fn nameless(id: u64, kind: FileType) -> fuser::FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    fuser::FileAttr {
        ino: INodeNo(id),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
