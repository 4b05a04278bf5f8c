//! The watch over master keys in use: learns of revocations, and of changes to the volume record.
//!
//! A key service that tells of changes is asked again at each; any is asked now and then.
//! Called by a mount. Must never take an unreachable service for a revocation: cached files go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::VolumeKeys;
use super::keys::Sample;
use super::rights::Use;
use crate::client::{Kms, Probe};

/// How often the volume record is looked at (one stat), and master keys are asked for where that is cheap.
const TICK: Duration = Duration::from_millis(400);
/// How often master keys are asked for where changes are told: conditions of policies may depend on the time.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// How long a service that cannot be reached is left alone before it is asked for changes again.
const AWAY: Duration = Duration::from_millis(500);
/// How often keys past their age are wiped.
const EXPIRE_EVERY: Duration = Duration::from_secs(10);

/// How often each master key is asked for.
#[derive(Debug, Clone, Copy)]
pub struct WatchOptions {
    /// Between two rounds of probes.
    pub every: Duration,
}

impl WatchOptions {
    /// Over the daemon's socket probes are cheap and a revocation shows within a second; elsewhere calls cost.
    pub fn for_endpoint(is_unix: bool) -> Self {
        Self { every: if is_unix { TICK } else { Duration::from_mins(1) } }
    }
}

/// What a mount must act on.
#[derive(Debug, Clone, Copy)]
pub enum KeyEvent<'a> {
    /// The master key of this ARN may no longer be used, by anybody or by some: open files under it must forget their
    /// keys, and ask again for those who go on.
    Revoked(&'a str),
    /// The volume record was replaced, as a rewrap does: open files should look at their headers again.
    RecordChanged,
}

/// The threads that watch and refill; stopped on drop.
pub struct KeyWatch {
    keys: Arc<VolumeKeys>,
    signals: Sender<Signal>,
    threads: Vec<JoinHandle<()>>,
}

impl KeyWatch {
    /// Starts watching; `act` is told of each event once, on the watching thread.
    pub fn start(
        keys: Arc<VolumeKeys>,
        options: WatchOptions,
        act: impl Fn(KeyEvent<'_>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (signals, received) = channel();
        let mut told = Vec::new();
        for service in keys.kms().waiting() {
            let tells = Arc::new(AtomicBool::new(false));
            told.push(Arc::clone(&tells));
            let Some(service) = service else { continue };
            let (signals, of) = (signals.clone(), Arc::downgrade(&keys));
            // Not waited for at the end: it may be in the middle of a wait.
            std::thread::Builder::new()
                .name("key-changes".into())
                .spawn(move || hear(&service, &of, &signals, &tells))?;
        }
        let watch = Watch { keys: Arc::clone(&keys), act: Box::new(act), told };
        let refiller = Arc::clone(&keys);
        let threads = vec![
            std::thread::Builder::new()
                .name("key-refill".into())
                .spawn(move || refiller.refill_until_closed())?,
            std::thread::Builder::new()
                .name("key-watch".into())
                .spawn(move || watch.until_stopped(options, &received))?,
        ];
        Ok(Self { keys, signals, threads })
    }
}

/// What the watching thread is woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Something has changed at the service.
    Changed,
    /// It is over.
    Stop,
}

/// Passes on what the service tells of changes, until `of` is closed. `told` says whether it does.
fn hear(service: &Kms, of: &Weak<VolumeKeys>, signals: &Sender<Signal>, told: &AtomicBool) {
    let mut known = String::new();
    while of.upgrade().is_some_and(|keys| !keys.is_closed()) {
        match service.await_change(&known) {
            Ok(Some(token)) => {
                told.store(true, Ordering::Relaxed);
                // The same one after a wait in vain.
                if token != known && signals.send(Signal::Changed).is_err() {
                    return;
                }
                known = token;
            }
            Ok(None) => return,
            Err(e) => {
                told.store(false, Ordering::Relaxed);
                log::debug!("the key service does not tell of changes: {e}");
                std::thread::sleep(AWAY);
            }
        }
    }
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        let _ = self.signals.send(Signal::Stop);
        self.keys.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a key thread ended by a panic");
            }
        }
    }
}

struct Watch {
    keys: Arc<VolumeKeys>,
    act: Box<dyn Fn(KeyEvent<'_>) + Send>,
    /// Whether each service tells of changes.
    told: Vec<Arc<AtomicBool>>,
}

impl Watch {
    fn until_stopped(&self, options: WatchOptions, signals: &Receiver<Signal>) {
        let (mut last_expiry, mut last_probe) = (Instant::now(), Instant::now());
        loop {
            let changed = match signals.recv_timeout(TICK) {
                Ok(Signal::Changed) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            };
            // Many changes in one go are one.
            while changed && let Ok(signal) = signals.try_recv() {
                if signal == Signal::Stop {
                    return;
                }
            }
            if changed {
                self.keys.outdate();
            }
            let told = self.told.iter().all(|tells| tells.load(Ordering::Relaxed));
            let every = if told { TOLD_EVERY } else { options.every };
            if changed || last_probe.elapsed() >= every {
                last_probe = Instant::now();
                self.probe_all();
            }
            self.round(&mut last_expiry);
        }
    }

    fn probe_all(&self) {
        for (key_arn, sample) in self.keys.samples() {
            if self.keys.is_closed() {
                return;
            }
            self.probe(&key_arn, &sample);
        }
    }

    fn round(&self, last_expiry: &mut Instant) {
        match self.keys.reload_if_changed() {
            Ok(true) => {
                log::info!("the volume record was read again; new files take {}", self.keys.default_key());
                (self.act)(KeyEvent::RecordChanged);
            }
            Ok(false) => {}
            Err(e) => log::debug!("the volume record cannot be read again: {e}"),
        }
        if last_expiry.elapsed() >= EXPIRE_EVERY {
            *last_expiry = Instant::now();
            self.keys.expire();
        }
    }

    fn probe(&self, key_arn: &str, sample: &Sample) {
        if !self.keys.holders(key_arn).is_empty() {
            return self.probe_for_holders(key_arn, sample);
        }
        match self.keys.kms().probe_decrypt(&sample.blob, key_arn, &sample.context, None) {
            Probe::Refused(why) => self.refused(key_arn, &why),
            Probe::Usable => self.usable(key_arn),
            Probe::Unknown(why) => log::debug!("the key {key_arn} cannot be probed: {why}"),
        }
    }

    /// Asks for each user who may have files open under the key.
    fn probe_for_holders(&self, key_arn: &str, sample: &Sample) {
        let kms = self.keys.kms();
        let (mut lost, mut left) = (false, false);
        for holder in self.keys.holders(key_arn) {
            let uid = holder.uid;
            // What was said is noted there.
            if holder.open {
                let probe = || kms.probe_decrypt(&sample.blob, key_arn, &sample.context, Some(uid));
                let _ = self.keys.ask(uid, key_arn, Use::Open, probe);
            }
            if holder.make {
                let probe = || self.keys.probe_make(uid, key_arn, &sample.context);
                let _ = self.keys.ask(uid, key_arn, Use::Make, probe);
            }
            // An open of that user may have learned of it before.
            if self.keys.take_loss(uid, key_arn) {
                log::warn!("user {uid} may no longer use the key {key_arn}");
                lost = true;
            }
            left |= !self.keys.is_barred(uid, key_arn);
        }
        if !left {
            return self.refused(key_arn, &"nobody who used it may");
        }
        self.usable(key_arn);
        if lost {
            self.keys.drop_fresh();
            (self.act)(KeyEvent::Revoked(key_arn));
        }
    }

    fn refused(&self, key_arn: &str, why: &dyn std::fmt::Display) {
        if self.keys.note_refused(key_arn, true) {
            log::warn!("the key {key_arn} may no longer be used ({why}); its data keys are dropped");
            self.keys.drop_key(key_arn);
            (self.act)(KeyEvent::Revoked(key_arn));
        }
        // Whatever was fetched on the brink of the refusal goes as well.
        self.keys.drop_key(key_arn);
    }

    fn usable(&self, key_arn: &str) {
        if self.keys.note_refused(key_arn, false) {
            log::info!("the key {key_arn} may be used again");
        }
    }
}
