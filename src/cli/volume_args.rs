//! The arguments of `kmsfs volume`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::args::{parse_customer_key, parse_duration};

/// One command about volumes by name.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume of this host: encrypted, under --key, the host's default key or the service-managed one
    Create(CreateArgs),
    /// Mount a volume; a block volume's filesystem with it
    Attach(AttachArgs),
    /// Unmount a volume
    Detach(DetachArgs),
    /// The volumes of this host
    List(ListArgs),
    /// Everything about a volume
    Describe(DescribeArgs),
    /// Make a block volume larger, attached or not, or set another quota
    Resize(ResizeArgs),
    /// Remove a volume and all its data
    Delete(DeleteArgs),
    /// Take up a volume that is there already
    Add(AddArgs),
    /// Forget a volume; its data stays
    Forget(NameArgs),
    /// Retire the grants that mounts left which were killed
    Gc(GcArgs),
    /// Show or set the key that new volumes of this host take
    Defaults(DefaultsArgs),
}

/// A volume's name alone.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the volume
    pub name: String,
}

/// The filesystem on a block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BlockFilesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// None: attach gives the device alone
    None,
}

impl BlockFilesystem {
    /// As it stands in the registry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::None => "none",
        }
    }
}

/// Arguments of `volume create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the volume
    pub name: String,
    /// Master key: alias/NAME, id or ARN. Default: the host's (volume defaults), else alias/aws/kmsfs
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Most that it may hold (500M, 20G), by a project quota of the lower filesystem
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "block")]
    pub size: Option<u64>,
    /// Make it a block device of this size, sparse, with a filesystem of its own. Needs root
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block: Option<u64>,
    /// The filesystem on a block device
    #[arg(long, value_name = "TYPE", value_enum, default_value = "ext4", requires = "block")]
    pub fs: BlockFilesystem,
    /// Bind each name to what it names, as 'kmsfs init --bind-names'
    #[arg(long)]
    pub bind_names: bool,
    /// Lower directory: empty, or made. Default: in the host's state directory
    #[arg(long, value_name = "LOWER")]
    pub at: Option<PathBuf>,
    /// Directory for the recovery sheet. Default: ~/.local/share/kmsfs/recovery
    #[arg(long, value_name = "DIR")]
    pub recovery_sheet: Option<PathBuf>,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `volume gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `volume attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Make no grant for the mount: it uses what rights you have
    #[arg(long)]
    pub own_right: bool,
    /// Name of the volume
    pub name: String,
    /// Mount point: an empty directory. Not for a block volume without filesystem
    pub mountpoint: Option<PathBuf>,
    /// Mount options, as for 'kmsfs mount'
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Let other users in: owners and modes decide, and the key service for each user
    #[arg(long)]
    pub allow_other: bool,
    /// Bring a key of your own along, as with 'kmsfs mount'
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_customer_key)]
    pub customer_key: Vec<(String, PathBuf)>,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Unmount after this long without use (30s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle: Option<Duration>,
}

impl AttachArgs {
    /// The volume's name, where its mount is to have grants of its own.
    pub fn granted_name(&self) -> Option<String> {
        (!self.own_right).then(|| self.name.clone())
    }
}

/// Arguments of `volume detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Name of the volume
    pub name: String,
    /// Detach now, finish when the last file is closed
    #[arg(long, short)]
    pub lazy: bool,
}

/// Arguments of `volume list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `volume describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Name of the volume
    pub name: String,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `volume resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Name of the volume
    pub name: String,
    /// The new size (500M, 20G)
    #[arg(value_parser = parse_size)]
    pub size: u64,
}

/// Arguments of `volume delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the volume
    pub name: String,
    /// Really; without it the command only says what would go
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `volume add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name for the volume
    pub name: String,
    /// Its lower directory
    pub lower: PathBuf,
    /// It is a block volume: one that was forgotten, or a copy of one. Needs root
    #[arg(long)]
    pub block: bool,
}

/// Arguments of `volume defaults`.
#[derive(Debug, Args)]
pub struct DefaultsArgs {
    /// New volumes take this key where none is named
    #[arg(long, value_name = "KEY", conflicts_with = "no_key")]
    pub key: Option<String>,
    /// New volumes take the service-managed key again
    #[arg(long)]
    pub no_key: bool,
    /// JSON output
    #[arg(long)]
    pub json: bool,
}

/// `500M`, `20G`, `1T`, or bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "a number with K, M, G or T, such as 20G".to_owned())?;
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("the unit is K, M, G or T".to_owned()),
    };
    number
        .checked_mul(1 << shift)
        .filter(|bytes| (1..=1 << 44).contains(bytes))
        .ok_or_else(|| "out of range: 1 byte to 16T".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!((parse_size("2K"), parse_size("500MiB")), (Ok(2048), Ok(500 << 20)));
        assert_eq!((parse_size("20g"), parse_size("1TB")), (Ok(20 << 30), Ok(1 << 40)));
        for bad in ["", "G", "0", "-1", "1X", "17T", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
