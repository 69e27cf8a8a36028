//! Counts and times every request at the door. Decides nothing, and changes no answer.
//!
//! Names of services and methods come from our own descriptors: what a stranger makes up is counted as `other`, so that
//! it makes no new series.

use std::{collections::HashMap, sync::Arc};

use axum::{Router, body::Body, extract::Request, http::HeaderMap, middleware, response::Response};
use http_body_util::BodyExt as _;
use prost::Message as _;
use steep_protocol::v1;
use tokio::time::Instant;
use tonic::{Code, service::Routes};

use crate::metrics::Metrics;

const STATUS: &str = "grpc-status";
/// The names of gRPC's codes, by number.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// A method of one of our services.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Method {
    service: String,
    method: String,
    is_stream: bool,
}

/// The same routes, with every request told to `metrics`.
pub fn measured(routes: Routes, metrics: Metrics) -> Routes {
    let known = Arc::new(methods());
    let router: Router = routes.prepare().into_axum_router();
    Routes::from(router.layer(middleware::from_fn(move |request: Request, next: middleware::Next| {
        let method = known.get(request.uri().path()).cloned();
        let under_way = UnderWay::begin(metrics.clone(), method);
        async move { under_way.answered(next.run(request).await) }
    })))
}

/// `/steep.v1.Nodes/List` and all others, from the descriptors built in.
fn methods() -> HashMap<String, Method> {
    let files = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).expect("made by our own build").file;
    let services = files.iter().flat_map(|file| file.service.iter().map(|service| (file.package(), service)));
    services
        .flat_map(|(package, service)| {
            service.method.iter().map(move |method| {
                let path = format!("/{package}.{}/{}", service.name(), method.name());
                let is_stream = method.server_streaming() || method.client_streaming();
                (path, Method { service: service.name().into(), method: method.name().into(), is_stream })
            })
        })
        .collect()
}

/// A request until the last byte of its answer, or until whoever asked went away.
struct UnderWay {
    metrics: Metrics,
    method: Method,
    began: Instant,
    code: Option<usize>,
}

impl UnderWay {
    fn begin(metrics: Metrics, method: Option<Method>) -> Self {
        let other = || Method { service: "other".into(), method: "other".into(), is_stream: false };
        let method = method.unwrap_or_else(other);
        metrics.rpc_inflight.of([&method.service]).inc();
        Self { metrics, method, began: Instant::now(), code: None }
    }

    fn answered(mut self, response: Response) -> Response {
        // A refusal is all header; an answer tells how it went behind its body.
        self.note(response.headers());
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(trailers) = frame.trailers_ref() {
                    self.note(trailers);
                }
                frame
            }))
        })
    }

    fn note(&mut self, headers: &HeaderMap) {
        let code = headers.get(STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
        self.code = code.or(self.code);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Method { service, method, is_stream } = &self.method;
        let code = self.code.unwrap_or(Code::Cancelled as usize);
        self.metrics.rpc_inflight.of([service]).dec();
        self.metrics.rpc_requests.of([service, method, CODES.get(code).copied().unwrap_or("unknown")]).inc();
        if code == Code::OutOfRange as usize {
            // What tonic says of a message that is too large.
            self.metrics.rpc_rejected.of(["size"]).inc();
        }
        if !is_stream {
            self.metrics.rpc_duration.of([service, method]).observe(self.began.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_our_services_is_known_and_nothing_else() {
        let known = methods();
        let watch = known.get("/steep.v1.Operations/Watch").expect("it is in the descriptors");
        assert_eq!((watch.service.as_str(), watch.method.as_str(), watch.is_stream), ("Operations", "Watch", true));
        assert!(known.get("/steep.v1.Nodes/List").is_some_and(|list| !list.is_stream));
        assert!(known.keys().all(|path| path.starts_with("/steep.v1.")), "{known:?}");
        assert_eq!(CODES[Code::Unauthenticated as usize], "unauthenticated");
    }

    #[tokio::test]
    async fn a_request_is_counted_when_its_answer_has_ended_by_the_status_at_the_end() {
        let metrics = Metrics::default();
        let method = methods().remove("/steep.v1.Nodes/List");
        let under_way = UnderWay::begin(metrics.clone(), method.clone());
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, "9".parse().expect("a number"));
        let body = http_body_util::Full::from("x").with_trailers(async move { Some(Ok(trailers)) });
        let response = under_way.answered(Response::new(Body::new(body)));
        assert!(metrics.text().contains("steep_rpc_inflight{service=\"Nodes\"} 1.0"), "it is under way");
        response.into_body().collect().await.expect("a body");
        let text = metrics.text();
        let line = "steep_rpc_requests_total{service=\"Nodes\",method=\"List\",code=\"failed_precondition\"} 1";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("steep_rpc_duration_seconds_count{service=\"Nodes\",method=\"List\"} 1"), "{text}");
        // Nobody waited for this one.
        drop(UnderWay::begin(metrics.clone(), method).answered(Response::new(Body::empty())));
        assert!(metrics.text().contains("code=\"cancelled\"} 1"), "{}", metrics.text());
        assert!(metrics.text().contains("steep_rpc_inflight{service=\"Nodes\"} 0.0"), "{}", metrics.text());
    }
}
