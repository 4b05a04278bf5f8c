//! Which files a re-encryption has done, so that it can go on after an interruption.
//!
//! ```text
//! .kmsfs.reencrypt/done-HASH      HASH: 16 hex digits of SHA-256(lower path || 0 || master key asked for)
//!  0  magic "KMRD" 4 B    4  zero 4 B    8  begun, seconds since 1970 u64    16  file id 16 B || MAC 16 B, for each file
//! MAC = GCM-SIV tag (directory record key, nonce = 0, aad = "reencrypted" || HASH || begun u64 || file id, empty message)
//! ```
//!
//! An entry that is lost, or not ours, costs doing a file once more. Must never let a file pass for done that was not: what
//! an outsider adds does not count.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::api::hex;
use crate::crypto::{VolumeKey, constant_time_eq, sha256};
use crate::format::FileId;
use crate::sys::at;

const MAGIC: [u8; 4] = *b"KMRD";
const HEAD_LEN: usize = 16;
const ENTRY_LEN: usize = 32;
/// Files known from an earlier run; more are done once more.
const DONE_MAX: usize = 1 << 24;

/// The list of one piece of work.
pub(super) struct DoneList {
    file: std::fs::File,
    name: String,
    key: Arc<VolumeKey>,
    /// When the work was begun, in seconds since 1970.
    pub begun: u64,
    ids: HashSet<FileId>,
    /// Entries that were there already.
    pub known: usize,
}

impl DoneList {
    /// Opens the list in `dir` for the work on `path` (lower) and `key_asked`, or begins it; anew where `restart`.
    pub fn open(
        dir: &OwnedFd,
        key: &Arc<VolumeKey>,
        path: &Path,
        key_asked: Option<&str>,
        restart: bool,
    ) -> std::io::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let work = [path.as_os_str().as_bytes(), b"\0", key_asked.unwrap_or_default().as_bytes()].concat();
        let name = format!("done-{}", hex(&sha256(&work)[..8]));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
        let mut file = std::fs::File::from(at::open_regular(dir, name.as_bytes(), flags, 0o600)?);
        let mut bytes = Vec::new();
        (&mut file).take((HEAD_LEN + DONE_MAX * ENTRY_LEN) as u64).read_to_end(&mut bytes)?;
        let begun = bytes.first_chunk::<HEAD_LEN>().filter(|head| head.starts_with(&MAGIC) && !restart);
        let Some(begun) = begun.and_then(|head| head.last_chunk::<8>()) else {
            return Self::begin(file, name, key);
        };
        let mut list = Self {
            file,
            name,
            key: Arc::clone(key),
            begun: u64::from_le_bytes(*begun),
            ids: HashSet::new(),
            known: 0,
        };
        for entry in bytes[HEAD_LEN..].chunks_exact(ENTRY_LEN) {
            let id = FileId(*entry.first_chunk::<16>().expect("half of an entry"));
            if constant_time_eq(&list.mac(id), &entry[16..]) {
                list.ids.insert(id);
            }
        }
        // What a cut left of an entry would shift all that follow.
        let whole = (bytes.len() - HEAD_LEN) / ENTRY_LEN * ENTRY_LEN + HEAD_LEN;
        list.file.set_len(whole as u64)?;
        list.known = list.ids.len();
        Ok(list)
    }

    fn begin(mut file: std::fs::File, name: String, key: &Arc<VolumeKey>) -> std::io::Result<Self> {
        use std::io::Write;
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        file.set_len(0)?;
        file.write_all(&[&MAGIC[..], &[0; 4], &begun.to_le_bytes()].concat())?;
        Ok(Self { file, name, key: Arc::clone(key), begun, ids: HashSet::new(), known: 0 })
    }

    fn mac(&self, id: FileId) -> [u8; 16] {
        let aad = [&b"reencrypted"[..], self.name.as_bytes(), &self.begun.to_le_bytes(), &id.0].concat();
        self.key.dir_record.mac(&[0; 12], &aad)
    }

    /// Whether an earlier run has done the file with this identity.
    pub fn has(&self, id: FileId) -> bool {
        self.ids.contains(&id)
    }

    /// Notes files by their new identities, for a later run.
    pub fn add(&mut self, ids: &[FileId]) {
        use std::io::Write;
        let entries: Vec<u8> = ids.iter().flat_map(|id| [id.0, self.mac(*id)].concat()).collect();
        if let Err(e) = self.file.write_all(&entries) {
            log::warn!("files that are done may be done once more after an interruption: {e}");
        }
    }

    /// Everything is done.
    pub fn remove(self, dir: &OwnedFd) -> Result<(), Errno> {
        at::unlink(dir, self.name.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::crypto::Secret;

    #[test]
    fn what_was_done_is_known_again_and_what_somebody_adds_is_not() {
        let path = std::env::temp_dir().join(format!("kmsfs-done-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let dir = OwnedFd::from(std::fs::File::open(&path).unwrap());
        let key = Arc::new(VolumeKey::new(Secret::random()));
        let open = |of: &str, restart| DoneList::open(&dir, &key, Path::new(of), None, restart).unwrap();
        let mut list = open("a", false);
        list.add(&[FileId([1; 16]), FileId([2; 16])]);
        let place = path.join(&list.name);
        drop(list);
        let mut file = std::fs::File::options().append(true).open(&place).unwrap();
        file.write_all(&[[3; 16], [0; 16]].concat()).unwrap();
        file.write_all(&[9; 7]).unwrap();
        let mut list = open("a", false);
        assert_eq!(list.known, 2);
        assert!(list.has(FileId([1; 16])) && !list.has(FileId([3; 16])));
        list.add(&[FileId([4; 16])]);
        assert_eq!(open("a", false).known, 3, "a torn entry does not spoil the next one");
        assert_eq!(open("b", false).known, 0, "another piece of work");
        assert_eq!(open("a", true).known, 0);
        open("a", false).remove(&dir).unwrap();
        assert!(!place.exists());
        std::fs::remove_dir_all(path).unwrap();
    }
}
