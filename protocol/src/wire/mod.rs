//! How the words travel: identities, one endpoint, gRPC, and streams of blocks.
//!
//! [`identity`] turns certificate files into TLS settings and says who a peer is; [`endpoint`] listens and
//! dials, QUIC and TCP on one port number; [`rpc`] is gRPC over either; [`bulk`] is one stream of checked
//! blocks; [`signature`] is what a certificate's key says outside any connection. The only place that names `quinn`, `rustls` and `tonic::transport`.

pub mod bulk;
pub mod compress;
pub mod endpoint;
pub mod identity;
pub mod io;
pub mod rpc;
pub mod signature;
mod verify;
