//! Asks servers that are no agents, over HTTP/1.1: an object store, whose certificate is from one of the roots that this host
//! trusts, or of a root of its own.
//!
//! Whoever answers slowly is given up on: a connection that does not come about, an answer that does not begin, a body that
//! stands still. Connections are kept for the next request. Does not know what is asked.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::{
        self, Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::identity::provider;

/// Name, connection and TLS handshake together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Connections that nobody has used for so long are closed.
const IDLE: Duration = Duration::from_secs(30);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The roots cannot be read.
    #[error("cannot read certificates in {}", .path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing was sent.
    #[error("no connection")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The other end was silent for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// It broke on the way; nobody knows what has come of it.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Makes connections, and keeps those that can be used again. Clones share them.
#[derive(Debug, Clone)]
pub struct Https<B> {
    client: Client<Dialler, B>,
    patience: Duration,
}

impl<B> Https<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Believes servers by the roots in the PEM file `roots`, or by those of this host; waits at most `patience` for an answer
    /// to begin, and for each next piece of it.
    ///
    /// Fails with [`Error::Roots`] where the file holds none.
    pub fn new(roots: Option<&Path>, patience: Duration) -> Result<Self, Error> {
        let roots = match roots {
            Some(path) => roots_in(path)?,
            None => roots_of_this_host(),
        };
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let dialler = Dialler { tls: TlsConnector::from(Arc::new(tls)) };
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(dialler);
        Ok(Self { client, patience })
    }

    /// Sends `request`, whose URI is absolute, and returns the answer as soon as its body begins.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Answer>, Error> {
        let answered = timeout(self.patience, self.client.request(request)).await;
        let response = answered.map_err(|_| Error::Silent(self.patience))?.map_err(why)?;
        let (patience, limit) = (self.patience, Box::pin(sleep(self.patience)));
        Ok(response.map(|body| Answer { body, patience, limit }))
    }
}

fn why(error: legacy::Error) -> Error {
    if error.is_connect() { Error::Connect(Box::new(error)) } else { Error::Broken(Box::new(error)) }
}

fn roots_of_this_host() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Where there are none, no certificate will be believed, which is told then.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn roots_in(path: &Path) -> Result<RootCertStore, Error> {
    let failed = |source| Error::Roots { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.into()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| failed(error.into()))?;
        roots.add(certificate).map_err(|error| failed(error.into()))?;
    }
    if roots.is_empty() { Err(failed("it holds no certificate".into())) } else { Ok(roots) }
}

/// The body of an answer, as it comes.
#[derive(Debug)]
pub struct Answer {
    body: Incoming,
    patience: Duration,
    limit: Pin<Box<Sleep>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let me = self.get_mut();
        match Pin::new(&mut me.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                me.limit.as_mut().reset(Instant::now() + me.patience);
                Poll::Ready(frame.map(|frame| frame.map_err(|error| Error::Broken(Box::new(error)))))
            }
            Poll::Pending => {
                ready!(me.limit.as_mut().poll(cx));
                Poll::Ready(Some(Err(Error::Silent(me.patience))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Dials what a URI names, with TLS where it says https.
#[derive(Clone)]
struct Dialler {
    tls: TlsConnector,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialler")
    }
}

impl tower::Service<Uri> for Dialler {
    type Response = Way;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Way>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialled = dial(self.tls.clone(), uri);
        Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the dial");
            timeout(CONNECT_LIMIT, dialled).await.map_err(|_| late())?
        })
    }
}

async fn dial(tls: TlsConnector, uri: Uri) -> io::Result<Way> {
    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the address has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let has_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if has_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    if !has_tls {
        return Ok(Way(TokioIo::new(Box::new(stream))));
    }
    let name = ServerName::try_from(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(Way(TokioIo::new(Box::new(tls.connect(name, stream).await?))))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection.
struct Way(TokioIo<Box<dyn Stream>>);

impl Connection for Way {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Way {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Way {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
