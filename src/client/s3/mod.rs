//! Objects of an S3-compatible store: uploads in parts that can be gone on with, and reads in ranges.
//!
//! Called by `kmsfs send` and `kmsfs receive`. What is stored is ciphertext; the store is trusted with nothing but keeping
//! it. An upload of more than one part notes in the store, beside the object that it makes, which parts are there and what
//! they hold, so that any host can go on with it:
//!
//! ```text
//! PREFIX/NAME.kmsfs           the object, once it is whole
//! PREFIX/NAME.kmsfs.upload    JSON {upload, part_bytes, parts: [{id, sha256}]}, until then
//! ```
//!
//! Must never replace an object that is whole, nor print a secret.

mod http;
mod upload;

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig,
};
use tokio::runtime::Runtime;

use super::stream::tls_config;
use super::{Credentials, Endpoint, Variables};

pub use upload::{Upload, part_bytes_for};

/// What whole streams are named with.
pub const OBJECT_SUFFIX: &str = ".kmsfs";
/// Bytes read at first, to learn what an object is, and at most.
const RANGE_MIN: u64 = 64 << 10;
const RANGE_MAX: u64 = 8 << 20;
/// Longest text of the store that is shown.
const SHOWN_MAX: usize = 300;
/// Making one connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How often, and for how long, a request is tried again.
const RETRIES: usize = 4;
const RETRY_TIME: Duration = Duration::from_mins(2);
/// The region of stores that have none.
const STORE_REGION: &str = "us-east-1";
/// Where the credentials of a machine at AWS are asked for.
const MACHINE_CREDENTIALS: &str = "169.254.169.254";

/// A place in a store: `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The bucket.
    pub bucket: String,
    /// What names of objects begin with, without slashes at its ends; may be empty.
    pub prefix: String,
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(plain) || Path::parse(prefix).is_err() {
            return Err(format!("'{text}' is no place in a store; write s3://BUCKET/PREFIX"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// What went wrong with a store: one line for people.
#[derive(Debug)]
pub struct StoreError(String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for io::Error {
    fn from(e: StoreError) -> Self {
        Self::other(e)
    }
}

/// A bucket, and the credentials to use it with.
pub struct Store {
    client: AmazonS3,
    runtime: Runtime,
    location: Location,
    endpoint: String,
}

impl Store {
    /// Prepares calls, with what the usual variables and files of AWS say: credentials, region, and, where `endpoint` is not
    /// given, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile's `endpoint_url`. No connection is made yet.
    pub fn open(
        location: Location,
        endpoint: Option<&str>,
        variables: Variables<'_>,
    ) -> Result<Self, StoreError> {
        let failed = |why: &dyn fmt::Display| StoreError(format!("{location} cannot be used: {why}"));
        let set = |name: &str| variables(name).filter(|value| !value.is_empty());
        let endpoint = endpoint.map(str::to_owned).or_else(|| set("AWS_ENDPOINT_URL_S3"));
        let endpoint = endpoint.or_else(|| set("AWS_ENDPOINT_URL"));
        let endpoint = match endpoint {
            None => super::credentials::profile_endpoint(variables).map_err(|e| failed(&e))?,
            named => named,
        };
        if let Some(bad) =
            endpoint.as_ref().filter(|e| !e.starts_with("http://") && !e.starts_with("https://"))
        {
            return Err(failed(&format!("the endpoint '{bad}' is not an http:// or https:// address")));
        }
        let http = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
        let tls = tls_config().map_err(|e| failed(&e))?;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&location.bucket)
            .with_client_options(ClientOptions::new().with_allow_http(http))
            .with_http_connector(http::Connector(tls))
            .with_disable_bulk_delete(true)
            .with_retry(retry);
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        match Credentials::find(variables, &Endpoint::Unix(PathBuf::new())) {
            Ok(found) => builder = signed_by(builder, &found),
            // A machine or a container at AWS has credentials of its own; another store knows none of these.
            Err(e) if endpoint.is_some() && set("AWS_SKIP_SIGNATURE").is_none() => return Err(failed(&e)),
            Err(_) => {}
        }
        let client = builder.build().map_err(|e| failed(&e))?;
        // One thread beside ours keeps the connections.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().map_err(|e| failed(&e))?;
        let endpoint = endpoint.unwrap_or_else(|| "Amazon S3".to_owned());
        Ok(Self { client, runtime, location, endpoint })
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let prefix = &self.location.prefix;
        let whole = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        Path::parse(whole).map_err(|e| StoreError(e.to_string()))
    }

    fn error(&self, what: &str, e: &Error) -> StoreError {
        let text = full_text(e);
        let (bucket, endpoint, said) = (&self.location.bucket, &self.endpoint, said_by_store(&text));
        StoreError(match e {
            _ if text.contains("NoSuchBucket") => format!("there is no bucket '{bucket}' at {endpoint}"),
            _ if text.contains(MACHINE_CREDENTIALS) => {
                "there are no credentials for Amazon S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 AWS_PROFILE; for another store name its address with --endpoint"
                    .to_owned()
            }
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => format!(
                "{endpoint} refuses the access key for '{}' ({said}); look at AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, and what the key may do with the bucket",
                self.location
            ),
            Error::NotFound { .. } => format!("there is no object '{what}' at {}", self.location),
            Error::Precondition { .. } => format!("'{what}' was replaced while it was read; begin again"),
            _ => format!("'{what}' at {endpoint}: {said}"),
        })
    }

    /// Names of whole objects, sorted, without the prefix.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let prefix = self.path("")?;
        let listed = self.runtime.block_on(self.client.list_with_delimiter(Some(&prefix)));
        let listed = listed.map_err(|e| self.error("the list", &e))?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename().map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| name.ends_with(OBJECT_SUFFIX)).collect();
        names.sort();
        Ok(names)
    }

    /// Length of an object; `None` where there is none of that name.
    pub fn size(&self, name: &str) -> Result<Option<u64>, StoreError> {
        // Not by HEAD, whose answer has no body to tell a missing bucket from a missing object.
        match self.fetch(name, 0..1, None) {
            Ok((meta, _)) => Ok(Some(meta.size)),
            Err(e @ Error::NotFound { .. }) if !full_text(&e).contains("NoSuchBucket") => Ok(None),
            Err(e) => Err(self.error(name, &e)),
        }
    }

    /// Reads an object from its beginning.
    pub fn reader(&self, name: &str) -> ObjectReader<'_> {
        ObjectReader { store: self, name: name.to_owned(), meta: None, at: 0, waiting: io::Cursor::default() }
    }

    /// A range of an object, all of it or what there is; of the version `etag` alone where one is named.
    fn fetch(
        &self,
        name: &str,
        range: Range<u64>,
        etag: Option<&str>,
    ) -> Result<(ObjectMeta, Vec<u8>), Error> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: etag.map(str::to_owned),
            ..GetOptions::default()
        };
        let path = self.path(name).map_err(http::refused)?;
        self.runtime.block_on(async {
            let got = self.client.get_opts(&path, options).await?;
            let meta = got.meta.clone();
            Ok((meta, got.bytes().await?.to_vec()))
        })
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let put = self.runtime.block_on(self.client.put(&path, PutPayload::from(bytes)));
        put.map(drop).map_err(|e| self.error(name, &e))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        self.runtime.block_on(self.client.delete(&path)).map_err(|e| self.error(name, &e))
    }
}

fn signed_by(builder: AmazonS3Builder, credentials: &Credentials) -> AmazonS3Builder {
    let unknown = credentials.region == super::credentials::DEFAULT_REGION;
    let region = if unknown { STORE_REGION } else { &credentials.region };
    let builder = builder
        .with_region(region)
        .with_access_key_id(&credentials.access_key_id)
        .with_secret_access_key(credentials.secret.expose());
    match &credentials.session_token {
        Some(token) => builder.with_token(token),
        None => builder,
    }
}

/// An object, read in ranges that grow: a connection that breaks costs one of them.
pub struct ObjectReader<'a> {
    store: &'a Store,
    name: String,
    /// What the first range told.
    meta: Option<ObjectMeta>,
    at: u64,
    waiting: io::Cursor<Vec<u8>>,
}

impl ObjectReader<'_> {
    fn next_range(&mut self) -> Result<(), StoreError> {
        let end = self.at + self.at.clamp(RANGE_MIN, RANGE_MAX);
        let known = self.meta.take();
        let etag = known.as_ref().and_then(|meta| meta.e_tag.as_deref());
        let end = known.as_ref().map_or(end, |meta| end.min(meta.size));
        let got = self.store.fetch(&self.name, self.at..end, etag);
        let (meta, bytes) = got.map_err(|e| self.store.error(&self.name, &e))?;
        if bytes.is_empty() || known.is_some_and(|known| known.size != meta.size) {
            return Err(StoreError(format!("'{}' was replaced while it was read; begin again", self.name)));
        }
        self.at += bytes.len() as u64;
        self.meta = Some(meta);
        self.waiting = io::Cursor::new(bytes);
        Ok(())
    }
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.waiting.read(out)?;
        let at_end = self.meta.as_ref().is_some_and(|meta| self.at >= meta.size);
        if read > 0 || out.is_empty() || at_end {
            return Ok(read);
        }
        self.next_range()?;
        self.waiting.read(out)
    }
}

/// The message of an error and of all that caused it.
fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

/// What the store answered, of a longer message; or the end of that.
fn said_by_store(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.to_owned())
    };
    let said = element("Code").zip(element("Message")).map(|(code, message)| format!("{code}: {message}"));
    let said = said.unwrap_or_else(|| {
        let mut last: Vec<&str> = text.rsplit(": ").take(2).collect();
        last.reverse();
        last.join(": ")
    });
    said.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_printed_alike() {
        for (text, bucket, prefix) in
            [("s3://b/a/c", "b", "a/c"), ("s3://b", "b", ""), ("s3://my.bucket-1/x//", "my.bucket-1", "x")]
        {
            let location: Location = text.parse().unwrap();
            assert_eq!((location.bucket.as_str(), location.prefix.as_str()), (bucket, prefix));
            assert_eq!(location.to_string().parse::<Location>().unwrap(), location);
        }
        for bad in ["s3://", "s3:///x", "s3://a b/x", "http://b/x", "s3://b/x//y", "s3://b/../y"] {
            assert!(bad.parse::<Location>().unwrap_err().contains("s3://BUCKET/PREFIX"), "{bad}");
        }
    }

    #[test]
    fn what_the_store_said_is_shown_alone() {
        let text = "Generic S3 error: <Error><Code>Slow</Code><Message>Not\nnow</Message><Id>1</Id></Error>";
        assert_eq!(said_by_store(text), "Slow: Notnow");
        assert_eq!(said_by_store("a: b: c: connection refused"), "c: connection refused");
    }
}
