//! Takes the rows of COPY out of a connection's bytes, before the client library sees them.
//!
//! The library makes a message of its own of every row, hands it from task to task, and so spends more on a row than
//! the server did. Here rows are laid one behind the other into blocks as they come off the socket; the library sees a
//! COPY without rows, and does all the rest: logging in, statements, errors, the end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use steep_protocol::wire::bulk::BLOCK_BYTES;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::PollSender;

/// Read from the socket at once, at most.
const READ_BYTES: usize = 64 << 10;
/// A message's type and length.
const HEAD_BYTES: usize = 5;
/// The type of a message that carries COPY's rows.
const COPY_DATA: u8 = b'd';

/// Rows one behind the other, as COPY writes them.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Whole messages.
    pub(super) bytes: Vec<u8>,
    /// How many they were.
    pub(super) messages: u64,
}

/// What of a message is still to come.
#[derive(Debug, Clone, Copy)]
enum Message {
    /// Its head.
    Begins,
    /// So many bytes of a row.
    Row(usize),
    /// So many bytes of anything else.
    Other(usize),
}

/// A connection to a server without the rows of COPY; those go to the receiver that [`Gathering::over`] returns.
pub(super) struct Gathering<S> {
    stream: S,
    /// Read, and not looked at yet.
    raw: BytesMut,
    message: Message,
    /// For the library.
    passing: BytesMut,
    block: Block,
    /// `block` is to be sent before anything else.
    is_full: bool,
    blocks: PollSender<Block>,
}

impl<S> Gathering<S> {
    /// Blocks wait to be received one at a time: who does not read them makes the server wait.
    pub(super) fn over(stream: S) -> (Self, mpsc::Receiver<Block>) {
        let (blocks, received) = mpsc::channel(1);
        let gathering = Self {
            stream,
            raw: BytesMut::new(),
            message: Message::Begins,
            passing: BytesMut::new(),
            block: Block::default(),
            is_full: false,
            blocks: PollSender::new(blocks),
        };
        (gathering, received)
    }

    /// Sorts what was read, up to where a block is full or what passes must be handed on before the next row.
    fn sort(&mut self) {
        while !self.is_full {
            match self.message {
                Message::Begins => {
                    let Some(&[kind, a, b, c, d]) = self.raw.first_chunk::<HEAD_BYTES>() else { return };
                    // The length counts itself.
                    let left = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(HEAD_BYTES - 1);
                    let is_row = kind == COPY_DATA;
                    if is_row && !self.passing.is_empty() {
                        return;
                    }
                    if !is_row && self.block.messages > 0 {
                        self.is_full = true;
                        return;
                    }
                    if is_row {
                        self.raw.advance(HEAD_BYTES);
                        self.message = Message::Row(left);
                    } else {
                        self.message = Message::Other(left + HEAD_BYTES);
                    }
                }
                Message::Row(left) => {
                    let here = left.min(self.raw.len());
                    if self.block.bytes.capacity() == 0 {
                        self.block.bytes.reserve(BLOCK_BYTES + READ_BYTES);
                    }
                    self.block.bytes.extend_from_slice(&self.raw[..here]);
                    self.raw.advance(here);
                    if here < left {
                        self.message = Message::Row(left - here);
                        return;
                    }
                    self.message = Message::Begins;
                    self.block.messages += 1;
                    self.is_full = self.block.bytes.len() >= BLOCK_BYTES;
                }
                Message::Other(left) => {
                    let here = left.min(self.raw.len());
                    self.passing.extend_from_slice(&self.raw[..here]);
                    self.raw.advance(here);
                    if here < left {
                        self.message = Message::Other(left - here);
                        return;
                    }
                    self.message = Message::Begins;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> Gathering<S> {
    /// Reads more, behind what is there; zero bytes at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.raw.reserve(READ_BYTES);
        tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.raw)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.blocks.poll_reserve(cx)).map_err(gone)?;
        self.is_full = false;
        let block = std::mem::take(&mut self.block);
        Poll::Ready(self.blocks.send_item(block).map_err(gone))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.passing.is_empty() {
                let here = self.passing.len().min(buf.remaining());
                buf.put_slice(&self.passing[..here]);
                self.passing.advance(here);
                return Poll::Ready(Ok(()));
            }
            if self.is_full {
                ready!(self.poll_send(cx))?;
            }
            self.sort();
            if self.passing.is_empty() && !self.is_full && ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short");
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    /// A server's words: two statements, the second a COPY of rows of these lengths, then one more.
    fn said(rows: &[usize]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (mut all, mut passing, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        let mut pass = |all: &mut Vec<u8>, kind, body: &[u8]| {
            all.extend(message(kind, body));
            passing.extend(message(kind, body));
        };
        pass(&mut all, b'Z', b"I");
        pass(&mut all, b'T', &[7; 300]);
        pass(&mut all, b'H', b"\0\0\0");
        for (number, length) in rows.iter().enumerate() {
            let row = vec![number as u8; *length];
            all.extend(message(COPY_DATA, &row));
            copied.extend(row);
        }
        pass(&mut all, b'c', b"");
        pass(&mut all, b'C', b"COPY\0");
        pass(&mut all, b'Z', b"I");
        (all, passing, copied)
    }

    /// What the library and the receiver get when the bytes come in pieces of `piece`.
    async fn sorted(all: Vec<u8>, piece: usize) -> (Vec<u8>, Vec<Block>) {
        let (near, mut far) = tokio::io::duplex(piece);
        let (mut gathering, mut received) = Gathering::over(near);
        let server = tokio::spawn(async move {
            for piece in all.chunks(piece) {
                far.write_all(piece).await.expect("somebody reads");
            }
        });
        let receiver = tokio::spawn(async move {
            let mut blocks = Vec::new();
            while let Some(block) = received.recv().await {
                blocks.push(block);
            }
            blocks
        });
        let mut passed = Vec::new();
        gathering.read_to_end(&mut passed).await.expect("it ends well");
        drop(gathering);
        server.await.expect("all is said");
        (passed, receiver.await.expect("all is received"))
    }

    #[tokio::test]
    async fn rows_go_one_way_and_everything_else_the_other_wherever_the_bytes_are_cut() {
        for rows in [&[][..], &[0], &[1, 0, 2], &[100; 3_000], &[BLOCK_BYTES * 2, 5], &[BLOCK_BYTES - 1, 1, 1]] {
            let (all, passing, copied) = said(rows);
            for piece in [1, 4, 5, 7, 8_192, all.len()] {
                if all.len() / piece > 20_000 {
                    continue;
                }
                let (passed, blocks) = sorted(all.clone(), piece).await;
                assert_eq!(passed, passing, "{} rows in pieces of {piece}", rows.len());
                let messages: u64 = blocks.iter().map(|block| block.messages).sum();
                assert_eq!(messages, rows.len() as u64, "in pieces of {piece}");
                let got: Vec<u8> = blocks.into_iter().flat_map(|block| block.bytes).collect();
                assert!(got == copied, "{} rows in pieces of {piece} are others", rows.len());
            }
        }
    }

    #[tokio::test]
    async fn a_block_ends_with_a_row_and_all_rows_lie_ready_before_the_end_is_heard() {
        let (all, _, _) = said(&[BLOCK_BYTES / 2 + 1; 5]);
        let (near, mut far) = tokio::io::duplex(all.len());
        far.write_all(&all).await.expect("it fits");
        let (mut gathering, mut received) = Gathering::over(near);
        let mut passed = Vec::new();
        let reading = tokio::spawn(async move {
            loop {
                let mut piece = [0; 512];
                let read = gathering.read(&mut piece).await.expect("it reads");
                passed.extend_from_slice(&piece[..read]);
                if passed.ends_with(&message(b'Z', b"I")) && passed.len() > 320 {
                    return gathering;
                }
            }
        });
        for expected in [2, 2] {
            let block = received.recv().await.expect("there is more");
            assert_eq!((block.messages, block.bytes.len()), (expected, BLOCK_BYTES + 2));
        }
        let _gathering = reading.await.expect("it hears the end");
        assert_eq!(received.try_recv().expect("the last lies ready").messages, 1);
    }

    #[tokio::test]
    async fn who_is_not_read_any_more_breaks_off() {
        let (all, _, _) = said(&[BLOCK_BYTES; 3]);
        let (near, mut far) = tokio::io::duplex(all.len());
        far.write_all(&all).await.expect("it fits");
        let (mut gathering, received) = Gathering::over(near);
        drop(received);
        let ended = gathering.read_to_end(&mut Vec::new()).await;
        assert_eq!(ended.expect_err("nobody receives").kind(), io::ErrorKind::BrokenPipe);
    }
}
