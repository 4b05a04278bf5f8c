//! The command line: arguments, one file per family of commands, output and progress.
//!
//! Called by `bin/kmsfs.rs`. Translates and shows; what is done stands in `volume`, `client` and `fuse`.

mod args;
mod audit;
mod block;
mod control;
mod defaults;
mod error;
mod figures;
mod follow;
mod key_args;
mod key_data;
mod keys;
mod mount;
mod mount_plan;
mod mounts;
mod named;
mod output;
mod progress;
mod reencrypt;
mod reencrypt_job;
mod runtime_dir;
mod serve;
mod service;
mod snapshot_args;
mod snapshot_job;
mod snapshots;
mod speed;
#[cfg(feature = "s3")]
mod store;
mod streams;
mod top;
mod versions;
mod volume_args;
mod volume_create;
mod volume_state;
mod volumes;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use log::LevelFilter;

use args::{Cli, Command};

/// Descriptors that may be needed: directories and files that are kept open, by a mount above all.
const OPEN_FILES: u64 = 65_536;

/// What mount(8) expects of a helper whose mount failed.
const MOUNT_FAILED: u8 = 32;

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (cli, by_mount) = match mount::as_helper(&arguments) {
        Some(Ok(cli)) => (cli, true),
        Some(Err(exit)) => return exit,
        None => (Cli::parse_from(arguments), false),
    };
    crate::logging::init(match cli.verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    });
    crate::sys::harden::raise_open_files(OPEN_FILES);
    let kms = service::named(&cli.kms);
    let kms = kms.as_deref();
    let outcome = match cli.command {
        Command::Fsck(args) => return volumes::fsck(&args, kms),
        Command::Rewrap(args) => volumes::rewrap(&args, kms),
        Command::Reencrypt(args) => reencrypt::reencrypt(&args, kms),
        Command::Init(args) => volumes::init(&args, kms).map(done),
        Command::Info(args) => volumes::info(&args).map(done),
        Command::Key(command) => keys::run(command, kms).map(done),
        Command::Copy(args) => snapshots::copy(&args, kms).map(done),
        Command::Send(args) => streams::send(&args).map(done),
        Command::Receive(args) => streams::receive(&args).map(done),
        Command::Snapshot(command) => snapshots::run(&command, kms, cli.verbose).map(done),
        Command::Volume(command) => named::run(&command, kms, cli.verbose).map(done),
        Command::Status(args) => mounts::status(&args).map(done),
        Command::Top(args) => top::run(&args).map(done),
        Command::Lock(args) => mounts::lock(&args).map(done),
        Command::Unlock(args) => mounts::unlock(&args).map(done),
        Command::Default(args) => defaults::default(&args).map(done),
        Command::Cp(args) => defaults::copy(&args).map(done),
        Command::Umount(args) => mounts::umount(&args).map(done),
        Command::Speed => speed::run().map(done),
        Command::Audit { arguments } => audit::run(&arguments).map(done),
        Command::Mount(args) => mount::mount(&args, kms, cli.verbose).map(done),
    };
    outcome.unwrap_or_else(|e| {
        if !e.message.is_empty() {
            eprintln!("kmsfs: {e}");
        }
        if by_mount { MOUNT_FAILED.into() } else { e.exit.into() }
    })
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
