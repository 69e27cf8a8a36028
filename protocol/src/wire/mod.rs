//! How the words travel: identities, one endpoint, gRPC, and streams of blocks.
//!
//! [`identity`] turns certificate files into TLS settings and says who a peer is; [`endpoint`] listens and
//! dials, QUIC and TCP on one port number, as [`choice`] decides; a [`connection`] is carried by `quic` or `tcp`, counts
//! its `streams` and has [`datagram`]s beside them; [`limits`] says how much anybody may make us hold, `gate` and `asking` see to it; [`rpc`] is
//! gRPC over any stream; [`bulk`] is one stream of checked blocks. The only place that names `quinn`, `rustls` and
//! `tonic::transport`.

mod asking;
pub mod bulk;
pub mod choice;
pub mod compress;
pub mod connection;
pub mod datagram;
pub mod endpoint;
mod error;
mod gate;
pub mod identity;
pub mod io;
pub mod limits;
mod quic;
pub mod rpc;
mod streams;
pub mod tcp;
mod verify;
