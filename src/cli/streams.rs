//! `kmsfs send` and `kmsfs receive`.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::args::{ReceiveArgs, SendArgs};
use super::error::{CliError, Exit};
use super::output::{json as print_json, line, size};
use super::progress::Shown;
use super::snapshots::source_of;
use super::volumes::stop_on_signals;
use crate::sys::at;
use crate::volume::Progress;
use crate::volume::snapshot::is_place_of_one;
use crate::volume::stream::{self, Received, SendOptions, Sent};

/// Bytes gathered before a pipe or a file gets them.
const BUFFER: usize = 1 << 20;
/// How often a file is opened anew that got its name before it was locked.
const PARTIAL_TRIES: u32 = 16;

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
    let store = args.output.as_deref().and_then(store_of);
    let of_stores = args.endpoint.is_some() || args.part_size.is_some() || args.abandon;
    if args.resume.is_some() && store.is_some() {
        let text = "an upload to a store goes on by itself where it was; leave out --resume";
        return Err(CliError::new(Exit::Usage, text));
    }
    match store {
        Some(place) if args.abandon => return abandon(&source, place, args),
        None if of_stores => {
            return Err(for_stores_alone("--endpoint, --part-size and --abandon", "--output"));
        }
        _ => {}
    }
    let sent = with_progress(|progress| match store {
        Some(place) => in_store::send(&source, base.as_deref(), place, args, progress),
        None => send_to_file(&source, base.as_deref(), args, progress),
    })?;
    // Standard output is the stream's.
    eprintln!("sent {} objects, {}; hash {}", sent.entries, size(sent.bytes), sent.hash);
    Ok(())
}

fn with_progress(send: impl FnOnce(&Progress) -> Result<Sent, CliError>) -> Result<Sent, CliError> {
    let progress = Arc::new(Progress::default());
    stop_on_signals(&progress)?;
    let shown = Shown::start(&progress, "send", !std::io::stderr().is_terminal());
    let sent = send(&progress);
    drop(shown);
    sent
}

fn send_to_file(
    source: &Path,
    base: Option<&Path>,
    args: &SendArgs,
    progress: &Progress,
) -> Result<Sent, CliError> {
    let options = SendOptions { resume: args.resume };
    let send = |out: Box<dyn Write + Send>| {
        let out = BufWriter::with_capacity(BUFFER, out);
        stream::send(source, base, out, &options, progress).map_err(CliError::from)
    };
    match &args.output {
        Some(path) if path.metadata().is_ok_and(|there| !there.is_file()) => {
            send(Box::new(File::options().write(true).open(path).map_err(|e| failed(path, &e))?))
        }
        Some(path) => into_file(&at::resolved(path), send),
        None if std::io::stdout().is_terminal() => {
            let text = "a stream is not for a terminal: name a file with --output, or use a pipe";
            Err(CliError::new(Exit::Usage, text))
        }
        None => send(Box::new(std::io::stdout())),
    }
}

/// Has `send` write a file, which gets its name when it is whole and durable.
fn into_file(
    path: &Path,
    send: impl FnOnce(Box<dyn Write + Send>) -> Result<Sent, CliError>,
) -> Result<Sent, CliError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".kmsfs-partial");
    let partial = Path::new(&partial);
    let io = |e: std::io::Error| failed(partial, &e);
    let open = || File::options().write(true).create(true).truncate(false).open(partial);
    let file = locked(partial, open)?;
    let sent = file
        .set_len(0)
        .and_then(|()| file.try_clone())
        .map_err(io)
        .and_then(|out| send(Box::new(out)))
        .and_then(|sent| {
            file.sync_all().and_then(|()| std::fs::rename(partial, path)).map_err(io)?;
            Ok(sent)
        });
    if sent.is_err() {
        let _ = std::fs::remove_file(partial);
    }
    sent
}

/// What `open` opens at `partial`, for us alone. Another command may have given it its name between the two: then it is
/// whole, and no longer ours to write.
fn locked(partial: &Path, mut open: impl FnMut() -> std::io::Result<File>) -> Result<File, CliError> {
    let io = |e: std::io::Error| failed(partial, &e);
    for _ in 0..PARTIAL_TRIES {
        let file = open().map_err(io)?;
        if file.try_lock().is_err() {
            break;
        }
        let ours = file.metadata().map_err(io)?;
        match std::fs::symlink_metadata(partial) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
    }
    Err(CliError::new(Exit::Busy, format!("another command writes {}", partial.display())))
}

/// A place in a store, where `path` is one.
fn store_of(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.starts_with("s3://"))
}

fn for_stores_alone(options: &str, place: &str) -> CliError {
    CliError::new(
        Exit::Usage,
        format!("{options}: for a store alone, which {place} s3://BUCKET/PREFIX names"),
    )
}

fn abandon(source: &Path, place: &str, args: &SendArgs) -> Result<(), CliError> {
    let found = in_store::abandon(source, place, args.endpoint.as_deref())?;
    line(if found { "what was sent is taken away" } else { "nothing of an upload is there" })
}

#[cfg(feature = "s3")]
use super::store as in_store;

/// What a build without stores says.
#[cfg(not(feature = "s3"))]
mod in_store {
    use super::{CliError, Exit, Path, Progress, Received, SendArgs, Sent};

    fn missing<T>(place: &str) -> Result<T, CliError> {
        let text = format!(
            "this kmsfs was built without stores: 'cargo build --release --bin kmsfs --no-default-features --features s3' makes \
             one with them; or use a pipe: 'kmsfs send ... | aws s3 cp - \
             {place}/NAME.kmsfs' and 'aws s3 cp {place}/NAME.kmsfs - | kmsfs receive DIR'"
        );
        Err(CliError::new(Exit::Usage, text))
    }

    pub fn send(
        _: &Path,
        _: Option<&Path>,
        place: &str,
        _: &SendArgs,
        _: &Progress,
    ) -> Result<Sent, CliError> {
        missing(place)
    }

    pub fn abandon(_: &Path, place: &str, _: Option<&str>) -> Result<bool, CliError> {
        missing(place)
    }

    pub fn receive(_: Option<&Path>, place: &str, _: Option<&str>) -> Result<Vec<Received>, CliError> {
        missing(place)
    }
}

/// `kmsfs receive`
pub fn receive(args: &ReceiveArgs) -> Result<(), CliError> {
    if let (Some(dir), Some(snapshot)) = (&args.dir, &args.position) {
        return line(&stream::position(dir, snapshot)?.to_string());
    }
    let dir = args.dir.as_deref().filter(|_| !args.check);
    let received = match args.input.as_deref().and_then(store_of) {
        Some(place) => in_store::receive(dir, place, args.endpoint.as_deref())?,
        None if args.endpoint.is_some() => return Err(for_stores_alone("--endpoint", "--input")),
        None => {
            let received = receive_from_file(args.input.as_deref(), dir)?;
            if args.json {
                return print_json(&received);
            }
            vec![received]
        }
    };
    if args.json {
        return print_json(&received);
    }
    if received.is_empty() {
        return line("everything there was received before");
    }
    received.iter().try_for_each(|one| told(one, args.check))
}

fn receive_from_file(path: Option<&Path>, dir: Option<&Path>) -> Result<Received, CliError> {
    let from: Box<dyn Read> = match path {
        Some(path) => Box::new(File::open(path).map_err(|e| failed(path, &e))?),
        None => Box::new(std::io::stdin()),
    };
    let from = BufReader::with_capacity(BUFFER, from);
    Ok(match dir {
        Some(dir) => stream::receive(dir, from)?,
        None => stream::check(from)?,
    })
}

fn told(received: &Received, check: bool) -> Result<(), CliError> {
    let verb = if check { "whole" } else { "received" };
    line(&format!("snapshot {} of volume {} is {verb}", received.snapshot, received.volume_id))?;
    line(&format!("{} objects, {} of data; hash {}", received.entries, size(received.bytes), received.hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_got_its_name_before_it_was_locked_is_not_written_by_another_command() {
        let dir = std::env::temp_dir().join(format!("kmsfs-partial-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (partial, whole) = (dir.join("s.kmsfs-partial"), dir.join("s"));
        let open = || File::options().write(true).create(true).truncate(false).open(&partial);
        std::fs::write(&partial, "whole").unwrap();
        let mut opened = 0;
        let ours = locked(&partial, || {
            let file = open()?;
            if opened == 0 {
                std::fs::rename(&partial, &whole)?;
            }
            opened += 1;
            Ok(file)
        });
        ours.unwrap().set_len(0).unwrap();
        assert_eq!((opened, std::fs::read_to_string(&whole).unwrap().as_str()), (2, "whole"));

        // One that is never ours ends in a refusal.
        let refused = locked(&partial, || {
            let file = open()?;
            std::fs::rename(&partial, &whole)?;
            Ok(file)
        });
        assert_eq!(refused.unwrap_err().exit as u8, Exit::Busy as u8);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
