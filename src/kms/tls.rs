//! TLS on the TCP listener: a certificate and a key from PEM files, read again when the daemon is told to.
//!
//! Made by the daemon at start. Callers prove who they are by their signatures; TLS hides what they say.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

/// Longest certificate chain or key file read.
const MAX_PEM: u64 = 1024 * 1024;

/// The two files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the daemon's own certificate first (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM: PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// Why TLS cannot be spoken.
#[derive(Debug)]
pub struct TlsError {
    /// The file to look at.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// The certificate in use.
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.files)
    }
}

impl Tls {
    /// Reads both files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(config(&files)?));
        Ok(Self { files, config })
    }

    /// Reads both files again; on an error the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(config(&self.files)?);
        *self.config.write() = fresh;
        Ok(())
    }

    /// What accepts the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read()))
    }
}

fn config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let wrong = |path: &Path, what: String| TlsError { path: path.to_owned(), what };
    let of_certificate = |what| wrong(&files.certificate, what);
    let of_key = |what| wrong(&files.key, what);
    let chain = read(&files.certificate).map_err(of_certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|error| of_certificate(format!("not a PEM certificate: {error}")))?;
    if chain.is_empty() {
        return Err(of_certificate("holds no certificate".into()));
    }
    check_mode(&files.key).map_err(of_key)?;
    let key = read(&files.key).map_err(of_key)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| of_key(format!("not an unencrypted PEM private key: {error}")))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| of_key(format!("does not go with the certificate: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let facts = fs::metadata(path).map_err(|error| error.to_string())?;
    if facts.len() > MAX_PEM {
        return Err(format!("longer than {MAX_PEM} bytes"));
    }
    fs::read(path).map(Zeroizing::new).map_err(|error| error.to_string())
}

fn check_mode(path: &Path) -> Result<(), String> {
    let mode = fs::metadata(path).map_err(|error| error.to_string())?.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(format!("mode {mode:04o} lets others get at the key; run `chmod 0400` on it"));
    }
    Ok(())
}
