//! `kmsfs send` and `kmsfs receive`.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;

use super::args::{ReceiveArgs, SendArgs};
use super::error::{CliError, Exit};
use super::output::{json as print_json, line, size};
use super::progress::Shown;
use super::snapshots::source_of;
use super::volumes::stop_on_signals;
use crate::volume::Progress;
use crate::volume::snapshot::is_place_of_one;
use crate::volume::stream::{self, SendOptions};

/// Bytes gathered before a pipe or a file gets them.
const BUFFER: usize = 1 << 20;

fn failed(path: &Path, e: &std::io::Error) -> CliError {
    CliError::failed(format!("{}: {e}", path.display()))
}

/// `kmsfs send`
pub fn send(args: &SendArgs) -> Result<(), CliError> {
    let (source, _) = source_of(&args.source)?;
    if !is_place_of_one(&source) {
        let text = "name a snapshot, as VOLUME@SNAPSHOT; 'kmsfs snapshot create' makes one";
        return Err(CliError::new(Exit::Usage, text));
    }
    let base = args.from.as_ref().map(|name| source.with_file_name(name));
    if let Some(missing) = base.as_ref().filter(|base| !base.is_dir()) {
        return Err(CliError::failed(format!("there is no snapshot {}", missing.display())));
    }
    let out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(File::create(path).map_err(|e| failed(path, &e))?),
        None if std::io::stdout().is_terminal() => {
            let text = "a stream is not for a terminal: name a file with --output, or use a pipe";
            return Err(CliError::new(Exit::Usage, text));
        }
        None => Box::new(std::io::stdout()),
    };
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "send", !std::io::stderr().is_terminal());
    let options = SendOptions { resume: args.resume };
    let sent =
        stream::send(&source, base.as_deref(), BufWriter::with_capacity(BUFFER, out), &options, &progress);
    drop(shown);
    let sent = sent?;
    // Standard output is the stream's.
    eprintln!("sent {} objects, {}; hash {}", sent.entries, size(sent.bytes), sent.hash);
    Ok(())
}

/// `kmsfs receive`
pub fn receive(args: &ReceiveArgs) -> Result<(), CliError> {
    if let (Some(dir), Some(snapshot)) = (&args.dir, &args.position) {
        return line(&stream::position(dir, snapshot)?.to_string());
    }
    let from: Box<dyn Read> = match &args.input {
        Some(path) => Box::new(File::open(path).map_err(|e| failed(path, &e))?),
        None => Box::new(std::io::stdin()),
    };
    let from = BufReader::with_capacity(BUFFER, from);
    let received = match &args.dir {
        Some(dir) if !args.check => stream::receive(dir, from),
        _ => stream::check(from),
    };
    let received = received?;
    if args.json {
        return print_json(&received);
    }
    let verb = if args.check { "whole" } else { "received" };
    line(&format!("snapshot {} of volume {} is {verb}", received.snapshot, received.volume_id))?;
    line(&format!("{} objects, {} of data; hash {}", received.entries, size(received.bytes), received.hash))
}
