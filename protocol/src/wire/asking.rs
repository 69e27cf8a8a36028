//! Stands before every gRPC service: says who asks, and holds each identity to what it may ask.
//!
//! A request above a limit is answered with [`Code::TooManyRequests`] before its service sees it; a request whose
//! body does not come to its end is given up; whoever goes on all the same is cut off.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::{Sleep, sleep};
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, http},
};
use tower::{Layer, Service};

use super::{
    gate::{Gate, Verdict},
    io::Origin,
    limits::{REQUEST_LIMIT, REQUESTS_A_SECOND, REQUESTS_PER_IDENTITY, Refusal, Refusals},
    rpc::status_of,
};
use crate::failure::{Code, Failure};

/// Puts [`Asking`] before a service.
#[derive(Debug, Clone)]
pub(super) struct AskingLayer(pub(super) Gate);

impl<S> Layer<S> for AskingLayer {
    type Service = Asking<S>;

    fn layer(&self, inner: S) -> Asking<S> {
        Asking { inner, gate: self.0.clone() }
    }
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub(super) struct Asking<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<http::Request<Body>> for Asking<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // Nobody's: the services refuse it.
        let Some(origin) = request.extensions().get::<Origin>().cloned() else {
            return Box::pin(self.inner.call(request));
        };
        let asking = match self.gate.asks(&origin.peer.who) {
            Verdict::Go(asking) => asking,
            Verdict::Refused(reason) => return Box::pin(async move { Ok(refused(&origin, reason)) }),
            Verdict::Cut => {
                origin.end.cancel();
                return Box::pin(async move { Ok(refused(&origin, Refusal::Cut)) });
            }
        };
        request.extensions_mut().insert(origin.peer);
        let is_answered = Arc::new(AtomicBool::new(false));
        let refusals = Arc::clone(self.gate.refusals());
        let request = request.map(|body| Body::new(Timed::new(body, Arc::clone(&is_answered), refusals)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answered = answer.await;
            is_answered.store(true, Ordering::Relaxed);
            drop(asking);
            answered
        })
    }
}

fn refused(origin: &Origin, reason: Refusal) -> http::Response<Body> {
    let text = match reason {
        Refusal::RequestsAtOnce => format!("{} has {REQUESTS_PER_IDENTITY} requests open already", origin.peer),
        _ => format!("{} asks more than {REQUESTS_A_SECOND} times a second", origin.peer),
    };
    status_of(&Failure::new(Code::TooManyRequests, text)).into_http()
}

/// A request's body, which must have come before an answer and within [`REQUEST_LIMIT`].
struct Timed {
    body: Body,
    limit: Pin<Box<Sleep>>,
    is_answered: Arc<AtomicBool>,
    refusals: Arc<Refusals>,
}

impl Timed {
    fn new(body: Body, is_answered: Arc<AtomicBool>, refusals: Arc<Refusals>) -> Self {
        Self { body, limit: Box::pin(sleep(REQUEST_LIMIT)), is_answered, refusals }
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let me = self.get_mut();
        let frame = Pin::new(&mut me.body).poll_frame(cx);
        // A stream of requests that is answered as it comes may take its time.
        if frame.is_pending() && !me.is_answered.load(Ordering::Relaxed) && me.limit.as_mut().poll(cx).is_ready() {
            me.refusals.count(Refusal::RequestSlow);
            let text = format!("the request did not end within {} s", REQUEST_LIMIT.as_secs());
            return Poll::Ready(Some(Err(status_of(&Failure::new(Code::PeerSilent, text)))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
