//! What a mount command asks for, checked before anything is done.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{MountArgs, parse_duration};
use super::error::{CliError, Exit};
use crate::volume::{Durability, Integrity};

/// Options that mount(8) and fstab add for themselves, which mean nothing here.
const IGNORED: &[&str] = &[
    "rw",
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "async",
    "relatime",
    "noatime",
    "strictatime",
    "nodiratime",
    "default_permissions",
    "exec",
    "dirsync",
];

/// A mount as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are mount(8)'s own independent options")]
pub struct MountPlan {
    /// Lower directory, absolute.
    pub lower: PathBuf,
    /// Mount point, absolute.
    pub mountpoint: PathBuf,
    /// Key services, as named.
    pub kms: Option<String>,
    /// Refuse every change.
    pub read_only: bool,
    /// An older state of the volume will do.
    pub accept_older: bool,
    /// It is a snapshot that is meant.
    pub snapshot: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Keys to bring along, by name.
    pub customer_keys: Vec<(String, PathBuf)>,
    /// Whether each caller's own right to a key counts, where that was said.
    pub per_caller: Option<bool>,
    /// Set-user-id has an effect.
    pub suid: bool,
    /// Device files have an effect.
    pub dev: bool,
    /// Programs do not run.
    pub no_exec: bool,
    /// The mount point may hold something.
    pub non_empty: bool,
    /// Name of the volume that is attached, where the mount is to have grants of its own.
    pub attach: Option<String>,
    /// Unmount after this long without use.
    pub idle: Option<Duration>,
    /// What a power cut may cost.
    pub durability: Durability,
    /// What is compared with the seal before a file is read.
    pub integrity: Integrity,
}

impl MountPlan {
    /// Puts arguments and options together and checks the places.
    pub fn new(args: &MountArgs, kms: Option<&str>) -> Result<Self, CliError> {
        let mut plan = Self {
            lower: args.lower.clone(),
            mountpoint: args.mountpoint.clone(),
            kms: kms.map(str::to_owned),
            read_only: args.read_only,
            accept_older: args.accept_older,
            snapshot: false,
            allow_other: args.allow_other,
            customer_keys: args.customer_key.clone(),
            per_caller: None,
            suid: false,
            dev: false,
            no_exec: false,
            non_empty: false,
            attach: args.attach.clone(),
            idle: args.idle,
            durability: Durability::default(),
            integrity: Integrity::default(),
        };
        let options = || args.options.iter().map(|option| option.trim()).filter(|option| !option.is_empty());
        // Services for some keys stand beside the first one, wherever that is named.
        let is_beside = |option: &&str| option.starts_with("kms=arn:");
        for option in options().filter(|option| !is_beside(option)).chain(options().filter(is_beside)) {
            plan.apply(option)?;
        }
        plan.check_places()?;
        Ok(plan)
    }

    fn apply(&mut self, option: &str) -> Result<(), CliError> {
        let usage = |text: String| CliError::new(Exit::Usage, text);
        if IGNORED.contains(&option) || option.starts_with("x-") || option.starts_with("comment=") {
            return Ok(());
        }
        match option.split_once('=') {
            None => match option {
                "ro" => self.read_only = true,
                "accept_older" => self.accept_older = true,
                "snapshot" => (self.snapshot, self.read_only) = (true, true),
                "allow_other" => self.allow_other = true,
                "suid" => self.suid = true,
                "nosuid" => self.suid = false,
                "dev" => self.dev = true,
                "nodev" => self.dev = false,
                "noexec" => self.no_exec = true,
                "nonempty" => self.non_empty = true,
                other => return Err(usage(format!("the mount option '{other}' is not known"))),
            },
            Some(("kms", beside)) if beside.starts_with("arn:") => {
                self.kms = Some(format!("{} {beside}", self.kms.as_deref().unwrap_or_default()));
            }
            Some(("kms", endpoint)) => self.kms = Some(endpoint.to_owned()),
            Some(("idle", time)) => {
                let time = parse_duration(time).map_err(|e| usage(format!("the mount option idle: {e}")))?;
                self.idle = Some(time);
            }
            Some(("decide", "caller")) => self.per_caller = Some(true),
            Some(("decide", "mount")) => self.per_caller = Some(false),
            Some(("decide", other)) => {
                return Err(usage(format!("decide={other} is not offered; there are caller and mount")));
            }
            Some(("durability", "strict")) => self.durability = Durability::Strict,
            Some(("durability", "relaxed")) => self.durability = Durability::Relaxed,
            Some(("durability", other)) => {
                return Err(usage(format!(
                    "durability={other} is not offered; there are strict and relaxed"
                )));
            }
            Some(("integrity", "block")) => self.integrity = Integrity::Block,
            Some(("integrity", "file")) => self.integrity = Integrity::File,
            Some(("integrity", other)) => {
                return Err(usage(format!("integrity={other} is not offered; there are block and file")));
            }
            Some((other, _)) => return Err(usage(format!("the mount option '{other}' is not known"))),
        }
        Ok(())
    }

    /// Whether each caller's own right counts: on a shared mount, unless it was said otherwise. `is_unix`: the key service
    /// can be told who calls.
    pub fn decides_per_caller(&self, is_unix: bool) -> Result<bool, CliError> {
        match self.per_caller {
            Some(false) => Ok(false),
            None if !self.allow_other => Ok(false),
            Some(true) | None if is_unix => Ok(true),
            Some(true) | None => Err(CliError::new(
                Exit::Usage,
                "only a kmsd on its Unix socket decides for each caller of a mount that others use; to let the mount's own \
                 right to keys count for everybody, mount with -o decide=mount",
            )),
        }
    }

    fn check_places(&mut self) -> Result<(), CliError> {
        let missing =
            |path: &Path, e: &std::io::Error| CliError::new(Exit::Mount, format!("{}: {e}", path.display()));
        self.lower = std::fs::canonicalize(&self.lower).map_err(|e| missing(&self.lower, &e))?;
        if std::fs::canonicalize(&self.mountpoint).is_ok_and(|place| place.starts_with(&self.lower)) {
            let shown = self.mountpoint.display();
            let text = format!("mount point {shown} lies inside the lower directory; choose a place outside");
            return Err(CliError::new(Exit::Mount, text));
        }
        self.mountpoint = check_mountpoint(&self.mountpoint, self.non_empty)?;
        Ok(())
    }
}

/// The whole path of `mountpoint`, where something can be mounted there: it is a directory, and empty unless `non_empty`.
pub fn check_mountpoint(mountpoint: &Path, non_empty: bool) -> Result<PathBuf, CliError> {
    let shown = mountpoint.display();
    let refused = |exit, why: &str| CliError::new(exit, format!("mount point {shown} {why}"));
    let told = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => refused(Exit::Mount, "does not exist; make it with mkdir"),
        _ if is_dead(&e) => refused(Exit::Busy, DEAD),
        _ => CliError::new(Exit::Mount, format!("{shown}: {e}")),
    };
    let place = std::fs::canonicalize(mountpoint).map_err(told)?;
    if !std::fs::metadata(&place).map_err(told)?.is_dir() {
        return Err(refused(Exit::Mount, "is not a directory"));
    }
    let mut entries = std::fs::read_dir(&place).map_err(told)?;
    // A mount whose daemon is gone may open, and fail only here.
    let first = entries.next().transpose().map_err(told)?;
    if is_mounted(&place) {
        return Err(refused(Exit::Busy, "is in use: a kmsfs is mounted there"));
    }
    if first.is_some() && !non_empty {
        let why = "is not empty; choose another, or hide what is there with -o nonempty";
        return Err(refused(Exit::Mount, why));
    }
    Ok(place)
}

const DEAD: &str = "holds a mount whose daemon is gone; unmount it first, with 'kmsfs umount'";

/// How a mount whose daemon died answers.
fn is_dead(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
}

/// Whether a kmsfs is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    mount_table().iter().any(|(mountpoint, _)| mountpoint == path)
}

/// Mount points of kmsfs that this process sees, each with its lower directory, alive or not. Asks no daemon.
pub fn mount_table() -> Vec<(PathBuf, PathBuf)> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let ours = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let is_ours = *fields.get(dash + 1)? == b"fuse.kmsfs";
        is_ours.then_some((unescape(fields.get(4)?), unescape(fields.get(dash + 2)?)))
    };
    table.split(|b| *b == b'\n').filter_map(ours).collect()
}

/// A path of the mount table, where blanks and backslashes are `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten().and_then(|digits| {
            digits
                .iter()
                .try_fold(0_u8, |n, d| n.checked_mul(8)?.checked_add(d.checked_sub(b'0').filter(|d| *d < 8)?))
        });
        if let Some(byte) = octal {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &str) -> Result<MountPlan, CliError> {
        let args = MountArgs {
            lower: "/proc".into(),
            mountpoint: "/sys".into(),
            options: options.split(',').map(str::to_owned).collect(),
            foreground: false,
            allow_other: false,
            read_only: false,
            accept_older: false,
            idle: None,
            log: None,
            daemon_child: false,
            attach: None,
            customer_key: Vec::new(),
        };
        let mut plan = MountPlan {
            lower: args.lower.clone(),
            mountpoint: args.mountpoint.clone(),
            kms: None,
            read_only: false,
            accept_older: false,
            snapshot: false,
            allow_other: false,
            customer_keys: Vec::new(),
            per_caller: None,
            suid: false,
            dev: false,
            no_exec: false,
            non_empty: false,
            attach: None,
            idle: None,
            durability: Durability::default(),
            integrity: Integrity::default(),
        };
        args.options.iter().try_for_each(|option| plan.apply(option)).map(|()| plan)
    }

    #[test]
    fn the_options_of_fstab_are_taken() {
        let plan =
            plan("rw,nofail,x-systemd.automount,ro,allow_other,suid,noexec,kms=unix:/s,idle=10m").unwrap();
        assert!(plan.read_only && plan.allow_other && plan.suid && plan.no_exec && !plan.dev);
        assert_eq!((plan.kms.as_deref(), plan.idle), (Some("unix:/s"), Some(Duration::from_mins(10))));
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        let bad =
            ["decide=nobody", "compress", "compress=zstd", "idle=never", "durability=none", "integrity=none"];
        for bad in bad {
            let error = plan(bad).unwrap_err();
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.message.contains(bad.split('=').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_shared_mount_decides_for_each_caller_unless_it_is_told_otherwise() {
        let decides = |options, is_unix| plan(options).unwrap().decides_per_caller(is_unix).ok();
        assert_eq!(decides("rw", true), Some(false));
        assert_eq!(decides("allow_other", true), Some(true));
        assert_eq!(decides("decide=caller", true), Some(true));
        assert_eq!(decides("allow_other,decide=mount", false), Some(false));
        assert_eq!(decides("allow_other", false), None, "that service cannot");
    }

    #[test]
    fn paths_of_the_mount_table_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(br"/a\9\04"), Path::new(r"/a\9\04"));
    }
}
