//! Files that an unclean stop left to be repaired are repaired when they are looked up: the kernel keeps the size that
//! it is told then, and would read and append by it whatever a later open finds.
//!
//! Called by `namespace`. Must cost nothing where no log of an unclean stop is left.

use std::sync::Arc;

use rustix::fs::OFlags;

use super::attr::{Attr, Kind};
use super::dir::Dir;
use super::namespace::Tree;
use super::node::Node;
use super::{Asker, FsError, KeyError};
use crate::sys::at;

impl Tree {
    /// The attributes of `node`, the lower entry `entry`, which are `attr` where there is nothing to repair. Asks for a key
    /// where there is; a file whose key is refused is told as it lies there, since it will not open.
    pub(super) fn settle(
        &self,
        node: &Arc<Node>,
        dir: &Dir,
        entry: &str,
        attr: Attr,
    ) -> Result<Attr, FsError> {
        if attr.kind != Kind::File || attr.size == 0 || !self.files.has_old_records() {
            return Ok(attr);
        }
        let open = || at::open_regular(&dir.fd, entry.as_bytes(), OFlags::RDONLY, 0);
        if !open().is_ok_and(|lower| self.files.is_in_old_records(lower)) {
            return Ok(attr);
        }
        let repaired = self.with_keys_patiently(|| {
            self.with_file(node, false, Asker::Mount, |file| {
                file.io.ensure_keys()?;
                file.io.size()
            })
        });
        match repaired {
            Ok(size) => Ok(Attr { size, ..self.attr_of(&self.stat_entry(dir, entry)?)? }),
            Err(e @ FsError::Key(KeyError::Unavailable(_) | KeyError::Absent(..))) => Err(e),
            Err(e) => {
                log::warn!("file {} cannot be repaired after an unclean stop: {e}", node.id);
                Ok(attr)
            }
        }
    }
}
