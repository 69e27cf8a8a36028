//! How the words travel: identities, one endpoint, gRPC, and streams of blocks.
//!
//! [`identity`] turns certificate files into TLS settings and says who a peer is; [`revocation`] reads which
//! certificates are no longer good, [`trust`] holds both together; [`endpoint`] listens and dials, QUIC and TCP on one
//! port number, as [`choice`] decides; a [`connection`] is carried by `quic` or `tcp`, counts its `streams` and has
//! [`datagram`]s beside them, which are small and may be lost; [`limits`] says how much anybody may make us hold, `gate`
//! and `asking` see to it; [`rpc`] is gRPC over any stream; [`bulk`] is one stream of checked blocks, [`link`] one whose
//! bytes are PostgreSQL's; [`https`] asks servers that are no agents, [`signature`] what a certificate's key says outside any connection. The only place that names
//! `quinn`, `rustls` and `tonic::transport`.

mod asking;
pub mod bulk;
pub mod choice;
pub mod compress;
pub mod connection;
pub mod datagram;
pub mod endpoint;
mod error;
mod gate;
pub mod handshakes;
pub mod https;
pub mod identity;
pub mod io;
pub mod limits;
pub mod link;
mod pem;
mod quic;
pub mod revocation;
pub mod rpc;
pub mod signature;
mod standing;
mod streams;
pub mod tcp;
mod tls;
pub mod trust;
pub mod validity;
mod verify;
