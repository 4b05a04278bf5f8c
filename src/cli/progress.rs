//! Progress on standard error: a bar with rate and time left on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::control::{self, Request, Work};
use crate::volume::Progress;

const BAR_EVERY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{msg} {bar:30} {pos}/{len} files  {per_sec}  {eta} left";
const OPEN_TEMPLATE: &str = "{msg} {spinner} {pos} files  {per_sec}";

/// Shows the progress of some work until dropped.
pub struct Shown {
    finished: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shown {
    /// Starts showing `progress` under `label`; says nothing where `quiet`.
    pub fn start(progress: &Arc<Progress>, label: &'static str, quiet: bool) -> Self {
        let finished = Arc::new(AtomicBool::new(false));
        if quiet {
            return Self { finished, thread: None };
        }
        let (progress, over) = (Arc::clone(progress), Arc::clone(&finished));
        let show = move || {
            if std::io::stderr().is_terminal() {
                show_bar(&progress, label, &over);
            } else {
                show_lines(&progress, label, &over);
            }
        };
        Self { finished, thread: std::thread::Builder::new().name("progress".into()).spawn(show).ok() }
    }
}

/// Tells the mount at `mountpoint` how far the work is, until dropped.
pub fn tell_mount(progress: &Arc<Progress>, label: &'static str, mountpoint: PathBuf) -> Shown {
    let finished = Arc::new(AtomicBool::new(false));
    let (progress, over) = (Arc::clone(progress), Arc::clone(&finished));
    let tell = move || {
        while !over.load(Ordering::Relaxed) {
            let work = Work {
                what: label.to_owned(),
                done: progress.done.load(Ordering::Relaxed),
                total: progress.total.load(Ordering::Relaxed),
            };
            // A mount that is gone, or busy, misses nothing that matters.
            let _ = control::ask(&mountpoint, &Request::Working(work));
            std::thread::park_timeout(TELL_EVERY);
        }
    };
    Shown { finished, thread: std::thread::Builder::new().name("teller".into()).spawn(tell).ok() }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.finished.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn show_bar(progress: &Progress, label: &'static str, over: &AtomicBool) {
    let bar = ProgressBar::new(0).with_message(label);
    let mut sized = false;
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style(OPEN_TEMPLATE));
    while !over.load(Ordering::Relaxed) {
        let total = progress.total.load(Ordering::Relaxed);
        if total > 0 && !sized {
            sized = true;
            bar.set_style(style(TEMPLATE));
        }
        bar.set_length(total);
        bar.set_position(progress.done.load(Ordering::Relaxed));
        std::thread::park_timeout(BAR_EVERY);
    }
    bar.finish_and_clear();
}

fn show_lines(progress: &Progress, label: &str, over: &AtomicBool) {
    let mut last = Instant::now();
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(BAR_EVERY);
        if last.elapsed() >= LINE_EVERY {
            last = Instant::now();
            let (done, total) =
                (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
            let of = if total > 0 { format!(" of {total}") } else { String::new() };
            eprintln!("{label}: {done}{of} files");
        }
    }
}
