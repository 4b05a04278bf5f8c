//! That something changed by which an answer may change: keys, policies, grants, identities.
//!
//! Told by whatever changes records, at the end of its turn; waited for by clients that remember answers, mounts above
//! all (`KmsdAdmin.AwaitChange`, served by `http`). Says that, never what: everybody may know it.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::api::hex;
use crate::crypto::random_array;

use super::store::{Change, Table};

/// The target of the call that waits.
pub const AWAIT_CHANGE: &str = "KmsdAdmin.AwaitChange";

/// The number of changes since the daemon started.
#[derive(Debug)]
pub struct Changes {
    number: watch::Sender<u64>,
    pending: AtomicBool,
    /// Tells one run of the daemon from the next, whose store may be another.
    run: String,
}

impl Default for Changes {
    fn default() -> Self {
        let run = hex(&random_array::<8>());
        Self { number: watch::Sender::new(0), pending: AtomicBool::new(false), run }
    }
}

impl Changes {
    /// Notes what was stored. It is told when memory says so too.
    pub(super) fn stored(&self, changes: &[Change]) {
        let table = |change: &Change| match change {
            Change::Put { table, .. } | Change::Delete { table, .. } => *table,
        };
        // Settings, marks among them, decide nothing.
        if changes.iter().any(|change| table(change) != Table::Setting) {
            self.pending.store(true, Ordering::Release);
        }
    }

    /// Tells those who wait, if there is something to tell. To be called when a turn ends.
    pub(super) fn tell(&self) {
        if self.pending.swap(false, Ordering::AcqRel) {
            self.tell_anyway();
        }
    }

    /// Lets everybody who waits go on, as at the end of the daemon.
    pub fn tell_anyway(&self) {
        self.number.send_modify(|number| *number += 1);
    }

    /// For one who waits.
    pub fn watch(&self) -> Watch {
        Watch { number: self.number.subscribe(), run: self.run.clone() }
    }
}

/// A place to wait at.
#[derive(Debug)]
pub struct Watch {
    number: watch::Receiver<u64>,
    run: String,
}

impl Watch {
    /// What stands for everything that has happened until now.
    pub fn token(&self) -> String {
        format!("{}-{}", self.run, *self.number.borrow())
    }

    /// Waits until something has happened that `since` does not stand for.
    pub async fn beyond(&mut self, since: &str) {
        let run = &self.run;
        let is_old = |number: &u64| format!("{run}-{number}") != since;
        // A sender that is gone is the end of the daemon.
        let _ = self.number.wait_for(is_old).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(table: Table) -> Change {
        Change::Put { table, id: "x".into(), body: Vec::new() }
    }

    #[test]
    fn a_change_is_told_at_the_end_of_its_turn_and_a_mark_is_none() {
        let changes = Changes::default();
        let watch = changes.watch();
        let before = watch.token();
        changes.stored(&[put(Table::Setting)]);
        changes.tell();
        assert_eq!(watch.token(), before);
        changes.stored(&[put(Table::Grant)]);
        assert_eq!(watch.token(), before, "memory may not have it yet");
        changes.tell();
        assert_ne!(watch.token(), before);
        assert_ne!(Changes::default().watch().token(), before, "another run of the daemon");
    }

    #[test]
    fn whoever_waits_goes_on_with_the_next_change() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let changes = Changes::default();
            let mut watch = changes.watch();
            watch.beyond("").await;
            let since = watch.token();
            let told = async { changes.tell_anyway() };
            tokio::join!(watch.beyond(&since), told);
            assert_ne!(watch.token(), since);
        });
    }
}
