//! Inode flags (ioctl_iflags(2), chattr(1)): those of the lower inode, as far as the mount can keep what they promise.

use std::os::fd::AsFd;

use rustix::fs::{self, IFlags, OFlags};
use rustix::io::Errno;

use super::FsError;
use super::attr::Kind;
use super::namespace::Tree;
use super::node::Node;
use crate::sys::at;

/// What may be changed: hints and policies of the lower filesystem that leave names and contents as they are.
/// Append-only is not among them, since the header page of a file changes with every write, nor is casefolding,
/// which would take two encrypted names for one.
const CHANGEABLE: IFlags = IFlags::NODUMP
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::IMMUTABLE)
    .union(IFlags::NOCOW)
    .union(IFlags::TOPDIR)
    .union(IFlags::PROJECT_INHERIT)
    .union(IFlags::COMPRESSED);

impl Tree {
    /// The flags of a file or directory. ENOTTY where the lower filesystem has none.
    pub fn flags(&self, id: u64) -> Result<u32, FsError> {
        let node = self.node(id)?;
        self.on_readable(&node, |fd| Ok(fs::ioctl_getflags(fd)?.bits()))
    }

    /// Sets the flags; EOPNOTSUPP for a change that the mount could not honour. The kernel has checked the caller.
    pub fn set_flags(&self, id: u64, flags: u32) -> Result<(), FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        let change = self.change();
        change.of_node(&node)?;
        let wanted = IFlags::from_bits_retain(flags);
        self.on_readable(&node, |fd| {
            let changed = fs::ioctl_getflags(fd)? ^ wanted;
            if !CHANGEABLE.contains(changed) {
                return Err(FsError::Os(Errno::OPNOTSUPP));
            }
            if changed.contains(IFlags::IMMUTABLE) && wanted.contains(IFlags::IMMUTABLE) {
                return self.set_immutable(&node, || Ok(fs::ioctl_setflags(fd, wanted)?));
            }
            Ok(fs::ioctl_setflags(fd, wanted)?)
        })
    }

    /// Does `set`, which makes the file of `node` immutable, while it is closed. A descriptor from before can be opened
    /// for writing in the mount, and every write to it fails, at the worst after its writer has closed.
    fn set_immutable(&self, node: &Node, set: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        let mut slot = node.file.write();
        // What a writer, or the kernel on its behalf, still has to write could not be written any more.
        if slot.writers > 0 {
            return Err(FsError::Os(Errno::BUSY));
        }
        self.close(node, &mut slot)?;
        set()
    }

    /// Runs `action` on a descriptor that takes these calls, which `O_PATH` does not.
    fn on_readable<R>(
        &self,
        node: &Node,
        action: impl Fn(std::os::fd::BorrowedFd<'_>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let inode = self.inode(node)?;
        let open = || match node.kind {
            Kind::Dir => at::reopen_dir(&inode),
            Kind::File => at::reopen(&inode, OFlags::RDONLY),
            _ => Err(Errno::NOTTY),
        };
        action(self.spare_descriptors(open)?.as_fd())
    }
}
