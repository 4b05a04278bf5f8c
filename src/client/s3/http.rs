//! HTTP for the store's client: hyper over the TLS configuration that calls to key services use.
//!
//! Called by `object_store`, which signs, tries again and reads answers. Must never wait for ever, nor hold an answer longer
//! than what was asked for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::TokioExecutor;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientOptions, Error, Result};
use rustls::ClientConfig;

use super::RANGE_MAX;

/// Longest answer taken: a range asked for, or a page of a listing.
const ANSWER_MAX: usize = RANGE_MAX as usize + (1 << 20);
/// Of one request, whatever it carries.
const BASE_TIME: Duration = Duration::from_mins(1);
/// Bytes a second that a request or its answer goes at least.
const RATE_MIN: u64 = 32 << 10;
/// How long bytes may stay unacknowledged before the connection counts as broken.
const UNACKNOWLEDGED_TIME: Duration = Duration::from_secs(30);

/// Makes [`Http`].
#[derive(Debug)]
pub(super) struct Connector(pub Arc<ClientConfig>);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let allowed = |key| options.get_config_value(&key).is_some_and(|value| value == "true");
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(super::CONNECT_TIME));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIME));
        let schemes = HttpsConnectorBuilder::new().with_tls_config((*self.0).clone());
        let schemes =
            if allowed(ClientConfigKey::AllowHttp) { schemes.https_or_http() } else { schemes.https_only() };
        let client = Client::builder(TokioExecutor::new()).build(schemes.enable_http1().wrap_connector(tcp));
        Ok(HttpClient::new(Http(client)))
    }
}

/// Connections, kept for the next request.
#[derive(Debug)]
struct Http(Client<HttpsConnector<Tcp>, HttpRequestBody>);

impl Http {
    async fn exchange(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let failed = |e: hyper_util::client::legacy::Error| {
            let kind = if e.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, e)
        };
        let (head, body) = self.0.request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await;
        let body = body.map_err(|e| HttpError::new_boxed(HttpErrorKind::Interrupted, e))?;
        Ok(HttpResponse::from_parts(head, HttpResponseBody::from(body.to_bytes())))
    }
}

// What `#[async_trait]` would write, without the macro.
impl HttpService for Http {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::result::Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let bytes = request.body().content_length() as u64 + RANGE_MAX;
        let time = BASE_TIME + Duration::from_secs(bytes / RATE_MIN);
        Box::pin(async move {
            let late = |_| HttpError::new(HttpErrorKind::Timeout, io::Error::from(io::ErrorKind::TimedOut));
            tokio::time::timeout(time, self.exchange(request)).await.map_err(late)?
        })
    }
}

/// An error of ours as one of the client's.
pub(super) fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "S3", source: Box::new(why) }
}
