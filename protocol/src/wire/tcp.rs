//! A connection over TCP: a control stream that keeps it alive, and a TCP connection with TLS for each stream.
//!
//! Every TCP connection of ALPN `steep/1` begins with a byte that says what it is, as a QUIC stream does, and with the
//! 16 bytes that name the connection it belongs to. [`CONTROL_STREAM`] makes a connection of that name and lives as
//! long: either end says something on it every three seconds, datagrams travel on it, and when it ends, all streams
//! of the connection end. The end that was dialled may not be able to dial back, so it asks on the control stream for a
//! stream ([`WANT`]), and the dialler brings one ([`WANTED_STREAM`]).
//!
//! Frames of the control stream: `u8 kind, u16 length (little-endian), bytes`. Kinds nobody knows are passed over.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    connection::Connection,
    datagram::LARGEST_DATAGRAM,
    endpoint::{ALPN, Endpoint},
    error::{Error, tls_in},
    identity::{Expect, Identity, PeerId},
    io::Io,
    limits::{
        DATAGRAMS_WAITING, HANDSHAKE_LIMIT, KEEP_ALIVE, MAX_FRAME_BYTES, Refusal, SILENT_AFTER, STREAMS_PER_CONNECTION,
    },
    standing::{Chain, Standing},
    streams::Counted,
    tls::{Stream, answered, connect, refused, too_slow},
};
use crate::failure::Failure;

/// First byte of a TCP connection that makes a connection and keeps it alive.
pub const CONTROL_STREAM: u8 = 0x04;
/// First byte of a TCP connection that the dialled end has asked for: it says next what the stream carries.
pub const WANTED_STREAM: u8 = 0x05;

/// Whoever sends this takes connections over QUIC.
pub(super) const TAKES_QUIC: u8 = 1;
/// The dialler has tried QUIC, and nothing answered.
pub(super) const UDP_SILENT: u8 = 2;

const HELLO: u8 = 0;
const PING: u8 = 1;
const DATAGRAM: u8 = 2;
const WANT: u8 = 3;
const BYE: u8 = 4;
const PONG: u8 = 5;

/// Frames that wait for the control stream; datagrams above it are lost.
const FRAMES_WAITING: usize = 64;
/// For the last frame, and for the streams' own goodbyes.
const GOODBYE: Duration = Duration::from_secs(1);

/// One end of a connection over TCP. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Control(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: u128,
    remote: SocketAddr,
    is_local: bool,
    identity: Arc<Identity>,
    /// Of our own certificate, when this was made.
    generation: u64,
    /// Where we have dialled; `None`: the peer has, and must bring the streams we want.
    dialled: Option<String>,
    end: CancellationToken,
    reason: OnceLock<String>,
    refusal: OnceLock<Failure>,
    goodbye: OnceLock<String>,
    frames: mpsc::Sender<(u8, Bytes)>,
    frames_received: AtomicU64,
    rtt_us: AtomicU64,
    datagrams: (mpsc::Sender<Bytes>, AsyncMutex<mpsc::Receiver<Bytes>>),
    began: Instant,
    wanted: Mutex<HashMap<u64, oneshot::Sender<(Stream, Standing)>>>,
    next_ticket: AtomicU64,
    /// Streams the peer wants, and we are bringing.
    bringing: Arc<Semaphore>,
}

/// A control stream that the other end has answered, not yet run.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) control: Control,
    pub(super) peer: PeerId,
    /// What the other end says of itself.
    pub(super) flags: u8,
    pub(super) running: Running,
}

/// What [`run`] needs beside the connection.
#[derive(Debug)]
pub(super) struct Running {
    stream: Stream,
    frames: mpsc::Receiver<(u8, Bytes)>,
    /// What to say first, where the peer has dialled.
    hello: Option<u8>,
}

/// Dials an agent and makes a connection; both ends have judged each other's certificates when this returns.
pub(super) async fn dial(
    identity: &Arc<Identity>,
    address: &str,
    to: &[SocketAddr],
    expect: &Expect,
    flags: u8,
) -> Result<Dialled, Error> {
    let generation = identity.live().generation();
    let name = uuid::Uuid::new_v4().as_u128();
    let shaken = async {
        let mut stream = connect(identity, ALPN, address, to, expect.clone()).await?;
        let (peer, _) = answered(address, &stream, identity)?;
        let refused = |error| refused(address, error);
        let mut opening = vec![CONTROL_STREAM];
        opening.extend_from_slice(&name.to_le_bytes());
        opening.push(flags);
        stream.write_all(&opening).await.map_err(refused)?;
        stream.flush().await.map_err(refused)?;
        match read_frame(&mut stream).await.map_err(refused)? {
            (HELLO, body) => Ok((stream, peer, body.first().copied().unwrap_or(TAKES_QUIC))),
            _ => Err(Error::unreachable(address, "what answers is no agent")),
        }
    };
    let (stream, peer, flags) = timeout(HANDSHAKE_LIMIT, shaken).await.map_err(|_| too_slow(address))??;
    let made = Control::new(name, stream.get_ref().0, Arc::clone(identity), generation, Some(address.to_owned()));
    let (control, frames) = made.map_err(|error| refused(address, error))?;
    Ok(Dialled { control, peer, flags, running: Running { stream, frames, hello: None } })
}

/// The end of a control stream that a peer has opened; [`run`] answers it first, with `flags` that say what we take.
pub(super) fn answering(
    identity: &Arc<Identity>,
    stream: Stream,
    name: u128,
    generation: u64,
    flags: u8,
) -> io::Result<(Control, Running)> {
    let (control, frames) = Control::new(name, stream.get_ref().0, Arc::clone(identity), generation, None)?;
    Ok((control, Running { stream, frames, hello: Some(flags) }))
}

impl Running {
    /// What the other end of the control stream has shown.
    pub(super) fn chain(&self) -> Option<Chain> {
        let chain = self.stream.get_ref().1.peer_certificates()?;
        Some(chain.iter().map(|der| der.clone().into_owned()).collect())
    }
}

impl Control {
    fn new(
        name: u128,
        socket: &TcpStream,
        identity: Arc<Identity>,
        generation: u64,
        dialled: Option<String>,
    ) -> io::Result<(Self, mpsc::Receiver<(u8, Bytes)>)> {
        let (frames, waiting) = mpsc::channel(FRAMES_WAITING);
        let remote = socket.peer_addr()?;
        let is_local = remote.ip().is_loopback() || socket.local_addr()?.ip() == remote.ip();
        let (arrived, datagrams) = mpsc::channel(DATAGRAMS_WAITING);
        let inner = Inner {
            name,
            remote,
            is_local,
            identity,
            generation,
            dialled,
            end: CancellationToken::new(),
            reason: OnceLock::new(),
            refusal: OnceLock::new(),
            goodbye: OnceLock::new(),
            frames,
            frames_received: AtomicU64::default(),
            rtt_us: AtomicU64::default(),
            datagrams: (arrived, AsyncMutex::new(datagrams)),
            began: Instant::now(),
            wanted: Mutex::default(),
            next_ticket: AtomicU64::default(),
            bringing: Arc::new(Semaphore::new(STREAMS_PER_CONNECTION / 2)),
        };
        Ok((Self(Arc::new(inner)), waiting))
    }

    pub(super) fn name(&self) -> u128 {
        self.0.name
    }

    /// Which of our certificates it was made with.
    pub(super) fn generation(&self) -> u64 {
        self.0.generation
    }

    /// Ends every stream of the connection.
    pub(super) fn end(&self) -> &CancellationToken {
        &self.0.end
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.end.is_cancelled()
    }

    pub(super) fn is_local(&self) -> bool {
        self.0.is_local
    }

    pub(super) fn refusal(&self) -> Option<Failure> {
        self.0.refusal.get().cloned()
    }

    pub(super) async fn closed(&self) {
        self.0.end.cancelled().await;
    }

    pub(super) fn close(&self, reason: &str) {
        // The first reason counts.
        let _ = self.0.reason.set(reason.to_owned());
        self.0.end.cancel();
    }

    fn gone(&self, peer: &PeerId) -> Error {
        if let Some(failure) = self.refusal() {
            return Error::Refused { address: self.0.remote.to_string(), failure };
        }
        let reason = self.0.reason.get().cloned().unwrap_or_else(|| "it does not answer".into());
        Error::Gone { peer: peer.clone(), reason }
    }

    /// The reason the peer has closed the connection for, if it has.
    pub(super) fn goodbye(&self) -> Option<&str> {
        self.0.goodbye.get().map(String::as_str)
    }

    /// Unlike any number QUIC gives: those count up from nothing.
    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    pub(super) fn rtt(&self) -> Duration {
        Duration::from_micros(self.0.rtt_us.load(Ordering::Relaxed))
    }

    pub(super) fn frames_received(&self) -> u64 {
        self.0.frames_received.load(Ordering::Relaxed)
    }

    pub(super) fn send_datagram(&self, datagram: Bytes) -> bool {
        !self.is_closed() && self.0.frames.try_send((DATAGRAM, datagram)).is_ok()
    }

    pub(super) async fn receive_datagram(&self) -> Option<Bytes> {
        let mut arrived = self.0.datagrams.1.lock().await;
        self.0.end.run_until_cancelled(arrived.recv()).await?
    }

    /// Opens a stream of `kind`: dials, or has the peer dial.
    pub(super) async fn open(&self, peer: &PeerId, kind: u8, counted: Counted) -> Result<Io, Error> {
        let opened = async {
            match &self.0.dialled {
                Some(address) => {
                    let (mut stream, standing) = self.dial_stream(address, peer).await?;
                    let opening = [&[kind][..], &self.0.name.to_le_bytes()].concat();
                    stream.write_all(&opening).await.map_err(|error| refused(address, error))?;
                    stream.flush().await.map_err(|error| refused(address, error))?;
                    Ok((stream, standing))
                }
                None => {
                    let (mut stream, standing) = self.want_stream(peer).await?;
                    let gone = |error: io::Error| Error::Gone { peer: peer.clone(), reason: error.to_string() };
                    stream.write_all(&[kind]).await.map_err(gone)?;
                    stream.flush().await.map_err(gone)?;
                    Ok((stream, standing))
                }
            }
        };
        match self.0.end.run_until_cancelled(timeout(HANDSHAKE_LIMIT, opened)).await {
            Some(Ok(opened)) => {
                let (stream, standing) = opened?;
                Ok(Io::tcp(peer.clone(), stream, standing, &self.0.end, counted))
            }
            Some(Err(_)) => {
                let reason = format!("it opened no stream within {} s", HANDSHAKE_LIMIT.as_secs());
                Err(Error::Gone { peer: peer.clone(), reason })
            }
            None => Err(self.gone(peer)),
        }
    }

    /// The time, for a keep-alive that comes back.
    fn clock(&self) -> Bytes {
        Bytes::copy_from_slice(&(self.0.began.elapsed().as_micros() as u64).to_le_bytes())
    }

    fn measure(&self, sent: &[u8]) {
        let Ok(sent) = <[u8; 8]>::try_from(sent) else { return };
        let now = self.0.began.elapsed().as_micros() as u64;
        self.0.rtt_us.store(now.saturating_sub(u64::from_le_bytes(sent)), Ordering::Relaxed);
    }

    async fn dial_stream(&self, address: &str, peer: &PeerId) -> Result<(Stream, Standing), Error> {
        let expect = peer.node().map_or(Expect::AnyNode, |node| Expect::Node(node.clone()));
        let to = [self.0.remote];
        let stream = connect(&self.0.identity, ALPN, address, &to, expect).await?;
        let (_, standing) = answered(address, &stream, &self.0.identity)?;
        Ok((stream, standing))
    }

    async fn want_stream(&self, peer: &PeerId) -> Result<(Stream, Standing), Error> {
        let ticket = self.0.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (bring, brought) = oneshot::channel();
        self.wanted().insert(ticket, bring);
        // Taken back also when nobody waits any more.
        let _waiting = Waiting { control: self, ticket };
        let asked = self.0.frames.send((WANT, Bytes::copy_from_slice(&ticket.to_le_bytes()))).await;
        asked.map_err(|_| self.gone(peer))?;
        brought.await.map_err(|_| self.gone(peer))
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<(Stream, Standing)>>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream we have asked for has come; `false` when nobody waits for it.
    pub(super) fn brought(&self, ticket: u64, stream: Stream, standing: Standing) -> bool {
        let bring = self.wanted().remove(&ticket);
        bring.is_some_and(|bring| bring.send((stream, standing)).is_ok())
    }
}

struct Waiting<'a> {
    control: &'a Control,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.control.wanted().remove(&self.ticket);
    }
}

/// Keeps `connection` alive until either end closes it, or the other has said nothing for ten seconds.
pub(super) async fn run(endpoint: &Endpoint, connection: &Connection, control: &Control, running: Running) {
    let Running { stream, mut frames, hello } = running;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let listen = async {
        loop {
            let frame = match timeout(SILENT_AFTER, read_frame(&mut reading)).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return ending(endpoint, control, &error),
                Err(_) => return format!("nothing was heard for {} s", SILENT_AFTER.as_secs()),
            };
            control.0.frames_received.fetch_add(1, Ordering::Relaxed);
            match frame {
                (DATAGRAM, datagram) if datagram.len() <= LARGEST_DATAGRAM => {
                    let taken = control.0.datagrams.0.try_send(datagram.into());
                    taken.unwrap_or_else(|_| endpoint.gate().count(Refusal::Datagram));
                }
                (DATAGRAM, _) => return refuse_frame(endpoint, "a datagram is too large"),
                (WANT, ticket) => bring(endpoint, connection, control, &ticket),
                // Where too much waits to be said, an answer less does no harm.
                (PING, sent) => drop(control.0.frames.try_send((PONG, sent.into()))),
                (PONG, sent) => control.measure(&sent),
                (BYE, reason) => {
                    let reason = String::from_utf8_lossy(&reason).into_owned();
                    let _ = control.0.goodbye.set(reason.clone());
                    return reason;
                }
                _ => {}
            }
        }
    };
    let speak = async {
        let mut tick = interval(KEEP_ALIVE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = hello.map(|flags| (HELLO, Bytes::copy_from_slice(&[flags])));
        loop {
            let (kind, body) = match first.take() {
                Some(hello) => hello,
                None => tokio::select! {
                    Some(frame) = frames.recv() => frame,
                    _ = tick.tick() => (PING, control.clock()),
                },
            };
            match timeout(SILENT_AFTER, write_frame(&mut writing, kind, &body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("nothing could be said for {} s", SILENT_AFTER.as_secs()),
            }
        }
    };
    tokio::select! {
        reason = listen => control.close(&reason),
        reason = speak => control.close(&reason),
        () = control.closed() => {}
    }
    let reason = control.0.reason.get().map_or("", String::as_str);
    let reason: String = reason.chars().take(200).collect();
    let goodbye = async {
        write_frame(&mut writing, BYE, reason.as_bytes()).await?;
        writing.shutdown().await
    };
    // The other end learns it also from the closed socket.
    let _ = timeout(GOODBYE, goodbye).await;
}

fn ending(endpoint: &Endpoint, control: &Control, error: &io::Error) -> String {
    if let Some(failure) = tls_in(error) {
        let text = failure.message.clone();
        let _ = control.0.refusal.set(failure);
        return text;
    }
    match error.kind() {
        io::ErrorKind::InvalidData => refuse_frame(endpoint, "a frame is too large"),
        _ => error.to_string(),
    }
}

fn refuse_frame(endpoint: &Endpoint, reason: &str) -> String {
    endpoint.gate().count(Refusal::Frame);
    reason.to_owned()
}

/// Brings a stream that the peer wants, and takes it in as one the peer has opened.
fn bring(endpoint: &Endpoint, connection: &Connection, control: &Control, ticket: &[u8]) {
    let (Some(_), Ok(ticket)) = (&control.0.dialled, <[u8; 8]>::try_from(ticket)) else { return };
    let Ok(permit) = Arc::clone(&control.0.bringing).try_acquire_owned() else {
        endpoint.gate().count(Refusal::Streams);
        return;
    };
    let (endpoint, connection, control) = (endpoint.clone(), connection.clone(), control.clone());
    endpoint.tasks().clone().spawn(async move {
        let _permit = permit;
        let brought = async {
            let address = control.0.dialled.as_ref().expect("it was looked at above");
            let (mut stream, standing) = control.dial_stream(address, connection.peer()).await?;
            let opening = [&[WANTED_STREAM][..], &control.0.name.to_le_bytes(), &ticket].concat();
            let refused = |error| refused(address, error);
            stream.write_all(&opening).await.map_err(refused)?;
            stream.flush().await.map_err(refused)?;
            let kind = stream.read_u8().await.map_err(refused)?;
            Ok::<_, Error>((kind, stream, standing))
        };
        match control.0.end.run_until_cancelled(timeout(HANDSHAKE_LIMIT, brought)).await {
            Some(Ok(Ok((kind, stream, standing)))) => {
                endpoint.take_in_tcp(&connection, &control, kind, stream, standing).await;
            }
            Some(Ok(Err(error))) => debug!(%error, "a stream the peer wants could not be brought"),
            Some(Err(_)) | None => {}
        }
    });
}

async fn read_frame(reading: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let kind = reading.read_u8().await?;
    let length = usize::from(reading.read_u16_le().await?);
    if length > MAX_FRAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    reading.read_exact(&mut body).await?;
    Ok((kind, body))
}

async fn write_frame(writing: &mut (impl AsyncWrite + Unpin), kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u16::try_from(body.len()).expect("frames are small");
    let frame = [&[kind][..], &length.to_le_bytes(), body].concat();
    writing.write_all(&frame).await?;
    writing.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_reads_back_and_one_too_large_is_refused() {
        let (mut here, mut there) = tokio::io::duplex(64 << 10);
        for (kind, body) in [(PING, &b""[..]), (DATAGRAM, &[7; LARGEST_DATAGRAM]), (99, b"news")] {
            write_frame(&mut here, kind, body).await.expect("it is written");
            assert_eq!(read_frame(&mut there).await.expect("it is read"), (kind, body.to_vec()));
        }
        write_frame(&mut here, PING, &[0; MAX_FRAME_BYTES + 1]).await.expect("it is written");
        let error = read_frame(&mut there).await.expect_err("it is too large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(here);
    }
}
