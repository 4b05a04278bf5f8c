//! The background worker: syncs the audit log each second, and each minute does what has come due.
//!
//! Made by the daemon. One thread; what it does to keys it does through the same pipeline and audit log as callers.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::keeper::Keeper;

/// How much of the audit log a power cut may take.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How late a deletion or a rotation may be.
const DUE_EVERY: Duration = Duration::from_secs(30);
/// How much a daemon that is killed forgets of what keys were last used for.
const USES_EVERY: Duration = Duration::from_mins(1);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker; what came due while no daemon ran is done first.
    pub fn start(keeper: Arc<Keeper>) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let sign = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("kmsd-worker".into()).spawn(move || work(&keeper, &sign))?;
        Ok(Self { stop, thread })
    }

    /// Stops it after what it is doing.
    pub fn stop(self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if self.thread.join().is_err() {
            log::error!("the background worker died");
        }
    }
}

fn work(keeper: &Keeper, sign: &(Mutex<bool>, Condvar)) {
    let mut next_due = Instant::now();
    let mut next_uses = next_due + USES_EVERY;
    loop {
        if Instant::now() >= next_due && !keeper.is_reading() {
            keeper.do_due();
            keeper.prune_audit();
            keeper.vouch(false);
            next_due = Instant::now() + DUE_EVERY;
        }
        if Instant::now() >= next_uses && !keeper.is_reading() {
            keeper.store_last_usage();
            next_uses = Instant::now() + USES_EVERY;
        }
        keeper.sync_audit();
        let mut stop = sign.0.lock();
        if !*stop {
            sign.1.wait_for(&mut stop, SYNC_EVERY);
        }
        if *stop {
            return;
        }
    }
}
