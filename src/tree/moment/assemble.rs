//! Putting the flat copies of directories together to a tree, the deepest first.

use std::collections::HashMap;
use std::os::fd::AsFd;

use rustix::fs::{self, RenameFlags};
use rustix::io::Errno;

use super::{Child, Moment, NAMELESS, copy};
use crate::sys::at;

impl Moment {
    /// Makes the tree whole, below the directory that [`Moment::stage_root`] gives; to be called when all is copied and
    /// nothing changes it any more.
    pub fn assemble(&self) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let children = std::mem::take(&mut state.children);
        let parents: HashMap<u64, u64> = children.iter().map(|child| (child.inode, child.parent)).collect();
        let mut by_depth: Vec<(u32, Child)> =
            children.into_iter().map(|child| (depth(&parents, child.inode), child)).collect();
        by_depth.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        for (_, child) in &by_depth {
            let parent = self.stage_dir(child.parent)?;
            let from = child.inode.to_string();
            at::rename(&self.stage, from.as_bytes(), &parent, &child.name, RenameFlags::NOREPLACE)?;
            if let Some(stat) = state.dirs.get(&child.inode) {
                copy::plain_attributes(stat, &at::open_dir(&parent, &child.name)?)?;
            }
        }
        if let Some(stat) = state.dirs.remove(&self.root_inode) {
            copy::plain_attributes(&stat, &self.stage_dir(self.root_inode)?)?;
        }
        self.remove_nameless()
    }

    /// Copies of files whose names were found later; each stands under those by now.
    fn remove_nameless(&self) -> Result<(), Errno> {
        let dir =
            match at::open(&self.stage, NAMELESS.as_bytes(), fs::OFlags::RDONLY | fs::OFlags::DIRECTORY, 0) {
                Err(Errno::NOENT) => return Ok(()),
                other => other?,
            };
        for entry in fs::Dir::read_from(dir.as_fd())? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                at::unlink(&dir, name)?;
            }
        }
        at::rmdir(&self.stage, NAMELESS.as_bytes())
    }
}

fn depth(parents: &HashMap<u64, u64>, mut inode: u64) -> u32 {
    let mut depth = 0;
    while let Some(parent) = parents.get(&inode) {
        inode = *parent;
        depth += 1;
    }
    depth
}
