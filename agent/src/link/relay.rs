//! Moves the bytes of a link at the publisher's end: the server's as they are, the subscriber's once they were read.

use std::{future::poll_fn, io, pin::Pin, task::Poll, time::Duration};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    sync::oneshot,
    time::{Instant, sleep},
};

/// What is read at once from the server. It bounds what we hold of one link.
const DOWN_BYTES: usize = 128 << 10;
/// A write of so much is worth its packets.
const WORTH_A_WRITE: usize = 16 << 10;
/// Small writes that may follow each other at once: those of a short transaction.
const SMALL_WRITES: u32 = 32;
/// How long more is waited for once they are used up.
const PAUSE: Duration = Duration::from_millis(1);
/// So many more may go at once for each such time, as commits that wait for each other come by ones and twos.
const GRANTED: u32 = 8;
/// When so much has come within a pause it is a stream, and goes on being gathered.
const STREAM: usize = 1 << 10;
/// The longest message of a subscriber: a question about many publications. Its status updates have 39 bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 5;

/// Why nothing more comes from a subscriber.
#[derive(Debug)]
pub(super) enum End {
    /// It has said goodbye, or closed its side.
    Closed,
    /// It has gone.
    Broken(io::Error),
    /// It said something it may not.
    Refused(String),
}

/// Says whether a text may be passed on to the server, or why not.
pub(super) trait Judge {
    fn judge(&mut self, text: &str) -> impl Future<Output = Result<(), String>> + Send;
}

/// Copies what the server sends until it closes. A text that comes through `last_word` is put behind the message under
/// way, if none is, and ends the copying.
pub(super) async fn down(
    mut server: impl AsyncRead + Unpin,
    mut peer: impl AsyncWrite + Unpin,
    said: BytesMut,
    mut last_word: oneshot::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut messages = Messages::default();
    messages.pass(&said);
    peer.write_all(&said).await?;
    let mut buffer = vec![0; DOWN_BYTES];
    let mut has_word = true;
    let mut pace = Pace::new();
    loop {
        let word = tokio::select! {
            read = server.read(&mut buffer) => match read? {
                0 => break,
                mut read => {
                    if read < WORTH_A_WRITE && !pace.may_go() {
                        sleep(PAUSE).await;
                        let more = what_is_there(&mut server, &mut buffer[read..]).await;
                        if more >= STREAM {
                            pace.begin_again();
                        }
                        read += more;
                    }
                    messages.pass(&buffer[..read]);
                    peer.write_all(&buffer[..read]).await?;
                    continue;
                }
            },
            word = &mut last_word, if has_word => word,
        };
        match word {
            Ok(word) => {
                if messages.is_between() {
                    peer.write_all(&word).await?;
                }
                break;
            }
            // Nobody is left who could say one: the subscriber has closed its side in peace.
            Err(_) => has_word = false,
        }
    }
    peer.shutdown().await
}

/// Reads what has come already, without waiting; an end or an error is left for the next reader.
async fn what_is_there(server: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> usize {
    let mut found = ReadBuf::new(buffer);
    poll_fn(|cx| {
        loop {
            let before = found.filled().len();
            let polled = Pin::new(&mut *server).poll_read(cx, &mut found);
            if !matches!(polled, Poll::Ready(Ok(()))) || found.filled().len() == before {
                return Poll::Ready(found.filled().len());
            }
        }
    })
    .await
}

/// A walsender writes each change by itself; each as a packet of its own would cost more than all the rest. So a few
/// small writes may go at once, for a short transaction to arrive soon, and a stream of them is gathered.
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { left: SMALL_WRITES, since: Instant::now() }
    }

    fn may_go(&mut self) -> bool {
        let pauses = self.since.elapsed().as_millis() / PAUSE.as_millis();
        if pauses > 0 {
            let more = u32::try_from(pauses).unwrap_or(SMALL_WRITES).saturating_mul(GRANTED);
            (self.left, self.since) = (self.left.saturating_add(more).min(SMALL_WRITES), Instant::now());
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    /// Nothing small may go until it is quieter.
    fn begin_again(&mut self) {
        (self.left, self.since) = (0, Instant::now());
    }
}

/// Copies what the subscriber says, message by message, each text once `judge` has let it through.
pub(super) async fn up(
    mut peer: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
    judge: &mut impl Judge,
) -> End {
    let end = pass_messages(&mut peer, &mut server, judge).await;
    if let End::Closed = end {
        // A server that has gone has said its last word to the other direction.
        drop(server.shutdown().await);
    }
    end
}

async fn pass_messages(
    peer: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
    judge: &mut impl Judge,
) -> End {
    let mut buffer = BytesMut::with_capacity(8 << 10);
    loop {
        let message = match next_message(peer, &mut buffer).await {
            Ok(Some(message)) => message,
            Ok(None) => return End::Closed,
            Err(end) => return end,
        };
        match message[0] {
            // Status updates, and the end of streaming.
            b'd' | b'c' | b'f' => {}
            b'Q' => {
                let text = message[HEADER_BYTES..].strip_suffix(&[0]).unwrap_or_default();
                let judged = match std::str::from_utf8(text) {
                    Ok(text) => judge.judge(text).await,
                    Err(_) => Err("it is no text".to_owned()),
                };
                if let Err(reason) = judged {
                    return End::Refused(reason);
                }
            }
            b'X' => {
                drop(server.write_all(&message).await);
                return End::Closed;
            }
            other => return End::Refused(format!("messages of kind {:?} are not for a link", char::from(other))),
        }
        if server.write_all(&message).await.is_err() {
            return End::Closed;
        }
    }
}

/// The next whole message; `None` at the end of the stream.
async fn next_message(peer: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Option<BytesMut>, End> {
    loop {
        if buffer.len() >= HEADER_BYTES {
            let length = (&buffer[1..]).get_u32() as usize;
            if !(4..MAX_MESSAGE_BYTES).contains(&length) {
                return Err(End::Refused(format!("a message of {length} bytes is not for a link")));
            }
            if buffer.len() > length {
                return Ok(Some(buffer.split_to(length + 1)));
            }
        }
        if peer.read_buf(buffer).await.map_err(End::Broken)? == 0 {
            return match buffer.is_empty() {
                true => Ok(None),
                false => Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            };
        }
    }
}

/// Knows where messages begin in bytes that pass by, however they are cut.
#[derive(Debug, Default)]
struct Messages {
    header: [u8; HEADER_BYTES],
    /// Bytes of the next header seen.
    seen: usize,
    /// Bytes of the message under way that are still to come.
    left: usize,
}

impl Messages {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = (HEADER_BYTES - self.seen).min(bytes.len());
            self.header[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
            self.seen += taken;
            bytes = &bytes[taken..];
            if self.seen == HEADER_BYTES {
                self.left = ((&self.header[1..]).get_u32() as usize).saturating_sub(4);
                self.seen = 0;
            }
        }
    }

    fn is_between(&self) -> bool {
        self.seen == 0 && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct OnlyGood;

    impl Judge for OnlyGood {
        async fn judge(&mut self, text: &str) -> Result<(), String> {
            if text == "good" { Ok(()) } else { Err("bad".to_owned()) }
        }
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let sent = [message(b'Z', b"I"), message(b'w', &[7; 300]), message(b'c', b""), message(b'd', b"xyz")].concat();
        let ends = [6, 311, 316, 324];
        for size in [1, 2, 5, 7, 324] {
            let mut messages = Messages::default();
            let mut passed = 0;
            for piece in sent.chunks(size) {
                messages.pass(piece);
                passed += piece.len();
                assert_eq!(messages.is_between(), ends.contains(&passed), "after {passed} bytes in pieces of {size}");
            }
        }
    }

    #[tokio::test]
    async fn only_what_a_walreceiver_says_reaches_the_server() {
        let cases = [
            (message(b'Q', b"good\0"), true),
            (message(b'd', b"status"), true),
            (message(b'Q', b"bad\0"), false),
            (message(b'P', b"\0select 1\0\0\0"), false),
            (message(b'Q', &[b'x'; MAX_MESSAGE_BYTES]), false),
            (vec![b'd', 0, 0, 0, 1], false),
        ];
        for (said, passes) in cases {
            let mut heard = Vec::new();
            let end = up(&said[..], &mut heard, &mut OnlyGood).await;
            assert_eq!(matches!(end, End::Closed), passes, "{said:?}: {end:?}");
            assert_eq!(matches!(end, End::Refused(_)), !passes, "{said:?}: {end:?}");
            assert_eq!(heard, if passes { said } else { Vec::new() });
        }
        let torn = up(&message(b'Q', b"good\0")[..7], Vec::new(), &mut OnlyGood).await;
        assert!(matches!(torn, End::Broken(_)), "{torn:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_burst_goes_at_once_and_a_long_one_is_gathered() {
        let mut pace = Pace::new();
        let at_once = |pace: &mut Pace| (0..100).filter(|_| pace.may_go()).count();
        assert_eq!(at_once(&mut pace), 32);
        tokio::time::advance(PAUSE * 2).await;
        assert_eq!(at_once(&mut pace), 16);
        tokio::time::advance(Duration::from_secs(60)).await;
        pace.begin_again();
        assert_eq!(at_once(&mut pace), 0);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(at_once(&mut pace), 32);
    }

    #[tokio::test]
    async fn a_long_burst_arrives_whole() {
        let (mut server, ours) = tokio::io::duplex(4096);
        let (peer, mut theirs) = tokio::io::duplex(4096);
        let (_say, word) = oneshot::channel();
        let moving = tokio::spawn(down(ours, peer, BytesMut::new(), word));
        let mut sent = Vec::new();
        for number in 0..100 {
            let one = message(b'd', &[number; 30]);
            server.write_all(&one).await.expect("it fits");
            sent.extend(one);
        }
        drop(server);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.expect("it ends");
        assert_eq!(heard, sent);
        moving.await.expect("no panic").expect("it was moved");
    }

    #[tokio::test]
    async fn a_last_word_never_stands_inside_a_message() {
        for (sent, is_said) in [(message(b'Z', b"I"), true), (message(b'Z', b"I")[..3].to_vec(), false)] {
            let (mut server, ours) = tokio::io::duplex(64);
            let (peer, mut theirs) = tokio::io::duplex(64);
            let (say, word) = oneshot::channel();
            let moving = tokio::spawn(down(ours, peer, BytesMut::new(), word));
            server.write_all(&sent).await.expect("it fits");
            let mut first = vec![0; sent.len()];
            theirs.read_exact(&mut first).await.expect("it was moved");
            say.send(b"last".to_vec()).expect("it is heard");
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await.expect("it ends");
            assert_eq!(rest, if is_said { &b"last"[..] } else { b"" });
            moving.await.expect("no panic").expect("it was moved");
        }
    }
}
