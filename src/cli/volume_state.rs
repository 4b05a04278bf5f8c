//! How volumes of this host stand: `kmsfs volume list` and `describe`, and what keeps one from being attached.
//!
//! Called by `kmsfs volume`. What a killed mount left is told as what it is, with the command that takes it away. Must never
//! ask a dead mount.

use std::path::PathBuf;

use serde_json::json;

use super::block;
use super::error::{CliError, Exit};
use super::mount_plan::mount_table;
use super::named::{mount_of, registry};
use super::output::{facts, json as print_json, line, size, table, time_of};
use super::volume_args::{DescribeArgs, ListArgs};
use crate::volume::registry::{Entry, State};
use crate::volume::{self};

/// How a volume stands.
pub enum Standing {
    /// It can be attached.
    Available,
    /// Its lower directory is not there, or is none of a volume.
    Missing,
    /// It is being made, or its making was interrupted.
    Creating,
    /// Its deletion has begun.
    Deleting,
    /// It is attached here.
    InUse(PathBuf),
    /// A block volume is mounted, and its device or filesystem is not there: between two steps, or cut between them.
    InPart,
    /// Its mount was killed, and this is left of it.
    MountGone(PathBuf),
    /// It is mounted here, and the mount does not answer.
    NoAnswer(PathBuf),
}

impl Standing {
    /// How the volume of `entry` stands now.
    pub fn of(entry: &Entry) -> Self {
        match entry.state {
            State::Creating => Self::Creating,
            State::Deleting => Self::Deleting,
            State::Available => Self::answering(entry).or_else(|| Self::left(entry)).unwrap_or_else(|| {
                if volume::peek(&entry.lower).is_ok() { Self::Available } else { Self::Missing }
            }),
        }
    }

    fn answering(entry: &Entry) -> Option<Self> {
        if entry.block.is_none() {
            return mount_of(entry).map(|status| Self::InUse(status.mountpoint));
        }
        match block::standing(entry) {
            block::Standing::NotMounted => None,
            block::Standing::InPart => Some(Self::InPart),
            block::Standing::At(place) => Some(Self::InUse(place)),
        }
    }

    /// What the kernel still has of a mount that does not answer.
    fn left(entry: &Entry) -> Option<Self> {
        let in_table = || mount_table().into_iter().find(|(_, lower)| *lower == entry.lower);
        let of_block = entry.block.as_ref().and_then(|_| block::left_at(entry));
        let place = of_block.or_else(|| in_table().map(|(place, _)| place))?;
        // Whoever serves it holds the lock.
        let is_served = volume::is_mounted(&entry.lower).unwrap_or(false);
        Some(if is_served { Self::NoAnswer(place) } else { Self::MountGone(place) })
    }

    /// As it is shown.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Missing => "missing",
            Self::Creating => "creating",
            Self::Deleting => "deleting",
            Self::InUse(_) => "in-use",
            Self::InPart => "in-part",
            Self::MountGone(_) => "mount-gone",
            Self::NoAnswer(_) => "no-answer",
        }
    }

    /// Whether anything of it is mounted.
    pub fn is_mounted(&self) -> bool {
        matches!(self, Self::InUse(_) | Self::InPart | Self::MountGone(_) | Self::NoAnswer(_))
    }

    /// Whether it may be tried to attach it: what is missing is told best by that.
    pub fn may_be_attached(&self) -> bool {
        matches!(self, Self::Available | Self::Missing)
    }

    /// Where it is attached.
    fn place(&self) -> Option<&PathBuf> {
        if let Self::InUse(place) = self { Some(place) } else { None }
    }

    /// What to do about it, where it does not stand as it should.
    fn advice(&self, name: &str) -> Option<String> {
        Some(match self {
            Self::Available | Self::InUse(_) => return None,
            Self::Missing => "its lower directory is not there; 'kmsfs volume describe' says more".to_owned(),
            Self::Creating => format!(
                "it is being made, or that was interrupted: the same 'kmsfs volume create {name}' ends that, \
                 'kmsfs volume delete {name} --yes' takes it away"
            ),
            Self::Deleting => format!("it is being deleted: 'kmsfs volume delete {name} --yes' ends that"),
            Self::InPart => format!(
                "it is attached in part, as while a command attaches or detaches it, or after one that was killed: \
                 'kmsfs volume detach {name}' ends that"
            ),
            Self::MountGone(place) => format!(
                "its mount was killed: 'kmsfs volume detach {name}' takes away what it left at {}",
                place.display()
            ),
            Self::NoAnswer(place) => {
                format!("its mount at {} does not answer: wait, or end its process", place.display())
            }
        })
    }

    /// Why it cannot be attached or deleted.
    pub fn refusal(&self, entry: &Entry) -> CliError {
        let name = &entry.name;
        let exit = if self.is_mounted() { Exit::Busy } else { Exit::Volume };
        let text = match (self, self.advice(name)) {
            (Self::InUse(place), _) => format!(
                "volume {name} is attached at {}; 'kmsfs volume detach {name}' detaches it",
                place.display()
            ),
            (_, advice) => format!("volume {name}: {}", advice.unwrap_or_default()),
        };
        CliError::new(exit, text)
    }
}

/// `kmsfs volume list`
pub fn list(args: &ListArgs) -> Result<(), CliError> {
    let (mut rows, mut values, mut advice) = (Vec::new(), Vec::new(), Vec::new());
    for entry in registry().list()? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                eprintln!("kmsfs: {e}");
                continue;
            }
        };
        let standing = Standing::of(&entry);
        let shown = standing.place().map_or_else(|| "-".to_owned(), |place| place.display().to_string());
        let kind = if entry.block.is_some() { "block" } else { "files" };
        rows.push(vec![entry.name.clone(), kind.to_owned(), standing.name().to_owned(), shown]);
        let next = standing.advice(&entry.name);
        values.push(json!({ "volume": entry, "state": standing.name(), "attached": standing.place(), "advice": next }));
        advice.extend(next.map(|next| format!("{}: {next}", entry.name)));
    }
    if args.json {
        return print_json(&values);
    }
    if rows.is_empty() {
        return line("no volumes; 'kmsfs volume create NAME' makes one");
    }
    table(&["NAME", "KIND", "STATE", "ATTACHED AT"], &rows)?;
    for text in advice {
        eprintln!("{text}");
    }
    Ok(())
}

/// `kmsfs volume describe`
pub fn describe(args: &DescribeArgs) -> Result<(), CliError> {
    let entry = registry().find(&args.name)?;
    let standing = Standing::of(&entry);
    let record = volume::peek(&entry.lower);
    let wrapped = record.as_ref().ok().map(|record| record.active().wrapped.clone());
    let advice = standing.advice(&entry.name);
    if args.json {
        let key = wrapped.as_ref().map(|wrapped| &wrapped.key_arn);
        return print_json(&json!({
            "volume": entry, "state": standing.name(), "attached": standing.place(), "record_key": key, "advice": advice
        }));
    }
    let left = if standing.is_mounted() {
        ""
    } else {
        ", left by a mount that ended: 'kmsfs volume gc' retires them"
    };
    facts(&[
        ("name", Some(entry.name)),
        ("state", Some(standing.name().to_owned())),
        ("to do", advice),
        ("attached at", standing.place().map(|place| place.display().to_string())),
        ("lower directory", Some(entry.lower.display().to_string())),
        ("volume id", Some(entry.volume_id)),
        ("key", Some(wrapped.map_or(entry.key_arn, |wrapped| wrapped.key_arn))),
        ("key service", entry.kms),
        ("made", Some(time_of(entry.created))),
        ("quota", entry.quota.map(|quota| size(quota.bytes))),
        (
            "mounts as",
            entry.attachment.map(|has| format!("{} (grants: {}{left})", has.principal, has.grants.len())),
        ),
        ("block device", entry.block.map(|block| format!("{}, {}", size(block.bytes), block.filesystem))),
        ("trouble", record.err().map(|e| e.to_string())),
    ])
}
