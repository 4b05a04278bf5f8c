//! The command line: arguments, one file per family of commands, output and progress.
//!
//! Called by `bin/kmsfs.rs`. Translates and shows; what is done stands in `volume`, `client` and `fuse`.

mod args;
mod control;
mod error;
mod key_args;
mod key_data;
mod keys;
mod mounts;
mod output;
mod progress;
mod runtime_dir;
mod service;
mod speed;
mod volumes;

use std::process::ExitCode;

use clap::Parser;
use log::LevelFilter;

use args::{Cli, Command};
use error::CliError;

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    crate::logging::init(match cli.verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    });
    let kms = cli.kms.as_deref();
    let outcome = match cli.command {
        Command::Fsck(args) => return volumes::fsck(&args, kms),
        Command::Rewrap(args) => volumes::rewrap(&args, kms),
        Command::Init(args) => volumes::init(&args, kms).map(done),
        Command::Info(args) => volumes::info(&args).map(done),
        Command::Key(command) => keys::run(command, kms).map(done),
        Command::Status(args) => mounts::status(&args).map(done),
        Command::Lock(args) => mounts::lock(&args).map(done),
        Command::Umount(args) => mounts::umount(&args).map(done),
        Command::Speed => speed::run().map(done),
        Command::Mount(_) => Err(CliError::failed("not here yet")),
    };
    outcome.unwrap_or_else(|e| {
        if !e.message.is_empty() {
            eprintln!("kmsfs: {e}");
        }
        e.exit.into()
    })
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
