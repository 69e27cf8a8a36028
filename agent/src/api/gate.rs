//! The gate before every service: says who asks, and lets nobody through whom the table does not.
//!
//! It stands before the request is even read. What it has found out about the caller it leaves beside the request,
//! where [`Door::admit`] takes it.

use axum::{
    body::Body,
    extract::{Request, State},
    http::Response,
    middleware::Next,
};
use jiff::Timestamp;
use steep_protocol::{failure::Failure, intent, wire::identity::PeerId, wire::rpc::status_of};
use tonic::{Status, metadata::MetadataMap};

use super::{
    Door,
    authorize::{self, Asked, Caller, Denied, FORWARDED_FOR, Rpc},
};

/// Lets a request through with its [`Caller`], or answers it with the reason why not.
pub async fn pass(State(door): State<Door>, mut request: Request, next: Next) -> Response<Body> {
    let Some(rpc) = Rpc::of_path(request.uri().path()) else {
        // No denial: whoever calls it may be of a newer version than we are.
        return Status::unimplemented("the table of calls knows no such method").into_http();
    };
    match judge(&door, &request, rpc) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => {
            door.tell(&denied).await;
            status_of(&denied.failure).into_http()
        }
    }
}

fn judge(door: &Door, request: &Request, rpc: Rpc) -> Result<Caller, Box<Denied>> {
    let peer = request.extensions().get::<PeerId>();
    let metadata = MetadataMap::from_headers(request.headers().clone());
    let unreadable = |failure: Failure| {
        let who = peer.map_or_else(|| "nobody".to_owned(), ToString::to_string);
        Box::new(Denied { peer: peer.cloned(), who, rpc, failure })
    };
    let signed = intent::carried(&metadata).map_err(unreadable)?;
    let asked = Asked {
        peer,
        rpc,
        forwarded_for: metadata.get(FORWARDED_FOR).map(|value| value.as_bytes()),
        intent: signed.as_ref(),
    };
    authorize::admit(asked, |signed| intent::verify(door.peers.identity(), signed, Timestamp::now()))
}
