//! Positioned I/O on one lower file. Called by the rest of `file`. Knows nothing of the format.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

#[cfg(test)]
use crate::sys::steps;

/// The lower file of one regular file.
#[derive(Debug)]
pub(super) struct Lower {
    fd: OwnedFd,
    /// What a sync that nobody waited for could not do; the next one tells.
    failed: Mutex<Option<Errno>>,
}

impl AsFd for Lower {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Lower {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, failed: Mutex::default() }
    }

    /// Reads at `offset` until `out` is full or the file ends; gives the bytes read.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        while done < out.len() {
            match rustix::io::pread(&self.fd, &mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Lets a read of what is at hand already move the time of the last read, by the rules of the lower mount.
    pub(super) fn note_access(&self) {
        let _ = rustix::io::pread(&self.fd, &mut [0], 0);
    }

    /// Writes all of `data` at `offset`; on an error tells also how many bytes were written before it.
    pub(super) fn write_at(&self, data: &[u8], offset: u64) -> Result<(), (usize, Errno)> {
        #[cfg(test)]
        steps::admit("write_at").map_err(|e| (0, e))?;
        #[cfg(test)]
        let (cut, failure) = fault::admit(data.len(), offset);
        #[cfg(test)]
        let data = &data[..cut];
        #[cfg(test)]
        fault::admit_len(offset + data.len() as u64).map_err(|e| (0, e))?;
        #[cfg(test)]
        trace::note(&self.fd, || trace::Change::Write(offset, data.to_vec()));
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&self.fd, &data[done..], offset + done as u64) {
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
        Ok(rustix::fs::fstat(&self.fd)?.st_size as u64)
    }

    /// Whether the file has no name any more.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// The modification time: seconds and nanoseconds.
    pub(super) fn modified(&self) -> Result<(i64, u32), Errno> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_mtime, stat.st_mtime_nsec as u32))
    }

    /// Sets the modification time.
    pub(super) fn set_modified(&self, (seconds, nanos): (i64, u32)) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        };
        #[cfg(test)]
        steps::admit("set_modified")?;
        rustix::fs::futimens(&self.fd, &times)
    }

    pub(super) fn set_len(&self, len: u64) -> Result<(), Errno> {
        #[cfg(test)]
        steps::admit("set_len")?;
        #[cfg(test)]
        fault::admit(1, 0).1.map_or(Ok(()), Err)?;
        #[cfg(test)]
        fault::admit_len(len)?;
        #[cfg(test)]
        trace::note(&self.fd, || trace::Change::Length(len));
        rustix::fs::ftruncate(&self.fd, len)
    }

    /// Whether the filesystem takes a file of `len` bytes (EFBIG where not). Changes nothing: the kernel checks the end of
    /// the range before the filesystem sees that there is nothing to punch.
    pub(super) fn may_reach(&self, len: u64) -> Result<(), Errno> {
        #[cfg(test)]
        fault::admit_len(len)?;
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        match rustix::fs::fallocate(&self.fd, flags, len.saturating_sub(1), 1) {
            Err(Errno::FBIG) => Err(Errno::FBIG),
            _ => Ok(()),
        }
    }

    /// Makes what was written durable (fsync(2), fdatasync(2)).
    pub(super) fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let earlier = self.failed.lock().take();
        earlier.map_or(Ok(()), Err)?;
        self.sync_now(data_only)
    }

    /// The same, of our own accord: the next sync of the file's users tells them of an error too.
    pub(super) fn sync_behind(&self) -> Result<(), Errno> {
        self.sync_now(true).inspect_err(|e| {
            log::error!("a lower file cannot be synced: {e}");
            *self.failed.lock() = Some(*e);
        })
    }

    fn sync_now(&self, data_only: bool) -> Result<(), Errno> {
        #[cfg(test)]
        steps::admit("sync_now")?;
        #[cfg(test)]
        fault::admit_sync()?;
        #[cfg(test)]
        trace::note(&self.fd, || trace::Change::Sync);
        #[cfg(test)]
        trace::sync_has_begun(rustix::fs::fstat(&self.fd).map_or(0, |stat| stat.st_ino));
        if data_only { rustix::fs::fdatasync(&self.fd) } else { rustix::fs::fsync(&self.fd) }
    }

    pub(super) fn reserve(&self, offset: u64, len: u64) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len)
    }

    /// Gives the space of a range back. A lower filesystem that cannot keeps it; the tags say hole all the same.
    pub(super) fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        #[cfg(test)]
        steps::admit("punch")?;
        #[cfg(test)]
        fault::admit(1, 0).1.map_or(Ok(()), Err)?;
        #[cfg(test)]
        trace::note(&self.fd, || trace::Change::Punch(offset, len));
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        match rustix::fs::fallocate(&self.fd, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => other,
        }
    }

    /// Has the kernel read a range that will be wanted, without waiting for it.
    pub(super) fn read_ahead(&self, offset: u64, len: usize) {
        let _ = rustix::fs::fadvise(&self.fd, offset, NonZeroU64::new(len as u64), Advice::WillNeed);
    }

    /// The first offset from `offset` on that the lower filesystem says holds data; `None` at the end.
    pub(super) fn next_data(&self, offset: u64) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.fd, SeekFrom::Data(offset)) {
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
        self.with_mtime(None, write)
    }

    /// Runs `write`, then sets the modification time to `time`, or puts back what it was before.
    pub(super) fn with_mtime<E: From<Errno>>(
        &self,
        time: Option<(i64, u32)>,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let time = time.map_or_else(|| self.modified(), Ok)?;
        write()?;
        Ok(self.set_modified(time)?)
    }
}

/// What this thread changes in the lower tree, for tests that replay parts of it.
#[cfg(test)]
pub(in crate::tree) mod trace {
    use std::cell::RefCell;
    use std::os::fd::AsFd;

    /// One change of a lower file.
    #[derive(Debug, Clone)]
    pub(in crate::tree) enum Change {
        /// Bytes at an offset.
        Write(u64, Vec<u8>),
        /// ftruncate(2)
        Length(u64),
        /// Offset and length of a hole.
        Punch(u64, u64),
        /// fsync(2)
        Sync,
    }

    thread_local! {
        static CHANGES: RefCell<Option<Vec<(u64, Change)>>> = const { RefCell::new(None) };
    }

    thread_local! {
        static DURING_SYNC: RefCell<Option<Meanwhile>> = const { RefCell::new(None) };
    }

    /// An inode, and what is done while it is synced.
    type Meanwhile = (u64, Box<dyn FnOnce()>);

    /// What happens after the next sync of the file with inode number `inode` has begun and before it ends.
    pub(in crate::tree) fn during_sync(inode: u64, what: impl FnOnce() + 'static) {
        DURING_SYNC.set(Some((inode, Box::new(what))));
    }

    /// Does what was to be done meanwhile, unless that was done.
    pub(in crate::tree) fn sync_has_begun(inode: u64) {
        if let Some((_, what)) =
            DURING_SYNC.with_borrow_mut(|planned| planned.take_if(|(of, _)| *of == inode))
        {
            what();
        }
    }

    /// From here on changes are kept, each with its file's inode number.
    pub(in crate::tree) fn start() {
        CHANGES.set(Some(Vec::new()));
    }

    /// How many there are.
    pub(in crate::tree) fn count() -> usize {
        CHANGES.with_borrow(|changes| changes.as_ref().map_or(0, Vec::len))
    }

    /// All of them; none are kept from here on.
    pub(in crate::tree) fn stop() -> Vec<(u64, Change)> {
        CHANGES.take().unwrap_or_default()
    }

    pub(super) fn note(file: impl AsFd, change: impl FnOnce() -> Change) {
        CHANGES.with_borrow_mut(|changes| {
            if let Some(changes) = changes {
                changes.push((rustix::fs::fstat(file).map_or(0, |stat| stat.st_ino), change()));
            }
        });
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
        /// One sync fails; changes are none of its business.
        NoSync,
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
        if matches!(fault, Fault::NoSync) {
            return (len, None);
        }
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
            Fault::NoSync => (len, None),
        }
    }

    /// A sync: the dead do none, and a full disk is no reason to fail.
    pub(super) fn admit_sync() -> Result<(), Errno> {
        match LEFT.get() {
            Some((_, Fault::Kill)) => admit(1, 0).1.map_or(Ok(()), Err),
            Some((0, Fault::NoSync)) => {
                LEFT.set(None);
                Err(Errno::IO)
            }
            Some((left, Fault::NoSync)) => {
                LEFT.set(Some((left - 1, Fault::NoSync)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    thread_local! {
        static DEAD: Cell<bool> = const { Cell::new(false) };
        static LONGEST: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// No lower file gets longer than `len` bytes.
    pub(in crate::tree) fn longest(len: u64) {
        LONGEST.set(len);
    }

    /// Whether a file may reach `len` bytes.
    pub(super) fn admit_len(len: u64) -> Result<(), Errno> {
        if len > LONGEST.get() { Err(Errno::FBIG) } else { Ok(()) }
    }

    /// Back to a machine without faults.
    pub(in crate::tree) fn clear() {
        LEFT.set(None);
        DEAD.set(false);
        LONGEST.set(u64::MAX);
    }
}
