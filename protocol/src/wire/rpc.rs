//! gRPC over an authenticated stream: a server for what arrives, channels for what we ask.
//!
//! The same services answer on QUIC streams and on TCP; health and reflection (v1 and v1alpha) are always
//! among them. A [`Failure`] crosses as the details of a status and comes out whole.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code as GrpcCode, Status,
    metadata::MetadataValue,
    service::Routes,
    transport::{Channel, Endpoint as Target, Server, Uri},
};

pub use super::limits::{MAX_MESSAGE_BYTES, MAX_SCHEMA_BYTES};
use super::{
    asking::AskingLayer,
    endpoint::{self, Calls, Connection, RPC_STREAM, dial_caller},
    error::{refusal_in, tls_in},
    identity::{Expect, Identity},
    io::Io,
    limits::{HEADER_LIST_BYTES, MESSAGE_WINDOW, REQUESTS_PER_CONNECTION, RESETS_WAITING},
};
use crate::{
    failure::{Code, Explain, Failure, Family},
    v1,
};

/// A channel over which one peer is asked.
pub type PeerChannel = Channel;

/// Serves `routes`, with health and reflection beside them, on every stream of `arrivals` until `stop` is done.
///
/// Requests under way are finished before it returns. Who asks too much is told so before a service sees it.
pub async fn serve(
    routes: Routes,
    arrivals: Calls,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn StdError + Send + Sync>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    for service in ["Nodes", "Operations", "Peers", "Mesh", "Certificates", "Agents"] {
        let service = format!("steep.v1.{service}");
        health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = routes
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Server::builder()
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
        .max_concurrent_streams(REQUESTS_PER_CONNECTION as u32)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(RESETS_WAITING))
        .initial_stream_window_size(MESSAGE_WINDOW)
        .initial_connection_window_size(MESSAGE_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .layer(AskingLayer(arrivals.gate))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(arrivals.streams).map(Ok::<_, io::Error>), stop)
        .await?;
    Ok(())
}

/// A channel on its own stream of an existing connection. Ends with the connection.
pub async fn over(connection: &Connection) -> Result<PeerChannel, Failure> {
    let connection = connection.clone();
    connect("mesh", move || {
        let connection = connection.clone();
        Box::pin(async move { connection.open(RPC_STREAM).await })
    })
    .await
}

/// A channel over TCP to `address` (`host:port`), for steepctl and other clients that are no agents.
///
/// The handshake is done, and both certificates were judged, when this returns.
pub async fn connect_tcp(address: &str, identity: &Arc<Identity>, expect: Expect) -> Result<PeerChannel, Failure> {
    let (address, identity) = (address.to_owned(), Arc::clone(identity));
    connect(&address.clone(), move || {
        let (address, identity, expect) = (address.clone(), Arc::clone(&identity), expect.clone());
        Box::pin(async move { dial_caller(&address, &identity, expect).await })
    })
    .await
}

async fn connect(
    name: &str,
    dial: impl Fn() -> BoxFuture<'static, Result<Io, endpoint::Error>> + Send + Sync + 'static,
) -> Result<PeerChannel, Failure> {
    let target = Target::from_static("http://member.steep.internal")
        .initial_stream_window_size(MESSAGE_WINDOW)
        .initial_connection_window_size(MESSAGE_WINDOW)
        .http2_max_header_list_size(HEADER_LIST_BYTES);
    let connector = tower::service_fn(move |_: Uri| {
        let dialled = dial();
        async move { dialled.await.map(TokioIo::new) }
    });
    target
        .connect_with_connector(connector)
        .await
        .map_err(|error| transport_failure(&error).unwrap_or_else(|| unreachable(name, &error)))
}

fn unreachable(name: &str, error: &dyn StdError) -> Failure {
    Failure::new(Code::PeerUnreachable, format!("cannot reach {name}")).caused_by(error)
}

/// Looks through an error and all beneath it for what the wire knows about it.
fn transport_failure(error: &(dyn StdError + 'static)) -> Option<Failure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<endpoint::Error>() {
            return Some(error.explain());
        }
        if let Some(failure) = error.downcast_ref::<quinn::ConnectionError>().and_then(refusal_in) {
            return Some(failure);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if let Some(failure) = tls_in(error) {
                return Some(failure);
            }
            // tokio and quinn wrap their errors in I/O errors, whose `source` skips the error itself.
            if let Some(failure) = error.get_ref().and_then(|inner| transport_failure(inner)) {
                return Some(failure);
            }
        }
        next = error.source();
    }
    None
}

/// The failure as a gRPC status that carries it whole.
pub fn status_of(failure: &Failure) -> Status {
    let code = match (failure.code, failure.code.family()) {
        (Code::UnknownNode | Code::OperationUnknown | Code::SessionUnknown, _) => GrpcCode::NotFound,
        (Code::BadRequest | Code::Usage, _) => GrpcCode::InvalidArgument,
        (Code::Internal, _) => GrpcCode::Internal,
        (Code::TooManyRequests, _) => GrpcCode::ResourceExhausted,
        (_, Family::Permission) => GrpcCode::PermissionDenied,
        (_, Family::Connection) => GrpcCode::Unavailable,
        (_, Family::Timeout) => GrpcCode::DeadlineExceeded,
        (_, Family::Conflict) => GrpcCode::AlreadyExists,
        (_, Family::Precondition | Family::Schema) => GrpcCode::FailedPrecondition,
        (_, Family::Cancelled) => GrpcCode::Cancelled,
        (_, Family::Integrity) => GrpcCode::DataLoss,
        (_, Family::General) => GrpcCode::Unknown,
    };
    Status::with_details(code, failure.to_string(), v1::Failure::from(failure).encode_to_vec().into())
}

/// The failure in a status: the one its sender put there, or what a bare gRPC or transport error means.
pub fn failure_of(status: &Status) -> Failure {
    if let Ok(failure) = v1::Failure::decode(status.details())
        && !failure.code.is_empty()
    {
        return failure.into();
    }
    if let Some(failure) = status.source().and_then(transport_failure) {
        return failure;
    }
    let code = match status.code() {
        GrpcCode::Unavailable => Code::PeerUnreachable,
        // A request that never left because its connection broke comes out of hyper as "cancelled".
        GrpcCode::Cancelled if status.source().is_some() => Code::PeerUnreachable,
        GrpcCode::DeadlineExceeded | GrpcCode::Cancelled => Code::PeerSilent,
        GrpcCode::PermissionDenied | GrpcCode::Unauthenticated => Code::Denied,
        GrpcCode::InvalidArgument | GrpcCode::OutOfRange => Code::BadRequest,
        GrpcCode::Unimplemented => Code::ProtocolMismatch,
        GrpcCode::ResourceExhausted => Code::TooManyRequests,
        // A connection that breaks under a request comes out of hyper as "unknown".
        GrpcCode::Unknown if status.source().is_some() => Code::PeerUnreachable,
        _ => Code::Internal,
    };
    let failure = Failure::new(code, code.title());
    let failure = if status.message().is_empty() { failure } else { failure.cause(status.message()) };
    match status.source() {
        Some(source) => failure.caused_by(source),
        None => failure,
    }
}

/// Says in a status that the agent it comes from has passed the request on, and heard nothing of what became of it.
const UNANSWERED: &str = "steep-unanswered";

/// What is told of a request that was passed on and not answered.
pub fn unanswered(failure: &Failure) -> Status {
    let mut status = status_of(failure);
    status.metadata_mut().insert(UNANSWERED, MetadataValue::from_static("1"));
    status
}

/// Whether the request of which `status` tells may have been heard by whoever it was for, though nobody said what came of it.
pub fn is_unanswered(status: &Status) -> bool {
    status.details().is_empty() || status.metadata().contains_key(UNANSWERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_comes_out_of_a_status_as_it_went_in() {
        for code in Code::ALL {
            let failure = Failure::new(*code, "tried and failed").cause("because").hint("do this");
            assert_eq!(failure_of(&status_of(&failure)), failure);
        }
    }

    #[test]
    fn whoever_says_no_has_answered_and_a_connection_that_breaks_has_not() {
        let failure = Failure::new(Code::PeerUnreachable, "cannot reach node_a");
        assert!(!is_unanswered(&status_of(&failure)));
        assert!(is_unanswered(&unanswered(&failure)));
        assert_eq!(failure_of(&unanswered(&failure)), failure);
        assert!(is_unanswered(&Status::unavailable("the stream broke")));
    }
}
