//! Extended attributes: encrypted and bound to their owner, but for ACLs, which the lower filesystem must enforce.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use super::attr::{Caller, Kind};
use super::default_key::KEY_ATTRIBUTE;
use super::dir::DEFAULT_ACL;
use super::namespace::Tree;
use super::node::Node;
use super::{Asker, FsError};
use crate::crypto::Aead;
use crate::format::xattr as codec;
use crate::sys::at;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const CAPABILITY: &[u8] = b"security.capability";
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const TRUSTED: &[u8] = b"trusted.";
const SET_GID: u32 = 0o2000;

/// Which way an attribute takes.
enum Route {
    /// As it is, to the lower inode.
    Passed,
    /// Under this lower name, encrypted.
    Sealed(String),
}

/// How `set_xattr` treats an attribute that exists or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// Fail when it exists.
    Create,
    /// Fail when it does not exist.
    Replace,
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL.as_bytes()
}

/// `user.` attributes are not allowed on these, by the kernel's rule, so ours go to `trusted.`.
fn prefix_for(kind: Kind) -> &'static str {
    if matches!(kind, Kind::File | Kind::Dir) { codec::PREFIX } else { codec::SPECIAL_PREFIX }
}

fn no_header(id: u64) -> FsError {
    FsError::Corrupt(format!("file {id} has extended attributes, but no header with their key"))
}

impl Tree {
    fn route(&self, node: &Node, name: &[u8]) -> Result<Route, FsError> {
        if is_acl(name) {
            return Ok(Route::Passed);
        }
        if !NAMESPACES.iter().any(|space| name.len() > space.len() && name.starts_with(space)) {
            return Err(FsError::Os(Errno::OPNOTSUPP));
        }
        let lower = codec::lower_name(&self.volume_key, prefix_for(node.kind), name);
        lower.map(Route::Sealed).ok_or(FsError::Os(Errno::RANGE))
    }

    /// Runs `action` with the cipher and the owner id of the node's attribute values.
    fn with_xattr_key<R>(
        &self,
        node: &Arc<Node>,
        write: bool,
        asker: Asker,
        action: impl Fn(&Aead, &[u8; 16]) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        match node.kind {
            Kind::File if write => self.with_changed_file(node, asker, |file| {
                let (keys, id) = file.io.keys_for_attributes()?;
                action(&keys.xattr, &id.0)
            }),
            Kind::File => self.with_file(node, false, asker, |file| {
                let (keys, id) = file.io.keys_for_read()?.ok_or_else(|| no_header(node.id))?;
                action(&keys.xattr, &id.0)
            }),
            _ => {
                let change = write.then(|| self.change());
                if let Some(change) = &change {
                    change.of_node(node)?;
                }
                self.with_key_of_special(node, action)
            }
        }
    }

    /// The same for what is no file.
    fn with_key_of_special<R>(
        &self,
        node: &Node,
        action: impl Fn(&Aead, &[u8; 16]) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        if node.kind == Kind::Dir {
            let dir = self.dir(node.id)?;
            return action(&dir.keys.xattr, &dir.id);
        }
        action(&self.volume_key.special_xattr, &codec::NO_OWNER)
    }

    /// The value of an attribute. One that is not there costs no key.
    pub fn xattr(&self, id: u64, name: &[u8], asker: Asker) -> Result<Vec<u8>, FsError> {
        let node = self.node(id)?;
        if name == KEY_ATTRIBUTE.as_bytes() {
            return self.chosen_key(&node);
        }
        if name == CAPABILITY && node.lacks_capability() {
            return Err(FsError::Os(Errno::NODATA));
        }
        let lower = match self.route(&node, name)? {
            Route::Passed => return self.lower_xattr(&node, name),
            Route::Sealed(lower) => lower,
        };
        let sealed = self.lower_xattr(&node, lower.as_bytes())?;
        self.with_xattr_key(&node, false, asker, |key, owner| {
            codec::open_value(key, owner, name, &sealed)
                .map_err(|_| FsError::Corrupt(format!("an extended attribute of inode {id} does not open")))
        })
    }

    /// The value of an attribute of the lower inode, in one call where it goes: a listing asks this of every file.
    fn lower_xattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if let Some(found) = self.xattr_by_name(node, name) {
            return Ok(found?);
        }
        let inode = self.inode(node)?;
        Ok(at::xattr(&inode, name)?)
    }

    /// The same by a name of the node. `None` where that may have become another inode's meanwhile, or is not at hand.
    fn xattr_by_name(&self, node: &Node, name: &[u8]) -> Option<Result<Vec<u8>, Errno>> {
        if node.kind == Kind::Dir || node.pinned().is_some() {
            return None;
        }
        let steady = self.gate.steady_names()?;
        let link = node.link()?;
        let dir = self.dirs.find(link.parent)?;
        let found = at::xattr_of_entry(&dir.fd, link.name.as_bytes(), name);
        (self.gate.steady_names() == Some(steady) && found != Err(Errno::NOENT)).then_some(found)
    }

    /// Sets an attribute.
    pub fn set_xattr(
        &self,
        id: u64,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        caller: Caller,
        asker: Asker,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let flags = match mode {
            XattrMode::Any => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        let node = self.node(id)?;
        if name == KEY_ATTRIBUTE.as_bytes() {
            return self.choose_key(&node, value, asker);
        }
        if name == CAPABILITY {
            node.note_capability();
        }
        let route = self.route(&node, name)?;
        let fd = self.inode(&node)?;
        match route {
            Route::Passed => {
                let change = self.change();
                change.of_node(&node)?;
                at::set_xattr(&fd, name, value, flags)?;
                self.acl_changed(&node, name, caller)
            }
            Route::Sealed(lower) => self.with_xattr_key(&node, true, asker, |key, owner| {
                let sealed = codec::seal_value(key, owner, name, value);
                Ok(at::set_xattr(&fd, lower.as_bytes(), &sealed, flags)?)
            }),
        }
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, id: u64, name: &[u8], caller: Caller) -> Result<(), FsError> {
        self.check_writable()?;
        let node = self.node(id)?;
        if name == KEY_ATTRIBUTE.as_bytes() {
            return self.forget_key(&node);
        }
        let route = self.route(&node, name)?;
        let fd = self.inode(&node)?;
        let change = self.change();
        change.of_node(&node)?;
        match route {
            Route::Passed => {
                at::remove_xattr(&fd, name)?;
                self.acl_changed(&node, name, caller)
            }
            Route::Sealed(lower) => Ok(at::remove_xattr(&fd, lower.as_bytes())?),
        }
    }

    /// A caller outside the file's group does not keep set-group-id over a change of its ACL.
    fn acl_changed(&self, node: &Node, name: &[u8], caller: Caller) -> Result<(), FsError> {
        if name == DEFAULT_ACL.as_bytes() {
            if let Some(dir) = self.dirs.find(node.id) {
                dir.forget_default_acl();
            }
            return Ok(());
        }
        if caller.uid == 0 {
            return Ok(());
        }
        let fd = self.inode(node)?;
        let stat = fs::fstat(fd.as_fd())?;
        let outside = stat.st_gid != caller.gid && !at::groups_of(caller.pid).contains(&stat.st_gid);
        if stat.st_mode & SET_GID != 0 && outside {
            at::set_mode(&fd, stat.st_mode & 0o7777 & !SET_GID)?;
        }
        Ok(())
    }

    /// The names of a node's attributes; those of `trusted.` only for a caller who may see them.
    pub fn xattr_names(&self, id: u64, caller: Caller) -> Result<Vec<Vec<u8>>, FsError> {
        let node = self.node(id)?;
        let fd = self.inode(&node)?;
        let prefix = prefix_for(node.kind);
        let plain = |lower: Vec<u8>| match codec::plain_name(&self.volume_key, prefix, &lower) {
            Some(name) => name.ok(),
            None => is_acl(&lower).then_some(lower),
        };
        let visible = |name: &Vec<u8>| {
            (caller.uid == 0 || !name.starts_with(TRUSTED)) && name != KEY_ATTRIBUTE.as_bytes()
        };
        Ok(at::list_xattrs(&fd)?.into_iter().filter_map(plain).filter(visible).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ROOT_ID;
    use crate::tree::close::tests::{Bench, written};

    #[test]
    fn an_attribute_is_read_by_the_name_of_its_file_only_while_no_name_changes() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 100]);
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        tree.set_xattr(id, b"user.a", b"value", XattrMode::Any, caller, Asker::Mount).unwrap();
        let node = tree.node(id).unwrap();
        let Route::Sealed(lower) = tree.route(&node, b"user.a").unwrap() else { panic!("not encrypted") };
        let by_name = || tree.xattr_by_name(&node, lower.as_bytes());
        let value = || tree.xattr(id, b"user.a", Asker::Mount).unwrap();
        assert!(by_name().unwrap().is_ok());
        assert_eq!(by_name().map(|_| value()), Some(b"value".to_vec()));
        {
            let _changing = tree.change_names();
            assert!(by_name().is_none());
            assert_eq!(value(), b"value");
        }
        assert!(by_name().unwrap().is_ok());
        tree.unlink(ROOT_ID, b"file").unwrap();
        assert!(by_name().is_none(), "it has no name");
        assert_eq!(value(), b"value");
    }
}
