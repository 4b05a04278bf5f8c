//! Positioned I/O on one lower file. Called by the rest of `file`. Knows nothing of the format.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

/// The lower file of one regular file.
#[derive(Debug)]
pub(super) struct Lower(pub(super) OwnedFd);

impl Lower {
    /// Reads at `offset` until `out` is full or the file ends; gives the bytes read.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        while done < out.len() {
            match rustix::io::pread(&self.0, &mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `data` at `offset`; on an error tells also how many bytes were written before it.
    pub(super) fn write_at(&self, data: &[u8], offset: u64) -> Result<(), (usize, Errno)> {
        #[cfg(test)]
        let (cut, failure) = fault::admit(data.len(), offset);
        #[cfg(test)]
        let data = &data[..cut];
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&self.0, &data[done..], offset + done as u64) {
                Ok(0) => return Err((done, Errno::IO)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err((done, e)),
            }
        }
        #[cfg(test)]
        if let Some(e) = failure {
            return Err((done, e));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> Result<u64, Errno> {
        Ok(rustix::fs::fstat(&self.0)?.st_size as u64)
    }

    pub(super) fn set_len(&self, len: u64) -> Result<(), Errno> {
        #[cfg(test)]
        fault::admit(1, 0).1.map_or(Ok(()), Err)?;
        rustix::fs::ftruncate(&self.0, len)
    }

    pub(super) fn sync(&self, data_only: bool) -> Result<(), Errno> {
        if data_only { rustix::fs::fdatasync(&self.0) } else { rustix::fs::fsync(&self.0) }
    }

    pub(super) fn reserve(&self, offset: u64, len: u64) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, len)
    }

    /// Gives the space of a range back. A lower filesystem that cannot keeps it; the tags say hole all the same.
    pub(super) fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        #[cfg(test)]
        fault::admit(1, 0).1.map_or(Ok(()), Err)?;
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        match rustix::fs::fallocate(&self.0, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => other,
        }
    }

    /// The first offset from `offset` on that the lower filesystem says holds data; `None` at the end.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A filesystem that cannot tell: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e),
        }
    }

    /// Runs `write`, then puts the modification time back: what we write of our own accord is not the user's change.
    pub(super) fn keeping_mtime<E: From<Errno>>(
        &self,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let before = rustix::fs::fstat(self.0.as_fd())?;
        write()?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as _ },
        };
        Ok(rustix::fs::futimens(&self.0, &times)?)
    }
}

/// Faults at the n-th change of the lower tree, for tests: that change is cut at a page edge.
#[cfg(test)]
pub(in crate::tree) mod fault {
    use std::cell::Cell;

    use rustix::io::Errno;

    /// What happens from the n-th change on.
    #[derive(Clone, Copy)]
    pub(in crate::tree) enum Fault {
        /// The daemon is killed: no later change happens.
        Kill,
        /// The disk is full for this one change.
        Full,
    }

    thread_local! {
        static LEFT: Cell<Option<(u32, Fault)>> = const { Cell::new(None) };
    }

    /// The fault comes after `changes` more changes; `None` takes it back.
    pub(in crate::tree) fn after(plan: Option<(u32, Fault)>) {
        LEFT.set(plan);
    }

    /// How many bytes of a change of `len` bytes at `offset` are carried out, and the error that follows.
    pub(super) fn admit(len: usize, offset: u64) -> (usize, Option<Errno>) {
        let Some((left, fault)) = LEFT.get() else { return (len, None) };
        if left > 0 {
            LEFT.set(Some((left - 1, fault)));
            return (len, None);
        }
        // Within one page a write is whole or not at all; a longer one is cut after some of its pages.
        let to_page_edge = 4096 - (offset % 4096) as usize;
        let cut = if len <= to_page_edge { 0 } else { to_page_edge + (len - to_page_edge) / 2 / 4096 * 4096 };
        match fault {
            Fault::Full => {
                LEFT.set(None);
                (cut, Some(Errno::NOSPC))
            }
            Fault::Kill => {
                LEFT.set(Some((0, Fault::Kill)));
                let first = !DEAD.replace(true);
                (if first { cut } else { 0 }, Some(Errno::IO))
            }
        }
    }

    thread_local! {
        static DEAD: Cell<bool> = const { Cell::new(false) };
    }

    /// Back to a machine without faults.
    pub(in crate::tree) fn clear() {
        LEFT.set(None);
        DEAD.set(false);
    }
}
