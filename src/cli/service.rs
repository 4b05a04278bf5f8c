//! The key services that a command calls: from `--kms`, the environment, or the default sockets.

use std::sync::Arc;

use crate::client::{ClientError, Credentials, Endpoint, Kms, KmsConfig, RetryLimits, Services, Timeouts};

/// Names the key service where the command line does not.
pub const VARIABLE: &str = "KMSFS_KMS";

/// On whose behalf calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behalf {
    /// The filesystem's (`kms:ViaService`).
    Filesystem,
    /// The same, for a mount, whose programs must not wait long for a daemon of this machine.
    Mount,
    /// The user's own.
    User,
}

/// The services that are meant by `named`, or by its absence.
pub fn services(named: Option<&str>) -> Result<Services, ClientError> {
    Services::parse(named.unwrap_or_default(), || {
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
        let is_root = rustix::process::geteuid().is_root();
        Endpoint::default_socket(runtime_dir.as_deref(), is_root)
    })
}

/// What was named on the command line, as one text; `None` where nothing was. Who names services for some keys alone means
/// them beside the one of the environment.
pub fn named(words: &[String]) -> Option<String> {
    let others_only = !words.is_empty() && words.iter().all(|word| word.starts_with("arn:"));
    let first = if others_only { std::env::var(VARIABLE).ok() } else { None };
    let all: Vec<&str> = first.iter().chain(words).map(String::as_str).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

/// The services for work on a volume: those of the command line, else those that its mount or its entry in the registry
/// names, else those of the environment.
pub fn for_volume<'a>(named: Option<&'a str>, known: Option<&'a str>) -> Option<&'a str> {
    let from_environment = named.is_some_and(|named| std::env::var(VARIABLE).is_ok_and(|var| var == named));
    if from_environment { known.or(named) } else { named.or(known) }
}

/// A client of the service at `named`.
pub fn connect(named: Option<&str>, behalf: Behalf) -> Result<Arc<Kms>, ClientError> {
    connect_as(named, behalf, None)
}

/// A client for a mount, at the endpoint as it is written: for this process, or in the name of the mount's principal.
pub fn connect_mount(endpoint: &str, principal: Option<&str>) -> Result<Arc<Kms>, ClientError> {
    connect_as(Some(endpoint), Behalf::Mount, principal)
}

/// A client; what is not asked for a user is asked in the name of a mount's own principal, if one is named.
fn connect_as(
    named: Option<&str>,
    behalf: Behalf,
    mount_principal: Option<&str>,
) -> Result<Arc<Kms>, ClientError> {
    let services = services(named)?;
    let client = |endpoint| one(endpoint, behalf, mount_principal);
    let first = client(services.first)?;
    let beside = |(beginning, endpoint)| Ok((beginning, client(endpoint)?));
    let others = services.others.into_iter().map(beside).collect::<Result<_, ClientError>>()?;
    Ok(Arc::new(first.beside(others)))
}

fn one(endpoint: Endpoint, behalf: Behalf, mount_principal: Option<&str>) -> Result<Kms, ClientError> {
    let variables = |name: &str| std::env::var(name).ok();
    let credentials = if endpoint.is_unix() { None } else { Some(Credentials::find(&variables, &endpoint)?) };
    let prompt = behalf == Behalf::Mount && endpoint.is_unix();
    Kms::new(KmsConfig {
        endpoint,
        timeouts: if prompt { Timeouts::prompt() } else { Timeouts::default() },
        retry: RetryLimits::default(),
        via_service: behalf != Behalf::User,
        credentials,
        mount_principal: mount_principal.map(str::to_owned),
    })
}
