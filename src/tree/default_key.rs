//! The key that files of a directory take: chosen by an extended attribute that no listing shows, inherited by new
//! directories, and for one file by the same attribute while it is empty.
//!
//! Called where files and directories are made and where attributes are set and read. The value is sealed as that of any
//! attribute, and bound to its directory. Must never let a key be chosen that the volume record does not name.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::attr::Kind;
use super::dir::Dir;
use super::dir_record;
use super::namespace::Tree;
use super::node::Node;
use super::{Asker, FsError, KeyError};
use crate::crypto::Place;
use crate::format::xattr as codec;
use crate::sys::at;

/// The attribute by which a key is chosen; its value is the ARN.
pub const KEY_ATTRIBUTE: &str = "user.kmsfs.key";
const NAME: &[u8] = KEY_ATTRIBUTE.as_bytes();

impl Tree {
    /// The key that new files in `dir` take; `None` for the volume's default key.
    pub(super) fn default_key(&self, dir: &Dir) -> Result<Option<Arc<str>>, FsError> {
        dir.default_key(|| {
            let sealed = match at::xattr(&dir.fd, self.lower_key_attribute()?.as_bytes()) {
                Ok(sealed) => sealed,
                Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let value = codec::open_value(&dir.keys.xattr, &dir.id, NAME, &sealed).ok();
            let text = value.and_then(|value| String::from_utf8(value).ok());
            text.map(|text| Some(text.into())).ok_or_else(|| {
                FsError::Corrupt(format!("the choice of a key of directory {} does not open", dir.node_id))
            })
        })
    }

    /// The key that a file gets with its first byte, by the directory it lies in.
    pub(super) fn key_for(&self, node: &Node) -> Result<Option<Arc<str>>, FsError> {
        match node.by_name(|link| self.default_key(&*self.dir(link.parent)?)) {
            // What lies there already must open, whatever became of the choice; removing that would do the same.
            Err(FsError::Os(Errno::NOENT) | FsError::Corrupt(_)) => Ok(None),
            found => found,
        }
    }

    /// Hands the choice of `parent` on to the new directory `made`, whose record for `place` is there.
    pub(super) fn inherit_key(
        &self,
        parent: &Dir,
        made: &OwnedFd,
        place: Option<&Place>,
    ) -> Result<(), FsError> {
        let Some(key) = self.default_key(parent)? else { return Ok(()) };
        let record = dir_record::read(made)?.ok_or(FsError::Os(Errno::IO))?;
        let id = dir_record::identity(&self.volume_key, &record, place)?;
        let sealed = codec::seal_value(&self.volume_key.dir_key(&id).xattr, &id, NAME, key.as_bytes());
        let lower = self.lower_key_attribute()?;
        Ok(at::set_xattr(made.as_fd(), lower.as_bytes(), &sealed, XattrFlags::empty())?)
    }

    /// Chooses the key of a directory, or that of a file that holds nothing yet.
    pub(super) fn choose_key(&self, node: &Arc<Node>, value: &[u8], asker: Asker) -> Result<(), FsError> {
        let key = std::str::from_utf8(value).map_err(|_| FsError::Os(Errno::INVAL))?;
        if !self.files.keys.knows(key) {
            let why =
                format!("{key} is none of the volume's keys; 'kmsfs default' and 'kmsfs cp' make it one");
            return Err(FsError::Key(KeyError::Disabled(why)));
        }
        // Whoever chooses it must be able to use it, lest files below cannot be made at all.
        let fresh = || Ok(self.files.keys.fresh(Some(key), asker.user())?);
        match node.kind {
            Kind::Dir => {
                drop(self.with_keys(asker.user(), fresh)?);
                let dir = self.dir(node.id)?;
                let sealed = codec::seal_value(&dir.keys.xattr, &dir.id, NAME, value);
                let change = self.change();
                change.of_node(node)?;
                at::set_xattr(&dir.fd, self.lower_key_attribute()?.as_bytes(), &sealed, XattrFlags::empty())?;
                dir.forget_default_key();
                Ok(())
            }
            Kind::File => self.with_changed_file(node, Asker::Mount, |file| file.io.begin_under(fresh)),
            _ => Err(FsError::Os(Errno::OPNOTSUPP)),
        }
    }

    /// The key chosen for a directory, or the one that a file is under.
    pub(super) fn chosen_key(&self, node: &Arc<Node>) -> Result<Vec<u8>, FsError> {
        let key = match node.kind {
            Kind::Dir => self.default_key(&*self.dir(node.id)?)?.map(|key| key.as_bytes().to_vec()),
            Kind::File => {
                self.with_file(node, false, Asker::Mount, |file| file.io.key_arn())?.map(String::into_bytes)
            }
            _ => None,
        };
        key.ok_or(FsError::Os(Errno::NODATA))
    }

    /// Takes the choice of a directory back. A file keeps its key.
    pub(super) fn forget_key(&self, node: &Arc<Node>) -> Result<(), FsError> {
        if node.kind != Kind::Dir {
            return Err(FsError::Os(Errno::PERM));
        }
        let dir = self.dir(node.id)?;
        let change = self.change();
        change.of_node(node)?;
        at::remove_xattr(&dir.fd, self.lower_key_attribute()?.as_bytes())?;
        dir.forget_default_key();
        Ok(())
    }

    fn lower_key_attribute(&self) -> Result<String, FsError> {
        codec::lower_name(&self.volume_key, codec::PREFIX, NAME).ok_or(FsError::Os(Errno::RANGE))
    }
}
