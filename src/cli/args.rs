//! The command line as types.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::key_args::KeyCommand;
use super::snapshot_args::SnapshotCommand;
use super::volume_args::VolumeCommand;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or done in part (rewrap: some headers could not be moved)
  2  wrong usage
  3  not a volume, or its record is damaged or too new
  4  the key is denied, disabled, deleted or wrong
  5  the key service cannot be reached
  6  in use: lower directory, mount point or a rewrap
  7  the mount failed
fsck has e2fsck's: 0 clean, 1 all repaired, 4 errors left, 8 could not check, 32 interrupted.";

/// An encrypted filesystem whose file keys live in a key management service.
#[derive(Debug, Parser)]
#[command(name = "kmsfs", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Key service: unix:PATH, http://HOST:PORT or https://HOST. Default: the user's or the system's kmsd socket. Given
    /// again as ARN-BEGINNING=ENDPOINT: that of keys whose ARNs begin so
    #[arg(long, global = true, env = super::service::VARIABLE, value_name = "ENDPOINT")]
    pub kms: Vec<String>,
    /// Say more; twice for debugging
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume
    Init(InitArgs),
    /// Mount a volume; returns when the mount answers
    Mount(MountArgs),
    /// Unmount, and wait until everything is written
    Umount(UmountArgs),
    /// What is mounted
    Status(StatusArgs),
    /// What mounts are doing: operations, throughput, times, keys
    Top(TopArgs),
    /// Key, version, cipher, sizes and slots of a file
    Info(InfoArgs),
    /// Bring every header to the current version of its key, or under another key
    Rewrap(RewrapArgs),
    /// Give a file or a tree new data keys and encrypt it anew, after a data key has leaked
    Reencrypt(ReencryptArgs),
    /// Check records, names, headers and data; with --repair, put right what can be
    Fsck(FsckArgs),
    /// Drop the data keys of a mount, and fetch none until it is unlocked
    Lock(LockArgs),
    /// Let a locked mount fetch data keys again
    Unlock(UnlockArgs),
    /// Show or set the key that new files below a directory take
    Default(DefaultArgs),
    /// Copy a file to a new one in a mount, under a key of its own
    Cp(CpArgs),
    /// Measure ciphers on this machine
    Speed,
    /// Master keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Volumes of this host by name: create, attach, detach, list, describe, resize, delete
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Copy a snapshot, or a volume that is not mounted, to another lower directory; with --key under another key
    Copy(CopyArgs),
    /// Write a snapshot as a stream of ciphertext, whole or as what changed since another; takes no key
    Send(SendArgs),
    /// Read such a stream into a directory, or only verify it; takes no key
    Receive(ReceiveArgs),
    /// Keep, mount, compare and put back states of a volume
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// The audit log of a local kmsd: verify, tail, search (runs `kmsd audit`)
    #[command(disable_help_flag = true)]
    Audit {
        /// As for `kmsd audit`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Lower directory: empty, or made
    pub lower: PathBuf,
    /// Master key: alias/NAME, id or ARN. Default: the host's (volume defaults), else alias/aws/kmsfs
    #[arg(long, value_name = "KEY", conflicts_with = "restore")]
    pub key: Option<String>,
    /// Directory for the recovery sheet, outside LOWER. Default: ~/.local/share/kmsfs/recovery
    #[arg(long, value_name = "DIR", conflicts_with = "restore")]
    pub recovery_sheet: Option<PathBuf>,
    /// Bind files, directories and links to their name: one put under another name behind the mount's back does not
    /// open. There are no hard links then, and a rename needs the file's key
    #[arg(long, conflicts_with = "restore")]
    pub bind_names: bool,
    /// Put the volume record on this recovery sheet back into LOWER
    #[arg(long, value_name = "SHEET")]
    pub restore: Option<PathBuf>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `mount`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Default, Debug, Args, Clone)]
pub struct MountArgs {
    /// Lower directory
    pub lower: PathBuf,
    /// Mount point: an empty directory
    pub mountpoint: PathBuf,
    /// Options, as mount(8) gives them: ro, allow_other, kms=ENDPOINT, idle=TIME, nonempty, nosuid, nodev, noexec, ...
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Stay in the foreground, log to standard error
    #[arg(long, short)]
    pub foreground: bool,
    /// Let other users in: owners and modes decide, and the key service for each user
    #[arg(long)]
    pub allow_other: bool,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Go on with a lower tree that was put back to an older state, as from a backup; recorded by the key service
    #[arg(long)]
    pub accept_older: bool,
    /// Unmount after this long without use (30s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle: Option<Duration>,
    /// Bring a key of your own along, for files that are under it: a name, and a file that holds 32 bytes or their base64, or
    /// fd:N for an open descriptor; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_customer_key)]
    pub customer_key: Vec<(String, PathBuf)>,
    /// Where the daemon logs. Default: beside its control socket
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Set by the parent that waits for the mount to answer
    #[arg(long, hide = true)]
    pub daemon_child: bool,
    /// Set by 'volume attach': the volume's name, for whose mount grants are made
    #[arg(long, hide = true)]
    pub attach: Option<String>,
}

impl MountArgs {
    /// A mount of `lower` at `mountpoint` with nothing else said.
    pub fn of(lower: PathBuf, mountpoint: PathBuf) -> Self {
        Self { lower, mountpoint, ..Self::default() }
    }
}

/// Arguments of `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Mount point
    pub mountpoint: PathBuf,
    /// Detach now, finish when the last file is closed
    #[arg(long, short)]
    pub lazy: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Mount point; all mounts of the user without it
    pub mountpoint: Option<PathBuf>,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    /// Print plain text this many times instead of drawing on the terminal
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Mount point; all mounts of the user without it
    pub mountpoint: Option<PathBuf>,
    /// Text for Prometheus, as the mount's socket gives it to a scraper
    #[arg(long, conflicts_with = "json", requires = "mountpoint")]
    pub prometheus: bool,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A file in a mount, or a lower file
    pub path: PathBuf,
    /// The keys of a whole tree in a mount
    #[arg(long, short)]
    pub recursive: bool,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rewrap`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Args)]
pub struct RewrapArgs {
    /// Lower directory, or the mount point of a volume
    pub path: PathBuf,
    /// Go under this key instead: alias/NAME, id or ARN. New files take it, too
    #[arg(long, value_name = "KEY")]
    pub to_key: Option<String>,
    /// Threads
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Files a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Let every other process go first, for processor and disk
    #[arg(long)]
    pub background: bool,
    /// Take the wraps that no longer count out of the headers, so that nothing is left under an old version
    #[arg(long, conflicts_with = "dry_run")]
    pub purge: bool,
    /// Stay, and do it again after each rotation, which is looked for this often (60s, 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["dry_run", "to_key"])]
    pub watch: Option<Duration>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `reencrypt`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Args)]
pub struct ReencryptArgs {
    /// A file or directory in a mount, a volume (name, mount point or lower directory), or a path in a lower directory
    pub path: PathBuf,
    /// Go under this master key: alias/NAME, id or ARN. Default: each file stays under its own
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do again what an interrupted run has done
    #[arg(long, conflicts_with = "dry_run")]
    pub restart: bool,
    /// Files a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Let everything else go first, for processor and disk
    #[arg(long)]
    pub background: bool,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What to copy: VOLUME@SNAPSHOT, or a volume (name or lower directory) that is not mounted
    pub source: String,
    /// Lower directory of the copy: empty, or made
    pub to: PathBuf,
    /// Put the copy under this key and leave no wrap under the old one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Threads
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// What to send: VOLUME@SNAPSHOT
    pub source: String,
    /// Only what changed since this snapshot, which the receiver must have
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// Go on where an interrupted stream ended, as 'kmsfs receive --position' tells
    #[arg(long, value_name = "POSITION")]
    pub resume: Option<crate::volume::stream::Position>,
    /// Where to write: a file, or s3://BUCKET/PREFIX, where the stream becomes PREFIX/SNAPSHOT.kmsfs. Default: standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Address of the store of an s3:// place. Default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, Amazon S3. Access key and region
    /// are those of AWS_ACCESS_KEY_ID and the like, or of AWS_PROFILE
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// MiB of each part of an upload to a store, of which there are at most 10,000. Default: by the size of the volume
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(5..=1024))]
    pub part_size: Option<u64>,
    /// Take away what an interrupted upload to a store left, and send nothing
    #[arg(long, conflicts_with = "resume")]
    pub abandon: bool,
}

/// Arguments of `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Directory for what is received, a lower tree for each snapshot. Not needed for --check
    #[arg(required_unless_present = "check")]
    pub dir: Option<PathBuf>,
    /// Where to read: a file, s3://BUCKET/PREFIX/NAME.kmsfs, or s3://BUCKET/PREFIX for all streams there that DIR lacks.
    /// Default: standard input
    #[arg(long, short, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Address of the store of an s3:// place, as for 'kmsfs send'
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Verify the stream and write nothing
    #[arg(long)]
    pub check: bool,
    /// Print where the interrupted stream of this snapshot may go on
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "check")]
    pub position: Option<String>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `fsck`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Lower directory, or the mount point of a volume
    pub path: PathBuf,
    /// Use no key: check structure alone
    #[arg(long)]
    pub structure_only: bool,
    /// Skip the data: check headers, names and records
    #[arg(long)]
    pub quick: bool,
    /// Bring along the customer key NAME, in a file or, as NAME=fd:N, from a descriptor; files under it are checked like the rest
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_customer_key, conflicts_with = "structure_only")]
    pub customer_key: Vec<(String, PathBuf)>,
    /// Put right what can be: from copies, by the tag log, or moved to .kmsfs.quarantine in LOWER; deletes nothing. The
    /// volume must not be mounted
    #[arg(long, conflicts_with = "structure_only")]
    pub repair: bool,
    /// Threads
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lock`.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// Mount point
    pub mountpoint: PathBuf,
    /// Only what is under this master key: alias/NAME, id or ARN
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Drop the data keys once; the next use of a file asks the key service again
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `unlock`.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// Mount point
    pub mountpoint: PathBuf,
    /// Only the lock of this master key: alias/NAME, id or ARN
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Arguments of `default`.
#[derive(Debug, Args)]
pub struct DefaultArgs {
    /// A directory in a mount
    pub dir: PathBuf,
    /// New files and directories below take this key: alias/NAME, id or ARN
    #[arg(long, value_name = "KEY", group = "choice")]
    pub key: Option<String>,
    /// They take the key that the service manages, alias/aws/kmsfs
    #[arg(long, group = "choice")]
    pub service_managed: bool,
    /// They take the key of that name that is brought along to each mount (mount --customer-key)
    #[arg(long, value_name = "NAME", group = "choice")]
    pub customer_key: Option<String>,
    /// They take the volume's default key again
    #[arg(long, group = "choice")]
    pub none: bool,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// The file to copy
    pub from: PathBuf,
    /// The new file, in a mount; a directory takes it under its name
    pub to: PathBuf,
    /// The new file's key: alias/NAME, id or ARN. Default: that of its directory
    #[arg(long, value_name = "KEY", group = "choice")]
    pub key: Option<String>,
    /// It takes the key of that name that is brought along to each mount (mount --customer-key)
    #[arg(long, value_name = "NAME", group = "choice")]
    pub customer_key: Option<String>,
}

pub(super) fn parse_customer_key(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err("a name and a file, NAME=FILE or NAME=fd:N".to_owned()),
    }
}

fn parse_jobs(text: &str) -> Result<usize, String> {
    let most = crate::volume::MAX_JOBS;
    let jobs = text.parse().ok().filter(|n| (1..=most).contains(n));
    jobs.ok_or_else(|| format!("a number from 1 to {most}"))
}

/// `90`, `90s`, `10m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "a number with s, m or h, such as 10m".to_owned())?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("the unit is s, m or h".to_owned()),
    };
    number
        .checked_mul(unit)
        .filter(|n| *n > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_hours(2)));
        for bad in ["", "m", "0", "-1", "1d", "99999999999999999999h", "5124095576030432h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
