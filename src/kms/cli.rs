//! The command line of `kmsd`. Parses, hands over, and turns failures into a line and an exit code.
//!
//! Called by `bin/kmsd.rs`. Everything below gets validated structs and never looks at arguments or the environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::admin::{self, IamCommand};
use super::audit_command::{self, AuditCommand};
use super::audit_log::AuditSync;
use super::audit_retention::{MIB, Retention};
use super::background;
use super::backup_command;
use super::bench::{self, BenchOperation, BenchPlan};
use super::connection::{AccessKey, Target};
use super::daemon::{self, InitPlan, ServePlan};
use super::failure::{EXIT_CODES, Failure};
use super::faults::Fault;
use super::home::{ANY_REGION, is_region};
use super::keeper::Bounds;
use super::quota::QuotaProfile;
use super::seal_source::SealSource;
use super::state_dir::StateDir;
use super::tls::TlsFiles;

/// Where a daemon answers when nobody says else.
const DEFAULT_SOCKET: &str = "/run/kmsfs/kmsd.sock";

/// The key daemon of kmsfs: keeps master keys, decides who may use them, records each use.
#[derive(Debug, Parser)]
#[command(name = "kmsd", version, after_help = EXIT_CODES, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Say more: once for information, twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new key store with a fresh root key
    Init(InitArguments),
    /// Answer on a Unix socket, and on TCP where asked
    Serve(ServeArguments),
    /// Stop the daemon of a state directory; what is in flight finishes
    Stop(StateArguments),
    /// Tell whether a daemon runs on a state directory, and where it answers
    Status(StateArguments),
    /// Tell whether the daemon of a state directory is well (JSON)
    Health(StateArguments),
    /// Print the counters of the daemon of a state directory (Prometheus text)
    Metrics(StateArguments),
    /// Write everything in the key store, sealed, into one file; the daemon may run. The audit log is not in it
    Backup(BackupArguments),
    /// Make a state directory from a backup
    Restore(RestoreArguments),
    /// Manage users, roles, groups, policies and access keys
    Iam(IamArguments),
    /// Look at the audit log, and check it
    Audit(AuditArguments),
    /// Measure a running daemon
    Bench(BenchArguments),
}

#[derive(Debug, Args)]
struct StateArguments {
    /// The state directory
    #[arg(long, env = "KMSD_DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct InitArguments {
    #[command(flatten)]
    state: StateArguments,
    /// Account id in every ARN
    #[arg(long, default_value = "000000000000", value_parser = account)]
    account: String,
    /// Region in ARNs, for which clients sign; may be given again for further ones, * for every other. Unsigned
    /// calls that name no region are in the first
    #[arg(long = "region", value_name = "REGION", default_value = daemon::DEFAULT_REGION, value_parser = region)]
    regions: Vec<String>,
    /// What seals the root key: keyfile:PATH (made where missing), passphrase, passphrase:FILE
    #[arg(long, value_name = "SOURCE")]
    seal: SealSource,
}

#[derive(Debug, Args)]
struct ServeArguments {
    #[command(flatten)]
    state: StateArguments,
    /// Path of the Unix socket
    #[arg(long, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Mode of the Unix socket, in octal
    #[arg(long, default_value = "0660", value_parser = octal)]
    socket_mode: u32,
    /// A further region to serve; may be given again, * for every one
    #[arg(long = "region", value_name = "REGION", value_parser = region)]
    regions: Vec<String>,
    /// How long a new replica is Creating and a moved primary key Updating, in milliseconds; AWS takes seconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=600_000))]
    settle: u32,
    /// Let key policies and grants name users and roles that do not exist; they count once they do
    #[arg(long)]
    unknown_principals: bool,
    /// Listen on TCP as well, e.g. 127.0.0.1:4599; calls there must be signed (Signature Version 4)
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// Certificate chain (PEM) for TLS on TCP; read again on SIGHUP
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "listen"])]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Users, access keys and keys to make where they are missing (TOML)
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// Principals of Unix users (TOML)
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// What unseals the root key; found in the store where it can be
    #[arg(long, value_name = "SOURCE")]
    seal: Option<SealSource>,
    /// When an audit record is on disk
    #[arg(long, value_enum, default_value_t = SyncArgument::Second)]
    audit_sync: SyncArgument,
    /// Remove audit segments whose last record is older
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    audit_keep_days: Option<u32>,
    /// Remove the oldest audit segments beyond this size
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..))]
    audit_keep_mib: Option<u64>,
    /// Request quotas
    #[arg(long, value_enum, default_value_t)]
    quota_profile: QuotaProfile,
    /// Let calls fail or wait on purpose, to test clients: OPERATION:FAULT:SHARE, e.g. Decrypt:ThrottlingException:10%
    /// or *:delay=50ms:1%; may be repeated
    #[arg(long, value_name = "FAULT")]
    inject: Vec<Fault>,
    /// Give metrics and health over HTTP at this address as well, e.g. 127.0.0.1:9464
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<SocketAddr>,
    /// Threads that answer; as many as there are processors where absent
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Go to the background; return when the daemon answers
    #[arg(long)]
    background: bool,
    /// Where a daemon in the background logs; STATE/kmsd.log where absent
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Tell the parent on standard output (used by --background)
    #[arg(long, hide = true)]
    report: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SyncArgument {
    /// Within a second: a power cut may lose the last second of records
    Second,
    /// Before each answer
    Each,
}

#[derive(Debug, Args)]
struct BackupArguments {
    #[command(flatten)]
    state: StateArguments,
    /// The file to write; it must not be there
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// What unseals the root key, needed when no daemon runs
    #[arg(long, value_name = "SOURCE")]
    seal: Option<SealSource>,
}

#[derive(Debug, Args)]
struct RestoreArguments {
    #[command(flatten)]
    state: StateArguments,
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// What unseals the root key of the backup; found in it where it can be
    #[arg(long, value_name = "SOURCE")]
    seal: Option<SealSource>,
}

#[derive(Debug, Args)]
struct EndpointArguments {
    /// Path of the daemon's Unix socket
    #[arg(long, global = true, conflicts_with = "dir")]
    socket: Option<PathBuf>,
    /// State directory of a running daemon
    #[arg(long, global = true, env = "KMSD_DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct IamArguments {
    #[command(flatten)]
    endpoint: EndpointArguments,
    #[command(flatten)]
    command: IamCommand,
}

#[derive(Debug, Args)]
struct AuditArguments {
    /// The state directory
    #[arg(long, env = "KMSD_DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Args)]
struct BenchArguments {
    #[command(flatten)]
    endpoint: EndpointArguments,
    /// Connections, each with one call in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Threads of the client
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Calls a second on all connections together, to see latencies below full load
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Measure over TCP, with signed calls; the access key is in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["socket", "dir"])]
    tcp: Option<SocketAddr>,
    /// Region that calls over TCP are signed for
    #[arg(long, default_value = "local")]
    region: String,
    /// Duration
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// The operation
    #[arg(long, value_enum, default_value_t = BenchOperation::GenerateDataKey)]
    op: BenchOperation,
    /// Key to use; one is made, and scheduled for deletion at the end, where absent
    #[arg(long)]
    key: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `kmsd` with the process's arguments.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let level = match arguments.verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    crate::logging::init(level);
    let report = matches!(&arguments.command, Command::Serve(serve) if serve.report);
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if report {
                background::report_failure(&failure);
            } else {
                eprintln!("kmsd: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(arguments) => init(arguments),
        Command::Serve(arguments) => serve(arguments),
        Command::Stop(state) => daemon::stop(&state_dir(&state.dir)?),
        Command::Status(state) => daemon::status(&state_dir(&state.dir)?),
        Command::Health(state) => daemon::ask(&state_dir(&state.dir)?, "health"),
        Command::Metrics(state) => daemon::ask(&state_dir(&state.dir)?, "metrics"),
        Command::Backup(BackupArguments { state, to, seal }) => {
            backup_command::backup(&state_dir(&state.dir)?, &absolute(&to)?, seal.as_ref())
        }
        Command::Restore(RestoreArguments { state, from, seal }) => {
            backup_command::restore(&state_dir(&state.dir)?, &absolute(&from)?, seal.as_ref())
        }
        Command::Iam(arguments) => admin::run(&socket(&arguments.endpoint)?, &arguments.command),
        Command::Audit(AuditArguments { dir, command }) => {
            let absent = || Failure::Usage("say whose log: --dir DIR, or KMSD_DIR in the environment".into());
            audit_command::run(&state_dir(&dir.ok_or_else(absent)?)?, command)
        }
        Command::Bench(arguments) => bench(arguments),
    }
}

fn init(arguments: InitArguments) -> Result<(), Failure> {
    let InitArguments { state, account, regions, seal } = arguments;
    daemon::init(&InitPlan { state: state_dir(&state.dir)?, account, regions, seal })
}

fn serve(arguments: ServeArguments) -> Result<(), Failure> {
    let state = state_dir(&arguments.state.dir)?;
    let log = arguments.log.as_deref().map_or_else(|| Ok(state.log_file()), absolute)?;
    let plan = ServePlan {
        seal: arguments.seal,
        socket: absolute(&arguments.socket)?,
        socket_mode: arguments.socket_mode,
        regions: arguments.regions,
        settle_millis: arguments.settle,
        takes_unknown_principals: arguments.unknown_principals,
        listen: arguments.listen,
        tls: tls_files(arguments.tls_cert.as_deref(), arguments.tls_key.as_deref())?,
        seed: arguments.seed.as_deref().map(absolute).transpose()?,
        map: arguments.map.as_deref().map(absolute).transpose()?,
        audit_sync: match arguments.audit_sync {
            SyncArgument::Second => AuditSync::Second,
            SyncArgument::Each => AuditSync::Each,
        },
        metrics: arguments.metrics,
        bounds: Bounds {
            quotas: arguments.quota_profile,
            faults: arguments.inject,
            retention: Retention {
                days: arguments.audit_keep_days,
                bytes: arguments.audit_keep_mib.map(|mib| mib * MIB),
            },
        },
        workers: arguments.workers.map(usize::from),
        notify: std::env::var_os("NOTIFY_SOCKET"),
        report: arguments.report,
        state,
    };
    if arguments.background { background::start(&plan, &log) } else { daemon::serve(&plan) }
}

fn bench(arguments: BenchArguments) -> Result<(), Failure> {
    let target = match arguments.tcp {
        Some(address) => Target::Tcp(address, access_key(arguments.region)?),
        None => Target::Unix(socket(&arguments.endpoint)?),
    };
    bench::run(&BenchPlan {
        target,
        connections: usize::from(arguments.connections),
        threads: usize::from(arguments.threads),
        rate: arguments.rate,
        seconds: u64::from(arguments.seconds),
        operation: arguments.op,
        key: arguments.key,
        json: arguments.json,
    })
}

fn access_key(region: String) -> Result<AccessKey, Failure> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|_| Failure::Secret(format!("calls over TCP are signed: set {name}")))
    };
    Ok(AccessKey { id: variable("AWS_ACCESS_KEY_ID")?, secret: variable("AWS_SECRET_ACCESS_KEY")?, region })
}

fn tls_files(certificate: Option<&Path>, key: Option<&Path>) -> Result<Option<TlsFiles>, Failure> {
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    Ok(Some(TlsFiles { certificate: absolute(certificate)?, key: absolute(key)? }))
}

fn state_dir(path: &Path) -> Result<StateDir, Failure> {
    Ok(StateDir::new(&absolute(path)?))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::System(path.display().to_string(), e))
}

fn socket(endpoint: &EndpointArguments) -> Result<PathBuf, Failure> {
    match (&endpoint.socket, &endpoint.dir) {
        (Some(socket), _) => Ok(socket.clone()),
        (None, Some(dir)) => Ok(daemon::running(&state_dir(dir)?)?.socket),
        (None, None) => Ok(DEFAULT_SOCKET.into()),
    }
}

fn account(text: &str) -> Result<String, String> {
    if text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    Err("an account id is 12 digits".into())
}

fn region(text: &str) -> Result<String, String> {
    if is_region(text) || text == ANY_REGION {
        return Ok(text.to_owned());
    }
    Err("a region is 1 to 32 lower-case letters, digits and hyphens, or * for every one".into())
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("a mode is three or four octal digits, e.g. 0660".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
