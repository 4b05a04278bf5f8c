//! `kmsfs top`: what mounts are doing now, by looking at their figures again and again.
//!
//! Called by the command line. Asks mounts over their control sockets; changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Bar, BarChart, BarGroup, Block, Paragraph, Row, Table};

use super::args::TopArgs;
use super::control::{self, Status};
use super::error::CliError;
use super::figures::{Figures, micros};
use super::output::{line, size};
use crate::sys::figures::{BOUNDS_US, Timing};

/// Lines that one mount takes at least.
const PANEL_LINES: u16 = 9;

/// Two looks at one mount.
struct Watched {
    now: Status,
    /// What was counted between the looks.
    reads: Timing,
    writes: Timing,
    all: Timing,
    read_bytes: u64,
    written_bytes: u64,
    unwraps: u64,
    refusals: u64,
    seconds: f64,
}

/// `kmsfs top`
pub fn run(args: &TopArgs) -> Result<(), CliError> {
    let every = Duration::from_secs(args.every);
    match args.batch {
        Some(times) => in_batches(args.mountpoint.as_deref(), every, times),
        None => on_terminal(args.mountpoint.as_deref(), every),
    }
}

fn mounts(wanted: Option<&Path>) -> Result<Vec<Status>, CliError> {
    match wanted {
        Some(mountpoint) => control::mount_at(mountpoint).map(|status| vec![status]),
        None => Ok(control::mounts()),
    }
}

/// What happened between two looks, for the mounts that were there in both.
fn between(before: &[Status], now: Vec<Status>, seconds: f64) -> Vec<Watched> {
    now.into_iter()
        .map(|now| {
            let same = |old: &&Status| (old.pid, &old.mountpoint) == (now.pid, &now.mountpoint);
            let zero = Figures::default();
            let old = before.iter().find(same).map_or(&zero, |old| &old.figures);
            let new = &now.figures;
            Watched {
                reads: new.reads.since(&old.reads),
                writes: new.writes.since(&old.writes),
                all: new.requests().since(&old.requests()),
                read_bytes: new.read_bytes.saturating_sub(old.read_bytes),
                written_bytes: new.written_bytes.saturating_sub(old.written_bytes),
                unwraps: (new.keys.unwraps + new.keys.made).saturating_sub(old.keys.unwraps + old.keys.made),
                refusals: refusals(new).saturating_sub(refusals(old)),
                seconds,
                now,
            }
        })
        .collect()
}

fn refusals(figures: &Figures) -> u64 {
    let keys = &figures.keys;
    keys.denied + keys.disabled + keys.invalid + keys.unavailable
}

impl Watched {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are shown in whole numbers"
    )]
    fn rate(&self, count: u64) -> u64 {
        (count as f64 / self.seconds.max(0.001)).round() as u64
    }

    fn title(&self) -> String {
        let state = if self.now.locked { ", LOCKED" } else { "" };
        format!("{} ({} open files{state})", self.now.mountpoint.display(), self.now.open_files)
    }

    /// The lines of text, the same on the terminal and in batches.
    fn lines(&self) -> Vec<String> {
        let within = |timing: &Timing, share| match timing.percentile(share) {
            Some(bound) => micros(bound),
            None if timing.count > 0 => "over 1 s".to_owned(),
            None => "-".to_owned(),
        };
        let keys = &self.now.figures.keys;
        let mut lines = vec![
            format!(
                "operations {}/s   reads {}/s, {}/s   writes {}/s, {}/s",
                self.rate(self.all.count),
                self.rate(self.reads.count),
                size(self.rate(self.read_bytes)),
                self.rate(self.writes.count),
                size(self.rate(self.written_bytes)),
            ),
            format!("half within {}   99 of 100 within {}", within(&self.all, 50), within(&self.all, 99)),
            format!(
                "data keys: {} cached, {}/s from the key service, {} refused ({} throttled), {} damaged reads",
                self.now.cached_keys,
                self.rate(self.unwraps),
                self.refusals,
                keys.throttled,
                self.now.damage_seen
            ),
        ];
        lines.extend(self.now.work.as_ref().map(ToString::to_string));
        lines
    }
}

fn in_batches(wanted: Option<&Path>, every: Duration, times: u64) -> Result<(), CliError> {
    let (mut before, mut at) = (mounts(wanted)?, Instant::now());
    for _ in 0..times {
        std::thread::sleep(every);
        let now = mounts(wanted)?;
        let watched = between(&before, now.clone(), at.elapsed().as_secs_f64());
        (before, at) = (now, Instant::now());
        if watched.is_empty() {
            line("nothing is mounted")?;
        }
        for one in &watched {
            line(&one.title())?;
            one.lines().iter().try_for_each(|text| line(&format!("  {text}")))?;
            for key in &one.now.figures.keys.in_use {
                let state = if key.refused { "refused" } else { "usable" };
                line(&format!("  {}  {} uses  {state}", key.key_arn, key.uses))?;
            }
        }
    }
    Ok(())
}

fn on_terminal(wanted: Option<&Path>, every: Duration) -> Result<(), CliError> {
    let (mut before, mut at) = (mounts(wanted)?, Instant::now());
    let failed =
        |e: std::io::Error| CliError::failed(format!("cannot draw on this terminal: {e}; try --batch 1"));
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut watched = between(&before.clone(), before.clone(), 1.0);
    let ended = loop {
        if let Err(e) = terminal.draw(|frame| draw(frame, &watched)) {
            break Err(failed(e));
        }
        match wants_to_end(every.saturating_sub(at.elapsed())) {
            Ok(true) => break Ok(()),
            Ok(false) if at.elapsed() < every => continue,
            Ok(false) => {}
            Err(e) => break Err(failed(e)),
        }
        match mounts(wanted) {
            Ok(now) => {
                watched = between(&before, now.clone(), at.elapsed().as_secs_f64());
                (before, at) = (now, Instant::now());
            }
            Err(e) => break Err(e),
        }
    };
    ratatui::restore();
    ended
}

/// Waits for a key: q, Escape or ^C end it.
fn wants_to_end(patience: Duration) -> std::io::Result<bool> {
    if !event::poll(patience)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    Ok(key.kind == KeyEventKind::Press && (interrupted || quits))
}

fn draw(frame: &mut Frame<'_>, watched: &[Watched]) {
    let [body, foot] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Line::from("q: end").dim(), foot);
    if watched.is_empty() {
        frame.render_widget(Paragraph::new("nothing is mounted"), body);
        return;
    }
    let fitting = usize::from((body.height / PANEL_LINES).max(1)).min(watched.len());
    let panels = Layout::vertical(vec![Constraint::Fill(1); fitting]).split(body);
    // The busiest where not all fit.
    let mut shown: Vec<&Watched> = watched.iter().collect();
    if fitting < shown.len() {
        shown.sort_by_key(|one| std::cmp::Reverse(one.all.count));
    }
    for (one, area) in shown.iter().zip(panels.iter()) {
        draw_one(frame, one, *area);
    }
}

fn draw_one(frame: &mut Frame<'_>, one: &Watched, area: Rect) {
    let block = Block::bordered().title(one.title());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let lines = one.lines();
    let height = u16::try_from(lines.len()).unwrap_or(PANEL_LINES);
    let [text, rest] = Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(inner);
    frame.render_widget(Paragraph::new(lines.into_iter().map(Line::from).collect::<Vec<_>>()), text);
    let [times, keys] = Layout::horizontal([Constraint::Percentage(60), Constraint::Fill(1)]).areas(rest);
    frame.render_widget(histogram(&one.all), times);
    let rows = one.now.figures.keys.in_use.iter().map(|key| {
        let name = key.key_arn.rsplit('/').next().unwrap_or(&key.key_arn).to_owned();
        let row = Row::new([name, key.uses.to_string()]);
        if key.refused { row.style(Style::new().red()) } else { row }
    });
    let widths = [Constraint::Fill(1), Constraint::Length(10)];
    frame.render_widget(Table::new(rows, widths).header(Row::new(["KEY", "USES"]).bold()), keys);
}

/// How long requests took since the last look.
fn histogram(timing: &Timing) -> BarChart<'static> {
    let inside: u64 = timing.buckets.iter().sum();
    let named = BOUNDS_US.iter().map(|bound| micros(*bound).replace(' ', "")).zip(timing.buckets);
    let over = ("more".to_owned(), timing.count.saturating_sub(inside));
    let bars: Vec<Bar<'_>> = named
        .chain([over])
        .map(|(label, count)| Bar::default().value(count).label(Line::from(label)))
        .collect();
    BarChart::default().data(BarGroup::default().bars(&bars)).bar_width(5).bar_gap(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn status(pid: u32, reads: u64) -> Status {
        let text = format!(
            r#"{{"mountpoint": "/mnt/{pid}", "lower": "/l", "volume_id": "v", "kms": "unix:/s", "default_key": "k",
            "pid": {pid}, "read_only": false, "since": 0, "cached_keys": 3, "fresh_keys": 0, "open_files": 2,
            "inodes": 9, "idle_seconds": null}}"#
        );
        let mut status: Status = serde_json::from_str(&text).unwrap();
        status.figures.reads = Timing { count: reads, micros: reads * 10, buckets: [0; 12] };
        status.figures.reads.buckets[0] = reads;
        status.figures.read_bytes = reads * 4096;
        status
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_at_the_same_mount() {
        let before = [status(1, 100), status(2, 50)];
        let watched = between(&before, vec![status(1, 300), status(3, 40)], 2.0);
        assert_eq!(watched[0].rate(watched[0].reads.count), 100);
        assert!(watched[0].lines()[0].contains("reads 100/s, 400.0 KiB/s"), "{:?}", watched[0].lines());
        assert_eq!(watched[1].rate(watched[1].reads.count), 20, "a mount that is new began at nothing");
    }

    #[test]
    fn every_mount_is_drawn_and_the_busiest_where_there_is_no_room() {
        let watched = between(&[], vec![status(1, 1), status(2, 500)], 1.0);
        let shown = |height| {
            let mut terminal = Terminal::new(TestBackend::new(100, height)).unwrap();
            terminal.draw(|frame| draw(frame, &watched)).unwrap();
            terminal.backend().to_string()
        };
        let (tall, low) = (shown(40), shown(12));
        assert!(tall.contains("/mnt/1") && tall.contains("/mnt/2") && tall.contains("500/s"), "{tall}");
        assert!(low.contains("/mnt/2") && !low.contains("/mnt/1"), "{low}");
    }
}
