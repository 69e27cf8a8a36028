//! Judges the other end's certificate during a handshake, and says in an operator's words how it went.

use std::sync::{Arc, OnceLock};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio::sync::watch;

use super::identity::{Error, Expect, Live, identity_in, provider};
use crate::{
    failure::{Code, Explain, Failure},
    ids::MeshName,
};

/// Where a dialler finds why it refused the other end.
pub(super) type Verdict = Arc<OnceLock<Failure>>;

/// What a TLS error means to an operator: our own refusal, or the alert the other end sent.
pub(super) fn explain_tls(error: &rustls::Error) -> Failure {
    use rustls::Error as Tls;
    let ours = |code, text: &str| Failure::new(code, format!("the other end's certificate {text}"));
    match error {
        Tls::InvalidCertificate(CertificateError::Other(OtherError(inner))) => match inner.downcast_ref::<Error>() {
            Some(error) => error.explain(),
            None => ours(Code::CertificateRefused, "was refused").cause(inner.to_string()),
        },
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            ours(Code::CertificateExpired, "has expired")
        }
        Tls::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            ours(Code::CertificateExpired, "is not valid yet")
        }
        Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            ours(Code::CertificateRefused, "was not issued under our root")
        }
        Tls::InvalidCertificate(CertificateError::Revoked) => ours(Code::CertificateRevoked, "was revoked"),
        Tls::InvalidCertificate(
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. },
        ) => {
            let text = "cannot be judged: our revocation list should have been replaced long ago";
            ours(Code::RevocationsOverdue, text)
        }
        Tls::InvalidCertificate(reason) => ours(Code::CertificateRefused, "was refused").cause(reason.to_string()),
        Tls::AlertReceived(alert) => explain_alert(u8::from(*alert)),
        Tls::NoCertificatesPresented => ours(Code::CertificateRefused, "is missing"),
        Tls::PeerIncompatible(_) | Tls::InvalidMessage(_) => {
            Failure::new(Code::CertificateRefused, "the other end does not speak TLS 1.3 with certificates")
                .cause(error.to_string())
        }
        other => Failure::new(Code::CertificateRefused, "the TLS handshake failed").cause(other.to_string()),
    }
}

/// The code of a certificate that TLS refuses.
pub(super) fn code_of(error: &rustls::Error) -> Code {
    explain_tls(error).code
}

/// What a TLS alert from the other end means; the numbers are those of RFC 8446, section 6.
pub(super) fn explain_alert(alert: u8) -> Failure {
    let (code, text) = match alert {
        44 => (Code::CertificateRevoked, "it was revoked"),
        45 => (Code::CertificateExpired, "it has expired or is not valid yet"),
        48 => (Code::CertificateRefused, "it was not issued under their root"),
        42 | 43 | 46 | 49 | 51 => (Code::CertificateRefused, "its mesh, class or usage is not what they accept"),
        116 => (Code::CertificateRefused, "none was shown"),
        120 => (Code::CertificateRefused, "they speak another protocol on this port"),
        _ => {
            return Failure::new(
                Code::CertificateRefused,
                format!("the other end ended the handshake (alert {alert})"),
            );
        }
    };
    Failure::new(code, format!("the other end refused our certificate: {text}"))
}

/// Shows the certificate we have at the moment of the handshake, whoever asks.
#[derive(Debug)]
pub(super) struct Shown(pub(super) watch::Receiver<Arc<Live>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.borrow().key()))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.borrow().key()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn check_peer(leaf: &CertificateDer<'_>, mesh: &MeshName, expect: Option<&Expect>) -> Result<(), rustls::Error> {
    let checked = || -> Result<(), Error> {
        let peer = identity_in(leaf)?;
        if peer.mesh != *mesh {
            return Err(Error::OtherMesh { theirs: peer.mesh, ours: mesh.clone() });
        }
        match expect {
            Some(Expect::Node(expected)) if peer.node() != Some(expected) => {
                Err(Error::NotExpected { expected: format!("node {expected}"), found: peer.to_string() })
            }
            Some(Expect::AnyNode) if peer.node().is_none() => {
                Err(Error::NotExpected { expected: "a node".into(), found: peer.to_string() })
            }
            _ => Ok(()),
        }
    };
    checked().map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
}

#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) live: watch::Receiver<Arc<Live>>,
    pub(super) mesh: MeshName,
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: our roots may change before the client has read them, and members have one certificate only.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let live = Arc::clone(&self.live.borrow());
        live.trust().verify_client(leaf, chain, now)?;
        check_peer(leaf, &self.mesh, None)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) live: watch::Receiver<Arc<Live>>,
    pub(super) mesh: MeshName,
    pub(super) expect: Expect,
    pub(super) verdict: Verdict,
}

impl ServerVerifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let live = Arc::clone(&self.live.borrow());
        live.trust().verify_server(leaf, chain, now)?;
        check_peer(leaf, &self.mesh, Some(&self.expect))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, chain, now).inspect_err(|error| {
            // Only the first verdict of a handshake counts; there is only one.
            let _ = self.verdict.set(explain_tls(error));
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
