//! How the words travel: identities, one endpoint, gRPC, and streams of blocks.
//!
//! [`identity`] turns certificate files into TLS settings and says who a peer is; [`revocation`] reads which
//! certificates are no longer good, [`trust`] holds both together; [`endpoint`] listens and
//! dials, QUIC and TCP on one port number; [`rpc`] is gRPC over either; [`bulk`] is one stream of checked
//! blocks, [`link`] one whose bytes are PostgreSQL's, [`datagram`] is what is small and may be lost, [`signature`] what a
//! certificate's key says outside any connection. The only place that names `quinn`, `rustls` and `tonic::transport`.

pub mod bulk;
pub mod compress;
pub mod datagram;
pub mod endpoint;
pub mod handshakes;
pub mod identity;
pub mod io;
pub mod link;
mod pem;
pub mod revocation;
pub mod rpc;
pub mod signature;
mod standing;
pub mod trust;
pub mod validity;
mod verify;
