//! New names: files, directories, links, special files.
//!
//! Nothing half-made is ever seen: a directory gets its record under a temporary name and is renamed into place; a long
//! name's sidecar stands before its entry, on stable storage too. New objects belong to the caller and follow the rules of set-group-id
//! directories and default ACLs, which the lower filesystem applies.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::attr::{Attr, Caller, Kind};
use super::dir::Dir;
use super::dir_record;
use super::file::FileIo;
use super::namespace::Tree;
use super::node::OpenFile;
use super::remove::drop_sidecar;
use super::{FsError, KeyUser};
use crate::crypto::{Place, random_array};
use crate::format::dir::{DIR_RECORD, DirId};
use crate::format::link;
use crate::format::name::{self, LowerName, Sidecar};
use crate::sys::at;

const SET_ID_BITS: u32 = 0o6000;
const SET_GID: u32 = 0o2000;
const OWNER_BITS: u32 = 0o700;

/// A new object's permissions and owner.
#[derive(Debug, Clone, Copy)]
pub struct NewObject {
    /// Permission bits as asked for.
    pub permissions: u32,
    /// The caller's mask.
    pub umask: u32,
    /// The caller.
    pub caller: Caller,
}

/// A special file or a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialFile {
    /// What to make; not a directory or symbolic link.
    pub kind: Kind,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

impl Tree {
    /// Makes a regular file and opens it for one handle of `user`, which may `write` or not. Fails when the name exists.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        new: NewObject,
        write: bool,
        user: KeyUser,
    ) -> Result<(Attr, u32), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let permissions = effective_permissions(&dir, new);
        // Before the name is there: a file whose first write would find no key is not made.
        let key = self.default_key(&dir)?;
        let fresh = || Ok(self.files.keys.fresh(key.as_deref(), user)?);
        let reserved = if write { Some(self.with_keys(user, fresh)?) } else { None };
        let change = self.change_names();
        change.of_dir(&dir);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let make =
            || at::open(&dir.fd, lower.entry.as_bytes(), flags, self.first_permissions(new, permissions));
        let fd = self.with_sidecar(&dir, &lower, || self.spare_descriptors(make))?;
        change.made(&dir, &lower);
        self.hand_over(&dir, &lower, Some(&fd), permissions, new.caller)?;
        let attr = self.attr_of(&fs::fstat(&fd)?)?;
        let node = self.nodes.look_up(attr.node_id, attr.kind, parent, &lower.entry);
        node.note_new();
        let place = self.volume_key.place(&dir.id, lower.entry.as_bytes());
        let io = FileIo::new_empty(fd, self.files.clone(), reserved, place, key);
        let mut slot = node.file.write();
        slot.handles += 1;
        slot.writers += u32::from(write);
        let open = OpenFile::new(io, true);
        open.note_modified(Some(attr.modified));
        slot.open = Some(Box::new(open));
        self.note_open(&node);
        drop(slot);
        Ok((attr, node.generation()))
    }

    /// Makes a fifo, a socket, a device or a regular file that stays closed.
    pub fn make_node(
        &self,
        parent: u64,
        name: &[u8],
        file: SpecialFile,
        new: NewObject,
    ) -> Result<(Attr, u32), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let permissions = effective_permissions(&dir, new);
        let file_type = match file.kind {
            Kind::File => FileType::RegularFile,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Dir | Kind::Symlink => return Err(FsError::Os(Errno::INVAL)),
        };
        let change = self.change_names();
        change.of_dir(&dir);
        self.with_sidecar(&dir, &lower, || {
            let first = self.first_permissions(new, permissions);
            at::make_node(&dir.fd, lower.entry.as_bytes(), file_type, first, file.device)
        })?;
        change.made(&dir, &lower);
        self.hand_over(&dir, &lower, None, permissions, new.caller)?;
        self.look_up_entry(&dir, &lower.entry)
    }

    /// Makes a symbolic link to `target`.
    pub fn make_symlink(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<(Attr, u32), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let places = self.volume_key.place(&dir.id, lower.entry.as_bytes()).map(|place| [place; 2]);
        let sealed = link::seal(&self.volume_key, target, places).ok_or(FsError::Os(Errno::NAMETOOLONG))?;
        let change = self.change_names();
        change.of_dir(&dir);
        self.with_sidecar(&dir, &lower, || {
            at::make_link(sealed.as_bytes(), &dir.fd, lower.entry.as_bytes())
        })?;
        change.made(&dir, &lower);
        self.hand_over(&dir, &lower, None, 0, caller)?;
        self.look_up_entry(&dir, &lower.entry)
    }

    /// The target of a symbolic link.
    pub fn read_symlink(&self, id: u64) -> Result<Vec<u8>, FsError> {
        let node = self.node(id)?;
        if node.kind != Kind::Symlink {
            return Err(FsError::Os(Errno::INVAL));
        }
        let _steady = self.steady_places();
        let place = self.place_of(&node)?;
        let fd = self.inode(&node)?;
        let sealed = at::read_link_of(&fd)?;
        link::open(&self.volume_key, &sealed, place.as_ref())
            .map_err(|_| FsError::Corrupt(format!("the target of symbolic link {id} does not open")))
    }

    /// Gives the inode `id` another name. EPERM on a volume that binds names: an inode has one place there.
    pub fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<(Attr, u32), FsError> {
        self.check_writable()?;
        if self.volume_key.binds_names() {
            return Err(FsError::Os(Errno::PERM));
        }
        let node = self.node(id)?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let change = self.change_names();
        change.of_dir(&dir);
        change.of_node(&node)?;
        self.with_sidecar(&dir, &lower, || {
            let linked = node.by_name(|known| {
                let from = self.dir(known.parent)?;
                Ok(at::link_entry(&from.fd, known.name.as_bytes(), &dir.fd, lower.entry.as_bytes())?)
            });
            linked.map_err(|e| if let FsError::Os(e) = e { e } else { Errno::IO })
        })?;
        change.made(&dir, &lower);
        // A file that an unclean stop left is repaired when it is looked up, which may wait for its key.
        drop(change);
        self.look_up_entry(&dir, &lower.entry)
    }

    /// Makes a directory with a fresh identity.
    pub fn make_dir(&self, parent: u64, name: &[u8], new: NewObject) -> Result<(Attr, u32), FsError> {
        self.check_writable()?;
        let dir = self.dir(parent)?;
        let lower = dir.lower_name(name)?;
        let temporary = name::temporary(random_array());
        let permissions = effective_permissions(&dir, new);
        let change = self.change_names();
        change.of_dir(&dir);
        at::make_dir(&dir.fd, temporary.as_bytes(), permissions | OWNER_BITS)?;
        let place = self.volume_key.place(&dir.id, lower.entry.as_bytes());
        let furnished = self.furnish_dir(&dir, &temporary, place.as_ref(), permissions, new.caller);
        let made = furnished.and_then(|furnished| {
            self.with_sidecar(&dir, &lower, || {
                let (from, to) = (temporary.as_bytes(), lower.entry.as_bytes());
                at::rename(&dir.fd, from, &dir.fd, to, RenameFlags::NOREPLACE)
            })?;
            Ok(furnished)
        });
        let (fd, id) = made.inspect_err(|_| discard_dir(&dir, &temporary))?;
        change.made(&dir, &lower);
        let attr = self.attr_of(&fs::fstat(&fd)?)?;
        let node = self.nodes.look_up(attr.node_id, attr.kind, parent, &lower.entry);
        // It is mostly filled next.
        self.dirs.insert(Arc::new(Dir::made(&self.volume_key, attr.node_id, fd, id, &dir)));
        Ok((attr, node.generation()))
    }

    /// Puts the record into the new directory `temporary` and sets its owner and permissions; gives its identity.
    fn furnish_dir(
        &self,
        parent: &Dir,
        temporary: &str,
        place: Option<&Place>,
        permissions: u32,
        caller: Caller,
    ) -> Result<(OwnedFd, DirId), FsError> {
        let fd = self.spare_descriptors(|| at::open_dir(&parent.fd, temporary.as_bytes()))?;
        let id = dir_record::make(&self.volume_key, &fd, place)?;
        self.inherit_key(parent, &fd, place)?;
        self.give_to_caller(parent, &fd, 0, caller)?;
        if permissions & OWNER_BITS != OWNER_BITS {
            // What an inherited ACL and set-group-id made of the other bits stays.
            let mode = fs::fstat(&fd)?.st_mode & 0o7777;
            at::set_mode(&fd, mode & !(OWNER_BITS & !permissions))?;
        }
        Ok((fd, id))
    }

    /// Makes the caller own the new entry of `lower`, opened as `fd` or not at all; where that fails, the entry goes again.
    fn hand_over(
        &self,
        dir: &Dir,
        lower: &LowerName,
        fd: Option<&OwnedFd>,
        permissions: u32,
        caller: Caller,
    ) -> Result<(), FsError> {
        let opened = || self.spare_descriptors(|| at::open_path(&dir.fd, lower.entry.as_bytes()));
        let given = match fd {
            Some(fd) => self.give_to_caller(dir, fd, permissions, caller),
            None if !self.gives_to(caller) => Ok(()),
            None => opened()
                .map_err(FsError::Os)
                .and_then(|fd| self.give_to_caller(dir, &fd, permissions, caller)),
        };
        given.inspect_err(|_| {
            if let Err(e) = at::unlink(&dir.fd, lower.entry.as_bytes()) {
                log::warn!("a new entry that could not be given to its owner is left: {e}");
            }
            drop_sidecar(dir, lower);
        })
    }

    /// Whether a new object is not the caller's as it is made.
    fn gives_to(&self, caller: Caller) -> bool {
        self.can_chown && (caller.uid != 0 || caller.gid != 0)
    }

    /// The permissions to make an object with that has yet to be given to its owner: nothing that acts as another one.
    fn first_permissions(&self, new: NewObject, permissions: u32) -> u32 {
        if self.gives_to(new.caller) { permissions & !SET_ID_BITS } else { permissions }
    }

    /// Makes the caller own the new object `fd`. A set-group-id parent has given its group already.
    fn give_to_caller(
        &self,
        parent: &Dir,
        fd: &OwnedFd,
        permissions: u32,
        caller: Caller,
    ) -> Result<(), FsError> {
        if !self.gives_to(caller) {
            return Ok(());
        }
        let inherits_group = fs::fstat(&parent.fd)?.st_mode & SET_GID != 0;
        at::set_owner(fd, Some(caller.uid), (!inherits_group).then_some(caller.gid))?;
        if permissions & SET_ID_BITS != 0 {
            // A change of owner clears these.
            at::set_mode(fd.as_fd(), permissions)?;
        }
        Ok(())
    }

    /// Runs `make`, which makes the entry of `lower`, with the sidecar of a long name in place before it.
    pub(super) fn with_sidecar<R>(
        &self,
        dir: &Dir,
        lower: &LowerName,
        make: impl FnOnce() -> Result<R, Errno>,
    ) -> Result<R, FsError> {
        let Some(sidecar) = &lower.sidecar else { return Ok(make()?) };
        let _pair = dir.long_names.lock();
        let made = self.place_sidecar(dir, sidecar).and_then(|()| Ok(make()?));
        if made.is_err() {
            remove_orphan_sidecar(dir, lower);
        }
        made
    }

    /// Makes the sidecar, so that a power cut which leaves the entry leaves it too: a filesystem that stores each synced
    /// file with its own name alone (btrfs) must have the sidecar on stable storage first.
    fn place_sidecar(&self, dir: &Dir, sidecar: &Sidecar) -> Result<(), FsError> {
        match at::make_link(sidecar.target.as_bytes(), &dir.fd, sidecar.name.as_bytes()) {
            Ok(()) if at::keeps_order_of_names(&dir.fd) => Ok(()),
            Ok(()) => match self.spare_descriptors(|| at::reopen_dir(&dir.fd)) {
                // A directory that this mount may write and not read cannot be synced.
                Err(Errno::ACCESS) => Ok(()),
                opened => Ok(at::sync_dir(opened?)?),
            },
            Err(Errno::EXIST) => {
                // A leftover, or the entry's own; anything else under that name would hide the entry.
                if at::read_link(&dir.fd, sidecar.name.as_bytes())? != sidecar.target.as_bytes() {
                    return Err(FsError::Corrupt("a long name's sidecar holds another name".into()));
                }
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// The permissions to create with: an inherited ACL takes the place of the mask.
fn effective_permissions(dir: &Dir, new: NewObject) -> u32 {
    let permissions = new.permissions & 0o7777;
    if dir.has_default_acl() { permissions } else { permissions & !new.umask }
}

/// Removes a directory of ours that never got its name.
fn discard_dir(parent: &Dir, temporary: &str) {
    if let Ok(fd) = at::open_dir(&parent.fd, temporary.as_bytes()) {
        let _ = at::unlink(&fd, DIR_RECORD.as_bytes());
    }
    if let Err(e) = at::rmdir(&parent.fd, temporary.as_bytes()) {
        log::warn!("a temporary directory is left in the lower tree: {e}");
    }
}

/// Removes the sidecar of `lower` where its entry is gone.
pub(super) fn remove_orphan_sidecar(dir: &Dir, lower: &LowerName) {
    if let Some(sidecar) = &lower.sidecar
        && at::stat(&dir.fd, lower.entry.as_bytes()).is_err_and(|e| e == Errno::NOENT)
    {
        let _ = at::unlink(&dir.fd, sidecar.name.as_bytes());
    }
}
