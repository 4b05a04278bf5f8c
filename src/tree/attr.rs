//! What `stat` tells of an inode, in plaintext terms, and what `setattr` may change.

use rustix::fs::{FileType, Stat, Timespec};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl Kind {
    /// The kind in the type bits of `mode`; `None` for a type the kernel does not have.
    pub fn of_mode(mode: u32) -> Option<Self> {
        Self::of_type(FileType::from_raw_mode(mode))
    }

    /// The kind of a lower entry; `None` where the lower filesystem does not tell.
    pub fn of_type(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Dir),
            FileType::Symlink => Some(Self::Symlink),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::CharacterDevice => Some(Self::CharDevice),
            FileType::BlockDevice => Some(Self::BlockDevice),
            FileType::Unknown => None,
        }
    }
}

/// A point in time: seconds since the epoch, and nanoseconds from 0 to 999,999,999 after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanoseconds: u32,
}

impl From<Time> for Timespec {
    fn from(t: Time) -> Self {
        Self { tv_sec: t.seconds, tv_nsec: i64::from(t.nanoseconds) }
    }
}

/// Attributes of an inode as the mount shows them.
#[derive(Debug, Clone, Copy)]
pub struct Attr {
    /// Node id, which is the inode number.
    pub node_id: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky (07777).
    pub permissions: u32,
    /// Plaintext size in bytes.
    pub size: u64,
    /// Lower blocks of 512 bytes.
    pub blocks: u64,
    /// Names of the inode.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Last read.
    pub accessed: Time,
    /// Last write.
    pub modified: Time,
    /// Last change of the inode.
    pub changed: Time,
}

fn time(seconds: i64, nanoseconds: u64) -> Time {
    Time { seconds, nanoseconds: nanoseconds as u32 }
}

/// The time of the last write of a lower inode.
pub(super) fn modified(stat: &Stat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

impl Attr {
    /// From the lower status, with the plaintext `size`. `None` for a type the kernel does not have.
    pub fn of(node_id: u64, stat: &Stat, size: u64) -> Option<Self> {
        Some(Self {
            node_id,
            kind: Kind::of_mode(stat.st_mode)?,
            permissions: stat.st_mode & 0o7777,
            size,
            blocks: stat.st_blocks as u64,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            accessed: time(stat.st_atime, stat.st_atime_nsec),
            modified: modified(stat),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

/// A new value for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call, by the lower filesystem's clock.
    Now,
    /// A given time.
    At(Time),
}

/// What to change; `None` keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Plaintext size.
    pub size: Option<u64>,
    /// Time of last read.
    pub accessed: Option<SetTime>,
    /// Time of last write.
    pub modified: Option<SetTime>,
}

/// Who asks, as far as a new object's owner and the set-id rules need it.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, for its supplementary groups.
    pub pid: u32,
}
