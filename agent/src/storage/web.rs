//! How object_store's requests get to a store: over our own HTTP client, with the one TLS library there is.
//!
//! What a store refuses is handed on as [`Answered`], which says why in the store's own words; what did not come through is
//! tried again by object_store, as long as its patience lasts.

use std::fmt;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Limited};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use steep_protocol::wire::https::{self, Answer, Https};
use tracing::warn;

/// Of a refusal no more is read.
const MOST_BYTES: usize = 16 << 10;
/// What is no object is held whole: a page of a listing has a thousand names, each of a kilobyte at most.
const MOST_ANSWERED: usize = 8 << 20;

/// A store's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) struct Answered {
    /// HTTP's.
    pub(super) status: u16,
    /// S3's: `NoSuchBucket`. Empty where the store gives none.
    pub(super) code: String,
    /// What it says.
    pub(super) message: String,
}

impl Answered {
    /// What no store says in earnest.
    fn endless(error: &dyn std::error::Error) -> Self {
        let message =
            format!("more than {} MiB, where a list or a receipt was expected ({error})", MOST_ANSWERED >> 20);
        Self { status: 200, code: String::new(), message }
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.status)?;
        for text in [&self.code, &self.message].into_iter().filter(|text| !text.is_empty()) {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

/// Sends requests.
#[derive(Debug, Clone)]
pub(super) struct Web(pub(super) Https<HttpRequestBody>);

impl HttpConnector for Web {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Web {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_object = asks_for_object(&request);
        let response = self.0.send(request).await.map_err(|error| {
            away(&told_plainly(&error));
            told(error)
        })?;
        let status = response.status();
        // Those it may answer otherwise a moment later are object_store's to try again.
        let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        if passes {
            away(&format!("it answered {status}"));
        }
        if status.is_success() && is_object {
            return Ok(response.map(|answer| HttpResponseBody::new(answer.map_err(told))));
        }
        if status.is_success() || passes {
            return Ok(response.map(|answer| HttpResponseBody::new(Limited::new(answer, MOST_ANSWERED).map_err(cut))));
        }
        let text = beginning(response.into_body()).await;
        let refused = Answered { status: status.as_u16(), code: tag(&text, "Code"), message: tag(&text, "Message") };
        Err(HttpError::new(HttpErrorKind::Unknown, refused))
    }
}

fn away(reason: &str) {
    warn!(event = "snapshot.store_away", reason, "an object store does not do what was asked; it may be asked again");
}

/// The error, and what it was in the end.
fn told_plainly(error: &https::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    if last.to_string() == error.to_string() { error.to_string() } else { format!("{error}: {last}") }
}

/// Everything we ask may be asked twice: what is begun twice, an upload, is looked for and taken away.
fn told(error: https::Error) -> HttpError {
    let kind = match error {
        https::Error::Connect(_) | https::Error::Roots { .. } => HttpErrorKind::Connect,
        https::Error::Silent(_) | https::Error::Broken(_) => HttpErrorKind::Request,
    };
    HttpError::new(kind, error)
}

/// Whether what comes is an object, which is taken as it comes; anything else that is asked with GET has a query.
fn asks_for_object(request: &HttpRequest) -> bool {
    request.method().as_str() == "GET" && request.uri().query().is_none()
}

/// Why an answer that is held whole did not come to its end.
fn cut(error: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
    match error.downcast::<https::Error>() {
        Ok(error) => told(*error),
        // Asked again it would be no shorter.
        Err(error) => HttpError::new(HttpErrorKind::Decode, Answered::endless(&*error)),
    }
}

async fn beginning(mut answer: Answer) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = answer.frame().await {
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if bytes.len() >= MOST_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_BYTES)]).into_owned()
}

/// What the first element `name` of an answer in XML holds, on one line.
pub(super) fn tag(xml: &str, name: &str) -> String {
    let inside = xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    let text = inside.map(|(inside, _)| inside).unwrap_or_default();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}
