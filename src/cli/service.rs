//! The key service that a command calls: from `--kms`, the environment, or the default sockets.

use std::str::FromStr;
use std::sync::Arc;

use crate::client::{ClientError, Credentials, Endpoint, Kms, KmsConfig, RetryLimits, Timeouts};

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

/// The endpoint that is meant by `named`, or by its absence.
pub fn endpoint(named: Option<&str>) -> Result<Endpoint, ClientError> {
    let named = named.filter(|text| !text.is_empty());
    named.map_or_else(
        || {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
            let is_root = rustix::process::geteuid().is_root();
            Ok(Endpoint::default_socket(runtime_dir.as_deref(), is_root))
        },
        Endpoint::from_str,
    )
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
    let endpoint = endpoint(named)?;
    let variables = |name: &str| std::env::var(name).ok();
    let credentials = if endpoint.is_unix() { None } else { Some(Credentials::find(&variables, &endpoint)?) };
    let prompt = behalf == Behalf::Mount && endpoint.is_unix();
    let config = KmsConfig {
        endpoint,
        timeouts: if prompt { Timeouts::prompt() } else { Timeouts::default() },
        retry: RetryLimits::default(),
        via_service: behalf != Behalf::User,
        credentials,
        mount_principal: mount_principal.map(str::to_owned),
    };
    Kms::new(config).map(Arc::new)
}
