//! Closing regular files: sealed first, then forgotten.
//!
//! A file that cannot be sealed stays open, with everything that memory knows of it, and is tried again at its next
//! use, by [`Tree::close_left_open`] now and then, and at the end of the mount.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::namespace::Tree;
use super::node::{FileSlot, Node};
use super::{FsError, KeyError, KeyUser};
use crate::logging::RateLimit;

static UNSEALED: RateLimit = RateLimit::new();

impl Tree {
    /// One handle is gone, opened to `write` or not; the last one leaves the file sealed and closed.
    pub fn release_file(&self, id: u64, write: bool) {
        if let Some(node) = self.nodes.find(id) {
            self.release(&node, write);
        }
    }

    pub(super) fn release(&self, node: &Arc<Node>, write: bool) {
        {
            let mut slot = node.file.write();
            slot.handles = slot.handles.saturating_sub(1);
            slot.writers = slot.writers.saturating_sub(u32::from(write));
            if slot.handles > 0 {
                return;
            }
        }
        self.close_unused(node);
    }

    /// Closes the file where no handle counts on it.
    pub(super) fn close_unused(&self, node: &Arc<Node>) {
        if let Err(e) = self.with_keys(KeyUser::Mount, || self.try_close_unused(node)) {
            self.leave_open(node, &e);
        }
        self.trim_kept();
    }

    fn try_close_unused(&self, node: &Arc<Node>) -> Result<(), FsError> {
        let mut slot = node.file.write();
        if slot.handles > 0 {
            return Ok(());
        }
        seal(&slot)?;
        if !self.keep(node, &mut slot) {
            self.drop_open(node, &mut slot);
        }
        Ok(())
    }

    /// Seals and closes the file of `slot`, or leaves it as it is.
    pub(super) fn close(&self, node: &Node, slot: &mut FileSlot) -> Result<(), FsError> {
        seal(slot)?;
        self.drop_open(node, slot);
        Ok(())
    }

    pub(super) fn drop_open(&self, node: &Node, slot: &mut FileSlot) {
        self.kept.take(slot);
        slot.queued = false; // Should its id still wait there, it finds the file closed.
        slot.open = None;
        {
            let mut open_files = self.open_files.lock();
            // The kernel may have forgotten this node and looked its inode up again: the entry is another node's then.
            if open_files.get(&node.id).is_some_and(|known| std::ptr::eq(&raw const **known, node)) {
                open_files.remove(&node.id);
            }
        }
        if std::mem::take(&mut slot.left_open) {
            self.left_open.fetch_sub(1, Ordering::Relaxed);
            self.nodes.forget(node.id, 1);
        }
    }

    /// Keeps the file and its node, though no handle counts on it and the kernel may forget it.
    fn leave_open(&self, node: &Node, why: &FsError) {
        let mut slot = node.file.write();
        if slot.handles > 0 || slot.open.is_none() || slot.left_open || !self.nodes.hold(node.id) {
            return;
        }
        slot.left_open = true;
        self.left_open.fetch_add(1, Ordering::Relaxed);
        if UNSEALED.admit().is_some() {
            log::error!("file {} cannot be sealed at its close, and is tried again: {why}", node.id);
        }
    }

    /// Tries again to close what could not be sealed. Waits for keys; not for a thread that serves the mount.
    pub fn close_left_open(&self) {
        if self.left_open.load(Ordering::Relaxed) == 0 {
            return;
        }
        for node in self.nodes_open() {
            if !node.file.read().left_open {
                continue;
            }
            match self.with_keys_patiently(|| self.try_close_unused(&node)) {
                Err(FsError::Key(KeyError::Unavailable(_))) => return,
                Err(e) => log::debug!("file {} still cannot be sealed: {e}", node.id),
                Ok(()) => {}
            }
        }
    }

    /// Files that no handle counts on, but that could not be sealed.
    pub fn left_open_count(&self) -> usize {
        self.left_open.load(Ordering::Relaxed)
    }

    pub(super) fn nodes_open(&self) -> Vec<Arc<Node>> {
        self.open_files.lock().values().cloned().collect()
    }

    /// Closes files that can be opened again by name, when descriptors run short.
    pub(super) fn close_idle_files(&self) {
        for node in self.nodes_open().iter().filter(|node| node.link().is_some()) {
            if let Some(mut slot) = node.file.try_write()
                // Its descriptors are to be told of what failed.
                && slot.open.as_ref().is_none_or(|open| open.io.failures().0 == 0)
                && let Err(e) = self.close(node, &mut slot)
            {
                log::debug!("file {} keeps its descriptor: {e}", node.id);
            }
        }
    }

    /// Forgets what memory knows of an open file, which may be wrong: its next use reads it from the disk. Where a sync
    /// has promised what only memory and the log have, and it cannot be put in place, the file stays open as it is.
    pub fn abandon(&self, id: u64) {
        if let Some(node) = self.nodes.find(id) {
            self.note_left_dirty();
            let mut slot = node.file.write();
            match slot.open.as_ref().map_or(Ok(()), |open| open.io.keep_promises()) {
                Ok(()) => self.drop_open(&node, &mut slot),
                Err(why) => {
                    drop(slot);
                    self.leave_open(&node, &why);
                }
            }
        }
    }

    /// Whether [`Tree::close_all`] left every file sealed and durable.
    pub fn ended_well(&self) -> bool {
        self.files.log.as_ref().is_some_and(super::TagLog::ended_well)
    }

    fn note_left_dirty(&self) {
        if let Some(log) = &self.files.log {
            log.note_left_dirty();
        }
    }

    /// Seals and closes every file, at the end of a mount. What cannot be sealed is recovered at its next open.
    pub fn close_all(&self) {
        for node in self.nodes_open() {
            let closed = self.with_keys_patiently(|| self.close(&node, &mut node.file.write()));
            if let Err(e) = closed {
                log::error!("file {} could not be sealed at the end: {e}", node.id);
                self.note_left_dirty();
                self.drop_open(&node, &mut node.file.write());
            }
        }
        if let Some(log) = &self.files.log {
            log.close();
        }
    }
}

/// Leaves the open file of `slot` sealed and with the time that the kernel has.
pub(super) fn seal(slot: &FileSlot) -> Result<(), FsError> {
    let Some(open) = &slot.open else { return Ok(()) };
    if open.writable
        && let Err(e) = open.seal()
        // Nobody can open it again; and the space that its seal may lack is perhaps its own.
        && !(slot.handles == 0 && open.io.is_removed())
    {
        return Err(e);
    }
    Ok(open.restore_modified()?)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::sync::atomic::AtomicU32;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::crypto::{DataKey, Secret, VolumeKey, random_array};
    use crate::format::{FileId, VolumeId, WrappedKey};
    use crate::tree::file::fault::{self, Fault};
    use crate::tree::file::tests::new_dir;
    use crate::tree::{
        Asker, Caller, Durability, FileContext, FreshKey, Integrity, KeySource, LastEnd, NewObject,
        OpenManner, ROOT_ID, SetAttr, SetTime, Stage, TagLog, Time, TreeOptions, WriteManner,
    };

    const WRITING: OpenManner = OpenManner { write: true, truncate: false, clear_set_id: false };

    /// One key for all files: no test here asks whether it is the right one.
    struct OneKey(DataKey);

    impl KeySource for OneKey {
        fn fresh(&self, _key: Option<&str>, user: KeyUser) -> Result<FreshKey, KeyError> {
            let wrapped = WrappedKey { key_arn: "arn:test".into(), material_id: None, blob: vec![1] };
            Ok(FreshKey { user, file_id: FileId(random_array()), data_key: self.0.duplicate(), wrapped })
        }

        fn unwrap(&self, _file_id: FileId, _wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
            Ok(self.0.duplicate())
        }
    }

    pub(in crate::tree) struct Bench(PathBuf);

    impl Bench {
        pub(in crate::tree) fn new() -> Self {
            Self(new_dir())
        }

        pub(in crate::tree) fn tree(&self) -> Arc<Tree> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let root: OwnedFd = rustix::fs::open(&self.0, flags, Mode::empty()).unwrap();
            let key = Arc::new(VolumeKey::new(Secret::random()));
            let record = crate::format::dir::seal(&key, &random_array(), None);
            std::os::unix::fs::symlink(record, self.0.join(crate::format::dir::DIR_RECORD)).unwrap();
            let log = Some(TagLog::open(&root, &key, Durability::Strict, LastEnd::Unknown).unwrap());
            let keys = Arc::new(OneKey(DataKey::random()));
            let files = FileContext {
                volume_id: VolumeId([1; 16]),
                keys,
                read_only: false,
                log,
                stage: Stage::default(),
                integrity: Integrity::default(),
            };
            Tree::open(root, key, Arc::new(files), &TreeOptions::default()).unwrap()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            fault::clear();
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A new file with `data`, still open for one writing handle.
    pub(in crate::tree) fn written(tree: &Tree, name: &[u8], data: &[u8]) -> u64 {
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let new = NewObject { permissions: 0o600, umask: 0, caller };
        let (attr, _) = tree.create(ROOT_ID, name, new, true, KeyUser::Mount).unwrap();
        tree.write(attr.node_id, 0, data, WriteManner::default(), Asker::Mount).unwrap();
        attr.node_id
    }

    #[test]
    fn a_file_that_cannot_be_sealed_is_kept_until_it_can() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 10_000]);
        fault::after(Some((0, Fault::Full)));
        tree.release_file(id, true);
        assert_eq!((tree.left_open_count(), tree.open_file_count()), (1, 1));
        // The kernel may forget it now; what memory knows of it must not go.
        tree.forget(id, 1);
        let mut back = Vec::new();
        tree.look_up(ROOT_ID, b"file").unwrap();
        fault::after(Some((0, Fault::Full)));
        tree.read(id, 0, 20_000, Asker::Mount, &mut back).unwrap();
        assert_eq!(back, [5; 10_000]);
        assert_eq!(tree.left_open_count(), 1);
        tree.close_left_open();
        assert_eq!((tree.left_open_count(), tree.open_file_count()), (0, 0));
        tree.forget(id, 1);
        assert_eq!(tree.node_count(), 1, "the root alone is known");
    }

    #[test]
    fn a_removed_file_stays_open_though_a_name_is_remembered_that_it_lost() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 10_000]);
        // What a look-up leaves that a rename overtook.
        tree.nodes.find(id).unwrap().add_link(ROOT_ID, "gone");
        tree.unlink(ROOT_ID, b"file").unwrap();
        assert_eq!(tree.attr(id).unwrap().links, 0);
        tree.write(id, 10_000, &[6; 10], WriteManner::default(), Asker::Mount).unwrap();
        tree.release_file(id, true);
        assert_eq!(tree.open_file_count(), 0, "its space is free");
    }

    #[test]
    fn a_removed_file_that_cannot_be_sealed_gives_its_space_back() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 10_000]);
        tree.sync_file(id, true).unwrap();
        tree.write(id, 0, &[6; 5_000], WriteManner::default(), Asker::Mount).unwrap();
        let full = || fault::after(Some((0, Fault::Full)));
        full();
        tree.release_file(id, true);
        assert_eq!((tree.left_open_count(), tree.open_file_count()), (1, 1));
        full();
        tree.unlink(ROOT_ID, b"file").unwrap();
        fault::clear();
        assert_eq!((tree.left_open_count(), tree.open_file_count()), (0, 0));
        // The same, with its name gone before its last handle.
        let id = written(&tree, b"file", &[5; 10_000]);
        tree.unlink(ROOT_ID, b"file").unwrap();
        full();
        tree.release_file(id, true);
        fault::clear();
        assert_eq!((tree.left_open_count(), tree.open_file_count()), (0, 0));
    }

    /// Writes as the kernel does that collects writes, closes, and gives the time of the last write.
    fn written_back(tree: &Tree, id: u64) -> Time {
        let from_cache = WriteManner { from_cache: true, clear_set_id: false };
        tree.write(id, 0, &[7; 5_000], from_cache, Asker::Mount).unwrap();
        tree.release_file(id, true);
        tree.attr(id).unwrap().modified
    }

    #[test]
    fn a_closed_file_has_the_time_that_the_kernel_knows() {
        let bench = Bench::new();
        let tree = bench.tree();
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let long_ago = Time { seconds: 1_000, nanoseconds: 5 };
        let set = SetAttr { modified: Some(SetTime::At(long_ago)), ..SetAttr::default() };
        // The time of the creation, whatever became of it since.
        let new = NewObject { permissions: 0o600, umask: 0, caller };
        let (made, _) = tree.create(ROOT_ID, b"new", new, true, KeyUser::Mount).unwrap();
        let lower = tree.nodes.find(made.node_id).unwrap().link().unwrap().name;
        let behind = std::fs::File::open(bench.0.join(&*lower)).unwrap();
        behind.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(written_back(&tree, made.node_id), made.modified);
        // What it told last.
        let id = written(&tree, b"told", &[5; 100]);
        tree.set_attr(id, set, caller, Asker::Mount).unwrap();
        assert_eq!(written_back(&tree, id), long_ago);
        // A change of size that it told no time for moved it.
        let id = written(&tree, b"cut", &[5; 100]);
        tree.set_attr(id, set, caller, Asker::Mount).unwrap();
        tree.truncate(id, 50, Asker::Mount).unwrap();
        assert!(written_back(&tree, id) > long_ago);
    }

    #[test]
    fn a_failed_sync_is_told_once_to_every_descriptor() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 10_000]);
        let first = AtomicU32::new(tree.sync_failures(id));
        tree.open_file(id, WRITING, Asker::Mount).unwrap();
        let second = AtomicU32::new(tree.sync_failures(id));
        fault::after(Some((0, Fault::NoSync)));
        let told = |seen: &AtomicU32| tree.sync_descriptor(id, true, seen, None).err().map(|e| e.to_string());
        assert!(told(&first).is_some());
        assert_eq!(told(&first), None, "told twice");
        tree.open_file(id, OpenManner::default(), Asker::Mount).unwrap();
        let later = AtomicU32::new(tree.sync_failures(id));
        assert_eq!(told(&later), None, "it failed before this one was opened");
        assert!(told(&second).is_some(), "swallowed");
        assert_eq!((told(&first), told(&second)), (None, None));
    }

    /// A durable file, one block of which was overwritten.
    fn overwritten(tree: &Tree) -> u64 {
        let id = written(tree, b"file", &[5; 10_000]);
        tree.sync_file(id, true).unwrap();
        tree.write(id, 0, &[6; 4_096], WriteManner::default(), Asker::Mount).unwrap();
        id
    }

    #[test]
    fn a_sync_that_fails_after_its_answer_is_told_at_the_next_and_any_other_at_once() {
        for early in [false, true] {
            let bench = Bench::new();
            let tree = bench.tree();
            let id = overwritten(&tree);
            let seen = AtomicU32::new(tree.sync_failures(id));
            let answered = AtomicU32::new(0);
            let answer = || {
                answered.fetch_add(1, Ordering::Relaxed);
            };
            let sync = || tree.sync_descriptor(id, true, &seen, early.then_some(&answer as &dyn Fn()));
            // The record is the first change, the block the second.
            fault::after(Some((1, Fault::Full)));
            assert!(sync().is_err());
            assert_eq!(answered.load(Ordering::Relaxed), u32::from(early));
            assert_eq!(sync().is_err(), early, "told twice, or not at all");
            sync().unwrap();
            assert_eq!(
                answered.load(Ordering::Relaxed),
                u32::from(early),
                "an error comes with no other answer"
            );
        }
    }

    #[test]
    fn an_abandoned_file_has_what_its_sync_promised() {
        for panics in [true, false] {
            let bench = Bench::new();
            let tree = bench.tree();
            let id = overwritten(&tree);
            let seen = AtomicU32::new(0);
            let full = || fault::after(Some((0, Fault::Full)));
            let answered = || if panics { panic!("after the answer") } else { full() };
            let sync = || tree.sync_descriptor(id, true, &seen, Some(&answered));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(sync));
            assert!(!matches!(done, Ok(Ok(()))));
            if !panics {
                full();
            }
            tree.abandon(id);
            let mut wanted = [5; 10_000];
            wanted[..4_096].fill(6);
            let mut back = Vec::new();
            tree.read(id, 0, 20_000, Asker::Mount, &mut back).unwrap();
            assert!(back == wanted, "{panics}");
            tree.files.flush_all();
            tree.files.log.as_ref().unwrap().wipe().unwrap();
        }
    }

    #[test]
    fn a_kept_file_that_could_not_be_sealed_again_is_let_go_once_it_can() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", &[5; 10_000]);
        tree.release_file(id, true);
        assert_eq!((tree.kept.len(), tree.left_open_count()), (1, 0));
        // The kernel may truncate and write back with no handle; some call of that, or of the seal after it, fails.
        for calls in 0..100 {
            fault::after(Some((calls, Fault::Full)));
            let _ = tree.truncate(id, 9_000 - u64::from(calls), Asker::Mount);
            if tree.left_open_count() > 0 {
                break;
            }
        }
        fault::clear();
        assert_eq!(tree.left_open_count(), 1);
        tree.close_left_open();
        assert_eq!(tree.left_open_count(), 0);
        tree.forget(id, 1);
        assert_eq!(tree.node_count(), 1, "the root alone is known");
    }

    #[test]
    fn a_forgotten_node_does_not_take_its_successor_off_the_open_files() {
        let bench = Bench::new();
        let tree = bench.tree();
        let id = written(&tree, b"file", b"x");
        tree.release_file(id, true);
        // As `Tree::forget` does it, with another thread's look-up and open in between.
        let old = tree.nodes.forget(id, 1).unwrap();
        tree.look_up(ROOT_ID, b"file").unwrap();
        tree.open_file(id, WRITING, Asker::Mount).unwrap();
        tree.let_go(&old);
        assert_eq!((tree.kept.len(), tree.nodes_open().len()), (0, 1));
        tree.write(id, 0, b"y", WriteManner::default(), Asker::Mount).unwrap();
        tree.release_file(id, true);
        assert_eq!(tree.kept.len(), 1);
    }

    #[test]
    fn closed_files_are_kept_ready_until_too_many_or_nameless() {
        let bench = Bench::new();
        let tree = bench.tree();
        let max = tree.kept.max;
        let name = |number: usize| format!("file{number}").into_bytes();
        let ids: Vec<u64> = (0..max + 10)
            .map(|number| {
                let id = written(&tree, &name(number), b"x");
                tree.release_file(id, true);
                id
            })
            .collect();
        assert_eq!((tree.kept.len(), tree.open_file_count()), (max, 0));
        tree.open_file(ids[max], OpenManner::default(), Asker::Mount).unwrap();
        assert_eq!((tree.kept.len(), tree.open_file_count()), (max - 1, 1));
        tree.release_file(ids[max], false);
        tree.unlink(ROOT_ID, &name(max)).unwrap();
        assert_eq!((tree.kept.len(), tree.nodes_open().len()), (max - 1, max - 1));
        tree.close_idle_files();
        assert_eq!((tree.kept.len(), tree.nodes_open().len()), (0, 0));
        for id in &ids[..max] {
            tree.open_file(*id, WRITING, Asker::Mount).unwrap();
            tree.release_file(*id, true);
        }
        assert_eq!(tree.kept.len(), max);
        for id in ids {
            tree.forget(id, 1);
        }
        assert_eq!((tree.kept.len(), tree.node_count()), (0, 1));
    }
}
