//! Somebody who reaches an agent's port and does there what no agent and no steepctl does.
//!
//! With a member's certificate or with none; over TCP by hand, frame by frame.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{node::Node, wait::PATIENCE};

/// What agents and gRPC clients speak.
pub const AGENTS: &[u8] = b"steep/1";
pub const CALLERS: &[u8] = b"h2";

/// HTTP/2's opening words, with empty settings.
pub const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Connects to the agent of `node`, and says nothing.
pub async fn tcp(node: &Node) -> io::Result<TcpStream> {
    TcpStream::connect(node.address()).await
}

/// Connects with the certificate of `who` (`node_b`, `operator-vera`), speaking `alpn`.
pub async fn tls(node: &Node, who: &str, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let file = |kind: &str| node.pki().join(format!("{who}.{kind}"));
    let chain: Vec<_> = CertificateDer::pem_file_iter(file("pem"))
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(file("key")).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)))
        .with_client_auth_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("agent.example").map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp(node).await?).await
}

/// One HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a frame is small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// The headers of a gRPC request for `path`, as HTTP/2 packs them.
pub fn headers(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).expect("a short path");
    [&[0x83, 0x86, 0x44, length][..], path.as_bytes(), b"\x41\x01x\x5f\x10application/grpc"].concat()
}

/// Waits until the other end has let go of `stream`.
pub async fn is_let_go(mut stream: impl AsyncRead + Unpin) {
    let mut rest = Vec::new();
    // However it ends, it ends.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the agent lets go of it");
}

/// Says `words` and no more.
pub async fn say(stream: &mut TlsStream<TcpStream>, words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    stream.flush().await
}

impl Node {
    /// Bytes of memory the agent's process uses.
    pub fn agent_memory(&self) -> u64 {
        let pid = self.parts().agent.pid().expect("the agent runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux says");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

/// Takes any server for good.
#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
