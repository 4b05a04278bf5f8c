//! AWS credentials and region: the environment, then the shared files.
//!
//! Called by whoever makes a client for an endpoint that needs signed requests. Must never print a secret.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{ClientError, Endpoint};

/// The region named in the scope of a signature where nothing says otherwise.
pub const DEFAULT_REGION: &str = "local";
/// Largest credentials or config file read.
const MAX_FILE: u64 = 1024 * 1024;

/// The secret half of an access key. Wiped on drop, never printed.
pub struct SecretAccessKey(Zeroizing<String>);

impl SecretAccessKey {
    /// Takes over the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one derivation that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

/// Who signs, and for which region.
#[derive(Debug)]
pub struct Credentials {
    /// Public half of the access key.
    pub access_key_id: String,
    /// Secret half.
    pub secret: SecretAccessKey,
    /// Token of temporary credentials.
    pub session_token: Option<String>,
    /// Region of the signature's scope.
    pub region: String,
}

/// The environment's variables by name, so that tests need not change the process's own.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Credentials {
    /// Finds credentials as the AWS command line does: variables, then the profile in the shared files.
    pub fn find(variables: Variables<'_>, endpoint: &Endpoint) -> Result<Self, ClientError> {
        let set = |name: &str| variables(name).filter(|v| !v.is_empty());
        let profile_name = profile_name(&set);
        let profile = Profile::load(&set, &profile_name)?;
        let region = set("AWS_REGION")
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .or_else(|| profile.region.clone())
            .or_else(|| host_region(endpoint))
            .unwrap_or_else(|| DEFAULT_REGION.to_owned());
        if let (Some(id), Some(secret)) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
            let session_token = set("AWS_SESSION_TOKEN");
            return Ok(Self {
                access_key_id: id,
                secret: SecretAccessKey::new(secret),
                session_token,
                region,
            });
        }
        match (profile.access_key_id, profile.secret) {
            (Some(access_key_id), Some(secret)) => {
                Ok(Self { access_key_id, secret, session_token: profile.session_token, region })
            }
            _ => Err(ClientError::Credentials(format!(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or put an access key under profile '{}' in {}",
                profile_name,
                shared_file(&set, "AWS_SHARED_CREDENTIALS_FILE", "credentials")
                    .map_or_else(|| "~/.aws/credentials".to_owned(), |p| p.display().to_string()),
            ))),
        }
    }
}

fn profile_name(set: &dyn Fn(&str) -> Option<String>) -> String {
    set("AWS_PROFILE").or_else(|| set("AWS_DEFAULT_PROFILE")).unwrap_or_else(|| "default".to_owned())
}

/// The address that the profile in the shared files names for every service, unless `AWS_IGNORE_CONFIGURED_ENDPOINT_URLS`
/// is `true` (AWS SDKs and Tools reference, service-specific endpoints). Of sections `services` nothing is read.
#[cfg(feature = "s3")]
pub(super) fn profile_endpoint(variables: Variables<'_>) -> Result<Option<String>, ClientError> {
    let set = |name: &str| variables(name).filter(|v| !v.is_empty());
    if set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    Ok(Profile::load(&set, &profile_name(&set))?.endpoint)
}

fn host_region(endpoint: &Endpoint) -> Option<String> {
    match endpoint {
        Endpoint::Http(authority) | Endpoint::Https(authority) => authority.region().map(str::to_owned),
        Endpoint::Unix(_) => None,
    }
}

#[derive(Default)]
struct Profile {
    access_key_id: Option<String>,
    secret: Option<SecretAccessKey>,
    session_token: Option<String>,
    region: Option<String>,
    #[cfg_attr(not(feature = "s3"), allow(dead_code, reason = "asked for stores alone"))]
    endpoint: Option<String>,
}

impl Profile {
    fn load(set: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Self, ClientError> {
        let mut profile = Self::default();
        // The credentials file wins over the config file, so it is read last.
        if let Some(path) = shared_file(set, "AWS_CONFIG_FILE", "config") {
            let section = if name == "default" { name.to_owned() } else { format!("profile {name}") };
            profile.take(&read_section(&path, &section)?);
        }
        if let Some(path) = shared_file(set, "AWS_SHARED_CREDENTIALS_FILE", "credentials") {
            profile.take(&read_section(&path, name)?);
        }
        Ok(profile)
    }

    fn take(&mut self, section: &BTreeMap<String, Zeroizing<String>>) {
        let text = |key: &str| section.get(key).map(|v| v.as_str().to_owned());
        if let (Some(id), Some(secret)) = (text("aws_access_key_id"), text("aws_secret_access_key")) {
            self.access_key_id = Some(id);
            self.secret = Some(SecretAccessKey::new(secret));
            self.session_token = text("aws_session_token");
        }
        self.region = text("region").or_else(|| self.region.take());
        self.endpoint = text("endpoint_url").or_else(|| self.endpoint.take());
    }
}

fn shared_file(set: &dyn Fn(&str) -> Option<String>, variable: &str, name: &str) -> Option<PathBuf> {
    set(variable)
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".aws").join(name)))
}

/// The settings under `[section]`; none when the file or the section is missing.
fn read_section(path: &Path, section: &str) -> Result<BTreeMap<String, Zeroizing<String>>, ClientError> {
    let unreadable = |e: std::io::Error| ClientError::Credentials(format!("{}: {e}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(unreadable)?;
    Ok(parse_section(&text, section))
}

fn parse_section(text: &str, section: &str) -> BTreeMap<String, Zeroizing<String>> {
    let mut settings = BTreeMap::new();
    let mut inside = false;
    for line in text.lines().map(str::trim_end) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let words: Vec<_> = name.split_whitespace().collect();
            inside = words.join(" ") == section;
        } else if inside && !line.starts_with([' ', '\t']) {
            // Indented lines are nested settings (`s3 =`), which are not ours.
            if let Some((key, value)) = line.split_once('=') {
                settings.insert(key.trim().to_ascii_lowercase(), Zeroizing::new(value.trim().to_owned()));
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pairs: &[(&str, &str)]) -> Result<Credentials, ClientError> {
        let endpoint = "http://127.0.0.1:1".parse().unwrap();
        let variables =
            |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Credentials::find(&variables, &endpoint)
    }

    fn shared_files() -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let home = std::env::temp_dir().join(format!("kmsfs-credentials-{}-{n}", std::process::id()));
        std::fs::create_dir_all(home.join(".aws")).unwrap();
        let credentials = "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key=abc\n\n# note\n\
                           [ops]\naws_access_key_id=AKIDOPS\naws_secret_access_key=d=ef\naws_session_token=tok\n";
        std::fs::write(home.join(".aws/credentials"), credentials).unwrap();
        let config =
            "[default]\nregion = eu-west-1\ns3 =\n  region = nested\n[profile ops]\nregion=eu-north-1\n";
        std::fs::write(home.join(".aws/config"), config).unwrap();
        home
    }

    #[test]
    fn variables_come_before_the_shared_files() {
        let home = shared_files();
        let home_text = home.to_str().unwrap();
        let found = find(&[
            ("HOME", home_text),
            ("AWS_ACCESS_KEY_ID", "AKIDENV"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_REGION", "us-east-1"),
        ])
        .unwrap();
        assert_eq!((found.access_key_id.as_str(), found.region.as_str()), ("AKIDENV", "us-east-1"));
        assert!(found.session_token.is_none());
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn a_profile_gives_key_token_and_region() {
        let home = shared_files();
        let found = find(&[("HOME", home.to_str().unwrap()), ("AWS_PROFILE", "ops")]).unwrap();
        assert_eq!((found.access_key_id.as_str(), found.region.as_str()), ("AKIDOPS", "eu-north-1"));
        assert_eq!((found.secret.expose(), found.session_token.as_deref()), ("d=ef", Some("tok")));
        let found = find(&[("HOME", home.to_str().unwrap())]).unwrap();
        assert_eq!((found.access_key_id.as_str(), found.region.as_str()), ("AKIDDEFAULT", "eu-west-1"));
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn without_credentials_the_message_says_what_to_set() {
        let error = find(&[("HOME", "/nonexistent")]).unwrap_err().to_string();
        assert!(
            error.contains("AWS_ACCESS_KEY_ID") && error.contains("/nonexistent/.aws/credentials"),
            "{error}"
        );
    }

    #[test]
    fn a_secret_is_not_printed() {
        let found = find(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "hidden")]).unwrap();
        assert!(!format!("{found:?}").contains("hidden"));
        assert_eq!(found.region, DEFAULT_REGION);
    }
}
