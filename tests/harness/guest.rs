//! Somebody with a certificate of the mesh who speaks the protocol without steepctl: a stolen key, or any gRPC client.

use std::{
    convert::Infallible,
    future::{Ready, pending, ready},
    path::Path,
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _};
use steep_protocol::{
    failure::{Code, Failure},
    intent, v1, version,
    wire::{
        endpoint::{Arrivals, Connection, Endpoint},
        identity::{Expect, Identity},
        rpc::{self, MAX_MESSAGE_BYTES, PeerChannel},
    },
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::UnaryService,
    service::Routes,
};
use tonic_prost::ProstCodec;

use crate::node::Node;

/// The identity whose files in `dir` are called `name`.
pub fn identity(dir: &Path, name: &str) -> Arc<Identity> {
    let file = |name: String| dir.join(name);
    let loaded = Identity::load(&file(format!("{name}.pem")), &file(format!("{name}.key")), &file("ca.pem".into()));
    Arc::new(loaded.unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// A QUIC connection of a guest's, with the endpoint that keeps it.
#[derive(Debug)]
pub struct Dialled {
    pub endpoint: Endpoint,
    pub connection: Connection,
    _served: AbortOnDropHandle<()>,
}

/// Says hello, as every agent does first on a connection; the guest takes no part in gossip.
#[derive(Debug, Clone, Copy)]
struct Greeter;

impl UnaryService<v1::HelloRequest> for Greeter {
    type Response = v1::HelloReply;
    type Future = Ready<Result<Response<v1::HelloReply>, Status>>;

    fn call(&mut self, _: Request<v1::HelloRequest>) -> Self::Future {
        let reply =
            v1::HelloReply { protocol: version::PROTOCOL, instance_id: "a guest".into(), ..v1::HelloReply::default() };
        ready(Ok(Response::new(reply)))
    }
}

fn greeter() -> Routes {
    let hello = tower::service_fn(|request| async {
        let codec = ProstCodec::<v1::HelloReply, v1::HelloRequest>::default();
        Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(Greeter, request).await)
    });
    axum::Router::new().route_service("/steep.v1.Peers/Hello", hello).into()
}

impl Node {
    /// The certificate called `name` in the mesh's folder: `node_b`, `operator-otto`.
    pub fn identity(&self, name: &str) -> Arc<Identity> {
        identity(&self.pki(), name)
    }

    /// A channel to this node's agent over TCP.
    pub async fn channel(&self, guest: &Arc<Identity>) -> Result<PeerChannel, Failure> {
        rpc::connect_tcp(self.address(), guest, Expect::AnyNode).await
    }

    /// A QUIC connection to this node's agent.
    pub async fn dialled_by(&self, guest: &Arc<Identity>) -> Dialled {
        let (endpoint, arrivals) = Endpoint::bind("127.0.0.1:0", Arc::clone(guest)).await.expect("a port is free");
        let served = tokio::spawn(async move {
            // Kept: whoever drops them refuses what arrives.
            let Arrivals { rpc: calls, .. } = arrivals;
            rpc::serve(greeter(), calls, pending()).await.expect("it serves");
        });
        let id = self.id().parse().expect("a node id");
        let connection = endpoint.dial(self.address(), &id).await.expect("it answers");
        Dialled { endpoint, connection, _served: AbortOnDropHandle::new(served) }
    }
}

/// What a call that cannot be read came to: it is refused before anybody tries to read it, or it was let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    LetThrough,
    Refused(Code),
}

/// Calls `path` with bytes that are no message, so that whatever is let through does nothing.
pub async fn knock(
    channel: &PeerChannel,
    path: &str,
    forwarded_for: Option<&str>,
    signed: Option<&v1::SignedIntent>,
) -> Result<Judged, Status> {
    let mut request = Request::new(vec![0xff]);
    if let Some(uri) = forwarded_for {
        request.metadata_mut().insert("steep-forwarded-for", uri.parse().expect("plain ASCII"));
    }
    if let Some(signed) = signed {
        intent::attach(&mut request, signed);
    }
    match call(channel, path, request).await {
        Ok(()) => Ok(Judged::LetThrough),
        Err(status) if status.details().is_empty() && status.message().contains("decode") => Ok(Judged::LetThrough),
        Err(status) if status.details().is_empty() => Err(status),
        Err(status) => Ok(Judged::Refused(rpc::failure_of(&status).code)),
    }
}

/// Calls any method with any bytes, and waits for its first answer.
pub async fn call(channel: &PeerChannel, path: &str, request: Request<Vec<u8>>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = path.parse().expect("a path");
    let mut answers = grpc.server_streaming(request, path, Bytes).await?.into_inner();
    answers.message().await.map(drop)
}

/// Sends bytes as they are; reads and forgets.
#[derive(Debug, Clone, Copy)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}
