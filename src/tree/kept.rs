//! Files that no handle counts on any more but that stay open for the next one: sealed, with descriptor, header and key.
//!
//! Called where files are opened, closed and lose their last name. Programs open the same files again and again; without
//! this each time costs four calls on the lower filesystem. Must never keep what is not sealed, what has no name (its
//! space is to be free again) or what was never written (its reserved key would outlive a rotation).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::namespace::Tree;
use super::node::{FileSlot, Node};

/// Files kept at most, each a descriptor and about 10 KiB.
const KEPT_MAX: usize = 1024;

/// The kept files, the one to go first in front.
pub(super) struct Kept {
    /// How many there may be.
    pub max: usize,
    /// By node id: a node that the kernel forgot must not live on here.
    queue: Mutex<VecDeque<u64>>,
    unused: AtomicUsize,
}

impl Kept {
    /// None is kept yet; never more than `descriptors` can be.
    pub fn new(descriptors: usize) -> Self {
        Self { max: descriptors.min(KEPT_MAX), queue: Mutex::default(), unused: AtomicUsize::new(0) }
    }

    /// Files kept that no handle counts on.
    pub fn len(&self) -> usize {
        self.unused.load(Ordering::Relaxed)
    }

    /// A handle counts on the file again, or it is closed.
    pub fn take(&self, slot: &mut FileSlot) {
        if std::mem::take(&mut slot.kept) {
            self.unused.fetch_sub(1, Ordering::Relaxed);
            slot.used_again = true;
        }
    }
}

impl Tree {
    /// Keeps the sealed file of `slot`, if it may be; `true` when it is.
    pub(super) fn keep(&self, node: &Arc<Node>, slot: &mut FileSlot) -> bool {
        if slot.kept && !slot.left_open {
            return true;
        }
        let worth_it = slot.open.as_ref().is_some_and(|open| open.io.has_header());
        if !worth_it || slot.left_open || node.link().is_none() {
            return false;
        }
        slot.kept = true;
        self.kept.unused.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut slot.queued, true) {
            self.kept.queue.lock().push_back(node.id);
        }
        true
    }

    /// Closes the kept files that are too many. To be called with no file locked.
    pub(super) fn trim_kept(&self) {
        loop {
            let oldest = {
                let mut queue = self.kept.queue.lock();
                if queue.len() <= self.kept.max {
                    return;
                }
                queue.pop_front()
            };
            let Some(node) = oldest.and_then(|id| self.open_files.lock().get(&id).cloned()) else { continue };
            let mut slot = node.file.write();
            slot.queued = false;
            if slot.handles > 0 || slot.open.is_none() {
                continue; // Its next close queues it again.
            }
            if std::mem::take(&mut slot.used_again) {
                slot.queued = true;
                self.kept.queue.lock().push_back(node.id);
                continue;
            }
            self.close_kept(&node, &mut slot);
        }
    }

    /// Closes the file of a node that lost its last name, or that the kernel forgot, unless a handle counts on it.
    pub(super) fn let_go(&self, node: &Node) {
        let mut slot = node.file.write();
        if slot.handles == 0 && (slot.kept || slot.left_open) {
            self.close_kept(node, &mut slot);
        }
    }

    fn close_kept(&self, node: &Node, slot: &mut FileSlot) {
        if let Err(e) = self.close(node, slot) {
            log::debug!("file {} keeps its descriptor: {e}", node.id);
        }
    }
}
