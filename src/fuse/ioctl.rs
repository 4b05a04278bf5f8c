//! ioctl(2): the inode flags. What is not known is ENOTTY, as for any file.

use fuser::{Errno, INodeNo, ReplyIoctl};

use super::errno::report;
use super::server::Server;

/// FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h; the value has 32 bits, whatever the name says.
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR, which the kernel asks for before it sets flags.
const GET_FSXATTR: u32 = 0x801c_581f;
/// Length of its `struct fsxattr`: the flags, and seven words of extents and projects that are not told.
const FSXATTR_LEN: usize = 28;
/// Flags of one and of the other ioctl that mean the same: sync, immutable, append, no-dump, no-atime, project.
const SAME: [(u32, u32); 6] =
    [(0x8, 0x20), (0x10, 0x8), (0x20, 0x10), (0x40, 0x80), (0x80, 0x40), (0x2000_0000, 0x200)];

/// Answers one ioctl with the argument `data`.
pub fn answer(server: &Server, id: INodeNo, command: u32, data: &[u8], reply: ReplyIoctl) {
    match (command, data.first_chunk::<4>()) {
        (GET_FLAGS, _) => server.answer(
            id.0,
            move |tree| tree.flags(id.0),
            move |flags| match flags {
                Ok(flags) => reply.ioctl(0, &flags.to_ne_bytes()),
                Err(e) => reply.error(report(id.0, &e)),
            },
        ),
        (GET_FSXATTR, _) => server.answer(
            id.0,
            move |tree| tree.flags(id.0),
            move |flags| match flags {
                Ok(flags) => reply.ioctl(0, &fsxattr(flags)),
                Err(e) => reply.error(report(id.0, &e)),
            },
        ),
        (SET_FLAGS, Some(flags)) => {
            let flags = u32::from_ne_bytes(*flags);
            server.answer(
                id.0,
                move |tree| tree.set_flags(id.0, flags),
                move |done| match done {
                    Ok(()) => reply.ioctl(0, &[]),
                    Err(e) => reply.error(report(id.0, &e)),
                },
            );
        }
        _ => reply.error(Errno::ENOTTY),
    }
}

fn fsxattr(flags: u32) -> [u8; FSXATTR_LEN] {
    let same = SAME.iter().filter(|(own, _)| flags & own != 0);
    let words = same.fold(0, |sum, (_, theirs)| sum | theirs);
    let mut out = [0; FSXATTR_LEN];
    out[..4].copy_from_slice(&u32::to_ne_bytes(words));
    out
}
