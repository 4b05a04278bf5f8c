//! The watch over master keys in use: learns of revocations, and of changes to the volume record.
//!
//! Called by a mount. Must never take an unreachable service for a revocation: cached files go on.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::VolumeKeys;
use super::keys::Sample;
use crate::client::Probe;

/// How often the volume record is looked at (one stat), and master keys are asked for where that is cheap.
const TICK: Duration = Duration::from_millis(400);
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
    /// The master key of this ARN may no longer be used: open files under it must forget their keys.
    Revoked(&'a str),
    /// The volume record was replaced, as a rewrap does: open files should look at their headers again.
    RecordChanged,
}

/// The threads that watch and refill; stopped on drop.
pub struct KeyWatch {
    keys: Arc<VolumeKeys>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl KeyWatch {
    /// Starts watching; `act` is told of each event once, on the watching thread.
    pub fn start(
        keys: Arc<VolumeKeys>,
        options: WatchOptions,
        act: impl Fn(KeyEvent<'_>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let watch = Watch { keys: Arc::clone(&keys), act: Box::new(act) };
        let refiller = Arc::clone(&keys);
        let threads = vec![
            std::thread::Builder::new()
                .name("key-refill".into())
                .spawn(move || refiller.refill_until_closed())?,
            std::thread::Builder::new().name("key-watch".into()).spawn(move || {
                let mut last_expiry = Instant::now();
                let mut last_probe = Instant::now();
                while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    if last_probe.elapsed() >= options.every {
                        last_probe = Instant::now();
                        watch.probe_all();
                    }
                    watch.round(&mut last_expiry);
                }
            })?,
        ];
        Ok(Self { keys, stop: Some(stop), threads })
    }
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        self.stop.take();
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
}

impl Watch {
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
        match self.keys.kms().probe_decrypt(&sample.blob, key_arn, &sample.context) {
            Probe::Refused(why) => {
                if self.keys.note_refused(key_arn, true) {
                    log::warn!("the key {key_arn} may no longer be used ({why}); its data keys are dropped");
                    self.keys.drop_key(key_arn);
                    (self.act)(KeyEvent::Revoked(key_arn));
                }
                // Whatever was fetched on the brink of the refusal goes as well.
                self.keys.drop_key(key_arn);
            }
            Probe::Usable => {
                if self.keys.note_refused(key_arn, false) {
                    log::info!("the key {key_arn} may be used again");
                }
            }
            Probe::Unknown(why) => log::debug!("the key {key_arn} cannot be probed: {why}"),
        }
    }
}
