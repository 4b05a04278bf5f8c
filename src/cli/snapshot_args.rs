//! The arguments of `kmsfs snapshot`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::parse_customer_key;

/// One command about snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep the volume as it is now; it may be mounted and in use
    Create(CreateArgs),
    /// The snapshots of a volume
    List(ListArgs),
    /// Mount a snapshot, read-only
    Mount(MountArgs),
    /// What changed between two snapshots, or since one
    Diff(DiffArgs),
    /// Put the volume back to a snapshot; the state before becomes a snapshot of its own
    Restore(RestoreArgs),
    /// Remove a snapshot
    Delete(DeleteArgs),
}

/// Arguments of `snapshot create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the volume, its mount point or its lower directory
    pub volume: PathBuf,
    /// Name for the snapshot
    pub name: String,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapshot list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Name of the volume, its mount point or its lower directory
    pub volume: PathBuf,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapshot mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Name of the volume, its mount point or its lower directory
    pub volume: PathBuf,
    /// Name of the snapshot
    pub name: String,
    /// Mount point: an empty directory
    pub mountpoint: PathBuf,
    /// Let other users in: owners and modes decide, and the key service for each user
    #[arg(long)]
    pub allow_other: bool,
    /// Bring a key of your own along, as with 'kmsfs mount'
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_customer_key)]
    pub customer_key: Vec<(String, PathBuf)>,
}

/// Arguments of `snapshot diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name of the volume, its mount point or its lower directory
    pub volume: PathBuf,
    /// The older snapshot
    pub from: String,
    /// The newer one. Default: the volume as it is
    pub to: Option<String>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `snapshot restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name of the volume or its lower directory; it must not be mounted
    pub volume: PathBuf,
    /// Name of the snapshot
    pub name: String,
}

/// Arguments of `snapshot delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the volume, its mount point or its lower directory
    pub volume: PathBuf,
    /// Name of the snapshot
    pub name: String,
}
